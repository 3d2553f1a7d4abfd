"""A KL to the base model, or to the model as the last task left it, of the tokens being learned."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_tasks import FIRST, SECOND
from torch import tensor

from perdure.methods.kl import KL, KLConfig, kl_of_tokens

pytestmark = pytest.mark.unit


def estimates(log_prob: float, reference: float) -> list[float]:
    given = tensor([log_prob]), tensor([reference]), tensor([log_prob])
    return [float(kl_of_tokens(*given, kind)) for kind in ("k1", "k2", "k3", "k3_ratio")]


def test_estimates_by_hand() -> None:
    # M6 of the specification: d = reference - log p; -d, d^2 / 2, exp(d) - d - 1
    assert estimates(-1, -1) == [0, 0, 0, 0]
    assert estimates(-1, -1.5) == pytest.approx([0.5, 0.125, 0.106531, 0.106531], abs=1e-6)
    assert estimates(-1.5, -1) == pytest.approx([-0.5, 0.125, 0.148721, 0.148721], abs=1e-6)
    assert estimates(-3, -0.1)[2] == pytest.approx(14.274145, abs=1e-5)
    # a token that is twice as likely now as when it was sampled counts twice
    twice = kl_of_tokens(tensor([-1.0]), tensor([-1.5]), tensor([-1 - math.log(2)]), "k3_ratio")
    assert float(twice) == pytest.approx(2 * 0.106531, abs=1e-6)


P, Q = [0.7, 0.2, 0.1], [0.5, 0.3, 0.2]


def expected(estimator: str) -> tuple[float, list[float]]:
    """Mean of an estimate over tokens that P samples, and its gradient by P's logits."""
    logits, q = tensor(P).log().requires_grad_(), tensor(Q).log()
    log_p = logits.log_softmax(0)
    each = kl_of_tokens(log_p, q, log_p.detach(), estimator)
    mean = (tensor(P) * each).sum()  # tokens are drawn from P, which is not differentiated
    (gradient,) = torch.autograd.grad(mean, logits)
    return float(mean.detach()), gradient.tolist()


def test_expectations_over_samples_by_hand() -> None:
    # M7 of the specification
    reverse = sum(p * math.log(p / q) for p, q in zip(P, Q, strict=True))
    assert reverse == pytest.approx(0.085123, abs=1e-6)
    for kind in ("k1", "k3", "k3_ratio"):
        assert expected(kind)[0] == pytest.approx(reverse, abs=1e-6)
    assert expected("k3")[1] == pytest.approx([0.2, -0.1, -0.1], abs=1e-6)  # forward KL's: p - q
    by_ratio = [0.175945, -0.098118, -0.077827]
    assert expected("k3_ratio")[1] == pytest.approx(by_ratio, abs=1e-6)
    assert expected("k2")[1] == pytest.approx(by_ratio, abs=1e-6)
    assert expected("k1")[1] == pytest.approx([0, 0, 0], abs=1e-6)  # as the docstring says
    logits = tensor(P).log().requires_grad_()
    p = logits.softmax(0)
    (true,) = torch.autograd.grad((p * (p / tensor(Q)).log()).sum(), logits)
    assert true.tolist() == pytest.approx(by_ratio, abs=1e-6)


def moved(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)


@pytest.mark.parametrize("reference", ["base", "previous"])
def test_an_unmoved_model_costs_nothing(context: Any, reference: str) -> None:
    method = KL(KLConfig(reference=reference, beta=3.0))
    ctx = context(method, task=SECOND, task_index=1)
    main = ctx.forward([ctx.encode(row) for row in SECOND.train[:3]])
    assert method.loss(ctx, main, None)["kl"].item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k3_ratio"])
def test_on_answers_it_is_the_mean_over_their_tokens(context: Any, estimator: str) -> None:
    method = KL(KLConfig(estimator=estimator, beta=0.3))
    ctx = context(method)
    rows = [ctx.encode(row) for row in FIRST.train[:3]]
    old = ctx.forward(rows).log_probs.detach()
    moved(ctx.model)
    main = ctx.forward(rows)
    found = method.loss(ctx, main, None)["kl"]
    total, tokens = 0.0, 0
    for row in rows:  # slow and plain, token by token
        logits = ctx.model(tensor([row["input_ids"]])).logits[0].double()
        for i, label in enumerate(row["labels"][1:]):
            if label == -100:
                continue
            log_p = math.log(logits[i].softmax(-1)[label].item())
            d = old[tokens].item() - log_p
            total += {"k1": -d, "k2": d * d / 2}.get(estimator, math.exp(d) - d - 1)
            tokens += 1
    assert tokens == len(old)
    assert found.item() == pytest.approx(0.3 * total / tokens, rel=1e-4)
    found.backward()
    assert any(p.grad is not None and p.grad.any() for p in ctx.model.parameters())


def test_previous_is_the_model_before_the_task_and_base_is_that_of_the_start(context: Any) -> None:
    base = {n: p.detach().clone() for n, p in context().model.named_parameters()}
    moved(context().model)  # by an earlier task
    methods = [KL(KLConfig(beta=1, reference=which)) for which in ("base", "previous")]
    ctx = context(*methods, task=SECOND, task_index=1, base=lambda: base)
    main = ctx.forward([ctx.encode(row) for row in SECOND.train[:3]])
    to_base, to_previous = (m.loss(ctx, main, None)["kl"].item() for m in methods)
    assert to_previous == pytest.approx(0, abs=1e-9)
    assert to_base > 0.01
