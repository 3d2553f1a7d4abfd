"""Each task's update goes back as far as its own held-out rows allow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from small_tasks import FIRST
from torch import tensor

from perdure.mechanisms.interpolation import interpolate
from perdure.methods.rewind import Rewind, RewindConfig, smallest

pytestmark = pytest.mark.unit


def test_interpolation_by_hand() -> None:
    found = interpolate({"w": tensor([1.0, 2.0])}, {"w": tensor([3.0, 2.0])}, 0.25)
    assert found["w"].tolist() == [1.5, 2.0]
    new = {"head": tensor([7.0])}  # made during the task: there is nothing to go back to
    assert interpolate({}, new, 0.5) == new


@pytest.mark.parametrize(
    ("scores", "tolerance", "higher", "factor"),
    [
        ({0.2: 0.5, 0.5: 0.78, 0.8: 0.8, 1.0: 0.8}, 0.02, True, 0.5),
        ({0.2: 0.5, 0.5: 0.77, 0.8: 0.8, 1.0: 0.8}, 0.02, True, 0.8),
        ({0.2: 0.5, 0.5: 0.6, 0.8: 0.7, 1.0: 0.8}, 0.0, True, 1.0),
        ({0.2: 0.9, 0.5: 0.1, 0.8: 0.8, 1.0: 0.8}, 0.0, True, 0.2),  # not monotone
        ({0.2: 9.0, 0.5: 5.1, 0.8: 5.0, 1.0: 5.0}, 0.2, False, 0.5),  # perplexity
    ],
)
def test_the_smallest_factor_within_tolerance(
    scores: dict[float, float], tolerance: float, higher: bool, factor: float
) -> None:
    asked = []

    def score(a: float) -> float:
        asked.append(a)
        return scores[a]

    assert smallest([0.2, 0.5, 0.8], score, tolerance, higher) == pytest.approx(factor)
    assert asked == sorted([*asked[1:], 1.0], key=lambda a: (a != 1.0, a))  # no more than needed


def test_the_grid_is_checked_and_sorted() -> None:
    assert RewindConfig(grid=(0.9, 0.1)).grid == (0.1, 0.9)
    with pytest.raises(ValidationError, match="between 0"):
        RewindConfig(grid=(0.5, 1.5))


def test_weights_are_scored_at_each_factor_and_put_back(context: Any) -> None:
    method = Rewind(RewindConfig(grid=(0.25, 0.5, 0.75), rows=3))
    seen: list[float] = []

    def score(task: Any, rows: Any) -> float:
        assert task is FIRST
        assert len(rows) == 3
        # The norm's weights were 1 and are 3: their value tells the factor.
        seen.append((ctx.model.model.norm.weight.mean().item() - 1) / 2)
        return 0.9 if seen[-1] > 0.4 else 0.1

    ctx = context(method, task=FIRST, score=score)
    start = ctx.snapshot()
    method.begin_task(ctx)
    with torch.no_grad():
        ctx.model.model.norm.weight.fill_(3.0)
    end = ctx.snapshot()
    found = method.end_task(ctx)
    assert seen == pytest.approx([1.0, 0.25, 0.5])
    assert ctx._session.logged == {"method/rewind_factor": 0.5}
    assert found is not None
    assert found["model.norm.weight"].tolist() == [2.0] * 64
    for name, parameter in ctx.model.named_parameters():
        assert torch.equal(parameter, end[name])
        if name != "model.norm.weight":
            assert torch.equal(found[name], start[name])


def test_a_step_that_is_needed_whole_stays_whole(context: Any) -> None:
    method = Rewind(RewindConfig(tolerance=0.0))
    values = iter([0.9, *[0.5] * 8])
    ctx = context(method, score=lambda *_: next(values))
    method.begin_task(ctx)
    assert method.end_task(ctx) is None
    assert ctx._session.logged == {"method/rewind_factor": 1.0}
