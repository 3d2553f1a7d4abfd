"""GeRe's frozen teacher: its states or predictions on the general texts, distilled once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from perdure.errors import RunError
from perdure.learners.encoding import collate
from perdure.methods._states import Kind, Raw, StateCache, measured_noise, note, top

if TYPE_CHECKING:
    from perdure.learners.context import Context
    from perdure.learners.passes import Pass
    from perdure.methods.gere import GeReConfig

_NOISE_ROWS = 8
KINDS: dict[str, Kind] = {"margin": "codes", "kl": "logits", "l1": "states", "l2": "states"}


def distilled(
    ctx: Context, rows: Sequence[dict[str, Any]], config: GeReConfig, known: str
) -> StateCache:
    """The cache of `rows` under the teacher: this run's own, or made now.

    Args: known: fingerprint of the base model where it was distilled before, else "".

    Raises:
        RunError: the base's states are gone or of other settings, and the base is trained over.
    """
    kind = KINDS[config.loss]
    adapter_off = ctx.has_adapter and config.teacher == "base"
    cache = StateCache(ctx.cache, _about(ctx, rows, config, known, adapter_off), kind)
    if cache.ready():
        return cache
    changed = cache.differences()
    if known and not adapter_off:
        raise RunError(
            f"gere: the base model's states are not in {cache.folder}: "
            + (f"{changed} changed since they were made" if changed else "they were removed"),
            "a trained model cannot give them again: start a new run",
        )
    if changed and config.teacher == "base":
        note("gere: distilling the base model anew, as this changed: %s", changed)

    @torch.no_grad()
    def raw_of(i: int) -> Raw:
        # Each text alone and unpadded, so that no layout but its own rounds its states.
        ctx.tell("distilling", "general texts", i + 1, len(rows))
        seen = _seen(ctx, [rows[i]], adapter_off, kind == "logits")
        if kind == "logits":
            return top(seen.logits, config.kl_top, config.kl_temperature)
        return {str(layer): seen.hidden[layer][0].float() for layer in config.layers}

    @torch.no_grad()
    def noise_of(made: StateCache) -> Mapping[str, float]:
        if kind != "codes":
            return {}
        some = list(range(min(_NOISE_ROWS, len(rows))))
        seen = _seen(ctx, [rows[i] for i in some], adapter_off, False)
        layer = config.layers[-1]
        return measured_noise(made, some, layer, seen.hidden[layer], seen.mask)

    cache.build(len(rows), raw_of, noise_of, config.k, config.stats == "one_pass_fp32")
    return cache


def _about(
    ctx: Context,
    rows: Sequence[dict[str, Any]],
    config: GeReConfig,
    known: str,
    adapter_off: bool,
) -> dict[str, Any]:
    """All that the distilled states depend on."""
    ids = repr([(row["input_ids"], row["labels"]) for row in rows])
    about: dict[str, Any] = {
        "model": known or ctx.fingerprint(frozen_only=adapter_off),
        "texts": hashlib.sha256(ids.encode()).hexdigest()[:16],  # and so of the tokenizer
        "lengths": max(len(row["input_ids"]) for row in rows),
    }
    if config.loss == "kl":
        return about | {"temperature": config.kl_temperature, "top": config.kl_top}
    about |= {"layers": list(config.layers)}
    return about | ({"k": config.k, "stats": config.stats} if config.loss == "margin" else {})


def _seen(ctx: Context, rows: Sequence[dict[str, Any]], adapter_off: bool, logits: bool) -> Pass:
    if not adapter_off:
        return ctx.forward(rows, logits=logits)
    batch = collate(rows, ctx.encoder.pad_id)
    batch = {name: value.to(ctx.device) for name, value in batch.items()}
    return ctx.frozen("base", logits)(batch)
