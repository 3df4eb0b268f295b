"""Reading TrainingJobs: defaults, round trips, and the exact words for everything that can be wrong."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spec_cases import INVALID, NO_END, VALID, job

from outlast.api.errors import SpecError
from outlast.api.job import TrainingJob, read_spec
from outlast.api.rules import LONGEST_CHILD_SUFFIX, NAME_LENGTH, RULES, value_at

MINIMAL = """
apiVersion: outlast.dev/v1alpha1
kind: TrainingJob
metadata: {name: mnist}
spec:
  training: {task: outlast.tasks.fashion_mnist, stopAfter: {updates: 100}}
"""

# The documented defaults, as the reference shows them (empty: null).
DEFAULTS = """
suspend: false
managedBy: outlast.dev/operator
training:
  task: outlast.tasks.fashion_mnist
  source: {configMap: }
  args: {}
  seed: 0
  consistency: Async
  maxStaleness: 8
  optimizer: {name: SGD, lr: 0.01, momentum: 0.0, schedule: }
  stopAfter: {updates: 100, epochs: , seconds: , accuracy: }
  evaluate: {everySeconds: 2, everyUpdates: , samples: 2000}
servers: {shards: 1, replicas: 3, template: {}}
workers: {replicas: 2, minReplicas: 1, maxReplicas: , graceSeconds: 60, template: {}}
evaluator: {template: {}}
recovery:
  strategy: Hybrid
  checkpoint: {everyUpdates: 100, everySeconds: , keep: 3, restoreFrom: , volume: , claim: }
  chain: {ack: Tail, replicateEveryUpdates: 1}
  buffer: {maxBytes: 1Gi, whenFull: Block, dtype: float32, durability: Always, url: , template: {}}
  staleness: {policy: InverseStaleness, clipNorm: , reducedRate: {above: , lr: },
    outage: {mode: , scaleRate: true, sendEverySeconds: 5}}
  failover: {heartbeatSeconds: 0.5, timeoutSeconds: 2, assumeDeadSeconds: 30, delaySeconds: 0}
security: {tls: {secretName: }, networkPolicy: Managed}
runPolicy: {backoffLimit: , startDeadlineSeconds: , activeDeadlineSeconds: , ttlSecondsAfterFinished: ,
  cleanPodPolicy: }
cost: {currency: USD, hourly: {server: 0.10, worker: 2.50}}
"""


def indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.strip().splitlines())


def errors_of(source: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        TrainingJob.load(source)
    assert str(caught.value) == "\n".join(str(error) for error in caught.value.errors)
    return [str(error) for error in caught.value.errors]


# --- defaults, round trips ------------------------------------------------------------------------------------------


def test_defaults_are_the_documented_ones() -> None:
    documented = TrainingJob.load(MINIMAL.split("spec:")[0] + "spec:\n" + indented(DEFAULTS))
    assert TrainingJob.load(MINIMAL).spec == documented.spec
    assert documented.warnings == []
    assert documented.spec.recovery.staleness.reduced_rate is None


def test_attributes() -> None:
    loaded = TrainingJob.load(MINIMAL)
    assert (loaded.name, loaded.namespace) == ("mnist", "default")
    spec = loaded.spec
    assert spec.recovery.buffer.max_bytes == 2**30
    assert spec.training.optimizer.betas == (0.9, 0.999)
    assert spec.training.evaluate.enabled
    assert spec.run_policy.clean_pod_policy == "Running"


@pytest.mark.parametrize(
    ("strategy", "replicas"), [("Chain", 3), ("Hybrid", 3), ("Checkpoint", 1), ("Stateless", 1), (None, 3)]
)
@pytest.mark.parametrize(
    "servers", [{}, {"servers": None}, {"servers": {"shards": 2}}, {"servers": {"replicas": None}}]
)
def test_default_replicas_follow_the_strategy(strategy: str | None, replicas: int, servers: dict[str, Any]) -> None:
    spec = {"training": {"task": "a.b", "stopAfter": {"updates": 1}}, "recovery": {"strategy": strategy}, **servers}
    assert read_spec(spec).servers.replicas == replicas


def test_the_claim_that_the_operator_makes() -> None:
    default = TrainingJob.load(MINIMAL).spec.recovery.checkpoint
    assert default.claim is None
    assert default.own_claim == TrainingJob.load(job("recovery.checkpoint.claim: {}")).spec.recovery.checkpoint.claim
    assert default.own_claim.to_json() == {
        "storageClassName": None,
        "size": 10 * 2**30,
        "accessModes": ["ReadWriteOnce"],
    }
    written = "{storageClassName: fast, size: 2Ti, accessModes: [ReadWriteMany, ReadWriteOnce]}"
    claim = TrainingJob.load(job(f"recovery.checkpoint.claim: {written}")).spec.recovery.checkpoint.own_claim
    assert claim is not None
    assert (claim.storage_class_name, claim.size) == ("fast", 2**41)
    assert claim.access_modes == ["ReadWriteMany", "ReadWriteOnce"]
    mine = TrainingJob.load(job("recovery.checkpoint.volume: {emptyDir: {}}")).spec.recovery.checkpoint
    assert mine.own_claim is None


def test_templates_by_their_paths() -> None:
    paths = ["servers.template", "workers.template", "evaluator.template", "recovery.buffer.template"]
    document = {path: {"spec": {"nodeName": path}} for path in paths}
    spec = TrainingJob.load(job(json.dumps(document))).spec
    assert spec.templates == document
    stored = spec.to_json()
    assert all(value_at(stored, path) == document[path] for path in paths)


def test_json_is_canonical_and_round_trips() -> None:
    loaded = TrainingJob.load(job("recovery.buffer: {maxBytes: 512Mi}\nservers.template: {spec: {nodeName: null}}"))
    document = json.loads(json.dumps(loaded.to_json()))
    assert document["spec"]["recovery"]["buffer"]["maxBytes"] == 512 * 2**20
    assert document["spec"]["servers"]["template"] == {"spec": {"nodeName": None}}, "opaque objects keep their nulls"
    assert TrainingJob.load(document) == loaded
    assert TrainingJob.load(document).to_json() == document
    assert read_spec(loaded.spec.to_json()) == loaded.spec


@pytest.mark.parametrize("never", ["0", "0.0", "null"])
def test_a_period_of_zero_is_none(never: str) -> None:
    """`kubectl apply` drops a null, so that the default would take its place: zero can be said."""
    periods = f"{{everySeconds: {never}, everyUpdates: {never.split('.')[0]}}}"
    spec = TrainingJob.load(job(f"training.evaluate: {periods}\nrecovery.checkpoint: {periods}")).spec
    assert not spec.training.evaluated
    assert not spec.recovery.checkpoint.periodic
    again = spec.to_json()
    assert again["training"]["evaluate"]["everySeconds"] is None
    assert read_spec(again) == spec


def test_metadata_and_status_of_a_stored_object_are_kept() -> None:
    stored = TrainingJob.load(MINIMAL).to_json()
    stored["metadata"] |= {"namespace": "team", "uid": "u", "managedFields": [{}], "labels": {"a": "b"}}
    stored["status"] = {"state": "Running"}
    loaded = TrainingJob.load(stored)
    assert (loaded.namespace, loaded.metadata["uid"], loaded.status) == ("team", "u", {"state": "Running"})


counts = st.none() | st.integers(1, 2**31 - 1)
seconds = st.none() | st.floats(0.001, 1e9)
opaque = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=2)
documents = st.fixed_dictionaries(
    {
        "suspend": st.booleans(),
        "training": st.fixed_dictionaries(
            {
                "script": st.text(min_size=1, max_size=20),
                "args": opaque,
                "seed": st.integers(0, 2**53 - 1),
                "consistency": st.sampled_from(["Async", "BoundedStaleness"]),
                "optimizer": st.fixed_dictionaries(
                    {
                        "name": st.sampled_from(["Adam", "AdamW"]),
                        "lr": st.floats(1e-9, 1e6) | st.integers(1, 5),
                        "betas": st.lists(st.floats(0, 0.9999), min_size=2, max_size=2),
                        "schedule": st.none()
                        | st.fixed_dictionaries({"name": st.just("Cosine"), "updates": st.integers(1, 9)}),
                    }
                ),
                "stopAfter": st.fixed_dictionaries(
                    {"updates": st.integers(1, 9), "epochs": counts, "seconds": seconds}
                ),
            }
        ),
        "servers": st.fixed_dictionaries({"shards": st.integers(1, 64), "replicas": st.none() | st.integers(2, 16)}),
        "workers": st.fixed_dictionaries({"graceSeconds": st.floats(0, 1e9), "template": opaque}),
        "recovery": st.fixed_dictionaries(
            {
                "strategy": st.sampled_from(["Chain", "Hybrid"]),
                "checkpoint": st.fixed_dictionaries({"everyUpdates": counts, "volume": st.none() | opaque}),
                "buffer": st.fixed_dictionaries(
                    {"maxBytes": st.sampled_from(["1Mi", "1.5Gi", "4G", 2**20, "1048577"])}
                ),
                "staleness": st.fixed_dictionaries(
                    {
                        "reducedRate": st.none()
                        | st.fixed_dictionaries({"above": st.integers(1, 9), "lr": st.floats(1e-9, 1)})
                    }
                ),
            }
        ),
    }
)


@settings(deadline=None)
@given(documents)
def test_any_spec_round_trips(document: dict[str, Any]) -> None:
    before = copy.deepcopy(document)
    spec = read_spec(document)
    assert document == before, "the input is left as it was"
    text = json.dumps(spec.to_json(), allow_nan=False)
    assert read_spec(json.loads(text)) == spec
    assert json.dumps(read_spec(json.loads(text)).to_json()) == text


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("4Gi", 2**32), ("512Mi", 2**29), ("1024Ki", 2**20), ("1.5Gi", 3 * 2**29), ("2G", 2 * 10**9),
        ("4294967296", 2**32), (1048576, 2**20), ("1Ti", 2**40),
    ],
)  # fmt: skip
def test_quantities(written: Any, expected: int) -> None:
    text = job(f"recovery.buffer: {{maxBytes: {json.dumps(written)}}}")
    assert TrainingJob.load(text).spec.recovery.buffer.max_bytes == expected


def test_yaml_numbers_are_read_as_the_api_server_reads_them() -> None:
    text = MINIMAL + "    optimizer: {lr: 1e-3}\n    args: {rate: 1E5, day: 2024-01-01, version: 1.0, odd: e3}\n"
    text = text.replace("{task: outlast.tasks.fashion_mnist, stopAfter: {updates: 100}}", "").replace(
        "    optimizer", "    task: a.b\n    stopAfter: {updates: 1}\n    optimizer"
    )
    training = TrainingJob.load(text).spec.training
    assert training.optimizer.lr == 0.001
    assert training.args == {"rate": 1e5, "day": "2024-01-01", "version": 1.0, "odd": "e3"}


# --- what is wrong with a spec --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "message"), INVALID, ids=[spec.replace("\n", "; ") for spec, _ in INVALID])
def test_invalid_spec(spec: str, message: str) -> None:
    assert errors_of(job(spec)) == [message]


@pytest.mark.parametrize("spec", VALID, ids=[spec.replace("\n", "; ") for spec in VALID])
def test_valid_spec(spec: str) -> None:
    loaded = TrainingJob.load(job(spec))
    assert TrainingJob.load(loaded.to_json()) == loaded


def test_every_rule_has_an_invalid_job() -> None:
    shown = {message for _, message in INVALID}
    for rule in RULES:
        constant = rule.message.split("{")[0] if not rule.message.startswith("{") else rule.message.split("}")[1]
        assert any(constant.split("{")[0] in message for message in shown), rule.id


def test_all_errors_at_once_and_rules_that_read_no_wrong_field() -> None:
    assert errors_of(
        job(
            "recovery: {strategy: Chain, chain: {ack: Tial}, failover: {timeoutSeconds: 0.6}}\n"
            "servers: {replicas: 1, shards: 0}\nworkers: {replicas: x, maxReplicas: 1}\n"
            "training: {tsk: a.b, stopAfter: {update: 3}}"
        )
    ) == [
        "spec.training.stopAfter.update: unknown field; did you mean updates?",
        "spec.training.tsk: unknown field; did you mean task?",
        "spec.servers.shards: 0 is too small; use 1 or more",
        'spec.workers.replicas: "x" is not a whole number',
        'spec.recovery.chain.ack: "Tial" is not one of Tail, Successor, Head',
        "spec.servers.replicas: 1 is too few for recovery.strategy Chain; use 2 or more, or choose Checkpoint",
        "spec.recovery.failover.timeoutSeconds: 0.6 is less than two heartbeats of 0.5 s, so one late heartbeat "
        "would cause a failover; raise it, or lower heartbeatSeconds",
    ]


def test_error_carries_path_value_and_message() -> None:
    with pytest.raises(SpecError) as caught:
        read_spec({"training": {"task": "a.b", "stopAfter": {"updates": 1}}, "servers": {"shards": 99}})
    (error,) = caught.value.errors
    assert (error.path, error.value, error.message) == ("spec.servers.shards", 99, "99 is too large; use 64 or less")


@pytest.mark.parametrize("raw", [None, 3, "x", [], {}])
def test_spec_that_is_no_spec(raw: Any) -> None:
    with pytest.raises(SpecError, match=r"^spec(\.training)?: "):
        read_spec(raw)


# --- what is wrong around it ----------------------------------------------------------------------------------------

NAME = (
    " must be a DNS label (lower-case letters, digits and '-', beginning with a letter) of at most 45 characters, "
    "because the names of its pods are made from it"
)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Mnist", '"Mnist"' + NAME),
        ("a.b", '"a.b"' + NAME),
        ("1a", '"1a"' + NAME),
        ("a-", '"a-"' + NAME),
        ("a\n", '"a\\n"' + NAME),
        ("", '""' + NAME),
        ("a" * 46, f'"{"a" * 46}"' + NAME),
        (7, "7 is not a string; put it in quotes"),
        (None, "missing; write the job's name"),
    ],
)
def test_invalid_name(name: Any, message: str) -> None:
    document = TrainingJob.load(MINIMAL).to_json()
    document["metadata"]["name"] = name
    assert errors_of(document) == [f"metadata.name: {message}"]


def test_longest_name_leaves_room_for_every_child() -> None:
    document = TrainingJob.load(MINIMAL).to_json()
    document["metadata"]["name"] = "a" * NAME_LENGTH
    assert len(TrainingJob.load(document).name + LONGEST_CHILD_SUFFIX) == 63


def test_envelope_and_spec_are_reported_together() -> None:
    assert errors_of("{apiVersion: v1, metdata: {name: x}, spec: {training: {task: a.b}}}") == [
        'apiVersion: "v1" is not outlast.dev/v1alpha1; this version reads no other',
        "kind: missing; write kind: TrainingJob",
        "metdata: unknown field; did you mean metadata?",
        "metadata: missing; write metadata: {name: my-job}",
        NO_END,
    ]


def test_missing_spec() -> None:
    head = MINIMAL.split("spec:")[0]
    assert errors_of(head) == ["spec: missing; it needs spec.training at least"]
    assert errors_of(head + "spec: {}") == ["spec.training: missing; it has no default"]
    assert errors_of(head + "spec: 3") == ["spec: 3 is not an object"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2\n", "text, line 2, column 2: not valid YAML: expected ',' or ']', but got ':'"),
        ("a: 1\n\tb: 2\n", "text, line 2, column 1: not valid YAML: found character '\\t' that cannot start any token"),
        ('a: 1\nb: 2\na: 3\n', 'text, line 3, column 1: not valid YAML: the key "a" stands twice in one object; '
         "remove one"),
        ("a: !!python/object:os.system {}\n", "text, line 1, column 4: not valid YAML: could not determine a "
         "constructor for the tag 'tag:yaml.org,2002:python/object:os.system'"),
        ("\n", "text: is empty; give exactly one TrainingJob"),
        ("- 1\n", "text: [1] is not an object; give one TrainingJob"),
        ("a: 1\n---\nb: 2\n", "text: holds 0 objects of kind TrainingJob; give exactly one TrainingJob"),
        (MINIMAL + "---" + MINIMAL, "text: holds 2 objects of kind TrainingJob; give exactly one TrainingJob"),
    ],
)  # fmt: skip
def test_yaml_that_cannot_be_used(text: str, message: str) -> None:
    assert errors_of(text) == [message]


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(MINIMAL + "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: code}\n")
    assert TrainingJob.load(file) == TrainingJob.load(str(file)) == TrainingJob.load(MINIMAL)
    absent = tmp_path / "no.yaml"
    assert errors_of(absent) == [f"{absent}: no such file; give the path of a TrainingJob in YAML"]
    assert errors_of(str(tmp_path)) == [f"{tmp_path}: is a directory; give the path of a TrainingJob in YAML"]
    file.write_bytes(b"\xff\xfe")
    assert errors_of(file) == [f"{file}: is not UTF-8 text (byte 0); give the path of a TrainingJob in YAML"]
    file.write_text("a: [1")
    assert errors_of(file)[0].startswith(f"{file}, line 1, column 6: not valid YAML: ")


# --- warnings -------------------------------------------------------------------------------------------------------

WARNINGS: list[tuple[str, str]] = [
    (
        "recovery: {strategy: Chain, buffer: {maxBytes: 4Gi}}",
        "spec.recovery.buffer.maxBytes: has no effect with strategy Chain; only Stateless and Hybrid buffer gradients",
    ),
    (
        "recovery: {strategy: Checkpoint, chain: {ack: Head}}",
        "spec.recovery.chain.ack: has no effect with strategy Checkpoint, which has no chain",
    ),
    (
        "recovery.chain.ack: Head",
        "spec.recovery.chain.ack: Head can lose acknowledged gradients with the head, which Hybrid's buffer otherwise "
        "prevents",
    ),
    (
        "recovery: {strategy: Chain, chain: {replicateEveryUpdates: 100, ack: Head}}\ntraining.consistency: Sync",
        "spec.recovery.chain.ack: Head with consistency Sync: rounds that die with the head are computed again, and a "
        "run with failovers does not end exactly as one without",
    ),
    (
        "training.maxStaleness: 3",
        "spec.training.maxStaleness: has no effect with consistency Async; only BoundedStaleness reads it",
    ),
    (
        "training.consistency: Sync",
        "spec.recovery.strategy: Hybrid behaves as Chain with consistency Sync: gradients are never buffered",
    ),
    (
        "recovery: {strategy: Chain, staleness: {policy: Mean}}\ntraining.consistency: Sync",
        "spec.recovery.staleness.policy: has no effect with consistency Sync, in which nothing is stale",
    ),
    (
        "recovery.checkpoint.everyUpdates: 0",
        "spec.recovery.checkpoint: no checkpoint is written while training: the loss of every copy would start it from "
        "the beginning",
    ),
    (
        "recovery.checkpoint.everyUpdates: null",
        "spec.recovery.checkpoint: no checkpoint is written while training: the loss of every copy would start it from "
        "the beginning",
    ),
    (
        "recovery.buffer.url: 'redis://:secret@host:6379/0'",
        "spec.recovery.buffer.url: holds a password, readable by everyone who may read the TrainingJob",
    ),
    (
        "recovery.buffer: {url: 'redis://host', template: {spec: {}}}",
        "spec.recovery.buffer.template: has no effect with a url: the operator runs no Redis for the job",
    ),
    (
        "recovery.buffer: {url: 'redis://host', durability: None}",
        "spec.recovery.buffer.durability: has no effect with a url; that Redis has its own appendfsync setting",
    ),
    (
        "recovery.buffer.durability: None",
        "spec.recovery.buffer.durability: None: a crash of Redis loses gradients that were acknowledged",
    ),
    (
        "recovery.staleness.reducedRate: {above: 50, lr: 0.5}",
        "spec.recovery.staleness.reducedRate.lr: 0.5 is not below optimizer.lr: it reduces nothing",
    ),
    (
        "recovery.staleness.policy: Sum",
        "spec.recovery.staleness.policy: Sum applies the backlog of an outage as one step as long as itself; consider "
        "reducedRate or clipNorm",
    ),
]


@pytest.mark.parametrize(("spec", "message"), WARNINGS, ids=[spec.replace("\n", "; ") for spec, _ in WARNINGS])
def test_warning_of_a_file_and_of_the_stored_job(spec: str, message: str) -> None:
    loaded = TrainingJob.load(job(spec))
    assert [str(warning) for warning in loaded.warnings] == [message]
    assert TrainingJob.load(loaded.to_json()).warnings == loaded.warnings


# --- the package ----------------------------------------------------------------------------------------------------


def test_import_needs_no_torch() -> None:
    code = (
        "import sys, outlast, outlast.api.spec, outlast.api.crd, outlast.api.schedule;"
        "assert {*outlast.__all__, 'Optimizer', 'TrainingError', 'TrainingFinished'} <= set(dir(outlast));"
        "assert outlast.__version__ == '0.1.0';"
        "assert not {'torch', 'redis', 'numpy'} & set(sys.modules), 'heavy imports'"
    )
    path = str(Path(__file__).parents[3] / "trainer")
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_attribute_of_the_package() -> None:
    import outlast

    with pytest.raises(AttributeError, match="module 'outlast' has no attribute 'Optimiser'"):
        outlast.Optimiser  # noqa: B018
