"""What a frozen model computes on fixed texts, distilled once; see `Context.base_states`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from perdure.errors import RunError
from perdure.mechanisms.state_cache import (
    METHOD,
    Raw,
    StateCache,
    alike,
    measured_difference,
    measured_noise,
    note,
    raws,
)
from perdure.protocol.batch import model_inputs

if TYPE_CHECKING:
    from perdure.engine.runtime import TaskRuntime

_NOISE_ROWS = 8
_HELD = {"codes": "margin", "states": "distance", "logits": "KL"}
"""What a method that keeps this of the base model makes small."""


@dataclass(frozen=True)
class Distillation:
    """What is kept of each text; the arguments of `Context.base_states`."""

    kind: Any
    layers: tuple[int, ...] = (-1,)
    k: float = 1.0
    one_pass: bool = False
    top: int = 64
    temperature: float = 1.0
    who: str = ""

    def cache_key(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """All that the distilled states depend on, but the model and how it computes."""
        ids = repr([(row["input_ids"], row["labels"]) for row in rows])
        about: dict[str, Any] = {
            "texts": hashlib.sha256(ids.encode()).hexdigest()[:16],  # and so of the tokenizer
            "lengths": max(len(row["input_ids"]) for row in rows),
        }
        if any(others := [_beside_tokens(row) for row in rows]):
            about["inputs"] = hashlib.sha256(repr(others).encode()).hexdigest()[:16]
        if self.kind == "logits":
            return about | {"temperature": self.temperature, "top": self.top}
        about |= {"layers": list(self.layers)}
        stats = "one_pass_fp32" if self.one_pass else "two_pass"
        return about | ({"k": self.k, "stats": stats} if self.kind == "codes" else {})


def _beside_tokens(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the model takes of an encoded row beside its token ids, as plain values."""
    found = {k: v for k, v in sorted(model_inputs(row).items()) if k != "input_ids"}
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in found.items()}


def distilled(
    session: TaskRuntime,
    rows: Sequence[dict[str, Any]],
    wanted: Distillation,
    *,
    of_base: bool = True,
    known: str = "",
) -> StateCache:
    """The states of `rows` under the frozen model: this run's own, or made now.

    Args:
        of_base: of the base model; False: of the model as it is before this task.
        known: fingerprint of the base model where it was distilled before, else "".

    Raises:
        RunError: the base's states are gone or of other settings, and the base is trained over.
    """
    kind, who = wanted.kind, wanted.who
    about = wanted.cache_key(rows) | session.computing
    if known or (of_base and session.has_adapter):  # as base, nothing of an adapter is trained
        about["model"] = known or session.fingerprint(frozen_only=True)
    else:
        with session.as_base() if of_base else nullcontext():
            about["model"] = session.fingerprint()
    cache = StateCache(session.cache, about, kind)
    if cache.ready():
        return cache
    changed = cache.differences()
    if known and not session.has_base:
        raise RunError(
            f"{who}: the base model's states are not in {cache.folder}: "
            + (f"{changed} changed since they were made" if changed else "they were removed"),
            "a trained model cannot give them again: start a new run",
        )
    if any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in session.model.modules()):
        note(
            f"{who}: the model has dropout, on general texts too: their {_HELD[kind]} is not 0 at "
            "the start"
        )
    if changed and changed != METHOD and of_base:
        note(f"{who}: distilling the base model anew, as this changed: %s", changed)

    @torch.no_grad()
    def raws_of(group: Sequence[int], done: int) -> list[Raw]:
        session.tell("distilling", "general texts", done, len(rows))
        some = [rows[i] for i in group]
        seen = session.forward(
            some, logits=kind == "logits", hidden=() if kind == "logits" else wanted.layers
        )
        return raws(seen, some, wanted.layers, kind, wanted.top, wanted.temperature)

    @torch.no_grad()
    def noise_of(made: StateCache) -> Mapping[str, Any]:
        if kind == "logits":
            return {}
        return _noise(session, made, rows, wanted.layers)

    groups = alike([len(row["input_ids"]) for row in rows], session.device, kind)
    with session.as_base() if of_base else nullcontext():
        cache.build(groups, raws_of, noise_of, wanted.k, wanted.one_pass, who=who)
    return cache


def _noise(
    session: TaskRuntime, made: StateCache, rows: Sequence[dict[str, Any]], layers: tuple[int, ...]
) -> dict[str, dict[str, float]]:
    """How far rounding alone moves the states of a few texts, by layer.

    Of codes the first ones, in the layout of a training step. Of states, which have no interval to
    stay in, so that each layout's rounding shows, the shortest and the longest beside each other,
    in a padded batch of their own too where a step packs them.
    """
    texts, measure = list(range(min(_NOISE_ROWS, len(rows)))), measured_noise
    if made.kind == "states":
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        half = _NOISE_ROWS // 2
        texts, measure = sorted({*by_length[:half], *by_length[-half:]}), measured_difference
    some = [rows[i] for i in texts]
    passes = [session.states_as_trained(some, layers)]
    if made.kind == "states" and session.packs:
        passes.append(session.forward(some, logits=False, hidden=layers))
    found: dict[str, dict[str, float]] = {}
    for layer in layers:
        each = [measure(made, texts, layer, seen.hidden[layer], seen.mask) for seen in passes]
        found[str(layer)] = {name: max(noise[name] for noise in each) for name in each[0]}
    return found
