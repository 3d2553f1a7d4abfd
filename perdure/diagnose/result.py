"""What a diagnosis found, and how people and machines read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from perdure.diagnose.rule import Decision, Figure, Loss
from perdure.reports.format import from_outside
from perdure.scoring.intervals import Array

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 5
_RIGHT = 0.5
"""A score of a half or more counts as right: of ROUGE and chrF, as in an audit's list of flips."""


@dataclass(frozen=True)
class TaskDiagnosis:
    """What was lost on one task, and what stands behind it."""

    task: str
    metric: str
    rows: int
    loss: Loss
    reason: str
    decided_by: str
    more_rows: int | None
    """Only if undecided: test rows on top that `decided_by` would need to decide."""
    fell: str
    """Which score is explained: "score" (the task's metric) or "written" (exact match)."""
    means: Mapping[str, Mapping[str, float]]
    """Measure -> "base", "tuned" -> mean over the test rows."""
    figures: Mapping[str, Figure]
    """Measure -> its distance from its border (`perdure.diagnose.rule`)."""
    unavailable: Mapping[str, str]
    """Measure -> why it was not made."""
    evidence: Sequence[Mapping[str, Any]]
    """Rows that show the verdict, see `evidence`."""
    adapters: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Side -> adapter ("base": none) -> test rows that a router gave to it; empty where none
    chooses."""

    def why(self) -> str:
        """The reason, of an undecided task how many more rows would decide, and of a routed model
        which adapters answered."""
        said = [self.reason]
        if self.more_rows is not None:
            said.append(f"about {self.more_rows:,} more test rows would decide")
        for side, counts in self.adapters.items():
            by = ", ".join(f"{count} by {name}" for name, count in counts.items())
            said.append(f"{side}: {by}")
        return "; ".join(said)


@dataclass(frozen=True)
class Diagnosis:
    """Two models compared, task by task."""

    base: str
    tuned: str
    max_drop: float
    alpha: float
    seed: int
    tasks: tuple[TaskDiagnosis, ...]
    seconds: float = 0.0
    template: str = ""
    """With which chat template the rows of both models were read, in words."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> Table:
        """Return the verdicts and the measures behind them as a `rich` table."""
        from rich.table import Table

        table = Table(title=f"{from_outside(self.tuned)} against {from_outside(self.base)}")
        table.add_column("task", overflow="fold")
        table.add_column("lost", no_wrap=True)
        table.add_column("measures, base -> tuned", no_wrap=True)
        table.add_column("why", overflow="fold")
        for one in self.tasks:
            measures = [f"{_NAMES.get(n, n)} {_means(m)}" for n, m in one.means.items()]
            lost = f"[{_COLOURS[one.loss]}]{one.loss}[/]"
            table.add_row(
                from_outside(one.task), lost, "\n".join(measures), from_outside(one.why())
            )
        return table

    def evidence_table(self, most: int = SHOWN) -> Table:
        """Return up to `most` rows of evidence a task as a `rich` table."""
        from rich.table import Table

        rest = sum(max(0, len(one.evidence) - most) for one in self.tasks)
        table = Table(title="rows that show it", caption=f"{rest} more in the JSON")
        if not rest:
            table.caption = None
        for heading in ("task", "prompt", "right", "base", "tuned", "shown by"):
            table.add_column(heading, overflow="fold")
        for one in self.tasks:
            for row in one.evidence[:most]:
                cells = [str(row[key])[-120:] for key in ("prompt", "answer", "base", "tuned")]
                shown = (
                    f"{_NAMES.get(row['by'], row['by'])}: {row['found']}" if row["found"] else ""
                )
                table.add_row(*(from_outside(cell) for cell in (one.task, *cells, shown)))
        return table


def evidence(
    decision: Decision,
    answers: Mapping[str, Sequence[Any]],
    fell: str,
    before: Array,
    after: Array,
) -> list[dict[str, Any]]:
    """Return the rows that show a verdict, in the order of the test rows.

    `format`, `alignment`: base right, tuned wrong, and right by the measure that decided.
    `knowledge`: base right, tuned wrong, and the probe right in the base and wrong in the tuned.
    `nothing`: both right. `undecided`: base right, tuned wrong.

    Each is `{"id", "prompt", "answer", "base", "tuned", "by", "found"}`: both models' answers, the
    measure that decided and what it says about the tuned model ("" if that is the score itself),
    and every other answer there is (`base_written`, `tuned_probe`, ...).

    Args:
        answers: lists of one entry a row: prompt, answer, id, and SIDE_MEASURE.
        before, after: (rows,), the score that fell, of base and tuned.
    """
    by = {"probe_change": "probe"}.get(decision.decided_by, decision.decided_by)
    says = answers.get(f"tuned_{by}") if by != fell else None
    found = []
    for i, right in enumerate(answers["answer"]):
        broke = before[i] - after[i] >= _RIGHT
        if decision.loss == "nothing":
            shows = min(before[i], after[i]) >= _RIGHT
        elif decision.loss == "undecided" or says is None:
            shows = broke
        elif decision.loss == "knowledge":
            shows = broke and answers["base_probe"][i] == right and says[i] != right
        else:
            shows = broke and bool(answers[f"tuned_{by}_score"][i] >= _RIGHT)
        if shows:
            found.append(_row(answers, i, fell, by, "" if says is None else says[i]))
    return found


def _row(
    answers: Mapping[str, Sequence[Any]], i: int, fell: str, by: str, found: Any
) -> dict[str, Any]:
    plain = {key: answers[key][i] for key in ("id", "prompt", "answer")}
    plain |= {side: answers[f"{side}_{fell}"][i] for side in ("base", "tuned")}
    plain |= {"by": by, "found": found}
    others = {
        key: list_[i]
        for key, list_ in answers.items()
        if key.startswith(("base_", "tuned_")) and not key.endswith("_score")
    }
    return plain | others


_NAMES = {"relearned": "few rows", "shots": "examples"}
_COLOURS = {"nothing": "green", "format": "cyan", "alignment": "magenta",
            "knowledge": "bold red", "undecided": "yellow"}  # fmt: skip


def _means(means: Mapping[str, float]) -> str:
    """Both models' mean, or "-> 0.50" where only the tuned one was measured."""
    if "base" not in means:
        return f"-> {means['tuned']:.2f}"
    return f"{means['base']:.2f} -> {means['tuned']:.2f}"
