"""What commands print: stdout holds the result, and with `--json` one JSON value and nothing else.

Progress and warnings go to stderr. Under torchrun the first process prints.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from perdure import stopping
from perdure.errors import printable, resume_command
from perdure.files import finite

if TYPE_CHECKING:
    from perdure.run import Run

P = ParamSpec("P")
R = TypeVar("R")


def first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def working(run: Path | None = None) -> Iterator[None]:
    """Work on models: keep stdout for the result, and say how to go on after Ctrl-C or SIGTERM.

    Args: run: the run that goes on; None: the command is run again.
    """
    if not first_process():
        logging.getLogger("perdure").setLevel(logging.ERROR)
    try:
        # Of several processes the others may wait in C, where no handler runs: torchrun ends them.
        alone = os.environ.get("WORLD_SIZE", "1") == "1"
        heard = stopping.heard() if alone or run is not None else nullcontext()
        with redirect_stdout(sys.stderr), heard:
            from transformers.utils import logging as bars

            bars.disable_progress_bar()  # of reading and writing weights, seconds at most
            yield
    except KeyboardInterrupt as stop:
        if run is not None and not stop.args:
            stop.args = (f"resume with: {resume_command(run)}",)
        elif isinstance(stop, stopping.Stopped) and not stop.args:
            stop.args = ("run the command again",)
        raise


def emit(data: Any) -> None:
    """Print one JSON value; what is not a finite number is null."""
    if first_process():
        print(escaped(json.dumps(finite(data), indent=2, ensure_ascii=False, default=str)))


def escaped(text: str) -> str:
    """JSON whose strings hold no character that steers a terminal: \\u009b in its place."""
    # Nearly every line of a million is fine as it is.
    return "\n".join(
        line
        if line.isprintable()
        else "".join(c if printable(c) == c else f"\\u{ord(c):04x}" for c in line)
        for line in text.split("\n")
    )


def lines(pairs: list[tuple[str, str]]) -> None:
    """Print names and what they are, one line each."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, what in pairs:
        print(f"{name:<{width}}  {what}".rstrip())


def summary(run: Run) -> dict[str, Any]:
    """A run's scores and figures with their intervals, for `--json`; missing ones are None."""
    from perdure.reports.data import views
    from perdure.reports.numbers import of_run

    return of_run(views([run])[0])
