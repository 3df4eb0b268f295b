"""How a server leaves after SIGTERM: when it serves on, when it saves, when it goes. Pure; time is an argument.

A server leaves when no view has it any more. The last member of a shard serves on until a replacement has taken over
its state. A replacement that does not come in time is not waited for: the last part of the grace period is for the last
checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from outlast.chain.replica import Replica

GRACE_S = 30.0  # between SIGTERM and SIGKILL, where nothing else is said; Kubernetes' default
SAVING_SHARE = 1 / 3  # of the grace period: for the last checkpoint
_KILL_MARGIN = 1 / 12  # of the grace period: a server that is killed does not say that it has left


class LeaveStep(Enum):
    SERVE = auto()  # go on, and ask again
    SAVE = auto()  # stop acting, write the last checkpoint, then leave
    GO = auto()


@dataclass(frozen=True)
class Leave:
    """One departure: SIGTERM came at `t_asked`, SIGKILL comes `grace_s` later."""

    t_asked: float
    grace_s: float

    def step(self, replica: Replica, not_replaced: bool, now: float) -> LeaveStep:
        """What to do now. `not_replaced`: the operator has said that no replacement comes."""
        view = replica.view
        if view is None or replica.role == "stopped":
            return LeaveStep.GO
        if len(view.members) > 1 or view.is_joining(replica.boot):
            # The operator may be recording, right now, a view in which a joining server is the only member.
            serves = self.left_s(now) > 0 and not (replica.finished and not_replaced)
            return LeaveStep.SERVE if serves else LeaveStep.GO
        in_time = not not_replaced and now < self.t_asked + self.grace_s * (1 - SAVING_SHARE)
        if not replica.initialised:
            return LeaveStep.SERVE if in_time and replica.restoring is not None else LeaveStep.GO
        return LeaveStep.SERVE if in_time else LeaveStep.SAVE

    def left_s(self, now: float) -> float:
        """Seconds until the server must have left."""
        return max(0.0, self.t_asked + self.grace_s * (1 - _KILL_MARGIN) - now)
