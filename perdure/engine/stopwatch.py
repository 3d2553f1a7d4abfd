"""Seconds that passes take, without making the host wait for a GPU."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Adds up the seconds of what runs inside `measured`.

    On a CPU by the clock. A GPU runs kernels after they were launched, so that the clock of the
    host would tell the launching alone: there an event on either side is recorded, and read once
    the GPU has passed it, which `take` alone waits for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0
        self._open: deque[tuple[Any, Any]] = deque()  # of passes that a GPU may not have done yet

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count the time of the block. Blocks do not nest."""
        if self.device.type != "cuda":
            begun = time.perf_counter()
            try:
                yield
            finally:
                self.seconds += time.perf_counter() - begun
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        try:
            yield
        finally:
            end.record()
            self._open.append((begin, end))
            while self._open and self._open[0][1].query():  # done: it need not be kept
                self._read()

    def _read(self) -> None:
        begin, end = self._open.popleft()
        self.seconds += begin.elapsed_time(end) / 1000

    def take(self) -> float:
        """The seconds since the last call; waits until a GPU is done with all of them."""
        while self._open:
            self._open[0][1].synchronize()
            self._read()
        found, self.seconds = self.seconds, 0.0
        return found


__all__ = ["Stopwatch"]
