"""Other models: pairs of experiments that differ in normalisation alone."""

from __future__ import annotations

from dataclasses import dataclass

from outlast_bench.study.analysis.summary import Group, Summary

PREFIX, PLAIN = "models-", "-plain"


@dataclass(frozen=True)
class Pair:
    """Two experiments that differ in normalisation alone."""

    name: str
    normalised: str
    plain: str


def pairs(summary: Summary) -> list[Pair]:
    """Those of which both have runs that succeeded."""
    known = [e for e in summary.experiments if e.startswith(PREFIX)]
    return [Pair(e.removeprefix(PREFIX), e, e + PLAIN) for e in known if e + PLAIN in known]


def kills_of(summary: Summary, pair: Pair, configuration: str) -> tuple[Group | None, Group | None]:
    """(with, without normalisation): the groups with one kill."""
    return summary.group(pair.normalised, configuration, 1), summary.group(pair.plain, configuration, 1)


def configurations(summary: Summary, pair: Pair) -> list[str]:
    """In either, with a kill, in the study's order."""
    found = [g.configuration for e in (pair.normalised, pair.plain) for g in summary.of(e, 1, control=False) if g.kills]
    return [name for name in summary.data.configurations(pair.normalised) if name in found]
