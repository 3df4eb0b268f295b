"""`outlast study`: the paper's experiments and ours, run one after another, and what they come to.

configurations   what is compared: the paper's five, ours, the control
experiments      which of them run how often, for how long, killed when
calibrate        where the control stands at the kill, and how fast it is here
schedule         the order of the runs
execute          one run, in a process and a directory of its own
records          the files of a study
"""
