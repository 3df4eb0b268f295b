"""A parameter server: the shell around the replica of chain/."""
