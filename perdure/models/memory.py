"""Memory: blocks that a training step freed are kept for the next one, rather than handed back
each time, and objects that stay are not looked through again and again."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM, _TOP_PAD, _MMAP = -1, -2, -3  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Tell the C library to reuse freed blocks instead of mapping new pages at each step.

    A step on a CPU frees and takes the same gigabyte again; mapping and zeroing its pages took a
    sixth of the time of SmolLM2-135M's steps. The process keeps its peak memory until it ends.

    Returns: whether it was done; False where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # Above 32 MB glibc clamps nothing but its own guess, so any 31-bit value is taken.
    done = [mallopt(_MMAP, 1 << 30), mallopt(_TRIM, (1 << 31) - 1), mallopt(_TOP_PAD, 64 << 20)]
    return all(done)


@contextmanager
def left_uncollected() -> Iterator[None]:
    """Within, Python's search for unreachable objects passes over those that exist now.

    `transformers.Trainer` asks for a whole search at each training's beginning, and Perdure at its
    end: a third of a second each, most of it spent on the rows of the stream and the modules that
    were imported, which stay for the whole run. Where the caller has frozen objects of his own
    (`gc.freeze`), all is left as it is.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
