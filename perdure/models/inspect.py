"""What a base model is, told from its configuration: no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perdure.models.configuration import read_config
from perdure.models.locate import locate

if TYPE_CHECKING:
    from perdure.recipe.schema import ModelConfig


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a base model. Counts are of numbers, not bytes; tied weights count once."""

    architecture: str
    parameters: int
    trainable: int
    """Parameters that the recipe's tuning would train."""
    hidden: int
    layers: int
    vocab: int
    context_length: int
    """Tokens; 0 where the configuration does not say."""
    is_causal_lm: bool = True


def inspect_base(model: ModelConfig) -> ModelFacts:
    """Read sizes, and check the recipe's LoRA targets, on a model built without memory.

    Raises:
        ModelError: as `perdure.models.load_base`, but for damaged weights.
    """
    from perdure.models.adapters import attach_lora

    config = read_config(model)
    empty = build_empty(model, config)
    parameters = sum(p.numel() for p in empty.parameters())
    trainable = parameters
    if model.tuning == "lora":
        import torch

        with torch.device("meta"):
            tuned = attach_lora(empty, model.lora)
        trainable = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    text = config.get_text_config()
    return ModelFacts(
        architecture=type(empty).__name__,
        parameters=parameters,
        trainable=trainable,
        hidden=int(getattr(text, "hidden_size", 0) or 0),
        layers=int(getattr(text, "num_hidden_layers", 0) or 0),
        vocab=int(text.vocab_size),
        context_length=int(getattr(text, "max_position_embeddings", 0) or 0),
    )


def build_empty(model: ModelConfig, config: Any) -> Any:
    """The model on torch's meta device: modules and shapes, no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    from perdure.models.locate import loading

    options = {} if model.attention is None else {"attn_implementation": model.attention}
    reading = loading(locate(model.path), "configuration", model.trust_remote_code)
    with reading, torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(
            config, trust_remote_code=model.trust_remote_code, **options
        )
    empty.tie_weights()
    return empty
