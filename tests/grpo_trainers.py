"""A `trl.GRPOTrainer` on the tiny random model, whose reward is the length of a completion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPTS = [f"What follows {i}?" for i in range(6)]


def length(completions: list[str], **_: Any) -> list[float]:
    """Longer is better."""
    return [len(text) / 10 for text in completions]


def nothing(completions: list[str], **_: Any) -> list[float]:
    """All are alike, so that the policy's own gradient is 0."""
    return [0.0] * len(completions)


def grpo(
    tiny: tuple[Any, Any], out: Path, reward: Callable[..., list[float]] = length, **options: Any
) -> Any:
    """Four completions of at most eight tokens a micro-batch, two steps, fp32, plain SGD.

    Args: options: of `GRPOConfig`; `peft`: of the trainer, a `LoraConfig`; `cls`: its class;
        `data`: its train_dataset.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    kind, peft = options.pop("cls", GRPOTrainer), options.pop("peft", None)
    data = options.pop("data", None)
    given = options.pop("given", {})
    args = GRPOConfig(
        str(out), **{
            "max_steps": 2, "per_device_train_batch_size": 4, "num_generations": 4,
            "max_completion_length": 8, "learning_rate": 0.05, "optim": "sgd",
            "lr_scheduler_type": "constant", "use_cpu": True, "bf16": False, "logging_steps": 1,
            "gradient_checkpointing": False, "save_strategy": "no", "disable_tqdm": True,
            "report_to": "none", "dataloader_pin_memory": False,
            "use_bias_correction_kl": False, **options,
        },
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": text} for text in PROMPTS]) if data is None else data
    return kind(
        model=tiny[0], reward_funcs=reward, args=args, train_dataset=rows,
        processing_class=tiny[1], peft_config=peft, **given,
    )  # fmt: skip


def fixed(prompts: int = 4, width: int = 8) -> dict[str, Any]:
    """Completions of unlike lengths that no model wrote, two to a prompt, and their advantages."""
    import torch

    generator = torch.Generator().manual_seed(3)
    rows = 2 * prompts
    lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
    mask = (torch.arange(width) < lengths).long()
    return {
        "prompt_ids": torch.randint(3, 250, (rows, 4), generator=generator),
        "prompt_mask": torch.ones(rows, 4, dtype=torch.long),
        "completion_ids": torch.randint(3, 250, (rows, width), generator=generator),
        "completion_mask": mask,
        "advantages": torch.tensor([1.0, -1.0] * prompts),
        "num_items_in_batch": mask.sum(),
    }


def on_processes(model_dir: str, out: str) -> None:
    """Three steps on fixed completions with two methods, in this process or as one of several.

    Writes OUT/weights.safetensors, and OUT/log.json: the lines of the log.
    """
    import json
    import os

    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import perdure

    world = int(os.environ.get("WORLD_SIZE", "1"))
    tiny = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    trainer = grpo(
        tiny, Path(out), num_generations=2, max_steps=3, max_grad_norm=0.1,
        per_device_train_batch_size=8 // world,
    )  # fmt: skip
    base = {n: p.detach().clone() for n, p in tiny[0].named_parameters()}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tiny[0].parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    texts = ["One text of the world.", "Another one, which is longer.", "A third."]
    gere = {"name": "gere", "insert": 3, "max_tokens": 12, "weight": 1}
    perdure.attach(trainer, {"name": "kl", "beta": 0.7}, gere, general=texts, base=base)
    rank, each = trainer.accelerator.process_index, 8 // world

    def mine(_: Any) -> dict[str, Any]:
        cut = slice(rank * each, (rank + 1) * each)
        return {k: v[cut] if v.dim() else v.clone() for k, v in fixed().items()}

    trainer._generate_and_score_completions = mine
    trainer.train()
    if rank == 0:
        weights = {n: p.detach() for n, p in trainer.model.named_parameters()}
        save_file(weights, Path(out) / "weights.safetensors")
        lines = [row for row in trainer.state.log_history if "loss" in row]
        (Path(out) / "log.json").write_text(json.dumps(lines))
