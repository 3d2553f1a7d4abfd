"""What a repair found: every candidate's figures, the choice, and the report half's own figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import printable
from perdure.repair.candidates import Candidate
from perdure.streams import kinds

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Figures:
    """What was measured of one model: nats a token on general texts, each task's own score."""

    general: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Point:
    """One candidate on the search half.

    `regained` is (tuned - candidate) / (tuned - base) in loss on general texts: 0 is the tuned
    model, 1 the base; NaN if the tuned model lost nothing. `kept` is (candidate - base) / (tuned -
    base) in each task's score (`kept_share`).
    """

    candidate: Candidate
    figures: Figures
    regained: float
    kept: Mapping[str, float]

    @property
    def worst(self) -> float:
        """The share of its gain that the task which lost most has kept."""
        return min(self.kept.values())


@dataclass(frozen=True)
class Report:
    """The three models on the report half, which the search never saw."""

    base: Figures
    tuned: Figures
    repaired: Figures
    regained: float
    kept: Mapping[str, float]


@dataclass(frozen=True)
class Repair:
    """The outcome; `chosen` and `report` are None if no candidate qualifies, and `reason` why.

    `model` and `tokenizer` are the repaired ones, in memory; `folder` is where they were written.
    """

    base: str
    tuned: str
    max_task_loss: float
    seed: int
    rows: Mapping[str, Mapping[str, int]]
    points: tuple[Point, ...]
    chosen: Candidate | None
    reason: str
    report: Report | None
    notes: tuple[str, ...]
    metrics: Mapping[str, str]
    seconds: float
    folder: Path | None = None
    template: str = ""
    """With which chat template rows were read, in words."""
    model: Any = field(default=None, repr=False, compare=False)
    tokenizer: Any = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON; a number that is not finite is None."""
        from perdure.files import finite

        found: dict[str, Any] = {
            "base": self.base,
            "tuned": self.tuned,
            "folder": None if self.folder is None else str(self.folder),
            "max_task_loss": self.max_task_loss,
            "seed": self.seed,
            "rows": {half: dict(counts) for half, counts in self.rows.items()},
            "metrics": {task: kinds.metric(name).name for task, name in self.metrics.items()},
            "chosen": None if self.chosen is None else str(self.chosen),
            "reason": self.reason,
            "report": None if self.report is None else _report(self.report),
            "notes": list(self.notes),
            "template": self.template,
            "candidates": [_point(point) for point in self.points],
            "seconds": round(self.seconds, 2),
        }
        cleaned: dict[str, Any] = finite(found)
        return cleaned

    def to_json(self) -> str:
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False)

    def tables(self) -> list[Table]:
        """Every candidate on the search half, and the chosen one on the report half."""
        return [_candidates(self), *([_reported(self, self.report)] if self.report else [])]


def goodness(metric: str, score: float) -> float:
    """A task's score so that more is better and differences can be compared.

    What is pooled over tokens becomes minus its logarithm, the mean log-likelihood of a token.
    """
    found = kinds.metric(metric)
    if not found.scores_items:
        return -math.log(score)
    return score if found.higher_is_better else -score


def kept_share(base: float, tuned: float, now: float) -> float:
    """Share of the gain over `base` that is left; all three as `goodness` gives them.

    Where tuning gained nothing there is no share: 1 if `now` is no worse than `tuned`, else 0.
    """
    if tuned <= base:
        return 1.0 if now >= tuned else 0.0
    return (now - base) / (tuned - base)


def regained_share(base: float, tuned: float, now: float) -> float:
    """Share of the rise of the general loss that is undone; NaN if it did not rise."""
    return (tuned - now) / (tuned - base) if tuned > base else math.nan


def shares(
    metrics: Mapping[str, str], base: Figures, tuned: Figures, now: Figures
) -> tuple[float, dict[str, float]]:
    """`regained_share`, and `kept_share` of each task."""
    kept = {
        name: kept_share(*(goodness(metric, one.scores[name]) for one in (base, tuned, now)))
        for name, metric in metrics.items()
    }
    return regained_share(base.general, tuned.general, now.general), kept


def _report(report: Report) -> dict[str, Any]:
    sides = {"base": report.base, "tuned": report.tuned, "repaired": report.repaired}
    return {
        "general_loss": {name: one.general for name, one in sides.items()},
        "general_regained": report.regained,
        "tasks": {
            task: {**{name: one.scores[task] for name, one in sides.items()}, "gain_kept": kept}
            for task, kept in report.kept.items()
        },
    }


def _point(point: Point) -> dict[str, Any]:
    return {
        "name": str(point.candidate),
        "kind": point.candidate.kind,
        "factors": list(point.candidate.factors),
        "pruned": point.candidate.share,
        "general_loss": point.figures.general,
        "general_regained": point.regained,
        "scores": dict(point.figures.scores),
        "gain_kept": dict(point.kept),
    }


def _candidates(found: Repair) -> Table:
    counts = found.rows["search"]
    rows = sum(n for name, n in counts.items() if name != "general texts")
    heading = f"Candidates on the search half ({counts['general texts']} texts, {rows} rows)"
    table = _table(heading, ("candidate", "general loss", "regained", "task gain kept", ""))
    for point in found.points:
        chosen = point.candidate == found.chosen
        table.add_row(
            str(point.candidate),
            f"{point.figures.general:.4f}",
            percent(point.regained),
            percent(point.worst),
            "chosen" if chosen else "",
            style="bold" if chosen else "",
        )
    return table


def _reported(found: Repair, report: Report) -> Table:
    from rich.text import Text

    heading = "Report half, which the search never saw"
    table = _table(heading, ("", "base", "tuned", "repaired", "regained or kept"))
    sides = (report.base, report.tuned, report.repaired)
    general = (f"{one.general:.4f}" for one in sides)
    table.add_row("loss on general texts", *general, f"{percent(report.regained)} regained")
    for task, kept in report.kept.items():
        scores = (f"{one.scores[task]:.3f}" for one in sides)
        name = Text(printable(f"{task} ({kinds.metric(found.metrics[task]).name})"))
        base, tuned = (
            goodness(found.metrics[task], one.scores[task]) for one in (report.base, report.tuned)
        )
        words = f"{percent(kept)} of the gain kept"
        if tuned <= base:  # see `kept_share`
            words = "no gain; no worse" if kept else "no gain; worse"
        table.add_row(name, *scores, words)
    return table


def percent(share: float) -> str:
    """A share in percent; a dash where it is not defined."""
    return "–" if math.isnan(share) else f"{100 * share:.0f} %".replace("-", "−")


def _table(title: str, headings: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for at, heading in enumerate(headings):
        table.add_column(heading, justify="right" if 0 < at < 4 else "left", overflow="fold")
    return table
