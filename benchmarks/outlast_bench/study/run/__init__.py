"""Makes the runs of a study: calibrates, executes one after another, tells how far it is."""
