"""Signals by which a cluster announces that it will end a process: work is saved first.

Slurm, Kubernetes and Docker send SIGTERM some ten seconds before they kill, and Slurm sends SIGUSR1
earlier where it is asked to (`--signal=USR1@120`). While a task is learned such a signal waits for
the next step, which is saved, and at a task's end for the task's checkpoint; at any other time it
ends the work at once, like Ctrl-C. A signal is sent to the process, so what it asks for is the
process's own state: the one in this package.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("SIGTERM", "SIGUSR1")
"""What is heard; Windows has no SIGUSR1."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end; what was to be saved is saved.

    Its `args` are lines that say how to go on.

    Attributes:
        number: the signal's. exit_code: 128 and the number, as of a process that it killed.
        said: what was saved, or "".
    """

    def __init__(self, number: int, said: str = "") -> None:
        super().__init__()
        self.number, self.said = number, said

    @property
    def exit_code(self) -> int:
        return 128 + self.number

    def __str__(self) -> str:
        told = f"stopped by {signal.Signals(self.number).name}"
        return f"{told}: {self.said}" if self.said else told


class _Asked:
    number = 0
    held = False
    process = 0


_asked = _Asked()


def wanted() -> int:
    """The number of the signal that asked this process to end; 0 if none did."""
    return _asked.number


def want(number: int) -> None:
    """Note that another process of this run was asked to end: this one ends with it."""
    _asked.number = _asked.number or number


@contextmanager
def heard() -> Iterator[None]:
    """Hear the signals inside the block. A handler that the caller has set stays in its place."""
    if threading.current_thread() is not threading.main_thread():  # Python calls no handler there
        yield
        return
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    mine = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    if mine:
        _asked.number, _asked.held, _asked.process = 0, False, os.getpid()
    for number in mine:
        signal.signal(number, _hear)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)
        if mine:
            _asked.number = 0


def _hear(number: int, frame: Any) -> None:
    if os.getpid() != _asked.process:  # a helper that was forked from us is ended as any other
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    if _asked.number:  # torchrun sends it once more; whoever is impatient sends SIGINT or SIGKILL
        return
    _asked.number = number
    if not _asked.held:
        raise Stopped(number)


@contextmanager
def held() -> Iterator[None]:
    """Have a signal wait for the end of the block, or for whoever asks `wanted` inside it.

    Raises:
        Stopped: at the end of the block, if one came.
    """
    before, _asked.held = _asked.held, True
    try:
        yield
    finally:
        _asked.held = before
    raise_if_wanted()


@contextmanager
def at_once() -> Iterator[None]:
    """Within `held`: work that may be broken off at any moment.

    Raises:
        Stopped: at once, or at the beginning of the block.
    """
    before, _asked.held = _asked.held, False
    try:
        if before:
            raise_if_wanted()
        yield
    finally:
        _asked.held = before


def raise_if_wanted(said: str = "") -> None:
    """Raise `Stopped` if a signal came."""
    if _asked.number:
        raise Stopped(_asked.number, said)
