"""Hidden states of the base model on fixed texts: distilled once, kept on disk, read row by row.

    CACHE/gere-KEY/meta.json             what KEY is the hash of
                   thresholds.safetensors  n, p, mean, std of each layer, (hidden,) fp32
                   00007.safetensors       text 7: two bits a neuron, or fp32 states, a layer each

A build writes to `gere-KEY.part` and renames it at the end; an interrupted one goes on with the
texts it has. The states of one text at a time are in memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from perdure.errors import RunError
from perdure.learners.encoding import collate

if TYPE_CHECKING:
    from perdure.learners.context import Context

States = dict[int, Tensor]
"""Layer to its output for one text, (tokens, hidden) fp32."""


def flags(states: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """1 where at or below `low`, 2 where at or above `high`, 3 both (only if low = high), else 0.

    Args: states (tokens, hidden); thresholds (hidden,). Returns: uint8 of the states' shape.
    """
    return (states <= low).to(torch.uint8) + 2 * (states >= high).to(torch.uint8)


def pack(values: Tensor) -> Tensor:
    """Four 2-bit values a byte along the last dimension, the first in the lowest bits."""
    padded = nn.functional.pad(values, (0, -values.shape[-1] % 4)).unflatten(-1, (-1, 4))
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)
    return (padded << shifts).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, size: int) -> Tensor:
    """The first `size` values of `pack`'s bytes."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)
    return ((packed.unsqueeze(-1) >> shifts) & 3).flatten(-2)[..., :size]


def thresholds(read: Callable[[], Iterable[Tensor]], k: float) -> dict[str, Tensor]:
    """mean -+ k * std of each neuron over all tokens of all texts, in two passes of fp64.

    Args: read: gives the texts' states, each (tokens, hidden); called twice.
    Returns: n, p, mean, std (of the population), each (hidden,) fp32. One pass of fp32 sums can
        give a negative variance.
    """
    total: Any = 0.0
    count = 0
    for states in read():
        total, count = total + states.double().sum(0), count + len(states)
    mean = total / count
    square: Any = 0.0
    for states in read():
        square = square + (states.double() - mean).square().sum(0)
    std = (square / count).sqrt()
    found = {"n": mean - k * std, "p": mean + k * std, "mean": mean, "std": std}
    return {name: value.float() for name, value in found.items()}


def fingerprint(model: nn.Module, full: Callable[[Tensor], Tensor]) -> str:
    """A hash of the base's weights: shape, sum and sum of squares of each, in fp64, to 7 digits.

    With an adapter only the frozen weights are the base's.
    """
    adapter = hasattr(model, "peft_config")
    digest = hashlib.sha256()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if adapter and weight.requires_grad:
                continue
            whole = full(weight.detach()).double()
            sums = f"{whole.sum().item():.6e} {whole.square().sum().item():.6e}"
            digest.update(f"{name} {tuple(whole.shape)} {sums}\n".encode())
    return digest.hexdigest()[:16]


class StateCache:
    """One set of distilled states.

    Args:
        root: folder of the run's caches.
        about: all that the states depend on, as JSON values; its hash is in the folder's name.
        coded: two bits a neuron are kept, not the states.
    """

    def __init__(self, root: Path, about: Mapping[str, Any], coded: bool) -> None:
        self.about, self.coded = {**about, "coded": coded}, coded
        text = json.dumps(self.about, sort_keys=True)
        self.root, key = root, hashlib.sha256(text.encode()).hexdigest()[:12]
        self.folder = root / f"gere-{key}"
        self._limits: dict[str, Tensor] = {}

    def differences(self) -> str:
        """In what the nearest other cache of this run differs, for a message; "" if none is."""
        others = [p for p in self.root.glob("gere-*/meta.json") if p.parent.suffix != ".part"]
        metas = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(others)]
        found = [[k for k, v in self.about.items() if meta.get(k) != v] for meta in metas]
        return ", ".join(sorted(found, key=len)[0]) if found else ""

    def build(self, texts: int, state_of: Callable[[int], States], k: float) -> None:
        """Distil `texts` texts: all processes run `state_of`, the first one writes."""
        part, (main, meet) = self.folder.with_suffix(".part"), _processes()
        if main:
            part.mkdir(parents=True, exist_ok=True)
            (part / "meta.json").write_text(json.dumps(self.about, indent=1), encoding="utf-8")
        meet()
        missing = [i for i in range(texts) if not (part / f"{i:05}.raw").exists()]
        meet()  # nobody writes before all have looked
        for i in missing:
            states = state_of(i)
            if main:
                _save(part / f"{i:05}.raw", {str(layer): s.cpu() for layer, s in states.items()})
        if main:
            self._finish(part, texts, k)
            os.replace(part, self.folder)
        meet()

    def _finish(self, part: Path, texts: int, k: float) -> None:
        """Thresholds first, then codes, from states as they were computed, before any rounding."""

        def read(layer: str) -> Callable[[], Iterable[Tensor]]:
            return lambda: (load_file(part / f"{i:05}.raw")[layer] for i in range(texts))

        limits: dict[str, Tensor] = {}
        for layer in load_file(part / "00000.raw"):
            found = thresholds(read(layer), k)
            if not all(bool(v.isfinite().all()) for v in found.values()):
                raise RunError(
                    f"gere: the base model's states of layer {layer} are not finite",
                    "check the base model, or train it in fp32",
                )
            limits |= {f"{name}.{layer}": value for name, value in found.items()}
        _save(part / "thresholds.safetensors", limits)
        for i in range(texts):
            states = load_file(part / f"{i:05}.raw")
            for layer, s in states.items() if self.coded else ():
                states[layer] = pack(flags(s, limits[f"n.{layer}"], limits[f"p.{layer}"]))
            _save(part / f"{i:05}.safetensors", states)
        for i in range(texts):
            (part / f"{i:05}.raw").unlink()

    def limits(self, layer: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Thresholds n and p of a layer, (hidden,) fp32."""
        if not self._limits:
            self._limits = load_file(self.folder / "thresholds.safetensors", device=str(device))
        return self._limits[f"n.{layer}"], self._limits[f"p.{layer}"]

    def batch(self, texts: Sequence[int], layer: int, mask: Tensor) -> Tensor:
        """What is kept of `texts`, laid where `mask` (batch, seq) is true; elsewhere 0.

        Returns: (batch, seq, hidden), uint8 flags or fp32 states, on the mask's device.
        """
        size = len(self.limits(layer, mask.device)[0])
        dtype = torch.uint8 if self.coded else torch.float32
        out = torch.zeros(*mask.shape, size, dtype=dtype, device=mask.device)
        for row, text in enumerate(texts):
            if mask[row].any():  # else a row that only fills up a process's batch
                kept = load_file(self.folder / f"{text:05}.safetensors")[str(layer)]
                out[row, mask[row]] = (unpack(kept, size) if self.coded else kept).to(out.device)
        return out


def base_states(
    ctx: Context,
    rows: Sequence[dict[str, Any]],
    layers: Sequence[int],
    k: float,
    coded: bool,
    base: str,
) -> StateCache:
    """The cache of `rows` under the base model: this run's own, or distilled now.

    Args: base: fingerprint of the base model, "" where it is the model as it is now.
    Raises:
        RunError: the cache is gone or of other settings, and the base model is trained over.
    """
    ids = repr([row["input_ids"] for row in rows])
    about = {
        "model": base or fingerprint(ctx.model, ctx.full),
        "texts": hashlib.sha256(ids.encode()).hexdigest()[:16],
        "layers": list(layers),
        "k": k,
    }
    cache = StateCache(ctx.cache, about, coded)
    if cache.folder.exists():
        return cache
    adapter, changed = hasattr(ctx.model, "peft_config"), cache.differences()
    if base and not adapter:
        raise RunError(
            f"gere: the base model's states are not in {cache.folder}: "
            + (f"{changed} changed since they were made" if changed else "they were removed"),
            "a trained model cannot give them again: start a new run",
        )
    if changed:
        log = logging.getLogger("perdure")
        log.info("gere: distilling the base model anew, as this changed: %s", changed)

    @torch.no_grad()
    def state_of(i: int) -> States:
        # Each text alone and unpadded, so that no layout but its own rounds its states.
        if adapter:
            batch = collate([rows[i]], ctx.encoder.pad_id)
            seen = ctx.frozen("base")({name: v.to(ctx.device) for name, v in batch.items()})
        else:
            seen = ctx.forward([rows[i]])
        return {layer: seen.hidden[layer][0].float() for layer in layers}

    cache.build(len(rows), state_of, k)
    return cache


def _processes() -> tuple[bool, Callable[[], Any]]:
    """Whether this is the first process, and a call that waits for all."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0, distributed.barrier
    return True, lambda: None


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    save_file({name: t.contiguous() for name, t in tensors.items()}, temporary)
    os.replace(temporary, path)
