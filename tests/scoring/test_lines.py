"""Lines of scores.jsonl: their keys, and several measures of one task."""

import pytest

from perdure.scoring.lines import general_line, task_line
from perdure.scoring.lm_eval import HarnessScore
from perdure.scoring.perplexity import GeneralScore
from perdure.scoring.score import TaskScore

pytestmark = pytest.mark.unit


def test_a_tasks_line():
    found = TaskScore(0.5, "exact_match", True, [{"id": "a"}, {"id": "b"}])
    assert task_line(2, "topic", found, 1.23456) == {
        "kind": "task", "after": 2, "task": "topic", "metric": "exact_match",
        "higher_is_better": True, "score": 0.5, "rows": 2, "seconds": 1.23,
    }  # fmt: skip


def test_more_measures_stand_beside_the_score():
    found = TaskScore(0.5, "accuracy", True, [], {"within_task": 0.75})
    assert task_line(1, "topic", found, 0)["measures"] == {"accuracy": 0.5, "within_task": 0.75}


def test_lines_of_general_ability():
    text = GeneralScore(loss=1.5, perplexity=4.48, tokens=30, items=[])
    assert general_line(1, None, text, 0.126) == {
        "kind": "general", "after": 1, "metric": "perplexity", "score": 4.48, "loss": 1.5,
        "tokens": 30, "seconds": 0.13,
    }  # fmt: skip
    task = HarnessScore("acc", "none", True, 0.25, 8)
    assert general_line(0, "mmlu", task, 2) == {
        "kind": "general", "after": 0, "task": "mmlu", "metric": "acc", "filter": "none",
        "higher_is_better": True, "score": 0.25, "rows": 8, "seconds": 2,
    }  # fmt: skip
