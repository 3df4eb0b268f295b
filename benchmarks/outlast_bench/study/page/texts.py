"""What a study's page says whatever its data are: headings, the question, words, differences, definitions, limits."""

from __future__ import annotations

ASKED = (
    "What does the loss of a parameter server cost, in accuracy at equal wall time and in money, and which strategy "
    'costs least? The study runs what "Training Through Failure" (Cao, Luo, Gan, Jinesh; arXiv 2406.05546, 2024) ran, '
    "with the same data, model and optimizer, and what that paper leaves open: how a backlog of stale gradients is "
    "best applied, what chain and stateless do together (Hybrid), and how far each stays from the same training "
    "without a failure."
)
HEADINGS = {  # by what a link to it is called
    "which": "Which strategy",
    "words": "Words",
    "answer": "The answer",
    "reading": "Reading the results",
    "backlog": "How to apply a backlog",
    "cost": "Cost",
    "models": "Beyond the paper's network: with and without normalisation",
    "different": "What was done differently from the paper, and why",
    "definitions": "What the figures mean",
    "limits": "Limits",
    "tables": "Tables, and runs that failed",
    "machine": "Machine and data",
    "appendix": "Appendix: other experiments in full",
}
WORDS = (
    ("control", "the same training with one server that is never killed; every run is compared with that of its seed"),
    ("held back", "a killed server is not started again for a fixed time: the outage, but for what detecting, starting "
     "or taking over adds"),
    ("drain", "when a server is back, it applies what workers computed meanwhile (the backlog), until nothing is left"),
    ("lost", "gradients that were acknowledged and of which what survives holds nothing, as after the return to a "
     "checkpoint"),
    ("goodput", "gradients that the final parameters hold, as a share of what the control made in the same time"),
    ("late accuracy", "the mean of the evaluations of a run's last 5 s"),
)  # fmt: skip
BACKLOG = (
    "The gradients of an outage are computed once and given to every policy, so that policies are compared on the same "
    "gradients. They were all taken at the parameters that were there when the server was lost, or, with local steps, "
    "along each worker's own way."
)
PRICES = "Prices are input, not result: list prices of an order that public lists showed, to be replaced by your own"
DIFFERENT = (
    (
        "Times",
        "The paper's machine processed 5 to 25 gradients a second, this one many more. Killed after its 15 s, "
        "training here would be past the steep part of its curve. So the kill falls at the update at which the "
        "control first reaches an accuracy of that part (each experiment names it where it begins), and the outage "
        "lasts as long as this machine takes for as many gradients as 15 s were at the paper's 25 a second. The "
        "paper's own times are run as well where the study has the experiment for it.",
    ),
    (
        "No checkpoint at the kill",
        "When the paper's servers were killed (after 23 to 61 updates, at a checkpoint every 100) none had been "
        "taken: checkpointing and chain both began anew, and hardly three steps of the stateless server had been. "
        "Here enough updates come before the kill. A configuration of its own shows what that accident alone does.",
    ),
    (
        "Data",
        "The paper's code loads the data set for every gradient (eight times as long as computing it). Here it is "
        "loaded once.",
    ),
    (
        "Evaluation",
        "The paper's server evaluates all 10,000 test images every ten updates, and trains nothing meanwhile. Here a "
        "process of its own does, at low priority, on a fixed part of them; all of them at the end.",
    ),
    (
        "Implementation",
        "The configurations are the paper's (synchrony, checkpoints and replication every 100 updates, "
        "acknowledgement by the successor, summed backlogs at a reduced rate above 50), the code is not: no Ray, no "
        "ZooKeeper, no worker started for each gradient, no backlog rewritten with each addition.",
    ),
    (
        "The network",
        "The paper's code ends in one more ReLU on the logits, which its text does not mention; with it the model "
        "learns more slowly at first. Here it is left out.",
    ),
)
DEFINITIONS = (
    (
        "Against the control",
        "mean of the evaluations of the last 5 s, less that of the control without failure: same seed, same wall time "
        "from the first update on. One snapshot of SGD's jumps by points from the next, the final one too; the mean "
        "does not. Final accuracy is of the last parameters, on all test images, and not in that mean.",
    ),
    (
        "Change at the kill",
        "accuracy when the next update came, less accuracy at the kill. Every evaluation within a second's updates of "
        "the one or the other is carried to it, by what an update brings there without a kill; their mean is the "
        "accuracy. Until its first kill a run is the same training as those of its configuration and seed with another "
        "number of kills, so their evaluations count for it. The answer above takes a seed's runs with one and with "
        "two kills together, for their first kill is the same; the tables do not.",
    ),
    (
        "Progress kept",
        "accuracy gained from the kill until outage, first update and drain are all over, over what the control "
        "gained in as long from the same update. Where the next kill or the end came before a backlog had been applied "
        "it is not known: such a run is not measured, and the figures say of how many runs they are. Where the control "
        "gained less than two points there is no share to tell.",
    ),
    (
        "Time to the target",
        "when a straight line through the evaluations of 2 s to either side first reaches it, since the first update; "
        "a line ends at an outage. The same for every configuration, however often it was evaluated. A run that did "
        "not get there counts with its whole time, marked ≥.",
    ),
    (
        "Goodput",
        "gradients that the final parameters hold, over what the control's rate would have made in the same time.",
    ),
    (
        "At the control's machine speed",
        "the instructions of a shared machine take longer at some times than at others, which shows in no stolen time. "
        "The evaluator does the same in every run of an experiment, so its CPU seconds an evaluation tell how slow the "
        "machine was. By analysis of covariance (one slope for the experiment, within configurations and seeds) a "
        "run's measure is moved to the speed that the control of its seed met; intervals take the slope as known. It "
        "stands beside what was measured at equal wall time, and decides nothing.",
    ),
    (
        "By the means alone",
        "a mean is beyond its bound, and its interval or range has the bound inside (a mark in brackets): other seeds "
        "might say the contrary.",
    ),
    (
        "Progress kept by a backlog policy",
        "what its weights gained from the start to the drain, over what the control gained with as many gradients and "
        "no outage; in accuracy and in loss. All weights are measured by the mean of 8 evaluations over the 35 "
        "ordinary gradients that follow, for one snapshot jumps by 3 to 5 points. Ruined: after the drain the loss is "
        "above that of untrained weights, and counts as theirs.",
    ),
    (
        "Synchronous",
        "a version averages one gradient of each of the N workers, where an asynchronous one is a single gradient: of "
        "as many gradients it makes 1/N as many steps of the same size. Goodput counts the gradients, and may be near "
        "1; accuracy and progress kept come at about 1/N of the control's pace, without any failure.",
    ),
    (
        "Intervals",
        "95 %, bootstrap over seeds (10,000 resamples, fixed generator), expanded for few seeds; ranges, from least to "
        "greatest, where there are fewer than five. Ratios are ratios of means. No run is left out of a mean but "
        "failed ones, which are named.",
    ),
)
LIMITS = (
    "One machine, whose cores workers, servers, Redis and evaluator share: what a strategy computes more (replicas, a "
    "log) it takes from the workers. On a cluster it would not, and goodput would be closer to 1.",
    "Small models and one family of tasks. Nothing here says how a model of a billion parameters takes stale "
    "gradients.",
    "A kill ends a process. A lost node, a partition or a slow disk are other failures; tests and not this study are "
    "about them.",
    "Few seeds. An interval over five is wide; of four or fewer there is no more than their range, which holds the "
    "mean of all seeds that there could be less often than an interval would.",
    "Accuracies within a run are of a fixed part of the test images, so their level may be off by a point or two; "
    "differences between runs are of the same images.",
    "Money is list prices times seconds of this machine: the ratios between strategies mean something, the amounts do "
    "not.",
)
