"""Measuring: scores of tasks and of general text, and what a stream of tasks did to them.

`ScoreMatrix` and the text metrics need no torch; what runs a model is imported when asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.lazy import lazily
from perdure.scoring.matrix import ScoreMatrix, ScoreMissing

if TYPE_CHECKING:
    from perdure.scoring.perplexity import GeneralScore, general_loss
    from perdure.scoring.score import TaskScore, score_task

__all__ = [
    "GeneralScore",
    "ScoreMatrix",
    "ScoreMissing",
    "TaskScore",
    "general_loss",
    "score_task",
]

_HOME = {
    "GeneralScore": "perdure.scoring.perplexity",
    "general_loss": "perdure.scoring.perplexity",
    "TaskScore": "score",
    "score_task": "score",
}


__getattr__ = lazily(__name__, _HOME)
