"""General ability: the loss on ordinary text that no task is about."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from perdure.errors import DataError
from perdure.models.chat import Encoder
from perdure.models.weights import evaluating
from perdure.processes import Progress
from perdure.scoring.likelihood import Pair, score_pairs
from perdure.scoring.routed import Routed, each_by_adapter, told
from perdure.scoring.score import perplexity


@dataclass(frozen=True)
class GeneralScore:
    """Loss on general text.

    `loss` is in nats a token, pooled over all tokens; `perplexity` is its exponential. An item is
    `{"id": hash of the text, "loss": nats a token, "tokens": tokens that were predicted}`.
    """

    loss: float
    perplexity: float
    tokens: int
    items: list[dict[str, Any]]


def general_loss(
    model: nn.Module,
    encoder: Encoder,
    texts: Sequence[str],
    *,
    max_tokens: int = 128,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    accelerator: Any = None,
    on_progress: Progress | None = None,
    routed: Routed | None = None,
) -> GeneralScore:
    """Measure a model's loss on texts, plain (no chat template), each text by itself.

    Texts get the special tokens that the tokenizer adds (a model that knows its texts with a
    beginning token is lost without it) and are cut to `max_tokens`. Every token but the first is
    predicted. Texts of a single token predict nothing and have no item.

    Args:
        encoder: keeps the texts' tokens, so that measuring again tokenizes nothing.
        device: moves the model there first; None leaves it where it is.
        accelerator: under several processes each takes its share, and all return the same.
        on_progress: called as on_progress(done, total), in texts.
        routed: chooses the adapter for each text, as for a request.
    Raises:
        DataError: no text has two tokens.
        TrainingError: the model gives NaN.
    """
    coded = [
        (text, encoder.encode_text(text, max_tokens, special=True)["input_ids"]) for text in texts
    ]
    coded = [(text, ids) for text, ids in coded if len(ids) > 1]
    if not coded:
        raise DataError("general text: no text has two tokens or more", "give longer texts")
    if device is not None:
        model.to(device)

    def progress(done: float) -> None:
        if on_progress is not None:
            on_progress(round(done * len(texts)), len(texts))

    pairs: list[Pair] = [(ids[:1], ids[1:]) for _, ids in coded]
    choices = None if routed is None else routed.of_texts([text for text, _ in coded])
    score = partial(
        score_pairs, model, batch_size=batch_size, accelerator=accelerator, on_progress=progress
    )
    with evaluating(model):
        found = each_by_adapter(model, choices, pairs, score)
    items: list[dict[str, Any]] = [
        {
            "id": hashlib.sha256(text.encode()).hexdigest()[:16],
            "loss": -float(one.double().mean()),
            "tokens": len(one),
        }
        for (text, _), one in zip(coded, found, strict=True)
    ]
    if choices is not None:
        items = told(items, choices)
    tokens = sum(item["tokens"] for item in items)
    loss = math.fsum(item["loss"] * item["tokens"] for item in items) / tokens
    return GeneralScore(loss, perplexity(loss), tokens, items)
