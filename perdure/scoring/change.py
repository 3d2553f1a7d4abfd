"""What a change means: lost, kept, or too few rows to tell. The one place that decides it.

A change is a difference of two scores of the same rows, turned so that more is better, with an
interval and a margin: the drop that is allowed. There are three outcomes, not two:

    lost   the interval lies below -margin: more than the margin was shown to be lost
    kept   it lies above -margin: the drop was shown to be smaller than the margin
    open   it holds -margin: these rows cannot tell, however large the change looks

A gain has three as well, on the other side: `learned` (above +margin), `not learned` (below it),
`open`. That no difference was found is never taken for "kept": few rows find no difference at all.

The interval is that of paired rows (`perdure.scoring.intervals`) where each row's score is known
before and after, and else the one of two test sets drawn apart (`noise`), which is wider.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perdure.scoring.intervals import (
    DRAWS,
    MOST_ITEMS,
    Array,
    bootstrap_bounds,
    imagined_limit,
    items_needed,
    noise,
    verdict_of,
)

Outcome = Literal["lost", "kept", "open"]
Gain = Literal["learned", "not learned", "open"]
ALPHA = 0.025
"""Of each end of an interval in a report: both together are a 95 % interval."""
OPEN = "too few rows to tell"


@dataclass(frozen=True)
class Change:
    """A change with its interval [`low`, `high`]; more is better. `low` is nan where none is known.

    `mean`, `low`, `high`, `margin` and `smallest` have one unit: the score's, or nats a token.
    """

    mean: float
    low: float
    high: float
    margin: float
    """The drop that is allowed; also the gain from which something counts as learned."""
    rows: int
    nats: bool = False
    paired: bool = True
    """Whether each row was compared with itself."""
    needed: int | None = None
    """Rows in all, like these, that would tell, only where these do not; None: over ten million, or
    nothing is known of the rows."""
    seeds: int = 0
    """How many runs, of another seed each, it is the mean of; 0: it is one run's."""

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def outcome(self) -> Outcome:
        return outcome_of(self.low, self.high, self.margin)

    @property
    def gain(self) -> Gain:
        # To fall by more than the margin read backwards is to rise by more than it.
        mirrored: dict[Outcome, Gain] = {"lost": "learned", "kept": "not learned", "open": "open"}
        return mirrored[outcome_of(-self.high, -self.low, self.margin)]

    @property
    def smallest(self) -> float:
        """The smallest drop that these rows could show to be a loss, were it spread as this one."""
        if not self.known:
            return math.nan
        # What is unpaired reaches as far to both sides, but no further than scores do.
        reach = self.high - self.mean
        return self.margin + (reach if self.paired else max(reach, self.mean - self.low))

    @property
    def would_be(self) -> Outcome:
        """What enough rows like these would say."""
        return "kept" if self.mean > -self.margin else "lost"


def outcome_of(low: float, high: float, margin: float) -> Outcome:
    """Decide what an interval [`low`, `high`] of a change says; the only place that does.

    Reports, `compare`, the terminal, `audit` and `diagnose` all ask it. Where no interval is known
    (nan) nothing is said.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return "open"
    found = verdict_of(low, high, margin)
    return "open" if found == "undecided" else found


def of_items(
    change: Array,
    margin: float,
    *,
    alpha: float = ALPHA,
    worst: float | None = None,
    best: float | None = None,
    nats: bool = False,
    groups: NDArray[np.int_] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Change:
    """Judge paired rows.

    Args:
        change: (rows,), each row's score after less before, turned so that more is better.
        margin: the drop that is allowed, of the mean.
        alpha: of each end of the interval.
        worst, best: the limits of one row's change; None: it has none (`imagined_limit`).
        groups: (rows,), which rows belong together, as of `bootstrap_bounds`.
        draws: of the bootstrap; more where `alpha` is small.
    Raises:
        ValueError: there is no row.
    """
    limit = float(imagined_limit(change, margin)) if worst is None or best is None else 0.0
    ends = (-limit if worst is None else worst, limit if best is None else best)
    draws = max(draws, math.ceil(20 / alpha))  # so that the tail holds some of them
    low, high = bootstrap_bounds(change, alpha, *ends, groups=groups, draws=draws, seed=seed)
    needed = None
    if verdict_of(float(low), float(high), margin) == "undecided":
        wanted = items_needed(change, margin, alpha, *ends, groups)
        needed = None if wanted is None else max(len(change) + 1, wanted)
    return Change(
        float(np.mean(change)), float(low), float(high), margin, len(change), nats, True, needed
    )


def unpaired(before: float, after: float, rows: int, margin: float, span: float = 1.0) -> Change:
    """Judge two scores of which only the means and the number of rows are known.

    Args:
        before, after: shares of the best score, 0 to 1, more is better.
        rows: of each; 0 where not known, then nothing is known of the change either.
        margin: in the unit of the score.
        span: what a share of 1 is in that unit.
    """
    mean = span * (after - before)
    if rows <= 0:
        return Change(mean, math.nan, math.nan, margin, 0, paired=False)

    def reach(count: int) -> float:
        return span * noise(before, after, count)

    low, high = max(mean - reach(rows), -span), min(mean + reach(rows), span)
    needed = None
    if verdict_of(low, high, margin) == "undecided":
        gap = abs(mean + margin)
        needed = _first(lambda count: reach(count) < gap, rows)
    return Change(mean, low, high, margin, rows, paired=False, needed=needed)


def unknown(mean: float, margin: float, rows: int = 0, nats: bool = False) -> Change:
    """A change of which no interval is known: its outcome is open."""
    return Change(mean, math.nan, math.nan, margin, rows, nats, paired=False)


def pooled_values(values: Array, tokens: Array) -> Array:
    """Each text's value, so that their mean is the mean over all tokens; both (..., texts).

    To first order they also vary as that mean does from sample to sample, whose number of tokens
    is itself chance: `m + t (v - m) / mean(t)`, the ratio estimator's linear form (Cochran 1977,
    section 6.3).
    """
    mean = (values * tokens).sum(-1, keepdims=True) / tokens.sum(-1, keepdims=True)
    found: Array = mean + tokens * (values - mean) / tokens.mean(-1, keepdims=True)
    return found


def _first(enough: Callable[[int], bool], start: int) -> int | None:
    """The smallest number above `start` for which `enough` holds, or None above ten million."""
    most = max(1, start)
    while not enough(most):
        most *= 2
        if most > MOST_ITEMS:
            return None
    least = start
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if enough(middle) else (middle, most)
    return most
