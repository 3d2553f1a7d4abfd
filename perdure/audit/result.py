"""What an audit found: its measures, their verdicts, and how people and machines read them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from perdure.audit.junit import junit_xml
from perdure.audit.measure import Kind, Measure, explain
from perdure.reports.format import from_outside
from perdure.scoring.change import Change, of_items
from perdure.scoring.intervals import (
    DRAWS,
    Array,
    Verdict,
    imagined_limit,
    is_binary,
    mcnemar_exact,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table


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
    """
    higher = kind == "task" if higher_is_better is None else higher_is_better
    better = 1.0 if higher else -1.0
    gain = better * (tuned - base)
    mean = float(gain.mean())
    limit = 1.0 if kind == "task" else float(imagined_limit(gain, margin or 0.0))
    worst, best = -limit, 0.0 if kind == "kl" else limit
    binary = kind == "task" and is_binary(base, tuned)
    if identical and not gain.any():
        found = Change(0.0, 0.0, 0.0, margin or 0.0, len(gain))
        note = "weights are identical"
    else:
        found = of_items(
            gain, margin or 0.0, alpha=alpha, worst=worst, best=best, draws=draws, seed=seed
        )
    verdict: Verdict | None = None
    if margin is not None:
        verdict = "undecided" if found.outcome == "open" else found.outcome
    more = None
    if verdict == "undecided" and found.needed is not None:
        more = found.needed - len(gain)
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
        mcnemar_p=mcnemar_exact(base, tuned) if binary else None,
        broken=int((gain == -1).sum()) if binary else None,
        mended=int((gain == 1).sum()) if binary else None,
        note=note,
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
        return {"verdict": self.verdict, "correction": "bonferroni"} | asdict(self)

    def to_json(self) -> str:
        """Return everything as one JSON object; what is not a finite number is null."""
        return json.dumps(_finite(self.to_dict()), indent=2, ensure_ascii=False)

    def junit(self, undecided: int = 3) -> str:
        """Return JUnit XML, a test case a measure (`perdure.audit.junit`)."""
        return junit_xml(self, undecided=undecided)

    def table(self) -> Table:
        """Return the measures as a `rich` table."""
        from rich.table import Table

        title = f"{from_outside(self.tuned)} against {from_outside(self.base)}: {self.verdict}"
        caption = (
            f"in brackets the interval; each end errs in at most {self.alpha:g} / "
            f"{max(self.judged, 1)}; any verdict wrong: at most {self.alpha:g}"
        )
        table = Table(title=title, caption=caption)
        table.add_column("measure", overflow="fold")
        for heading in ("items", "base", "tuned", "change", "allowed"):
            table.add_column(heading, justify="right")
        table.add_column("verdict")
        table.add_column("why", overflow="fold")
        for m in self.measures:
            table.add_row(
                from_outside(f"{m.name} ({m.metric})"),
                str(m.items),
                f"{m.base:.3f}",
                f"{m.tuned:.3f}",
                f"{_signed(m.change)} [{_signed(m.low)}, {_signed(m.high)}]",
                "" if m.margin is None else _signed(-m.margin if m.higher_is_better else m.margin),
                f"[{_COLOURS[m.verdict]}]{m.verdict or 'reported'}[/]",
                explain(m),
            )
        for name in self.skipped:
            table.add_row(
                from_outside(name), "", "", "", "", "", "[dim]skipped[/]", "an earlier one is lost"
            )
        return table

    def flips_table(self, most: int = 20) -> Table:
        """Return the items that flipped as a `rich` table, at most `most` of them."""
        from rich.table import Table

        shown = self.flips[:most]
        rest = len(self.flips) - len(shown)
        table = Table(title=f"{len(self.flips)} items flipped", caption=f"{rest} more in the JSON")
        if not rest:
            table.caption = None
        for heading in ("task", "change", "prompt", "answer", "base", "tuned"):
            table.add_column(heading, overflow="fold")
        for flip in shown:
            cells = (
                flip["task"],
                flip["change"],
                flip["prompt"][-120:],
                flip["answer"],
                flip["base_prediction"],
                flip["tuned_prediction"],
            )
            table.add_row(*(from_outside(str(cell)) for cell in cells))
        return table


_COLOURS = {"kept": "green", "lost": "bold red", "undecided": "yellow", None: "dim"}


def _signed(value: float) -> str:
    return f"{value:+.4f}" if abs(value) < 0.01 else f"{value:+.3f}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float | np.floating) and not math.isfinite(value):
        return None
    return value
