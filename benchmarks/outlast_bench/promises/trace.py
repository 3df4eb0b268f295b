"""`outlast bench trace`: after kills, Sync ends with the very parameters of the run without kills.

Checkpoint, Chain and Hybrid, each with one shard and with two, train the FashionMNIST CNN (dropout and momentum
included) for a fixed number of updates: once undisturbed, then with the head killed, with two kills, and with a worker
killed. All digests (sha256 of the parameters) of a line must be the same.

Stateless knows no Sync: the order in which gradients come is each run's own. There the log decides, and a run whose
server was killed is compared with a witness that applied the same log without a break (witness.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from outlast.api.strategy import strategies
from outlast_bench.promises.common import (
    FASHION_MNIST,
    BenchError,
    Outcome,
    Progress,
    Settings,
    discard_all,
    make_job,
    run_job,
    table,
)
from outlast_bench.promises.witness import Witnessed, bear_witness

NAME = "trace"
HELP = "the outage leaves no trace: runs with kills against runs without, bit by bit"
MUST = (
    "Sync: final parameters after a kill of the head, two kills, and a worker's kill are bit-identical to those of the "
    "undisturbed run (Checkpoint, Chain, Hybrid; 1 and 2 shards); Stateless: a rebuilt server holds what one holds "
    "that applied the same log without a break"
)
RUNS = 3  # kinds of kills; --runs 1: the head alone

EXACT = strategies(lambda row: row.barrier)
SHARDS = (1, 2)
DEADLINE_S = 180.0


@dataclass(frozen=True)
class Size:
    """How long the runs are, in updates; kills come at shares of it."""

    updates: int
    checkpoint_every: int
    batch: int

    def kills(self, kind: str) -> list[str]:
        third, two_thirds = self.updates // 3, self.updates * 2 // 3
        return {
            "head killed": [f"head@update={third}"],
            "two kills": [f"head@update={self.updates // 4}", f"head@update={two_thirds}"],
            "worker killed": [f"worker-1@update={third}"],
        }[kind]


KINDS = ("head killed", "two kills", "worker killed")


def measure(settings: Settings) -> Outcome:
    size = Size(60, 10, 8) if settings.short else Size(150, 20, 32)
    kinds = KINDS[: settings.count(RUNS)]
    shards = SHARDS[:1] if settings.short else SHARDS
    exact = EXACT[:2] if settings.short else EXACT
    log_kills = [1] if settings.short else list(range(1 + min(2, len(kinds))))
    total = len(exact) * len(shards) * (1 + len(kinds)) + len(log_kills)
    figures: dict[str, Any] = {"updates": size.updates, "sync": {}, "stateless": {}}
    problems: list[str] = []
    shown = table("Sync: digests of the final parameters", "strategy, shards", "run", "version", "digest", "identical")
    with Progress(settings.console, total, "trace") as progress:
        for strategy in exact:
            for count in shards:
                name = f"{strategy}, {count} shard{'s' if count > 1 else ''}"
                figures["sync"][name] = _sync(settings, progress, size, strategy, count, kinds, shown, problems)
        figures["stateless"] = _stateless(settings, progress, log_kills, problems)
    settings.console.print(shown)
    _show_stateless(settings, figures["stateless"])
    return Outcome(figures, problems)


def _sync(
    settings: Settings,
    progress: Progress,
    size: Size,
    strategy: str,
    shards: int,
    kinds: tuple[str, ...],
    shown: Any,
    problems: list[str],
) -> dict[str, str]:
    """Digests by kind of run; the undisturbed one first."""
    found: dict[str, str] = {}
    for kind in ("undisturbed", *kinds):
        label = f"{strategy}, {shards} shard{'s' if shards > 1 else ''}, {kind}"
        progress.step(label)
        job = make_job(
            "bench-trace",
            strategy,
            consistency="Sync",
            task=FASHION_MNIST,
            args={"batchSize": size.batch},
            seed=settings.seed,
            updates=size.updates,
            shards=shards,
            optimizer={"lr": 0.02, "momentum": 0.9},
            recovery={"checkpoint": {"everyUpdates": size.checkpoint_every}},
        )
        kills = [] if kind == "undisturbed" else size.kills(kind)
        try:
            ran = run_job(job, kills, progress, label=label, deadline_s=DEADLINE_S)
        except BenchError as error:
            problems.append(str(error))
            found[kind] = ""
            continue
        found[kind] = ran.digest
        identical = bool(ran.digest) and ran.digest == found["undisturbed"]
        version = ran.report["final"]["version"]
        shown.add_row(f"{strategy}, {shards}", kind, str(version), ran.digest[:32], "yes" if identical else "NO")
        if identical and version == size.updates:
            ran.discard()
        else:
            problems.append(f"{ran.keep()}: version {version} with {ran.digest}, undisturbed {found['undisturbed']}")
    return found


# --- Stateless ---


def _stateless(settings: Settings, progress: Progress, cases: list[int], problems: list[str]) -> dict[str, Any]:
    updates = 260 if settings.short else 500  # more than two snapshots (every 100 updates)
    found: dict[str, Any] = {}
    for kills in cases:
        label = f"Stateless, {kills} kill{'s' if kills != 1 else ''}"
        progress.step(label)
        job = make_job(
            "bench-trace",
            "Stateless",
            args={"parameters": 50_000, "computeMs": 4.0},
            seed=settings.seed,
            updates=updates,
            optimizer={"momentum": 0.9, "lr": 0.002},
            # Redis itself lives through the run, so EverySecond loses nothing.
            recovery={"buffer": {"durability": "EverySecond", "maxBytes": "1Gi"}},
        )
        # Between two snapshots, so that a rebuild has both a snapshot to load and records to replay.
        at = [updates * 3 // 10, updates * 7 // 10][:kills]
        try:
            ran = run_job(job, [f"head@update={n}" for n in at], progress, label=label, deadline_s=DEADLINE_S)
            last = max(view.epoch for view in ran.result.run.status.views.values())
            version = int(ran.report["final"]["version"])
            witness = bear_witness(ran.directory, ran.result.directory.config(), last + 1, version)
        except BenchError as error:
            problems.append(str(error))
            continue
        found[label] = _compare(ran.digest, version, witness)
        if found[label]["identical"]:
            discard_all([ran])
        else:
            problems.append(f"{ran.keep()}: version {version} with {ran.digest}, the witness has {witness}")
    return found


def _compare(digest: str, version: int, witness: Witnessed) -> dict[str, Any]:
    return {
        "version": version,
        "digest": digest,
        "witness": witness.digest,
        "identical": bool(digest) and (digest, version) == (witness.digest, witness.version),
        "gradients_in_log": witness.gradients,
        "records": witness.records,
        "snapshots": witness.snapshots,
    }


def _show_stateless(settings: Settings, found: dict[str, Any]) -> None:
    shown = table(
        "Stateless: the run's server against a witness that applied the same log without a break",
        "run", "version", "log: gradients, updates, snapshots", "digest", "the witness's", "identical",
    )  # fmt: skip
    for label, case in found.items():
        log = f"{case['gradients_in_log']}, {case['records']}, {case['snapshots']}"
        shown.add_row(
            label, str(case["version"]), log, case["digest"][:24], case["witness"][:24],
            "yes" if case["identical"] else "NO",
        )  # fmt: skip
    settings.console.print(shown)
