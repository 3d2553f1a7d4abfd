"""A base and a tuned model, and one model in memory that takes any weights between the two.

Of a full model, the straight line runs from the base's weights to the tuned model's. Of a LoRA
adapter it runs from no adapter to the adapter: the factor scales the second matrix of each pair,
and with it their product. Only what differs is kept twice, on the CPU, in the narrowest number
type that loses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.audit.runs import today_of
from perdure.errors import ModelError, UsageError
from perdure.models import load_base, load_saved, save_model
from perdure.models.adapter_lists import DEFAULT, folders
from perdure.models.adapters import (
    join_adapter,
    load_adapter,
    reading,
    saved_base,
    saved_template,
    without_file,
)
from perdure.models.chat import Encoder
from perdure.models.load import resolve_saved
from perdure.models.precision import in_bf16
from perdure.models.served import adapter_named, adapters_told, load_router, verify_saved
from perdure.recipe.schema import ModelConfig
from perdure.repair.candidates import Candidate, layer_groups, mixed

_MERGE = "merge it into its base first: PeftModel.merge_and_unload(), then save_pretrained"


class Line:
    """A model whose weights lie where `put` says; it begins as the tuned one.

    Attributes:
        model, tokenizer: the tuned model's.
        config: where its base is, for what is saved.
        start, end: the weights that differ, by parameter name. An adapter's are all here.
        groups: the group of each of these names (`perdure.repair.candidates.GROUPS`).
        today: the day whose date a template writes; None is that of now.
        adapter: whether the tuned model is an adapter.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        config: ModelConfig,
        start: Mapping[str, Tensor],
        end: Mapping[str, Tensor],
        stored: torch.dtype,
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.start, self.end, self.stored = dict(start), dict(end), stored
        self.adapter = hasattr(model, "peft_config")
        self.today: date | None = None
        groups = layer_groups([name for name, _ in model.named_parameters()])
        self.groups = {name: groups[name] for name in self.end}

    def encoder(self) -> Encoder:
        """Reads rows as those that the tuned model was trained on were read."""
        encoder = Encoder(self.tokenizer, **reading(self.config))
        if self.today is not None:
            encoder.pin(self.today)
        return encoder

    @torch.no_grad()
    def put(self, candidate: Candidate) -> None:
        """Write a candidate's weights into the model, one tensor at a time."""
        params = dict(self.model.named_parameters())
        for name, value in mixed(candidate, self.start, self.end, self.groups):
            params[name].copy_(value)

    @torch.no_grad()
    def round(self) -> None:
        """Round a full model's weights to the type that the tuned ones were stored in.

        What is measured afterwards is what `save` writes.
        """
        if not self.adapter and self.stored != torch.float32:
            for parameter in self.model.parameters():
                parameter.copy_(parameter.to(self.stored))

    def save(self, folder: Path) -> None:
        """Write the model or the adapter, its tokenizer, and where its base is."""
        if self.adapter:
            for adapter in self.model.peft_config.values():
                adapter.base_model_name_or_path = self.config.path
        else:
            self.model.to(self.stored)
        save_model(self.model, self.tokenizer, folder, self.config)


def load_line(
    base: str, tuned: str, *, precision: str = "fp32", adapter: str | None = None
) -> Line:
    """Load both models; one of them stays.

    Args:
        base, tuned: as `perdure.models.load_saved` takes them; `tuned` may be a LoRA adapter
            on `base`, trained by anything.
        precision: "bf16" keeps the frozen weights under an adapter in bf16.
        adapter: of a `tuned` with several, the one that is scaled.
    Raises:
        ModelError: a model cannot be loaded, or the two are not of one kind and size.
        UsageError: the two are the same, or there is no such adapter.
    """
    folder = resolve_saved(Path(tuned).expanduser())
    on_adapter = folder is not None and (folder / "adapter_config.json").is_file()
    only = None if adapter is None else adapter_named(tuned, adapter)
    if on_adapter and folder:
        line = _of_adapter(base, folder, precision, only)
    else:
        line = _of_full(base, tuned)
    line.today = today_of(tuned)
    if all(torch.equal(line.start[name].float(), last.float()) for name, last in line.end.items()):
        raise UsageError(
            f"repair: {tuned} has the same weights as {base}", "there is nothing to take back"
        )
    return line


def _of_full(base: str, tuned: str) -> Line:
    first, first_tokenizer = load_saved(base)
    if hasattr(first, "peft_config"):
        raise ModelError(f"{base}: is an adapter and {tuned} is a full model", _MERGE)
    start = {name: weight.detach() for name, weight in first.state_dict().items()}
    names = {name for name, _ in first.named_parameters()}
    dtype = stored_dtype(start[name] for name in names)
    start = {name: weight.to(dtype) for name, weight in start.items()}
    del first
    model, tokenizer = load_saved(tuned)
    check_vocabularies(first_tokenizer, tokenizer)
    params = {name: parameter.detach() for name, parameter in model.named_parameters()}
    strange = sorted((params.keys() - start.keys()) | (names - model.state_dict().keys()))
    if strange:
        raise ModelError(
            f"{base} and {tuned} are not the same kind of model: {strange[0]} is in one of them "
            "only",
            "give the base model that was fine-tuned",
        )
    stored = stored_dtype(params.values())
    begin, end = {}, {}
    for name, last in params.items():
        first_weight = grown(name, start.pop(name), last)
        if not torch.equal(first_weight.to(last.dtype), last):
            begin[name], end[name] = first_weight, last.to(stored, copy=True)
    folder = resolve_saved(Path(tuned).expanduser())
    noted = saved_base(folder) if folder is not None else None
    return Line(model, tokenizer, noted or ModelConfig(path=_absolute(base)), begin, end, stored)


def _of_adapter(base: str, folder: Path, precision: str, only: str | None) -> Line:
    several = folders(folder)
    if only is None and load_router(folder) is not None:
        raise ModelError(
            f"{folder}: a router chooses among its adapters for each request",
            f"repair one of them: {adapters_told(folder)}",
        )
    if only is None and len(several) > 1:
        raise ModelError(
            f"{folder}: holds {len(several)} adapters, {_listed(list(several))}, and one is scaled "
            "at a time",
            (
                f"repair one: {adapters_told(folder)}",
                "or what all that are active make of the base: perdure export --to merged",
            ),
        )
    home = folder if only is None else several[only]
    _check_adapter(home / "adapter_config.json")
    verify_saved(folder)
    noted, path = saved_base(folder), _absolute(base)
    config = ModelConfig(path=path)
    if noted is not None:
        keep = ["attention", "chat_template", "chat_template_kwargs", "max_prompt_length"]
        keep += ["revision"] if noted.path == path else []
        config = config.model_copy(update={name: getattr(noted, name) for name in keep})
    model, tokenizer = load_base(without_file(config))
    tokenizer.chat_template = saved_template(folder) or tokenizer.chat_template
    if precision == "bf16":
        model = in_bf16(model)
    if len(several) > 1:
        model = join_adapter(home, model, DEFAULT, trainable=True)
    else:
        model = load_adapter(home, model, trainable=True)
    params = {name: parameter.detach() for name, parameter in model.named_parameters()}
    every = model.state_dict()  # tied weights under both of their names
    start, end = {}, {}
    for name, last in params.items():
        if ".lora_" in name:
            end[name] = last.clone()
            linear = ".lora_B." in name or ".lora_embedding_B." in name
            start[name] = torch.zeros_like(last) if linear else end[name]
        elif ".modules_to_save." in name:
            original = name.replace(".modules_to_save.default.", ".original_module.")
            start[name], end[name] = every[original].to(last.dtype), last.clone()
    return Line(model, tokenizer, config, start, end, torch.float32)


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _check_adapter(file: Path) -> None:
    """Refuse adapters whose effect does not scale with one of their matrices."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file}: is not valid JSON: {error}", "restore it from a copy") from error
    kind = found.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{file}: is an adapter of type {kind}; only LORA can be scaled", _MERGE)
    for key, plain in (
        ("use_dora", False), ("bias", "none"), ("trainable_token_indices", None),
    ):  # fmt: skip
        if found.get(key, plain) != plain:
            raise ModelError(
                f"{file}: {key}: {found[key]}: such an adapter does not scale with a factor", _MERGE
            )


def stored_dtype(weights: Iterable[Tensor]) -> torch.dtype:
    """The narrowest number type that holds all of the weights exactly."""
    every = list(weights)
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(weight.to(dtype).to(weight.dtype), weight) for weight in every):
            return dtype
    return torch.float32


def grown(name: str, first: Tensor, last: Tensor) -> Tensor:
    """The base's weights in the shape of the tuned model's, which may have got new tokens.

    Rows that the base does not have are the tuned model's own: there is nothing to undo.

    Raises:
        ModelError: the shapes differ in another way.
    """
    if first.shape == last.shape:
        return first
    if first.shape[1:] != last.shape[1:] or len(first) > len(last):
        raise ModelError(
            f"{name}: is {tuple(first.shape)} in the base and {tuple(last.shape)} in the tuned "
            "model",
            "give the base model that was fine-tuned",
        )
    whole = last.clone()
    whole[: len(first)] = first
    return whole


def check_vocabularies(first: Any, last: Any) -> None:
    """Refuse tokenizers that give one token two ids: weights between them mean nothing.

    Raises:
        ModelError: a token of the base has another id, or none, in the tuned model.
    """
    theirs = last.get_vocab()
    strange = sorted(token for token, at in first.get_vocab().items() if theirs.get(token) != at)
    if strange:
        raise ModelError(
            f"the tokenizers differ: {len(strange)} tokens of the base, for example "
            f"{strange[0]!r}, have another id or none in the tuned model",
            "give the base model that was fine-tuned",
        )


def _absolute(path: str) -> str:
    """A local model's absolute place, as its adapter must note it; a hub id as it is."""
    local = Path(path).expanduser()
    folder = resolve_saved(local)
    if folder is not None:
        return str(folder.resolve())
    return str(local.resolve()) if local.exists() else path
