"""What is simulated: strategies, consistencies, shards, workers and the faults that meet them."""

from __future__ import annotations

from dataclasses import replace

from faults import EVERY_LINK, EVERY_SERVER, LOST, OTHERS
from world import Scenario, World

KILLS = ("kill-head", "kill-tail", "kill-server", "kill-worker", "kill-operator")
COMMON = EVERY_SERVER + EVERY_LINK + OTHERS + LOST
REDIS = (*COMMON, "kill-redis", "pause-redis", "cut-redis")
TOTAL = (*COMMON, "kill-servers")
ROLLBACKS = ("kill-servers", "slow", "pause-server", "cut-operator", "kill-worker")
PLANNED = ("term-server", "term-head", "term-tail")

WIPES = ("wipe-tail", "wipe-server", "kill-servers", "slow", "pause-server", "cut-operator")
LOST_NODES = ("lose-head", "lose-server", "slow", "kill-servers", "cut-chain")

SCENARIOS = (
    Scenario("chain-async", faults=COMMON),
    Scenario("chain-kills", faults=KILLS, workers=1),
    Scenario("chain-async-2-shards", shards=2, faults=TOTAL),
    Scenario("chain-sync", consistency="Sync", faults=COMMON),
    Scenario("chain-sync-2-shards", consistency="Sync", shards=2, workers=3, updates=80, faults=TOTAL),
    Scenario("chain-ssp", consistency="BoundedStaleness", workers=3, faults=COMMON),
    Scenario("chain-total-loss", faults=("kill-servers", "kill-head", "pause-server", "kill-operator", "cut-chain")),
    Scenario("chain-rollbacks", shards=2, checkpoint_every=3, faults=ROLLBACKS, count=(3, 8)),
    Scenario(
        "chain-sync-rollbacks",
        consistency="Sync",
        shards=2,
        checkpoint_every=3,
        updates=80,
        faults=ROLLBACKS,
        count=(3, 8),
    ),
    Scenario("hybrid-rollbacks", strategy="Hybrid", shards=2, checkpoint_every=3, faults=ROLLBACKS, count=(3, 8)),
    Scenario("chain-own-directories", checkpoint_every=5, own_directories=True, faults=WIPES, count=(2, 6)),
    Scenario(
        "chain-own-directories-2-shards", shards=2, checkpoint_every=5, own_directories=True, faults=WIPES, count=(2, 6)
    ),
    Scenario(
        "chain-sync-own-directories",
        consistency="Sync",
        shards=2,
        checkpoint_every=3,
        updates=80,
        own_directories=True,
        faults=WIPES,
        count=(3, 8),
    ),
    Scenario("chain-lost-nodes", shards=2, checkpoint_every=5, updates=250, faults=LOST_NODES, count=(2, 6)),
    Scenario(
        "chain-sync-lost-nodes", consistency="Sync", shards=2, checkpoint_every=5, faults=LOST_NODES, count=(2, 6)
    ),
    Scenario("hybrid-lost-nodes", strategy="Hybrid", shards=2, updates=250, faults=LOST_NODES, count=(2, 6)),
    Scenario("checkpoint-lost-nodes", strategy="Checkpoint", shards=2, updates=250, faults=LOST_NODES, count=(2, 6)),
    Scenario("chain-successor", ack="Successor", faults=TOTAL),
    Scenario("chain-head", ack="Head", faults=TOTAL),
    Scenario("chain-batches", ack="Head", replicate_every=5, faults=TOTAL),
    Scenario("checkpoint-async", strategy="Checkpoint", faults=COMMON),
    Scenario(
        "checkpoint-sync-2-shards", strategy="Checkpoint", consistency="Sync", shards=2, updates=80, faults=COMMON
    ),
    Scenario("checkpoint-ssp", strategy="Checkpoint", consistency="BoundedStaleness", faults=COMMON),
    Scenario("hybrid-async", strategy="Hybrid", faults=REDIS),
    Scenario("hybrid-async-2-shards", strategy="Hybrid", shards=2, faults=(*REDIS, "kill-servers")),
    Scenario("hybrid-local-steps", strategy="Hybrid", outage="LocalSteps", faults=REDIS),
    Scenario("hybrid-ssp", strategy="Hybrid", consistency="BoundedStaleness", workers=3, faults=REDIS),
    Scenario("hybrid-sync", strategy="Hybrid", consistency="Sync", faults=REDIS),
    Scenario("hybrid-forgetful-redis", strategy="Hybrid", durable="Some", faults=(*TOTAL, "kill-redis")),
    Scenario("hybrid-small-buffer", strategy="Hybrid", max_bytes=8 << 10, faults=REDIS),
    Scenario("stateless-async", strategy="Stateless", faults=REDIS),
    Scenario("stateless-async-2-shards", strategy="Stateless", shards=2, faults=REDIS),
    Scenario("stateless-ssp", strategy="Stateless", consistency="BoundedStaleness", workers=3, faults=REDIS),
    Scenario("stateless-local-steps", strategy="Stateless", outage="LocalSteps", faults=REDIS),
    Scenario("stateless-forgetful-redis", strategy="Stateless", durable="Some", faults=(*REDIS, "kill-redis")),
    Scenario("stateless-memoryless-redis", strategy="Stateless", durable="None", faults=(*REDIS, "kill-redis")),
    Scenario("stateless-small-buffer", strategy="Stateless", max_bytes=8 << 10, faults=REDIS),
    Scenario("chain-planned", faults=PLANNED, planned_only=True),
    Scenario("checkpoint-planned", strategy="Checkpoint", faults=PLANNED, planned_only=True),
    Scenario("hybrid-planned", strategy="Hybrid", faults=PLANNED, planned_only=True),
    Scenario("stateless-planned", strategy="Stateless", faults=PLANNED, planned_only=True),
    Scenario("chain-planned-2-shards", shards=2, faults=PLANNED, planned_only=True),
    Scenario("chain-sync-planned-2-shards", consistency="Sync", shards=2, faults=PLANNED, planned_only=True),
    Scenario("checkpoint-planned-2-shards", strategy="Checkpoint", shards=2, faults=PLANNED, planned_only=True),
    Scenario(
        "checkpoint-sync-planned-2-shards",
        strategy="Checkpoint",
        consistency="Sync",
        shards=2,
        faults=PLANNED,
        planned_only=True,
    ),
    Scenario(
        "checkpoint-late-2-shards",
        strategy="Checkpoint",
        shards=2,
        updates=250,
        faults=PLANNED,
        planned_only=True,
        grace_s=0.9,
        late=0.7,
    ),
    Scenario(
        "checkpoint-sync-late-2-shards",
        strategy="Checkpoint",
        consistency="Sync",
        shards=2,
        faults=PLANNED,
        planned_only=True,
        grace_s=0.9,
        late=0.7,
    ),
    Scenario(
        "checkpoint-late-own-directories",
        strategy="Checkpoint",
        shards=2,
        checkpoint_every=5,
        updates=250,
        own_directories=True,
        faults=PLANNED,
        planned_only=True,
        grace_s=0.9,
        late=0.7,
    ),
    Scenario("stateless-late", strategy="Stateless", faults=PLANNED, planned_only=True, grace_s=0.9, late=0.7),
    Scenario("hybrid-planned-2-shards", strategy="Hybrid", shards=2, faults=PLANNED, planned_only=True),
    Scenario("stateless-planned-2-shards", strategy="Stateless", shards=2, faults=PLANNED, planned_only=True),
)

_undisturbed: dict[tuple[int, int, int], list[int]] = {}


def undisturbed(scenario: Scenario) -> list[int]:
    """Sync: the digests that every run of this job must end with, whatever happens to it."""
    key = (scenario.shards, scenario.workers, scenario.goal)
    if key not in _undisturbed:
        _undisturbed[key] = World(replace(scenario, faults=()), 0).run().checkers.digests()
    return _undisturbed[key]


def simulate(scenario: Scenario, seed: int) -> World:
    """One run, judged. An `AssertionError` names scenario and seed, and shows the last events."""
    world = World(scenario, seed)
    try:
        world.run()
        if scenario.consistency == "Sync":
            digests, expected = world.checkers.digests(), undisturbed(scenario)
            assert digests == expected, f"the parameters {digests} are not those of a run without faults: {expected}"
    except Exception as error:
        what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        message = f"scenario {scenario.name}, seed {seed}, at {world.now:.4f} s: {what}\n{world.tell()}"
        raise AssertionError(message) from error
    return world
