"""What goes wrong while files are read and written, in our words: file, cause, and how to go on.

The system (`OSError`), torch, safetensors, JSON, Unicode, pickle and jinja2 raise errors of their
own. `explained` makes one of `perdure.errors` of each; nothing else in Perdure knows an errno.
`at` notes which file is at work, for errors that name none, and `reading` tells what cannot be read
of a folder that was written before.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from perdure.drafts import final_name
from perdure.errors import (
    PerdureError,
    RunError,
    TrainingError,
    UsageError,
    brief,
    resume_command,
)


class Cause(NamedTuple):
    """Why the system refuses, in plain words, and what to do before going on.

    Attributes:
        kind: "passing", as it is now and may be otherwise soon; "place", where nothing can be
            written; "damage", which in a run directory is not as it was left.
    """

    what: str
    remedy: str
    kind: Literal["passing", "place", "damage"] = "passing"


CAUSES: dict[str, Cause] = {
    "ENOSPC": Cause("no space left on the disk", "free some"),
    "EDQUOT": Cause("your disk quota is used up", "free some of it"),
    "EFBIG": Cause("is larger than a file may be", "raise the limit, see ulimit -f"),
    "EIO": Cause("the disk or the network file system failed", "have it looked at, see dmesg"),
    "ESTALE": Cause("the network file system has lost this file", "wait until it is mounted again"),
    "ENODEV": Cause("the disk is gone", "mount it again"),
    "ENXIO": Cause("the disk is gone", "mount it again"),
    "ENOTCONN": Cause("the network file system is not connected", "mount it again"),
    "EHOSTDOWN": Cause("the file server does not answer", "wait until it does"),
    "ETIMEDOUT": Cause("the file server does not answer", "wait until it does"),
    "EREMOTEIO": Cause("the file server failed", "have it looked at"),
    "EBUSY": Cause("another program uses it", "stop that program"),
    "ETXTBSY": Cause("another program runs it", "stop that program"),
    "ECONNREFUSED": Cause("the other side takes no connection", "look whether it runs"),
    "ECONNRESET": Cause("the other side has closed the connection", "look whether it runs"),
    "ENETUNREACH": Cause("the network is not reachable", "look at the network"),
    "EHOSTUNREACH": Cause("the other machine is not reachable", "look at the network"),
    "EAGAIN": Cause("the system is short of resources", "wait a little"),
    "EINTR": Cause("the system broke this off", "look whether the disk is well"),
    "EDEADLK": Cause("it cannot be locked", "stop what else uses it"),
    "ENOLCK": Cause("the file system gives no locks", "move it to a local disk"),
    "EMFILE": Cause("this process has too many files open", "raise the limit: ulimit -n 4096"),
    "ENFILE": Cause("this machine has too many files open", "stop other programs"),
    "EMLINK": Cause("one file has too many links", "move it to another disk"),
    "ENOMEM": Cause("the system has no memory left", "stop other programs"),
    "EROFS": Cause("the file system can only be read", "have it mounted to write", "place"),
    "EACCES": Cause("permission denied", "give yourself the right to it", "place"),
    "EPERM": Cause("this is not permitted", "give yourself the right to it", "place"),
    "EXDEV": Cause("it lies on another disk than its folder", "put both on one disk", "place"),
    "ENAMETOOLONG": Cause("the name is too long", "take a shorter one", "place"),
    "EINVAL": Cause("the file system does not take this", "move it to another disk", "place"),
    "EOPNOTSUPP": Cause("the file system cannot do this", "move it to another disk", "place"),
    "ENOSYS": Cause("the file system cannot do this", "move it to another disk", "place"),
    "ELOOP": Cause("a link leads back to itself", "remove the link", "damage"),
    "ENOENT": Cause("not found", "put it back", "damage"),
    "ENOTDIR": Cause("a file is where a folder must be", "move that file away", "damage"),
    "EISDIR": Cause("a folder is where a file must be", "move that folder away", "damage"),
    "EEXIST": Cause("something else has this name", "move that away", "damage"),
    "ENOTEMPTY": Cause("the folder is not empty", "move away what is in it", "damage"),
}
"""By the name of an errno; any other one is told in the system's words."""
CUT_OFF = Cause(
    "could not be written to its end: the disk or a quota may be full", "free some space"
)
SMALLER = "train.micro_batch_size, train.max_length or scoring.batch_size"

_NUMBER = re.compile(r"\((?:os error )?(\d+)\)|\[[Ee]rrno (\d+)\]")
"""How safetensors and tokenizers ("(os error 28)") and arrow ("[errno 28]") quote the system."""
_OF_TORCH = (
    "enforce fail at inline_container",
    "PytorchStreamWriter",
    "PytorchStreamReader",
    "iostream error",
    "Invalid magic number",
    "Parent directory",
    "cannot be opened",
)
"""What torch says of its own files, in writing or in reading them."""
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "out of memory", "_ALLOC_FAILED")
_PEERS = (
    "gloo/transport",
    "Connection closed by peer",
    "Connection reset by peer",
    "ncclRemoteError",
    "ncclSystemError",
)
_NO_PATH = {
    "embedded null": "a name cannot hold a null character",
    "Symlink loop": "a link leads back to itself",
    "Could not determine home directory": "~NAME is the folder of no user of this machine",
}
"""How Python begins what it says of paths that it does not hand on to the system."""
_UNREADABLE = {
    "UnpicklingError": "it holds a pickle that cannot be read",
    "BadZipFile": "it is no whole archive",
    "EOFError": "it ends too early",
    "JSONDecodeError": "it is no JSON",
    "UnicodeDecodeError": "it is no UTF-8 text",
    "SafetensorError": "it is no whole safetensors file",
    "KeyError": "something is missing in it",
}
"""Errors that a damaged file gives, by the class's name, so that no library is imported for it."""
_DAMAGED = frozenset(_UNREADABLE) - {"KeyError", "EOFError"}
"""Those that no defect of ours gives while a file is at work."""
_NETWORK = ("gaierror", "herror", "SSLError")
"""Errors of the system whose numbers are no errnos."""
_NETWORK_TOO = ("URLError", "RequestException", "ConnectionError", "TimeoutError")
"""Those that may come without one."""
_PLACE = "perdure_place"


@contextmanager
def at(place: Path | str) -> Iterator[None]:
    """Note the file or folder that is at work, for an error that names none."""
    try:
        yield
    except Exception as error:
        with suppress(AttributeError):  # of a class that takes no attributes
            setattr(error, _PLACE, getattr(error, _PLACE, "") or str(place))
        raise


@contextmanager
def reading(folder: Path, remedy: str) -> Iterator[None]:
    """Tell of what cannot be read in a folder that a run wrote before.

    Raises:
        RunError: it is not what was written. What the system refuses now is raised as it is.
    """
    try:
        with at(folder):
            yield
    except PerdureError:
        raise
    except Exception as error:
        number, text = errno_of(error), str(error)
        # A right that is missing, as a disk that is full, says nothing of what lies there.
        passing = number is not None and cause_of(number).kind != "damage"
        named = _unreadable(error)
        if number is not None:
            named = [cause_of(number).what]
        elif isinstance(error, RuntimeError) and any(word in text for word in _OF_TORCH):
            named = ["it is no whole file of torch"]
        if not named or (passing and number != errno.EIO):
            raise
        raise RunError(f"{file_of(error)}: damaged: {named[0]}", remedy) from error


def utf8_text(file: Path, remedy: str, kind: type[UsageError] = UsageError) -> str:
    """What a user's file holds, without a byte order mark.

    Args: remedy: where the system does not let it be read.

    Raises:
        UsageError: of this kind: it cannot be read, or is no UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise kind(f"{file}: cannot be read: {error.strerror}", remedy) from error
    except UnicodeDecodeError as error:
        raise kind(f"{file}: is not UTF-8: {error}", "save it as UTF-8") from error


def explained(
    error: BaseException, run: Path | None = None, option: str = "--out"
) -> PerdureError | None:
    """Say what an error of the system or of a library means; None for one that is none of these.

    Args:
        run: the run directory that was at work, and that goes on.
        option: how the command is told another place to write to; "" if it cannot be.
    """
    if isinstance(error, PerdureError):
        return error
    text = str(error)
    then = "run the command again" if run is None else f"go on with: {resume_command(run)}"
    where = file_of(error) or ("" if run is None else str(run))
    place = f"{where}: " if where else ""
    if _is(error, "MemoryError", "OutOfMemoryError") or (
        not isinstance(error, OSError) and any(word in text for word in _NO_MEMORY)
    ):
        told = f": {brief(text)}" if text else ""
        remedy = (f"stop other programs, then {then}", f"or begin anew with a smaller {SMALLER}")
        return TrainingError(f"{place}there is not enough memory{told}", remedy)
    if isinstance(error, RuntimeError) and any(word in text for word in _PEERS):
        what = "another process of this run has ended, or cannot be reached"
        return TrainingError(f"{place}{what}", f"look at what it said, then {then}")
    if _is(error, "TemplateError"):
        row = f"{file_of(error)}: " if file_of(error) else ""
        what = f"{row}the model's chat template refuses this: {brief(text)}"
        return UsageError(what, "change the row, or the template (chat_template)")
    if found := next((what for words, what in _NO_PATH.items() if text.startswith(words)), ""):
        return UsageError(
            f"{text.partition(' from ')[2] or 'a path'}: {found}", "write another path"
        )
    if _of_the_network(error):
        what = f"{'' if run is None else f'{run}: '}the network failed: {brief(text, 300)}"
        return TrainingError(what, f"look at the network, then {then}")
    number = errno_of(error)
    if isinstance(error, RuntimeError) and any(word in text for word in _OF_TORCH):
        cause = CUT_OFF
    elif number == errno.EPIPE:  # whoever read what we print has gone
        return None
    elif number is not None:
        cause = cause_of(number)
    elif isinstance(error, OSError) and text:  # of numpy, for example, which counts bytes
        cause = Cause(brief(text, 300), "look whether the disk is well")
    elif _is(error, *_DAMAGED) and (file_of(error) or _is(error, "SafetensorError")):
        what = f"{where or 'a file'}: damaged: {_unreadable(error)[0]}"
        return (UsageError if run is None else RunError)(
            what, f"put it back from a copy, then {then}"
        )
    else:
        return None
    if not where and number == errno.ENOENT and _is_nowhere():
        what = "the folder that this command was started in is gone"
        return UsageError(what, f"go to one that exists, see cd, then {then}")
    full = cause in (CAUSES["ENOSPC"], CUT_OFF)
    free = f" ({free_mb(where)} MB free)" if full and where else ""
    what = f"{place}{cause.what}{free}"
    if run is None and cause.kind != "passing":  # it is not known here whether it read or wrote
        by = f", for example by {option}" if option else ""
        other = f"or, where it was to be written, choose another place{by}"
        return UsageError(what, (f"{cause.remedy}, then {then}", other))
    lines = [f"{cause.remedy}, then {then}"]
    if full and run is not None:
        lines.append("or keep fewer checkpoints: save.tasks: last")
    return (RunError if cause.kind == "damage" else TrainingError)(what, lines)


def _is_nowhere() -> bool:
    """Whether this process works in a folder that was deleted."""
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def cause_of(number: int) -> Cause:
    """What an errno means, in plain words."""
    known = (cause for name, cause in CAUSES.items() if getattr(errno, name, 0) == number)
    return next(known, Cause(os.strerror(number), "look whether the disk is well"))


def errno_of(error: BaseException) -> int | None:
    """The errno of an error of the system, also where a library quotes it; None: it is none."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    bare = type(error) is Exception and "(os error " in str(error)  # of tokenizers
    if not (isinstance(error, OSError) or _is(error, "SafetensorError") or bare):
        return None
    found = _NUMBER.search(str(error))
    return int(found[1] or found[2]) if found else None


def file_of(error: BaseException) -> str:
    """The file that an error is about, of a rename the place that it was to have; "" if unknown."""
    named = [getattr(error, name, None) for name in ("filename2", "filename", _PLACE)]
    found = next((os.fsdecode(n) for n in named if isinstance(n, str | bytes) and n), "")
    return final_name(found)


def _unreadable(error: BaseException) -> list[str]:
    return [_UNREADABLE[c.__name__] for c in type(error).__mro__ if c.__name__ in _UNREADABLE]


def _of_the_network(error: BaseException) -> bool:
    bare = getattr(error, "errno", None) is None and not isinstance(error, BrokenPipeError)
    return _is(error, *_NETWORK, *(_NETWORK_TOO if bare else ()))


def _is(error: BaseException, *names: str) -> bool:
    return any(c.__name__ in names for c in type(error).__mro__)


def free_mb(place: Path | str) -> int:
    """MiB that are free where a file is, or would be."""
    path = Path(place)
    there = next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
    return shutil.disk_usage(there).free // 2**20
