"""GeRe on trainers that are not ours: whatever they do else, an unmoved model loses nothing.

A step's loss is taken before its update, so the first step's margin is that of the untouched model.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, family
from small_tasks import FIRST, GENERAL, SECOND
from tiny_runs import finish, start_call
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

import perdure
from perdure.models.chat import Encoder
from perdure.protocol.batch import collate

pytestmark = pytest.mark.train

GERE = {"name": "gere", "insert": 3, "max_tokens": 12}


def margins(trainer: Any, key: str = "gere_margin") -> list[float]:
    return [row[f"method/{key}"] for row in trainer.state.log_history if "loss" in row]


def added(trainer: Any, key: str = "gere_margin") -> list[float]:
    """What a term adds to the loss: as it is, times the weight that stands beside it."""
    sizes = zip(margins(trainer, key), margins(trainer, f"{key}_weight"), strict=True)
    return [term * weight for term, weight in sizes]


def arguments(out: Path, cls: Any = TrainingArguments, **options: Any) -> Any:
    return cls(
        str(out), **{
            "max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 0.05,
            "optim": "sgd", "lr_scheduler_type": "constant", "use_cpu": True, "bf16": False,
            "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "report_to": "none",
            "dataloader_pin_memory": False, **options,
        },
    )  # fmt: skip


def rows(tokenizer: Any, task: Any = FIRST) -> list[dict[str, Any]]:
    encoder = Encoder(tokenizer)
    return [encoder.encode(row) for row in task.train]


def plain(model: Any, tokenizer: Any, out: Path, task: Any = FIRST, **options: Any) -> Trainer:
    return Trainer(
        model=model, args=arguments(out, remove_unused_columns=False, **options),
        processing_class=tokenizer, train_dataset=rows(tokenizer, task),
        data_collator=lambda batch: collate(batch, tokenizer.pad_token_id),
    )  # fmt: skip


def sft(
    model: Any, tokenizer: Any, out: Path, peft_config: Any = None, **options: Any
) -> SFTTrainer:
    from datasets import Dataset

    data = Dataset.from_list([{"text": f"{text} {i}"} for i in range(6) for text in GENERAL])
    return SFTTrainer(
        model=model, args=arguments(out, SFTConfig, max_length=32, **options),
        processing_class=tokenizer, train_dataset=data, peft_config=peft_config,
    )  # fmt: skip


def sft_lora(model: Any, tokenizer: Any, out: Path, **options: Any) -> SFTTrainer:
    """The trainer makes the adapter itself, as `SFTTrainer(..., peft_config=)` does."""
    from peft import LoraConfig

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    return sft(model, tokenizer, out, peft_config=config, learning_rate=5.0, **options)


SET_UPS: dict[str, Any] = {
    "Trainer": (plain, {}),
    "accumulation": (plain, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}),
    "activation checkpointing": (plain, {"activation_checkpointing": True}),
    "SFTTrainer": (sft, {"gradient_checkpointing": False}),
    "SFTTrainer, packing": (sft, {"packing": True, "gradient_checkpointing": False}),
    "SFTTrainer, checkpointing": (sft, {"gradient_checkpointing": True}),
    "SFTTrainer, accumulation": (sft, {
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4,
        "gradient_checkpointing": False,
    }),
    "SFTTrainer, LoRA": (sft_lora, {"gradient_checkpointing": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", SET_UPS)
def test_the_first_step_costs_exactly_nothing(tiny: Any, tmp_path: Path, name: str) -> None:
    make, options = SET_UPS[name]
    trainer = make(*tiny, tmp_path, **options)
    perdure.attach(trainer, GERE, general=GENERAL)
    trainer.train()
    first, second, _ = margins(trainer)
    assert first == 0.0
    assert second > 0


def test_in_bf16_hardly_anything(tiny: Any, tmp_path: Path) -> None:
    trainer = plain(*tiny, tmp_path, bf16=True)
    perdure.attach(trainer, GERE, general=GENERAL)
    trainer.train()
    assert margins(trainer, "gere_elements")[0] < 1e-6
    assert margins(trainer, "gere_elements")[1] > 1e-6


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_families_with_tied_and_untied_heads(
    tiny: Any, tmp_path: Path, name: str, tied: bool
) -> None:
    _, tokenizer = tiny
    model = family(name, len(tokenizer), tied)
    trainer = plain(model, tokenizer, tmp_path)
    # The margin alone, so that only it moves what the task's loss does not reach.
    perdure.attach(trainer, {**GERE, "layers": [0, -1], "label_weight": 0}, general=GENERAL)
    trainer.train()
    first, second, _ = margins(trainer)
    assert first == pytest.approx(0.0, abs=1e-7)
    assert second > 0


def test_the_margin_does_not_reach_an_untied_head(tiny: Any, tmp_path: Path) -> None:
    _, tokenizer = tiny
    model = family("llama", len(tokenizer), tied=False)
    trainer = plain(model, tokenizer, tmp_path)
    perdure.attach(trainer, {**GERE, "label_weight": 0}, general=GENERAL)
    ctx, (method,) = trainer.session.context, trainer.methods  # type: ignore[attr-defined]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    loss = method.loss(ctx, None, ctx.forward(method.replay(ctx)))["gere_margin"]
    loss.backward()
    assert model.lm_head.weight.grad is None
    assert model.model.embed_tokens.weight.grad.any()


def test_lora_at_its_start_is_the_base(tiny: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny[0], LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    trainer = plain(model, tiny[1], tmp_path, learning_rate=5.0)
    perdure.attach(trainer, GERE, general=GENERAL)
    trainer.train()
    first, *others = margins(trainer)
    assert first == 0.0
    assert max(others) > 0


def test_a_second_task_is_held_to_the_first_ones_base(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    first = plain(model, tokenizer, tmp_path / "a")
    perdure.attach(first, GERE, general=GENERAL)
    first.train()
    for name in ("_is_accelerate_prepared", "forward", "_original_forward"):
        model.__dict__.pop(name, None)
    second = plain(model, tokenizer, tmp_path / "b", SECOND)
    perdure.attach(
        second, *first.methods, general=GENERAL, task="count", task_index=1  # type: ignore[attr-defined]
    )  # fmt: skip
    (method,) = second.methods  # type: ignore[attr-defined]
    assert method.states.folder.is_relative_to(tmp_path / "a")
    second.train()
    assert margins(second)[0] > 0  # the base's states, not those of the model as it is now


def test_without_general_text_the_model_writes_its_own(tiny: Any, tmp_path: Path) -> None:
    trainer = plain(*tiny, tmp_path)
    perdure.attach(trainer, {**GERE, "samples": 6})
    (method,) = trainer.methods  # type: ignore[attr-defined]
    assert len(method._rows) == 6
    trainer.train()
    assert margins(trainer)[0] == 0.0


@pytest.mark.process
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes(tiny_model_dir: Path, tmp_path: Path, kind: str) -> None:
    finish(start_call(main, str(tiny_model_dir), str(tmp_path), kind, processes=2))
    first, second, _ = map(float, (tmp_path / "margins.txt").read_text().split())
    assert first == 0.0
    assert second > 0
    # `attach` tries the model once; each distils half of the texts, and both measure the rounding.
    passes = [int((tmp_path / f"forwards-0-{rank}.txt").read_text()) for rank in (0, 1)]
    assert passes == [len(GENERAL) // 2 + 2] * 2
    losses = (tmp_path / "losses.txt").read_text().split()
    assert len(losses) == len(ONE_TEXT)
    assert all(0 < float(loss) < 100 for loss in losses)


ONE_TEXT: list[dict[str, Any]] = [
    {},
    {"name": "gere_official", "mix": "insert"},
    {"name": "gere_official", "samples": 2, "insert": 4},  # the default, which nothing reads
    {"name": "gere_kl", "label_weight": 0},
    {"name": "gere_distance", "norm": "l2"},
    {"name": "general_replay"},
]
"""Options under which a step has one text for two processes: the other's row only fills up."""


def main(model_dir: str, out: str, kind: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.distributed.configuration_utils import DistributedConfig

    sharded = {"distributed_config": DistributedConfig(fsdp_size=2)} if kind == "fsdp2" else {}
    tokenizer = AutoTokenizer.from_pretrained(model_dir)

    def trained(number: int, **options: Any) -> Any:
        model = AutoModelForCausalLM.from_pretrained(model_dir, **sharded)
        assert any(hasattr(p, "placements") for p in model.parameters()) == (kind == "fsdp2")
        trainer = plain(
            model, tokenizer, Path(out, str(number)), per_device_train_batch_size=2,
            ddp_find_unused_parameters=False,
        )  # fmt: skip
        forwards: list[Any] = []
        counting = model.register_forward_hook(lambda *_: forwards.append(1))
        perdure.attach(trainer, {**GERE, **options}, general=GENERAL)
        counting.remove()
        Path(out, f"forwards-{number}-{os.environ['RANK']}.txt").write_text(str(len(forwards)))
        trainer.train()
        return trainer

    trainer = trained(0)
    losses = []
    for number, options in enumerate(ONE_TEXT, 1):
        one = trained(number, **{"insert": 1, **options})
        losses.append([row["loss"] for row in one.state.log_history if "loss" in row][-1])
    if trainer.is_world_process_zero():
        Path(out, "margins.txt").write_text(" ".join(map(str, margins(trainer))))
        Path(out, "losses.txt").write_text(" ".join(map(str, losses)))


def test_terms_are_logged_unscaled_with_their_weights(tiny: Any, tmp_path: Path) -> None:
    """Loss = task_loss + terms times weights, in micro-batches too; three of seven rows are
    general ones, so label_weight 2 is a weight of 6/7 and weight 0.5 one of 3/14."""
    trainer = plain(tiny[0], tiny[1], tmp_path, per_device_train_batch_size=2,
                    gradient_accumulation_steps=2)  # fmt: skip
    gere = {**GERE, "label_weight": 2.0, "weight": 0.5}
    perdure.attach(trainer, gere, {"name": "lwf", "weight": 0.25}, general=GENERAL)
    trainer.train()
    lines = [row for row in trainer.state.log_history if "loss" in row]
    for line in lines:
        terms = [k for k in ("gere_label", "gere_margin", "lwf") if f"method/{k}_weight" in line]
        parts = [line[f"method/{k}"] * line[f"method/{k}_weight"] for k in terms]
        assert line["task_loss"] + sum(parts) == pytest.approx(line["loss"], abs=2e-4)
    last = lines[-1]
    assert last["method/gere_label_weight"] == pytest.approx(6 / 7, rel=1e-4)
    assert last["method/gere_margin_weight"] == pytest.approx(3 / 14, rel=1e-4)
    assert last["method/lwf_weight"] == pytest.approx(0.25, rel=1e-4)
    assert lines[0]["method/gere_margin"] == 0.0  # the base itself: no weight can be told
    assert "method/gere_margin_weight" not in lines[0]


@pytest.mark.parametrize("method", ["general_replay", "gere", "gere_official", "eaft"])
@pytest.mark.parametrize("counted", [True, False])
def test_the_parts_are_the_loss_where_a_last_step_has_fewer_micro_batches(
    tiny: Any, tmp_path: Path, method: str, counted: bool
) -> None:
    """Eighteen rows in micro-batches of two: steps of four, four and one, in one line of the log.
    What adds to the loss is what has a weight, whether the trainer counts its labels or not."""
    trainer = plain(tiny[0], tiny[1], tmp_path, per_device_train_batch_size=2,
                    gradient_accumulation_steps=4, logging_steps=3)  # fmt: skip
    trainer.train_dataset = (rows(tiny[1]) * 2)[:18]
    trainer.model_accepts_loss_kwargs = counted
    options = {} if method == "eaft" else {"max_tokens": 12}
    perdure.attach(trainer, {"name": method, **options}, general=GENERAL)
    trainer.train()
    (line,) = [row for row in trainer.state.log_history if "loss" in row]
    weights = {k: v for k, v in line.items() if k.startswith("method/") and k[:-7] in line}
    assert weights
    parts = [weight * line[key.removesuffix("_weight")] for key, weight in weights.items()]
    # The trainer rounds its own figure to four digits.
    assert line["task_loss"] + sum(parts) == pytest.approx(line["loss"], abs=6e-5)
