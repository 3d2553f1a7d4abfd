"""Distillation from the model as the last task left it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_tasks import FIRST, SECOND
from torch import tensor

from perdure.methods.lwf import LwF, LwFConfig, lwf_loss

pytestmark = pytest.mark.unit


def test_loss_by_hand() -> None:
    # T = 2: (2, 0, 0) softens to softmax(1, 0, 0) = (.576117, .211942, .211942), (0, 0, 0) stays
    # a third each: KL = sum p ln(3 p) = 0.123285, times T^2
    found = lwf_loss(tensor([[0.0, 0, 0], [2, 0, 0]]), tensor([[2.0, 0, 0], [2, 0, 0]]), 2.0)
    torch.testing.assert_close(found, tensor([0.493138, 0.0]), atol=2e-6, rtol=0)


def test_gradient_is_that_of_the_papers_cross_entropy() -> None:
    student, teacher = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9)
    lwf_loss(student, teacher, 1.0).sum().backward()
    ours, student.grad = student.grad, None
    (-(teacher.softmax(-1) * student.log_softmax(-1)).sum()).backward()
    torch.testing.assert_close(ours, student.grad)


@pytest.mark.parametrize("index", [0, 1])
def test_an_unmoved_model_costs_nothing(context: Any, index: int) -> None:
    method = LwF(LwFConfig())
    ctx = context(method, task=SECOND, task_index=index)
    main = ctx.forward([ctx.encode(row) for row in SECOND.train[:3]])
    assert method.loss(ctx, main, None)["lwf"].item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("quiet", [True, False])
def test_the_earlier_model_has_no_dropout_unless_it_is_asked_for(context: Any, quiet: bool) -> None:
    """Released code leaves its teachers in train mode: `teacher_eval: false`."""
    method, modes = LwF(LwFConfig(teacher_eval=quiet)), list[bool]()
    ctx = context(method, task=SECOND, task_index=1)
    main = ctx.forward([ctx.encode(row) for row in SECOND.train[:3]])
    hook = ctx.model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    before = ctx.model.training
    method.loss(ctx, main, None)
    hook.remove()
    assert modes == [not quiet]
    assert ctx.model.training is before


def test_in_the_first_task_the_old_model_is_the_base(context: Any) -> None:
    method = LwF(LwFConfig())
    ctx = context(method)
    with torch.no_grad():
        for parameter in ctx.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    main = ctx.forward([ctx.encode(row) for row in FIRST.train[:3]])
    assert method.loss(ctx, main, None)["lwf"].item() > 0.01


def test_teacher_is_the_previous_model_at_the_same_tokens(context: Any) -> None:
    method = LwF(LwFConfig(weight=0.3, temperature=3.0))
    ctx = context(method, task=SECOND, task_index=1)
    rows = [ctx.encode(row) for row in FIRST.train[:3]]
    old = ctx.forward(rows).logits.detach()
    with torch.no_grad():
        for parameter in ctx.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    main = ctx.forward(rows)
    found = method.loss(ctx, main, None)["lwf"]
    total = 0.0
    for z_old, z in zip(old, main.logits, strict=True):  # slow and plain, token by token
        p, q = (z_old / 3).softmax(-1), (z / 3).softmax(-1)
        total += 9 * float((p * (p / q).log()).sum())
    assert found.item() == pytest.approx(0.3 * total / len(old), rel=1e-4)
    found.backward()
    assert any(p.grad is not None and p.grad.any() for p in ctx.model.parameters())
