"""The local runtime: a job as processes of this machine."""
