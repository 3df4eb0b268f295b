"""What runs used and made through the outages: CPU, memory, gradients (the paper's Figures 6 to 8), and their fates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from outlast_bench.study.analysis.load import is_control
from outlast_bench.study.analysis.run_curves import role_curves
from outlast_bench.study.analysis.summary import Group, Summary, curves_of, kills_label
from outlast_bench.study.figures import style
from outlast_bench.study.figures.style import Drawn
from outlast_bench.study.figures.time import MEAN_AND_BAND, SHADING, draw_control, shade

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
            f"{kills_label(kills).capitalize()}. {MEAN_AND_BAND}, all processes of a role together. {SHADING}; "
            f"{style.seeds_label(groups)}."
        ),
        figure=figure,
        alt=f"Small panels of {unit.lower()} over time, one a configuration",
    )


def _legend(figure: Any, roles: Sequence[tuple[str, Any, float]]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=style.MUTED, linestyle=dash, linewidth=width) for _, dash, width in roles]
    figure.legend(lines, [NAMES[role] for role, _, _ in roles], loc="outside upper right", ncols=3, handlelength=3.0)


# --- gradients ---

FATES = (("applied", 1.0), ("lost", 0.45), ("unapplied_at_end", 0.2))  # and how strongly it is drawn
NOTABLE = 0.005  # of all; less was on its way at the end


def gradients(summary: Summary, experiment: str, kills: int) -> Drawn | None:
    """Figure 8: gradients computed over time."""
    groups = summary.of(experiment, kills, control=False)
    if not any(g.kills for g in groups):
        return None
    with style.styled():
        figure, axes = style.grid_of_panels(len(groups), height_in=1.95)
        end = max(c.end for g in groups for c in curves_of(g))
        for ax, group in zip(axes, groups, strict=True):
            shade(ax, group, summary.data.outage_s(experiment))
            control = summary.control(experiment, group)
            draw_control(ax, [c.gradients for c in curves_of(control)] if control is not None else [], end)
            found = style.band([c.gradients for c in curves_of(group)], end)
            if found is not None:
                style.draw_band(ax, found, style.colour_of(group), width=1.7)
                style.in_the_corner(ax, group, f"{found.mean[-1]:,.0f}")
            ax.set_title(style.wrapped(group.label))
        axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes[0].set_xlim(0, end)
        axes[0].set_ylim(bottom=0)
        figure.supylabel("Gradients computed by then", fontsize=9, color=style.MUTED)
        figure.supxlabel("Time since the first update (s)", fontsize=9, color=style.MUTED)
    return Drawn(
        name=f"{experiment}-gradients",
        title=f"Gradients processed with {kills_label(kills)} (the paper's Figure 8)",
        caption=(
            f"{MEAN_AND_BAND}, and the number at the end; grey: the control. {SHADING}; {style.seeds_label(groups)}."
        ),
        figure=figure,
        alt="Small panels of gradients computed over time, one a configuration",
    )


def fates(summary: Summary, experiment: str, kills: int) -> Drawn | None:
    """What became of the gradients: in the final parameters, lost, or left over."""
    groups = summary.of(experiment, kills)
    if not any(g.kills for g in groups):
        return None
    with style.styled():
        parts: list[style.Part] = [(name, alpha, partial(_mean, name)) for name, alpha in FATES]
        figure = style.stacked(groups, parts, "lost", _fates, "Gradients computed in a run, mean over seeds")
    return Drawn(
        name=f"{experiment}-gradients-fates",
        title=f"What became of the gradients, with {kills_label(kills)}",
        caption=(
            "In the final parameters (solid), lost (hatched), left over at the end (pale); mean over seeds, "
            f"{style.seeds_label(groups)}."
        ),
        figure=figure,
        alt="Bars of how many gradients were applied, lost or left over, one a configuration",
    )


def _fates(group: Group) -> str:
    applied, lost, left = (_mean(name, group) for name, _ in FATES)
    whole = applied + lost + left
    told = [f"{whole:,.0f}", *([f"{lost:,.0f} lost"] if lost >= 0.5 else [])]
    return ", ".join([*told, *([f"{left:,.0f} left over"] if left > NOTABLE * whole else [])])


def _mean(name: str, group: Group) -> float:
    return sum(r.gradients.get(name, 0) for r in group.runs) / group.n
