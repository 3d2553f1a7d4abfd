"""Every figure of the score matrix: by hand, against a plain reference, and with cells missing."""

import json

import numpy as np
import pytest

from perdure.errors import PerdureError, UsageError
from perdure.scoring.matrix import ScoreMatrix, ScoreMissing

pytestmark = pytest.mark.unit


def filled(scores, higher=None):
    names = [f"t{j}" for j in range(len(scores[0]))]
    matrix = ScoreMatrix(names, higher)
    for after, row in enumerate(scores):
        for name, score in zip(names, row, strict=True):
            matrix.record(after, name, score)
    return matrix


#        t0   t1   t2
HAND = [[0.7, 0.1, 0.2],  # base
        [0.6, 0.3, 0.1],  # after t0
        [0.5, 0.9, 0.4],  # after t1
        [0.2, 0.7, 0.8]]  # after t2  # fmt: skip


def test_figures_by_hand():
    matrix = filled(HAND)
    assert matrix.average_accuracy() == pytest.approx((0.2 + 0.7 + 0.8) / 3)
    assert matrix.average_accuracy(after=2) == pytest.approx((0.5 + 0.9) / 2)
    assert matrix.average_accuracy(after=0) == pytest.approx((0.7 + 0.1 + 0.2) / 3)
    assert matrix.backward_transfer() == pytest.approx(((0.2 - 0.6) + (0.7 - 0.9)) / 2)
    assert matrix.forgetting() == pytest.approx(((0.6 - 0.2) + (0.9 - 0.7)) / 2)
    assert matrix.forward_transfer() == pytest.approx(((0.3 - 0.1) + (0.4 - 0.2)) / 2)
    assert matrix.learning_accuracy() == pytest.approx((0.6 + 0.9 + 0.8) / 3)


def test_forgetting_counts_the_base_model_only_by_name():
    assert filled(HAND).forgetting(from_base=True) == pytest.approx(((0.7 - 0.2) + 0.2) / 2)


def test_forgetting_counts_rows_before_the_task_was_learned():
    scores = [[0.0, 0.0, 0.0], [0.5, 0.8, 0.0], [0.5, 0.6, 0.0], [0.5, 0.6, 0.0]]
    assert filled(scores).forgetting() == pytest.approx((0.0 + 0.2) / 2)


def test_forgetting_is_negative_where_the_end_is_best():
    assert filled([[0.0, 0.0], [0.4, 0.0], [0.6, 0.5]]).forgetting() == pytest.approx(-0.2)


def test_forgetting_with_the_last_row_in_the_maximum():
    """SEQ*'s specification, example 10.12: its code has it, so a rise counts as no loss."""
    rising = filled([[0.0, 0.0], [50, 0.0], [60, 70]])
    assert (rising.forgetting(maximum="all"), rising.forgetting()) == (0.0, -10.0)
    assert filled(HAND).forgetting(maximum="all") == filled(HAND).forgetting()
    with pytest.raises(UsageError, match='maximum="last"'):
        filled(HAND).forgetting(maximum="last")


@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_a_plain_reference(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 7))
    r = rng.random((count + 1, count))
    matrix = filled(r.tolist())
    t = count
    assert matrix.average_accuracy() == pytest.approx(r[t].mean())
    assert matrix.backward_transfer() == pytest.approx(
        sum(r[t, j] - r[j + 1, j] for j in range(t - 1)) / (t - 1)
    )
    assert matrix.forgetting() == pytest.approx((r[1:t, : t - 1].max(0) - r[t, : t - 1]).mean())
    assert matrix.forward_transfer() == pytest.approx(
        sum(r[j, j] - r[0, j] for j in range(1, t)) / (t - 1)
    )
    assert matrix.learning_accuracy() == pytest.approx(np.diag(r[1:]).mean())
    assert np.array_equal(matrix.array(), r)


def test_a_missing_cell_is_missing_not_zero():
    matrix = ScoreMatrix(["topic", "language"])
    matrix.record(1, "topic", 0.0)
    assert np.isnan(matrix.array()).sum() == 5
    assert matrix.value(1, "topic") == 0.0
    with pytest.raises(ScoreMissing, match="'language' was never scored after 2 learned tasks"):
        matrix.value(2, "language")
    for figure in (matrix.average_accuracy, matrix.backward_transfer, matrix.forgetting,
                   matrix.forward_transfer, matrix.learning_accuracy):  # fmt: skip
        with pytest.raises(ScoreMissing, match="was never scored"):
            figure()
    assert set(matrix.summary().values()) == {None}
    assert issubclass(ScoreMissing, PerdureError)


def test_one_task_has_no_transfer_and_says_so():
    matrix = filled([[0.1], [0.9]])
    assert matrix.summary() == {
        "average_accuracy": 0.9,
        "average_incremental_accuracy": 0.9,
        "backward_transfer": None,
        "forgetting": None,
        "forward_transfer": None,
        "learning_accuracy": 0.9,
    }
    with pytest.raises(ScoreMissing, match="backward transfer is not defined"):
        matrix.backward_transfer()


def test_perplexity_stays_out_of_the_means():
    scores = [[9.0, 0.1, 0.2], [3.0, 0.3, 0.3], [5.0, 0.9, 0.4], [6.0, 0.7, 0.8]]
    matrix = filled(scores, [False, True, True])
    assert matrix.left_out == ("t0",)
    assert matrix.average_accuracy() == pytest.approx(0.75)
    assert matrix.backward_transfer() == pytest.approx(-0.2)
    assert matrix.forgetting() == pytest.approx(0.2)
    assert matrix.value(3, "t0") == 6.0
    with pytest.raises(ScoreMissing, match="not defined"):
        matrix.average_accuracy(after=1)


def test_json_there_and_back():
    matrix = filled(HAND, [True, True, False])
    gap = ScoreMatrix(["a"], [True])
    gap.record(1, "a", 0.5)
    for one in (matrix, gap):
        back = ScoreMatrix.from_json(one.to_json())
        assert np.array_equal(back.array(), one.array(), equal_nan=True)
        assert back.higher_is_better == one.higher_is_better
    assert json.loads(gap.to_json())["scores"] == [[None], [0.5]]


def test_from_rows_reads_scores_jsonl():
    rows = [
        {"kind": "task", "after": 0, "task": "a", "score": 0.1, "higher_is_better": True},
        {"kind": "general", "after": 0, "score": 23.4},
        {"kind": "task", "after": 0, "task": "p", "score": 8.0, "higher_is_better": False},
        {"kind": "task", "after": 1, "task": "a", "score": 0.2, "higher_is_better": True},
        {"kind": "task", "after": 1, "task": "a", "score": 0.4, "higher_is_better": True},
    ]
    matrix = ScoreMatrix.from_rows(rows)
    assert matrix.tasks == ("a", "p")
    assert matrix.higher_is_better == (True, False)
    assert matrix.value(1, "a") == 0.4
    assert ScoreMatrix.from_rows(rows, tasks=["a"]).array().shape == (2, 1)


@pytest.mark.parametrize(
    ("do", "says"),
    [
        (lambda m: m.record(3, "a", 0.1), "no row 3"),
        (lambda m: m.record(-1, "a", 0.1), "no row -1"),
        (lambda m: m.record(0, "c", 0.1), "no task 'c'"),
        (lambda m: m.record(0, "a", float("nan")), "is NaN"),
        (lambda m: ScoreMatrix(["a", "a"]), "different names"),
        (lambda m: ScoreMatrix(["a"], [True, False]), "2 values"),
    ],
)
def test_wrong_use_is_refused(do, says):
    with pytest.raises(UsageError, match=says):
        do(ScoreMatrix(["a", "b"]))


def test_a_lower_triangle_has_the_figures_whose_cells_are_there():
    matrix = ScoreMatrix(["a", "b", "c"])
    for after, row in enumerate([[90], [70, 80], [75, 60, 88]], 1):
        for task, score in zip("abc", row, strict=False):
            matrix.record(after, task, score)
    found = {k: None if v is None else round(v, 2) for k, v in matrix.summary().items()}
    assert found == {
        "average_accuracy": 74.33,
        "average_incremental_accuracy": 79.78,
        "backward_transfer": -17.5,
        "forgetting": 17.5,
        "forward_transfer": None,
        "learning_accuracy": 86.0,
    }
    with pytest.raises(ScoreMissing, match="'a' was never scored after 0"):
        matrix.forgetting(from_base=True)


SPECIFICATION = ((0.9,), (0.7, 0.8), (0.75, 0.6, 0.88))
"""SEQ*'s specification, example 10.12."""


def lower(rows=SPECIFICATION, **options):
    matrix = ScoreMatrix(["a", "b", "c"][: len(rows)], **options)
    for after, row in enumerate(rows, 1):
        for task, score in zip("abc", row, strict=False):
            matrix.record(after, task, score)
    return matrix


def test_average_incremental_accuracy_by_hand():
    matrix = lower()
    assert matrix.average_accuracy() == pytest.approx(0.743333, abs=1e-6)
    # (0.9 + (0.7 + 0.8) / 2 + (0.75 + 0.6 + 0.88) / 3) / 3
    assert matrix.average_incremental_accuracy() == pytest.approx(0.797778, abs=1e-6)
    assert matrix.forgetting() == pytest.approx(0.175)
    assert matrix.backward_transfer() == pytest.approx(-0.175)
    parts = matrix.parts("average_incremental_accuracy")
    # a's cells count 1, 1/2 and 1/3 of a step, of three steps and three tasks.
    assert parts["a"] == pytest.approx(3 * (0.9 + 0.7 / 2 + 0.75 / 3) / 3)
    assert sum(parts.values()) / 3 == pytest.approx(matrix.average_incremental_accuracy())
    assert len(matrix.cells("average_incremental_accuracy").used) == 6
    short = lower(SPECIFICATION[:2])
    assert short.average_incremental_accuracy() == pytest.approx((0.9 + 0.75) / 2)


def test_average_incremental_accuracy_against_a_plain_loop():
    rng = np.random.default_rng(3)
    for count in (1, 2, 5):
        scores = rng.random((count + 1, count))
        plain = 0.0
        for i in range(1, count + 1):
            plain += sum(scores[i][j] for j in range(i)) / i / count
        assert filled(scores.tolist()).average_incremental_accuracy() == pytest.approx(plain)


def test_a_task_that_is_only_scored_is_no_step():
    matrix = lower(learned=[True, False, True])
    # After a, and after c with a and c: b is neither a step nor in a mean.
    assert matrix.average_incremental_accuracy() == pytest.approx((0.9 + (0.75 + 0.88) / 2) / 2)


def test_accuracy_by_sample_counts_rows():
    matrix = lower()
    assert not matrix.uneven
    with pytest.raises(ScoreMissing, match="accuracy by sample"):
        matrix.accuracy_by_sample()
    uneven = ScoreMatrix(["a", "b"], rows=[30, 10])
    uneven.record(2, "a", 0.9)
    uneven.record(2, "b", 0.5)
    assert uneven.uneven
    assert uneven.average_accuracy() == pytest.approx(0.7)
    assert uneven.accuracy_by_sample() == pytest.approx((27 + 5) / 40)
    assert ScoreMatrix.from_json(uneven.to_json()).rows == (30, 10)


def test_forgetting_misses_a_score_after_the_task_was_learned():
    matrix = filled(HAND)
    gap = ScoreMatrix(matrix.tasks)
    for after in range(4):
        for task in matrix.tasks:
            if (after, task) != (2, "t0"):
                gap.record(after, task, matrix.value(after, task))
    with pytest.raises(ScoreMissing, match="'t0' was never scored after 2 learned tasks"):
        gap.forgetting()


def test_scores_of_another_range_are_in_no_mean() -> None:
    """Accuracy 0.5 and a length of 7 of 10 have no mean: 3.75 would be none of both."""
    facts = {"kind": "task", "higher_is_better": True}
    rows = [
        {**facts, "after": after, "task": task, "score": score, **more}
        for after in range(3)
        for task, score, more in (
            ("a", 0.25 * after, {}), ("wide", 5.0 + after, {"low": 0.0, "high": 10.0}),
        )
    ]  # fmt: skip
    matrix = ScoreMatrix.from_rows(rows)
    assert matrix.left_out == ("wide",)
    assert matrix.average_accuracy() == 0.5
    assert matrix.backward_transfer() == 0.25  # a: 0.25 just learned, 0.5 at the end
    again = ScoreMatrix.from_json(matrix.to_json())
    assert again.left_out == ("wide",)
    assert again.summary() == matrix.summary()


@pytest.mark.unit
def test_which_cells_a_figure_rests_on() -> None:
    """A task that joined later has no score in the rows between the base and its learning."""
    matrix = ScoreMatrix(["a", "b", "c"])
    for after in range(4):
        matrix.record(after, "a", 0.5)
        matrix.record(after, "c", 0.5)
    for after in (0, 2, 3):
        matrix.record(after, "b", 0.5)
    found = matrix.cells("forgetting")
    assert [(c.task, c.after) for c in found.missing] == [("b", 1)]
    assert [(c.task, c.after) for c in found.used] == [
        ("a", 1), ("a", 2), ("a", 3), ("b", 2), ("b", 3),
    ]  # fmt: skip
    assert [(c.task, c.after) for c in matrix.cells("average_accuracy").used] == [
        ("a", 3), ("b", 3), ("c", 3),
    ]  # fmt: skip
    forward = matrix.cells("forward_transfer")  # b just before it was learned is missing
    assert [(c.task, c.after) for c in forward.missing] == [("b", 1)]


def test_tasks_scored_on_the_same_rows_count_once() -> None:
    """warm and rl have one score, which fell by .2 while c was learned: that is one forgetting."""
    matrix = ScoreMatrix(["warm", "rl", "c"], tested_on=["rl", "rl", "c"])
    for after, line in enumerate([[0, 0, 0.1], [0.5, 0.5, 0.1], [0.8, 0.8, 0.1], [0.6, 0.6, 0.7]]):
        for task, score in zip(matrix.tasks, line, strict=True):
            matrix.record(after, task, score)
    for found in (matrix, ScoreMatrix.from_json(matrix.to_json())):
        assert found.left_out == ("warm",)
        assert found.forgetting() == pytest.approx(0.2)
        assert found.parts("backward_transfer") == pytest.approx({"rl": -0.2})
        assert found.average_accuracy() == pytest.approx((0.6 + 0.7) / 2)
        assert found.learning_accuracy() == pytest.approx((0.8 + 0.7) / 2)
    # Of steps after which something counts: .8, then the mean of .6 and .7.
    assert matrix.average_incremental_accuracy() == pytest.approx((0.8 + 0.65) / 2)
    scored = ScoreMatrix(["a", "b"], learned=[True, False], tested_on=["a", "a"])
    assert scored.left_out == ("b",)  # nothing was learned on those rows after a
