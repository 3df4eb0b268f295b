"""What goes wrong: kinds of faults, when they happen, and how the world heals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from world import World

HORIZON_S = (0.2, 2.6)
QUIET_S = 3.0  # how long after a fault its outage may last, at least

LOST = ("lose-head", "lose-server")
EVERY_SERVER = ("kill-head", "kill-tail", "kill-server", "pause-head", "pause-server", "term-head", "term-server")
EVERY_LINK = ("cut-chain", "cut-worker", "cut-operator", "drop", "slow")
OTHERS = ("kill-worker", "pause-worker", "kill-operator", "pause-operator")


@dataclass(frozen=True)
class Fault:
    t: float
    kind: str
    duration_s: float


class Faults:
    """Draws faults for a world and makes them happen; each ends after its duration."""

    def __init__(self, world: World) -> None:
        self.world = world
        rng, scenario = world.rng, world.scenario
        self.disturbed: dict[str, float] = {}  # name -> when it was last paused, or cut off from somebody
        self.healed_at: float | None = 0.0
        self.drawn: list[Fault] = []
        if not scenario.faults:
            return
        t = rng.uniform(*HORIZON_S)
        for _ in range(rng.randint(*scenario.count)):
            kind = rng.choice(scenario.faults)
            self.drawn.append(Fault(t, kind, self._duration_s(kind)))
            t = t + rng.uniform(0.0, 0.3) if rng.random() < 0.5 else rng.uniform(*HORIZON_S)
        for fault in self.drawn:
            world.clock.at(fault.t, lambda f=fault: self._begin(f))  # type: ignore[misc]
        self.healed_at = max(f.t + f.duration_s for f in self.drawn)

    def _duration_s(self, kind: str) -> float:
        rng = self.world.rng
        if kind.startswith("term"):
            return 0.1
        return rng.choice([rng.uniform(0.05, 0.5), rng.uniform(0.5, 3.0), rng.uniform(1.0, 8.0)])

    def near(self, t: float) -> bool:
        """Whether an outage may still go on."""
        return any(f.t <= t <= f.t + f.duration_s + QUIET_S + 2.0 for f in self.drawn)

    # --- choosing ---

    def _name(self, which: str) -> str | None:
        """A process to be hit: head, tail, server, worker, operator, redis."""
        world = self.world
        shard = world.rng.randrange(world.scenario.shards)
        view = world.checkers.recorded_view(shard)
        if which in ("head", "tail"):
            member = None if view is None else view.head if which == "head" else view.tail
            return None if member is None else member.name
        if which in ("server", "worker"):
            names = sorted(n for n in world.table.running if n.startswith(which))
            return world.rng.choice(names) if names else None
        return which

    def _pair(self, kind: str) -> tuple[str, str] | None:
        world = self.world
        shard = world.rng.randrange(world.scenario.shards)
        view = world.checkers.recorded_view(shard)
        if view is None:
            return None
        names = [m.name for m in (*view.members, *view.joining)]
        worker = f"worker-{world.rng.randrange(world.scenario.workers)}"
        if kind == "chain":
            if len(names) < 2:
                return None
            i = world.rng.randrange(len(names) - 1)
            return names[i], names[i + 1]
        if kind == "operator":
            return "operator", world.rng.choice(names)
        if kind == "redis":
            return "redis", world.rng.choice([names[0], worker])
        return worker, names[0]

    # --- doing ---

    def _begin(self, fault: Fault) -> None:
        world = self.world
        if world.done is not None:
            return
        what, _, which = fault.kind.partition("-")
        hit = {
            "lose": self._lose, "wipe": self._wipe,
            "kill": self._kill, "pause": self._pause, "term": self._term, "cut": self._cut, "drop": self._drop,
            "slow": self._slow,
        }[what]  # fmt: skip
        undo = hit(which, fault)
        if undo is not None:
            world.clock.at(world.now + fault.duration_s, undo)

    def _kill(self, which: str, fault: Fault) -> Callable[[], None] | None:
        world = self.world
        if which == "servers":
            shard = world.rng.randrange(world.scenario.shards)
            for server in world.server_names(shard):
                world.trace("fault", "kill", server)
                world.kill(server)
            return None
        name = self._name(which)
        if name is None or name not in world.table.running:
            return None
        world.trace("fault", "kill", name)
        world.kill(name)
        if name == "operator":
            return lambda: None if world.operator is not None else world.start_operator()
        if world.rng.random() < 0.3:
            world.held[name] = world.now + fault.duration_s
        return None

    def _wipe(self, which: str, fault: Fault) -> None:
        """A server is lost with its directory."""
        name = self._name(which)
        if name is not None and name in self.world.table.running:
            self.world.trace("fault", "kill and wipe", name)
            self.world.kill(name)
            self.world.checkpoints.lose(name)

    def _lose(self, which: str, fault: Fault) -> Callable[[], None] | None:
        world, name = self.world, self._name(which)
        back = None if name is None else world.lose(name)
        if back is None or name is None:
            return None
        world.trace("fault", "lose the node of", name, f"for {fault.duration_s:.2f} s")
        self.disturbed[name] = world.now

        def return_() -> None:
            self.disturbed[name] = world.now
            world.trace("fault", "the node is back of", name)
            back()

        return return_

    def _pause(self, which: str, fault: Fault) -> Callable[[], None] | None:
        world = self.world
        name = self._name(which)
        process = None if name is None else world.table.running.get(name)
        if process is None or name is None or process.paused:
            return None
        world.trace("fault", "pause", name, f"for {fault.duration_s:.2f} s")
        process.pause()
        self.disturbed[name] = world.now

        def resume() -> None:
            self.disturbed[name] = world.now
            world.trace("fault", "continue", name)
            process.resume()

        return resume

    def _term(self, which: str, fault: Fault) -> None:
        name = self._name(which)
        if name is not None:
            self.world.trace("fault", "terminate", name)
            self.world.terminate(name)
            if self.world.scenario.late and self.world.rng.random() < self.world.scenario.late:
                shard = next(s for s in range(self.world.scenario.shards) if name in self.world.server_names(s))
                for other in self.world.server_names(shard):
                    self.world.held[other] = self.world.now + self.world.scenario.grace_s

    def _cut(self, which: str, fault: Fault) -> Callable[[], None] | None:
        pair = self._pair(which)
        if pair is None:
            return None
        world = self.world
        world.trace("fault", "cut", *pair, f"for {fault.duration_s:.2f} s")
        world.network.cut(*pair)
        for name in pair:
            self.disturbed[name] = world.now

        def heal() -> None:
            world.trace("fault", "heal", *pair)
            for name in pair:
                self.disturbed[name] = world.now
            world.network.heal(*pair)

        return heal

    def _drop(self, which: str, fault: Fault) -> None:
        pair = self._pair(self.world.rng.choice(["chain", "worker", "operator"]))
        if pair is not None:
            self.world.trace("fault", "drop", *pair)
            self.world.network.drop(*pair)

    def _slow(self, which: str, fault: Fault) -> Callable[[], None]:
        network = self.world.network
        network.slow = self.world.rng.choice([0.02, 0.1, 0.4])
        self.world.trace("fault", "slow", network.slow)

        def heal() -> None:
            network.slow = 0.0

        return heal
