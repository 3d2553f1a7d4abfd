"""A trained model as a folder that other programs take, without anything of Perdure's."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from perdure.drafts import drafted
from perdure.errors import ModelError, RunError, UsageError
from perdure.models.adapter_lists import ADAPTERS_FILE, folders, holder, names
from perdure.models.adapters import BASE_FILE, save_plain, saved_base
from perdure.models.configuration import read_config
from perdure.models.experts import numbers
from perdure.models.load import load_saved, resolve_saved
from perdure.models.pin import folder_of
from perdure.models.served import (
    ROUTERS,
    adapter_named,
    adapters_told,
    router_of,
    serve_only,
    verify_saved,
)

Target = Literal["merged", "peft"]
TARGETS: tuple[Target, ...] = ("merged", "peft")
DTYPES = ("auto", "float32", "bfloat16", "float16")
_FIRST_ONES = ("adapter_config.json", "adapter_model.safetensors")
"""An adapter's own files, among all that lie in a folder."""
_IN_FILES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Names of the types in safetensors files."""


def export(
    source: str | Path,
    out: str | Path,
    to: str = "merged",
    dtype: str = "auto",
    tell: Callable[[str], None] | None = None,
    adapter: str | None = None,
) -> Path:
    """Write the model of a run, a checkpoint or a model folder to the new folder `out`.

    Args:
        to: "merged", a whole model in transformers' format, adapters added to the weights; or
            "peft", the adapter alone.
        dtype: of merged weights; "auto" is that in which the base model is stored; of a GGUF file,
            to which it was dequantised.
        tell: told in which type weights are written, and why.
        adapter: of several, the one to write, by its name or its group's; None: all of them.

    Returns: the folder.

    Raises:
        UsageError: no such target, type or adapter.
        RunError: `out` exists.
        ModelError: no model there, or no adapter for "peft".
    """
    out = Path(out)
    for name, value, known in (("--to", to, TARGETS), ("--dtype", dtype, DTYPES)):
        if value not in known:
            raise UsageError(f"{name} {value}: unknown", f"one of: {', '.join(known)}")
    if out.exists():
        raise RunError(f"{out}: exists already, and is never overwritten", "choose another --out")
    only = None if adapter is None else adapter_named(source, adapter)
    with drafted(out) as draft:
        if to == "peft":
            _adapter(source, draft, only)
        else:
            _merged(source, draft, dtype, tell, only)
        os.rename(draft, out)
    return out


def _adapter(source: str | Path, draft: Path, only: str | None) -> None:
    folder = resolve_saved(Path(source).expanduser())
    if folder is None or not (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{source}: was trained in full and has no adapter", "write it whole: --to merged"
        )
    verify_saved(folder)
    several, ignored = folders(folder), shutil.ignore_patterns(BASE_FILE, "manifest.json")
    if only is None or len(several) == 1:
        shutil.copytree(folder, draft, ignore=ignored, dirs_exist_ok=True)
        return
    # What lies beside the first adapter, such as the tokenizer, is of all of them.
    beside = {BASE_FILE, "manifest.json", ADAPTERS_FILE, *ROUTERS, *_FIRST_ONES}
    for file in folder.iterdir():
        if file.is_file() and file.name not in beside:
            shutil.copy2(file, draft / file.name)
    for name in _FIRST_ONES:
        shutil.copy2(several[only] / name, draft / name)


def _merged(
    source: str | Path,
    draft: Path,
    dtype: str,
    tell: Callable[[str], None] | None,
    only: str | None,
) -> None:
    import torch

    dtype, why = stored_type(source) if dtype == "auto" else (dtype, "as --dtype says")
    if tell is not None:
        tell(f"weights: {dtype}, {why}")
    model, tokenizer = load_saved(source)
    if only is not None:
        serve_only(model, only)
    if router_of(model) is not None:
        folder = resolve_saved(Path(source).expanduser())
        which = "" if folder is None else f": {adapters_told(folder)}"
        raise ModelError(
            f"{source}: each request is routed to one of its {len(names(model))} adapters, which "
            "one set of weights cannot do",
            ["write them all: --to peft", f"or merge one{which}"],
        )
    if holder(model) is not None and numbers(model):
        raise ModelError(
            f"{source}: a router weighs the adapter's experts for each token, which no weight of "
            "the base can do",
            "write the adapter: --to peft",
        )
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    kind = getattr(torch, dtype)
    model = model.to(kind)
    model.config.dtype = kind
    save_plain(model, tokenizer, draft)


def stored_type(source: str | Path) -> tuple[str, str]:
    """The type in which a model's base is stored, and where that is known from, in words.

    Raises:
        ModelError: the base cannot be read any more, so nobody knows.
    """
    from perdure.recipe.schema import ModelConfig

    folder = resolve_saved(Path(source).expanduser())
    base = saved_base(folder) if folder is not None else None
    own = ModelConfig(path=str(folder or source))
    if base is not None and folder is not None and (folder / "config.json").is_file():
        read_config(own)  # what the model itself cannot be loaded for is told first
    base = base or own
    place = folder_of(base)
    if place is not None and place.is_file():
        return "float32", f"to which the base's file {place.name} was dequantised"
    try:
        found = str(getattr(read_config(base), "dtype", None) or "").removeprefix("torch.")
    except ModelError as error:
        raise ModelError(
            f"the type of the base's weights: {error.what}",
            [*error.remedy, "or say in which type to write the weights, such as --dtype bfloat16"],
        ) from error
    found = found or ("" if place is None else _in_files(place))
    if found in DTYPES[1:]:
        return found, "as the base is stored"
    return "float32", f"as the base is stored as {found or 'nobody says what'}"


def _in_files(folder: Path) -> str:
    """The type of most numbers in a folder's safetensors files; "" if there are none."""
    from safetensors import safe_open

    count: Counter[str] = Counter()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "np") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no mapping
                part = weights.get_slice(name)
                numbers = 1
                for length in part.get_shape():
                    numbers *= length
                count[part.get_dtype()] += numbers
    most = max(count, key=lambda kind: count[kind], default="")
    return _IN_FILES.get(most, most)
