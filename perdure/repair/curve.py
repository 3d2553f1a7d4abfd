"""The trade-off of a repair as a picture: general ability regained against task gain kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.repair.result import Point, Repair, percent
from perdure.reports.figures import INK, LINE, SERIES, SHAPES, SOFT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = {
    "base": "base model",
    "tuned": "tuned model",
    "rewind": "rewound: one factor",
    "groups": "a factor by group of layers",
    "prune": "largest changes pruned",
    "gere": "trained on by gere",
}


def write_curve(found: Repair, out: Path) -> Path:
    """Draw every candidate on the search half as SVG, the chosen one ringed; return `out`."""
    import matplotlib
    from matplotlib.figure import Figure

    # svg.hashsalt and no date: the same repair gives the same file.
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "perdure", "axes.linewidth": 0.8}):
        figure = Figure(figsize=(7.0, 4.6), layout="constrained", facecolor="white")
        axes = figure.subplots()
        shown = [point for point in found.points if not math.isnan(point.regained)]
        _points(axes, shown)
        for point in shown:
            if point.candidate == found.chosen:
                _ring(axes, point, found)
        least = 1 - found.max_task_loss
        label = f"least allowed: {percent(least)}"
        axes.axvline(least, color=SOFT, lw=0.9, ls="--", label=label, zorder=1)
        _dress(axes)
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out


def _points(axes: Axes, points: list[Point]) -> None:
    for slot, (kind, label) in enumerate(KINDS.items()):
        some = [(point.worst, point.regained) for point in points if point.candidate.kind == kind]
        if some:
            axes.plot(
                [kept for kept, _ in some],
                [regained for _, regained in some],
                ls="-" if kind in ("rewind", "prune") else "none",  # one number grows along them
                color=SERIES[slot],
                marker=SHAPES[slot],
                ms=6,
                lw=1.0,
                mec="white",
                mew=0.6,
                label=label,
            )


def _ring(axes: Axes, point: Point, found: Repair) -> None:
    place = (point.worst, point.regained)
    axes.plot(*place, "o", ms=14, mfc="none", mec=INK, mew=1.5, label=f"chosen: {found.chosen}")
    if found.report is not None:
        kept = min(found.report.kept.values())
        label = f"chosen, on the report half: {percent(found.report.regained)}, {percent(kept)}"
        if not math.isnan(found.report.regained):
            axes.plot(kept, found.report.regained, "+", ms=10, mec=INK, mew=1.6, label=label)


def _dress(axes: Axes) -> None:
    axes.set_title("What each candidate regains and keeps", loc="left", color=INK, fontsize=10)
    axes.set_xlabel("share of the task gain kept (the task that lost most)", color=SOFT)
    axes.set_ylabel("share of the lost general ability regained", color=SOFT)
    axes.grid(color=LINE, lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=SOFT, labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(LINE)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
