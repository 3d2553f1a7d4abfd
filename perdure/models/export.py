"""A trained model as a folder that other programs take, without anything of Perdure's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from perdure.errors import ModelError, RunError, UsageError
from perdure.models.adapters import BASE_FILE, save_plain, saved_base
from perdure.models.configuration import read_config
from perdure.models.load import load_saved, resolve_saved

Target = Literal["merged", "peft"]
TARGETS: tuple[Target, ...] = ("merged", "peft")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def export(source: str | Path, out: str | Path, to: str = "merged", dtype: str = "auto") -> Path:
    """Write the model of a run, a checkpoint or a model folder to the new folder `out`.

    Args:
        to: "merged", a whole model in transformers' format, adapters added to the weights; or
            "peft", the adapter alone.
        dtype: of merged weights; "auto" is that in which the base model is stored.

    Returns: the folder.

    Raises:
        UsageError: no such target or type.
        RunError: `out` exists.
        ModelError: no model there, or no adapter for "peft".
    """
    out = Path(out)
    for name, value, known in (("--to", to, TARGETS), ("--dtype", dtype, DTYPES)):
        if value not in known:
            raise UsageError(f"{name} {value}: unknown", f"one of: {', '.join(known)}")
    if out.exists():
        raise RunError(f"{out}: exists already, and is never overwritten", "choose another --out")
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        if to == "peft":
            _adapter(source, draft)
        else:
            _merged(source, draft, dtype)
        os.rename(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return out


def _adapter(source: str | Path, draft: Path) -> None:
    folder = resolve_saved(Path(source).expanduser())
    if folder is None or not (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{source}: was trained in full and has no adapter", "write it whole: --to merged"
        )
    shutil.copytree(folder, draft, ignore=shutil.ignore_patterns(BASE_FILE, "manifest.json"))


def _merged(source: str | Path, draft: Path, dtype: str) -> None:
    import torch

    model, tokenizer = load_saved(source)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    kind = getattr(torch, _stored(source) if dtype == "auto" else dtype)
    model = model.to(kind)
    model.config.dtype = kind
    save_plain(model, tokenizer, draft)


def _stored(source: str | Path) -> str:
    """The type in which a base model's weights are stored, by its configuration; else float32."""
    from perdure.recipe.schema import ModelConfig

    folder = resolve_saved(Path(source).expanduser())
    base = saved_base(folder) if folder is not None else None
    config = read_config(base or ModelConfig(path=str(folder or source)))
    found = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return found if found in DTYPES[1:] else "float32"
