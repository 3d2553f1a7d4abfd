"""One paired comparison of two models, and why it was judged as it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from perdure.scoring.intervals import Verdict

Kind = Literal["loss", "kl", "task"]


@dataclass(frozen=True)
class Measure:
    """One paired comparison of two models.

    `base`, `tuned` are means over the items, `change` is tuned - base, in [`low`, `high`], all in
    `unit`. A measure without a `margin` is reported only: `verdict` is None.
    """

    name: str
    kind: Kind
    metric: str
    unit: str
    """"score" (0 to 1) or "nats"."""
    items: int
    base: float
    tuned: float
    change: float
    low: float
    high: float
    alpha: float
    """Each of `low` and `high` is wrong with at most this probability."""
    higher_is_better: bool
    margin: float | None
    """The change for the worse that is allowed, above 0, in `unit`."""
    verdict: Verdict | None
    more_items: int | None = None
    """Only if undecided: items wanted on top; None with `undecided` is more than ten million."""
    mcnemar_p: float | None = None
    broken: int | None = None
    """Only right or wrong scores: items right in base and wrong in tuned."""
    mended: int | None = None
    note: str = ""
    groups: int | None = None
    """Independent groups that the items are in, which the interval is over; None: all alone."""
    worst_tenth: float | None = None
    """Only in nats, where a verdict is about the typical text: the mean change over the tenth of
    the items that changed most for the worse."""
    worst_items: int | None = None
    """How many items that tenth is, rounded up."""
    noise_floor: float | None = None
    """How far the mean of the base moved by itself when it was scored again another way; None: it
    was not scored again."""


TYPICAL = "about the typical text"


def explain(measure: Measure) -> str:
    """Say in a few words what stands behind a verdict."""
    words = []
    if measure.verdict == "undecided":
        if measure.more_items is None:
            words.append("more than 10,000,000 items would be needed")
        else:
            words.append(f"about {measure.more_items:,} more items would decide")
    if measure.groups is not None:
        words.append(f"in {measure.groups:,} groups, which are what counts as evidence")
    if measure.broken is not None and measure.mended is not None:
        words.append(f"{measure.broken} rows became wrong, {measure.mended} right")
    if measure.mcnemar_p is not None:
        words.append(f"McNemar p {measure.mcnemar_p:.2g}")
    if measure.worst_tenth is not None and measure.worst_items is not None:
        verdict = f"{TYPICAL}; " if measure.verdict is not None else ""
        words.append(
            f"{verdict}worst tenth ({measure.worst_items:,} of {measure.items:,} texts) "
            f"{measure.worst_tenth:+.3f}"
        )
    if measure.noise_floor is not None:
        words.append(f"the ruler's own noise {measure.noise_floor:.2g}")
    if measure.note:
        words.append(measure.note)
    return "; ".join(words)
