"""A picture of one run or several for a README, a paper or a slide: PNG, SVG or PDF.

Above, each method's score matrix; below, the score over time averaged over the tasks learned so
far, and perplexity on general text. Drawn with matplotlib's object interface: no window, and no
setting that outlives the call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from perdure.errors import UsageError
from perdure.files import replacing
from perdure.reports import colours, format
from perdure.reports.caps import MOST_MAPPED, groups, spaced
from perdure.reports.data import RunData, RunView, views
from perdure.reports.maps import on_one_scale, shares_of, span
from perdure.reports.seeds import grouped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
SERIES = ("#0b62a8", "#c4500b", "#00805a", "#c0569f", "#333d4a", "#3a9ad0", "#94700f", "#7d3b1f")
SHAPES = "os^DvPX*"
MARKED = 24  # steps that are named on an axis
FEW = 5  # tasks whose names fit side by side
INK, SOFT, LINE = "#14191f", "#56616d", "#d9dee4"


def write_figure(runs: Sequence[RunData], out: Path) -> Path:
    """Draw `runs` and write the picture in the format of `out`'s ending; return `out`.

    Raises: UsageError for an ending that is none of `FORMATS`, or if there is no run.
    """
    if not runs:
        raise UsageError("figure: no run given", "name a run directory: perdure compare RUN...")
    return write_picture(grouped(views(runs)), out)


def write_picture(shown: Sequence[RunView], out: Path) -> Path:
    """The same of runs that are digested already."""
    kind = out.suffix.lower().lstrip(".")
    if kind not in FORMATS:
        raise UsageError(
            f"{out}: cannot write a figure as {out.suffix or 'a file without an ending'}",
            f"end its name in .{', .'.join(FORMATS[:-1])} or .{FORMATS[-1]}",
        )
    import matplotlib

    out.parent.mkdir(parents=True, exist_ok=True)
    # svg.hashsalt and no date: the same runs give the same file.
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "perdure", "axes.linewidth": 0.8}):
        figure = _draw(shown)
        with replacing(out) as half:
            figure.savefig(
                half,
                format=kind,
                dpi=200,
                bbox_inches="tight",
                pad_inches=0.18,
                metadata=_UNDATED.get(kind),
            )
    return out


_UNDATED: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def _draw(runs: Sequence[RunView]) -> Figure:
    from matplotlib.figure import Figure

    tasks = max((len(columns(run)) for run in runs), default=1)
    cell = 0.85 if tasks <= FEW else 0.37  # inches a column; names stand upright where many
    across = max(1, min(len(runs), 3, int(14 / (cell * tasks + 0.5))))
    rows = math.ceil(len(runs) / across)
    wide = max(8.0, across * (cell * tasks + 0.4) + 1.4)
    high = rows * (0.4 * (tasks + 1) + (0.75 if tasks <= FEW else 1.5))
    figure = Figure(figsize=(wide, high + 3.4), layout="constrained", facecolor="white")
    parts: Any = figure.subfigures(2, 1, height_ratios=(high, 3.4), hspace=0.04)
    maps, lines = parts
    grid = maps.subplots(rows, across, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place < len(runs):
            _matrix(axes, runs[place], labelled=place % across == 0 or not _alike(runs))
        else:
            axes.set_axis_off()
    general = any(run.general for run in runs)
    below = lines.subplots(1, 2 if general else 1, squeeze=False)[0]
    _averages(below[0], runs)
    if general:
        _general(below[1], runs)
    lines.legend(
        *below[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(len(runs), 6),
        frameon=False,
        labelcolor=INK,
    )
    return figure


def _alike(runs: Sequence[RunView]) -> bool:
    return len({tuple(t.name for t in run.tasks) for run in runs}) == 1


def columns(run: RunView) -> list[range]:
    """The tasks of each column of a matrix: one, or of a long stream a group of neighbours, whose
    scores' mean is drawn."""
    count = len(run.tasks)
    return groups(count) if count > MOST_MAPPED else groups(count, max(1, count))


def _matrix(axes: Axes, run: RunView, *, labelled: bool) -> None:
    from matplotlib.patches import Rectangle

    axes.set_title(_text(run.label), loc="left", fontweight="bold", color=INK, fontsize=10)
    parts = columns(run)
    alike, lies = on_one_scale(run.tasks), shares_of(run)
    if not alike and len(parts) < len(run.tasks):  # scores in several ways have no mean
        axes.set_title("mean of 0 (worst) to 1 (best)", loc="right", color=SOFT, fontsize=8)
    rows = [0, *(part.stop for part in parts)]
    for column, part in enumerate(parts):
        tasks = run.tasks[part.start : part.stop]
        single = tasks[0] if len(tasks) == 1 else None
        for place, after in enumerate(rows):
            found = [(t, v) for t in tasks if not math.isnan(v := run.score(after, t.name))]
            bounded = [task.share(v) if task.bounded else 0.0 for task, v in found]
            share = fmean(bounded) if bounded else 0.0
            back = colours.heat(share, colours.RAMP_LIGHT) if found else "#ffffff"
            corner = (column - 0.47, place - 0.46)
            axes.add_patch(Rectangle(corner, 0.94, 0.92, facecolor=back, edgecolor="none"))
            newest = place == column + 1
            if newest:
                axes.add_patch(Rectangle(corner, 0.94, 0.92, fill=False, edgecolor=INK, lw=1.4))
            value = fmean(v for _, v in found) if found else math.nan
            plain = tasks[0].bounded
            if single is None and not alike:
                ranks = lies[after, part.start : part.stop]
                value = float(ranks[~np.isnan(ranks)].mean()) if found else math.nan
                plain = True
            axes.text(
                column,
                place,
                format.number(value) if plain else format.significant(value),
                ha="center",
                va="center",
                fontsize=8.5 if len(parts) <= FEW else 7,
                color=colours.ink(back),
                fontweight="bold" if newest else "normal",
            )
    count = len(parts)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count + 0.5, -0.5)
    if all(len(part) == 1 for part in parts):
        names = [_text(task.name, 14) for task in run.tasks]
        steps = [f"after {name}" for name in names]
    else:
        names = [span(part) for part in parts]
        steps = [f"after {part.stop:,} tasks" for part in parts]
    axes.set_xticks(range(count), names, rotation=0 if count <= FEW else 90)
    axes.set_yticks(range(count + 1), ["base model", *steps] if labelled else [""] * (count + 1))
    axes.tick_params(length=0, labelcolor=SOFT, labelsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _averages(axes: Axes, runs: Sequence[RunView]) -> None:
    from perdure.scoring.matrix import ScoreMissing

    for slot, run in enumerate(runs):
        points = []
        for after in range(1, len(run.tasks) + 1):
            try:
                points.append((after, run.matrix.average_accuracy(after)))
            except ScoreMissing:
                continue
        _line(axes, slot, run.label, points)
    axes.set_ylim(0, 1)
    _dress(axes, "Average accuracy on the tasks learned so far", runs, first=1)


def _general(axes: Axes, runs: Sequence[RunView]) -> None:
    every = []
    for slot, run in enumerate(runs):
        points = [(after, v) for after, v in enumerate(run.general) if math.isfinite(v)]
        every += [v for _, v in points]
        _line(axes, slot, run.label, points)
    if every and max(every) > 8 * min(every) > 0:
        axes.set_yscale("log")
    _dress(axes, "Perplexity on general text (lower is better)", runs, first=0)


def _line(axes: Axes, slot: int, label: str, points: Sequence[tuple[int, float]]) -> None:
    style = ("-", "--", ":", "-.")[slot // len(SERIES) % 4]
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        style,
        color=SERIES[slot % 8],
        lw=1.8,
        marker=SHAPES[slot % 8],
        ms=5.5,
        mec="white",
        mew=0.8,
        label=_text(label),
    )


def _dress(axes: Axes, title: str, runs: Sequence[RunView], *, first: int) -> None:
    axes.set_title(title, loc="left", fontsize=9.5, color=INK)
    most = max((len(run.tasks) for run in runs), default=1)
    marked = [first + i for i in spaced(most + 1 - first, MARKED)]
    axes.set_xticks(marked, ["base" if i == 0 else str(i) for i in marked])
    axes.set_xlabel("tasks learned", color=SOFT, fontsize=8)
    axes.grid(axis="y", color=LINE, lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=SOFT, labelsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)


def _text(text: str, most: int = 40) -> str:
    """A name as it is written: not as mathematics, and cut where it would not fit."""
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return text.replace("$", r"\$")
