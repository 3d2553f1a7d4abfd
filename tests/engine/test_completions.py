"""Methods on a `trl.GRPOTrainer`: completions are their labels, and a KL is scaled as TRL's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_trainers import grpo, nothing
from transformers import AutoModelForCausalLM, TrainerCallback

import perdure

pytestmark = pytest.mark.train

BETA = 0.7


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"])


def moved(model: Any) -> None:
    """Move what is trained off the reference, where each estimate of the KL is flat."""
    by = 0.3 if hasattr(model, "peft_config") else 0.03
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += by * torch.randn(parameter.shape, generator=generator)


class Keep(TrainerCallback):
    """Keeps the gradient of each step, as the optimizer gets it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.steps.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )


def gradients(trainer: Any, batches: list[Any], record: bool) -> list[dict[str, torch.Tensor]]:
    """Train, and give the gradient of each step; completions are recorded, or those of before."""
    make, kept, moment = trainer._generate_and_score_completions, Keep(), iter(list(batches))

    def recorded(inputs: Any) -> Any:
        batches.append(make(inputs))
        return dict(batches[-1])

    trainer._generate_and_score_completions = recorded if record else lambda _: dict(next(moment))
    trainer.add_callback(kept)
    moved(trainer.model)
    trainer.train()
    return kept.steps


def closest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest difference, over the largest entry."""
    assert ours.keys() == theirs.keys()
    largest = max(float(g.abs().max()) for g in theirs.values())
    assert largest > 1e-3, "nothing to compare"
    return max(float((ours[n] - g).abs().max()) for n, g in theirs.items()) / largest


CASES = [
    # accumulation, tuning, temperature, loss type, with the policy's gradient
    *[(a, tuning, t, "dapo", False) for a in (1, 2) for tuning in ("full", "lora") for t in (1, 0.8)],
    *[(2, "lora", 0.8, kind, False) for kind in ("grpo", "bnpo", "dr_grpo", "cispo", "sapo")],
    (2, "full", 0.8, "grpo", True),
]


@pytest.mark.parametrize(("accumulation", "tuning", "temperature", "kind", "policy"), CASES)
def test_the_kl_has_the_gradients_of_trls_own_beta(
    tiny_model_dir: Path, tiny: Any, tmp_path: Path, accumulation: int, tuning: str,
    temperature: float, kind: str, policy: bool,
) -> None:  # fmt: skip
    options = {
        "gradient_accumulation_steps": accumulation, "temperature": temperature,
        "loss_type": kind, "max_grad_norm": 0.0, "max_steps": 1,
        "reward": nothing if not policy else None, "peft": lora() if tuning == "lora" else None,
    }  # fmt: skip
    if options["reward"] is None:
        del options["reward"]
    batches: list[Any] = []
    theirs = gradients(grpo(tiny, tmp_path / "trl", beta=BETA, **options), batches, True)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    base = {n: p.clone() for n, p in model.named_parameters()} if tuning == "full" else None
    trainer = grpo((model, tiny[1]), tmp_path / "ours", **options)
    names = {n for n, _ in trainer.model.named_parameters()}
    perdure.attach(trainer, {"name": "kl", "beta": BETA}, base=base)
    ours = gradients(trainer, batches, False)
    assert len(ours) == len(theirs) == 1
    assert closest(ours[0], theirs[0]) < 1e-5
    assert {n for n, _ in trainer.model.named_parameters()} == names  # and no adapter is added
    assert trainer.ref_model is None
