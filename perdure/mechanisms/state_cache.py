"""What a frozen model computed on fixed texts: distilled once, kept on disk, read row by row.

    CACHE/states-KEY/manifest.json         what KEY is the hash of, offsets, measured noise
                     thresholds.safetensors  n, p, mean, std of each layer, (hidden,) fp32
                     00000.safetensors       texts 0, 1, ...: two bits a neuron (or fp32 states,
                                             or the largest logits), token after token

A build writes to `states-KEY.part`, each process its share of the texts, and renames it at the
end; an interrupted one goes on with the texts it has. Until then each text's fp32 states lie on the
disk.
Files are read through memory maps: a step reads the rows it draws.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from perdure.errors import RunError
from perdure.mechanisms.margin import excess, flags, pack, unpack
from perdure.protocol.batch import ForwardOutput, labels_of
from perdure.seals import damaged, facts_of, is_sealed, seal

Kind = Literal["codes", "states", "logits"]
Raw = dict[str, Tensor]
"""What one text gave: the layer's number to (tokens, hidden) fp32, or `top`'s three tensors."""
METHOD = "method"
"""What differs where the states that are there are what another method keeps."""
SHARD_BYTES = 256 * 2**20
TOGETHER = 4096
"""Tokens that a GPU computes at a time."""


def thresholds(
    read: Callable[[], Iterable[Tensor]], k: float, one_pass: bool = False
) -> dict[str, Tensor]:
    """mean -+ k * std of each neuron over all tokens of all texts, in two passes of fp64.

    Args:
        read: gives the texts' states, each (tokens, hidden); called twice.
        one_pass: sums of x and x^2 in fp32, as the official code; the variance can be negative.
    Returns: n, p, mean, std (of the population), each (hidden,) fp32.
    """
    total: Any = 0.0
    square: Any = 0.0
    count = 0
    for states in read():
        s = states if one_pass else states.double()
        total, square, count = total + s.sum(0), square + s.square().sum(0), count + len(s)
    mean = total / count
    if one_pass:
        variance = square / count - mean.square()
    else:
        variance = sum((s.double() - mean).square().sum(0) for s in read()) / count
    std = variance.sqrt()
    found = {"n": mean - k * std, "p": mean + k * std, "mean": mean, "std": std}
    return {name: value.float() for name, value in found.items()}


def top(logits: Tensor, size: int, temperature: float) -> Raw:
    """The largest `size` logits of each token and the log of the sum of all exponentials.

    Returns: `values` (tokens, size) fp32 and `ids` int32 of the logits over `temperature`, and
        `lse` (tokens,) fp32: a token's probability is exp(value - lse).
    """
    scaled = logits.float() / temperature
    values, ids = scaled.topk(min(size, scaled.shape[-1]))
    return {"values": values, "ids": ids.int(), "lse": scaled.logsumexp(-1)}


def raws(
    seen: ForwardOutput,
    rows: Sequence[Mapping[str, Any]],
    layers: Sequence[int],
    kind: Kind,
    *top_of: Any,
) -> list[Raw]:
    """What is kept of a pass over unpadded rows of one length, for each of them.

    Args: top_of: of "logits" `top`'s size and temperature.
    """
    if kind == "logits":
        sizes = [labels_of(row) for row in rows]
        whole = {name: t.split(sizes) for name, t in top(seen.logits, *top_of).items()}
    else:
        whole = {str(layer): seen.hidden[layer].float().unbind() for layer in layers}
    return [{name: parts[k] for name, parts in whole.items()} for k in range(len(rows))]


class StateCache:
    """One set of distilled texts.

    Args:
        root: folder of the run's caches.
        about: all that the states depend on, as JSON values; its hash is in the folder's name.
    """

    def __init__(self, root: Path, about: Mapping[str, Any], kind: Kind) -> None:
        self.root, self.kind, self.about = root, kind, {**about, "kind": kind}
        text = json.dumps(self.about, sort_keys=True)
        self.folder = root / f"states-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self._limits: dict[str, Tensor] = {}
        self._facts: dict[str, Any] = {}
        self._open: dict[int, Any] = {}

    def ready(self) -> bool:
        """Whether it was built and is as it was built; a damaged one is removed, with a warning."""
        if not self.folder.exists():
            return False
        if self._whole():
            return True
        rank, _, meet = _processes()
        meet()  # all have looked before it goes
        if rank == 0:
            logging.getLogger("perdure").warning("%s: damaged, so it is made again", self.folder)
            shutil.rmtree(self.folder)
        meet()
        self._facts = {}
        return False

    def _whole(self) -> bool:
        found = facts_of(self.folder).get("about")
        return is_sealed(self.folder) and found == self.about and not damaged(self.folder)

    @property
    def facts(self) -> dict[str, Any]:
        """The manifest: `about`, `tokens` of each text, `shards` (first text), `noise`."""
        if not self._facts:
            self._facts = _manifest(self.folder / "manifest.json")
        return self._facts

    def differences(self) -> str:
        """In what the nearest other cache of this run differs, for a message; "" if none is.

        Where there are others of another kind alone, another method made them: `METHOD`.
        """
        others = sorted(self.root.glob("states-*/manifest.json"))
        metas = [_manifest(p)["about"] for p in others]
        # Those of the gauges are no others of a method's, nor the other way round.
        alike = [meta for meta in metas if ("gauge" in meta) == ("gauge" in self.about)]
        of_loss = [meta for meta in alike if meta.keys() == self.about.keys()]
        found = [[k for k, v in self.about.items() if meta[k] != v] for meta in of_loss]
        if not found:
            return METHOD if alike else ""
        return ", ".join(sorted(found, key=len)[0])

    # --- building

    def build(
        self,
        groups: Sequence[Sequence[int]],
        raws_of: Callable[[Sequence[int], int], Sequence[Raw]],
        noise_of: Callable[[StateCache], Mapping[str, Any]],
        k: float = 1.0,
        one_pass: bool = False,
        *,
        who: str,
    ) -> None:
        """Distil texts: each process its share, the first one then codes them all.

        Args:
            groups: numbers of the texts, from 0, that are computed together (see `alike`).
            raws_of: what the model computes on such texts, the last of which is number so and so;
                all processes call it equally often.
            noise_of: called on all processes when codes can be read; goes into the manifest.
            who: for whom, to begin messages with.
        """
        part, (rank, world, meet) = self.folder.with_suffix(".part"), _processes()
        part.mkdir(parents=True, exist_ok=True)
        meet()
        ends = dict(zip(map(tuple, groups), accumulate(map(len, groups)), strict=True))
        texts = sum(map(len, groups))
        # One that a power cut has cut off is computed again.
        missing = [g for g in groups if not all(_is_whole(part / f"{i:05}.raw") for i in g)]
        meet()  # nobody writes before all have looked
        for first in range(0, len(missing), world):
            mine = first + rank
            group = missing[min(mine, len(missing) - 1)]
            raws = raws_of(group, ends[tuple(group)])
            for i, raw in zip(group, raws, strict=True) if mine < len(missing) else ():
                _save(part / f"{i:05}.raw", {n: t.cpu() for n, t in raw.items()})
        meet()
        if rank == 0:
            self._code(part, texts, k, one_pass, who)
        meet()
        final, self.folder = self.folder, part  # read it where it lies
        facts = self._facts = json.loads((part / "facts.json").read_text(encoding="utf-8"))
        noise = noise_of(self)
        meet()  # all have read the draft before it changes
        self.folder, self._facts, self._open, self._limits = final, {}, {}, {}
        if rank == 0:
            (part / "facts.json").unlink()
            for i in range(texts):
                (part / f"{i:05}.raw").unlink()
            seal(part, {**facts, "noise": dict(noise)})
            os.replace(part, self.folder)
        meet()

    def _code(self, part: Path, texts: int, k: float, one_pass: bool, who: str) -> None:
        """Thresholds first, then codes, from states as they were computed, before any rounding."""

        def read(name: str) -> Callable[[], Iterable[Tensor]]:
            return lambda: (load_file(part / f"{i:05}.raw")[name] for i in range(texts))

        limits: dict[str, Tensor] = {}
        for layer in load_file(part / "00000.raw") if self.kind == "codes" else ():
            found = thresholds(read(layer), k, one_pass)
            if not all(bool(v.isfinite().all()) for v in found.values()):
                raise RunError(
                    f"{who}: the base model's states of layer {layer} have no finite statistics",
                    "check the base model, train it in fp32"
                    + ", or use stats: two_pass" * one_pass,
                )
            limits |= {f"{name}.{layer}": value for name, value in found.items()}
        _save(part / "thresholds.safetensors", limits)
        shards: list[int] = []
        tokens: list[int] = []
        held: list[Raw] = []
        for i in range(texts):
            raw = load_file(part / f"{i:05}.raw")
            if self.kind == "codes":
                for layer, s in raw.items():
                    raw[layer] = pack(flags(s, limits[f"n.{layer}"], limits[f"p.{layer}"]))
            tokens.append(len(next(iter(raw.values()))))
            held.append(raw)
            size = sum(t.numel() * t.element_size() for h in held for t in h.values())
            if size >= SHARD_BYTES or i == texts - 1:
                whole = {name: torch.cat([h[name] for h in held]) for name in raw}
                _save(part / f"{len(shards):05}.safetensors", whole)
                shards.append(i + 1 - len(held))
                held = []
        facts = {"about": self.about, "tokens": tokens, "shards": shards}
        (part / "facts.json").write_text(json.dumps(facts), encoding="utf-8")

    # --- reading

    def limits(self, layer: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Thresholds n and p of a layer, (hidden,) fp32."""
        if not self._limits:
            self._limits = load_file(self.folder / "thresholds.safetensors", device=str(device))
        return self._limits[f"n.{layer}"], self._limits[f"p.{layer}"]

    def rows(self, texts: Sequence[int], layer: int, width: int, device: torch.device) -> Tensor:
        """What is kept of texts that lie at the left of rows of `width` tokens; elsewhere 0.

        Returns: (rows, width, hidden / 4) uint8 codes, or (rows, width, hidden) fp32 states.
        """
        kept = [self._read(text, str(layer)) for text in texts]
        out = torch.zeros((len(kept), width, kept[0].shape[-1]), dtype=kept[0].dtype)
        for row, tensor in zip(out, kept, strict=True):
            row[: len(tensor)] = tensor[:width]
        return _moved(out, device)

    def top(self, texts: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """`values`, `ids` and `lse` (see `top`) of the texts' label tokens, one after another."""
        found = [torch.cat([self._read(t, n) for t in texts]) for n in ("values", "ids", "lse")]
        values, ids, lse = (_moved(t, device) for t in found)
        return values, ids.long(), lse

    def aligned(self, seen: ForwardOutput, layer: int) -> Tensor:
        """`rows` of the texts of a pass (their "_text"), in its layout."""
        mask = seen.mask
        return self.rows(seen.extra("_text"), layer, mask.shape[1], mask.device)

    def largest(self, seen: ForwardOutput) -> tuple[Tensor, Tensor, Tensor]:
        """`top` of the texts of a pass (their "_text")."""
        return self.top(seen.extra("_text"), seen.mask.device)

    @property
    def noise(self) -> dict[str, dict[str, float]]:
        """`measured_noise` by layer; of states `measured_difference`."""
        found: dict[str, dict[str, float]] = self.facts["noise"]
        return found

    def _read(self, text: int, name: str) -> Tensor:
        shards, tokens = self.facts["shards"], self.facts["tokens"]
        shard = max(k for k, first in enumerate(shards) if first <= text)
        if shard not in self._open:
            file = safe_open(self.folder / f"{shard:05}.safetensors", "pt")
            self._open[shard] = file.__enter__()
        start = sum(tokens[shards[shard] : text])
        found: Tensor = self._open[shard].get_slice(name)[start : start + tokens[text]]
        return found


def alike(lengths: Sequence[int], device: torch.device, kind: Kind) -> list[list[int]]:
    """Texts that are computed together: one at a time, so that no layout but its own rounds it.

    On a GPU several of one length, without padding: one alone would leave it idle. Fewer where
    each token has logits.
    """
    most = TOGETHER // (8 if kind == "logits" else 1)
    if device.type == "cpu":
        return [[i] for i in range(len(lengths))]
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        last = found[-1] if found else []
        if last and lengths[last[0]] == lengths[i] and (len(last) + 1) * lengths[i] <= most:
            last.append(i)
        else:
            found.append([i])
    return found


def measured_noise(
    cache: StateCache, texts: Sequence[int], layer: int, states: Tensor, mask: Tensor
) -> dict[str, float]:
    """How far the same model's states on the same texts leave their intervals by rounding alone.

    Args: states: as training computes them, (rows, seq, hidden); mask: real ones, (rows, seq).
    Returns: `violating` and `flipped`, shares of all states; `largest` and `mean` distance.
    """
    n, p = cache.limits(layer, states.device)
    codes = unpack(cache.rows(texts, layer, states.shape[1], states.device), states.shape[-1])
    x = states.float()
    e = excess(x, codes, n, p)[mask].abs()
    flipped = (flags(x, n, p) != codes)[mask].float().mean()
    return {
        "violating": float((e > 0).float().mean()),
        "flipped": float(flipped),
        "largest": float(e.max()),
        "mean": float(e.mean()),
    }


def measured_difference(
    cache: StateCache, texts: Sequence[int], layer: int, states: Tensor, mask: Tensor
) -> dict[str, float]:
    """How far the same model's states on the same texts differ in another layout, by rounding.

    Args: as of `measured_noise`. Returns: the `largest` and `mean` absolute difference.
    """
    kept = cache.rows(texts, layer, states.shape[1], states.device)
    gap = (states.float() - kept)[mask].abs()
    return {"largest": float(gap.max()), "mean": float(gap.mean())}


def note(message: str, *values: Any) -> None:
    logging.getLogger("perdure").info(message, *values)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: damaged: {error}", "remove its folder, and begin a new run"
        ) from error
    return found


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _processes() -> tuple[int, int, Callable[[], Any]]:
    """This process's number, how many there are, and a call that waits for all."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size(), distributed.barrier
    return 0, 1, lambda: None


def _is_whole(path: Path) -> bool:
    """Whether a file is there, with all the tensors that its header names."""
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    save_file({name: t.contiguous() for name, t in tensors.items()}, temporary)
    os.replace(temporary, path)
