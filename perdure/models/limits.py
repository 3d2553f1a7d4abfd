"""A limit of time, memory and length for what a foreign chat template does.

Templates run in jinja2's sandbox, which keeps them from files and processes but not from loops
without end or texts without measure.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from perdure.errors import ModelError

SECONDS = 10.0
"""CPU time for one conversation; real templates take milliseconds."""
MEMORY = 1 << 28
"""Bytes that rendering one conversation may take beyond what the process has."""
LENGTH = 1 << 24
"""Characters of one rendered conversation."""


def limited(render: Callable[[], str], what: str) -> str:
    """What `render` returns, if it keeps to the limits.

    Time is watched on the main thread of a POSIX system alone, memory on Linux alone.

    Args: what: what is rendered, to begin the message with.

    Raises:
        ModelError: it takes longer, needs more memory or returns a longer text.
    """
    return limited_together(lambda: [render()], what)[0]


def limited_together(render: Callable[[], list[str]], what: str) -> list[str]:
    """The same of several conversations, which share the limits of time and memory: to watch over
    each takes as long as to render it. Where they are too much together, each may be tried alone.
    """
    try:
        with _timed(), _bounded():
            texts = render()
    except TimeoutError as error:
        raise _beyond(what, f"{SECONDS:g} seconds") from error
    except MemoryError as error:
        raise _beyond(what, f"{MEMORY >> 20} MB of memory") from error
    if any(len(text) > LENGTH for text in texts):
        raise _beyond(what, f"{LENGTH:,} characters")
    return texts


def _beyond(what: str, limit: str) -> ModelError:
    return ModelError(
        f"{what}: takes more than {limit} for one conversation",
        "use another template: model.chat_template: FILE, or none",
    )


@contextmanager
def _timed() -> Iterator[None]:
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    # CPU time: what else the machine does must not refuse a template. Nobody else here uses it.
    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _bounded() -> Iterator[None]:
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    except OSError:  # no Linux
        yield
        return
    import resource  # Windows has none

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    if soft != resource.RLIM_INFINITY:
        wanted = min(wanted, soft)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
