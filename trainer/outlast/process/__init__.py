"""What every process of a job has: metrics, a ledger, and an end when a thread fails."""
