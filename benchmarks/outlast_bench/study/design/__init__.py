"""What a study consists of: configurations, experiments, the order of the runs, its files."""
