"""A base model's configuration, read and checked before any weight."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.consent import demand, given
from perdure.errors import ModelError
from perdure.models.gguf import converted
from perdure.models.locate import loading, locate

if TYPE_CHECKING:
    from perdure.recipe.schema import ModelConfig


def read_config(model: ModelConfig, causal: bool = True) -> Any:
    """Read and check a base model's `PretrainedConfig`; no weights.

    Args: causal: it must predict the next token; else an encoder will do as well.

    Raises:
        ModelError: not found, not reachable, or no model of that sort.
        ConsentError: it brings code of its own, and the user has not said that it may run.
    """
    from transformers import AutoConfig

    place = locate(model.path)
    if place.gguf and model.fsdp_size > 1:
        raise ModelError(
            f"model.fsdp_size: {model.fsdp_size}: a GGUF file cannot be loaded in shards",
            "save it as a folder first: perdure.models.load_base(...)[0].save_pretrained(FOLDER)",
        )
    if place.local and not place.gguf:
        _check_json(Path(place.name) / "config.json")
    with loading(place, "configuration"):
        source = converted(place)
        config = AutoConfig.from_pretrained(
            source.name,
            revision=model.revision,
            trust_remote_code=given(),
            **source.arguments,
        )
    kernel = str(getattr(config, "_attn_implementation", "") or "")
    if "/" in kernel:
        demand(f"model.path: {place.shown}: names a hub repository's attention kernel, {kernel}")
    if not causal and (why := _why_no_body(config)):
        raise ModelError(
            f"model.path: {place.shown}: {why}, which no classifier of texts stands on",
            "give an encoder such as BERT, or a decoder such as Llama or SmolLM",
        )
    if causal and (why := why_not_causal(config)):
        raise ModelError(
            f"model.path: {place.shown}: is not a causal language model: {why}",
            "give a decoder model that predicts the next token, such as Llama, Qwen or SmolLM",
        )
    return config


POOLERS = ("bert", "roberta", "camembert", "xlm-roberta", "mpnet", "albert")
"""Families whose body has a pooling layer of its own, which nothing here reads."""

OWN_POSITIONS = ("roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "data2vec-text", "mpnet")
"""Families that number positions by padding tokens themselves, from an offset of their own."""


def is_decoder(config: Any) -> bool:
    """Whether a body of this configuration reads a text from left to right; else it is an encoder,
    which sees the whole text at once."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    return config.model_type not in MASKED or bool(getattr(config, "is_decoder", False))


def pooling_of(config: Any, chosen: str) -> str:
    """The pooling that "auto" stands for: the last token of a decoder; of an encoder what a
    sentence encoder's own files say of it, else the first token."""
    if chosen != "auto":
        return chosen
    return "last" if is_decoder(config) else _own_pooling(config) or "cls"


def _own_pooling(config: Any) -> str | None:
    """What the files of sentence-transformers beside a model say of its pooling; None where there
    are none, or where it is none of ours."""
    for module in _beside(config, "modules.json") or ():
        if str(module.get("type", "")).endswith(".Pooling"):
            return pooling_said(_beside(config, f"{module.get('path', '')}/config.json") or {})
    return None


def pooling_said(said: Mapping[str, Any]) -> str | None:
    """What a configuration of sentence-transformers' pooling asks for: "mean" or "cls", where it
    is one of these and no other beside it; else None."""
    on = {
        name for name, value in said.items() if name.startswith("pooling_mode_") and value is True
    }
    for ours, theirs in (("mean", "mean_tokens"), ("cls", "cls_token")):
        if on == {f"pooling_mode_{theirs}"} or said.get("pooling_mode") == ours:
            return ours
    return None


def _beside(config: Any, name: str) -> Any:
    """A JSON file beside a model's configuration, in its folder or on the hub; None: none."""
    from transformers.utils.hub import cached_file

    quiet = {f"_raise_exceptions_for_{what}": False
             for what in ("gated_repo", "missing_entries", "connection_errors")}  # fmt: skip
    if not config._name_or_path:  # made in memory
        return None
    try:
        commit = getattr(config, "_commit_hash", None)
        found = cached_file(config._name_or_path, name, revision=commit, **quiet)
        return None if found is None else json.loads(Path(found).read_text("utf-8"))
    except (OSError, ValueError):
        return None


def has_dropout(config: Any) -> bool:
    """Whether a body of this configuration drops anything while it is in training mode."""
    return any(
        isinstance(value, float) and value > 0
        for name, value in config.to_dict().items()
        if re.search("drop", name) and not name.startswith(("classifier", "summary"))
    )


def attention_of(model: ModelConfig) -> dict[str, str]:
    """The argument of `from_pretrained` for a recipe's attention kernel.

    Raises:
        ConsentError: the kernel is a hub repository's ("OWNER/NAME"), which is code.
    """
    if model.attention is None:
        return {}
    if "/" in model.attention:
        demand(f"model.attention: {model.attention}: is code of a hub repository")
    return {"attn_implementation": model.attention}


def _check_json(file: Path) -> None:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ModelError(
            f"{file}:{error.lineno}: is not valid JSON: {error.msg}", "copy or download it again"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file}: cannot be read: {error}", "copy or download it again") from error


def _why_no_body(config: Any) -> str:
    """Say why no classifier stands on a model of this configuration; "" if one can."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED,
    )

    if getattr(config, "is_encoder_decoder", False):
        return "is an encoder-decoder"
    if getattr(config, "auto_map", None) or config.model_type in {*CAUSAL, *MASKED}:
        return ""
    return f"is of type {config.model_type}, neither an encoder nor a decoder of texts"


def why_not_causal(config: Any) -> str:
    """Say why a model with this configuration does not predict the next token; "" if it does."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED,
    )

    kind, saved = config.model_type, list(getattr(config, "architectures", None) or [])
    if getattr(config, "is_encoder_decoder", False):
        return f"{kind} is an encoder-decoder"
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return ""
    if kind not in CAUSAL:
        return f"transformers has no causal model of type {kind!r}"
    if kind in MASKED and not getattr(config, "is_decoder", False):
        return f"{kind} is an encoder that sees the whole text at once"
    # A folder saved without its language-model head would get a random one.
    known = CAUSAL[kind]
    names = {known} if isinstance(known, str) else set(known)
    heads = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    if saved and not any(a in names or a.endswith(heads) for a in saved):
        return f"it was saved as {', '.join(saved)}, without a language-model head"
    return ""
