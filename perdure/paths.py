"""Whether a path that somebody wrote can be read as a file, or written, told without opening it.

To open a pipe waits for ever, a device never ends, and a path can be none at all: it holds a NUL,
names no user's home, is too long, or leads in a circle.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from perdure.drafts import draft_of

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class NoPathError(Exception):
    """A text is no path at all; its words say why, to stand behind the text."""


def settled(text: str | Path, base: Path | None = None) -> Path:
    """The absolute path that a text stands for; `~` is the home folder.

    Args: base: where relative paths begin; None: the current folder.

    Raises: NoPathError: it holds a NUL, names no home, is too long, or is a link to itself.
    """
    if "\0" in str(text):
        raise NoPathError("is no path: it holds a NUL character")
    try:
        path = ((base or Path.cwd()) / Path(text).expanduser()).resolve()
        path.stat()
    except (RuntimeError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise NoPathError("is no path: a part of it has too many characters") from None
        if isinstance(error, RuntimeError) and "home" in str(error):  # of expanduser
            raise NoPathError("is no path: there is no home folder of that name") from None
        if isinstance(error, RuntimeError) or getattr(error, "errno", 0) == errno.ELOOP:
            raise NoPathError("is a link that leads back to itself") from None
        if isinstance(error, ValueError | UnicodeError):
            raise NoPathError("is no path: it holds a character that no path may have") from None
    return path


def no_file(path: str | Path) -> str:
    """Why a path is no file that can be read to its end: "is a pipe, not a file"; "" if it is."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            return f"is a link to {os.readlink(path)}, which does not exist"
        return "no such file"
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            return "no such file"
        return f"cannot be read: {error.strerror}"
    except ValueError:
        return "no such file: it holds a NUL character"
    if stat.S_ISREG(mode):
        return ""
    return f"is {next((what for of, what in _KINDS if of(mode)), 'a special file')}, not a file"


def no_place(path: Path) -> str:
    """Why no file can be written at a path, as far as that is known before: "is a folder, not a
    file"; "" if it can.

    A file that is there may be replaced; a device or a pipe would be, and be gone.
    """
    if path.exists() and (why := no_file(path)):
        return why
    above = next((p for p in path.absolute().parents if os.path.lexists(p)), Path(os.sep))
    if not above.exists():
        return f"{above} is a link to {os.readlink(above)}, which does not exist"
    if not above.is_dir():
        return f"{above} is a file, not a folder"
    writable = os.access(above, os.W_OK | os.X_OK) and not _no_disk(above)
    return "" if writable else f"nothing can be written in {above}"


def _no_disk(folder: Path) -> bool:
    """Whether a folder is one of those that no disk holds, as /proc, and takes nothing new, which
    the rights of it do not say."""
    if not hasattr(os, "statvfs") or os.statvfs(folder).f_blocks:
        return False
    draft = draft_of(folder / "new")
    try:
        draft.mkdir()
        draft.rmdir()
    except OSError:
        return True
    return False
