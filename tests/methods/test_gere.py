"""GeRe on a tiny model, and hand-computed examples (numbered as in the notes on its code).

Those of its margin and its distances alone are in `tests/mechanisms`. Tolerance 1e-6 unless said.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import family
from margins import by_full_states, limits
from small_tasks import FIRST, GENERAL, SECOND, general_method
from torch import Tensor, tensor

from perdure.engine import distillation
from perdure.engine.general_texts import how_many, repeats
from perdure.engine.session import TaskSession
from perdure.errors import RunError
from perdure.mechanisms import state_cache
from perdure.mechanisms.distances import kl
from perdure.mechanisms.margin import flags, margin, pack
from perdure.mechanisms.state_cache import alike
from perdure.methods.gere import GeRe, GeReConfig
from perdure.protocol.batch import ForwardOutput
from perdure.protocol.step import Phase, Step
from perdure.streams.task import GeneralText

pytestmark = pytest.mark.unit

STATES = tensor([[1.0, 0, 2], [3, 0, 2], [5, 4, 2], [7, 4, 2]])


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found), torch.as_tensor(expected), atol=1e-6, rtol=1e-5, check_dtype=False
    )


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
    ctx = SimpleNamespace(
        batch_size=5, step=Step(), log=lambda *_: None, task=SimpleNamespace(learn="sft")
    )
    return method, ctx, extra


def task_rows(nll: list[float]) -> Any:
    """Rows of one token each, as the trainer has them: it takes their mean."""
    mask = torch.ones(len(nll), 1)
    return SimpleNamespace(nll=tensor(nll), mask=mask, token_mean=lambda v: v.mean())


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
    other, _ = made({"cache": ctx._session.cache.parent / "other"})
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
    lines = [json.loads(x) for x in (ctx._session.cache / method.texts).read_text().splitlines()]
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
    (ctx._session.cache / method.texts).unlink()
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
