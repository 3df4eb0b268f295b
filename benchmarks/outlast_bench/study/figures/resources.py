"""CPU and memory through the outages (the paper's Figures 6 and 7), a panel a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outlast_bench.study.analysis.load import is_control
from outlast_bench.study.analysis.run_curves import role_curves
from outlast_bench.study.analysis.summary import Summary, curves_of, kills_in_words
from outlast_bench.study.figures import style
from outlast_bench.study.figures.style import Drawn
from outlast_bench.study.figures.time import SHADING, shade, spread_in_words

# Who is drawn how; workers are what the paper's claim is about, so they have the strategy's colour at its strongest.
CPU_ROLES = (("worker", "-", 1.9), ("server", (0, (4, 1.6)), 1.3), ("redis", (0, (1, 1.3)), 1.3))
MEMORY_ROLES = (("server", "-", 1.9), ("redis", (0, (1, 1.3)), 1.5), ("worker", (0, (4, 1.6)), 1.0))
NAMES = {"worker": "workers", "server": "servers", "redis": "Redis"}


def cpu(summary: Summary, experiment: str, kills: int) -> Drawn | None:
    """Figure 6: cores in use by workers, servers and Redis."""
    return _panels(
        summary,
        experiment,
        kills,
        field="cpu_s",
        roles=CPU_ROLES,
        name="cpu",
        title="CPU use (the paper's Figure 6)",
        unit="Cores in use",
        remark="A worker that waits for a server uses none; the paper's workers idled in every outage but the "
        "stateless one's.",
    )


def memory(summary: Summary, experiment: str, kills: int) -> Drawn | None:
    """Figure 7: resident memory of servers, Redis and workers."""
    return _panels(
        summary,
        experiment,
        kills,
        field="rss_bytes",
        roles=MEMORY_ROLES,
        name="memory",
        title="Memory (the paper's Figure 7)",
        unit="Resident memory (MB)",
        remark="All processes of a role together; memory that processes of one machine share counts in each. The "
        "paper's stateless server peaked at 745 MB to 1.3 GB where it took in its backlog, against 80 to 100 MB.",
    )


def _panels(
    summary: Summary,
    experiment: str,
    kills: int,
    *,
    field: str,
    roles: Sequence[tuple[str, Any, float]],
    name: str,
    title: str,
    unit: str,
    remark: str,
) -> Drawn | None:
    # The control last: the paper's five and ours then begin a row each.
    groups = sorted(summary.of(experiment, kills), key=lambda g: is_control(g.configuration))
    if not any(g.kills for g in groups) or not any(r.run.report.get("resources") for g in groups for r in g.runs):
        return None
    with style.styled():
        figure, axes = style.grid_of_panels(len(groups))
        end = max(c.end for g in groups for c in curves_of(g))
        for ax, group in zip(axes, groups, strict=True):
            shade(ax, group, summary.data.outage_s(experiment))
            for role, dash, width in roles:
                curves = [role_curves(run.run.report, role, field) for run in group.runs]
                found = style.band(curves, end)
                if found is not None:
                    style.draw_band(ax, found, style.colour_of(group), dash, NAMES[role], width)
            ax.set_title(style.wrapped(group.label))
        axes[0].set_xlim(0, end)
        axes[0].set_ylim(bottom=0)
        axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        figure.supylabel(unit, fontsize=9, color=style.MUTED)
        figure.supxlabel("Time since the first update (s)", fontsize=9, color=style.MUTED)
        _legend(figure, roles)
    return Drawn(
        name=f"{experiment}-{name}",
        title=title,
        caption=(
            f"{summary.data.title(experiment)}, {kills_in_words(kills)}: mean over seeds (line) and their range "
            f"(band), second by second. {SHADING}.{spread_in_words(groups)} {remark} {style.seeds_in_words(groups)}."
        ),
        figure=figure,
        runs=experiment,
        alt=f"Small panels of {unit.lower()} over time, one a configuration",
    )


def _legend(figure: Any, roles: Sequence[tuple[str, Any, float]]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=style.MUTED, linestyle=dash, linewidth=width) for _, dash, width in roles]
    figure.legend(lines, [NAMES[role] for role, _, _ in roles], loc="outside upper right", ncols=3, handlelength=3.0)
