"""What an audit found: its measures, their verdicts, and how people and machines read them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from perdure.audit.junit import junit_xml
from perdure.audit.measure import Kind, Measure
from perdure.audit.terminal import WIDTH, closing, flips_list, table
from perdure.scoring.change import Change, of_items
from perdure.scoring.intervals import (
    DRAWS,
    Array,
    Verdict,
    group_sums,
    imagined_limit,
    is_binary,
    mcnemar_exact,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from rich.text import Text

    from perdure.scoring.routing_figures import RoutingFigures


def judge(
    name: str,
    kind: Kind,
    metric: str,
    base: Array,
    tuned: Array,
    *,
    margin: float | None,
    alpha: float,
    higher_is_better: bool | None = None,
    identical: bool = False,
    note: str = "",
    groups: NDArray[np.int_] | None = None,
    noise_floor: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Measure:
    """Compare paired item scores and give a verdict.

    Args:
        kind: "task": scores of 0 to 1; "loss" and "kl": nats, lower is better (for "kl" `base` is
            zeros, and no item can be below 0).
        higher_is_better: None: of kind "task" only.
        base, tuned: (items,), in the same order.
        margin: allowed change for the worse, above 0; None gives no verdict.
        alpha: of each bound, already shared among the measures.
        identical: the models have the same weights; if the scores agree too, nothing is uncertain.
        groups: (items,), which group each item is in (`group_numbers`): the interval is over these.
        noise_floor: how far the base's mean moves by itself, in nats or points, for the record.
    """
    higher = kind == "task" if higher_is_better is None else higher_is_better
    better = 1.0 if higher else -1.0
    gain = better * (tuned - base)
    mean = float(gain.mean())
    sums, sizes = group_sums(gain, groups)
    limit = 1.0 if kind == "task" else float(imagined_limit(sums / sizes, margin or 0.0))
    worst, best = -limit, 0.0 if kind == "kl" else limit
    binary = kind == "task" and is_binary(base, tuned)
    if identical and not gain.any():
        found = Change(0.0, 0.0, 0.0, margin or 0.0, len(gain))
        note = "weights are identical"
    else:
        found = of_items(
            gain,
            margin or 0.0,
            alpha=alpha,
            worst=worst,
            best=best,
            groups=groups,
            draws=draws,
            seed=seed,
        )
    verdict: Verdict | None = None
    if margin is not None:
        verdict = "undecided" if found.outcome == "open" else found.outcome
    more = None
    if verdict == "undecided" and found.needed is not None:
        more = found.needed - len(gain)
    tenth = -(-len(gain) // 10)
    ends = sorted((better * found.low, better * found.high))
    return Measure(
        name=name,
        kind=kind,
        metric=metric,
        unit="score" if kind == "task" else "nats",
        items=len(gain),
        base=float(base.mean()),
        tuned=float(tuned.mean()),
        change=better * mean + 0.0,  # no -0.0
        low=ends[0] + 0.0,
        high=ends[1] + 0.0,
        alpha=alpha,
        higher_is_better=higher,
        margin=margin,
        verdict=verdict,
        more_items=more,
        mcnemar_p=mcnemar_exact(base, tuned) if binary and groups is None else None,
        broken=int((gain == -1).sum()) if binary else None,
        mended=int((gain == 1).sum()) if binary else None,
        note=note,
        groups=None if groups is None else len(sizes),
        worst_tenth=None if kind == "task" else better * float(np.sort(gain)[:tenth].mean()) + 0.0,
        worst_items=None if kind == "task" else tenth,
        noise_floor=noise_floor,
    )


def flips(
    task: str, base: Sequence[Mapping[str, Any]], tuned: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """List the items whose score crossed from right to wrong or back.

    Right and wrong are scores of 1 and 0; of finer scores (ROUGE, chrF) a change by at least a
    half counts, as "worse" or "better".

    Args:
        base, tuned: items of `TaskScore`, in the same order.
    """
    found = []
    for one, other in zip(base, tuned, strict=True):
        before, after = float(one["score"]), float(other["score"])
        if abs(after - before) < 0.5:
            continue
        whole = {before, after} == {0.0, 1.0}
        names = ("right -> wrong", "wrong -> right") if whole else ("worse", "better")
        found.append(
            {
                "task": task,
                "id": one["id"],
                "change": names[int(after > before)],
                "base_score": before,
                "tuned_score": after,
                "base_prediction": one["prediction"],
                "tuned_prediction": other["prediction"],
                "answer": one["answer"],
                "prompt": one["prompt"],
            }
        )
    return found


@dataclass(frozen=True)
class AuditResult:
    """Two models compared, measure by measure.

    `alpha` bounds the probability that any verdict here is wrong; each bound of each of the
    `judged` measures was taken at `alpha / judged`.
    """

    base: str
    tuned: str
    alpha: float
    judged: int
    seed: int
    identical_weights: bool
    measures: tuple[Measure, ...]
    flips: tuple[dict[str, Any], ...] = ()
    skipped: tuple[str, ...] = ()
    """Measures left out: after a first `lost` with `fail_fast`."""
    seconds: float = 0.0
    template: str = ""
    """With which chat template the rows of both models were read, in words."""
    accepted_changes: tuple[str, ...] = ()
    """What has changed since an audited run began, and was accepted."""
    routing: RoutingFigures | None = None
    """How the tuned model's requests were routed; None where they are not."""

    @property
    def verdict(self) -> Verdict:
        """The worst of all verdicts: lost, then undecided, then kept."""
        found = {m.verdict for m in self.measures}
        if "lost" in found:
            return "lost"
        return "undecided" if "undecided" in found else "kept"

    def exit_code(self, undecided: int = 3) -> int:
        """0 if all is kept, 1 if anything is lost, else `undecided`."""
        return {"kept": 0, "lost": 1, "undecided": undecided}[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        routing = None if self.routing is None else self.routing.numbers()
        return (
            {"verdict": self.verdict, "correction": "bonferroni"}
            | asdict(self)
            | {"routing": routing}
        )

    def to_json(self) -> str:
        """Return everything as one JSON object; what is not a finite number is null."""
        return json.dumps(_finite(self.to_dict()), indent=2, ensure_ascii=False)

    def junit(self, undecided: int = 3) -> str:
        """Return JUnit XML, a test case a measure (`perdure.audit.junit`)."""
        return junit_xml(self, undecided=undecided)

    def table(self, width: int = WIDTH) -> Text:
        """Return the measures as a `rich` text of so many columns; print it with soft_wrap."""
        return table(self, width)

    def flips_table(self, width: int = WIDTH) -> Text:
        """Return the items that flipped as a `rich` text."""
        return flips_list(self.flips, width)

    def closing(self, undecided: int = 3, *, flips_shown: bool = False) -> str:
        """Return the last lines, which say the verdict and the exit code."""
        return "\n".join(closing(self, undecided, flips_shown))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float | np.floating) and not math.isfinite(value):
        return None
    return value
