"""GeRe against hand-computed examples (numbered as in the notes on its code) and real states.

Tolerance 1e-6 unless said. "+-1" is the pair of thresholds n = -1, p = 1; a state's flag is 0 in
the middle, 1 low, 2 high, 3 both.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_tasks import GENERAL, SECOND
from torch import Tensor, tensor

from perdure.errors import RunError, UsageError
from perdure.learners.encoding import collate
from perdure.methods._distill import distance, kl, row_means
from perdure.methods._states import flags, pack, thresholds, unpack
from perdure.methods.gere import GeRe, GeReConfig, margin, state_weight
from perdure.streams.task import GeneralText

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
    coded = flags(torch.as_tensor(h), n, p).unsqueeze(0)
    loss = margin(now.unsqueeze(0), coded, real.bool().unsqueeze(0), n, p, over)[0]
    loss.backward()
    assert now.grad is not None
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
    assert row_means(torch.zeros(0), torch.zeros(0, dtype=torch.long), 1).tolist() == [0.0]


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


def test_m13_general_rows_weigh_as_in_micro_batches_of_one() -> None:
    """Five task rows and a general one: the mean over six micro-batches of one row each."""
    method = GeRe(GeReConfig(insert=1, weight=100.0))
    method._cache = object()  # type: ignore[assignment]  # the term is given below
    method._term = lambda *_: tensor([0.1])  # type: ignore[method-assign]
    extra = SimpleNamespace(
        mask=torch.ones(1, 3), nll=tensor([7.0]), row_of=tensor([0]), row_mean=lambda v: v.mean()
    )
    found = method.loss(SimpleNamespace(batch_size=5), None, extra)  # type: ignore[arg-type]
    tasks = 5 / 6 * tensor([1.0, 2, 3, 4, 5]).mean()
    close(tasks + found["gere_label"] + found["gere_margin"], 5.333333)


def test_m14_distillation() -> None:
    student = tensor([[0.0, 0, 0], [2, 0, 0]], requires_grad=True)
    teacher = tensor([[2.0, 0, 0], [2, 0, 0]])
    found = kl(student, teacher, 2.0)
    close(found, [0.123285, 0])
    found.mean().backward()
    close(student.grad[0] if student.grad is not None else 0, [-0.060696, 0.030348, 0.030348])
    close(4 * found.mean() * 2, 2 * 0.246569)
    close(kl(student, teacher)[0], 0.433040)


def test_m15_distances() -> None:
    h, x = tensor([[[-2.0, 2], [0, 0], [0, 0]]]), tensor([[[0.0, 0], [2, 0.5], [9, -9]]])
    mask = tensor([[True, True, False]])
    close(distance(x, h, mask, 1), [1.625])
    close(distance(x, h, mask, 2), [3.0625])


def test_m16_m17_m19_statistics_hold_where_one_fp32_pass_fails() -> None:
    for constant, tokens in ((7.3, 3), (1000.1, 7)):
        assert thresholds(lambda c=constant, t=tokens: [torch.full((t, 1), c)], 1.0)["std"] == 0
    narrow = tensor([[1000 - 1e-5], [1000 + 1e-5]], dtype=torch.float64)
    n, p = limits(narrow)
    assert n.item() == p.item() == 1000.0
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
    ours = margin(now[None], two_bits[None], real[None], n, p, "violating")[0]
    full = by_full_states(now_full, h[mask], real, n, p)
    ours.backward()
    full.backward()
    assert ours.item() == full.item()
    assert now.grad is not None
    assert torch.equal(now.grad, now_full.grad)
    close(ours.item(), 0.164832)
    assert (now.grad != 0).sum() == 12
    close(now.grad.abs().max(), 0.083333)
    rows = margin(x, coded, mask, n, p, "elements")
    close((rows * mask.sum(1)).sum() / 8, 0.030906)


# --- on a real (tiny) model


@pytest.fixture
def made(context: Any) -> Callable[..., tuple[GeRe, Any]]:
    def make(ctx_options: dict[str, Any] | None = None, **options: Any) -> tuple[GeRe, Any]:
        method = GeRe(GeReConfig(**{"max_tokens": 12, **options}))
        ctx = context(method, **(ctx_options or {}))
        method.begin_task(ctx)
        return method, ctx

    return make


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


@pytest.mark.parametrize("loss", ["l1", "l2", "label"])
def test_other_losses(made: Any, loss: str) -> None:
    method, ctx = made(loss=loss, insert=2)
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
            assert method.reads.hidden == ()


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
    from perdure.learners.context import Context

    method, ctx = made()
    folder = method._cache.folder
    files = {p.name for p in folder.iterdir()}
    assert {"meta.json", "thresholds.safetensors", "00000.safetensors"} <= files
    assert len(files) == 2 + len(GENERAL)
    original = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert all(m.training for m in ctx.model.modules()) is ctx.model.training

    calls: list[int] = []
    forward = Context.forward

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return forward(self, *args, **options)

    monkeypatch.setattr(Context, "forward", counted)
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
    made()
    assert len(calls) == len(GENERAL) - 3  # three texts were there
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == original


def test_another_setting_makes_another_cache_before_training(made: Any, caplog: Any) -> None:
    first, _ = made()
    with caplog.at_level("INFO", logger="perdure"):
        other, ctx = made(k=2.0)
    assert "as this changed: k" in caplog.text
    assert first._cache.folder != other._cache.folder
    with torch.no_grad():
        next(ctx.model.parameters()).mul_(1.01)
    with caplog.at_level("INFO", logger="perdure"):
        moved, _ = made()
    assert "as this changed: model" in caplog.text
    assert moved.base != first.base


def test_a_later_task_reads_the_base_and_refuses_what_it_cannot_make_again(made: Any) -> None:
    method, ctx = made()
    with torch.no_grad():
        for parameter in ctx.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    folder = method._cache.folder
    method.begin_task(ctx)
    assert method._cache.folder == folder
    again = GeRe(GeReConfig(max_tokens=12))
    again.load_state_dict(json.loads(json.dumps(method.state_dict())))
    again.begin_task(ctx)
    assert again._cache.folder == folder  # a new process: the state tells which base it was
    wider = GeRe(GeReConfig(max_tokens=10))
    wider.load_state_dict(method.state_dict())
    with pytest.raises(RunError, match="texts changed since they were made"):
        wider.begin_task(ctx)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with pytest.raises(RunError, match="they were removed"):
        again.begin_task(ctx)


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
    for text in range(len(GENERAL)):
        name = f"{text:05}.safetensors"
        lora, full = (m._cache.folder / name for m in (method, full_method))
        assert lora.read_bytes() == full.read_bytes()
    # At any task the base can be distilled again, as it is still there.
    later = GeRe(GeReConfig(max_tokens=10))
    later.load_state_dict(method.state_dict())
    later.begin_task(context(later, model=model, cache=tmp_path / "lora", task=SECOND))


def test_cached_states_are_small_and_padding_side_does_not_matter(made: Any) -> None:
    method, _ = made()
    row = method._rows[0]
    size = (method._cache.folder / "00000.safetensors").stat().st_size
    assert size - 8 - 80 < 12 * 64 / 4 + 64  # two bits a neuron, and a header
    mask = collate([row, {"input_ids": [1] * 15, "labels": [1] * 15}], 0)["attention_mask"].bool()
    right = method._cache.batch([0, 0], -1, mask[:1].repeat(2, 1))
    left = method._cache.batch([0, 0], -1, mask[:1].flip(1).repeat(2, 1))
    assert torch.equal(right[0, :12], left[0, 3:])


def test_no_general_text_is_told_before_training(made: Any) -> None:
    with pytest.raises(UsageError, match="no general text to replay"):
        made({"general": GeneralText()})
