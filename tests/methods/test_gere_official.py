"""`gere_official`: what is pooled over a micro-batch by hand, which rows halve, and its floors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_tasks import GENERAL, general_method
from test_gere import m13, moved, task_rows
from test_gere_family import VARIED, gradient
from test_gere_more import trainer_of
from torch import tensor

import perdure
from perdure.protocol.step import Step

pytestmark = pytest.mark.unit

MASK = tensor([[True, True, True], [True, False, False]])
"""Two rows, of three tokens and of one."""


def official(loss: str, **options: Any) -> Any:
    method = general_method("gere_official", mix="insert", loss=loss, **options)
    method.floor = {-1: 0.0}
    return method


@pytest.mark.parametrize(
    ("loss", "pooled", "rows"), [("l1", 2.0, [1.0, 5.0]), ("l2", 7.0, [1.0, 25.0])]
)
def test_a_distance_is_over_all_tokens_of_a_micro_batch(
    loss: str, pooled: float, rows: list[float]
) -> None:
    """Differences of 1 in the long row and of 5 in the short one: 16 / 8, not (1 + 5) / 2."""
    x = torch.zeros(2, 3, 2)
    x[0], x[1, 0], x[1, 1:] = 1.0, -5.0, 99.0  # what stands at padding does not count
    method = official(loss)
    method.states = SimpleNamespace(aligned=lambda *_: torch.zeros(2, 3, 2))
    extra: Any = SimpleNamespace(hidden={-1: x}, mask=MASK)
    assert method.term(None, extra, pool=True).tolist() == pytest.approx([pooled])
    assert method.term(None, extra).tolist() == pytest.approx(rows)  # scope: row


@pytest.mark.parametrize(("kl_mask", "count"), [(True, 3), (False, 6)])
def test_a_kl_is_over_all_tokens_of_a_micro_batch(kl_mask: bool, count: int) -> None:
    """M14: KLs of 0.123285 at two tokens of one row and 0 at one of the other."""
    student, teacher = tensor([[0.0, 0, 0]] * 2 + [[2.0, 0, 0]]), tensor([[2.0, 0, 0]] * 3) / 2
    method = official("kl", kl_mask=kl_mask, kl_top=3)
    ids = torch.arange(3).expand(3, 3)
    method.states = SimpleNamespace(largest=lambda _: (teacher, ids, teacher.logsumexp(-1)))
    extra: Any = SimpleNamespace(logits=student, mask=MASK)
    found = method.term(None, extra, pool=True)
    assert found.tolist() == pytest.approx([2 * 0.123285 / count], rel=1e-5)


def total(method: Any, ctx: Any, main: Any, general: Any) -> float:
    found = method.loss(ctx, main, general)
    return float(main.nll.mean() + torch.stack(list(found.values())).sum())


def test_a_row_left_over_is_a_micro_batch_as_the_others_are() -> None:
    """Of five rows in micro-batches of four the last is alone: its CE is halved all the same."""
    method, ctx, general = m13("micro")
    ctx.step = Step(micro_batches=2, whole=2)
    assert total(method, ctx, task_rows([3.0]), general) == pytest.approx((3 + 7) / 2 + 10)
    # One row each, of which an epoch's last step has two and the others five: nothing is halved.
    ctx.step = Step(micro_batches=2, whole=5)
    wanted = (3 + 7 + 10) * 2 / 3  # two task rows and a general one are three, and count alike
    assert total(method, ctx, task_rows([3.0]), general) == pytest.approx(wanted)


@pytest.mark.parametrize("alone", [False, True])
def test_the_parts_of_the_loss_have_the_names_of_the_family(alone: bool) -> None:
    """A task row of 3 and a general one of 7: (3 + 7) / 2, if they are one micro-batch or two."""
    method, ctx, general = m13("micro")
    logged: dict[str, Any] = {}
    ctx.log = logged.__setitem__
    if alone:
        ctx.batch_size = 1
    found = method.loss(ctx, task_rows([3.0]), general)
    assert float(logged["gere_label"]) == 7.0  # plain, as `general_replay` logs it
    assert float(logged["gere_margin"]) == pytest.approx(0.1)
    assert float(found["gere_label"]) == 3.5
    assert float(found["gere_scope"]) == -1.5
    assert float(found["gere_margin"]) == pytest.approx(5.0 if alone else 10.0)


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("loss", ["margin", "label", "kl"])
def test_its_log_is_that_of_the_others(tiny: Any, tmp_path: Path, micro: int, loss: str) -> None:
    """Whatever it computes, `gere_label` of the untouched model is the one `general_replay` logs,
    and the parts are the loss."""
    lines = []
    for name, options in (
        ("general_replay", {}), ("gere_official", {"loss": loss, "mix": "insert"}),
    ):  # fmt: skip
        trainer = trainer_of(
            *tiny, tmp_path, max_steps=1, per_device_train_batch_size=micro, learning_rate=0.0,
            gradient_accumulation_steps=4,
        )  # fmt: skip
        given = {"name": name, "max_tokens": 8, "insert": 3, **options}
        perdure.attach(trainer, given, general=GENERAL)
        trainer.train()
        lines.append(next(row for row in trainer.state.log_history if "loss" in row))
    plain, line = lines
    assert line["method/gere_label"] == pytest.approx(plain["method/gere_label"], rel=1e-5)
    weights = {k: v for k, v in line.items() if k.startswith("method/") and k[:-7] in line}
    assert {"method/gere_label_weight", "method/gere_scope_weight"} <= set(weights)
    assert weights["method/gere_scope_weight"] == 1
    parts = [weight * line[key[:-7]] for key, weight in weights.items()]
    assert line["task_loss"] + sum(parts) == pytest.approx(line["loss"], abs=6e-5)


def test_a_step_says_how_many_micro_batches_a_whole_one_has(tiny: Any, tmp_path: Path) -> None:
    trainer = trainer_of(
        *tiny, tmp_path, max_steps=4, per_device_train_batch_size=1, gradient_accumulation_steps=5
    )
    perdure.attach(trainer, {"name": "general_replay", "max_tokens": 8}, general=GENERAL)
    seen = []
    (method,) = trainer.methods  # type: ignore[attr-defined]
    draw = method.replay
    method.replay = lambda ctx: seen.append(ctx.step) or draw(ctx)
    trainer.train()
    assert [step.micro_batches for step in seen] == [5] * 15 + [1]  # 16 rows
    assert {step.whole for step in seen} == {5}


@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("scope", ["row", "micro"])
def test_an_unmoved_model_stays_unmoved_by_a_distance(made: Any, loss: str, scope: str) -> None:
    options = {"kind": "gere_official", "loss": loss, "scope": scope, "mix": "insert"}

    def largest(**more: Any) -> tuple[float, Any, Any]:
        method, ctx = made({"general": VARIED}, **options, samples=48, max_tokens=64, **more)
        found = []
        for step in range(6):
            ctx._session.end_step(step)
            term = method.term(ctx, ctx.forward(method.replay(ctx)), pool=scope == "micro")
            found.append(float(gradient(ctx.model, term.sum())))
        return max(found), method, ctx

    quiet, method, ctx = largest()
    assert quiet <= 1e-6
    assert method.floor[-1] == 2 * method.states.noise["-1"]["largest"] > 0
    if loss == "l1":  # whose sign counts however small a difference is
        assert largest(noise_floor=0.0)[0] > 1e-2
    moved(ctx)
    term = method.term(ctx, ctx.forward(method.replay(ctx)), pool=scope == "micro")
    assert float(gradient(ctx.model, term.sum())) > 1e-3
