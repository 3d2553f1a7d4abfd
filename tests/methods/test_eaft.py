"""Token weights from the entropy of the model's own prediction."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_tasks import FIRST
from torch import tensor

from perdure.methods.eaft import EAFT, EAFTConfig, entropy_weight

pytestmark = pytest.mark.unit


def test_weights_by_hand() -> None:
    even = torch.zeros(1, 30)  # the top 20 of a flat prediction: ln 20 / ln 20
    sure = torch.full((1, 30), -100.0)
    sure[0, 4] = 100.0
    two = torch.full((1, 30), -100.0)
    two[0, :2] = 100.0  # ln 2 / ln 20 = 0.231378
    found = entropy_weight(torch.cat([even, sure, two]))
    torch.testing.assert_close(found, tensor([1.0, 0.0, 0.231378]), atol=1e-6, rtol=0)


def test_only_the_top_counts_and_is_renormalised() -> None:
    logits = tensor([[3.0, 3.0, 0.0, -1.0]]).log_softmax(-1)
    assert entropy_weight(logits, top=2).item() == pytest.approx(1.0)  # two equal ones
    p = tensor([3.0, 3.0, 0.0]).softmax(-1)
    assert entropy_weight(logits, top=3).item() == pytest.approx(
        float(-(p * p.log()).sum()) / math.log(3), abs=1e-6
    )


def test_alpha_is_an_exponent_and_a_small_vocabulary_is_no_problem() -> None:
    logits = torch.randn(5, 7)
    whole = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1) / math.log(7)
    torch.testing.assert_close(entropy_weight(logits), whole)
    torch.testing.assert_close(entropy_weight(logits, alpha=2.0), whole**2)
    assert torch.equal(entropy_weight(logits, alpha=0.0), torch.ones(5))


def test_no_gradient_flows_through_the_weight() -> None:
    logits = torch.randn(3, 30, requires_grad=True)
    assert not entropy_weight(logits).requires_grad


def test_with_the_learners_own_loss_it_is_the_weighted_mean(context: Any) -> None:
    method = EAFT(EAFTConfig())
    ctx = context(method)
    with torch.no_grad():
        main = ctx.forward([ctx.encode(row) for row in FIRST.train[:3]])
    found = main.nll.mean() + method.loss(ctx, main, None)["eaft"]
    total = 0.0
    for logits, label in zip(main.logits, main.labels, strict=True):  # slow and plain
        top = sorted(logits.softmax(-1).tolist())[-20:]
        p = [v / sum(top) for v in top]
        weight = -sum(v * math.log(v) for v in p) / math.log(20)
        total += weight * -math.log(logits.softmax(-1)[label])
    assert found.item() == pytest.approx(total / len(main.labels), rel=1e-5)
