"""The pattern freezes the lowest layers and embeddings of any decoder family, by name."""

from __future__ import annotations

import re
from typing import Any

import pytest

from perdure.errors import UsageError
from perdure.methods.freeze import Freeze, FreezeConfig, freeze_pattern

pytestmark = pytest.mark.train

SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 16, "intermediate_size": 16, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 16, "n_layer": 12, "n_head": 2},
    "gpt_neox": {"hidden_size": 16, "intermediate_size": 16},
    "opt": {"hidden_size": 16, "ffn_dim": 16, "word_embed_proj_dim": 16},
    "qwen3": {"hidden_size": 16, "intermediate_size": 16, "num_key_value_heads": 2},
    "gemma2": {"hidden_size": 16, "intermediate_size": 16, "num_key_value_heads": 2},
}


def model_of(family: str, tied: bool = False) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    common = {"num_hidden_layers": 12, "num_attention_heads": 2}
    sizes = SIZES[family] if family == "gpt2" else {**common, **SIZES[family]}
    config = AutoConfig.for_model(family, vocab_size=32, tie_word_embeddings=tied, **sizes)
    return AutoModelForCausalLM.from_config(config)


def frozen(model: Any, pattern: str) -> set[str]:
    return {n for n, _ in model.named_parameters() if pattern and re.search(pattern, n)}


@pytest.mark.parametrize("family", SIZES)
def test_lowest_layers_and_embeddings_of_every_family(family: str) -> None:
    model = model_of(family)
    found = frozen(model, freeze_pattern(model, 2))
    stack = re.compile(r"\.(?:layers|h)\.(\d+)\.")
    for name, _ in model.named_parameters():
        layer = stack.search(name)
        if layer:  # layer 1 is frozen, layers 10 and 11 are not
            assert (name in found) == (int(layer[1]) < 2), name
        else:
            assert (name in found) == any(w in name for w in ("embed", "wte", "wpe")), name


def test_layers_alone_and_nothing() -> None:
    model = model_of("llama")
    assert not any("embed" in n for n in frozen(model, freeze_pattern(model, 2, False)))
    assert freeze_pattern(model, 0, False) == ""


def test_a_tied_head_is_frozen_with_the_embedding() -> None:
    model = model_of("llama", tied=True)
    found = frozen(model, freeze_pattern(model, 1))
    assert "model.embed_tokens.weight" in found
    assert "lm_head.weight" not in dict(model.named_parameters())


def test_the_adapters_parts_of_the_lowest_layers_are_frozen() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model_of("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    found = frozen(model, freeze_pattern(model, 2))
    adapter = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(adapter & found) == {n for n in adapter if re.search(r"\.[01]\.self", n)}
    assert len(adapter & found) == 4


def test_freezing_all_layers_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        freeze_pattern(model_of("llama"), 12)
    assert str(error.value) == (
        "freeze: layers: 12 leaves none of the model's 12 layers to train\n  set it to at most 11"
    )


def test_the_phase_carries_the_pattern(context: Any) -> None:
    method = Freeze(FreezeConfig(layers=1))
    ctx = context(method)
    (phase,) = method.phases(ctx)
    names = frozen(ctx.model, phase.freeze)
    assert "model.layers.0.mlp.up_proj.weight" in names
    assert "model.layers.1.mlp.up_proj.weight" not in names
