"""What a base model is, told from its configuration: no weight is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.consent import given
from perdure.models.configuration import (
    POOLERS,
    attention_of,
    is_decoder,
    read_config,
    why_not_causal,
)
from perdure.models.gguf import converted
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
    decoder: bool = True
    """It reads a text from left to right; else it is an encoder."""
    no_language_head: str = ""
    """Why it cannot write text; "" if it can."""
    adapted_inputs: int = 0
    """Numbers that an adapter's layers read, summed over them: the columns of its matrices A."""

    cached: int = 0
    """Numbers that a layer keeps of each token while it generates; 0 where it is not known."""

    def with_experts(self, experts: int) -> ModelFacts:
        """With the routers of an adapter that is split among so many experts; 1 has none."""
        routers = experts * self.adapted_inputs if experts > 1 else 0
        return replace(self, trainable=self.trainable + routers)


def inspect_base(model: ModelConfig, writes: bool = True) -> ModelFacts:
    """Read sizes, and check the recipe's LoRA targets, on a model built without memory.

    A folder of weights that is trained in full says its sizes by itself: nothing is built then.

    Args: writes: it must write text; else it is a body alone, of an encoder or a decoder.

    Raises:
        ModelError: as `perdure.models.load_base`, but for damaged weights.
    """
    config = read_config(model, causal=writes)
    counts = counted(model, config) if writes else None
    # Weight files are asked only where no adapter is trained.
    built = _built(model, config, writes) if counts is None else (*counts, 0)
    architecture, parameters, trainable, inputs = built
    text = config.get_text_config()
    return ModelFacts(
        architecture=architecture,
        parameters=parameters,
        trainable=trainable,
        hidden=int(getattr(text, "hidden_size", 0) or 0),
        layers=int(getattr(text, "num_hidden_layers", 0) or 0),
        vocab=int(text.vocab_size),
        context_length=int(getattr(text, "max_position_embeddings", 0) or 0),
        decoder=is_decoder(config),
        no_language_head=why_not_causal(config),
        adapted_inputs=inputs,
        cached=_cached(text),
    )


def _cached(text: Any) -> int:
    """Keys and values, by the configuration of a model's text part."""
    hidden, heads = (getattr(text, n, 0) or 0 for n in ("hidden_size", "num_attention_heads"))
    if not (isinstance(heads, int) and heads):
        return 0
    kept = getattr(text, "num_key_value_heads", None) or heads
    wide = getattr(text, "head_dim", None) or hidden // heads
    return 2 * kept * wide if isinstance(kept, int) and isinstance(wide, int) else 0


def _built(model: ModelConfig, config: Any, writes: bool) -> tuple[str, int, int, int]:
    """Class, parameters, trained parameters and `adapted_inputs` of the model built without
    memory."""
    from perdure.models.adapters import attach_lora

    empty = build_empty(model, config, writes)
    parameters = trainable = sum(p.numel() for p in empty.parameters())
    inputs = 0
    if model.tuning == "lora":
        import torch

        with torch.device("meta"):
            task_type = "CAUSAL_LM" if writes else "FEATURE_EXTRACTION"
            tuned = attach_lora(empty, model.lora, task_type=task_type)
        learned = {n: p for n, p in tuned.named_parameters() if p.requires_grad}
        trainable = sum(p.numel() for p in learned.values())
        inputs = sum(p.shape[-1] for n, p in learned.items() if ".lora_A." in n)
    return type(empty).__name__, parameters, trainable, inputs


def counted(model: ModelConfig, config: Any) -> tuple[str, int, int] | None:
    """Class, parameters and trained parameters by the heads of a folder's weight files.

    Building the model imports three seconds of `transformers` that a check can do without. None
    where the files alone do not tell: adapters, an attention to be checked, code of the model's
    own, quantized weights, a model of several parts, or one that was saved as another class.
    """
    from safetensors import SafetensorError, safe_open
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    known = CAUSAL.get(config.model_type)
    saved = list(getattr(config, "architectures", None) or [])
    own_ways = getattr(config, "auto_map", None) or getattr(config, "quantization_config", None)
    plain = model.tuning == "full" and model.attention is None and not own_ways
    if not plain or saved != [known] or config.get_text_config() is not config:
        return None
    place = converted(locate(model.path))
    if not place.local or place.gguf:
        return None
    sizes: dict[str, int] = {}
    try:
        for file in sorted(Path(place.name).glob("model*.safetensors")):
            with safe_open(file, framework="np") as weights:
                for name in weights.keys():  # noqa: SIM118  # it is no mapping
                    sizes[name] = math.prod(weights.get_slice(name).get_shape())
    except (OSError, SafetensorError):
        return None  # damaged weights are reported when they are loaded
    embedded = [n for n in sizes if n.endswith(("embed_tokens.weight", "embed_in.weight"))]
    layers = {name.partition(".layers.")[2].partition(".")[0] for name in sizes} - {""}
    deep, tied = (getattr(config, k, None) for k in ("num_hidden_layers", "tie_word_embeddings"))
    if len(embedded) != 1 or len(layers) != deep or tied is None:
        return None  # other names than these, or layers more or less than the model has
    if tied:
        sizes = {n: s for n, s in sizes.items() if n not in ("lm_head.weight", "embed_out.weight")}
    total = sum(s for n, s in sizes.items() if not n.endswith((".inv_freq", ".masked_bias")))
    return str(known), total, total


def build_empty(model: ModelConfig, config: Any, writes: bool = True) -> Any:
    """The model on torch's meta device: modules and shapes, no memory.

    Args: writes: with its language-model head; else the body alone.
    """
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    from perdure.models.locate import loading

    options: dict[str, Any] = dict(attention_of(model))
    if not writes and config.model_type in POOLERS:
        options["add_pooling_layer"] = False
    family = AutoModelForCausalLM if writes else AutoModel
    reading = loading(locate(model.path), "configuration")
    with reading, torch.device("meta"):
        empty = family.from_config(config, trust_remote_code=given(), **options)
    empty.tie_weights()
    return empty
