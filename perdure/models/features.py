"""Features of texts under a body that stays, computed once for each state of the weights.

A frozen body gives a text the same vector at each look, so heads, scores and probes can share one
forward pass a text. Vectors lie in blocks, one for each time that new texts were asked for, in
files that are mapped into memory; a block appears whole or not at all, and is computed again where
its bytes are not what was written. Beside each block stand hashes of its texts, so that a process
that goes on knows all that an earlier one computed: it reads the same numbers, to the bit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perdure.drafts import draft_of
from perdure.failures import at
from perdure.files import write_atomic
from perdure.seals import is_whole, sha256, write_sealed

logger = logging.getLogger("perdure")


def state_key(**facts: Any) -> str:
    """A short hash of all that a feature depends on: weights, tokenizer, template, length, padding
    side, pooling, precision."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Features:
    """The features of one state of the weights.

    Args:
        folder: of this state alone; made when something is kept.
        compute: gives the features of some texts, (texts, width) float32, in their order.
    """

    def __init__(self, folder: Path, compute: Callable[[Sequence[str]], Tensor]) -> None:
        self.folder, self.compute = folder, compute
        self._blocks: dict[str, np.ndarray[Any, Any]] = {}
        self._places: dict[str, tuple[str, int]] = {}
        for said in sorted(folder.glob("*.texts")):
            self._recall(said)
        self._recalled = set(self._places)

    def add(self, texts: Sequence[str]) -> None:
        """Have the features of texts, from a file or by running the body, unless they are known."""
        new = [text for text in dict.fromkeys(texts) if not self.has(text)]
        if not new:
            return
        name = _hash(new)
        file = self.folder / f"{name}.npy"
        block = self._read(file, len(new))
        self._blocks[name] = self._write(file, new) if block is None else block
        self._places |= {_hash([text]): (name, i) for i, text in enumerate(new)}

    def has(self, text: str) -> bool:
        return _hash([text]) in self._places

    def is_from_file(self, text: str) -> bool:
        """Whether a process before this one computed it."""
        return _hash([text]) in self._recalled

    def of(self, texts: Sequence[str]) -> Tensor:
        """Features of texts that were added, (texts, width) float32."""
        found = [
            self._blocks[name][i] for name, i in (self._places[_hash([text])] for text in texts)
        ]
        return torch.from_numpy(np.stack(found))

    def _recall(self, said: Path) -> None:
        """Know the texts of a block that an earlier process wrote, if it is whole."""
        file = said.with_suffix(".npy")
        if not (is_whole(said) and file.exists()):
            return
        hashes: list[str] = json.loads(said.read_text("utf-8"))
        if (block := self._read(file, len(hashes))) is not None:
            self._blocks[file.stem] = block
            for i, found in enumerate(hashes):
                self._places.setdefault(found, (file.stem, i))

    def _read(self, file: Path, count: int) -> np.ndarray[Any, Any] | None:
        if not file.exists():
            return None
        if not (file.with_name(file.name + ".sha256").exists() and is_whole(file)):
            logger.warning("%s: damaged: its features are computed again", file)
            return None
        found: np.ndarray[Any, Any] = np.load(file, mmap_mode="r")
        return found if len(found) == count else None

    def _write(self, file: Path, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        vectors = self.compute(texts).numpy()
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = draft_of(file)
        with at(file), open(draft, "wb") as opened:
            np.save(opened, vectors)
        write_sealed(file.with_suffix(".texts"), json.dumps([_hash([text]) for text in texts]))
        # First the sum: a file without one, left by a power cut, is computed again.
        write_atomic(file.with_name(file.name + ".sha256"), sha256(draft, True) + "\n")
        os.replace(draft, file)
        found: np.ndarray[Any, Any] = np.load(file, mmap_mode="r")
        return found


def _hash(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


TEXT = "_text"
"""Key of an encoded row under which its text stands, by which features are found."""
