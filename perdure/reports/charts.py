"""Geometry of the page's line charts: data in, coordinates out. The template draws them as SVG.

All charts are small multiples in one coordinate system, about as wide as a phone, so that text
keeps its size on every screen. Colours are CSS variables (`--s0` to `--s7`, set in report.css), so
that charts follow dark mode; a series also has its own marker, and a dash once colours repeat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from perdure.reports import caps

WIDTH, HEIGHT = 340.0, 216.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 16.0, 36.0
CHARACTER = 6.2  # width of a character of the small print
COLOURS = 8
DASHES = ("", "7 3", "2 3", "9 3 2 3")
MARKERS = (
    "M-3.6,0a3.6,3.6 0 1,0 7.2,0a3.6,3.6 0 1,0 -7.2,0z",  # circle
    "M-3.2,-3.2h6.4v6.4h-6.4z",  # square
    "M0,-4.4L4.2,3.2H-4.2z",  # triangle
    "M0,-4.6L4.6,0L0,4.6L-4.6,0z",  # diamond
    "M0,4.4L4.2,-3.2H-4.2z",  # triangle down
    "M-1.4,-4.2h2.8v2.8h2.8v2.8h-2.8v2.8h-2.8v-2.8h-2.8v-2.8h2.8z",  # plus
    "M-4.2,-1.8H4.2V1.8H-4.2z",  # bar
    "M-1.8,-4.2H1.8V4.2H-1.8z",  # upright bar
)


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """An upright line and the words at its top."""

    at: float
    label: str
    anchor: str = "start"

    @property
    def text_at(self) -> float:
        return self.at if self.anchor == "middle" else self.at + 1


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    label: str
    """What a pointer resting on it shows."""


@dataclass(frozen=True)
class Line:
    slot: int
    """Index of the method: decides colour, marker and dash, the same all over the page."""
    path: str
    points: tuple[Point, ...] = ()
    faint: bool = False

    @property
    def colour(self) -> str:
        return f"var(--s{self.slot % COLOURS})"

    @property
    def dash(self) -> str:
        return DASHES[self.slot // COLOURS % len(DASHES)]

    @property
    def marker(self) -> str:
        return MARKERS[self.slot % len(MARKERS)]


@dataclass(frozen=True)
class Table:
    """The chart's numbers as text; every cell is already printed."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    cut: str = ""
    """Which rows it has, where it has not all."""


@dataclass(frozen=True)
class Chart:
    title: str
    description: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_title: str
    table: Table
    y_title: str = ""
    """What the numbers of the y axis count: a unit, or the name of a score."""
    note: str = ""
    """Shown beside the title: the metric, or the scale."""
    marks: tuple[Mark, ...] = field(default=())
    """Upright lines: where a task is learned or begins."""
    width: float = WIDTH
    height: float = HEIGHT

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the plot."""
        return LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM


class Scale:
    """Maps a value to a coordinate, linearly or by logarithm."""

    def __init__(
        self, low: float, high: float, start: float, end: float, *, log: bool = False
    ) -> None:
        if log:
            low, high = math.log10(low), math.log10(high)
        self.log, self.low, self.high = log, low, high if high > low else low + 1.0
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        if self.log:
            value = math.log10(value)
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


def x_scale(low: float, high: float, *, log: bool = False) -> Scale:
    return Scale(low, high, LEFT + 4, WIDTH - RIGHT - 4, log=log)


def y_scale(low: float, high: float, *, log: bool = False) -> Scale:
    return Scale(low, high, HEIGHT - BOTTOM, TOP, log=log)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """At most about `count` round numbers that span [low, high]; first and last enclose it."""
    from matplotlib.ticker import MaxNLocator

    if not high > low:
        high = low + (abs(low) or 1.0) * 0.1
    locator = MaxNLocator(max(count - 1, 1), steps=[1, 2, 2.5, 5, 10])
    return [round(float(t), 12) for t in locator.tick_values(low, high)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... that span [low, high]; only powers of ten where it spans many."""
    from matplotlib.ticker import LogLocator

    mantissas = (1.0, 2.0, 5.0) if high / low < 200 else (1.0,)
    # A decade more on either side, so that there is a tick at or beyond each end.
    found = LogLocator(subs=mantissas).tick_values(low / 10, high * 10)
    ticks = [float(f"{t:.12g}") for t in found]
    start = max((t for t in ticks if t <= low), default=ticks[0])
    end = min((t for t in ticks if t >= high), default=ticks[-1])
    return [t for t in ticks if start <= t <= end]


def tick_label(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
    text = f"{value:,.4f}".rstrip("0").rstrip(".")
    return text.replace("-", "−")


def short_label(value: float) -> str:
    """`2k`, `50M`: a large round number where its zeros have no room."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{tick_label(value / size)}{sign}"
    return tick_label(value)


@dataclass(frozen=True)
class Axis:
    """A shared y axis: the same for all charts of a section, so that they can be compared."""

    scale: Scale
    ticks: tuple[Tick, ...]

    @property
    def log(self) -> bool:
        return self.scale.log


def score_axis(values: Sequence[float]) -> Axis:
    """From 0 to the first of 0.25, 0.5 and 1 that holds all of these scores."""
    marks = score_ticks(max((v for v in values if not math.isnan(v)), default=1.0))
    scale = y_scale(marks[0], marks[-1])
    return Axis(scale, tuple(Tick(scale(v), tick_label(v)) for v in marks))


def score_ticks(top: float) -> list[float]:
    """Ticks from 0 to the first of 0.25, 0.5 and 1 that is no less than `top`."""
    for limit, step in ((0.25, 0.05), (0.5, 0.1), (1.0, 0.25)):
        if top <= limit:
            return [round(step * i, 2) for i in range(round(limit / step) + 1)]
    return nice_ticks(0.0, top)


def value_axis(values: Sequence[float], *, from_zero: bool = False) -> Axis:
    """Round limits around the values; logarithmic where they span more than a factor of eight."""
    real = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(real), max(real)
    if low > 0 and high / low > 8 and not from_zero:
        marks = log_ticks(low, high)
        scale = y_scale(marks[0], marks[-1], log=True)
        return Axis(scale, tuple(Tick(scale(v), tick_label(v)) for v in marks))
    return _linear(min(0.0, low) if from_zero else low, high)


def _linear(low: float, high: float) -> Axis:
    marks = nice_ticks(low, high)
    scale = y_scale(marks[0], marks[-1])
    return Axis(scale, tuple(Tick(scale(v), tick_label(v)) for v in marks))


def polyline(points: Sequence[tuple[float, float] | None]) -> str:
    """An SVG path through the points; None lifts the pen."""
    parts, pen_down = [], False
    for point in points:
        if point is None:
            pen_down = False
            continue
        parts.append(f"{'L' if pen_down else 'M'}{point[0]:g},{point[1]:g}")
        pen_down = True
    return "".join(parts)


def over_tasks(
    *,
    title: str,
    note: str,
    series: Sequence[tuple[str, int, Sequence[float]]],
    axis: Axis,
    show: Callable[[float], str],
    y_title: str = "",
    learned: Sequence[tuple[int, str]] = (),
) -> Chart:
    """A value after 0, 1, 2, ... tasks, one line for each (label, slot, values).

    Args:
        learned: (tasks learned, words) of upright lines: where this task itself was learned.
        show: prints a value, missing ones too.
    """
    steps = max((len(values) for _, _, values in series), default=1)
    across = x_scale(0, max(steps - 1, 1))
    # Of many steps some are drawn, mostly without marks, and some of those are in the table.
    ends = {len(values) - 1 for _, _, values in series if values}  # a shorter run's end is shown
    drawn = sorted({*caps.spaced(steps, caps.POINTS), *(i for i, _ in learned), *ends})
    few = drawn if steps <= caps.POINTS else sorted({*caps.some_of(drawn, caps.NAMED), *ends})
    lines, sentences = [], []
    for label, slot, values in series:
        there = [i for i in drawn if i < len(values)]
        spots = [
            None if not math.isfinite(values[i]) else (across(i), axis.scale(values[i]))
            for i in there
        ]
        few_seen = sum(spot is not None for spot in spots) <= caps.NAMED
        dots = tuple(
            Point(spot[0], spot[1], f"{label}, {after_words(i)}: {show(values[i])}")
            for i, spot in zip(there, spots, strict=True)
            if spot is not None and (steps <= caps.POINTS or few_seen)
        )
        lines.append(Line(slot, polyline(spots), dots))
        said = ", ".join(show(values[i]) for i in few if i < len(values))
        sentences.append(f"{label}: {said}")
    every = max(1, math.ceil(steps / 9))
    ticks = [
        Tick(across(i), "base" if i == 0 else str(i))
        for i in range(steps)
        # The last one is named, and none so near that both would touch.
        if (i % every == 0 and not 0 < steps - 1 - i < every) or i == steps - 1
    ]
    return Chart(
        title=title,
        note=note,
        y_title=y_title,
        description=("After 0, 1, 2, ... tasks. " if few == drawn else "After some tasks. ")
        + "; ".join(sentences)
        + ".",
        lines=tuple(lines),
        x_ticks=tuple(ticks),
        y_ticks=axis.ticks,
        x_title="tasks learned",
        marks=tuple(Mark(across(i), words, "middle") for i, words in learned),
        table=Table(
            ("method", *("base" if i == 0 else f"after {i}" for i in few)),
            tuple(
                (label, *(show(values[i]) if i < len(values) else "" for i in few))
                for label, _, values in series
            ),
        ),
    )


def after_words(after: int) -> str:
    if after == 0:
        return "base model"
    return "after 1 task" if after == 1 else f"after {after} tasks"
