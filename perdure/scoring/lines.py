"""Lines of scores.jsonl: one function for a task's score and one for general ability's."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from perdure.streams.kinds import PERPLEXITY

if TYPE_CHECKING:
    from perdure.scoring.lm_eval import HarnessScore
    from perdure.scoring.perplexity import GeneralScore
    from perdure.scoring.score import TaskScore


def task_line(after: int, task: str, found: TaskScore, seconds: float) -> dict[str, Any]:
    """A task's score after learning `after` tasks.

    `measures` is there where the task has more than one: every measure by its name, the one that
    `score` gives among them.
    """
    line: dict[str, Any] = {
        "kind": "task",
        "after": after,
        "task": task,
        "metric": found.metric,
        "higher_is_better": found.higher_is_better,
        **found.recorded,
        "score": found.score,
        "rows": len(found.items),
        "seconds": round(seconds, 2),
    }
    if len(found.measures) > 1:
        line["measures"] = dict(found.measures)
    return line


def general_line(
    after: int, task: str | None, found: GeneralScore | HarnessScore, seconds: float
) -> dict[str, Any]:
    """A score of general ability: of an lm-eval task, or, without `task`, of ordinary text.

    The texts' own losses, and the items of lm-eval's task, are not in it; a run keeps them beside
    the scored rows of tasks.
    """
    line: dict[str, Any] = {"kind": "general", "after": after}
    figures: dict[str, Any]
    if task is not None:
        line["task"] = task
        figures = {k: v for k, v in asdict(found).items() if k != "items"}
    else:
        text: Any = found
        figures = {
            "metric": PERPLEXITY.name,
            "score": text.perplexity,
            "loss": text.loss,
            "tokens": text.tokens,
        }
    return {**line, **figures, "seconds": round(seconds, 2)}
