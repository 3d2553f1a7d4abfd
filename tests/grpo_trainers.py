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
