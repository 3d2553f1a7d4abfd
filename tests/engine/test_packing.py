"""Task rows and extra rows in one pass give what separate passes give."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, family
from tiny_runs import write_recipe

from perdure.engine import rowwise_attention
from perdure.engine.forward import capture
from perdure.engine.packing import (
    By,
    best_lines,
    heads_at,
    keeps_rows_apart,
    lines,
    pack,
    packer_of,
    ways,
)
from perdure.engine.rowwise_attention import ROWS_APART, attends_by_rows, row_places, takes_rows
from perdure.models.chat import IGNORE
from perdure.protocol.batch import ForwardOutput, collate
from perdure.protocol.method import Requires

pytestmark = pytest.mark.train

MAIN = [
    {"input_ids": [5, 6, 7, 8], "labels": [IGNORE, IGNORE, 7, 8]},
    {"input_ids": [9, 10, 11], "labels": [IGNORE, IGNORE, 11]},
]
EXTRA = [
    {"input_ids": list(range(20, 30)), "labels": list(range(20, 30))},
    {"input_ids": [40, 41, 42], "labels": [40, 41, 42]},
]


def test_rows_are_spread_over_lines_longest_first() -> None:
    assert lines([4, 3, 10, 3], 2) == [[2], [0, 1, 3]]
    assert lines([4, 3, 10, 3], 1) == [[2, 0, 1, 3]]
    assert lines([5, 5, 5], 3) == [[0], [1], [2]]


def test_padding_is_weighed_against_attention_over_longer_lines() -> None:
    # 48 + 27 + 27 = 102: four lines without padding beat twelve of 48
    assert [len(line) for line in best_lines([48] * 4 + [27] * 8, 576)] == [3, 3, 3, 3]
    # with a tiny state attention is dear: a line for each row
    assert best_lines([10, 10, 10], 1) == [[0], [1], [2]]


def test_a_pack_by_hand() -> None:
    found = pack(MAIN, EXTRA, pad_id=0, extra_logits=False, by="mask", hidden=1)
    assert found.inputs["input_ids"].tolist() == [
        [20, 21, 22, 23, 24, 25, 26, 27, 28, 29], [5, 6, 7, 8, 9, 10, 11, 40, 41, 42],
    ]  # fmt: skip
    assert found.inputs["position_ids"].tolist() == [
        list(range(10)), [0, 1, 2, 3, 0, 1, 2, 0, 1, 2],
    ]  # fmt: skip
    # Tokens 7, 8 and 11 are predicted where 6, 7 and 10 are.
    assert found.keep.tolist() == [11, 12, 15]
    assert found.main.heads == slice(0, 3)
    assert found.main.labels.tolist() == [7, 8, 11]
    assert [w.tolist() for w in found.main.where] == [[0, 0, 1], [1, 2, 1]]
    assert found.main.states.tolist() == [[10, 11, 12, 13], [14, 15, 16, 0]]
    assert found.extra.states[1].tolist() == [17, 18, 19, 0, 0, 0, 0, 0, 0, 0]
    assert found.extra.mask.sum(1).tolist() == [10, 3]
    assert found.extra.heads == slice(3, 3)
    full = pack(MAIN, EXTRA, pad_id=0, extra_logits=True, by="mask", hidden=1)
    assert full.keep.tolist() == [11, 12, 15, *range(9), 17, 18]
    assert full.extra.heads == slice(3, 3 + 9 + 2)


def test_a_short_line_is_filled_with_a_row_of_padding() -> None:
    found = pack(MAIN, (), pad_id=0, extra_logits=False, by="mask", hidden=1)
    assert found.inputs["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, 11, 0]]
    assert found.inputs["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 2, 0]]


def test_where_rows_are_in_one_line_by_hand() -> None:
    found = row_places([2, 5, 3, 1])
    # 5 and 3 in one group; 2 would be padded to more than double, and 1 beside it to double.
    assert found.sizes == ((2, 5), (1, 2), (1, 1))
    assert found.places.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 1, 10]
    assert found.padding.nonzero().flatten().tolist() == [8, 9]
    assert found.back.tolist() == [10, 11, 0, 1, 2, 3, 4, 5, 6, 7, 12]
    wide = row_places([2, 5, 3, 1], multiple=4)
    assert wide.sizes == ((2, 8), (1, 4), (1, 4))
    assert wide.places.tolist()[:8] == [2, 3, 4, 5, 6, 0, 0, 0]
    assert wide.places[wide.back].tolist() == list(range(11))
    packed = pack(MAIN, EXTRA, pad_id=0, extra_logits=False, by="rows", hidden=1)
    assert packed.inputs["input_ids"].tolist() == [
        [5, 6, 7, 8, 9, 10, 11, *range(20, 30), 40, 41, 42]
    ]
    assert packed.main.states.tolist() == [[0, 1, 2, 3], [4, 5, 6, 0]]


def test_a_line_for_flash_attention_by_hand() -> None:
    from transformers import DataCollatorWithFlattening

    found = pack(MAIN, EXTRA, pad_id=0, extra_logits=True, by="line", hidden=1)
    inputs = dict(found.inputs)
    assert inputs.pop("use_cache") is False
    assert {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()} == {
        "input_ids": [[5, 6, 7, 8, 9, 10, 11, *range(20, 30), 40, 41, 42]],
        "position_ids": [[0, 1, 2, 3, 0, 1, 2, *range(10), 0, 1, 2]],
        "cu_seq_lens_q": [0, 4, 7, 17, 20],
        "cu_seq_lens_k": [0, 4, 7, 17, 20],
        "max_length_q": 10,
        "max_length_k": 10,
    }
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    given = dict(collator([*MAIN, *EXTRA]))
    assert set(given) - {"labels"} == set(inputs)
    for name, value in inputs.items():
        assert type(value) is type(given[name])
        if isinstance(value, torch.Tensor):
            assert value.dtype == given[name].dtype
            assert value.tolist() == given[name].tolist()
    # All else is as in the one line of `rows`.
    rows = pack(MAIN, EXTRA, pad_id=0, extra_logits=True, by="rows", hidden=1)
    assert found.keep.tolist() == rows.keep.tolist()
    for part, same in ((found.main, rows.main), (found.extra, rows.extra)):
        assert part.heads == same.heads
        assert part.labels.tolist() == same.labels.tolist()
        assert part.states.tolist() == same.states.tolist()
        assert part.mask.tolist() == same.mask.tolist()


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_an_attention_that_is_not_flash_passes_over_the_borders(name: str) -> None:
    model = family(name)  # it reads the rows from the positions, as `mask` does
    line = pack(MAIN, EXTRA, pad_id=0, extra_logits=True, by="line", hidden=1).inputs
    plain = {k: line[k] for k in ("input_ids", "position_ids", "use_cache")}
    assert torch.equal(model(**line).logits, model(**plain).logits)
    assert keeps_rows_apart(model, [*MAIN, *EXTRA], 0, nullcontext, "line")


def test_the_borders_reach_flash_attention() -> None:
    from transformers import AttentionInterface

    seen: list[dict[str, Any]] = []

    def flash(module: Any, query: Any, key: Any, value: Any, mask: Any, **how: Any) -> Any:
        seen.append(how)
        return query.transpose(1, 2), None

    AttentionInterface.register("flash_seen", flash)
    model = family("llama")
    model.config._attn_implementation = "flash_seen"
    packed = pack(MAIN, EXTRA, pad_id=0, extra_logits=True, by="line", hidden=1)
    model(**packed.inputs)
    assert len(seen) == model.config.num_hidden_layers
    for how in seen:
        assert how["cu_seq_lens_q"].tolist() == how["cu_seq_lens_k"].tolist() == [0, 4, 7, 17, 20]
        assert how["max_length_q"] == how["max_length_k"] == 10


def test_each_attention_has_its_way() -> None:
    assert ways("sdpa") == ("rows", "mask")
    assert ways("sdpa", bf16_on_cpu=True) == ("mask", "rows")
    assert ways("eager") == ("mask",)
    assert ways("kernels-community/flash-attn2") == ("line",)


WAYS = [(n, by) for n in FAMILIES for by in ("rows", "mask") if (n, by) != ("gemma2", "rows")]


@pytest.mark.parametrize(("name", "by"), WAYS)
def test_a_packed_pass_equals_a_pass_for_each_row(name: str, by: By) -> None:
    model = family(name)
    assert by in ways(model.config._attn_implementation)
    assert keeps_rows_apart(model, [*MAIN, *EXTRA], 0, nullcontext, by)
    packed = pack(MAIN, EXTRA, pad_id=0, extra_logits=True, by=by, hidden=1)
    whole = ForwardOutput(model, packed.inputs)
    with (
        capture(model, [Requires(hidden=(0, -1))], whole), heads_at(model, packed.keep),
        attends_by_rows(model, by == "rows"),
    ):  # fmt: skip
        logits = model(**packed.inputs).logits
    for part, rows in ((packed.main, MAIN), (packed.extra, EXTRA)):
        found = part.of(whole, logits[0, part.heads], None)
        alone = [ForwardOutput(model, collate([row], 0), rows=[row]) for row in rows]
        for one in alone:
            with capture(model, [Requires(hidden=(0, -1), logits=True)], one):
                one.model(one.batch["input_ids"])
        close(found.logits, torch.cat([one.logits for one in alone]))
        close(found.nll, torch.cat([one.nll for one in alone]))
        for layer in (0, -1):
            states = torch.cat([one.hidden[layer][0] for one in alone])
            close(found.hidden[layer][found.mask], states)
        # Rows of two methods are cut apart again.
        first, second = found.split([1, 1], [None, None])
        close(first.nll, alone[0].nll)
        close(second.nll, alone[1].nll)
        close(second.hidden[-1][second.mask], alone[1].hidden[-1][0])


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_a_model_that_looks_over_the_border_is_not_packed(monkeypatch: Any) -> None:
    from transformers import masking_utils

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda ids: None)
    assert not keeps_rows_apart(family("llama"), [*MAIN, *EXTRA], 0, nullcontext, "mask")
    # Here the layout does not reach the attention.
    monkeypatch.setattr(rowwise_attention, "NAME", "sdpa")
    assert not keeps_rows_apart(family("llama"), [*MAIN, *EXTRA], 0, nullcontext, "rows")


def test_rows_longer_than_a_window_are_kept_apart_by_the_mask(monkeypatch: Any) -> None:
    model = family("llama")
    for size, wanted in ((None, "rows"), (10, "rows"), (9, "mask")):
        model.config.sliding_window = size
        packer = packer_of(model, EXTRA, 0, nullcontext)
        assert packer is not None
        assert packer.by == "rows"
        packed = packer(MAIN, EXTRA, extra_logits=False)  # the longest row has ten tokens
        assert (ROWS_APART in packed.inputs) == (wanted == "rows")


@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_rows_apart_are_those_of_rows_alone(
    checkpointing: bool, multiple: int
) -> None:
    model = family("llama").train()
    packed = pack(MAIN, EXTRA, pad_id=0, extra_logits=True, by="rows", hidden=1)
    lengths = [len(row["input_ids"]) for row in (*MAIN, *EXTRA)]
    packed.inputs[ROWS_APART] = row_places(lengths, multiple)
    with attends_by_rows(model):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(**packed.inputs).logits.square().mean().backward()
    together = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    every = [model(torch.tensor([r["input_ids"]])).logits for r in (*MAIN, *EXTRA)]
    torch.cat(every, 1).square().mean().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(together[name], p.grad, atol=1e-6, rtol=1e-3)


def test_the_models_attention_is_its_own_again() -> None:
    model = family("llama")
    with attends_by_rows(model):
        assert takes_rows(model)
    assert model.config._attn_implementation == "sdpa"
    eager = family("gemma2")
    with attends_by_rows(eager):
        assert not takes_rows(eager)


@pytest.mark.parametrize("by", ["rows", "mask"])
def test_one_pass_learns_what_two_passes_learn(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: Any, by: str
) -> None:
    import perdure
    from perdure.engine import packing

    # Not the margin loss: it divides by a count of neurons that rounding alone can change.
    gere = {"name": "gere_distance", "insert": 3, "norm": "l2", "noise_floor": 0}
    methods = [gere, {"name": "replay", "ratio": 0.5}]
    # Adam makes a 1e-7 of rounding a 1e-3 in a dozen steps at the recipe's own rate.
    changes = {"train__micro_batch_size": 2, "train__learning_rate": 5e-4}
    path = write_recipe(tmp_path, tiny_model_dir, method=methods, **changes)
    packs: list[bool] = []
    monkeypatch.setattr(packing, "ways", lambda *_: (by,))

    def learned(name: str, apart: bool) -> list[dict[str, Any]]:
        monkeypatch.setattr(packing, "keeps_rows_apart", lambda *_: packs.append(apart) or apart)
        recipe = perdure.load_recipe(path)
        run = perdure.Run.create(tmp_path / name, recipe)
        perdure.learn(recipe, run)
        return run.log_rows()

    one, two = learned("one", True), learned("two", False)
    # Looked at once for the base's own rounding, and once a task.
    assert packs == [True, True, True, False, False, False]
    assert len(one) == len(two) == 24
    for a, b in zip(one, two, strict=True):
        for key in [k for k in a if k == "loss" or k.startswith("method/")]:
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5), key


TUNING = {
    "full": {},
    "micro-batches": {"train__micro_batch_size": 1},
    "lora": {"model__tuning": "lora", "model__lora": {"r": 2}},
    "checkpointing": {"train__gradient_checkpointing": True},
}


@pytest.mark.parametrize("by", ["rows", "mask", ""])
@pytest.mark.parametrize("changes", TUNING.values(), ids=TUNING)
def test_the_first_steps_margin_is_zero_in_packs(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: Any, changes: dict[str, Any], by: str
) -> None:
    import perdure
    from perdure.engine import packing

    monkeypatch.setattr(packing, "ways", lambda *_: (by,) if by else ())
    # Lengths that are no multiples of anything: a kernel's last, partial block is used too.
    method = {"name": "gere", "insert": 3, "max_tokens": 29}
    path = write_recipe(tmp_path, tiny_model_dir, method=method, train__max_steps=2, **changes)
    recipe = perdure.load_recipe(path)
    run = perdure.Run.create(tmp_path / "run", recipe)
    perdure.learn(recipe, run)
    first, second, *_ = run.log_rows()
    assert first["method/gere_margin"] == 0.0
    assert first["method/gere_noise_flipped"] == first["method/gere_noise_largest"] == 0.0
    assert second["method/gere_margin"] > 0


def test_states_as_trained_are_those_of_a_pack_with_rows_of_the_task(
    tiny: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    from perdure.engine import packing
    from perdure.engine.session import TaskSession
    from perdure.models.chat import Encoder
    from perdure.streams.task import Task

    rows = [{"prompt": [{"role": "user", "content": w}], "answer": w} for w in ("a", "b c", "d")]
    task = Task("letters", rows + rows, rows, rows, "exact_match")
    model, tokenizer = tiny
    packs: list[tuple[int, int]] = []

    def noted(main: Any, extra: Any, **options: Any) -> Any:
        packs.append((len(main), len(extra)))
        return pack(main, extra, **options)

    monkeypatch.setattr(packing, "pack", noted)
    found = {}
    model.train()
    for packed in (True, False):
        session = TaskSession(model, Encoder(tokenizer), task, batch_size=3, packs=packed)
        texts = [
            session.encoder.encode_text(text) for text in ("one text", "another text of more words")
        ]
        with torch.no_grad():
            found[packed] = session.states_as_trained(texts, (0, -1))
    assert packs == [(2, 0), (3, 2)]  # a trial, then the pack; none where the learner has none
    assert model.training
    assert torch.equal(found[True].mask, found[False].mask)
    for layer in (0, -1):
        states = [found[p].hidden[layer][found[p].mask] for p in (True, False)]
        close(*states)
