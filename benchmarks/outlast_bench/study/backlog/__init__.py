"""How to apply a backlog: each policy on the same real gradients, in one process."""
