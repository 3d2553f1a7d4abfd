"""Measuring: scores of tasks and of general text, and what a stream of tasks did to them.

`ScoreMatrix` and the text metrics need no torch; what runs a model is imported when asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perdure.scoring.matrix import ScoreMatrix, ScoreMissing

if TYPE_CHECKING:
    from perdure.scoring.general import GeneralScore, general_loss
    from perdure.scoring.scorer import TaskScore, score_task

__all__ = [
    "GeneralScore",
    "ScoreMatrix",
    "ScoreMissing",
    "TaskScore",
    "general_loss",
    "score_task",
]

_WHERE = {
    "GeneralScore": "perdure.scoring.general",
    "general_loss": "perdure.scoring.general",
    "TaskScore": "perdure.scoring.scorer",
    "score_task": "perdure.scoring.scorer",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
