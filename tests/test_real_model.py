"""On SmolLM2-135M: methods do what they are for, and GeRe's two bits are exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from perdure.loop import learn
from perdure.recipe.schema import Recipe
from perdure.run import Run

pytestmark = pytest.mark.real


def recipe_of(method: Any, model: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"path": str(model)},
            "stream": {"name": "demo"},
            "method": method,
            "general": {"replay_rows": 12, "held_out_rows": 8, "max_tokens": 40},
            "train": {
                "learning_rate": 3e-4, "batch_size": 8, "max_steps": 5, "precision": "fp32",
                "micro_batch_size": 4,
            },
            "scoring": {"max_test_rows": 24},
            "save": {"tasks": "last"},
        }
    )  # fmt: skip


@pytest.mark.timeout(900)
def test_gere_keeps_general_ability_that_plain_training_loses(
    smollm2_dir: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    from perdure.streams import build_stream

    general, language, runs = {}, {}, {}
    for name, method in (
        ("sequential", "sequential"),
        ("gere", {"name": "gere", "insert": 2, "max_tokens": 40}),
    ):
        recipe = recipe_of(method, smollm2_dir)
        stream = build_stream(recipe.stream, recipe.general, recipe.folder, recipe.seed)
        stream = replace(stream, tasks=tuple(t for t in stream.tasks if t.name == "language"))
        run = runs[name] = Run.create(tmp_path / name, recipe)
        learn(recipe, run, stream=stream, base_scores=runs.get("sequential"))
        for line in run.scores():
            into = general if line["kind"] == "general" else language
            into[name, line["after"]] = line["score"]
    base = general["sequential", 0]
    assert general["gere", 0] == base
    assert general["sequential", 1] > 1.15 * base
    assert general["gere", 1] - base < 0.5 * (general["sequential", 1] - base)
    # Both have learned: four languages, half of them right before.
    assert min(language["gere", 1], language["sequential", 1]) > language["gere", 0]
    first = runs["gere"].log_rows()[0]  # of the untouched model
    assert first["method/gere_margin"] == first["method/gere_noise_flipped"] == 0.0
    last = {name: run.log_rows()[-1] for name, run in runs.items()}
    assert last["gere"]["gauge/flip_share"] < last["sequential"]["gauge/flip_share"]


def test_two_bits_are_exact_on_real_states(smollm2_dir: Path) -> None:
    """Loss and gradient from packed flags equal those from whole states bit for bit."""
    from perdure.mechanisms.margin import flags, outside, pack
    from perdure.mechanisms.state_cache import thresholds
    from perdure.models import load_base
    from perdure.recipe.schema import ModelConfig
    from perdure.streams.named.demo import pydoc_texts

    model, tokenizer = load_base(ModelConfig(path=str(smollm2_dir)))
    ids = [tokenizer(text)["input_ids"][:32] for text in pydoc_texts(0).replay[:3]]
    with torch.no_grad():
        h = torch.cat([model.model(torch.tensor([row])).last_hidden_state for row in ids])
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(1.02)
        now = torch.cat([model.model(torch.tensor([row])).last_hidden_state for row in ids])
    found = thresholds(lambda: list(h), 1.0)
    n, p = found["n"], found["p"]
    packed, whole = now.clone().requires_grad_(), now.clone().requires_grad_()
    mask = torch.ones(h.shape[:2]).bool()
    codes = pack(flags(h, n, p))
    assert codes.numel() * 16 == h.numel() * h.element_size()
    sums, counts, _ = outside(packed, codes, mask, n, p)
    by_bits = sums / (counts + 1e-8)
    by_states = []
    for x, base in zip(whole, h, strict=True):  # the three terms of the definition
        low, high = base <= n, base >= p
        e = low * torch.relu(x - n) + high * torch.relu(p - x)
        e = e + (~low & ~high) * (torch.relu(x - p) + torch.relu(n - x))
        by_states.append(e.sum() / ((e != 0).sum() + 1e-8))
    assert by_bits.tolist() == torch.stack(by_states).tolist()
    assert min(by_bits.tolist()) > 0
    by_bits.sum().backward()
    torch.stack(by_states).sum().backward()
    assert packed.grad is not None
    assert whole.grad is not None
    assert torch.equal(packed.grad, whole.grad)
