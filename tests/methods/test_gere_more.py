"""GeRe: what its cache refuses, its options through whole steps, its figures, schedule and size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import family
from small_tasks import GENERAL, general_method
from test_gere import STATES, by_full_states, close, moved
from test_gere_dropin import added, arguments, margins, rows
from tiny_runs import write_recipe
from torch import Tensor, tensor
from transformers import Trainer, TrainerCallback

import perdure
from perdure.errors import RunError
from perdure.mechanisms.distances import kl
from perdure.mechanisms.margin import unpack
from perdure.mechanisms.state_cache import StateCache
from perdure.methods.gere import GeRe, GeReConfig
from perdure.models.chat import Encoder
from perdure.protocol.batch import collate
from perdure.protocol.step import Phase
from perdure.streams.task import GeneralText

pytestmark = pytest.mark.train

CPU = torch.device("cpu")

# --- the cache


def bf16() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


ROW: dict[str, Any] = {"scope": "row", "mix": "insert"}
OTHERS: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    # the method, its options, the context's options, and what is said to have changed
    ("gere", {"layers": (0, -1)}, {}, "layers"),
    ("gere", {"k": 2.0}, {}, "k"),
    ("gere_official", {"stats": "two_pass"}, {}, "stats"),
    ("gere", {"max_tokens": 10}, {}, "texts, lengths"),
    ("gere", {"samples": 5}, {}, "texts"),
    ("gere", {}, {"general": GeneralText(replay=GENERAL[::-1])}, "texts"),
    ("gere", {}, {"autocast": bf16}, "dtype"),
    ("gere", {"k": 2.0, "layers": (0,)}, {}, "layers, k"),
    ("gere_distance", {"layers": (0, -1)}, {}, "layers"),
    ("gere_kl", {"temperature": 1.0}, {}, "temperature"),
    ("gere_kl", {"top": 32}, {}, "top"),
    ("gere_kl", {}, {"autocast": bf16}, "dtype"),
]


@pytest.mark.parametrize(("kind", "options", "of_ctx", "changed"), OTHERS)
def test_a_cache_of_other_settings_is_not_used_in_the_first_task(
    made: Any, caplog: Any, kind: str, options: Any, of_ctx: Any, changed: str
) -> None:
    first, _ = made(kind=kind)
    kept = contents(first)
    with caplog.at_level("INFO", logger="perdure"):
        other, _ = made(of_ctx, kind=kind, **options)
    assert caplog.messages == [
        f"{kind}: distilling the base model anew, as this changed: {changed}"
    ]
    assert other.states.folder != first.states.folder
    assert contents(first) == kept


@pytest.mark.parametrize(("kind", "options", "of_ctx", "changed"), OTHERS)
def test_a_cache_of_other_settings_is_refused_once_the_base_is_trained_over(
    made: Any, context: Any, kind: str, options: Any, of_ctx: Any, changed: str
) -> None:
    first, ctx = made(kind=kind)
    moved(ctx)
    later = context(first, cache=ctx._session.cache, task_index=1, **of_ctx)
    refused(first, general_method(kind, **{"samples": 1000, **options}), changed, later)


def contents(method: Any) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in method.states.folder.iterdir()}


def refused(first: Any, later: Any, changed: str, ctx: Any) -> None:
    """A later task, in a new process, with another setting."""
    later.load_state_dict(json.loads(json.dumps(first.state_dict())))
    before = sorted(ctx._session.cache.iterdir())
    with pytest.raises(RunError) as error:
        later.begin_task(ctx)
    what, remedy = str(error.value).split("\n")
    said, _, reason = what.partition(": the base model's states are not in ")
    folder, _, reason = reason.partition(": ")
    assert said == later.name
    assert Path(folder).parent == ctx._session.cache
    assert not Path(folder).exists()
    assert reason == f"{changed} changed since they were made"
    assert remedy.strip() == "a trained model cannot give them again: start a new run"
    assert sorted(ctx._session.cache.iterdir()) == before


@pytest.mark.parametrize("task", ["first", "later"])
@pytest.mark.parametrize("what", ["attention", "tokenizer"])
def test_another_attention_or_tokenizer_is_another_teacher(
    made: Any, context: Any, tiny: Any, caplog: Any, task: str, what: str
) -> None:
    first, ctx = made()
    changed = {"attention": "attention", "tokenizer": "texts"}[what]
    if task == "later":
        moved(ctx)
    if what == "attention":
        tiny[0].set_attn_implementation("eager")
    else:
        from tokenizers.normalizers import Lowercase

        tiny[1]._tokenizer.normalizer = Lowercase()  # the same words, and other ids of "The"
    if task == "later":
        refused(
            first,
            GeRe(first.config),
            changed,
            context(first, cache=ctx._session.cache, task_index=1),
        )
        return
    with caplog.at_level("INFO", logger="perdure"):
        other, _ = made()
    assert caplog.messages == [f"gere: distilling the base model anew, as this changed: {changed}"]
    assert other.states.folder != first.states.folder


def test_another_loss_does_not_read_this_ones_cache(made: Any) -> None:
    kinds = {
        "margin": {"kind": "gere"}, "kl": {"kind": "gere_kl"}, "l1": {"kind": "gere_distance"},
        "l2": {"kind": "gere_distance", "norm": "l2"},
    }  # fmt: skip
    folders = {loss: made(**kind)[0].states.folder for loss, kind in kinds.items()}
    assert folders["l1"] == folders["l2"]  # both are distances to the same states
    assert len(set(folders.values())) == 3
    official = made(kind="gere_official", stats="two_pass")[0]
    assert official.states.folder == folders["margin"]  # the same states, of another method


def test_messages_name_the_method_at_hand(
    made: Any, context: Any, tiny: Any, tmp_path: Path, caplog: Any
) -> None:
    first, ctx = made()
    with caplog.at_level("INFO", logger="perdure"):
        made(kind="gere_kl")  # listed beside it: nothing has changed
    assert caplog.messages == []
    moved(ctx)
    later = general_method("gere_distance")
    later.base = first.base
    with pytest.raises(RunError, match=r"^gere_distance: .*: method changed since they were made"):
        later.begin_task(context(later, cache=ctx._session.cache, task_index=1))
    model = family("gpt2", len(tiny[1]))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    for kind, held in (("gere_distance", "distance"), ("gere_kl", "KL")):
        method = general_method(kind)
        with caplog.at_level("INFO", logger="perdure"):
            method.begin_task(context(method, model=model, cache=tmp_path / kind))
        assert caplog.messages == [
            f"{kind}: the model has dropout, on general texts too: their {held} is not 0 at the "
            "start"
        ]
        caplog.clear()


def test_another_loss_is_named_once_the_base_is_trained_over(made: Any, context: Any) -> None:
    first, ctx = made(kind="gere_kl")
    moved(ctx)
    later = context(first, cache=ctx._session.cache, task_index=1)
    refused(first, general_method("gere_distance", norm="l2"), "method", later)


def test_a_models_settings_are_part_of_what_a_cache_is_of(tiny: Any) -> None:
    """Not only its weights: another activation or base of the positions gives other states."""
    from perdure.models.weights import fingerprint

    model, _ = tiny
    same = fingerprint(model)
    model.config.use_cache = not model.config.use_cache
    model.config.pad_token_id = 1
    assert fingerprint(model) == same
    for change in ({"hidden_act": "gelu"}, {"rms_norm_eps": 0.1}, {"rope_parameters": {"x": 1}}):
        before = {key: getattr(model.config, key) for key in change}
        for key, value in change.items():
            setattr(model.config, key, value)
        assert fingerprint(model) != same
        for key, value in before.items():
            setattr(model.config, key, value)
    assert fingerprint(model) == same


@pytest.mark.parametrize(
    "options",
    [
        {"weight": 1.0, "label_weight": 0.5, "insert": 2},
        {"kind": "gere_official", **ROW, "reduction": "tokens", "noise_floor": "measured",
         "stats": "two_pass"},
        {"kind": "gere_official", "mix": "concat", "scope": "micro", "stats": "two_pass"},
    ],
)  # fmt: skip
def test_what_no_state_depends_on_reads_the_same_cache(
    made: Any, caplog: Any, options: Any
) -> None:
    first, ctx = made()
    kept = contents(first)
    moved(ctx)  # so that it could not be distilled again
    later = general_method(**options)
    later.load_state_dict(first.state_dict())
    later.begin_task(ctx)
    assert later.states.folder == first.states.folder
    assert contents(later) == kept
    assert caplog.messages == []


def test_m1_and_m2_through_the_cache_and_m18_beside_it(tmp_path: Path) -> None:
    """Two texts, distilled alone: what the padding of a batch of them would give is not there."""
    texts = [STATES[:1], STATES[1:]]
    cache = StateCache(tmp_path, {"texts": "by hand"}, "codes")
    cache.build(
        [[0], [1]], lambda group, _: [{"-1": texts[i]} for i in group], lambda _: {}, who="it"
    )
    n, p = cache.limits(-1, CPU)
    close(n, [1.763932, 0, 2])
    close(p, [6.236068, 4, 2])
    codes = unpack(cache.rows([0, 1], -1, 3, CPU), 3)
    assert codes.tolist() == [
        [[1, 1, 3], [0, 0, 0], [0, 0, 0]],
        [[0, 1, 3], [0, 2, 3], [2, 2, 3]],
    ]
    padded = torch.cat([STATES, torch.zeros(2, 3)]).unsqueeze(0)
    wrong = StateCache(tmp_path, {"texts": "padded"}, "codes")
    wrong.build([[0]], lambda *_: [{"-1": padded[0]}], lambda _: {}, who="it")
    n, p = wrong.limits(-1, CPU)
    close((n + p) / 2, [2.666667, 1.333333, 1.333333])
    close((p - n) / 2, [2.624669, 1.885618, 0.942809])


def test_m16_statistics_that_are_not_finite_are_refused(context: Any, tiny: Any) -> None:
    """Trap 4: neurons that never move, far from zero, in one pass of fp32."""
    model = family("gpt2", len(tiny[1]))
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(7.3 * torch.arange(1, 33))
    method = general_method("gere_official")
    with pytest.raises(RunError, match=r"^gere_official: the base model's states of") as error:
        method.begin_task(context(method, model=model))
    assert error.value.remedy == ("check the base model, train it in fp32, or use stats: two_pass",)
    method = GeRe(GeReConfig(max_tokens=12, insert=1))
    ctx = context(method, model=model)
    method.begin_task(ctx)
    n, p = method.states.limits(-1, CPU)
    assert torch.equal(n, p)
    close(n, 7.3 * torch.arange(1, 33))


def test_the_cache_is_a_fifteenth_of_the_states_in_fp32(made: Any) -> None:
    """All files of the folder, their headers and the manifest too, on a hidden size of 64."""
    general = GeneralText(replay=[f"{i} " + " ".join(GENERAL) for i in range(80)])
    method, ctx = made({"general": general}, max_tokens=64, samples=80)
    tokens = sum(len(row["input_ids"]) for row in method._rows)
    assert tokens == 80 * 64
    full = tokens * ctx.model.config.hidden_size * 4
    small = sum(p.stat().st_size for p in method.states.folder.iterdir())
    assert full / 16 < small < full / 15


# --- options through whole steps


def test_special_tokens_around_texts_are_the_tokenizers(made: Any, tiny: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    bos, eos = "<|endoftext|>", "<|im_end|>"
    ids = dict(zip((bos, eos), tiny[1].convert_tokens_to_ids([bos, eos]), strict=True))
    tiny[1]._tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=list(ids.items())
    )
    bare, _ = made(max_tokens=20)
    around, ctx = made(kind="gere_official", **ROW, max_tokens=20, add_special_tokens=True)
    cut = 0
    for one, two in zip(bare._rows, around._rows, strict=True):
        whole = Encoder(tiny[1]).encode_text(GENERAL[one["_text"]])["input_ids"]
        assert one["input_ids"] == whole[:20]
        assert two["input_ids"] == [ids[bos], *whole, ids[eos]][:20]  # counted in max_tokens
        assert two["labels"] == two["input_ids"]
        cut += len(whole) > 18
    texts = (around.states.about["texts"], bare.states.about["texts"])
    assert texts[0] != texts[1]
    assert 0 < cut < len(GENERAL)  # both kinds: with the end and, where it is cut, without
    with torch.no_grad():
        terms = around.loss(ctx, None, ctx.forward(around.replay(ctx)[:1]))
    assert terms["gere_margin"] == 0


class Steps(TrainerCallback):
    """Counts the optimizer's steps."""

    count = 0

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.count += 1


def trainer_of(model: Any, tokenizer: Any, out: Path, data: Any = None, **options: Any) -> Trainer:
    """A trainer that sees the rows in order and logs each step."""
    return Trainer(
        model=model, processing_class=tokenizer, train_dataset=data or rows(tokenizer),
        args=arguments(
            out, remove_unused_columns=False, train_sampling_strategy="sequential", **options
        ),
        data_collator=lambda batch: collate(batch, tokenizer.pad_token_id),
    )  # fmt: skip


def weights(model: Any) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@torch.no_grad()
def states(model: Any, row: Any) -> Tensor:
    out = model(tensor([row["input_ids"]]), output_hidden_states=True)
    return out.hidden_states[-1][0]


@torch.no_grad()
def losses(model: Any, row: Any) -> Tensor:
    """The loss of each label token of a row that runs alone."""
    logits = model(tensor([row["input_ids"]])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(
        logits, tensor(row["labels"][1:]), reduction="none", ignore_index=-100
    )[tensor(row["labels"][1:]) != -100]


def by_one_pass(every: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The official thresholds: sums of x and x^2 in fp32, text after text."""
    count = sum(map(len, every))
    total = square = torch.zeros(every[0].shape[1])
    for s in every:
        total, square = total + s.sum(0), square + (s * s).sum(0)
    mean = total / count
    std = (square / count - mean * mean).sqrt()
    return mean - std, mean + std


def by_two_passes(every: list[Tensor]) -> tuple[Tensor, Tensor]:
    s = torch.cat(every).double()
    mean, std = s.mean(0), s.std(0, correction=0)
    return (mean - std).float(), (mean + std).float()


def far_from_zero(model: Any) -> None:
    """Moves the final states so far that one pass of fp32 tells their deviation wrongly."""
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(0.05)
        model.transformer.ln_f.bias.fill_(20.0)


REDUCTIONS: dict[str, Callable[[Tensor], float]] = {
    "violating": lambda e: float(e.sum() / (e != 0).sum()),
    "elements": lambda e: float(e.sum() / e.numel()),
    "tokens": lambda e: float(e.sum() / len(e)),
}


def distances(x: Tensor, h: Tensor, n: Tensor, p: Tensor) -> Tensor:
    low = torch.where(h <= n, -torch.inf, torch.where(h >= p, p, n))
    high = torch.where(h >= p, torch.inf, torch.where(h <= n, n, p))
    return torch.relu(x - high) + torch.relu(low - x)


@pytest.mark.parametrize("stats", ["two_pass", "one_pass_fp32"])
@pytest.mark.parametrize("reduction", list(REDUCTIONS))
def test_a_steps_loss_by_reduction_and_statistics(
    tiny: Any, tmp_path: Path, reduction: str, stats: str
) -> None:
    """The trainer's whole loss: the task's, and of a step of 4 + 3 rows three sevenths."""
    tokenizer, model = tiny[1], family("gpt2", len(tiny[1]))
    far_from_zero(model)
    base = weights(model)
    texts = [Encoder(tokenizer).encode_text(text, 12) for text in GENERAL]
    before = [states(model, row) for row in texts]
    limits = {"two_pass": by_two_passes(before), "one_pass_fp32": by_one_pass(before)}
    gap = (limits["two_pass"][1] - limits["one_pass_fp32"][1]).abs().max()
    assert gap > 1e-4  # else this would not see which one is used
    torch.manual_seed(0)
    moved(SimpleNamespace(model=model))
    trainer = trainer_of(model, tokenizer, tmp_path, max_steps=1)
    option = {
        "name": "gere_official", **ROW, "insert": 3, "max_tokens": 12, "weight": 10.0,
        "label_weight": 0.5, "reduction": reduction, "stats": stats,
    }  # fmt: skip
    perdure.attach(trainer, option, general=GENERAL, base=base)
    ctx, (method,) = trainer.session.context, trainer.methods  # type: ignore[attr-defined]
    drawn = [row["_text"] for row in method.replay(ctx)]
    assert len(set(drawn)) == 3
    task = torch.cat([losses(model, row) for row in rows(tokenizer)[:4]]).mean()
    labels = [losses(model, texts[i]).mean() for i in drawn]
    held = {
        name: [
            REDUCTIONS[reduction](distances(states(model, texts[i]), before[i], *pair))
            for i in drawn
        ]
        for name, pair in limits.items()
    }
    total = {name: task + (0.5 * sum(labels) + 10 * sum(h)) / 7 for name, h in held.items()}
    trainer.train()
    (found,) = (row["loss"] for row in trainer.state.log_history if "loss" in row)
    assert found == pytest.approx(float(total[stats]), rel=1e-5, abs=1e-4)
    (margin,) = added(trainer)
    assert margin == pytest.approx(10 * sum(held[stats]) / 7, rel=1e-4)
    other = next(sum(h) for name, h in held.items() if name != stats)
    assert margin != pytest.approx(10 * other / 7, rel=1e-3)


@pytest.mark.parametrize("loss", ["margin", "kl"])
def test_official_through_a_step(tiny: Any, tmp_path: Path, loss: str) -> None:
    """Its four settings at once: a quarter of the texts a step, a mean over all rows, one pass."""
    tokenizer, model = tiny[1], family("gpt2", len(tiny[1]))
    far_from_zero(model)
    base, general = weights(model), GENERAL * 2
    texts = [Encoder(tokenizer).encode_text(text, 32) for text in general]
    before = [states(model, row) for row in texts]
    guess = [logits_of(model, row) for row in texts]
    n, p = by_one_pass(before)
    torch.manual_seed(0)
    moved(SimpleNamespace(model=model))
    trainer = trainer_of(model, tokenizer, tmp_path, max_steps=1)
    option = {
        "name": "gere_official", "loss": loss, "weight": 10.0, "max_tokens": 32,
        **({"kl_top": 512} if loss == "kl" else {}),
    }  # fmt: skip
    perdure.attach(trainer, option, general=general, base=base)
    ctx, (method,) = trainer.session.context, trainer.methods  # type: ignore[attr-defined]
    drawn = [row["_text"] for row in method.replay(ctx)]
    assert len(drawn) == 3  # 12 texts in 4 steps of 4 of the task's 16 rows
    task = torch.cat([losses(model, row) for row in rows(tokenizer)[:4]]).mean()
    label = torch.cat([losses(model, texts[i]) for i in drawn]).mean()
    lengths = [len(texts[i]["input_ids"]) for i in drawn]
    assert len(set(lengths)) > 1  # there is padding, which the official KL counts
    if loss == "margin":
        x = torch.cat([states(model, texts[i]) for i in drawn])
        h = torch.cat([before[i] for i in drawn])
        term = by_full_states(x, h, torch.ones(len(x)), n, p)
    else:
        each = [kl(logits_of(model, texts[i]), guess[i], 2.0).sum() for i in drawn]
        term = sum(each) / (3 * max(lengths))
    trainer.train()
    (found,) = (row["loss"] for row in trainer.state.log_history if "loss" in row)
    assert found == pytest.approx(float((task + label) / 2 + 10 * term), rel=1e-5, abs=1e-4)
    assert added(trainer, f"gere_{loss}") == [pytest.approx(float(10 * term), rel=1e-4)]


@torch.no_grad()
def logits_of(model: Any, row: Any) -> Tensor:
    return model(tensor([row["input_ids"]])).logits[0, :-1]


# --- what is logged


@pytest.mark.parametrize("micro", [4, 1])
def test_flips_are_none_at_the_start_and_then_those_of_a_plain_count(
    tiny: Any, tmp_path: Path, micro: int
) -> None:
    model, tokenizer = tiny
    base = weights(model)
    texts = [Encoder(tokenizer).encode_text(text, 12) for text in GENERAL]
    before = [states(model, row) for row in texts]
    n, p = by_two_passes(before)

    def trained(folder: str) -> tuple[float, list[int]]:
        trainer = trainer_of(
            model, tokenizer, tmp_path / folder, max_steps=1, learning_rate=0.0,
            per_device_train_batch_size=micro, gradient_accumulation_steps=4 // micro,
        )  # fmt: skip
        # With a floor, as without one each flip lies outside its interval too.
        option = {
            "name": "gere_official", **ROW, "stats": "two_pass", "insert": 3, "max_tokens": 12,
            "noise_floor": 0.2,
        }  # fmt: skip
        perdure.attach(trainer, option, general=GENERAL, base=base, cache=tmp_path / "cache")
        ctx, (method,) = trainer.session.context, trainer.methods  # type: ignore[attr-defined]
        drawn = [row["_text"] for row in method.replay(ctx)]
        trainer.train()
        (share,) = margins(trainer, "gere_flips")
        (far,) = margins(trainer, "gere_violating")
        assert far < share or not share
        for name in ("_is_accelerate_prepared", "forward", "_original_forward"):
            model.__dict__.pop(name, None)
        return share, drawn

    assert trained("unmoved")[0] == 0.0
    with torch.no_grad():
        model.model.norm.weight[:32] *= 1.5
        model.model.norm.weight[32:40] *= -1
    share, drawn = trained("moved")
    plain = []
    for i in drawn:
        h, x = before[i], states(model, texts[i])
        # A state flips where it was low and is not, or is low and was not; or so of high.
        changed = ((h <= n) != (x <= n)) | ((h >= p) != (x >= p))
        plain.append(changed.float().mean().item())
    assert min(plain) > 0.01
    assert share == pytest.approx(sum(plain) / 3, rel=1e-5)


# --- how long it trains

MIXES: dict[str, dict[str, Any]] = {
    "insert": {"name": "gere", "insert": 2},
    "concat": {"name": "gere_official", "scope": "row"},
}


@pytest.mark.parametrize("mix", ["insert", "concat"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_schedule_ends_at_its_last_step(
    tiny: Any, tmp_path: Path, mix: str, schedule: str
) -> None:
    """Trap 10: the official sampler says another length than it has, and the rate stays high."""
    trainer = trainer_of(
        *tiny, tmp_path, max_steps=-1, num_train_epochs=2, lr_scheduler_type=schedule,
        per_device_train_batch_size=3,
    )  # fmt: skip
    steps = Steps()
    trainer.add_callback(steps)
    perdure.attach(trainer, {**MIXES[mix], "max_tokens": 12}, general=GENERAL)
    trainer.train()
    assert steps.count == trainer.state.global_step == trainer.state.max_steps == 12  # 2 * 16 / 3
    scheduler = trainer.lr_scheduler
    assert scheduler is not None
    assert scheduler.last_epoch == 12
    assert set(scheduler.get_last_lr()) == {0.0}
    rates = [row["learning_rate"] for row in trainer.state.log_history if "loss" in row]
    assert len(rates) == 12
    if schedule == "linear":  # that of step s, counted from 0
        assert rates == pytest.approx([0.05 * (1 - s / 12) for s in range(12)])


@pytest.mark.parametrize("mix", ["insert", "concat"])
def test_the_schedule_of_a_whole_run_ends_in_each_task(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: Any, mix: str
) -> None:
    """By Perdure's own learner: 24 rows in batches of 4, one epoch, two tasks."""
    from perdure import Run, learn, load_recipe
    from perdure.engine.trainer import PerdureTrainer

    ends: list[Any] = []
    train = PerdureTrainer.train

    def noted(self: Any, *args: Any, **options: Any) -> Any:
        found = train(self, *args, **options)
        state, scheduler = self.state, self.lr_scheduler
        ends.append((state.global_step, state.max_steps, scheduler.last_epoch))
        ends.append(set(scheduler.get_last_lr()))
        return found

    monkeypatch.setattr(PerdureTrainer, "train", noted)
    option = {**MIXES[mix], "max_tokens": 12}
    path = write_recipe(
        tmp_path, tiny_model_dir, method=option, train__epochs=1, train__schedule="linear",
        scoring__max_test_rows=2,
    )  # fmt: skip
    recipe = load_recipe(path)
    learn(recipe, Run.create(tmp_path / "run", recipe))
    assert ends == [(6, 6, 6), {0.0}] * 2


@pytest.mark.parametrize(("count", "steps"), [(9, 3), (10, 4)])
def test_m23_each_step_has_its_general_rows_also_where_one_task_row_is_left(
    tiny: Any, tmp_path: Path, count: int, steps: int
) -> None:
    """N = 9 or 10 task rows, E = 3 texts, 3 + 2 rows a step; N = 10 stops the official sampler."""
    trainer = trainer_of(
        *tiny, tmp_path, rows(tiny[1])[:count], max_steps=-1, num_train_epochs=1,
        per_device_train_batch_size=3,
    )  # fmt: skip
    option = {"name": "gere", "insert": 2, "max_tokens": 12}
    perdure.attach(trainer, option, general=GENERAL[:3])
    (method,) = trainer.methods  # type: ignore[attr-defined]
    replay, drawn = method.replay, []

    def noted(ctx: Any) -> Any:
        found = replay(ctx)
        drawn.append([row["_text"] for row in found])
        return found

    method.replay = noted
    trainer.train()
    assert trainer.state.global_step == len(drawn) == steps
    assert [len(step) for step in drawn] == [2] * steps
    first = [*drawn[0], *drawn[1], *drawn[2]]
    assert sorted(first[:3]) == sorted(first[3:]) == [0, 1, 2]  # each twice, none before all
    assert count + sum(map(len, drawn)) == {9: 15, 10: 18}[count]


def test_m23_rows_of_a_long_task(made: Any) -> None:
    """N = 5000, 60 task rows and 4 general ones a step: 5336 rows in all, in 84 steps."""
    method, ctx = made({"batch_size": 60}, insert=4)
    ctx._session.begin_phase(Phase(), 5000)
    assert ctx.step.per_epoch == 84
    drawn = 0
    for step in range(84):
        ctx._session.end_step(step)
        drawn += len(method.replay(ctx))
    assert 5000 + drawn == 5336
