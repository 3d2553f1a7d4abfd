"""Distances of states and of predictions, and how they are weighed, by hand.

The numbers are those of the notes on GeRe.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, tensor

from perdure.mechanisms.distances import distance, kl, kl_of_largest, state_weight
from perdure.mechanisms.state_cache import top

pytestmark = pytest.mark.unit


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found), torch.as_tensor(expected), atol=1e-6, rtol=1e-5, check_dtype=False
    )


def test_m12_weight_fixed_and_dynamic() -> None:
    ce, term = tensor(1.8), tensor(0.05)
    close(state_weight("dynamic", ce, term), 35.999993)
    close(ce + state_weight("dynamic", ce, term) * term, 3.6)
    close(ce + state_weight(100.0, ce, term) * term, 6.8)
    close(ce + state_weight(1.0, ce, term) * term, 1.85)
    usual = [state_weight(None, ce, term, learn=way) for way in ("sft", "rl", "another kind's")]
    assert usual == [100.0, 1.0, 100.0]
    close(tensor(2.4) + state_weight("dynamic", tensor(2.4), term) * term, 4.8)
    close(state_weight("dynamic", ce, tensor(0.583333)), 3.085714)
    close(state_weight("dynamic", ce, tensor(1e-6), 50.0), 50.0)  # trap 3: it would be 1.8e6


def test_m14_distillation() -> None:
    student = tensor([[0.0, 0, 0], [2, 0, 0]], requires_grad=True)
    teacher = tensor([[2.0, 0, 0], [2, 0, 0]])
    found = kl(student, teacher, 2.0)
    close(found, [0.123285, 0])
    found.mean().backward()
    close(student.grad[0] if student.grad is not None else 0, [-0.060696, 0.030348, 0.030348])
    close(4 * found.mean() * 2, 2 * 0.246569)
    close(kl(student, teacher)[0], 0.433040)
    every = top(teacher, 3, 2.0)
    close(kl_of_largest(student, *kept(every), 2.0), found)


def kept(found: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return found["values"], found["ids"].long(), found["lse"]


def test_kl_of_the_largest_logits_takes_the_rest_as_one_outcome() -> None:
    teacher = tensor([[0.6, 0.2, 0.1, 0.1]]).log()
    student = tensor([[0.3, 0.3, 0.1, 0.3]]).log()
    # outcomes: .6, .2 and the other .2, against .3, .3 and the other .4
    expected = 0.6 * math.log(0.6 / 0.3) + 0.2 * math.log(0.2 / 0.3) + 0.2 * math.log(0.2 / 0.4)
    found = kl_of_largest(student, *kept(top(teacher, 2, 1.0)))
    close(found, [expected])
    assert found < kl(student, teacher)


def test_m15_distances() -> None:
    h, x = tensor([[[-2.0, 2], [0, 0], [0, 0]]]), tensor([[[0.0, 0], [2, 0.5], [9, -9]]])
    mask = tensor([[True, True, False]])
    close(distance(x, h, mask, 1), [1.625])
    close(distance(x, h, mask, 2), [3.0625])
    every = torch.ones(1, 3).bool()  # what a mask that is forgotten would give
    close(distance(x, h, every, 1), [4.083333])
    close(distance(x, h, every, 2), [29.041666])
