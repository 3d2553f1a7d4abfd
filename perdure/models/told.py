"""In words: which chat template rows were read with."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.models.chat import Encoder


def template_told(encoder: Encoder, own: str | None, whose: str = "the tuned model's") -> str:
    """What an encoder reads rows with, such as "the tuned model's chat template (sha256 1a2b3c4d)".

    Args: own: the template that `whose` tokenizer brings along.
    """
    if encoder.template is None:
        return "plain text, without a chat template"
    digest = hashlib.sha256(encoder.template.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    name = f"{whose} chat template" if encoder.template == own else "a chat template of its own"
    return f"{name} (sha256 {digest})"


def other_template(encoder: Encoder, own: str | None) -> str:
    """A remark on a model whose own template is another than the one that rows are read with."""
    if own == encoder.template:
        return ""
    return "; the base brings none" if own is None else "; the base brings another one"
