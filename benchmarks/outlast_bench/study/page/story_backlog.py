"""Where each policy for a backlog breaks, as a table and a sentence: how long an outage may be. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from outlast_bench.study.analysis.backlog import IDLE, LABELS, Cell, cells
from outlast_bench.study.backlog.records import BacklogRecord
from outlast_bench.study.page.cells import Grid, Line
from outlast_bench.study.verdicts.backlog import DEFAULT_POLICY, KEPT_ENOUGH, WORKERS
from outlast_operator.reporting import words


def limits(records: Sequence[BacklogRecord]) -> Grid | None:
    """Policy by workers: the longest outage at which it keeps enough, and the first at which it ruined a training."""
    found = [c for c in cells(records) if c.policy != IDLE]
    if not found:
        return None
    workers = sorted({c.workers for c in found})
    columns = ["policy"]
    for w in workers:
        columns += [f"{words.count(w, 'worker')}: keeps {KEPT_ENOUGH:g} up to", "ruined first at"]
    lines = []
    for policy in dict.fromkeys(c.policy for c in found):
        mine = [[c for c in found if c.policy == policy and c.workers == w] for w in workers]
        told = [pair for some in mine for pair in ((longest_kept(some), ""), (first_ruined(some), ""))]
        lines.append(Line(LABELS.get(policy, policy), tuple(told)))
    return Grid("Where each policy breaks (outage in gradients)", tuple(columns), tuple(lines))


def longest_kept(mine: Sequence[Cell]) -> str:
    """Of one policy and number of workers: `375 (n = 5)`, and which shorter ones are not kept; by the means."""
    known = {c.outage: c for c in mine if c.kept is not None}
    enough = [n for n, c in known.items() if c.kept is not None and c.kept.mean >= KEPT_ENOUGH]
    if not known:
        return "not measured"
    if not enough:
        return "none"
    longest = max(enough)
    short = [f"{n:,}" for n in sorted(known) if n < longest and n not in enough]
    gaps = f"; not at {words.listing(short)}" if short else ""
    return f"{longest:,} (n = {known[longest].n}{gaps})"


def first_ruined(mine: Sequence[Cell]) -> str:
    """`1,000 (3 of 5 seeds)`, or up to where none was."""
    if not mine:
        return "not measured"
    ruined = min((c for c in mine if c.diverged), key=lambda c: c.outage, default=None)
    if ruined is None:
        return f"none up to {max(c.outage for c in mine):,}"
    return f"{ruined.outage:,} ({ruined.diverged} of {words.count(ruined.n, 'seed')})"


def in_words(records: Sequence[BacklogRecord]) -> str:
    """How far the default goes with the paper's two workers, and who ruins a training first; empty without records."""
    mine = [c for c in cells(records) if c.workers == WORKERS and c.policy != IDLE]
    default = [c for c in mine if c.policy == DEFAULT_POLICY]
    if not default:
        return ""
    longest, ruined_at = longest_kept(default), first_ruined(default)
    far = longest.replace(" (", " gradients (", 1)
    reach = f"up to outages of {far}" if longest[0].isdigit() else f"at no outage ({longest})"
    breaks = f"ruins a training first at {ruined_at}" if ruined_at[0].isdigit() else f"ruins {ruined_at}"
    text = f"With {WORKERS} workers {LABELS[DEFAULT_POLICY]} keeps {KEPT_ENOUGH:g} or more {reach}, and {breaks}."
    ruined = [c for c in mine if c.diverged]
    if not ruined:
        return f"{text} No other policy ruins one."
    first = min(c.outage for c in ruined)
    names = words.listing([f'"{c.label}"' for c in ruined if c.outage == first])
    return f"{text} The first to ruin one, at {first:,}: {names}."
