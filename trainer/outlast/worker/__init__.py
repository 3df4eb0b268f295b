"""A worker: the optimizer of a training loop, its session with the servers, its client."""
