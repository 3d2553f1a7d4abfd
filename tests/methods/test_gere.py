"""GeRe against hand-computed examples (numbered as in the notes on its code) and real states.

Tolerance 1e-6 unless said. "+-1" is the pair of thresholds n = -1, p = 1; a state's flag is 0 in
the middle, 1 low, 2 high, 3 both.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import family
from small_tasks import FIRST, GENERAL, SECOND, general_method
from torch import Tensor, tensor

from perdure.engine import distillation
from perdure.engine.general_texts import how_many, repeats
from perdure.engine.session import TaskSession
from perdure.errors import RunError
from perdure.mechanisms import state_cache
from perdure.mechanisms.distances import (
    distance,
    kl,
    kl_of_largest,
    micro_loss,
    state_weight,
)
from perdure.mechanisms.margin import excess, flags, margin, outside, pack, plain, unpack
from perdure.mechanisms.state_cache import alike, thresholds, top
from perdure.methods import gere
from perdure.methods.gere import GeRe, GeReConfig
from perdure.protocol.batch import ForwardOutput
from perdure.protocol.step import Phase, Step
from perdure.streams.task import GeneralText

pytestmark = pytest.mark.unit

STATES = tensor([[1.0, 0, 2], [3, 0, 2], [5, 4, 2], [7, 4, 2]])
NOW = tensor([[2, 0.5, 2], [3, -1, 2.5], [6.5, 3, 1.5], [5, 4.5, 2]])
ONE = (tensor([-1.0]), tensor([1.0]))


def limits(states: Tensor, k: float = 1.0) -> tuple[Tensor, Tensor]:
    found = thresholds(lambda: [states], k)
    return found["n"], found["p"]


def one_row(
    x: Any, h: Any, n: Tensor, p: Tensor, over: str = "violating", mask: Any = None
) -> tuple[float, Tensor]:
    """Margin and its gradient for one row of states x, h (tokens, hidden)."""
    now = torch.as_tensor(x).float().clone().requires_grad_()
    real = torch.ones(len(now)) if mask is None else torch.as_tensor(mask)
    coded = pack(flags(torch.as_tensor(h), n, p)).unsqueeze(0)
    loss = margin(now.unsqueeze(0), coded, real.bool().unsqueeze(0), n, p, over)[0]
    loss.backward()
    assert now.grad is not None
    if over == "violating":  # as it is written for readers, in plain torch on whole states
        again = torch.as_tensor(x).float().clone().requires_grad_()
        read = gere.margin(again, torch.as_tensor(h), real, n, p)
        (gradient,) = torch.autograd.grad(read, again)
        close(read, loss)
        close(gradient, now.grad)
    return loss.item(), now.grad


def by_full_states(x: Tensor, h: Tensor, mask: Tensor, n: Tensor, p: Tensor) -> Tensor:
    """The official form: three indicator-weighted terms on the states themselves, one row."""
    low, high = (h <= n), (h >= p)
    mid = (n < h) & (h < p)
    e = low * torch.relu(x - n) + high * torch.relu(p - x)
    e = (e + mid * (torch.relu(x - p) + torch.relu(n - x))) * mask.unsqueeze(-1)
    return e.sum() / ((e != 0).sum() + 1e-8)


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found), torch.as_tensor(expected), atol=1e-6, rtol=1e-5, check_dtype=False
    )


def test_m1_thresholds() -> None:
    found = thresholds(lambda: [STATES], 1.0)
    close(found["mean"], [4.0, 2, 2])
    close(found["std"] ** 2, [5.0, 4, 0])
    close(found["n"], [1.763932, 0, 2])
    close(found["p"], [6.236068, 4, 2])
    n, p = limits(STATES, 2.0)
    close(n, [-0.472136, -2, 2])
    close(p, [8.472136, 6, 2])


def test_m2_flags() -> None:
    assert flags(STATES, *limits(STATES)).tolist() == [[1, 1, 3], [0, 1, 3], [0, 2, 3], [2, 2, 3]]


def test_m3_margin_with_all_reductions() -> None:
    n, p = limits(STATES)
    loss, gradient = one_row(NOW, STATES, n, p)
    close(loss, 0.605153)
    assert (gradient != 0).sum() == 7
    close(gradient.abs().max(), 0.142857)
    close(one_row(NOW, STATES, n, p, "elements")[0], 0.353006)
    close(one_row(NOW, STATES, n, p, "tokens")[0], 1.059017)
    close(one_row(NOW, STATES, n, p, mask=[1, 1, 0, 0])[0], 0.412023)
    close(one_row(NOW, STATES, *limits(STATES, 2.0))[0], 0.5)


@pytest.mark.parametrize(
    ("h", "losses", "slopes"),
    [
        (-2.0, [0, 0, 1, 2, 4], [0, 0, 1, 1, 1]),
        (0.0, [2, 0, 0, 0, 2], [-1, 0, 0, 0, 1]),
        (2.0, [4, 2, 1, 0, 0], [-1, -1, -1, 0, 0]),
    ],
)
def test_m4_one_element(h: float, losses: list[float], slopes: list[float]) -> None:
    for x, loss, slope in zip([-3.0, -1, 0, 1, 3], losses, slopes, strict=True):
        found, gradient = one_row([[x]], [[h]], *ONE)
        close(found, loss)
        close(gradient, [[slope]])


def test_m5_a_neuron_that_never_moved_is_held_from_both_sides() -> None:
    two = tensor([2.0])
    for x, loss, slope in [(1.5, 0.5, -1.0), (2.0, 0.0, 0.0), (2.5, 0.5, 1.0)]:
        assert one_row([[x]], [[2.0]], two, two) == (loss, tensor([[slope]]))


def test_m6_padding_is_left_out() -> None:
    h, x = [[-2.0, 2], [0, 0], [5, 5]], [[0.0, 0], [2, 0.5], [9, -9]]
    loss, gradient = one_row(x, h, *ONE, mask=[1, 1, 0])
    close(loss, 1.0)
    close(gradient, [[1 / 3, -1 / 3], [1 / 3, 0], [0, 0]])


def test_m7_one_token_has_states_but_nothing_to_predict() -> None:
    loss, gradient = one_row([[3.0, -3, 0]], [[0.0, 0, 0]], *ONE)
    close(loss, 2.0)
    close(gradient, [[0.5, -0.5, 0]])
    batch = {"input_ids": tensor([[5]]), "labels": tensor([[5]])}
    row = {"input_ids": [5], "labels": [5]}
    seen = ForwardOutput(torch.nn.Identity(), batch, rows=[row])
    assert seen.per_row(torch.zeros(0)).tolist() == [0.0]


@pytest.mark.parametrize("over", ["violating", "elements", "tokens"])
@pytest.mark.parametrize(("x", "mask"), [(0.5, 1), (5.0, 0)])
def test_m8_no_violation_and_nothing_real(over: str, x: float, mask: int) -> None:
    loss, gradient = one_row([[x]], [[0.0]], *ONE, over, mask=[mask])
    assert loss == 0
    assert gradient.tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("over", "loss", "slope"),
    [("violating", 0.2, 1.0), ("elements", 0.025, 0.125), ("tokens", 0.1, 0.5)],
)
def test_m9_reductions(over: str, loss: float, slope: float) -> None:
    x = torch.zeros(2, 4)
    x[0, 1] = 1.2
    found, gradient = one_row(x, torch.zeros(2, 4), *ONE, over)
    close(found, loss)
    close(gradient[0, 1], slope)


def test_m10_a_tiny_violation_halves_a_real_one() -> None:
    x = torch.zeros(2, 4)
    x[0, 1], x[1, 2] = 1.2, 1.000001
    loss, gradient = one_row(x, torch.zeros(2, 4), *ONE)
    close(loss, 0.1000005)
    close([gradient[0, 1], gradient[1, 2]], [0.5, 0.5])


def test_m11_states_on_a_threshold() -> None:
    h, x = [[-1.0, 1, -1, 1]], [[-0.9, 0.9, -1, 1]]
    assert flags(tensor(h), *ONE).tolist() == [[1, 2, 1, 2]]
    loss, gradient = one_row(x, h, *ONE)
    close(loss, 0.1)
    close(gradient, [[0.5, -0.5, 0, 0]])
    inside = tensor([[-0.99999994, 0.99999994]])
    assert flags(inside, *ONE).tolist() == [[0, 0]]


def test_m12_weight_fixed_and_dynamic() -> None:
    ce, term = tensor(1.8), tensor(0.05)
    close(state_weight("dynamic", ce, term), 35.999993)
    close(ce + state_weight("dynamic", ce, term) * term, 3.6)
    close(ce + state_weight(100.0, ce, term) * term, 6.8)
    close(ce + state_weight(1.0, ce, term) * term, 1.85)
    close(tensor(2.4) + state_weight("dynamic", tensor(2.4), term) * term, 4.8)
    close(state_weight("dynamic", ce, tensor(0.583333)), 3.085714)
    close(state_weight("dynamic", ce, tensor(1e-6), 50.0), 50.0)  # trap 3: it would be 1.8e6
    close(micro_loss(tensor(1.2), tensor(2.4), term, 100.0), 6.8)
    close(micro_loss(None, tensor(2.4), term, 100.0), 7.4)


@pytest.mark.parametrize(("scope", "total"), [("row", 5.333333), ("micro", 15.0)])
def test_m13_the_general_rows_share(scope: Any, total: float) -> None:
    """Five task rows of one token and a general one, in one micro-batch of six."""
    method, ctx, general = m13(scope)
    main = task_rows([1.0, 2, 3, 4, 5])
    found = method.loss(ctx, main, general)
    # Per row the task's mean is over the task's rows; the spec's figure has it over all six.
    tasks = main.nll.mean() * (5 / 6 if scope == "row" else 1)
    close(tasks + torch.stack(list(found.values())).sum(), total)
    if scope == "micro":  # a micro-batch without general rows is its own mean
        close(method.loss(ctx, main, None)["gere_scope"], 0)


@pytest.mark.parametrize("rows_first", [1, 5])
def test_m13_in_micro_batches_of_one(rows_first: int) -> None:
    """Six of one row, the general one never halved, wherever it runs; and the mean is over six."""
    method, ctx, general = m13("micro")
    ctx.step = Step(micro_batches=5)
    total = torch.zeros(())
    for number in (1.0, 2.0, 3.0, 4.0, 5.0):
        main = task_rows([number])
        found = method.loss(ctx, main, general if number == rows_first else None)
        total += main.nll.mean() + torch.stack(list(found.values())).sum()
    close(total / 5, 5.333333)


def m13(scope: Any) -> tuple[Any, Any, Any]:
    """The method, the context, and a general row of a CE of 7 and a margin of 0.1."""
    method = general_method("gere_official", insert=1, weight=100.0, scope=scope, mix="insert")
    method.term = lambda *_, **__: tensor([0.1])
    extra = SimpleNamespace(
        mask=torch.ones(1, 3), nll=tensor([7.0]), row_nll=tensor([7.0]), step_rows=1,
        row_mean=lambda v: v.mean(),
    )  # fmt: skip
    ctx = SimpleNamespace(batch_size=5, step=Step(), log=lambda *_: None)
    return method, ctx, extra


def task_rows(nll: list[float]) -> Any:
    """Rows of one token each, as the trainer has them: it takes their mean."""
    mask = torch.ones(len(nll), 1)
    return SimpleNamespace(nll=tensor(nll), mask=mask, token_mean=lambda v: v.mean())


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


def test_m16_m17_m19_statistics_hold_where_one_fp32_pass_fails() -> None:
    for constant, tokens in ((7.3, 3), (1000.1, 7)):
        assert thresholds(lambda c=constant, t=tokens: [torch.full((t, 1), c)], 1.0)["std"] == 0
    narrow = tensor([[1000 - 1e-5], [1000 + 1e-5]], dtype=torch.float64)
    n, p = limits(narrow)
    assert n.item() == p.item() == 1000.0
    for constant, tokens in ((7.3, 3), (1000.1, 7)):
        states = torch.full((tokens, 1), constant)
        rough = thresholds(lambda s=states: [s], 1.0, one_pass=True)
        # The code's one pass: a variance of -1.144409e-5 and -0.125 (or so: order counts).
        assert all(rough[name].isnan() for name in ("std", "n", "p"))
    close(thresholds(lambda: [STATES], 1.0, one_pass=True)["std"], [2.236068, 2, 0])
    texts = [tensor([[1.0], [3], [5]]), tensor([[9.0]])]
    found = thresholds(lambda: texts, 1.0)
    close(found["mean"], [4.5])
    close(found["std"], [2.958040])


def test_m18_padding_is_in_no_statistic(made: Any) -> None:
    """Texts of one and of many tokens, each alone: what padding in a batch would have shifted."""
    method, ctx = made(max_tokens=64)
    lengths = {len(row["input_ids"]) for row in method._rows}
    assert len(lengths) > 1
    norm = ctx.model.model.norm
    states: list[Tensor] = []
    hook = norm.register_forward_hook(lambda *a: states.append(a[2][0].detach()))
    with torch.no_grad():
        for row in method._rows:
            ctx.model(input_ids=tensor([row["input_ids"]]))
    hook.remove()
    n, p = method.states.limits(-1, torch.device("cpu"))
    close(torch.stack([n, p]), torch.stack(limits(torch.cat(states))))


def test_m20_m21_codes() -> None:
    assert pack(tensor([1, 0, 2, 3], dtype=torch.uint8)).tolist() == [225]
    assert pack(tensor([1, 0, 2, 3, 1], dtype=torch.uint8)).tolist() == [225, 1]
    values = torch.randint(0, 4, (3, 7), dtype=torch.uint8)
    assert torch.equal(unpack(pack(values), 7), values)
    state, high = tensor([0.25525]), tensor([0.25531482])
    assert flags(state, -high, high).item() == 0
    assert flags(state.bfloat16().float(), -high, high).item() == 2  # too late once rounded


def test_m22_two_bits_give_what_full_states_give_bit_for_bit() -> None:
    i = torch.arange(80, dtype=torch.float32)
    h = torch.sin(i).view(2, 5, 8)
    x = (torch.sin(i) + 0.4 * torch.cos(3 * i)).view(2, 5, 8)
    mask = tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    found = thresholds(lambda: [h[0], h[1, :3]], 1.0)
    n, p = found["n"], found["p"]
    close(
        [found["mean"][0], found["std"][0], n[0], p[0]], [-0.024674, 0.670673, -0.695346, 0.645999]
    )
    coded = flags(h, n, p)
    assert torch.bincount(coded[mask].flatten().long(), minlength=4).tolist() == [34, 16, 14, 0]
    # The example pools its two rows; as one row of eight tokens they are the same elements.
    now, now_full = x[mask].clone().requires_grad_(), x[mask].clone().requires_grad_()
    real = torch.ones(8).bool()
    two_bits = unpack(pack(coded[mask]), 8)
    assert torch.equal(two_bits, coded[mask])
    ours = margin(now[None], pack(coded[mask])[None], real[None], n, p, "violating")[0]
    full = by_full_states(now_full, h[mask], real, n, p)
    ours.backward()
    full.backward()
    assert ours.item() == full.item()
    assert now.grad is not None
    assert torch.equal(now.grad, now_full.grad)
    close(ours.item(), 0.164832)
    assert (now.grad != 0).sum() == 12
    close(now.grad.abs().max(), 0.083333)
    rows = margin(x, pack(coded), mask, n, p, "elements")
    close((rows * mask.sum(1)).sum() / 8, 0.030906)


def moved_states() -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(3)
    h = torch.randn(3, 7, 21, generator=g)
    x = h + 0.7 * torch.randn(3, 7, 21, generator=g)
    x[0, 0, 0], x[1, 1, 1] = h.min(), h.max()
    mask = torch.arange(7) < tensor([[7], [4], [0]])
    n, p = limits(h[mask])
    return x, pack(flags(h, n, p)), mask, n, p


def test_the_margin_as_it_is_read_equals_the_fused_one() -> None:
    """Of whole states, in plain torch, with padding, a row without any, and no width."""
    g = torch.Generator().manual_seed(4)
    h = torch.randn(3, 7, 21, generator=g)
    x = h + 0.7 * torch.randn(3, 7, 21, generator=g)
    mask = torch.arange(7) < tensor([[7], [4], [0]])
    n, p = limits(h[mask])
    n[3] = p[3] = h[0, 0, 3]
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    read = gere.margin(one, h, mask, n, p)
    fused = margin(two, pack(flags(h, n, p)), mask, n, p, "violating")
    close(read, fused)
    assert read[0] > 0
    assert read[2] == 0
    weights = tensor([1.0, 2.0, 3.0])
    for loss in (read, fused):
        (loss * weights).sum().backward()
    close(one.grad, two.grad)


def test_counts_of_the_fused_margin_are_those_of_plain_torch() -> None:
    x, codes, mask, n, p = moved_states()
    e = excess(x, unpack(codes, 21), n, p).abs() * mask.unsqueeze(-1)
    for floor in (0.0, 0.2):
        held = e * (e > floor)
        total, count, flips = outside(x, codes, mask, n, p, floor)
        close(total, held.sum((1, 2)))
        close(count, (held > 0).sum((1, 2)).float())
    now = flags(x, n, p) != unpack(codes, 21)
    close(flips, (now & mask.unsqueeze(-1)).sum((1, 2)).float())


def test_the_kernel_equals_plain_torch() -> None:
    """In Triton's interpreter; on a GPU the same test runs the compiled kernel."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no GPU: set TRITON_INTERPRET=1 to run the kernel in Triton's interpreter")
    from perdure.mechanisms.margin_triton import fused

    device = "cuda" if torch.cuda.is_available() else "cpu"
    for dtype in (torch.float32, torch.bfloat16):
        for floor in (0.0, 0.2):
            x, *rest = (t.to(device) for t in moved_states())
            for found, expected in zip(
                fused(x.to(dtype), *rest, floor), plain(x.to(dtype), *rest, floor), strict=True
            ):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# --- on a real (tiny) model


def terms(method: GeRe, ctx: Any) -> dict[str, Tensor]:
    return dict(method.loss(ctx, None, ctx.forward(method.replay(ctx))))


def test_an_unmoved_model_violates_nothing(made: Any) -> None:
    method, ctx = made()
    # Drawn rows are padded to one batch, so this also says that padding does not matter.
    assert terms(method, ctx)["gere_margin"].item() < 1e-6
    method, ctx = made(insert=1)
    value = terms(method, ctx)["gere_margin"]
    assert value.item() == 0.0
    value.backward()
    assert all(p.grad is None or not p.grad.any() for p in ctx.model.parameters())


@pytest.mark.parametrize("layers", [(-1,), (0, -1)])
def test_loss_equals_a_plain_reference_after_the_model_moved(made: Any, layers: Any) -> None:
    method, ctx = made(layers=layers, weight=3.0, label_weight=0.5)
    model, rows = ctx.model, method.replay(ctx)
    assert len(rows) == 4

    def states(row: Any) -> list[Tensor]:
        out = model(tensor([row["input_ids"]]), output_hidden_states=True).hidden_states
        return [out[-1][0] if k == -1 else out[k + 1][0] for k in layers]

    with torch.no_grad():
        every = [states(row) for row in method._rows]
        bases = {row["_text"]: states(row) for row in rows}
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        label = held = 0.0
        for row in rows:
            logits = model(tensor([row["input_ids"]])).logits[0, :-1]
            label += torch.nn.functional.cross_entropy(logits, tensor(row["input_ids"][1:])).item()
            for j, x in enumerate(states(row)):
                n, p = limits(torch.cat([s[j] for s in every]))
                full = by_full_states(x, bases[row["_text"]][j], torch.ones(len(x)), n, p)
                held += full.item() / len(layers)
        found = terms(method, ctx)
    # batch 8 and 4 general rows: each counts 1/12
    assert found["gere_label"].item() == pytest.approx(0.5 * label / 12, rel=1e-4)
    assert found["gere_margin"].item() == pytest.approx(3.0 * held / 12, rel=1e-4)


def moved(ctx: Any, size: float = 0.05) -> None:
    with torch.no_grad():
        for parameter in ctx.model.parameters():
            parameter += size * torch.randn_like(parameter)


def test_kl_equals_a_plain_reference(made: Any) -> None:
    method, ctx = made(kind="gere_kl", weight=2.0, top=512, insert=2)
    assert terms(method, ctx)["gere_kl"].item() == pytest.approx(0, abs=1e-6)
    rows = method.replay(ctx)
    with torch.no_grad():
        before = [ctx.forward([row]).logits for row in rows]
        moved(ctx)
        found = terms(method, ctx)["gere_kl"].item()
        after = [ctx.forward([row]).logits for row in rows]
    each = [kl(b, a, 2.0).mean() for a, b in zip(before, after, strict=True)]
    assert found == pytest.approx(2.0 * sum(e.item() for e in each) / 10, rel=1e-4)
    coarse, ctx = made(kind="gere_kl", weight=2.0, top=20, insert=2)  # distilled anew, moved on
    moved(ctx)
    with torch.no_grad():
        assert terms(coarse, ctx)["gere_kl"].item() > 0


@pytest.mark.parametrize(
    ("one", "two", "factor"),
    [
        (("gere_kl", {}), ("gere_kl", {"t2": True}), 4.0),
        (("gere_kl", {}), ("gere_official", {"loss": "kl", "kl_mask": False}), 0.0),
        (("gere_kl", {}), ("gere_official", {"loss": "kl", "kl_mask": True, "kl_t2": True}), 4.0),
    ],
)
def test_options_of_kl(made: Any, one: Any, two: Any, factor: float) -> None:
    kind, options = two
    scope = {"scope": "row", "mix": "insert"} if kind == "gere_official" else {}
    method, ctx = made(kind=one[0], insert=2, weight=1.0, **one[1])
    other, _ = made(kind=kind, insert=2, weight=1.0, **options, **scope)
    moved(ctx)
    with torch.no_grad():
        extra = ctx.forward(method.replay(ctx))
        found, others = (m.held(ctx, extra)["kl"] for m in (method, other))
    lengths = extra.mask.sum(1)
    close(others, found * (factor or (lengths - 1) / lengths.max()))


@pytest.mark.parametrize("loss", ["l1", "l2", "label"])
def test_other_losses(made: Any, loss: str) -> None:
    of = {"label": {"kind": "general_replay"}}.get(
        loss, {"kind": "gere_distance", "norm": loss, "weight": 100.0}
    )
    method, ctx = made(**of, insert=2)
    assert ("gere_" + loss) in terms(method, ctx)
    with torch.no_grad():
        rows, power = method.replay(ctx), 1 if loss == "l1" else 2
        before = [ctx.forward([row]).hidden.get(-1) for row in rows]
        for parameter in ctx.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        found = terms(method, ctx)
        if loss != "label":
            after = [ctx.forward([row]).hidden[-1] for row in rows]
            gaps = [(a - b).abs().pow(power).mean() for a, b in zip(after, before, strict=True)]
            assert found[f"gere_{loss}"].item() == pytest.approx(
                100 * sum(g.item() for g in gaps) / 10, rel=1e-4
            )
        else:
            assert method.requires.hidden == ()


def test_dynamic_weight_makes_the_term_as_large_as_the_text_loss(made: Any) -> None:
    method, ctx = made(weight="dynamic")
    with torch.no_grad():
        for parameter in ctx.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        found = terms(method, ctx)
    assert found["gere_margin"].item() == pytest.approx(found["gere_label"].item(), rel=1e-5)


def test_the_cache_is_made_once_and_survives_interruption(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, _ = made()
    folder = method.states.folder
    files = {p.name for p in folder.iterdir()}
    assert files == {"manifest.json", "thresholds.safetensors", "00000.safetensors"}
    original = {p.name: p.read_bytes() for p in folder.iterdir()}

    calls: list[int] = []
    forward = TaskSession.forward

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return forward(self, *args, **options)

    monkeypatch.setattr(TaskSession, "forward", counted)
    stop = 0
    made()
    assert not calls  # read from disk
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    stop = 4
    with pytest.raises(KeyboardInterrupt):
        made()
    assert not folder.exists()
    calls.clear()
    stop = 0
    made()
    # Three texts were there; one more pass measures the noise.
    assert len(calls) == len(GENERAL) - 3 + 1
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == original


def test_distilling_leaves_each_modules_mode_as_it_was(context: Any, tiny: Any) -> None:
    """Not one flag for all: a layer that a user keeps in eval mode while the rest trains."""
    model = tiny[0].train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    assert set(before) == {True, False}
    method = GeRe(GeReConfig(max_tokens=12))
    method.begin_task(context(method, model=model))
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("kind", ["gere", "gere_distance"])
def test_dropout_is_off_while_the_base_is_distilled(
    context: Any, tiny: Any, tmp_path: Path, kind: str
) -> None:
    """Trap 7: in train mode the base's states would be noise."""
    model = family("gpt2", len(tiny[1]))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    ids = tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        one, two = (model.train()(ids).logits for _ in range(2))
    assert not torch.equal(one, two)
    found = {}
    for mode in (True, False):
        model.train(mode)
        method = general_method(kind)
        method.begin_task(context(method, model=model, cache=tmp_path / str(mode)))
        folder = method.states.folder
        found[mode] = {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}
        assert model.training is mode
    assert len(found[True]) == 2
    assert found[True] == found[False]


def test_another_setting_makes_another_cache_before_training(made: Any, caplog: Any) -> None:
    first, _ = made()
    with caplog.at_level("INFO", logger="perdure"):
        other, ctx = made(k=2.0)
    assert "as this changed: k" in caplog.text
    assert first.states.folder != other.states.folder
    with torch.no_grad():
        next(ctx.model.parameters()).mul_(1.01)
    with caplog.at_level("INFO", logger="perdure"):
        moved, _ = made()
    assert "as this changed: model" in caplog.text
    assert moved.base != first.base


def test_what_is_computed_in_is_part_of_the_key(made: Any) -> None:
    method, ctx = made()
    assert ctx._session.computing == {"dtype": "torch.float32", "attention": "sdpa"}
    autocast = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    other, ctx = made({"autocast": autocast})
    assert ctx._session.computing["dtype"] == "torch.bfloat16"
    assert other.states.folder != method.states.folder


def test_a_later_task_reads_the_base_and_refuses_what_it_cannot_make_again(made: Any) -> None:
    method, ctx = made()
    with torch.no_grad():
        for parameter in ctx.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    folder = method.states.folder
    method.begin_task(ctx)
    assert method.states.folder == folder
    again = GeRe(GeReConfig(max_tokens=12))
    again.load_state_dict(json.loads(json.dumps(method.state_dict())))
    again.begin_task(ctx)
    assert again.states.folder == folder  # a new process: the state tells which base it was
    wider = GeRe(GeReConfig(max_tokens=10))
    wider.load_state_dict(method.state_dict())
    with pytest.raises(RunError, match="texts, lengths changed since they were made"):
        wider.begin_task(ctx)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with pytest.raises(RunError, match="they were removed"):
        again.begin_task(ctx)


def test_a_base_that_is_at_hand_is_the_teacher_of_a_trained_model(context: Any, tiny: Any) -> None:
    """As `attach(trainer, "gere", base=weights)` on a model that has learned something before."""
    base = {n: p.detach().clone() for n, p in tiny[0].named_parameters()}
    method = GeRe(GeReConfig(max_tokens=12, insert=1))
    ctx = context(method, base=lambda: base)
    moved(ctx)
    method.begin_task(ctx)
    assert terms(method, ctx)["gere_margin"].item() > 0
    with ctx.use_weights(base):
        assert terms(method, ctx)["gere_margin"].item() == 0
    later = GeRe(GeReConfig(max_tokens=10))  # and it can be distilled again at any task
    later.load_state_dict(method.state_dict())
    later.begin_task(context(later, base=lambda: base, task=SECOND, task_index=1))


def test_with_lora_the_base_is_the_model_without_its_adapter(
    context: Any, tiny: Any, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    full_method = GeRe(GeReConfig(max_tokens=12))
    full_method.begin_task(context(full_method, cache=tmp_path / "full"))
    model = get_peft_model(tiny[0], LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    method = GeRe(GeReConfig(max_tokens=12, insert=1))
    ctx = context(method, model=model, cache=tmp_path / "lora")
    method.begin_task(ctx)
    assert terms(method, ctx)["gere_margin"].item() == 0.0  # B = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    assert terms(method, ctx)["gere_margin"].item() > 0
    lora, full = (m.states.folder / "00000.safetensors" for m in (method, full_method))
    assert lora.read_bytes() == full.read_bytes()
    # At any task the base can be distilled again, as it is still there.
    later = GeRe(GeReConfig(max_tokens=10))
    later.load_state_dict(method.state_dict())
    later.begin_task(context(later, model=model, cache=tmp_path / "lora", task=SECOND))


def test_the_cache_is_read_row_by_row_whatever_the_shards(made: Any, monkeypatch: Any) -> None:
    method, ctx = made()
    one = method.states
    monkeypatch.setattr(state_cache, "SHARD_BYTES", 300)
    other, _ = made({"cache": ctx.cache.parent / "other"})
    many = other.states
    assert len(list(many.folder.glob("0*.safetensors"))) > 2
    texts = [5, 0, 3]
    found = many.rows(texts, -1, 15, ctx._session.device)
    assert torch.equal(found, one.rows(texts, -1, 15, ctx._session.device))
    assert not found[:, 12:].any()  # max_tokens is 12
    assert found[0].any()


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_cache_is_made_again(
    made: Any, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    method, _ = made()
    file = method.states.folder / "00000.safetensors"
    whole = file.read_bytes()
    last = bytes([whole[-1] ^ 1])
    file.write_bytes(whole[:-1] + (last if damage == "flipped" else b""))
    made()
    assert file.read_bytes() == whole
    assert f"{file.parent}: damaged, so it is made again" in caplog.text


def test_where_rows_lie_does_not_matter(made: Any) -> None:
    method, ctx = made(insert=4)
    moved(ctx)
    rows = list(method.replay(ctx))
    longer = {"input_ids": [1] * 30, "labels": [-100] * 30, "_text": 0}

    def term(*rows: Any) -> Tensor:
        with torch.no_grad():
            found: Tensor = method.held(ctx, ctx.forward(rows))["margin"]
        return found

    whole = term(*rows)
    close(term(*rows[::-1]), whole.flip(0))
    close(term(*rows, longer)[:4], whole)


def test_noise_of_rounding_is_measured_and_used(made: Any) -> None:
    method, ctx = made()
    noise = method.states.noise["-1"]
    assert set(noise) == {"violating", "flipped", "largest", "mean"}
    assert ctx._session.logged["method/gere_noise_largest"] == noise["largest"]
    official: dict[str, Any] = {"kind": "gere_official", "scope": "row", "mix": "insert"}
    floor, _ = made(**official, noise_floor="measured", layers=(0, -1))
    assert floor.floor == {k: floor.states.noise[str(k)]["largest"] for k in (0, -1)}
    high, ctx = made(**official, noise_floor=1e9)
    moved(ctx)
    assert terms(high, ctx)["gere_margin"].item() == 0
    assert terms(method, ctx)["gere_margin"].item() > 0


def test_noise_by_hand() -> None:
    """One text of one token: the base's 0, 2, -2 have become 1.5, 0.5, -1."""
    n, p = tensor([-1.0, -1, -1]), tensor([1.0, 1, 1])
    codes = pack(flags(tensor([[[0.0, 2, -2]]]), n, p))
    cache: Any = SimpleNamespace(limits=lambda *_: (n, p), rows=lambda *_: codes)
    x = tensor([[[1.5, 0.5, -1]]])
    found = state_cache.measured_noise(cache, [0], -1, x, torch.ones(1, 1).bool())
    close(list(found.values()), [2 / 3, 2 / 3, 0.5, 1 / 3])
    assert list(found) == ["violating", "flipped", "largest", "mean"]


def test_the_previous_tasks_model_may_be_the_teacher(made: Any, context: Any) -> None:
    method, ctx = made(teacher="previous", insert=1)
    first = method.states.folder
    moved(ctx)
    assert terms(method, ctx)["gere_margin"].item() > 0
    method.begin_task(ctx)
    assert method.states.folder != first
    assert terms(method, ctx)["gere_margin"].item() == 0


def test_concat_sees_each_text_once_an_epoch(made: Any) -> None:
    method, ctx = made({"batch_size": 3}, kind="gere_official", mix="concat")
    assert ctx.step.per_epoch == 6  # 16 rows
    ctx._session.begin_phase(Phase(), 40)  # as joint would have it
    assert ctx.step.per_epoch == 14
    ctx._session.begin_phase(Phase(), 16)
    seen = []
    for step in range(12):
        ctx._session.end_step(step)
        rows = method.replay(ctx)
        seen.append([row["_text"] for row in rows] if rows else [])
    for epoch in (seen[:6], seen[6:]):
        assert sorted(text for step in epoch for text in step) == list(range(len(GENERAL)))
    assert max(map(len, seen)) == 1


def test_insert_draws_so_many_rows_a_step_and_every_text_before_any_repeats(made: Any) -> None:
    """M23: also where the task's rows leave one over, on which the official sampler fails."""
    method, ctx = made({"batch_size": 3}, insert=4)
    drawn = []
    for step in range(3):
        ctx._session.end_step(step)
        rows = method.replay(ctx)
        assert len(rows) == 4
        drawn += [row["_text"] for row in rows]
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == list(range(len(GENERAL)))


def test_gere_official_is_one_word_for_what_the_code_does() -> None:
    from perdure.methods.gere_official import GeReOfficialConfig

    config = GeReOfficialConfig()
    of_code = {"mix": "concat", "scope": "micro", "stats": "one_pass_fp32", "kl_mask": False}
    assert {key: getattr(config, key) for key in of_code} == of_code
    assert GeReOfficialConfig(mix="insert").mix == "insert"
    with pytest.raises(ValueError, match="label_weight: has no effect with scope: micro"):
        GeReOfficialConfig(label_weight=0.5)


def test_scope_micro_makes_the_codes_loss_of_each_micro_batch(made: Any) -> None:
    method, ctx = made(kind="gere_official", mix="insert", stats="two_pass", insert=2)
    moved(ctx)
    with torch.no_grad():
        main = ctx.forward([ctx.encode(row) for row in FIRST.train[:3]])
        extra = ctx.forward(method.replay(ctx))
        found = method.loss(ctx, main, extra)
        total = main.token_mean(main.nll) + sum(found.values())
        n, p = method.states.limits(-1, ctx._session.device)
        codes = method.states.aligned(extra, -1)
        every = margin(
            extra.hidden[-1][extra.mask][None], codes[extra.mask][None],
            torch.ones(1, int(extra.mask.sum())), n, p, "violating",
        )[0]  # fmt: skip
        expected = (main.nll.mean() + extra.nll.mean()) / 2 + 100 * every
        close(total, expected)
        alone = method.loss(ctx, main, None)
        close(main.token_mean(main.nll) + sum(alone.values()), main.nll.mean())


def test_the_head_is_left_out_where_no_term_asks_for_it() -> None:
    for kind in ("gere", "general_replay", "gere_distance"):
        assert general_method(kind).requires.logits
        assert not general_method(kind, label_weight=0).requires.logits
    assert general_method("gere_kl", label_weight=0).requires.logits
    assert general_method("gere", label_weight=0, weight="dynamic").requires.logits


def test_no_general_text_means_the_base_models_own(made: Any) -> None:
    none = {"general": GeneralText(), "stream_tokens": lambda: 16 * 8 * 64 * 10}
    method, ctx = made(none, max_tokens=8, samples=20)
    assert method.texts.startswith("samples-")
    lines = [json.loads(x) for x in (ctx.cache / method.texts).read_text().splitlines()]
    assert lines[0] == {
        "temperature": 1.0, "seed": 0, "texts": 20, "tokens": 8, "past_end": True,
        "start_counts": True, "model": ctx._session.fingerprint(),
    }  # fmt: skip
    assert len(method._rows) == len(lines) - 1 == 20
    starts = {tuple(line["ids"][: line["given"]]) for line in lines[1:]}
    assert len(starts) == 2  # a text's, and a user's turn
    row = method._rows[0]
    given = lines[1]["given"]
    assert row["labels"] == [-100] * given + row["input_ids"][given:]
    # Once the model has moved its texts are read, not sampled, and cannot be sampled again.
    moved(ctx)
    again = GeRe(method.config)
    again.load_state_dict(json.loads(json.dumps(method.state_dict())))
    again.begin_task(ctx)
    assert list(again._rows) == list(method._rows)
    (ctx.cache / method.texts).unlink()
    with pytest.raises(RunError, match="the texts that the base model wrote are gone"):
        again.begin_task(ctx)


def test_a_gpu_computes_texts_of_one_length_together() -> None:
    gpu = torch.device("cuda")
    assert alike([3, 5, 3, 9, 5, 3], gpu, "codes") == [[0, 2, 5], [1, 4], [3]]
    assert [len(group) for group in alike([1000] * 9, gpu, "codes")] == [4, 4, 1]
    assert [len(group) for group in alike([200] * 5, gpu, "logits")] == [2, 2, 1]
    assert alike([3, 5, 3], torch.device("cpu"), "codes") == [[0], [1], [2]]


@pytest.mark.parametrize("kind", ["gere", "gere_kl", "gere_distance"])
def test_texts_computed_together_give_what_each_alone_gives(
    made: Any, monkeypatch: Any, tmp_path: Path, kind: str
) -> None:
    alone, _ = made({"cache": tmp_path / "alone"}, kind=kind, max_tokens=8)
    sizes: list[int] = []
    forward = TaskSession.forward

    def counted(self: Any, rows: Any, **options: Any) -> Any:
        sizes.append(len(rows))
        return forward(self, rows, **options)

    monkeypatch.setattr(
        distillation, "alike", lambda lengths, _, kind: alike(lengths, torch.device("cuda"), kind)
    )
    monkeypatch.setattr(TaskSession, "forward", counted)
    together, _ = made({"cache": tmp_path / "together"}, kind=kind, max_tokens=8)
    assert max(sizes[: len(GENERAL)]) > 1
    assert sum(sizes) >= len(GENERAL)
    texts, width, device = range(len(GENERAL)), 8, torch.device("cpu")
    if kind == "gere_kl":
        for a, b in zip(*(m.states.top(texts, device) for m in (alone, together)), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        return
    a, b = (m.states.rows(texts, -1, width, device) for m in (alone, together))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert a.any()


def test_how_many_texts_are_sampled() -> None:
    assert how_many(1000, 64_000, 64) == 60  # six tokens of a hundred
    assert how_many(50, 64_000, 64) == 50
    assert how_many(1000, 64_000, 64, 0.5) == 500
    assert how_many(1000, 100, 64) == 16
    assert how_many(1000, 0, 64) == 64  # nobody knows how long it trains


def test_texts_that_repeat_themselves_are_known() -> None:
    assert repeats([1, 2] * 10)
    assert not repeats(list(range(20)))
    assert not repeats([1, 2, 3])


def test_no_op_of_the_term_waits_for_the_device(made: Any) -> None:
    """Each of these would make the host wait for the GPU."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Waits(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = str(func)
            bool_index = "aten.index" in name and any(
                torch.is_tensor(i) and i.dtype == torch.bool
                for i in (args[1] if isinstance(args[1], (list, tuple)) else ())
            )
            if bool_index or any(
                w in name
                for w in (
                    "nonzero",
                    "_local_scalar_dense",
                    "masked_select",
                    "is_nonzero",
                    "bincount",
                )
            ):
                found.append(name)
            return func(*args, **(kwargs or {}))

    from perdure.engine.forward import capture
    from perdure.engine.packing import heads_at
    from perdure.engine.packing import pack as pack_rows
    from perdure.engine.rowwise_attention import attends_by_rows
    from perdure.protocol.batch import ForwardOutput

    method, ctx = made(insert=3)
    moved(ctx)
    rows = method.replay(ctx)
    task = [ctx.encode(row) for row in FIRST.train[:3]]
    packed = pack_rows(task, list(rows), pad_id=0, extra_logits=True, by="rows", hidden=64)
    whole = ForwardOutput(ctx.model, packed.inputs)
    with (
        capture(ctx.model, [method.requires], whole), heads_at(ctx.model, packed.keep),
        attends_by_rows(ctx.model),
    ):  # fmt: skip
        logits = ctx.model(**packed.inputs).logits[0]
    # Read beforehand: safetensors looks into its own file on the host.
    width = max(len(row["input_ids"]) for row in rows)
    codes = method.states.rows([row["_text"] for row in rows], -1, width, ctx._session.device)
    method.states.limits(-1, ctx._session.device)
    method.states.rows = lambda *_: codes
    found: list[str] = []
    with Waits():
        extra = packed.extra.of(whole, logits[packed.extra.heads], rows.counts)
        terms = method.loss(ctx, None, extra)
        torch.stack(list(terms.values())).sum().backward()
    assert set(terms) == {"gere_label", "gere_margin"}
    assert found == []
