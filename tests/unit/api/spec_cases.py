"""One table of specs, with the verdict of each: for `outlast validate`, and for an API server with the CRD.

A row is YAML that is merged into a minimal spec; dotted keys set single fields. `CHANGES` are updates of a job.
"""

from __future__ import annotations

from typing import Any

import yaml

from outlast.api.document import read_document
from outlast.api.job import KIND


def job(spec: str, base: str = "training: {task: a.b, stopAfter: {updates: 1}}") -> str:
    """A whole job; `spec` is YAML that is merged into a minimal spec, dotted keys set single fields."""
    document: dict[str, Any] = yaml.safe_load(base)
    for path, value in (yaml.safe_load(spec) or {}).items():
        node = document
        *parents, last = path.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    head = {"apiVersion": "outlast.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "mnist"}}
    return yaml.safe_dump({**head, "spec": document}, sort_keys=False)


def spec_of(text: str) -> Any:
    return document_of(text)["spec"]


def document_of(text: str) -> Any:
    """The job as JSON values, as kubectl would send it."""
    return read_document(job(text), KIND)


UNSYNC = (
    "spec.training.consistency: Sync is refused with recovery.strategy Stateless, because its barrier would make every "
    "worker wait for the server in an outage; use Async or BoundedStaleness, or choose Chain"
)
ONE_WHAT = (
    "spec.training: needs exactly one of task (an import path) and script (a file); write one and leave the other out"
)
NO_END = "spec.training.stopAfter: has no end; set at least one of updates, epochs, seconds, accuracy"
PAIR = "spec.recovery.staleness.reducedRate: needs both above and lr; write both, or leave reducedRate out"
BATCH = "spec.recovery.chain.replicateEveryUpdates: 100 is refused with "

INVALID: list[tuple[str, str]] = [
    # the form of single fields
    ("recovery.chain.ack: Tial", 'spec.recovery.chain.ack: "Tial" is not one of Tail, Successor, Head'),
    ("training.consistency: async", 'spec.training.consistency: "async" is not one of Sync, Async, BoundedStaleness'),
    (
        "recovery.strategy: Chian",
        'spec.recovery.strategy: "Chian" is not one of Checkpoint, Chain, Stateless, Hybrid',
    ),
    ("recovery.buffer.durability: 1", "spec.recovery.buffer.durability: 1 is not one of Always, EverySecond, None"),
    ("recovery.buffer.dtype: float16", 'spec.recovery.buffer.dtype: "float16" is not one of float32, bfloat16'),
    ("recovery.buffer.whenFull: Wait", 'spec.recovery.buffer.whenFull: "Wait" is not one of Block, Drop'),
    (
        "runPolicy.cleanPodPolicy: Never",
        'spec.runPolicy.cleanPodPolicy: "Never" is not one of Running, All, None',
    ),
    ("suspend: 'yes'", 'spec.suspend: "yes" is not true or false'),
    ("suspend: 1", "spec.suspend: 1 is not true or false"),
    (
        "managedBy: me",
        "spec.managedBy: \"me\" is not a controller's name such as outlast.dev/operator",
    ),
    ("training.seed: -1", "spec.training.seed: -1 is too small; use 0 or more"),
    ("training.seed: 2.5", "spec.training.seed: 2.5 is not a whole number"),
    (
        "training.seed: 9007199254740992",
        "spec.training.seed: 9007199254740992 is too large; use 9007199254740991 or less",
    ),
    (
        "training.task: train.py:main",
        'spec.training.task: "train.py:main" is not an import path such as outlast.tasks.fashion_mnist; a file goes '
        "into training.script",
    ),
    ("training.source.configMap: My_Code", 'spec.training.source.configMap: "My_Code" is not the name of a '
     "Kubernetes object (lower-case letters, digits, '-' and '.')"),
    ("training.args: [1]", "spec.training.args: [1] is not an object"),
    ("training.maxStaleness: many", 'spec.training.maxStaleness: "many" is not a whole number'),
    ("training.optimizer.name: Sgd", 'spec.training.optimizer.name: "Sgd" is not one of SGD, Adam, AdamW'),
    ("training.optimizer.lr: 0", "spec.training.optimizer.lr: 0 is too small; use more than 0"),
    ("training.optimizer.lr: -0.1", "spec.training.optimizer.lr: -0.1 is too small; use more than 0"),
    ("training.optimizer.lr: .nan", "spec.training.optimizer.lr: .nan is not a finite number"),
    ("training.optimizer.lr: -.inf", "spec.training.optimizer.lr: -.inf is not a finite number"),
    (
        "training.optimizer.lr: '0.1'",
        'spec.training.optimizer.lr: "0.1" is not a number; write it without quotes',
    ),
    ("training.optimizer.momentum: 1", "spec.training.optimizer.momentum: 1 is too large; use less than 1"),
    ("training.optimizer: SGD", 'spec.training.optimizer: "SGD" is not an object'),
    (
        "training.optimizer: {name: Adam, betas: [0.9]}",
        "spec.training.optimizer.betas: [0.9] is not a pair; write two numbers such as [0.9, 0.999]",
    ),
    (
        "training.optimizer: {name: Adam, betas: [0.9, 1.0]}",
        "spec.training.optimizer.betas[1]: 1 is too large; use less than 1",
    ),
    ("managedBy: a/" + 62 * "b", f'spec.managedBy: "a/{54 * "b"}... is too long; use 63 characters or fewer'),
    (
        "recovery.checkpoint.restoreFrom: " + 1025 * "a",
        f'spec.recovery.checkpoint.restoreFrom: "{56 * "a"}... is too long; use 1024 characters or fewer',
    ),
    (
        "training.optimizer.schedule: {name: Step, milestones: [" + ", ".join(map(str, range(10, 75))) + "]}",
        "spec.training.optimizer.schedule.milestones: [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, ... is "
        "too long; give 64 items or fewer",
    ),
    ("training.optimizer: {name: Adam, betas: 1}", "spec.training.optimizer.betas: 1 is not a list"),
    ("training.optimizer.schedule: {}", "spec.training.optimizer.schedule.name: missing; it has no default"),
    (
        "training.optimizer.schedule: {name: Step, milestones: [1, 0]}",
        "spec.training.optimizer.schedule.milestones[1]: 0 is too small; use 1 or more",
    ),
    (
        "training.optimizer.schedule: {name: Step, milestones: []}",
        "spec.training.optimizer.schedule.milestones: [] is too short; give 1 item or more",
    ),
    ("training.stopAfter: {updates: 0}", "spec.training.stopAfter.updates: 0 is too small; use 1 or more"),
    ("training.stopAfter: {accuracy: 90}", "spec.training.stopAfter.accuracy: 90 is too large; use 1 or less"),
    ("training.evaluate.samples: 0", "spec.training.evaluate.samples: 0 is too small; use 1 or more"),
    ("servers.shards: 65", "spec.servers.shards: 65 is too large; use 64 or less"),
    ("servers.replicas: '3'", 'spec.servers.replicas: "3" is not a whole number; write it without quotes'),
    ("servers.replicas: true", "spec.servers.replicas: true is not a whole number"),
    ("servers.template: x", 'spec.servers.template: "x" is not an object'),
    ("workers.replicas: 0", "spec.workers.replicas: 0 is too small; use 1 or more"),
    ("workers.replicas: 10000", "spec.workers.replicas: 10000 is too large; use 9999 or less"),
    ("workers.graceSeconds: -1", "spec.workers.graceSeconds: -1 is too small; use 0 or more"),
    ("recovery.checkpoint.everyUpdates: -1", "spec.recovery.checkpoint.everyUpdates: -1 is too small; use 0 or more"),
    ("recovery.checkpoint.keep: 0", "spec.recovery.checkpoint.keep: 0 is too small; use 1 or more"),
    ("recovery.checkpoint.restoreFrom: ''", "spec.recovery.checkpoint.restoreFrom: is empty; write a value or leave "
     "the field out"),
    ("recovery.checkpoint.claim: fast", 'spec.recovery.checkpoint.claim: "fast" is not an object'),
    (
        "recovery.checkpoint.claim: {size: 1024}",
        "spec.recovery.checkpoint.claim.size: 1024 is too small; use 1048576 or more",
    ),
    (
        "recovery.checkpoint.claim: {storageClassName: ''}",
        'spec.recovery.checkpoint.claim.storageClassName: "" is not the name of a Kubernetes object (lower-case '
        "letters, digits, '-' and '.')",
    ),
    (
        "recovery.checkpoint.claim: {accessModes: [ReadOnlyMany]}",
        'spec.recovery.checkpoint.claim.accessModes[0]: "ReadOnlyMany" is not one of ReadWriteOnce, ReadWriteOncePod, '
        "ReadWriteMany",
    ),
    (
        "recovery.checkpoint.claim: {accessModes: []}",
        "spec.recovery.checkpoint.claim.accessModes: [] is too short; give 1 item or more",
    ),
    ("recovery.buffer.template: x", 'spec.recovery.buffer.template: "x" is not an object'),
    ("evaluator.template: [x]", 'spec.evaluator.template: ["x"] is not an object'),
    ("runPolicy.startDeadlineSeconds: 0", "spec.runPolicy.startDeadlineSeconds: 0 is too small; use 1 or more"),
    ("security.networkPolicy: Off", "spec.security.networkPolicy: false is not one of Managed, None"),
    ("recovery.checkpoint.volume: pvc", 'spec.recovery.checkpoint.volume: "pvc" is not an object'),
    (
        "recovery.chain.replicateEveryUpdates: 0",
        "spec.recovery.chain.replicateEveryUpdates: 0 is too small; use 1 or more",
    ),
    (
        "recovery.buffer.maxBytes: 4GiB",
        'spec.recovery.buffer.maxBytes: "4GiB" is not a quantity of bytes; write for example 512Mi, 4Gi or 4294967296',
    ),
    (
        "recovery.buffer.maxBytes: -1",
        "spec.recovery.buffer.maxBytes: -1 is too small; use 1048576 or more",
    ),
    (
        "recovery.buffer.url: localhost:6379",
        'spec.recovery.buffer.url: "localhost:6379" is not a Redis URL such as redis://host:6379/0 (redis, rediss or '
        "unix)",
    ),
    (
        "recovery.buffer.url: 6379",
        "spec.recovery.buffer.url: 6379 is not a string; put it in quotes",
    ),
    ("recovery.staleness.clipNorm: 0", "spec.recovery.staleness.clipNorm: 0 is too small; use more than 0"),
    (
        "recovery.failover.heartbeatSeconds: 0",
        "spec.recovery.failover.heartbeatSeconds: 0 is too small; use 0.01 or more",
    ),
    ("runPolicy.backoffLimit: -1", "spec.runPolicy.backoffLimit: -1 is too small; use 0 or more"),
    ("cost.currency: dollars", 'spec.cost.currency: "dollars" is not a currency code such as USD'),
    ("cost.hourly.worker: -2.5", "spec.cost.hourly.worker: -2.5 is too small; use 0 or more"),
    ("recovery.buffer.maxBytes: 1Ki", 'spec.recovery.buffer.maxBytes: "1Ki" is too small; use 1048576 or more'),
    ("recovery.buffer.maxBytes: 0.999999999Mi", 'spec.recovery.buffer.maxBytes: "0.999999999Mi" is too small; use '
     "1048576 or more"),
    ("recovery.buffer.maxBytes: 8Pi",
     'spec.recovery.buffer.maxBytes: "8Pi" is too large; use 9007199254740991 or less'),
    (
        "recovery.buffer.maxBytes: 9007199254740992",
        "spec.recovery.buffer.maxBytes: 9007199254740992 is too large; use 9007199254740991 or less",
    ),
    ("recovery.buffer.maxBytes: 1048576.5", "spec.recovery.buffer.maxBytes: 1048576.5 is not a whole number"),
    ("recovery.checkpoint.claim: {size: 1}",
     "spec.recovery.checkpoint.claim.size: 1 is too small; use 1048576 or more"),
    (
        "recovery.failover: {heartbeatSeconds: 0.001}",
        "spec.recovery.failover.heartbeatSeconds: 0.001 is too small; use 0.01 or more",
    ),
    ("recovery.failover.assumeDeadSeconds: 0",
     "spec.recovery.failover.assumeDeadSeconds: 0 is too small; use 0.02 or more"),
    ("training.optimizer: {name: Adam, betas: [0.1, 0.2, 0.3]}",
     "spec.training.optimizer.betas: [0.1, 0.2, 0.3] is not a pair; write two numbers such as [0.9, 0.999]"),
    ("training.optimizer.lr: 1000001", "spec.training.optimizer.lr: 1000001 is too large; use 1000000 or less"),
    ("training.optimizer.eps: true", "spec.training.optimizer.eps: true is not a number"),
    ("training.stopAfter: 3", "spec.training.stopAfter: 3 is not an object"),
    ("training.task: ''", 'spec.training.task: "" is not an import path such as outlast.tasks.fashion_mnist; a file '
     "goes into training.script"),
    ("recovery.strategy: ''", 'spec.recovery.strategy: "" is not one of Checkpoint, Chain, Stateless, Hybrid'),
    ("recovery.buffer.maxBytes: true", "spec.recovery.buffer.maxBytes: true is not a whole number"),
    ("recovery.buffer.maxBytes: ''", 'spec.recovery.buffer.maxBytes: "" is not a quantity of bytes; write for example '
     "512Mi, 4Gi or 4294967296"),
    ("recovery.checkpoint.claim: []", "spec.recovery.checkpoint.claim: [] is not an object"),
    ("workers: []", "spec.workers: [] is not an object"),
    ("cost.currency: usd", 'spec.cost.currency: "usd" is not a currency code such as USD'),
    # unknown fields
    ("strategy: Chain", "spec.strategy: unknown field; did you mean spec.recovery.strategy?"),
    ("recovry: {}", "spec.recovry: unknown field; did you mean recovery?"),
    ("training.max_staleness: 3", "spec.training.max_staleness: unknown field; did you mean maxStaleness?"),
    ("training.optimizer.weight-decay: 1", "spec.training.optimizer.weight-decay: unknown field; did you mean "
     "weightDecay?"),
    ("workers.minReplica: 1", "spec.workers.minReplica: unknown field; did you mean minReplicas?"),
    ("security.password: x", "spec.security.password: unknown field; known here: tls, networkPolicy"),
    # rules between fields
    ("training: {task: a.b, script: c.py, stopAfter: {updates: 1}}", ONE_WHAT),
    ("training: {stopAfter: {updates: 1}}", ONE_WHAT),
    ("training: {task: a.b}", NO_END),
    ("training: {task: a.b, stopAfter: {updates: }}", NO_END),
    (
        "training: {task: a.b, stopAfter: {accuracy: 0.9}, evaluate: {everySeconds: }}",
        "spec.training.stopAfter.accuracy: the accuracy is not measured; use a task, and set "
        "training.evaluate.everySeconds or everyUpdates",
    ),
    (
        "training: {task: a.b, stopAfter: {accuracy: 0.9}, evaluate: {everySeconds: 0, everyUpdates: 0}}",
        "spec.training.stopAfter.accuracy: the accuracy is not measured; use a task, and set "
        "training.evaluate.everySeconds or everyUpdates",
    ),
    (
        "training.optimizer: {name: Adam, momentum: 0.9}",
        "spec.training.optimizer.momentum: Adam has no momentum; leave it out and set betas, or choose SGD",
    ),
    (
        "training.optimizer.nesterov: true",
        "spec.training.optimizer.nesterov: Nesterov needs SGD with momentum; set optimizer.momentum above 0 with SGD, "
        "or leave nesterov out",
    ),
    (
        "training.optimizer.betas: [0.5, 0.9]",
        "spec.training.optimizer.betas: SGD has no betas; leave them out and set momentum, or choose Adam or AdamW",
    ),
    (
        "training.optimizer.eps: 0.1",
        "spec.training.optimizer.eps: SGD has no eps; leave it out, or choose Adam or AdamW",
    ),
    (
        "training.optimizer.schedule: {name: Step}",
        "spec.training.optimizer.schedule: a Step schedule needs exactly one of everyUpdates and milestones; write one "
        "and leave the other out",
    ),
    (
        "training.optimizer.schedule: {name: Constant, everyUpdates: 3}",
        "spec.training.optimizer.schedule: everyUpdates and milestones belong to Step; leave them out, or set "
        "schedule.name to Step",
    ),
    (
        "training.optimizer.schedule: {name: Step, milestones: [5, 3]}",
        "spec.training.optimizer.schedule.milestones: the milestones are not in order; write them from the lowest to "
        "the highest",
    ),
    (
        "training.optimizer.schedule: {name: Cosine}",
        "spec.training.optimizer.schedule.updates: missing; Linear and Cosine need the number of updates until they "
        "reach `final`",
    ),
    (
        "training.optimizer.schedule: {name: Step, everyUpdates: 1, updates: 2}",
        "spec.training.optimizer.schedule.updates: belongs to Linear and Cosine; leave it out, or set schedule.name to "
        "one of them",
    ),
    (
        "recovery.strategy: Chain\nservers.replicas: 1",
        "spec.servers.replicas: 1 is too few for recovery.strategy Chain; use 2 or more, or choose Checkpoint",
    ),
    (
        "servers.replicas: 1",
        "spec.servers.replicas: 1 is too few for recovery.strategy Hybrid; use 2 or more, or choose Checkpoint",
    ),
    (
        "recovery.strategy: Stateless\nservers.replicas: 3",
        "spec.servers.replicas: 3 is too many for recovery.strategy Stateless, which has one server for each shard; "
        "use 1, or choose Chain or Hybrid",
    ),
    (
        "workers: {replicas: 2, minReplicas: 3}",
        "spec.workers.replicas: 2 is less than workers.minReplicas (3); raise it, or lower minReplicas",
    ),
    (
        "workers: {replicas: 5, maxReplicas: 4}",
        "spec.workers.replicas: 5 is more than workers.maxReplicas; lower it, or raise maxReplicas",
    ),
    ("recovery.strategy: Stateless\ntraining.consistency: Sync", UNSYNC),
    (
        "recovery: {strategy: Checkpoint, checkpoint: {everyUpdates: }}",
        "spec.recovery.checkpoint: no checkpoint would be written while training, and recovery.strategy Checkpoint has "
        "nothing else; set everyUpdates or everySeconds",
    ),
    (
        "recovery: {strategy: Checkpoint, checkpoint: {everyUpdates: 0, everySeconds: 0}}",
        "spec.recovery.checkpoint: no checkpoint would be written while training, and recovery.strategy Checkpoint has "
        "nothing else; set everyUpdates or everySeconds",
    ),
    (
        "recovery.checkpoint: {claim: {}, volume: {emptyDir: {}}}",
        "spec.recovery.checkpoint: has both claim (made by the operator) and volume (made by you); write one and leave "
        "the other out",
    ),
    (
        "recovery.checkpoint.claim: {accessModes: [ReadWriteOncePod, ReadWriteOnce]}",
        "spec.recovery.checkpoint.claim.accessModes: Kubernetes refuses ReadWriteOncePod together with other modes; "
        "write ReadWriteOncePod alone, or leave it out",
    ),
    (
        "recovery: {strategy: Chain, chain: {replicateEveryUpdates: 100}}",
        BATCH + "ack Tail, because a gradient of a batch is acknowledged before the tail has it; use 1, or ack "
        "Successor or Head",
    ),
    (
        "recovery: {strategy: Hybrid, chain: {replicateEveryUpdates: 100, ack: Head}}",
        BATCH + "recovery.strategy Hybrid, which acknowledges only what outlives the head (a batch does not); use 1, "
        "or choose Chain",
    ),
    ("recovery.staleness.reducedRate: {above: 50}", PAIR),
    ("recovery.staleness.reducedRate: {above: , lr: 0.001}", PAIR),
    (
        "recovery.staleness.outage.mode: LocalSteps\ntraining.consistency: Sync",
        "spec.recovery.staleness.outage.mode: LocalSteps is refused with training.consistency Sync, whose weights are "
        "the same on all workers; use StaleGradients, or choose Async or BoundedStaleness",
    ),
    (
        "recovery: {strategy: Chain, staleness: {outage: {mode: LocalSteps}}}",
        "spec.recovery.staleness.outage.mode: LocalSteps is refused with recovery.strategy Chain, whose workers wait "
        "in an outage; use StaleGradients, or choose Stateless or Hybrid",
    ),
    (
        "recovery.failover: {heartbeatSeconds: 1.5, timeoutSeconds: 2}",
        "spec.recovery.failover.timeoutSeconds: 2 is less than two heartbeats of 1.5 s, so one late heartbeat "
        "would cause a failover; raise it, or lower heartbeatSeconds",
    ),
    (
        "recovery.failover: {timeoutSeconds: 60}",
        "spec.recovery.failover.assumeDeadSeconds: 30 is less than timeoutSeconds (60); raise it, or lower "
        "timeoutSeconds",
    ),
]  # fmt: skip


VALID: list[str] = [
    "",
    # every choice of every enumeration
    "recovery.strategy: Checkpoint",
    "recovery.strategy: Chain",
    "recovery.strategy: Stateless",
    "recovery.strategy: Hybrid",
    "training.consistency: Sync",
    "training: {consistency: BoundedStaleness, maxStaleness: 0, task: a.b, stopAfter: {updates: 1}}",
    "training.optimizer: {name: SGD, momentum: 0.9, nesterov: true}",
    "training.optimizer: {name: Adam, betas: [0, 0.5], eps: 1}",
    "training.optimizer: {name: AdamW, weightDecay: 1000000}",
    "training.optimizer.schedule: {name: Constant, warmUpUpdates: 10}",
    "training.optimizer.schedule: {name: Step, everyUpdates: 3, factor: 1}",
    "training.optimizer.schedule: {name: Step, milestones: [1, 2, 2, 9]}",
    "training.optimizer.schedule: {name: Linear, updates: 9, final: 1}",
    "training.optimizer.schedule: {name: Cosine, updates: 9, final: 0}",
    "recovery.buffer: {whenFull: Drop, dtype: bfloat16, durability: EverySecond}",
    "recovery.staleness: {policy: DelayCompensation, clipNorm: 1}",
    "recovery.staleness: {policy: Sum, reducedRate: {above: 50, lr: 0.001}}",
    "recovery.staleness.outage: {mode: LocalSteps, scaleRate: false, sendEverySeconds: 0.5}",
    "recovery: {strategy: Chain, staleness: {outage: {mode: StaleGradients}}}",
    "recovery: {strategy: Chain, chain: {ack: Successor, replicateEveryUpdates: 100}}",
    "runPolicy: {backoffLimit: 0, activeDeadlineSeconds: 1, startDeadlineSeconds: 1, ttlSecondsAfterFinished: 0}",
    "runPolicy.cleanPodPolicy: None",
    "security: {tls: {secretName: s}, networkPolicy: None}",
    "cost: {currency: EUR, hourly: {server: 0, worker: 1000000000}}",
    "managedBy: kueue.x-k8s.io/multikueue",
    "suspend: true",
    # the largest and the smallest
    "servers: {shards: 64, replicas: 16}",
    "recovery.strategy: Stateless\nservers: {shards: 1, replicas: 1}",
    "workers: {replicas: 9999, minReplicas: 9999, maxReplicas: 9999, graceSeconds: 0}",
    "training.seed: 9007199254740991",
    "training.maxStaleness: 2147483647",
    "recovery.checkpoint: {keep: 10000, everyUpdates: 2147483647, everySeconds: 1000000000}",
    "recovery.failover: {heartbeatSeconds: 0.01, timeoutSeconds: 0.02, assumeDeadSeconds: 0.02}",
    "recovery.failover: {heartbeatSeconds: 1, timeoutSeconds: 2, assumeDeadSeconds: 2, delaySeconds: 1000000000}",
    "training: {task: a.b, stopAfter: {accuracy: 1, seconds: 0.001, epochs: 1}}",
    "training: {script: dir/train.py, stopAfter: {updates: 1}}",
    # nothing, said in several ways
    "servers: null",
    "servers.replicas: null",
    "recovery: {strategy: null, checkpoint: null, chain: null, buffer: null}",
    "recovery: {strategy: Hybrid, checkpoint: {everyUpdates: 0, everySeconds: 0}}",
    "recovery.checkpoint: {everyUpdates: null, everySeconds: null, volume: null, claim: null}",
    "training.evaluate: {everySeconds: 0, everyUpdates: 0}",
    "training.optimizer: {schedule: null}",
    "recovery.staleness: {reducedRate: {}, clipNorm: null}",
    "recovery.staleness.reducedRate: {above: , lr: }",
    "workers.maxReplicas: null",
    # quantities
    "recovery.buffer.maxBytes: 1048576",
    "recovery.buffer.maxBytes: '1048576'",
    "recovery.buffer.maxBytes: 1024Ki",
    "recovery.buffer.maxBytes: 1.5Gi",
    "recovery.buffer.maxBytes: 1Ti",
    # whole numbers, written with a point
    "training.seed: 2.0",
    "training.optimizer.schedule: {name: Step, milestones: [1.0, 2.0]}",
    "workers.replicas: 3.0",
    # where checkpoints and the job's own Redis lie
    "recovery.checkpoint.claim: {}",
    "recovery.checkpoint.claim: {storageClassName: fast.ssd, size: 1Ti, accessModes: [ReadWriteMany]}",
    "recovery.checkpoint.claim: {accessModes: [ReadWriteOnce, ReadWriteMany]}",
    "recovery.checkpoint.claim: {accessModes: [ReadWriteOncePod], size: 1048576}",
    "recovery.checkpoint.volume: {persistentVolumeClaim: {claimName: mine}}",
    "recovery.checkpoint: {claim: null, volume: {emptyDir: {}}}",
    "recovery.buffer: {url: 'redis://host:6379/0', durability: Always}",
    "recovery.buffer.url: unix:///run/redis.sock",
    # the longest
    "recovery.checkpoint.restoreFrom: " + 1024 * "ü",
    "training.task: " + 251 * "a" + ".b",
    "managedBy: a/" + 61 * "b",
    "recovery.checkpoint.claim.storageClassName: " + 253 * "a",
    "training.optimizer.schedule: {name: Step, milestones: [" + ", ".join(map(str, range(1, 65))) + "]}",
    # what is not ours to judge
    "training.args: {a: null, b: [1, {c: 2.5}], d: text}",
    "servers.template: {metadata: {labels: {a: b}}, spec: {containers: [{name: x, image: y}]}}",
    "workers.template: {spec: {nodeSelector: {a: b}, tolerations: []}}",
    "evaluator.template: {spec: {priorityClassName: low}}",
    "recovery.buffer.template: {spec: {containers: [{name: redis, resources: {limits: {memory: 5Gi}}}]}}",
]

# Never reach an API server: JSON has no number for them.
NOT_JSON = ("is not a finite number",)

# Updates of a job: what is merged before, what after, and the paths that may not change so.
CHANGES: list[tuple[str, str, str, str]] = [
    ("managed by", "", "managedBy: kueue.x-k8s.io/multikueue", "managedBy"),
    ("task", "", "training.task: c.d", "training.task"),
    ("a script for a task", "", "training: {script: x.py, stopAfter: {updates: 1}}", "training.task training.script"),
    ("configMap", "", "training.source.configMap: code", "training.source"),
    ("seed", "", "training.seed: 1", "training.seed"),
    ("consistency", "", "training.consistency: BoundedStaleness", "training.consistency"),
    ("staleness", "", "training.maxStaleness: 1", "training.maxStaleness"),
    ("rate", "", "training.optimizer.lr: 1", "training.optimizer"),
    ("betas", "training.optimizer.name: Adam", "training.optimizer: {name: Adam, betas: [0.5, 0.9]}",
     "training.optimizer"),
    ("schedule", "", "training.optimizer.schedule: {name: Constant}", "training.optimizer"),
    ("milestones", "training.optimizer.schedule: {name: Step, milestones: [1]}",
     "training.optimizer.schedule: {name: Step, milestones: [1, 2]}", "training.optimizer"),
    ("evaluation", "", "training.evaluate.samples: 1", "training.evaluate"),
    ("shards", "", "servers.shards: 2", "servers.shards"),
    ("replicas", "", "servers.replicas: 2", "servers.replicas"),
    ("strategy", "", "recovery.strategy: Chain", "recovery.strategy"),
    ("reduced rate", "", "recovery.staleness.reducedRate: {above: 1, lr: 0.1}", "recovery.staleness"),
    ("acknowledgement", "", "recovery.chain.ack: Head", "recovery.chain"),
    ("bytes", "", "recovery.buffer.maxBytes: 4Gi", "recovery.buffer.maxBytes"),
    ("url", "", "recovery.buffer.url: 'redis://host'", "recovery.buffer.url"),
    ("claim", "", "recovery.checkpoint.claim: {}", "recovery.checkpoint"),
    ("size", "recovery.checkpoint.claim: {size: 1Gi}", "recovery.checkpoint.claim: {size: 2Gi}", "recovery.checkpoint"),
    ("access modes", "recovery.checkpoint.claim: {}", "recovery.checkpoint.claim: {accessModes: [ReadWriteMany]}",
     "recovery.checkpoint"),
    ("heartbeat", "", "recovery.failover.heartbeatSeconds: 0.25", "recovery.failover"),
    ("tls", "", "security.tls.secretName: s", "security.tls"),
    ("suspend may change", "", "suspend: true", ""),
    ("workers may change", "", "workers: {replicas: 5, graceSeconds: 1, template: {spec: {}}}", ""),
    ("the end may change", "", "training.stopAfter: {epochs: 3}", ""),
    ("policy and cost may change", "", "runPolicy.backoffLimit: 1\ncost.hourly.server: 1", ""),
    ("templates may change", "", "servers.template: {spec: {}}\nevaluator.template: {spec: {}}", ""),
    ("the template of Redis may change", "", "recovery.buffer.template: {spec: {}}", ""),
    ("the network policy may change", "", "security.networkPolicy: None", ""),
    ("the default written out", "", "recovery.strategy: Hybrid\ntraining.seed: 0\nservers.replicas: 3", ""),
    ("replicas written out", "recovery.strategy: Stateless", "recovery.strategy: Stateless\nservers.replicas: 1", ""),
    ("a quantity in bytes", "", "recovery.buffer.maxBytes: 1073741824", ""),
    ("a quantity in other units", "recovery.buffer.maxBytes: 1.5Gi", "recovery.buffer.maxBytes: 1536Mi", ""),
    ("a period of 0 for none", "recovery.checkpoint: {everyUpdates: null}",
     "recovery.checkpoint: {everyUpdates: 0}", ""),
    ("an empty pair for none", "", "recovery.staleness.reducedRate: {above: , lr: }", ""),
]  # fmt: skip
