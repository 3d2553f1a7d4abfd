"""Seeds made of names, and random numbers that leave the global state untouched."""

from __future__ import annotations

import zlib
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    pass


def forked_rng(device: torch.device) -> AbstractContextManager[None]:
    """Random numbers drawn inside the block are not missed outside, on CPU and `device`."""
    devices = [] if device.type == "cpu" else [device]
    fork: AbstractContextManager[None] = torch.random.fork_rng(devices, device_type=device.type)
    return fork


def seed_of(*parts: object) -> int:
    """A seed made of `parts`, the same in every process (Python salts the hash of strings)."""
    return zlib.crc32(repr(parts).encode())
