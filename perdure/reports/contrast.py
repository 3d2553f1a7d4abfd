"""What a comparison shows of the methods against doing nothing: each claim, and whether it holds.

The claims are decided where all changes are (`perdure.scoring.change`, `perdure.reports.ranking`):
a task was forgotten where its interval says lost; a method is ahead where the interval of the
difference, of the same rows, leaves out 0. A claim that these rows do not show is told as such.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from perdure.reports import findings, ranking, words
from perdure.reports.data import RunView
from perdure.reports.evidence import general_difference
from perdure.reports.format import listing, number, signed

BASELINE = "sequential"


@dataclass(frozen=True)
class Claim:
    """One sentence, true to what the intervals show, and whether they show an effect."""

    text: str
    shown: bool


def claims(runs: Sequence[RunView]) -> list[Claim]:
    """What `sequential` lost, then what each other method kept beyond it; none without it."""
    plain = next((run for run in runs if run.method == BASELINE), None)
    if plain is None:
        return []
    return [_forgot(plain), *(_against(run, plain) for run in runs if run is not plain)]


def lines(runs: Sequence[RunView]) -> list[str]:
    """The claims for people: what was shown, and plainly what was not."""
    found = claims(runs)
    return [f"{'shown' if claim.shown else 'NOT shown'}: {claim.text}" for claim in found]


def _forgot(run: RunView) -> Claim:
    earlier = [f for f in findings.findings(run) if f.kept not in ("unknown", "last")]
    lost = [f.task.name for f in earlier if f.kept == "lost"]
    if lost:
        text = f"{run.label} forgot {words.some(lost, len(earlier))}"
        if findings.general_outcome(run) == "lost":
            text += f", and lost {findings.GENERAL}"
        return Claim(text, True)
    return Claim(f"that {run.label} forgot any task", False)


def _against(run: RunView, plain: RunView) -> Claim:
    better: list[str] = []
    same: list[str] = []
    if (found := _forgetting(run, plain)) is not None:
        value, between = found
        ahead = ranking.ahead(run, plain, "forgetting")
        text = f"forgot {value} less of the tasks ({between})" if ahead else "forgot the tasks less"
        (better if ahead else same).append(text)
    difference = general_difference(run.evidence, plain.evidence)
    if difference is not None:
        ahead = ranking.ahead(run, plain, ranking.GENERAL)
        ends = f"{_lower(difference.low)} to {_lower(difference.high)}"
        kept = f"kept {findings.GENERAL} better"
        by = f"{kept} (perplexity lower by {_lower(difference.value)}; {ends})"
        (better if ahead else same).append(by if ahead else kept)
    if not better:
        return Claim(f"that {run.label} {' or '.join(same) or 'kept more'}", False)
    rest = f"; not shown that it {' or '.join(same)}" if same else ""
    return Claim(f"against {plain.label}, {run.label} {listing(better)}{rest}", True)


def _forgetting(run: RunView, plain: RunView) -> tuple[str, str] | None:
    """By how much less it forgot, and the interval; None where it is not known."""
    ours, theirs = run.evidence.figure("forgetting"), plain.evidence.figure("forgetting")
    if ours is None or theirs is None:
        return None
    found = theirs.minus(ours).interval()
    return number(found.value), f"{signed(found.low)} to {signed(found.high)}"


def _lower(nats: float) -> str:
    """By how much a perplexity is lower whose loss is lower by so much."""
    return f"{number(100 * -math.expm1(-nats), 0)} %"
