"""A replica's half of the chain below it: what the successor and joining replicas hold, and what is stable.

Rules:
1. `stable_seq`: the tail acknowledged everything to here. The tail's own word for it is what it has applied, but never
   more than each *sealed* joining replica has.
2. A joining replica that is nearly there is *sealed*: from then on the tail vouches for nothing that it lacks. When it
   holds all that was vouched for it is caught up, and stays sealed, also while its link is down, until a view takes it
   in or drops it: the operator may be recording, right now, a view in which it is the tail.
3. Entries go to a peer in order, after its own last seq decided where to begin: from the log, or with the whole state
   when the log no longer reaches back.
4. Every view begins with all links down: a peer's position counts only when said under the present epoch.
5. With replicateEveryUpdates > 1 no entry is forwarded; every so many the whole state is, and stability (which lags)
   holds up nobody.
"""

from __future__ import annotations

from outlast.api.view import View
from outlast.chain.events import Acks, Connected, Entry, Ready, SendEntry, SendState
from outlast.chain.log import ChainLog, Link
from outlast.chain.settings import ReplicaSettings
from outlast.chain.state import ReplicatedState

SEAL_LAG = 8  # entries a joining replica may be behind when the tail begins to wait for it


class Downstream:
    """Log, links, and the watermark of stability."""

    def __init__(self, boot: str, state: ReplicatedState, settings: ReplicaSettings) -> None:
        self._boot = boot
        self._state = state
        self._settings = settings
        self.log = ChainLog()
        self.links: dict[str, Link] = {}  # by boot id: the successor, or a tail's joining replicas
        self.sealed: dict[str, int] = {}  # joining replica -> it holds everything to here
        self.stable_seq = 0
        self.is_tail = False
        self._successor: Link | None = None
        self._batched = settings.replicate_every > 1
        self._batch_seq = 0  # the whole state was last sent at
        self._members_restore = False  # empty members of this view load a checkpoint themselves
        self._suspect = False  # our state is to be replaced: send nothing of it
        self._mistrusted = False  # it was, in this view: seqs of peers below may stand for other entries than ours

    def install(self, view: View, *, suspect: bool) -> None:
        """Take the place that the view gives us (a member's; nobody else has a downstream)."""
        self._suspect = self._mistrusted = suspect
        successor = view.successor(self._boot)
        member = view.position(self._boot) is not None
        self.is_tail = member and successor is None
        self._successor = None if successor is None else Link(successor.boot)
        self.links = {} if self._successor is None else {self._successor.peer: self._successor}
        if self.is_tail:
            self.links = {m.boot: Link(m.boot) for m in view.joining}
        told = self.caught_up if self.is_tail and not suspect else ()
        self.sealed = {boot: seq for boot, seq in self.sealed.items() if boot in told and boot in self.links}
        self._members_restore = view.restore is not None

    def forget(self) -> None:
        """The state was dropped: nothing is held and nothing vouched for."""
        self._suspect = False
        self.log.reset(0)
        self.sealed.clear()
        self.stable_seq = self._batch_seq = 0

    @property
    def caught_up(self) -> list[str]:
        """Joining replicas that a view may take in: they hold all that was ever vouched for."""
        vouched = self._batch_seq if self._batched else self.stable_seq
        return sorted(boot for boot, holds in self.sealed.items() if holds >= vouched)

    def adopted(self, ready: Ready) -> None:
        """The state was replaced whole: peers below are brought to it."""
        last_seq = self._state.last_seq
        self._suspect = False
        self.log.reset(last_seq)
        self.stable_seq = min(self.stable_seq, last_seq)
        self.sealed = {boot: min(seq, last_seq) for boot, seq in self.sealed.items()}
        for link in self.links.values():
            if link.connected and not link.awaited:
                self._sync(link, link.received, ready)

    # --- links --------------------------------------------------------------------------------------------------------

    def connected(self, event: Connected, ready: Ready) -> None:
        """The link is up: send what the peer lacks."""
        link = self.links.get(event.peer)
        if link is None:
            return
        link.connected, link.synced = True, False
        holds = link.received = max(event.last_seq, 0)
        link.stable = event.stable or 0
        link.awaited = event.last_seq < 0 and self._members_restore and not self._is_joiner(link)
        if link.awaited:
            return
        self._sync(link, holds, ready)
        if self._is_joiner(link):
            return
        if event.stable is not None:
            self.learn_stable(event.stable)
        elif holds == self._state.last_seq and len(self.log):
            # Its word on stability may have been lost with a link: an entry it holds makes it repeat itself.
            ready.send.append(SendEntry(link.peer, self.log.since(holds)[0], self.stable_seq))

    def disconnected(self, peer: str) -> None:
        """Nothing reaches the peer until it is connected again. What it acknowledged stays true."""
        link = self.links.get(peer)
        if link is not None:
            link.connected = link.synced = False
            if peer in self.sealed and peer not in self.caught_up:
                del self.sealed[peer]  # nobody was told that it may be taken in

    def acked(self, event: Acks, ready: Ready) -> None:
        """A peer below applied (`received`) or vouches for (`stable`) more."""
        link = self.links.get(event.sender)
        if link is None or not link.connected:
            return
        if not link.synced:
            link.awaited, link.stable = False, event.stable
            self._sync(link, event.received, ready)
            return
        link.received = max(link.received, min(event.received, self._state.last_seq))
        if self._is_joiner(link):
            self._seal(link)
        else:
            self.learn_stable(event.stable)

    def learn_stable(self, stable: int) -> None:
        """A neighbour's word on stability, of which we believe what we hold ourselves."""
        if not self.is_tail:
            self.stable_seq = max(self.stable_seq, min(stable, self._state.last_seq))

    def _is_joiner(self, link: Link) -> bool:
        return link is not self._successor

    def _sync(self, link: Link, holds: int, ready: Ready) -> None:
        """Bring a peer that holds everything to `holds` to where we are."""
        last_seq = self._state.last_seq
        if self._suspect or (last_seq == 0 and holds > 0):
            link.received = holds  # our own state is still to come; see `adopted`
            return
        link.synced = True
        link.received = 0 if self._mistrusted else min(holds, last_seq)
        if holds != last_seq or (holds and self._mistrusted):  # the predecessor is right
            if holds < last_seq and not self._batched and not self._mistrusted and self.log.covers(holds + 1):
                ready.send += [SendEntry(link.peer, e, self.stable_seq) for e in self.log.since(holds + 1)]
            else:
                ready.send.append(SendState(link.peer))
                self._batch_seq = last_seq
        elif not self._is_joiner(link):
            self.learn_stable(link.stable)  # said before our own state had come: it will not say it again
        if self._is_joiner(link):
            self._seal(link)

    def _seal(self, link: Link) -> None:
        enough = self._batch_seq if self._batched else self._state.last_seq - SEAL_LAG
        started = link.received > 0 or self._state.last_seq == 0  # an empty one is far away, however few the entries
        if (started and link.received >= enough) or link.peer in self.sealed:
            self.sealed[link.peer] = link.received

    # --- entries ------------------------------------------------------------------------------------------------------

    def replicate(self, entry: Entry, ready: Ready) -> None:
        """Send on an entry that was just applied, and remember it until it is stable."""
        if self._batched:
            self.log.reset(entry.seq)
            if entry.seq == 1 or entry.seq - self._batch_seq >= self._settings.replicate_every:
                self.flush(ready)
            return
        self.log.append(entry)
        for link in self.links.values():
            if link.synced:
                ready.send.append(SendEntry(link.peer, entry, self.stable_seq))
            elif link.connected and not link.awaited:
                self._sync(link, link.received, ready)  # it held state while we held none

    def flush(self, ready: Ready) -> None:
        """Batched: send the whole state, if it changed since it was last sent."""
        if self._batched and self._batch_seq < self._state.last_seq:
            self._batch_seq = self._state.last_seq
            ready.send += [SendState(link.peer) for link in self.links.values() if link.synced]

    def advance(self, ready: Ready) -> None:
        """Move the watermark as far as it is true, and let go of the log below it."""
        if self.is_tail and not self._suspect:
            bounds = () if self._batched else self.sealed.values()
            reach = min((self._state.last_seq, *bounds))
            self.stable_seq = max(self.stable_seq, reach)
        assert self.stable_seq <= self._state.last_seq, f"stable {self.stable_seq} beyond {self._state.last_seq}"
        self.log.drop_through(self.stable_seq)

    def safe_seq(self) -> int:
        """The head: everything to here is as safe as `ack` promises."""
        ack, link, last_seq = self._settings.ack, self._successor, self._state.last_seq
        if ack == "Tail" or link is None:
            return self.stable_seq
        if self._batched:  # at once, but a batch that the successor has not confirmed holds up what follows
            return last_seq if ack == "Head" or link.received >= self._batch_seq else self._batch_seq - 1
        bound = min(last_seq, self.stable_seq + self._settings.window)
        return bound if ack == "Head" else min(link.received, bound)
