"""The replica: a server's order of updates, and what it forwards, acknowledges and refuses. Pure."""
