"""`perdure.attach` on a `trl.GRPOTrainer`: each method works on completions, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_trainers import grpo

import perdure
from perdure.errors import UsageError
from perdure.methods.registry import load, names

pytestmark = pytest.mark.train

GENERAL = ["One text of the world.", "Another one, which is longer.", "A third."]
WORK = {
    "ema", "freeze", "general_replay", "gere", "gere_distance", "gere_kl", "gere_official", "kl",
    "lwf", "sequential",
}  # fmt: skip
WHY = {
    "derpp": "prompts without one",
    "eaft": "cross-entropy",
    "ewc": "prompts without one",
    "replay": "prompts without one",
    "rewind": "prompts without one",
    "joint": "chooses the rows",
    "lcia": "adapters",
    "lora_sequence": "heads",
    "moelora": "adapters",
    "olora": "adapters",
    "seq_star": "heads",
}
"""What a refusal says, for each built-in method that is refused."""


@pytest.mark.parametrize("name", names())
def test_each_method_works_on_completions_or_is_refused_before_the_first_step(
    tiny: Any, tmp_path: Path, name: str
) -> None:
    options = dict(load(name).example_options)
    trainer = grpo(tiny, tmp_path)
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    try:
        perdure.attach(trainer, {"name": name, **options}, general=GENERAL)
    except UsageError as error:
        assert name in WHY, f"{name} is refused: {error.what}"
        assert error.what.startswith(f"attach: {name}: ")
        assert WHY[name] in error.what
        assert error.remedy
        assert all(p.requires_grad for p in trainer.model.parameters())
        return
    assert name in WORK, f"{name} was taken"
    trainer.train()
    assert trainer.state.global_step == 2
    assert any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())


def test_every_built_in_method_is_told_of_here() -> None:
    assert sorted([*WORK, *WHY]) == names()
