"""Flags, thresholds and margin against hand-computed examples (numbered as in the notes on GeRe).

Tolerance 1e-6 unless said. "+-1" is the pair of thresholds n = -1, p = 1; a state's flag is 0 in
the middle, 1 low, 2 high, 3 both.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from margins import by_full_states, limits
from torch import Tensor, tensor

from perdure.mechanisms.margin import excess, flags, margin, outside, pack, plain, unpack
from perdure.mechanisms.state_cache import thresholds
from perdure.methods import gere
from perdure.protocol.batch import ForwardOutput

pytestmark = pytest.mark.unit

STATES = tensor([[1.0, 0, 2], [3, 0, 2], [5, 4, 2], [7, 4, 2]])
NOW = tensor([[2, 0.5, 2], [3, -1, 2.5], [6.5, 3, 1.5], [5, 4.5, 2]])
ONE = (tensor([-1.0]), tensor([1.0]))


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
