"""What an audit will measure, decided and checked before any model is loaded. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perdure.audit.measure import Kind
from perdure.errors import UsageError, task_named
from perdure.streams.kinds import kind as kind_of
from perdure.streams.kinds import metric
from perdure.streams.task import GeneralText, Task, TaskStream

MEASURES = ("loss", "kl", "tasks")


@dataclass(frozen=True)
class Part:
    """One measure to make."""

    name: str
    kind: Kind
    metric: str
    task: Task | None = None
    higher_is_better: bool = False


@dataclass(frozen=True)
class Plan:
    parts: tuple[Part, ...]
    judged: int
    """Parts that get a verdict, known before anything is measured: it sets each one's alpha."""


@dataclass(frozen=True)
class Margins:
    """The change for the worse that each kind of measure may show.

    Raises:
        UsageError: one is not above 0, or `max_drop` not below 1.
    """

    max_drop: float
    max_loss_rise: float
    max_kl: float | None

    def __post_init__(self) -> None:
        for name in ("max_drop", "max_loss_rise", "max_kl"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(
                    f"audit: --{name.replace('_', '-')} {value:g}: must be above 0",
                    "no number of items can show that nothing at all changed",
                )
        if self.max_drop >= 1:
            raise UsageError(
                f"audit: --max-drop {self.max_drop:g}: no score can drop by so much",
                "two points of a hundred are 0.02",
            )

    def of(self, part: Part) -> float | None:
        return {"loss": self.max_loss_rise, "kl": self.max_kl, "task": self.max_drop}[part.kind]


def check_alpha(alpha: float) -> None:
    """Raise UsageError if it is no probability of error."""
    if not 0 < alpha < 0.5:
        raise UsageError(f"audit: --alpha {alpha:g}: must be between 0 and 0.5", "0.05 is usual")


def plan_measures(
    measures: Sequence[str], tasks: Sequence[Task], texts: Sequence[str], max_kl: float | None
) -> Plan:
    """Lay out the measures that there is data for, the cheapest first.

    Raises:
        UsageError: an unknown measure, or none that could get a verdict.
    """
    if strange := [m for m in measures if m not in MEASURES]:
        raise UsageError(f"audit: no measure is called {strange[0]!r}", f"one of: {MEASURES}")
    parts: list[Part] = []
    if "loss" in measures and texts:
        parts.append(Part("general loss", "loss", "nats a token"))
    if "kl" in measures:
        parts.append(Part("KL from base", "kl", "nats a token"))
    if "tasks" in measures:
        names = {task.name for task in tasks}
        for task in tasks:
            if task.test_of in names:
                continue  # the same rows, read alike: the other task's measure says it
            _refuse_classes(task)
            kind_of(task.kind).demand("audit", task.name)
            found = metric(task.metric)
            kind: Kind = "task" if found.scores_items else "loss"
            name = found.name if kind == "task" else f"log {found.label}"
            if kind == "task" and not (found.low == 0 and found.high == 1):
                raise UsageError(
                    f"audit: {task_named(task.name)}: its metric {found.name} is not from 0 to 1, "
                    "so no number of items can bound its change",
                    "give it another metric, or take it out",
                )
            parts.append(Part(task.name, kind, name, task, found.higher_is_better))
    judged = sum(part.kind != "kl" or max_kl is not None for part in parts)
    if not judged:
        raise UsageError(
            "audit: nothing to decide: no tasks, no general texts, and no limit for KL",
            "give --tasks, or --max-kl, which needs no data",
        )
    return Plan(tuple(parts), judged)


def _refuse_classes(task: Task) -> None:
    """Refuse tasks of classes: their heads are a run's own, and the run has scored them."""
    if kind_of(task.kind).classes:
        raise UsageError(
            f"audit: {task_named(task.name)} is of classes, for which two models of text have no "
            "heads",
            "a run keeps its classifier's scored rows, before and after: perdure audit --scores "
            "RUN/items/after-1-TASK.jsonl RUN/items/after-3-TASK.jsonl",
        )


def general_texts(
    stream: TaskStream | Sequence[Task] | None, general: GeneralText | Sequence[str] | None
) -> list[str]:
    """The texts to measure the loss on, each once."""
    if general is None and isinstance(stream, TaskStream):
        general = stream.general
    if isinstance(general, GeneralText):
        general = general.held_out
    return list(dict.fromkeys(general or ()))
