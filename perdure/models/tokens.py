"""Texts to token ids, one by one or many at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, without the special tokens that the tokenizer puts around one."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def ids_together(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """`ids_of` each text, in less time."""
    if not texts:
        return []
    # The first one also has the tokenizer neither cut nor pad what follows.
    first, rest = ids_of(tokenizer, texts[0]), [*texts[1:]]
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if rest and hasattr(backend, "encode_batch_fast"):  # without offsets, which nobody reads
        found = backend.encode_batch_fast(rest, add_special_tokens=False)
        return [first, *(list(one.ids) for one in found)]
    return [first, *(ids_of(tokenizer, text) for text in rest)]


def rules_of(tokenizer: Any) -> str:
    """All that decides which ids a tokenizer makes of a text, to tell one from another."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        words = sorted(tokenizer.get_vocab().items())
        return json.dumps([type(tokenizer).__name__, words, str(tokenizer.special_tokens_map)])
    rules = json.loads(backend.to_str())
    for asked in ("truncation", "padding"):  # of the last call, whatever it was
        rules.pop(asked, None)
    return json.dumps(rules)
