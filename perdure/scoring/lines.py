"""Lines of scores.jsonl: of a task's score, of general ability's, and of probes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from perdure.scoring.reading import failures
from perdure.streams.kinds import PERPLEXITY

if TYPE_CHECKING:
    from perdure.scoring.lm_eval import HarnessScore
    from perdure.scoring.perplexity import GeneralScore
    from perdure.scoring.score import TaskScore


UNREAD = "unread"
"""Key of a task's line: the share of texts in which no answer could be read."""
PROBE = "probe"
"""Kind of the lines of probes, which are no cells of the score matrix."""


def task_line(after: int, task: str, found: TaskScore, seconds: float) -> dict[str, Any]:
    """A task's score after learning `after` tasks.

    `measures` is there where the task has more than one: every measure by its name, the one that
    `score` gives among them. `unread` is there where answers are read by their tags: the share of
    rows in which there was none.
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
    if (share := failures(found.items)) is not None:
        line[UNREAD] = share
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


def probe_line(
    after: int,
    task: str,
    rows: int,
    found: Mapping[str, Mapping[str, Mapping[str, float]]],
    seconds: float,
) -> dict[str, Any]:
    """What probes know of a task after learning `after` tasks.

    Args:
        found: by the classes that they were fitted on ("seen": those learned so far; "all": also
            future ones), by probe, the share right `among_all` those classes and `within_task`.
    """
    return {
        "kind": PROBE,
        "after": after,
        "task": task,
        "rows": rows,
        "fitted_on": {name: dict(found[name]) for name in ("seen", "all") if name in found},
        "seconds": round(seconds, 2),
    }
