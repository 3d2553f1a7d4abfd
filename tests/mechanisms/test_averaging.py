"""What is recorded of an average, and tensors in groups, of other types, and of phases."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from perdure.engine.method_state import dump_state, load_state
from perdure.mechanisms import averaging
from perdure.mechanisms.averaging import Average, deciles, distance, sample

pytestmark = pytest.mark.unit


def linear(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 4)).to(dtype)


def stepped(model: nn.Module, size: float = 0.1) -> None:
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += size * torch.randn(p.shape, generator=draws).to(p.dtype)
            p.grad = torch.randn(p.shape, generator=draws).to(p.dtype)


def test_deciles_of_counted_weights() -> None:
    average = Average()
    draws = torch.Generator().manual_seed(0)
    some = torch.rand(50, 40, generator=draws)
    for step in some:
        average.count(step, step > 0.5)
    assert average.counts is not None
    exact = some.flatten().quantile(torch.arange(1, 10) / 10).tolist()
    assert deciles(average.counts) == pytest.approx(exact, abs=5e-3)
    found = average.facts({"moved": 3.0})
    assert found["averaging_out_share"] == pytest.approx(float((some > 0.5).float().mean()))
    assert found["averaging_decile_5"] == pytest.approx(exact[4], abs=5e-3)
    assert found["averaging_moved"] == 3.0


def test_deciles_of_ten_values_are_nine_of_them() -> None:
    """The value below or at which a tenth of all lies: of ten the first is the first decile."""
    average, values = Average(), [0.05 + i / 10 for i in range(10)]
    average.count(torch.tensor(values))
    assert average.counts is not None
    assert deciles(average.counts) == pytest.approx(values[:9], abs=2e-3)
    average.count(torch.tensor(values))
    assert deciles(average.counts) == pytest.approx(values[:9], abs=2e-3)
    line = Average()
    line.count(torch.tensor([0.5] * 6 + [0.95] * 4))
    assert line.counts is not None
    assert deciles(line.counts) == pytest.approx([0.5] * 6 + [0.95] * 3, abs=2e-3)


@pytest.mark.parametrize("value", [0.01, 0.5, 0.99, 0.999, 0.99999])
def test_a_decile_near_0_or_1_is_told_from_it(value: float) -> None:
    average = Average()
    for _ in range(3):
        average.count(torch.tensor(value))
    assert average.counts is not None
    for found in deciles(average.counts):
        assert found / (1 - found) == pytest.approx(value / (1 - value), rel=0.02)


def test_the_ends_are_0_and_1_themselves() -> None:
    average = Average()
    average.count(torch.tensor([0.0] * 5 + [1.0] * 5))
    assert average.counts is not None
    assert deciles(average.counts) == [0.0] * 5 + [1.0] * 4


def test_a_constant_weight_is_its_own_deciles() -> None:
    found = Average().facts({}, constant=0.97)
    assert found.pop("averaging_out_share") == 0
    assert set(found.values()) == {0.97}
    assert Average().facts({}) == {}  # of a task without a second step nothing is known


@pytest.mark.parametrize("together", [1, 7, 2**26])
def test_groups_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr(averaging, "TOGETHER", together)
    model, average = linear(), Average()
    stepped(model)
    average.follows(model, "main", gradients=True)
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    old = [w.clone() for w in average.weights.values()]
    stepped(model, 0.3)
    for p in model.parameters():
        assert p.grad is not None
        p.grad *= 2
    apart, slopes, changes = average.norms()
    way = average.slope(dict(model.named_parameters()))
    new = torch.tensor([0.1, 0.2, 0.3, 0.4])
    average.move(new)
    total = 0.0
    for i, p in enumerate(model.parameters()):
        assert p.grad is not None
        assert float(apart[i]) == pytest.approx(float((p.detach() - old[i]).abs().sum()), rel=1e-5)
        assert float(slopes[i]) == pytest.approx(float(p.grad.abs().sum()), rel=1e-5)
        assert float(changes[i]) == pytest.approx(float((p.grad - before[i]).abs().sum()), rel=1e-5)
        total += float((p.grad * (old[i] - p.detach())).sum())
        torch.testing.assert_close(
            list(average.weights.values())[i], old[i] + new[i] * (p.detach() - old[i])
        )
        assert torch.equal(list(average.gradients.values())[i], p.grad)
    assert float(way) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("new", [torch.tensor(0.3), torch.tensor([0.1, 0.9, 1.0, 0.0])])
def test_moved_as_on_a_gpu_it_is_the_same(new: torch.Tensor) -> None:
    model, one, two = linear(), Average(), Average()
    two.spreads = True
    for average in (one, two):
        average.follows(model, "main")
    stepped(model)
    for _ in range(2):
        one.move(new)
        two.move(new)
    assert two._sizes
    assert not one._sizes
    for name, kept in one.weights.items():
        torch.testing.assert_close(two.weights[name], kept, rtol=0, atol=1e-7)


@pytest.mark.parametrize("many", [False, True])
def test_of_bf16_weights_average_and_norms_are_fp32(many: bool) -> None:
    model, average = linear(torch.bfloat16), Average()
    stepped(model)
    average.follows(model, "main", gradients=True)
    old = {n: w.clone() for n, w in average.weights.items()}
    stepped(model)
    norms = average.norms()
    assert norms.dtype == torch.float32
    p = next(model.parameters())
    assert p.grad is not None
    assert float(norms[1, 0]) == pytest.approx(float(p.grad.float().abs().sum()), rel=1e-6)
    new = 0.001  # a move that bf16 would lose
    average.move(torch.full((4,), new) if many else new)
    for name, p in model.named_parameters():
        kept = average.weights[name]
        assert kept.dtype == torch.float32
        expected = old[name].lerp(p.detach().float(), new)
        torch.testing.assert_close(kept, expected)
        assert not torch.equal(kept, old[name])
    assert all(g.dtype == torch.float32 for g in average.gradients.values())


def test_each_phase_has_an_average_of_its_own(tmp_path: object) -> None:
    model, average = linear(), Average()
    assert not average.follows(model, "warm-up")
    assert average.follows(model, "warm-up")
    next(model.parameters()).requires_grad_(False)
    assert average.of("warm-up")
    assert not average.of("main")
    assert not average.follows(model, "main")
    assert set(average.weights) == {n for n, p in model.named_parameters() if p.requires_grad}


def test_its_state_on_disk_is_all_of_it(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    model, average, again = linear(), Average(), Average()
    for _ in range(3):
        stepped(model)
        if average.follows(model, "main", gradients=True):
            norms = average.norms()
            average.move(norms[0] / norms.sum(0))
            average.count(norms[0] / norms.sum(0), norms[0] > 1)
    dump_state(folder / "state", average.state_dict())
    again.load_state_dict(load_state(folder / "state", model))
    for one in (average, again):
        stepped(model, 0.0)
        assert one.follows(model, "main", gradients=True)
        one.move(0.25)
    assert torch.equal(average.norms(), again.norms())
    for name, kept in average.weights.items():
        assert torch.equal(kept, again.weights[name])
    assert average.facts({}) == again.facts({})


@pytest.mark.parametrize("size", [40, 200_000])
def test_distance_from_samples(size: int) -> None:
    draws = torch.Generator().manual_seed(0)
    start = {"a": torch.randn(size, generator=draws), "b": torch.randn(3, 5, generator=draws)}
    end = {n: w + 0.01 * torch.randn(w.shape, generator=draws) for n, w in start.items()}
    exact = sum(float((end[n] - w).square().sum()) for n, w in start.items()) ** 0.5
    sizes = {n: w.numel() for n, w in start.items()}
    found = distance(sample(start), sample(end), sizes)
    assert found == pytest.approx(exact, rel=1e-5 if size == 40 else 0.05)
    assert distance({}, sample(end), sizes) == 0.0
    assert sum(v.numel() for v in sample(start).values()) <= max(size // 64, 512) + 15
