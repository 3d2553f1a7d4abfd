"""GeRe's options one by one through a whole step, what is refused, and what users are told."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import family
from small_tasks import GENERAL, general_method
from test_gere import moved
from test_gere_dropin import added, arguments, margins, rows
from test_gere_more import by_two_passes, distances, losses, states, trainer_of, weights
from torch import Tensor, tensor

import perdure
from perdure.engine import packing
from perdure.errors import RunError, UsageError
from perdure.mechanisms.distances import kl
from perdure.mechanisms.margin import pack, plain
from perdure.models.chat import Encoder
from perdure.models.weights import fingerprint
from perdure.protocol.batch import ROWS, HostRows, collate
from perdure.streams.task import GeneralText

pytestmark = pytest.mark.unit

# --- options through a step


def step(tiny: Any, out: Path, micro: int = 4, **options: Any) -> dict[str, Any]:
    """One step of a model that was moved, by a trainer and by hand."""
    model, tokenizer = tiny
    base = weights(model)
    texts = [Encoder(tokenizer).encode_text(text, 12) for text in GENERAL]
    before = [states(model, row) for row in texts]
    guess = [_logits(model, row) for row in texts]
    moved(SimpleNamespace(model=model))
    trainer = trainer_of(
        model, tokenizer, out, max_steps=1, learning_rate=0.0,
        per_device_train_batch_size=micro, gradient_accumulation_steps=4 // micro,
    )  # fmt: skip
    given = {"name": "gere", "insert": 3, "max_tokens": 12, **options}
    perdure.attach(trainer, given, general=GENERAL, base=base)
    (method,) = trainer.methods  # type: ignore[attr-defined]
    drawn = [row["_text"] for row in method.replay(trainer.session.context)]  # type: ignore[attr-defined]
    trainer.train()
    n, p = by_two_passes(before)
    return {
        "trainer": trainer,
        "loss": next(row["loss"] for row in trainer.state.log_history if "loss" in row),
        "task": [losses(model, row) for row in rows(tokenizer)[:4]],
        "ce": [losses(model, texts[i]).mean() for i in drawn],
        "e": [distances(states(model, texts[i]), before[i], n, p) for i in drawn],
        "kl": [(_logits(model, texts[i]), guess[i]) for i in drawn],
    }


@torch.no_grad()
def _logits(model: Any, row: Any) -> Tensor:
    logits: Tensor = model(tensor([row["input_ids"]])).logits[0, :-1]
    return logits


MICRO: dict[str, Any] = {"name": "gere_official", "mix": "insert", "stats": "two_pass"}


def near(value: Any) -> Any:
    return pytest.approx(float(value), rel=1e-4)


@pytest.mark.parametrize("limit", [None, 0.5])
def test_a_dynamic_weight_and_its_limit(tiny: Any, tmp_path: Path, limit: Any) -> None:
    found = step(tiny, tmp_path, weight="dynamic", weight_max=limit)
    term = torch.stack([e.sum() / (e != 0).sum() for e in found["e"]])
    ce = torch.stack(found["ce"])
    weight = (ce / term).clamp(max=limit or torch.inf)
    assert float((ce / term).min()) > 0.5
    assert margins(found["trainer"], "gere_weight") == [near(weight.mean())]
    assert margins(found["trainer"], "gere_margin") == [near(term.mean())]
    assert added(found["trainer"]) == [near(3 / 7 * (weight * term).mean())]


@pytest.mark.parametrize("limit", [None, 0.5])
def test_a_dynamic_weight_of_a_whole_micro_batch(tiny: Any, tmp_path: Path, limit: Any) -> None:
    found = step(tiny, tmp_path, weight="dynamic", weight_max=limit, **MICRO)
    e = torch.cat(found["e"])
    term = e.sum() / (e != 0).sum()
    general = torch.cat([ce.expand(len(e)) for ce, e in zip(found["ce"], found["e"], strict=True)])
    assert len({len(e) for e in found["e"]}) == 1  # so that a mean of means is that of tokens
    ce = (torch.cat(found["task"]).mean() + general.mean()) / 2
    weight = (ce / term).clamp(max=limit or torch.inf)
    assert added(found["trainer"]) == [near(weight * term)]
    assert found["loss"] == near(ce + weight * term)


@pytest.mark.parametrize("reduction", ["elements", "tokens"])
def test_a_reduction_over_a_whole_micro_batch(tiny: Any, tmp_path: Path, reduction: str) -> None:
    found = step(tiny, tmp_path, reduction=reduction, weight=2.0, **MICRO)
    e = torch.cat(found["e"])
    term = e.mean() if reduction == "elements" else e.sum(-1).mean()
    assert added(found["trainer"]) == [near(2 * term)]


def test_the_temperature_of_kl(tiny: Any, tmp_path: Path) -> None:
    found = step(tiny, tmp_path, name="gere_kl", temperature=1.5, weight=1.0, top=512)
    each = [kl(new, old, 1.5).mean() for new, old in found["kl"]]
    assert added(found["trainer"], "gere_kl") == [near(3 / 7 * torch.stack(each).mean())]


def test_official_in_micro_batches_of_one(tiny: Any, tmp_path: Path) -> None:
    """The published set-up: four task rows and three texts are seven micro-batches that count
    alike, none is halved."""
    found = step(tiny, tmp_path, micro=1, name="gere_official", mix="insert", weight=10.0)
    held = [10 * e.sum() / (e != 0).sum() for e in found["e"]]
    every = [*(task.mean() for task in found["task"]), *found["ce"], *held]
    assert found["loss"] == near(torch.stack(every).sum() / 7)


def test_own_share_decides_how_many_texts_are_sampled(made: Any) -> None:
    none = {"general": GeneralText(), "stream_tokens": lambda: 8 * 200}
    for share, texts in ((0.1, 20), (0.5, 100)):
        method, _ = made(none, max_tokens=8, own_share=share, samples=1000)
        assert len(method._rows) == texts


def test_a_sampled_texts_start_counts_among_its_tokens(made: Any) -> None:
    none = {"general": GeneralText()}
    method, _ = made(none, max_tokens=9, samples=8)
    given = [row["labels"].count(-100) for row in method._rows]
    assert {len(row["input_ids"]) for row in method._rows} == {9}
    assert len(set(given)) == 2
    assert max(given) * 2 <= 9
    # Where a user's turn begins with more than half of the tokens, none begins there.
    short, _ = made(none, max_tokens=2 * max(given) - 1, samples=8)
    assert {row["labels"].count(-100) for row in short._rows} == {1}


# --- one pass or two


@pytest.mark.parametrize("by", ["rows", "mask"])
@pytest.mark.parametrize(
    "options",
    [{}, {"kind": "gere_distance", "norm": "l2", "weight": 100.0, "noise_floor": 0.0},
     {"kind": "gere_kl"}, {"label_weight": 0.0},
     {"kind": "gere_official", "mix": "insert", "stats": "two_pass"},
     {"weight": "dynamic"}, {"layers": (0, -1)}],
)  # fmt: skip
def test_one_pass_has_the_gradient_of_two(
    tiny_model_dir: Path, context: Any, tmp_path: Path, monkeypatch: Any, options: Any, by: str
) -> None:
    from transformers import AutoModelForCausalLM

    from perdure.engine.attach import attach
    from perdure.engine.sampler import EpochSampler
    from perdure.engine.trainer import PerdureTrainer

    def learned(ways: tuple[str, ...]) -> tuple[float, Tensor]:
        monkeypatch.setattr(packing, "ways", lambda *_: ways)
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        base = weights(model)
        torch.manual_seed(0)  # both must be moved alike
        moved(SimpleNamespace(model=model))
        method = general_method(**{"max_tokens": 24, "insert": 3, "samples": 1000, **options})
        ctx = context(method, model=model, batch_size=4, base=lambda: base)
        method.begin_task(ctx)
        tokenizer = ctx._session.encoder.tokenizer
        data = rows(tokenizer)
        trainer = PerdureTrainer(
            model=model, processing_class=tokenizer, train_dataset=data,
            args=arguments(
                tmp_path, max_steps=1, learning_rate=1.0, max_grad_norm=0,
                remove_unused_columns=False,
            ),
            data_collator=lambda b: {**collate(b, 0), ROWS: HostRows(b)},
        )  # fmt: skip
        trainer.session = ctx._session
        trainer.sampler = EpochSampler([len(row["input_ids"]) for row in data], 4, 0)
        attach(trainer, method, session=ctx._session)
        before = weights(model)
        trainer.train()
        loss = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
        return loss, torch.cat([(before[n] - w).flatten() for n, w in weights(model).items()])

    (one, packed), (two, apart) = learned((by,)), learned(())
    assert one == pytest.approx(two, rel=1e-5)
    assert float((packed - apart).norm() / apart.norm()) < 1e-5


# --- what is refused, and what users are told


@pytest.mark.parametrize("layer", [3, -4])
def test_layers_that_the_model_has_not(made: Any, layer: int) -> None:
    with pytest.raises(
        UsageError, match=f"method: layers: the model has no layer {layer}"
    ) as error:
        made(layers=(0, layer))
    assert "its layers are 0 to 2, and -1, the output of the final norm" in error.value.remedy
    made(layers=(0, 2, -2))
    with pytest.raises(UsageError, match="method: layers: a layer is named twice"):
        made(layers=(0, -3))


def test_texts_are_cut_to_the_models_context(context: Any, tiny: Any, tmp_path: Path) -> None:
    model = family("gpt2", len(tiny[1]))  # whose positions are learned: there are no others
    most = model.config.max_position_embeddings
    long = GeneralText(replay=[" ".join(GENERAL * 20)])
    for options in ({"general": long}, {"general": GeneralText()}):
        method = general_method(max_tokens=10 * most, samples=2)
        ctx = context(method, model=model, cache=tmp_path / str(len(options["general"].replay)),
                      **options)  # fmt: skip
        method.begin_task(ctx)
        assert max(len(row["input_ids"]) for row in method._rows or ()) <= most
    assert len(ctx.encode(long.replay[0])["input_ids"]) > most


def test_dropout_and_too_few_texts_are_told(
    context: Any, tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dropout = (
        "gere: the model has dropout, on general texts too: their margin is not 0 at the start"
    )
    few = f"gere: {len(GENERAL)} general texts are there, of samples: 50"
    for rate, samples, wanted in ((0.1, len(GENERAL), [dropout]), (0.0, 50, [few])):
        model = family("gpt2", len(tiny[1]))
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = rate
        method = general_method(samples=samples)
        with caplog.at_level(logging.INFO, logger="perdure"):
            method.begin_task(context(method, model=model, cache=tmp_path / str(rate)))
        assert caplog.messages == wanted
        caplog.clear()


def test_given_texts_are_given_again_for_the_next_task(tiny: Any, tmp_path: Path) -> None:
    first = trainer_of(*tiny, tmp_path / "a", max_steps=1)
    perdure.attach(first, {"name": "gere", "max_tokens": 12, "insert": 1}, general=GENERAL)
    first.train()
    methods = first.methods  # type: ignore[attr-defined]
    second = trainer_of(*tiny, tmp_path / "b", max_steps=1)
    with pytest.raises(UsageError, match="given for the first task, and none are now") as error:
        perdure.attach(second, *methods, task="second", task_index=1)
    assert error.value.remedy == (
        "give the same ones again: attach(trainer, *methods, general=texts)",
    )
    third = trainer_of(*tiny, tmp_path / "c", max_steps=1)
    perdure.attach(third, *methods, general=GENERAL, task="second", task_index=1)
    assert list((tmp_path / "a" / "perdure").glob("states-*"))
    assert not (tmp_path / "c" / "perdure").exists()


def test_texts_that_come_only_once_are_all_taken(tiny: Any, tmp_path: Path) -> None:
    trainer = trainer_of(*tiny, tmp_path, max_steps=1)
    perdure.attach(trainer, {"name": "gere", "max_tokens": 12}, general=iter(GENERAL))
    (method,) = trainer.methods  # type: ignore[attr-defined]
    assert len(method._rows) == len(GENERAL)
    assert method.texts == ""


def test_given_texts_are_given_again_with_label_alone(made: Any, context: Any) -> None:
    """Which distils nothing that would remember the base."""
    method, _ = made(kind="general_replay")
    with pytest.raises(UsageError, match="and none are now"):
        method.begin_task(context(method, general=GeneralText(), task_index=1))


@pytest.mark.parametrize(
    ("methods", "general", "message"),
    [
        (["gere"], "general.txt", "attach: general is a list of texts"),
        (["gere"], [1, 2], "attach: general is a list of texts"),
        ([], GENERAL, "attach: no method is given"),
        ([["gere"]], GENERAL, "attach: ['gere'] names no method"),
        ([{"nam": "gere"}], GENERAL, "attach: {'nam': 'gere'} names no method"),
    ],
)
def test_what_attach_refuses(
    tiny: Any, tmp_path: Path, methods: Any, general: Any, message: str
) -> None:
    trainer = trainer_of(*tiny, tmp_path, max_steps=1)
    with pytest.raises(UsageError) as error:
        perdure.attach(trainer, *methods, general=general)
    assert error.value.what == message
    assert error.value.remedy


def test_damaged_files_of_a_cache_are_made_again(
    made: Any, caplog: pytest.LogCaptureFixture
) -> None:
    method, ctx = made({"general": GeneralText()}, samples=6)
    samples = ctx._session.cache / method.texts
    lines = samples.read_text().splitlines(keepends=True)
    samples.write_text("".join(lines[:4]))
    method.begin_task(ctx)
    assert samples.read_text().splitlines(keepends=True)[1:] == lines[1:]
    assert f"{samples}: damaged, so the base model writes its texts again" in caplog.text
    manifest = method.states.folder / "manifest.json"
    manifest.write_text("{")
    # On a trainer of one's own there is no base model to compute them again.
    with pytest.raises(RunError, match="the base model's states are not in"):
        method.begin_task(ctx)


# --- what must not be missed


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_a_state_that_is_no_number_is_never_taken_for_none(floor: float) -> None:
    x = tensor([[[float("nan"), 0.0, 0.0, 2.0]]])
    codes, n, p = pack(torch.zeros(1, 1, 4, dtype=torch.uint8)), -torch.ones(4), torch.ones(4)
    total, *_ = plain(x, codes, torch.ones(1, 1).bool(), n, p, floor)
    assert total.isnan().all()


def test_a_fingerprint_tells_the_same_values_in_other_places(tiny: Any) -> None:
    model, _ = tiny
    same = fingerprint(model)
    down = model.model.layers[1].mlp.down_proj.weight
    table = model.model.embed_tokens.weight
    with torch.no_grad():
        for matrix, side in ((table, 0), (table, 1), (down, 0), (down, 1)):
            # Numbers of rows or columns of which no value is in the sample.
            i, j = matrix.shape[side] // 3, matrix.shape[side] // 3 + 1
            kept = matrix.clone()
            order = torch.arange(matrix.shape[side])
            order[i], order[j] = j, i
            matrix.copy_(matrix.index_select(side, order))
            assert fingerprint(model) != same
            matrix.copy_(kept)
        assert fingerprint(model) == same
        down[5, 7] += 1e-3
        assert fingerprint(model) != same
        down[5, 7] -= 1e-3
    model.register_buffer("scale", torch.ones(3))
    with_buffer = fingerprint(model)
    model.scale *= 3
    assert fingerprint(model) != with_buffer
