"""Fisher values from single rows, and the quadratic penalty they weigh."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_tasks import FIRST, SECOND
from torch import Tensor, tensor

from perdure.methods.ewc import EWC, EWCConfig, add_penalty, ewc_gradient

pytestmark = pytest.mark.unit


def penalty(method: EWC, weights: dict[str, Tensor]) -> Tensor:
    """lam / 2 * sum F (w - c)^2 + its constant, in plain torch."""
    total = sum(
        (f * (weights[n] - method.center[n]).square()).sum() for n, f in method.fisher.items()
    )
    return method.config.lam / 2 * (total + method.constant)  # type: ignore[no-any-return]


def test_gradient_by_hand() -> None:
    w, f, c = tensor([1.0, 2.0]), tensor([0.5, 0.0]), tensor([0.0, 5.0])
    assert ewc_gradient(w, f, c, 4.0).tolist() == [2.0, 0.0]


def test_two_quadratics_are_one_by_hand() -> None:
    # 1 (w - 0)^2 + 3 (w - 4)^2 = 4 (w - 3)^2 + 12; where nothing counts, the newest center
    one, none = tensor([1.0, 0.0]), tensor([0.0, 9.0])
    total, center, constant = add_penalty(one, none, tensor([3.0, 0.0]), tensor([4.0, 7.0]))
    assert total.tolist() == [4.0, 0.0]
    assert center.tolist() == [3.0, 7.0]
    assert constant.item() == 12.0


def test_sum_over_tasks_is_the_sum_of_their_penalties() -> None:
    f, c = torch.rand(3, 20), torch.randn(3, 20)
    total, center, constant = f[0], c[0], tensor(0.0)
    for t in (1, 2):
        total, center, rest = add_penalty(total, center, f[t], c[t])
        constant = constant + rest
    w = torch.randn(20)
    apart = sum((f[t] * (w - c[t]).square()).sum() for t in range(3))
    torch.testing.assert_close((total * (w - center).square()).sum() + constant, apart)


def test_fisher_is_the_mean_of_squared_gradients_of_single_rows(context: Any) -> None:
    method = EWC(EWCConfig(rows=3))
    ctx = context(method, task=FIRST)
    method.end_task(ctx)
    rows = [ctx.encode(row) for row in FIRST.train]
    gradients = []
    for row in rows:  # plain: log-likelihood of the whole answer, by an ordinary backward
        ctx.model.zero_grad()
        logits = ctx.model(tensor([row["input_ids"]])).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, tensor(row["labels"][1:]), reduction="sum")
        loss.backward()
        gradients.append({n: p.grad.clone() for n, p in ctx.model.named_parameters()})
    ctx.model.zero_grad()
    # Which three rows were drawn is the seed's business: one choice of three must fit.
    import itertools

    name = "model.layers.0.self_attn.q_proj.weight"
    fits = [
        chosen
        for chosen in itertools.combinations(range(len(rows)), 3)
        if torch.allclose(
            method.fisher[name],
            torch.stack([gradients[i][name] for i in chosen]).square().mean(0),
            rtol=1e-3, atol=1e-9,
        )
    ]  # fmt: skip
    assert fits
    for n, f in method.fisher.items():
        expected = torch.stack([gradients[i][n] for i in fits[0]]).square().mean(0)
        torch.testing.assert_close(f, expected, rtol=1e-3, atol=1e-7)
        assert torch.equal(method.center[n], dict(ctx.model.named_parameters())[n])
    assert all(p.grad is None for p in ctx.model.parameters())


@pytest.mark.parametrize("tasks", ["sum", "online"])
def test_gradients_are_those_of_the_penalty_which_is_logged(context: Any, tasks: str) -> None:
    decay = 0.5 if tasks == "online" else 1.0
    method = EWC(EWCConfig(lam=3.0, rows=2, tasks=tasks, decay=decay))
    method.end_task(context(method, task=FIRST))
    first = dict(method.fisher)
    ctx = context(method, task=SECOND, task_index=1)
    with torch.no_grad():
        for parameter in ctx.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    method.end_task(ctx)
    name = "model.norm.weight"
    if tasks == "online":
        assert torch.equal(method.center[name], dict(ctx.model.named_parameters())[name])
        fresh = EWC(EWCConfig(rows=2))
        fresh.end_task(ctx)
        torch.testing.assert_close(method.fisher[name], 0.5 * first[name] + fresh.fisher[name])
    ctx = context(method, task=SECOND, task_index=2)
    params = dict(ctx.model.named_parameters())
    weights = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
    value = penalty(method, weights)
    value.backward()
    for p in params.values():
        p.grad = torch.ones_like(p)
    params["model.norm.weight"].grad = None  # took no part in this step
    found = dict(method.gradients(ctx, params))
    assert "model.norm.weight" not in found
    for n, gradient in found.items():
        torch.testing.assert_close(gradient, 1 + weights[n].grad, rtol=1e-4, atol=1e-7)
    params["model.norm.weight"].grad = torch.ones(64)
    dict(method.gradients(ctx, params))
    assert ctx._session.logged["method/ewc_penalty"] == pytest.approx(value.item(), rel=1e-4)


def test_nothing_is_pulled_before_a_task_is_over(context: Any) -> None:
    method = EWC(EWCConfig())
    ctx = context(method)
    assert list(method.gradients(ctx, dict(ctx.model.named_parameters()))) == []
    assert ctx._session.logged == {}
