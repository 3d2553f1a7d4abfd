"""Base and saved models with their tokenizers, ready to train or score."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.consent import by_argument, given
from perdure.errors import ModelError, brief
from perdure.models.adapters import (
    attach_lora,
    keep_generation_settings,
    load_adapter,
    reading,
    saved_base,
    saved_template,
    without_file,
)
from perdure.models.configuration import POOLERS, attention_of, read_config
from perdure.models.gguf import converted, plain
from perdure.models.locate import Place, loading, locate, run_around
from perdure.models.locate import resolve_saved as resolve_saved
from perdure.models.precision import in_bf16
from perdure.models.served import check_base, keep_router, load_router, note_base, verify_saved
from perdure.models.weights import fingerprint
from perdure.paths import NoPathError, no_file, settled

if TYPE_CHECKING:
    from perdure.recipe.schema import ModelConfig

_PADDING = ("<|endoftext|>", "<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]")


def load_base(
    model: ModelConfig, *, precision: str = "fp32", noted: bool = False
) -> tuple[Any, Any]:
    """Load a recipe's base model and its tokenizer; with `tuning: lora`, the adapter attached.

    Weights that are trained are always fp32: averages, Fisher values and small updates get lost
    in bf16, and `precision` is the type to compute in (autocast). Only the frozen weights under
    an adapter are kept in bf16, if `precision` says so.

    Args: noted: have the base's fingerprint ready (`perdure.models.served.base_of`), which is that
        of its weights in fp32: they are all read in that type first.

    Returns: (model, tokenizer). The tokenizer has a padding token, and a length limit that is
        the model's context.

    Raises:
        ModelError: see `perdure.models.locate`; and LoRA targets that no module has.
        ConsentError: code of the model's own would have to run (`perdure.consent`).
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = read_config(model)
    tokenizer = load_tokenizer(model, config)
    place = locate(model.path)
    if place.local and not place.gguf and Path(place.name) != Path(model.path).expanduser():
        verify_saved(Path(place.name))  # a run or a checkpoint was named
    source = converted(place, weights=True)
    options: dict[str, Any] = {"config": config} if source.gguf else {}
    options |= source.arguments
    options |= attention_of(model)
    if model.fsdp_size > 1:
        options["distributed_config"] = _sharding(model.fsdp_size)
    frozen_bf16 = model.tuning == "lora" and precision == "bf16"
    with loading(place, "model"):
        loaded = AutoModelForCausalLM.from_pretrained(
            source.name,
            revision=model.revision,
            trust_remote_code=given(),
            dtype=torch.bfloat16 if frozen_bf16 and not noted else torch.float32,
            **options,
        )
    loaded = _tidy(loaded, tokenizer, place, source)
    base = fingerprint(loaded) if noted else ""
    if frozen_bf16 and noted:
        loaded = in_bf16(loaded)
    if model.tuning == "lora":
        loaded = attach_lora(loaded, model.lora)
    note_base(loaded, base)
    return loaded, tokenizer


def _sharding(size: int) -> Any:
    import os

    from transformers.distributed.configuration_utils import DistributedConfig

    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != size:
        raise ModelError(
            f"model.fsdp_size: {size}: but {world} process(es) run",
            f"start it with: torchrun --nproc_per_node {size} -m perdure ...",
        )
    return DistributedConfig(fsdp_size=size)


def _tidy(model: Any, tokenizer: Any, place: Place, source: Place) -> Any:
    """Make a model from a GGUF file an ordinary one, and its special tokens the tokenizer's."""
    if source.gguf:
        plain(model)
    if place.gguf:  # so that what is saved names its origin, not the cache
        model.config.name_or_path = model.name_or_path = place.shown
    generation = getattr(model, "generation_config", None)
    keep_generation_settings(model)
    for owner in (model.config, generation):
        if owner is not None:
            owner.pad_token_id = tokenizer.pad_token_id
    if generation is not None:
        if generation.eos_token_id is None:
            generation.eos_token_id = tokenizer.eos_token_id
        # Sampling settings of a chat model make a greedy generate() warn at each call. What is
        # saved has them again.
        generation.do_sample = False
        for name in ("temperature", "top_p", "top_k", "min_p", "typical_p"):
            if hasattr(generation, name):
                setattr(generation, name, None)
    return model


def load_body(model: ModelConfig, language: bool = False) -> tuple[Any, Any]:
    """Load a base model without its head, and its tokenizer, to stand a classifier on.

    Args: language: a causal language model as a whole, whose `base_model` is the body.

    Returns: (model, tokenizer); a body's output has `last_hidden_state`, (rows, seq, hidden).

    Raises: as `load_base`, but without `language` encoders are taken too.
    """
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    config = read_config(model, causal=language)
    tokenizer = load_tokenizer(model, config, causal=language)
    place = locate(model.path)
    source = converted(place, weights=True)
    options: dict[str, Any] = {"config": config} if source.gguf else {}
    options |= source.arguments | attention_of(model)
    if config.model_type in POOLERS and not language:
        options["add_pooling_layer"] = False  # a head of another training's that nothing reads
    with loading(place, "model"), _report_unsaid():
        loaded, found = (AutoModelForCausalLM if language else AutoModel).from_pretrained(
            source.name,
            revision=model.revision,
            trust_remote_code=given(),
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"model.path: {place.shown}: lacks {len(missing)} of the model's weights, such as "
            f"{missing[0]}, which would be random",
            "give a folder that was saved whole",
        )
    if source.gguf:
        plain(loaded)
    if place.gguf:
        loaded.config.name_or_path = loaded.name_or_path = place.shown
    loaded.config.pad_token_id = tokenizer.pad_token_id
    return loaded, tokenizer


@contextmanager
def _report_unsaid() -> Iterator[None]:
    """transformers lists the weights of a head that nothing reads here; what is missing is told."""
    logger = logging.getLogger("transformers.modeling_utils")

    def error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    # Not by its level: at a higher one transformers (5.x) lists all layers that are "not sharded".
    logger.addFilter(error)
    try:
        yield
    finally:
        logger.removeFilter(error)


def load_tokenizer(model: ModelConfig, config: Any = None, causal: bool = True) -> Any:
    """Load the base model's tokenizer and the recipe's chat template; no weights.

    Args:
        config: the model's configuration if it was read already.
        causal: the model writes text, so that it needs a token to end it with.

    Raises:
        ModelError: not found, or a chat template file that is missing or no template.
    """
    from transformers import AutoTokenizer

    place = locate(model.path)
    with loading(place, "tokenizer"):
        source = converted(place)
        tokenizer = AutoTokenizer.from_pretrained(
            source.name,
            revision=model.revision,
            trust_remote_code=given(),
            **source.arguments,
        )
    if model.chat_template not in ("auto", "none"):
        tokenizer.chat_template = _read_template(model.chat_template)
    config = read_config(model, causal) if config is None else config
    return _complete(tokenizer, config, place, causal)


def _complete(tokenizer: Any, config: Any, place: Place, causal: bool) -> Any:
    """Give the tokenizer an end, a padding token of its own, and the model's length limit."""
    text = config.get_text_config()
    if causal and tokenizer.eos_token_id is None:
        raise ModelError(
            f"model.path: {place.shown}: its tokenizer has no end-of-text token (eos_token)",
            "name it in the folder's tokenizer_config.json",
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        known = tokenizer.get_vocab()
        tokens = [t for t in (*_PADDING, tokenizer.unk_token) if t in known]
        tokens = [t for t in tokens if t != tokenizer.eos_token]
        tokenizer.pad_token = tokens[0] if tokens else tokenizer.eos_token
    if len(tokenizer) > text.vocab_size:
        raise ModelError(
            f"model.path: {place.shown}: its tokenizer has {len(tokenizer)} tokens, "
            f"but the model only {text.vocab_size}",
            "are tokenizer and weights of the same model?",
        )
    context = int(getattr(text, "max_position_embeddings", 0) or 0)
    if context and tokenizer.model_max_length > context:
        tokenizer.model_max_length = context
    return tokenizer


def _read_template(path: str) -> str:
    import jinja2

    remedy = 'give a Jinja file, "auto" (the model\'s own) or "none" (plain text)'
    try:
        file = settled(path)
        if why := no_file(file):
            raise ModelError(f"model.chat_template: {brief(file, 300)}: {why}", remedy)
        template = file.read_text(encoding="utf-8")
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except NoPathError as error:
        raise ModelError(f"model.chat_template: {brief(path)}: {error}", remedy) from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"model.chat_template: {file}: cannot be read: {why}", remedy) from error
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(
            f"model.chat_template: {file}:{error.lineno}: is no Jinja template: {error.message}",
            'correct it, or use "auto" (the model\'s own) or "none" (plain text)',
        ) from error
    return template


@by_argument
def load_saved(
    path: str | Path,
    *,
    precision: str = "fp32",
    trainable: bool = False,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Load any model to score or train on: what Perdure saved, or what anyone else did.

    Args:
        path: a run directory (its last task), a task checkpoint in it, a local folder with a
            full model or a `peft` adapter, a GGUF file, `package:NAME`, or a hub id. Of a folder
            with several adapters all are loaded; the folder of one of them gives that one.
        precision: type of weights that are not trained.
        trainable: for an adapter: go on training it.
        trust_remote_code: code that the model brings may run.

    Raises:
        ModelError: nothing there that can be loaded; an adapter whose base is not found.
        RunError: a run's checkpoint is not as it was written.
        ConsentError: code of the model's own would have to run; no file beside the weights, only
            the user can say that it may (`perdure.consent`).
    """
    folder = resolve_saved(Path(path).expanduser())
    if folder is None:
        return load_base(_plain(str(path)), precision=precision)
    verify_saved(folder)
    base = saved_base(folder)
    if not (folder / "adapter_config.json").is_file():
        here = _plain(str(folder))
        if base is not None:
            here = here.model_copy(
                update={
                    "attention": base.attention,
                    "chat_template": reading(base)["chat_template"],
                    "chat_template_kwargs": base.chat_template_kwargs,
                    "max_prompt_length": base.max_prompt_length,
                }
            )
        return load_base(here, precision=precision)
    if base is None:
        base = _plain(_noted_base(folder))
    try:
        model, tokenizer = load_base(
            without_file(base).model_copy(update={"tuning": "full", "fsdp_size": 0}),
            precision=precision,
        )
    except ModelError as error:
        run = run_around(folder)
        moved = f"if it was moved, write its new place into {run}/recipe.yaml" if run else ""
        what = f"{folder}: the base of this adapter: {error.what}"
        raise ModelError(what, [*error.remedy, *filter(None, [moved])]) from error
    check_base(router := load_router(folder), model, folder)
    if precision == "bf16":
        model = in_bf16(model)
    model = load_adapter(folder, model, trainable=trainable)
    keep_router(model, router)
    tokenizer.chat_template = saved_template(folder) or tokenizer.chat_template
    return model, tokenizer


def _plain(path: str) -> ModelConfig:
    from perdure.recipe.schema import ModelConfig

    return ModelConfig(path=path)


def _noted_base(folder: Path) -> str:
    file = folder / "adapter_config.json"
    try:
        name = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except ValueError as error:
        raise ModelError(f"{file}: is not valid JSON: {error}", "restore it from a copy") from error
    if not name:
        raise ModelError(
            f'{file}: has no "base_model_name_or_path", so the adapter\'s base is not known',
            "write the base model's folder or hub id there",
        )
    return str(name)
