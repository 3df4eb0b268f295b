"""The control plane of Outlast: a pure planner, and the runtimes that carry its plans out."""
