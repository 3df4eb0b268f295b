"""`outlast study`: the paper's experiments and ours, run one after another, and what they come to.

design/configurations   what is compared: the paper's five, ours, the control
design/experiments      which of them run how often, for how long, killed when, in which order
design/records          the files of a study
run/calibrate           where the control stands at the kill, and how fast it is here
run/execute             one run, in a process and a directory of its own
backlog/                how to apply a backlog, tried in one process
analysis/               from the files of the runs to measures and estimates
verdicts/               what they say of each claim
figures/, page/         the figures, the tables, the page
"""
