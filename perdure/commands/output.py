"""What commands print, and how an error ends a command.

stdout holds the result, and with `--json` one JSON object and nothing else; progress, warnings
and errors go to stderr. Under torchrun the first process prints.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from perdure.errors import PerdureError, RunError, TrainingError, UsageError
from perdure.files import finite

if TYPE_CHECKING:
    from perdure.run import Run

P = ParamSpec("P")
R = TypeVar("R")


def first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def handle_errors(command: Callable[P, R]) -> Callable[P, R]:
    """End a command's errors in a message on stderr and an exit code, without a traceback."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt as stop:
            _fail("\n".join(["interrupted", *(f"  {line}" for line in stop.args)]), 130)
        except PerdureError as error:
            _fail(f"error: {error}", error.exit_code, every=not isinstance(error, _SHARED))
        except OSError as error:
            if (known := _of_the_system(error)) is None:
                raise
            _fail(f"error: {known}", known.exit_code)

    return wrapper


_SHARED = (UsageError, RunError)
"""Errors that every process of a run meets alike, so that one message is enough."""


def _of_the_system(error: OSError) -> PerdureError | None:
    """A full disk or a place that cannot be written, in our words; None for anything else."""
    place = error.filename or os.getcwd()
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(_existing(Path(place))).free // 2**20
        return TrainingError(
            f"{place}: no space left on the disk ({free} MB free)",
            ("free some; nothing that was saved is lost", "a run goes on by: perdure resume RUN"),
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR):
        return UsageError(
            f"{place}: {error.strerror}", "choose another place, for example by --out"
        )
    return None


def _existing(path: Path) -> Path:
    return next((p for p in (path, *path.resolve().parents) if p.exists()), Path("/"))


def _fail(text: str, code: int, every: bool = False) -> NoReturn:
    import typer

    rank = os.environ.get("RANK", "0")
    if rank == "0":
        print(text, file=sys.stderr)
    elif every:
        print(f"process {rank}: {text}", file=sys.stderr)
    raise typer.Exit(code)


@contextmanager
def working(run: Path | None = None) -> Iterator[None]:
    """Work on models: keep stdout for the result, and say how to go on after Ctrl-C."""
    if not first_process():
        logging.getLogger("perdure").setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):
            from transformers.utils import logging as bars

            bars.disable_progress_bar()  # of reading and writing weights, seconds at most
            yield
    except KeyboardInterrupt as stop:
        if run is not None:
            stop.args = (f"resume with: perdure resume {run}",)
        raise
    except OSError as error:
        if error.filename is None and run is not None:  # a failed write does not say where
            error.filename = str(run)
        raise


def emit(data: Any) -> None:
    """Print one JSON value; what is not a finite number is null."""
    if first_process():
        print(json.dumps(finite(data), indent=2, ensure_ascii=False, default=str))


def lines(pairs: list[tuple[str, str]]) -> None:
    """Print names and what they are, one line each."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, what in pairs:
        print(f"{name:<{width}}  {what}".rstrip())


def summary(run: Run) -> dict[str, Any]:
    """A run's scores and the figures derived from them, for `--json`; missing ones are None."""
    from perdure.reports.data import SUMMARY, views

    view = views([run])[0]
    names = [task.name for task in view.tasks]
    return {
        "run": str(run.path),
        "name": view.name,
        "method": view.method,
        "state": view.state,
        "tasks": names,
        "scores": [
            {"after": after, **{name: view.score(after, name) for name in names}}
            for after in range(len(names) + 1)
        ],
        "unseen": [
            {"task": task, "after": after, "score": score} for task, after, score in view.unseen
        ],
        **{key: view.summary(key) for key, *_ in SUMMARY},
        "general_perplexity": list(view.general),
        "general_tasks": {
            task.name: {"metric": task.metric, "scores": list(scores)}
            for task, scores in view.general_tasks
        },
    }
