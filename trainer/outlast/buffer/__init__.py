"""The gradient log in Redis: append, record, snapshot."""
