"""`perdure.attach` asks for all that a method needs before the trainer trains, or it works."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import family
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

import perdure
from perdure.errors import TrainingError, UsageError
from perdure.methods.registry import build, names
from perdure.protocol.batch import collate
from perdure.protocol.method import Method, MethodConfig, Requires
from perdure.recipe.schema import MethodSpec

pytestmark = pytest.mark.train

TEXTS = [f"The {noun} of {i} was {'good ' * (1 + i % 5)}." for i in range(6) for noun in "abcd"]
GENERAL = ["One text of the world.", "Another one, which is longer.", "A third."]
SMALL: dict[str, dict[str, Any]] = {
    "replay": {"buffer_size": 6},
    "ewc": {"rows": 4},
    "rewind": {"grid": [0.5]},
    "freeze": {"layers": 1},
}
FAMILY = {"general_replay", "gere", "gere_kl", "gere_distance", "gere_official"}


def arguments(out: Path, kind: Any = TrainingArguments, **options: Any) -> Any:
    return kind(
        str(out), **{
            "max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.05, "optim": "sgd",
            "lr_scheduler_type": "constant", "use_cpu": True, "bf16": False, "logging_steps": 1,
            "save_strategy": "no", "disable_tqdm": True, "report_to": "none",
            "dataloader_pin_memory": False, **options,
        },
    )  # fmt: skip


def encoded(tokenizer: Any, texts: Any = TEXTS) -> list[dict[str, Any]]:
    ids = [tokenizer(text)["input_ids"] for text in texts]
    return [{"input_ids": one, "labels": list(one)} for one in ids]


def plain(tiny: Any, out: Path, config: Any = None, **given: Any) -> Trainer:
    model, tokenizer = tiny
    base = {
        "model": model, "args": arguments(out, **(config or {})), "processing_class": tokenizer,
        "train_dataset": encoded(tokenizer), "eval_dataset": encoded(tokenizer, TEXTS[:3]),
        "data_collator": lambda rows: collate(rows, tokenizer.pad_token_id),
    }  # fmt: skip
    return Trainer(**(base | given))


def sft(tiny: Any, out: Path, config: Any = None, **given: Any) -> SFTTrainer:
    from datasets import Dataset

    data = Dataset.from_list([{"text": text} for text in TEXTS])
    base = {
        "model": tiny[0], "processing_class": tiny[1], "train_dataset": data,
        "eval_dataset": data.select(range(4)),
        "args": arguments(
            out, SFTConfig, **{"max_length": 48, "activation_checkpointing": False} | (config or {})
        ),
    }  # fmt: skip
    return SFTTrainer(**(base | given))


def of_class(tiny: Any, out: Path, cls: Any, name: str, **sizes: Any) -> Trainer:
    config = AutoConfig.for_model(
        name, vocab_size=len(tiny[1]), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2,
        pad_token_id=0, **sizes,
    )  # fmt: skip
    return plain(tiny, out, model=cls.from_config(config))


def iterable(tiny: Any, out: Path) -> Trainer:
    from datasets import Dataset

    rows = Dataset.from_list(encoded(tiny[1])).to_iterable_dataset()
    return plain(tiny, out, train_dataset=rows)


def with_text(tiny: Any, out: Path) -> Trainer:
    """A column that the model does not take, which the trainer's own loader leaves out."""
    from datasets import Dataset

    rows = [{"input_ids": r["input_ids"], "text": "left out"} for r in encoded(tiny[1])]
    collator = DataCollatorForLanguageModeling(tiny[1], mlm=False)
    return plain(tiny, out, train_dataset=Dataset.from_list(rows), data_collator=collator)


def pixels(rows: Any, pad: int) -> dict[str, Any]:
    return {**collate(rows, pad), "pixel_values": torch.zeros(len(rows), 3)}


def summed(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    loss = torch.nn.functional.cross_entropy(
        outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )
    return loss / num_items_in_batch


def learned_prompts(tiny: Any, out: Path) -> Trainer:
    """A model with learned prompts."""
    from peft import PromptTuningConfig, get_peft_model

    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    return plain(tiny, out, model=get_peft_model(tiny[0], prompts))


ALL = set(names())
ALWAYS = {"joint", "lcia", "lora_sequence", "moelora", "olora", "seq_star"}
"""Methods that every trainer of one's own refuses."""
READ = ALL - ALWAYS - {"sequential", "freeze", "ema"}
"""Methods that look at rows of the task or at what a pass computes."""
Made = Callable[[Any, Path], Any]
TRAINERS: dict[str, tuple[Made, set[str], str]] = {
    # name: the trainer, the methods that are refused, and what the refusal says
    "whole": (plain, set(), ""),
    "no eval_dataset": (lambda t, o: plain(t, o, eval_dataset=None), {"rewind"}, "there are none"),
    "empty eval_dataset": (lambda t, o: plain(t, o, eval_dataset=[]), {"rewind"}, "is empty"),
    "two eval_datasets": (
        lambda t, o: plain(t, o, eval_dataset={"a": encoded(t[1]), "b": encoded(t[1])}),
        {"rewind"}, "several sets \\(a, b\\)",
    ),
    "eval_dataset without labels": (
        lambda t, o: plain(t, o, eval_dataset=[
            {**row, "labels": [-100] * len(row["labels"])} for row in encoded(t[1])
        ]),
        {"rewind"}, "all are -100",
    ),
    "no train_dataset": (lambda t, o: plain(t, o, train_dataset=None), ALL, "no train_dataset"),
    "empty train_dataset": (lambda t, o: plain(t, o, train_dataset=[]), ALL, "is empty"),
    "IterableDataset": (iterable, ALL, "no length"),
    "no processing_class": (lambda t, o: plain(t, o, processing_class=None), ALL, "no tokenizer"),
    "model_init": (
        lambda t, o: plain(t, o, model=None, model_init=lambda: t[0]), ALL, "model_init",
    ),
    "classifier": (
        lambda t, o: of_class(t, o, AutoModelForTokenClassification, "llama"),
        ALL, "LlamaForTokenClassification is a classifier of another kind",
    ),
    "masked": (lambda t, o: of_class(t, o, AutoModelForMaskedLM, "bert"), ALL, "an encoder that"),
    "two halves": (
        lambda t, o: of_class(t, o, AutoModelForSeq2SeqLM, "t5"), ALL, "an encoder with a decoder",
    ),
    "no labels": (
        lambda t, o: plain(
            t, o, data_collator=DataCollatorWithPadding(t[1]),
            compute_loss_func=lambda out, *a, **k: out.logits.mean(),
            train_dataset=[{"input_ids": row["input_ids"]} for row in encoded(t[1])],
        ),
        READ, "no input_ids and labels",
    ),
    "nothing is learned": (
        lambda t, o: plain(t, o, train_dataset=[
            {**row, "labels": [-100] * len(row["labels"])} for row in encoded(t[1])
        ]),
        READ, "all are -100",
    ),
    "pictures": (
        lambda t, o: plain(t, o, data_collator=lambda rows: pixels(rows, 0)),
        {"replay", "ewc", "rewind", "lwf", "derpp", "kl"}, "pixel_values",
    ),
    "learned prompts": (learned_prompts, READ, "learned prompts"),
    "column": (with_text, set(), ""),
    "packing": (lambda t, o: sft(t, o, {"packing": True}), set(), ""),
    "packing, held-out too": (
        lambda t, o: sft(t, o, {"packing": True, "eval_packing": True}), set(), "",
    ),
    "packing, wrapped": (
        lambda t, o: sft(t, o, {"packing": True, "packing_strategy": "wrapped"}), set(), "",
    ),
    "padding_free": (lambda t, o: sft(t, o, {"padding_free": True, "max_length": None}), set(), ""),
    "group_by_length": (
        lambda t, o: plain(t, o, {"train_sampling_strategy": "group_by_length"}), set(), "",
    ),
    "compute_loss_func": (lambda t, o: plain(t, o, compute_loss_func=summed), set(), ""),
    "label smoothing": (
        lambda t, o: plain(t, o, {"label_smoothing_factor": 0.1}),
        {"eaft", "gere_official"}, "label_smoothing_factor makes another one of",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINERS)
def test_each_method_is_refused_by_attach_or_trains_to_the_end(
    tiny: Any, tmp_path: Path, name: str
) -> None:
    make, refused, why = TRAINERS[name]
    weights = {n: p.clone() for n, p in tiny[0].state_dict().items()}
    for method in names():
        tiny[0].load_state_dict(weights)
        for key in ("_is_accelerate_prepared", "forward", "_original_forward"):
            tiny[0].__dict__.pop(key, None)
        trainer = make(tiny, tmp_path / method)
        given = {"name": method, **SMALL.get(method, {})}
        if method in FAMILY:
            given["max_tokens"] = 12
            if method != "gere_official":  # draws each text once an epoch
                given["insert"] = 2
        told: UsageError | None = None
        try:
            perdure.attach(trainer, given, general=GENERAL)
        except UsageError as error:
            told = error
        if told is not None:
            assert method in refused | ALWAYS, f"{method}: {told.what}"
            assert re.match(rf"attach: {method}: |{method}: ", told.what), told.what
            assert re.search(why if method in refused else "", told.what), told.what
            assert told.remedy
            assert all(p.requires_grad for p in tiny[0].parameters()) or name == "learned prompts"
        else:
            assert method not in refused, f"{method} was taken"
            trainer.train()
            assert trainer.state.global_step == 2


@pytest.mark.parametrize("family_name", ["llama", "gpt_neox"])
def test_packed_rows_have_the_loss_of_the_trainers_own_pack(
    tiny: Any, tmp_path: Path, family_name: str
) -> None:
    tokenizer = tiny[1]
    model = family(family_name, len(tokenizer))
    trainer = sft((model, tokenizer), tmp_path, {"packing": True})
    perdure.attach(trainer, {"name": "replay", "buffer_size": 10}, {"name": "ewc", "rows": 4})
    session: Any = trainer.session  # type: ignore[attr-defined]
    task = session.task
    assert len(trainer.train_dataset) < len(TEXTS) == len(task.train)
    lengths = [n for pack in trainer.train_dataset for n in pack["seq_lengths"]]
    assert [len(row["input_ids"]) for row in task.train] == lengths
    first = 0
    for pack in trainer.train_dataset:
        batch = trainer.data_collator([pack])
        with torch.no_grad():
            own = trainer.compute_loss(model.train(False), dict(batch))
            count = len(pack["seq_lengths"])
            again = session.forward(task.train[first : first + count]).nll.mean()
        first += count
        assert float(again) == pytest.approx(float(own), abs=1e-5)
    trainer.train()
    replay, ewc = trainer.methods  # type: ignore[attr-defined]
    assert len(replay.kept) == 10
    assert all(len(entry["row"]["input_ids"]) in lengths for entry in replay.kept)
    assert ewc.fisher
    # A step holds as many rows as its packs do.
    packs = len(trainer.train_dataset)
    assert session.batch_size == round(2 * len(TEXTS) / packs)


def test_a_teacher_sees_packed_rows_apart_too(tiny: Any, tmp_path: Path) -> None:
    trainer = sft(tiny, tmp_path, {"packing": True})
    perdure.attach(trainer, "lwf")
    trainer.train()
    terms = [row["method/lwf"] for row in trainer.state.log_history if "loss" in row]
    assert terms[0] == pytest.approx(0, abs=1e-6)
    assert terms[1] > 1e-4


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"attention_mask": torch.ones((1, 8), dtype=torch.long)}, "attention_mask lets rows"),
        ({"labels": torch.arange(1, 9)[None]}, "the first token of a row is learned"),
    ],
)
def test_packs_whose_rows_see_one_another_are_refused(
    tiny: Any, tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    def packed(_: Any) -> dict[str, Any]:
        ids = torch.arange(1, 9)[None]
        positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
        labels = ids.clone()
        labels[:, 4] = -100
        return {"input_ids": ids, "labels": labels, "position_ids": positions, **change}

    with pytest.raises(UsageError, match=f"attach: replay: .*{why}"):
        perdure.attach(plain(tiny, tmp_path, data_collator=packed), "replay")


def test_packs_of_a_model_that_mixes_them_are_refused(tiny: Any, tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "rwkv", vocab_size=len(tiny[1]), hidden_size=16, num_hidden_layers=2, context_length=64
    )
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config)
    trainer = sft((model, tiny[1]), tmp_path, {"packing": True})
    with pytest.raises(UsageError, match=r"attach: ewc: .*RwkvForCausalLM rows of one line see"):
        perdure.attach(trainer, "ewc")


class Late(Method):
    """Fails when the training is over, as somebody's own method may."""

    Config = MethodConfig
    requires = Requires()

    def end_task(self, ctx: Any) -> None:
        raise KeyError("forgotten")


def test_a_method_that_fails_at_the_end_does_not_cost_the_training(
    tiny: Any, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    trainer = plain(tiny, tmp_path)
    perdure.attach(trainer, Late(MethodConfig()))
    with pytest.raises(TrainingError, match="test_dropin failed after the training: KeyError"):
        trainer.train()
    kept = load_file(tmp_path / "perdure-trained" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(kept[name], trainer.model.get_parameter(name).data)  # type: ignore[union-attr]


def test_a_trainer_learns_its_task_once(tiny: Any, tmp_path: Path) -> None:
    trainer = plain(tiny, tmp_path)
    perdure.attach(trainer, {"name": "rewind", "grid": [0.5]})
    trainer.train()
    with pytest.raises(UsageError, match="attach: rewind: this trainer has learned its task"):
        trainer.train()


def test_ewc_leaves_rows_without_an_answer_out(tiny: Any, tmp_path: Path) -> None:
    rows = encoded(tiny[1])
    for row in rows[::2]:
        row["labels"] = [-100] * len(row["labels"])
    trainer = plain(tiny, tmp_path, train_dataset=rows)
    perdure.attach(trainer, {"name": "ewc", "rows": len(rows)})
    trainer.train()
    (method,) = trainer.methods  # type: ignore[attr-defined]
    assert all(bool(f.isfinite().all()) for f in method.fisher.values())


FIRST: dict[str, Any] = {"name": "replay", "buffer_size": 6}
OTHERS: dict[str, tuple[list[Any], str]] = {
    # name: the methods that are attached when it goes on, and what the refusal says
    "another": (["ewc"], "was written by other methods: replay, where ewc is attached now"),
    "an option": ([FIRST | {"ratio": 0.5}], "replay: ratio was 0.25, is 0.5 now"),
    "one more": ([FIRST, "eaft"], "it holds replay; attached now: replay, eaft"),
}


def saving(tiny: Any, out: Path, **changes: Any) -> Trainer:
    return plain(tiny, out, {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, **changes})


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_other_methods_is_refused_before_its_weights_are_loaded(
    tiny: Any, tmp_path: Path, name: str
) -> None:
    methods, why = OTHERS[name]
    start = {n: p.clone() for n, p in tiny[0].state_dict().items()}
    perdure.attach(saving(tiny, tmp_path), FIRST).train()
    for key in ("_is_accelerate_prepared", "forward", "_original_forward"):
        tiny[0].__dict__.pop(key, None)
    tiny[0].load_state_dict(start)
    trainer = saving(tiny, tmp_path)
    perdure.attach(trainer, *methods)
    with pytest.raises(TrainingError) as error:
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert why in error.value.what
    assert str(tmp_path / "checkpoint-1") in error.value.what
    assert "attach the methods that it was written with" in " ".join(error.value.remedy)
    assert trainer.state.global_step == 0
    assert all(torch.equal(p, start[n]) for n, p in tiny[0].state_dict().items())


def test_a_checkpoint_without_methods_is_refused(tiny: Any, tmp_path: Path) -> None:
    saving(tiny, tmp_path).train()
    trainer = saving(tiny, tmp_path)
    perdure.attach(trainer, "eaft")
    with pytest.raises(TrainingError, match=r"was written without methods.*attached now: eaft"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_what_is_logged_at_the_begin_and_at_the_end_is_in_the_log_once(
    tiny: Any, tmp_path: Path
) -> None:
    class Tells(Method):
        def begin_task(self, ctx: Any) -> None:
            ctx.log("begin", 3.0)

        def after_step(self, ctx: Any) -> None:
            ctx.log("step", torch.tensor(float(ctx.step.index)))

        def end_task(self, ctx: Any) -> None:
            ctx.log("end", 5.0)

    def history(out: Path, checkpoint: str | None = None, **changes: Any) -> list[dict[str, Any]]:
        trainer = saving(tiny, out, logging_steps=2, max_steps=5, **changes)
        perdure.attach(trainer, Tells(MethodConfig()))
        trainer.train(resume_from_checkpoint=checkpoint)
        found = [
            {k[7:]: v for k, v in line.items() if k.startswith("method/")}
            for line in trainer.state.log_history
        ]
        return [line for line in found if line]

    # The fifth step has no line of its own in a trainer that is not ours; the summary has it.
    expected = [{"begin": 3.0, "step": 1.5}, {"step": 3.5}, {"step": 5.0}, {"end": 5.0}]
    assert history(tmp_path) == expected
    for key in ("_is_accelerate_prepared", "forward", "_original_forward"):
        tiny[0].__dict__.pop(key, None)
    assert history(tmp_path / "again", str(tmp_path / "checkpoint-2")) == expected


@pytest.mark.parametrize("method", sorted(FAMILY))
def test_general_texts_are_remembered_in_a_checkpoint(
    tiny: Any, tmp_path: Path, method: str
) -> None:
    cache = tmp_path / "cache"
    given = {"name": method, "insert": 2, "max_tokens": 12}
    if method == "gere_official":
        given |= {"loss": "label", "mix": "insert"}
    state = {n: p.clone() for n, p in tiny[0].state_dict().items()}
    first = saving(tiny, tmp_path, max_steps=1)
    perdure.attach(first, given, general=GENERAL, cache=cache)
    first.train()
    saved = json.loads(json.dumps(first.methods[0].state_dict()))  # type: ignore[attr-defined]
    for key in ("_is_accelerate_prepared", "forward", "_original_forward"):
        tiny[0].__dict__.pop(key, None)
    # The next task, with methods that were restored.
    options = {k: v for k, v in given.items() if k != "name"}
    (again,) = build([MethodSpec(name=method, options=options)])
    again.load_state_dict(saved)
    with pytest.raises(UsageError, match="general texts were given for the first task, and none"):
        perdure.attach(plain(tiny, tmp_path / "b"), again, task_index=1, cache=cache)
    perdure.attach(plain(tiny, tmp_path / "c"), again, task_index=1, general=GENERAL, cache=cache)
    # The same task, resumed.
    tiny[0].load_state_dict(state)
    trainer = saving(tiny, tmp_path)
    perdure.attach(trainer, given, cache=cache)
    with pytest.raises(UsageError, match=f"{method}: general texts were given when this was saved"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    trainer = saving(tiny, tmp_path)
    perdure.attach(trainer, given, general=GENERAL, cache=cache)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert trainer.state.global_step == 2


# --- what is no trainer and no method


@pytest.mark.unit
def test_what_is_no_trainer_is_told_as_what_it_is() -> None:
    model = torch.nn.Linear(1, 1)
    for given, what in (
        (model, "the first argument is a model (Linear), not its trainer"),
        (Trainer, "Trainer is a class, and a trainer that was made of it is needed"),
        ("gere", "the first argument is no transformers.Trainer: 'gere'"),
        (None, "the first argument is no transformers.Trainer: None"),
    ):
        with pytest.raises(UsageError) as error:
            perdure.attach(given, "gere")  # type: ignore[arg-type]
        assert error.value.what == f"attach: {what}"
        assert 'attach(trainer, "gere")' in error.value.remedy[0]


def test_what_is_no_method_is_told_as_what_it_is(tiny: Any, tmp_path: Path) -> None:
    from perdure.methods.gere import GeRe

    trainer = plain(tiny, tmp_path)
    for given, what, remedy in (
        (GeRe, "attach: GeRe is a class, and a method that was made of it is needed",
         "GeRe(GeRe.Config())"),
        (dict, "attach: dict is no method", 'write "gere"'),
        ({"name": 3}, "attach: {'name': 3} names no method", 'write "gere"'),
        ({"name": "gere", 1: 2}, "method.1: unknown key", "known here: "),
        ({"name": "gere", "insert": [2]}, "method.insert: must be a whole number, not [2]",
         "general rows in each optimizer step"),
    ):  # fmt: skip
        with pytest.raises(UsageError) as error:
            perdure.attach(trainer, given, general=GENERAL)
        assert str(error.value).startswith(what)
        assert remedy in str(error.value)
    for none in ([], iter([])):
        with pytest.raises(UsageError, match="attach: general is an empty list"):
            perdure.attach(trainer, "gere", general=none)  # type: ignore[arg-type]
