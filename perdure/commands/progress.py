"""A stderr that may be full: progress that nobody can keep ends no work.

A log file on a full disk would else end a training at its next line, and an audit with the exit
code that says that the model lost something.
"""

from __future__ import annotations

import errno
import sys
from typing import Any


class Lenient:
    """A text stream whose writes may fail, as on a disk that is full.

    Not where whoever read it has gone: that is a word to stop.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError as error:
            self._raise_if_gone(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._raise_if_gone(error)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def _raise_if_gone(self, error: OSError) -> None:
        if error.errno == errno.EPIPE:
            raise error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def lenient_stderr() -> None:
    """Have what is told on stderr lost where it cannot be written."""
    if sys.stderr is not None and not isinstance(sys.stderr, Lenient):
        sys.stderr = Lenient(sys.stderr)
