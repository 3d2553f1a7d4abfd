"""Read a GGUF file once, and keep it as an ordinary model folder in the cache.

Reading the 98 MB of SmolLM2 takes half a minute of one core each time, most of it in parsing the
header's token lists; the same weights as fp32 safetensors take 0.3 s. So a file of up to 1 GB is
converted at first use into `$PERDURE_CACHE` (default: `~/.cache/perdure`), found again by its
content, never by its name. Larger files, and those that the cache cannot hold, are read directly.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from perdure.drafts import draft_of, sweep
from perdure.failures import errno_of
from perdure.files import cache_folder
from perdure.models.locate import Place, loading
from perdure.seals import damaged, is_sealed, seal

LARGEST = 1 << 30
"""Bytes of a GGUF file that is still converted; as fp32 it takes some six times that."""
_FP32 = 7
_known: set[tuple[Path, bool]] = set()
"""Folders that this process has read and found whole."""


def converted(place: Place, *, weights: bool = False) -> Place:
    """The model folder that stands for a GGUF file, made now if need be; else `place` itself.

    Processes may convert the same file at the same time; the folder appears whole or not at all.
    A damaged one is made again.

    Args: weights: they are about to be read, so they are checked too, which reads them once more.

    Raises:
        ModelError: the file is damaged or of an architecture that transformers cannot read.
    """
    file = Path(place.name) / (place.gguf or "")
    if not place.gguf or file.stat().st_size > LARGEST:
        return place
    folder = cache_folder() / "gguf" / f"{file.stem}-{_fingerprint(file)}"
    if folder.is_dir() and _whole(folder, weights):
        return Place(str(folder))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder.parent).free < _FP32 * file.stat().st_size:
            return place
        sweep(folder.parent, ours=True)
        new = draft_of(folder)
        new.mkdir()
    except OSError:  # a read-only home
        return place
    try:
        _convert(place, new)
        seal(new, {"made_from": file.name})
        if folder.is_dir() and not _whole(folder, weights):
            shutil.rmtree(folder)
        os.rename(new, folder)
    except Exception as error:  # another process was first, or the disk is full
        if errno_of(error) is None:
            raise
        return Place(str(folder)) if folder.is_dir() and _whole(folder, weights) else place
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return Place(str(folder))


def _whole(folder: Path, weights: bool) -> bool:
    """Whether a converted model is as it was written; read once a process."""
    if (folder, weights) in _known:
        return True
    if not is_sealed(folder):  # also one from before there were checksums
        why = "without checksums, or incomplete"
    elif file := damaged(folder, skip=() if weights else (".safetensors",)):
        why = f"damaged in {Path(file).name}"
    else:
        _known.add((folder, weights))
        return True
    logging.getLogger("perdure").warning("%s: %s, so it is made again", folder, why)
    return False


def _fingerprint(file: Path) -> str:
    """A hash of the file's content; read once a process, as long as the file stays as it is."""
    facts = file.stat()
    return _hash_of(file, facts.st_size, facts.st_mtime_ns)


@functools.cache
def _hash_of(file: Path, size: int, changed: int) -> str:
    import transformers

    digest = hashlib.sha256(transformers.__version__.encode())  # conversion is its work
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]


def _convert(place: Place, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with loading(place, "model"):
        config = AutoConfig.from_pretrained(place.name, gguf_file=place.gguf)
        tokenizer = AutoTokenizer.from_pretrained(place.name, gguf_file=place.gguf)
        model = AutoModelForCausalLM.from_pretrained(
            place.name, gguf_file=place.gguf, config=config, dtype=torch.float32
        )
    plain(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def plain(model: Any) -> None:
    """Remove what marks a model from a GGUF file as quantised; its weights no longer are.

    Left in place, the marks make the trainer refuse it and spoil the saved configuration.
    """
    for owner, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)
    for flag in ("is_quantized", "quantization_method"):
        model.__dict__.pop(flag, None)
