"""One job in a cluster: its loop, what it sees, what it records, what it does."""
