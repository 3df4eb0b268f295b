"""Frames, connections and memory that processes of a job share."""
