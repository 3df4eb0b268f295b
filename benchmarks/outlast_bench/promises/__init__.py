"""The measurements behind the promises: each is a module with NAME, MUST, RUNS, HELP and `measure(settings)`.

Rules. (1) A bench measures on the spot, in the very process tree that `outlast run` makes; no number is stored.
(2) What must hold is checked on those figures and on nothing else; what could not be measured does not hold.
(3) Whatever goes wrong keeps its run directory and says where it is.
"""
