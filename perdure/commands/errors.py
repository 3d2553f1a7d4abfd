"""How an error ends a command: a message on stderr and an exit code, without a traceback."""

from __future__ import annotations

import functools
import inspect
import shlex
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

from perdure.consent import FLAG, ConsentError, by_argument
from perdure.errors import EVERY, PerdureError, RunError, UsageError
from perdure.failures import explained
from perdure.processes import rank, say
from perdure.stopping import Stopped

P = ParamSpec("P")
R = TypeVar("R")


def handle_errors(command: Callable[P, R]) -> Callable[P, R]:
    """End a command's errors in a message on stderr and an exit code, without a traceback.

    The option `trust_remote_code`, where a command has it, is the user's word for all it does.
    """

    trusted = by_argument(command)
    known = inspect.signature(command).parameters
    option, can_list = "--out" if "out" in known else "", "all_mistakes" in known

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return trusted(*args, **kwargs)
        except Stopped as stop:
            _fail("\n".join([str(stop), *(f"  {line}" for line in stop.args)]), stop.exit_code)
        except KeyboardInterrupt as stop:
            _fail("\n".join(["interrupted", *(f"  {line}" for line in stop.args)]), 130)
        except ConsentError as error:
            line = shlex.join(["perdure", *sys.argv[1:], FLAG])
            _fail(f"error: {error}\n  {line}", error.exit_code)
        except PerdureError as error:
            text = str(error)
            if not can_list:
                text = text.replace(EVERY, "they are listed once these are mended")
            _fail(f"error: {text}", error.exit_code, every=not isinstance(error, _SHARED))
        except Exception as error:
            if (known := explained(error, option=option)) is None:
                raise
            _fail(f"error: {known}", known.exit_code)

    return wrapper


_SHARED = (UsageError, RunError)
"""Errors that every process of a run meets alike, so that one message is enough."""


def _fail(text: str, code: int, every: bool = False) -> NoReturn:
    import typer

    if every or rank() == 0:
        say(text)
    raise typer.Exit(code)
