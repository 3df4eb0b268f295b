"""The planner: what is observed and remembered becomes a plan. Pure: no input or output, time is an argument."""
