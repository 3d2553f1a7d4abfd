"""GeRe's frozen teacher: its states or predictions on the general texts, distilled once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from perdure.errors import RunError
from perdure.mechanisms.state_cache import Kind, Raw, StateCache, alike, measured_noise, note, raws

if TYPE_CHECKING:
    from perdure.engine.context import Context
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
    about = _about(rows, config) | ctx.computing
    of_base = config.teacher == "base"
    if known or (of_base and ctx.has_adapter):  # inside `as_base` nothing of an adapter is trained
        about["model"] = known or ctx.fingerprint(frozen_only=True)
    else:
        with ctx.as_base() if of_base else nullcontext():
            about["model"] = ctx.fingerprint()
    cache = StateCache(ctx.cache, about, kind)
    if cache.ready():
        return cache
    changed = cache.differences()
    if known and not ctx.has_base:
        raise RunError(
            f"gere: the base model's states are not in {cache.folder}: "
            + (f"{changed} changed since they were made" if changed else "they were removed"),
            "a trained model cannot give them again: start a new run",
        )
    if any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in ctx.model.modules()):
        note(
            "gere: the model has dropout, on general texts too: their margin is not 0 at the start"
        )
    if changed and of_base:
        note("gere: distilling the base model anew, as this changed: %s", changed)

    @torch.no_grad()
    def raws_of(group: Sequence[int], done: int) -> list[Raw]:
        ctx.tell("distilling", "general texts", done, len(rows))
        some = [rows[i] for i in group]
        seen = ctx.forward(some, logits=kind == "logits")
        return raws(seen, some, config.layers, kind, config.kl_top, config.kl_temperature)

    @torch.no_grad()
    def noise_of(made: StateCache) -> Mapping[str, Any]:
        if kind != "codes":
            return {}
        some = list(range(min(_NOISE_ROWS, len(rows))))
        seen = ctx.states_as_trained([rows[i] for i in some], config.layers)
        return {
            str(k): measured_noise(made, some, k, seen.hidden[k], seen.mask) for k in config.layers
        }

    groups = alike([len(row["input_ids"]) for row in rows], ctx.device, kind)
    one_pass = config.stats == "one_pass_fp32"
    with ctx.as_base() if of_base else nullcontext():
        cache.build(groups, raws_of, noise_of, config.k, one_pass)
    return cache


def _about(rows: Sequence[dict[str, Any]], config: GeReConfig) -> dict[str, Any]:
    """All that the distilled states depend on, but the model."""
    ids = repr([(row["input_ids"], row["labels"]) for row in rows])
    about: dict[str, Any] = {
        "texts": hashlib.sha256(ids.encode()).hexdigest()[:16],  # and so of the tokenizer
        "lengths": max(len(row["input_ids"]) for row in rows),
    }
    if config.loss == "kl":
        return about | {"temperature": config.kl_temperature, "top": config.kl_top}
    about |= {"layers": list(config.layers)}
    return about | ({"k": config.k, "stats": config.stats} if config.loss == "margin" else {})
