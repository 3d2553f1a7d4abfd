"""The share of each term in a step's gradient."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from perdure.engine.gradient_shares import EVERY, GradientShares, gradient_norm, shares_of

pytestmark = pytest.mark.unit


def test_by_hand() -> None:
    assert shares_of({"task": 1.0, "kl": 3.0}) == {"task": 0.25, "kl": 0.75}
    assert shares_of({"task": 0.0, "kl": 0.0}) == {"task": 0.0, "kl": 0.0}
    a, b = (torch.tensor(v, requires_grad=True) for v in (2.0, 5.0))
    both = 3 * a + 4 * b
    assert gradient_norm(both, [a, b]) == 5
    assert gradient_norm(both * 2, [a]) == 6  # the graph is there still
    assert gradient_norm(torch.tensor(1.0), [a]) == 0  # nothing that is trained is in it
    assert a.grad is None


def host(step: int = 1, limit: float = 1.0, every: int = 1, **options: Any) -> Any:
    args = {
        "logging_strategy": "steps", "max_grad_norm": limit, "gradient_checkpointing_kwargs": None,
    }  # fmt: skip
    return SimpleNamespace(
        state=SimpleNamespace(global_step=step, logging_steps=every),
        args=SimpleNamespace(**{**args, **options}), session=SimpleNamespace(accumulation=2),
        model=nn.Linear(1, 1, bias=False), is_deepspeed_enabled=False,
    )  # fmt: skip


def looked(shares: GradientShares) -> bool:
    """Whether a step is measured: two micro-batches, a term three times as steep as the task."""
    shares.begin_step()
    weight = shares.trainer.model.weight.sum()
    for _ in range(2):
        shares.look(weight, {"kl": 6 * weight})  # a term is divided by the micro-batches later
    return bool(shares._sums)


def test_a_logged_step_after_a_clipped_one_is_looked_at() -> None:
    shares = GradientShares(host())
    assert not looked(shares)  # no step was made before
    shares.norm = torch.tensor(0.5)
    assert not looked(shares)  # not clipped
    shares.norm = torch.tensor(2.0)
    assert looked(shares)
    assert shares.take() == {
        "method/task_gradient_share": pytest.approx(0.25),
        "method/kl_gradient_share": pytest.approx(0.75),
    }
    assert shares.take() == {}
    shares.trainer.state.global_step = EVERY
    assert not looked(shares)  # too soon
    shares.trainer.state.global_step = EVERY + 1
    assert looked(shares)
    shares.norm = torch.tensor(0.5)
    assert shares.take() == {}  # the step itself was not clipped


@pytest.mark.parametrize(
    "options",
    [
        {"step": 1, "every": 10},
        {"logging_strategy": "no"},
        {"limit": 0.0},
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ],
)
def test_no_other_step_is(options: dict[str, Any]) -> None:
    shares = GradientShares(host(**options))
    shares.norm = torch.tensor(2.0)
    assert not looked(shares)
    assert shares.take() == {}
