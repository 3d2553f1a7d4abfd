"""Averages of the weights: the rules by hand (acceptance checks 1 to 14 of the specification)."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn, tensor

from perdure.errors import UsageError
from perdure.mechanisms.averaging import Average
from perdure.methods.ema import (
    Ema,
    closed_form,
    in_range,
    line_minimum,
    line_weight,
    new_weight,
    window_decay,
)
from perdure.methods.registry import load_config
from perdure.protocol.batch import StepCounts
from perdure.testing import make

pytestmark = pytest.mark.unit


class Holder(nn.Module):
    """A model of some tensors, which is all that an average looks at."""

    def __init__(self, *values: Any) -> None:
        super().__init__()
        for i, value in enumerate(values):
            self.register_parameter(f"t{i}", nn.Parameter(tensor(value)))

    def give(self, *gradients: Any) -> None:
        for p, gradient in zip(self.parameters(), gradients, strict=True):
            p.grad = None if gradient is None else tensor(gradient)


def moved(
    weights: Any, average: Any, gradient: Any, before: Any, beta: str = "official", **how: Any
) -> Tensor:
    """The new average of one tensor, from injected state."""
    model = Holder(weights)
    found = Average()
    found.follows(model, "main", gradients=True)
    found.weights["t0"].copy_(tensor(average))
    found.gradients["t0"].copy_(tensor(before if before is not None else gradient))
    if before is None:
        found.gradients["t0"].fill_(torch.nan)
    model.give(gradient)
    assert found.follows(model, "main", gradients=True)
    options = {"outside": "fallback", "fallback": 0.99, **how}
    new, out = new_weight(found.norms().unbind(), beta, **options)
    found.move(new)
    found.count(1 - new, out)
    return found.weights["t0"]


def close(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, tensor(expected), rtol=1e-5, atol=1e-6)


def test_check_1_official_in_range() -> None:
    p = nn.Parameter(tensor([4.05, -2.05]))
    p.grad = tensor([0.5, -0.5])
    torch.optim.SGD([p], lr=0.1).step()
    close(p.detach(), [4.0, -2.0])
    found = moved([4.0, -2.0], [0.0, 0.0], [0.5, -0.5], [-1.0, 1.5])
    close(found, [0.761905, -0.380952])
    a, b, c = tensor(6.0), tensor(1.0), tensor(3.5)
    assert float(2 * closed_form(a, b, c)) == pytest.approx(4 / 21)


def test_check_2_official_above_1_falls_back() -> None:
    raw = 2 * closed_form(tensor(0.3), tensor(1.0), tensor(3.5))
    assert float(raw) == pytest.approx(3.809524, abs=1e-6)
    close(moved([0.1, 0.2], [0.0, 0.0], [0.5, -0.5], [-1.0, 1.5]), [0.001, 0.002])


def test_check_3_no_distance_falls_back_without_nan() -> None:
    for beta, outside in itertools.product(("official", "paper"), ("fallback", "clamp")):
        found = moved([4.0, -2.0], [4.0, -2.0], [0.5, 1.0], [0.0, 0.0], beta, outside=outside)
        assert torch.equal(found, tensor([4.0, -2.0]))


def test_check_4_no_earlier_gradient_falls_back_and_a_first_step_is_the_average() -> None:
    close(moved([4.0, -2.0], [0.0, 0.0], [0.5, 1.0], None), [0.04, -0.02])
    model, average = Holder([4.0, -2.0]), Average()
    model.give([1.0, 1.0])
    assert not average.follows(model, "main", gradients=True)
    assert torch.equal(average.weights["t0"], model.t0)
    assert average.weights["t0"].data_ptr() != model.t0.data_ptr()  # never the same memory


def test_check_5_official_exact_quarter() -> None:
    assert moved([8.0, 0.0], [0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]).tolist() == [2.0, 0.0]


def test_check_6_a_weight_of_exactly_1_is_out_of_range() -> None:
    close(moved([2.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]), [0.02, 0.0])
    # ... and with `clamp` it is 1: the average becomes the weights.
    found = moved([2.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0], outside="clamp")
    assert found.tolist() == [2.0, 0.0]


def test_check_7_paper_weighs_the_old_average() -> None:
    # scalar: L' = 1, L'' = 2 at a distance of 4
    beta = closed_form(tensor(4.0), tensor(1.0), tensor(2.0))
    assert float(beta) == 0.25
    grid = torch.linspace(0, 1, 101)
    objective = -grid * 1 * 4 + 0.5 * grid**2 * 2 * 16 + 1 * (1 - grid) * 4
    torch.testing.assert_close(objective, 16 * grid**2 - 8 * grid + 4)
    assert float(grid[objective.argmin()]) == 0.25
    assert moved([4.0], [0.0], [1.0], [-1.0], "paper").tolist() == [3.0]
    # Placed as the code does, a quarter would give 1.
    model, average = Holder([4.0]), Average()
    average.follows(model, "main")
    average.weights["t0"].zero_()
    average.move(0.25)
    assert average.weights["t0"].tolist() == [1.0]


@pytest.mark.parametrize("decay", [0.99, 0.5])
def test_check_8_fixed_shrinks_the_error_by_decay_a_step(decay: float) -> None:
    model, average = Holder([[1.0, 2.0], [3.0, -4.0]]), Average()
    average.follows(model, "main")
    average.weights["t0"].zero_()
    for n in range(1, 21):
        average.move(1 - decay)
        error = model.t0.detach() - average.weights["t0"]
        torch.testing.assert_close(error, decay**n * model.t0.detach(), rtol=1e-5, atol=0)


def test_check_9_the_average_lies_between_old_and_new_in_every_element() -> None:
    draws = torch.Generator().manual_seed(0)
    scales = 10.0 ** torch.randint(-12, 12, (4000,), generator=draws)
    weights = torch.randn(4000, generator=draws) * scales
    old = torch.randn(4000, generator=draws) * scales.flip(0)
    low, high = torch.minimum(weights, old), torch.maximum(weights, old)
    for new in (0.0, 1e-7, 0.01, 0.3, 0.5, 0.7, 0.99, 1 - 2**-24, 1.0):
        for given in (new, tensor(new), tensor([new])):
            model, average = Holder([0.0] * 4000), Average()
            with torch.no_grad():
                model.t0.copy_(weights)
            average.follows(model, "main")
            average.weights["t0"].copy_(old)
            average.move(given)
            found = average.weights["t0"]
            assert bool(((low <= found) & (found <= high)).all()), (new, given)


def test_check_10_a_tensor_does_not_alter_the_weight_of_another() -> None:
    def weights(second: float) -> Tensor:
        model, average = Holder([8.0, 0.0], [30.0, 1.0]), Average()
        model.give([-1.0, 0.0], [0.0, 0.0])
        average.follows(model, "main", gradients=True)
        for kept in average.weights.values():
            kept.zero_()
        model.give([1.0, 0.0], [second, 0.0])
        return new_weight(average.norms().unbind(), "official", "fallback", 0.99)[0]

    assert float(weights(3.0)[0]) == float(weights(40.0)[0]) == 0.25
    assert float(weights(3.0)[1]) != float(weights(40.0)[1])


def test_paper_and_official_against_a_slow_plain_reference() -> None:
    """Twenty steps of several tensors, as section 2.3 of the specification puts the code."""
    draws = torch.Generator().manual_seed(3)
    shapes = [(3, 4), (7,), (1,), (2, 2, 2)]
    for beta, outside in itertools.product(("official", "paper"), ("fallback", "clamp")):
        model, average = Holder(*[torch.zeros(s).tolist() for s in shapes]), Average()
        slow: list[Tensor] = []
        previous: list[Tensor] = []
        outs = 0
        for step in range(20):
            for p in model.parameters():
                p.data += 0.3 * torch.randn(p.shape, generator=draws)
                p.grad = 2 * torch.randn(p.shape, generator=draws)
            params = [p.detach().clone() for p in model.parameters()]
            grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            if average.follows(model, "main", gradients=True):
                new, out = new_weight(average.norms().unbind(), beta, outside, 0.99)
                average.move(new)
                average.count(1 - new, out)
            if step == 0:
                slow = params
            for i, (p, g) in enumerate(zip(params, grads, strict=True)):
                if step == 0:
                    continue
                a, b = (p - slow[i]).abs().sum(), g.abs().sum()
                c = (g - previous[i]).abs().sum()
                raw = float((1 + b) / (a * c)) * (2 if beta == "official" else 1)
                inside = 0 < raw < 1
                outs += not inside
                used = raw if inside else (1.0 if outside == "clamp" else None)
                if beta == "official":
                    alpha = 0.01 if used is None else used
                else:
                    alpha = 0.01 if used is None else 1 - used
                slow[i] = (1 - alpha) * slow[i] + alpha * p
            previous = grads
        assert average.outside is not None
        assert 0 < int(average.outside) == outs < 19 * 4
        for kept, expected in zip(average.weights.values(), slow, strict=True):
            torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-5)


def test_what_has_no_gradient_and_what_is_no_number_falls_back() -> None:
    for gradient in (None, [float("nan"), 0.0], [float("inf"), 0.0]):
        model, average = Holder([8.0, 0.0]), Average()
        model.give([1.0, 0.0])
        average.follows(model, "main", gradients=True)
        average.weights["t0"].zero_()
        model.give(gradient)
        for outside in ("fallback", "clamp"):
            new, out = new_weight(average.norms().unbind(), "official", outside, 0.99)
            assert new.isfinite().all(), (gradient, outside)
            assert out.tolist() == [True]


def test_in_range_by_hand() -> None:
    raw = tensor([0.0, 0.3, 1.0, 7.0, float("inf"), float("nan")])
    used, out = in_range(raw, "fallback", 0.99)
    close(used, [0.99, 0.3, 0.99, 0.99, 0.99, 0.99])
    assert out.tolist() == [True, False, True, True, True, True]
    close(in_range(raw, "clamp", 0.99)[0], [0.0, 0.3, 1.0, 1.0, 1.0, 0.99])


@pytest.mark.parametrize("beta", ["paper", "official"])
def test_out_of_range_the_old_average_gets_0_99_unless_decay_says_otherwise(
    context: Any, beta: str
) -> None:
    for options, kept in [({}, 0.99), ({"decay": 0.75}, 0.75)]:
        method = make(Ema, {"beta": beta, **options})
        model = Holder([4.0, -2.0])
        ctx = context(method, model=model)
        method.begin_task(ctx)
        for weights in ([0.0, 0.0], [4.0, -2.0]):
            model.t0.data = tensor(weights)
            model.give([0.5, 1.0])  # it does not change, so that the raw weight is inf
            method.after_step(ctx)
        close(method.average.weights["t0"], [4.0 * (1 - kept), -2.0 * (1 - kept)])
        assert int(method.average.outside) == 1


def test_window_by_hand() -> None:
    assert window_decay(0.2, 500) == pytest.approx(0.99)
    assert window_decay(1.0, 10) == pytest.approx(0.9)
    assert window_decay(0.2, 4) == 0.0  # shorter than a step: no average
    assert window_decay(0.2, 0) == 0.0
    # The same strength for any number of steps: what is left of the start is exp(-1 / window).
    for steps in (100, 10_000):
        assert window_decay(0.2, steps) ** steps == pytest.approx(0.0067, rel=0.15)


@pytest.mark.parametrize(
    ("options", "steps", "says"),
    [
        ({}, 3, "window 0.2 of 3 steps is not more than one step, so nothing is averaged: write "
         "decay in its place, or a window of 0.34 or more"),
        ({"window": 0.5}, 2, "window 0.5 of 2 steps is not more than one step, so nothing is "
         "averaged: write decay in its place, or a window of 0.51 or more"),
        ({"window": 1.0}, 1, "one step has no other to be averaged with: learn more steps of it"),
        ({"window": 0.34}, 3, ""),
        ({}, 6, ""),
        ({"decay": 0.0}, 3, ""),
        ({"beta": "paper"}, 3, ""),
    ],
)  # fmt: skip
def test_a_window_too_short_to_average_anything_is_told_once_a_task(
    context: Any, caplog: pytest.LogCaptureFixture, options: Any, steps: int, says: str
) -> None:
    method, model = make(Ema, options), Holder([4.0, -2.0])
    ctx = context(method, model=model)
    ctx._session.step = replace(ctx.step, total=steps)
    method.begin_task(ctx)
    for _ in range(steps):
        model.give([0.5, 1.0])
        method.after_step(ctx)
    method.end_task(ctx)
    assert caplog.messages == ([f"task {ctx.task.name}: {says}"] if says else [])


# --- along the line


def test_lowest_point_of_a_parabola_by_hand() -> None:
    # (u - 1/4)^2: f(0) = 1/16, f(1) = 9/16, f'(0) = -1/2
    assert float(line_minimum(tensor(0.0625), tensor(0.5625), tensor(-0.5))) == 0.25
    assert float(line_minimum(tensor(1.0), tensor(3.0), tensor(1.0))) == 0  # rises at once
    assert float(line_minimum(tensor(3.0), tensor(1.0), tensor(-3.0))) == 1  # lowest beyond 1
    assert float(line_minimum(tensor(1.0), tensor(2.0), tensor(3.0))) == 0  # no minimum, f(1) > f
    assert float(line_minimum(tensor(2.0), tensor(1.0), tensor(3.0))) == 1  # no minimum, f(1) < f
    assert float(line_minimum(tensor(2.0), tensor(2.0), tensor(0.0))) == 0  # they are one


def test_line_weight_is_the_minimum_of_both_wishes() -> None:
    grid = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    for u, rho, curvature in itertools.product((0.0, 0.3, 1.0), (0.0, 1.0, 99.0), (0.5, 20.0)):
        objective = curvature / 2 * (grid - u) ** 2 + rho / 2 * curvature * (1 - grid) ** 2
        found = float(line_weight(tensor(u), rho))
        assert found == pytest.approx(float(grid[objective.argmin()]), abs=2e-5)


@pytest.mark.parametrize("rho", [9.0, 99.0])
def test_line_with_u_0_is_fixed_at_rho_over_1_plus_rho(rho: float) -> None:
    line, fixed = Average(), Average()
    model = Holder([1.0, 2.0], [[3.0], [-4.0]])
    for average in (line, fixed):
        average.follows(model, "main")
        for kept in average.weights.values():
            kept.zero_()
    for _ in range(5):
        line.move(1 - line_weight(tensor(0.0), rho))
        fixed.move(1 - rho / (1 + rho))
    for name in line.weights:
        torch.testing.assert_close(line.weights[name], fixed.weights[name], rtol=1e-5, atol=1e-7)


class Pair(nn.Module):
    """y = B A x, a LoRA pair; A and B may be rescaled, and A held in two pieces."""

    def __init__(self, a: Tensor, b: Tensor, scale: float = 1.0, cut: bool = False) -> None:
        super().__init__()
        a, b = a * scale, b / scale
        pieces = [a[:1], a[1:]] if cut else [a]
        self.a = nn.ParameterList([nn.Parameter(piece.clone()) for piece in pieces])
        self.b = nn.Parameter(b.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.cat(list(self.a)).T @ self.b.T


def beta_along(scale: float = 1.0, cut: bool = False, times: float = 1.0) -> float:
    draws = torch.Generator().manual_seed(1)
    a, b, da, db, x, y = (
        torch.randn(shape, generator=draws, dtype=torch.float64).float()
        for shape in ((3, 4), (2, 3), (3, 4), (2, 3), (8, 4), (8, 2))
    )
    model, average = Pair(a, b, scale, cut), Average()
    average.follows(model, "main")
    at = Pair(a + 0.9 * da, b + 0.9 * db, scale, cut)
    for name, p in at.named_parameters():
        average.weights[name].copy_(p.detach())

    def loss(host: nn.Module) -> Tensor:
        return times * (host(x) - y).square().mean()

    loss(model).backward()
    slope = average.slope(dict(model.named_parameters()))
    u = line_minimum(loss(model).detach(), loss(at).detach(), slope)
    assert 0 < float(u) < 1  # else nothing is shown
    return float(line_weight(u, 1.0))


def test_line_does_not_depend_on_the_loss_unit_the_tensors_or_the_factors() -> None:
    plain = beta_along()
    assert beta_along(times=10.0) == pytest.approx(plain, rel=1e-5)
    assert beta_along(cut=True) == pytest.approx(plain, rel=1e-5)
    assert beta_along(scale=7.0) == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("micro", [1, 2])
def test_a_look_is_the_parabola_of_the_steps_own_batch(context: Any, micro: int) -> None:
    """In plain torch: losses of the batch at the weights and at the average, and the slope."""
    torch.manual_seed(0)
    method = make(Ema, {"beta": "line", "every": 2})
    ctx = context(method, batch_size=4)
    model, session = ctx.model, ctx._session
    method.begin_task(ctx)
    assert not method.average.follows(model, "main")
    with torch.no_grad():
        for kept in method.average.weights.values():
            kept += 0.05 * torch.randn_like(kept)
    rows = [ctx.encode(row) for row in ctx.task.train[:4]]
    labels = sum(label != -100 for row in rows for label in row["labels"])
    size = 4 // micro
    for index in (1, 2):  # the second one is looked at
        model.zero_grad()
        for part in range(micro):
            session.begin_micro_batch(index, micro)
            main = ctx.forward(rows[part * size : (part + 1) * size])
            main.counts = StepCounts(None, labels, None, micro)
            assert method.loss(ctx, main, None) == {}
            (main.token_mean(main.nll) / micro).backward()
            session.end_micro_batch(part == micro - 1)
        before = [p.detach().clone() for p in model.parameters()]
        with torch.no_grad():
            assert list(method.gradients(ctx, dict(model.named_parameters()))) == []
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert float(method.u) == 0 or index == 2

    def loss() -> float:
        return float(ctx.forward(rows).nll.detach().mean())

    average = method.average.weights
    here, slope = (
        loss(),
        sum(
            float((p.grad * (average[n] - p.detach())).sum())
            for n, p in model.named_parameters()
            if p.grad is not None
        ),
    )
    with ctx.use_weights(average):
        there = loss()
    curvature = 2 * (there - here - slope)
    assert curvature > 0
    assert 0.01 < -slope / curvature < 0.99  # else nothing is shown
    assert float(method.u) == pytest.approx(-slope / curvature, abs=2e-3)


# --- options


@pytest.mark.parametrize(
    ("options", "key", "why"),
    [
        ({"beta": "line", "decay": 0.9}, "decay", "has no effect with beta: line"),
        ({"beta": "line", "window": 0.5}, "window", "has no effect with beta: line"),
        ({"beta": "line", "outside": "clamp"}, "outside", "has no effect with beta: line"),
        ({"outside": "clamp"}, "outside", "has no effect with beta: fixed"),
        ({"rho": 9}, "rho", "has no effect with beta: fixed"),
        ({"beta": "paper", "every": 5}, "every", "has no effect with beta: paper"),
        ({"beta": "official", "window": 0.5}, "window", "has no effect with beta: official"),
        ({"decay": 0.9, "window": 0.5}, "window", "has no effect with decay"),
        (
            {"beta": "paper", "outside": "clamp", "decay": 0.9}, "decay",
            "has no effect with beta: paper and outside: clamp",
        ),
        ({"decay": 1.0}, "decay", "less than 1"),
        ({"window": 0.0}, "window", "greater than 0"),
        ({"window": 1.5}, "window", "less than or equal to 1"),
        ({"beta": "papers"}, "beta", "papers"),
    ],
)  # fmt: skip
def test_options_without_effect_are_refused_at_their_key(
    options: dict[str, Any], key: str, why: str
) -> None:
    with pytest.raises(UsageError) as told:
        load_config("ema", options)
    assert f"method.{key}" in told.value.what
    assert why in told.value.what


def test_only_line_has_a_loss_and_looks_at_gradients_before_the_step() -> None:
    for beta in ("fixed", "paper", "official", "line"):
        method = make(Ema, {"beta": beta})
        assert [method.uses(hook) for hook in ("loss", "gradients")] == [beta == "line"] * 2
        assert method.uses("after_step")
        assert method.uses("serving")
        assert method.requires.logits is (beta == "line")
