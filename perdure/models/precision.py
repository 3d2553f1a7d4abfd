"""Which number type to compute in, by asking and measuring this machine.

bf16 halves the time on a GPU and on a CPU with bf16 units (AMX, AVX512-BF16), and makes training
twenty times slower on a CPU without them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from perdure.errors import ModelError

# A feed-forward layer of a 135M model (SmolLM2), and a batch of eight short chats.
TOKENS, HIDDEN, INNER = 320, 576, 1536
_FLOP = 3 * 2 * 2 * TOKENS * HIDDEN * INNER  # forward and twice that backward, two matrices

LEAST = 3
"""Steps of each type that are timed, however long they take."""


@dataclass(frozen=True)
class Speed:
    """What this machine computes, in GFLOP/s, forward and backward at a small model's shapes."""

    fp32: float
    bf16: float | None
    """Under autocast from fp32 weights; None where the processor has no bf16 units."""
    threads: int
    device: str

    @property
    def best(self) -> float:
        return max(self.fp32, self.bf16 or 0.0)

    @property
    def precision(self) -> str:
        """ "bf16" if it is at least a tenth faster here, else "fp32"."""
        return "bf16" if (self.bf16 or 0.0) > 1.1 * self.fp32 else "fp32"


def choose_precision(precision: str = "auto", *, seconds: float = 1.0) -> str:
    """Decide "auto": bf16 on a GPU that has it, or on a CPU that has it and is faster with it.

    Args:
        precision: "auto", "fp32" or "bf16"; the last two come back as they are.
        seconds: limit of the measurement, which is made on a CPU that claims bf16 only.
    """
    if precision in ("fp32", "bf16"):
        return precision
    if precision != "auto":
        raise ModelError(f"train.precision: {precision!r}", "one of: auto, fp32, bf16")
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if torch.backends.mps.is_available():
        return "fp32"
    if not cpu_has_bf16():
        return "fp32"
    return measure_speed(seconds).precision


def cpu_has_bf16() -> bool:
    """Whether oneDNN computes in bf16 on this processor rather than emulating it."""
    import torch

    ask = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(ask()) if ask is not None else False


def in_bf16(model: Any) -> Any:
    """The model, its parameters rounded to bf16 in place, as `from_pretrained` does it.

    `model.to(torch.bfloat16)` would round buffers too: rotary frequencies among them, whose error
    grows with a token's position.
    """
    import torch

    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def measure_speed(seconds: float = 2.0) -> Speed:
    """Time a feed-forward layer's training step for `seconds`, in fp32 and, where known, bf16.

    Steps of both types take turns and the fastest of each counts: on a machine that others use too
    a burst of theirs would else choose the type, and another type gives other scores. Draws from a
    generator of its own: the global random state stays as it was.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    has_bf16 = torch.cuda.is_bf16_supported() if device == "cuda" else cpu_has_bf16()
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, HIDDEN, generator=draw).to(device)
    up = (torch.randn(INNER, HIDDEN, generator=draw) * 0.02).to(device).requires_grad_()
    down = (torch.randn(HIDDEN, INNER, generator=draw) * 0.02).to(device).requires_grad_()
    x.requires_grad_()

    def step(bf16: bool) -> float:
        start = time.perf_counter()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            inner = torch.nn.functional.silu(torch.nn.functional.linear(x, up))
            out = torch.nn.functional.linear(inner, down)
        out.float().square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    kinds = (False, True) if has_bf16 else (False,)
    fastest = {bf16: step(bf16) for bf16 in kinds}  # the first ones also build kernels
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < LEAST or time.perf_counter() < end:
        fastest = {bf16: min(least, step(bf16)) for bf16, least in fastest.items()}
        rounds += 1
    rate = {bf16: _FLOP / least / 1e9 for bf16, least in fastest.items()}
    return Speed(
        fp32=rate[False],
        bf16=rate.get(True),
        threads=torch.get_num_threads(),
        device=device,
    )
