"""What kind of loss is it? The rule from measured figures to a verdict, in one place.

Every figure is a mean over the same test rows with an interval, turned so that 0 is the border: it
is *above* or *below* where the whole interval is, and *around* where the interval holds 0. Two
borders are meant by all of them:

    half way   a measure brings the score back if, in the tuned model, it is above the middle of
               the base's and the tuned model's score. The lower end is never below chance, so that
               guessing among few labels does not count as coming back.
    a quarter  the probe fell if the tuned model's is below what it would be with a quarter of the
               base probe's lead over chance gone. It is trained anew on each model and so makes up
               for a part of what was lost: a quarter of its lead is much.

Measures are asked for in this order, the cheapest first, and none that cannot change the verdict:

    1  score, written     both kept: `nothing`. Neither lost: `undecided`. Else the one that fell
                          more is what is to be explained.
    2  lenient, forced    one above half way: `format`. The right answer is there in another form.
    3  probe              below: `knowledge`. A linear classifier no longer finds the answer.
    4  relearned, shots   one above half way: `alignment`. Ten rows cannot teach what took a
                          training; they can only show how to answer.
    5                     none above half way, the probe around its border and its plain change
                          below 0: `knowledge`. Else `undecided`.

Without labels there is no probe, and 5 is always `undecided`. Numpy and scipy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perdure.scoring.change import OPEN, Outcome, of_items, outcome_of
from perdure.scoring.intervals import Array

Loss = Literal["nothing", "format", "knowledge", "alignment", "undecided"]
Side = Literal["above", "below", "around"]
Groups = NDArray[np.int_] | None
"""(rows,), which group each row is in; None: each is its own."""

HALF = 0.5
PROBE_SHARE = 0.25
FORM, COMEBACK = ("lenient", "forced"), ("relearned", "shots")
LABELLED = ("written", "forced", "probe")
"""Measures that need a label set."""


@dataclass(frozen=True)
class Figure:
    """A mean over rows, less its border, in [`low`, `high`], all in the unit of the score.

    `more_rows` is how many rows on top would take the interval off the border if they were like
    those seen; None if it is off already, or if ten million would not do.
    """

    mean: float
    low: float
    high: float
    rows: int
    more_rows: int | None = None

    @property
    def side(self) -> Side:
        sides: dict[Outcome, Side] = {"kept": "above", "lost": "below", "open": "around"}
        return sides[outcome_of(self.low, self.high, 0.0)]


@dataclass(frozen=True)
class Decision:
    """A verdict and why; while `needs` is not empty it is not final, those are to be measured."""

    loss: Loss
    reason: str
    decided_by: str = ""
    """The measure that decided; of `undecided`, the one that stands nearest to deciding."""
    more_rows: int | None = None
    """Only of `undecided`: test rows on top that would let `decided_by` decide, if any would."""
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figures:
    """What has been measured, by the names of the module's list."""

    found: Mapping[str, Figure]
    """`score` and `written`: change plus max_drop. `probe_change`: plain change of the probe."""
    fell: str = "score"
    """Which of score and written fell more."""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """Measure -> why it cannot be made."""

    def missing(self, *names: str) -> tuple[str, ...]:
        return tuple(n for n in names if n not in self.found and n not in self.unavailable)

    def side(self, name: str) -> Side | None:
        return self.found[name].side if name in self.found else None


def decide(figures: Figures) -> Decision:
    """Return the verdict that the figures give, or which measures are to be made first."""
    if needs := figures.missing("score", "written"):
        return Decision("undecided", "nothing is measured yet", needs=needs)
    scores = {n: figures.found[n] for n in ("score", "written") if n in figures.found}
    lost = [n for n, figure in scores.items() if figure.side == "below"]
    if not lost:
        open_ones = {n: figure for n, figure in scores.items() if figure.side == "around"}
        if not open_ones:
            return Decision("nothing", "the score fell by less than the allowed drop", "score")
        return _undecided(f"{OPEN} whether the score fell", open_ones)
    for step in (_by_form, _by_probe, _by_comeback):
        decision = step(figures)
        if decision is not None:
            return decision
    return _left_open(figures)


def _by_form(figures: Figures) -> Decision | None:
    for name, how in (
        ("lenient", "the right answers are in what is written, in another form"),
        ("forced", "asked to choose among the labels it is right, what it writes is not"),
    ):
        if needs := figures.missing(name):
            return Decision("undecided", "", needs=needs)
        if figures.side(name) == "above":
            return Decision("format", how, name)
    return None


def _by_probe(figures: Figures) -> Decision | None:
    if needs := figures.missing("probe"):
        return Decision("undecided", "", needs=needs)
    if figures.side("probe") == "below":
        share = f"{PROBE_SHARE:.0%}"
        why = f"a linear probe lost more than {share} of its lead over chance"
        return Decision("knowledge", why, "probe")
    return None


def _by_comeback(figures: Figures) -> Decision | None:
    for name, how in (("relearned", "a short training"), ("shots", "examples in the prompt")):
        if needs := figures.missing(name):
            return Decision("undecided", "", needs=needs)
        if figures.side(name) == "above":
            held = {"above": ", and the probe held", None: "; there is no probe"}
            note = held.get(figures.side("probe"), "; the probe alone does not decide")
            return Decision("alignment", f"{how} brought the score back{note}", name)
    return None


def _left_open(figures: Figures) -> Decision:
    """Nothing brought the score back, and the probe is not clearly below its border."""
    back = {n: figures.found[n] for n in COMEBACK if n in figures.found}
    never = bool(back) and all(figure.side == "below" for figure in back.values())
    probe = figures.side("probe")
    if probe == "around":
        if never and figures.side("probe_change") == "below":
            why = "the probe fell, and nothing brought the score back"
            return Decision("knowledge", why, "probe_change")
        return _undecided("the probe's interval holds its border", {"probe": figures.found["probe"],
                          **_open(back)})  # fmt: skip
    form = {n: figures.found[n] for n in FORM if n in figures.found}
    if around := _open(form | back):
        return _undecided("an interval holds the half-way border", around)
    tried = ", ".join((form | back) or ("nothing was tried",))
    if probe == "above":
        why = f"the probe held, but nothing brought the score back ({tried})"
    else:
        missing = figures.unavailable.get("probe", "")
        why = (
            f"nothing brought the score back ({tried}), and without a probe lost knowledge cannot "
            f"be shown ({missing})"
        )
    return Decision("undecided", why)


def _open(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    return {name: figure for name, figure in figures.items() if figure.side == "around"}


def _undecided(why: str, open_ones: Mapping[str, Figure]) -> Decision:
    """Undecided for want of rows: the measure is named that the fewest more rows would settle."""
    wanted = {n: f.more_rows for n, f in open_ones.items() if f.more_rows is not None}
    name = min(wanted, key=lambda n: wanted[n]) if wanted else next(iter(open_ones))
    return Decision("undecided", why, name, wanted.get(name))


# --- figures from rows


def drop_figure(
    base: Array, tuned: Array, max_drop: float, alpha: float, seed: int = 0, groups: Groups = None
) -> Figure:
    """The change of the score plus the allowed drop; the sides are those of an audit.

    Args:
        base, tuned: (rows,), 0 to 1, in the same order.
        max_drop: 0 for the plain change.
        alpha: of each end of the interval.
        groups: which rows belong together, as of `bootstrap_bounds`.
    """
    return _figure(tuned - base, -max_drop, alpha, 1.0, seed, groups)


def half_way_figure(
    measured: Array,
    base: Array,
    tuned: Array,
    chance: float,
    alpha: float,
    seed: int = 0,
    groups: Groups = None,
) -> Figure:
    """How far a measure of the tuned model is above the middle of both models' scores.

    Args:
        measured, base, tuned: (rows,), 0 to 1, in the same order.
        chance: the score of a constant answer; 0 where answers are free.
    """
    lower = tuned if float(tuned.mean()) >= chance else np.full(len(tuned), chance)
    return _figure(measured - HALF * (base + lower), 0.0, alpha, 1.0, seed, groups)


def probe_figure(
    base: Array, tuned: Array, chance: float, alpha: float, seed: int = 0, groups: Groups = None
) -> Figure:
    """How far the tuned model's probe is above the base's with `PROBE_SHARE` of its lead gone.

    Args: as of `half_way_figure`; the rows are 1 where the probe is right.
    """
    border = (1 - PROBE_SHARE) * base + PROBE_SHARE * chance
    return _figure(tuned - border, 0.0, alpha, 1.0, seed, groups)


def _figure(
    values: Array, border: float, alpha: float, limit: float, seed: int, groups: Groups
) -> Figure:
    found = of_items(
        values, -border, alpha=alpha, worst=-limit, best=limit, groups=groups, seed=seed
    )
    more = None if found.needed is None else found.needed - len(values)
    mean, low, high = found.mean - border + 0.0, found.low - border, found.high - border
    return Figure(mean, low, high, len(values), more)
