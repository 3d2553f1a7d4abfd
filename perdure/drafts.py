"""Names for what is made beside its place, and the end of what dead processes left so.

`.NAME.PID-WHERE-RANDOM.draft` lies beside NAME until it is whole. PID is the process that makes it
and WHERE stands for its machine since it was started, and for its container: process numbers repeat
in each of them. RANDOM begins alike in all names of one process: a container that is started again
is the same one with the same numbers. A number that a younger process has by now is told by when
that one began. What a dead process left is removed by the next one that makes something there.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

IDLE = 3600.0
"""Seconds without a change, after which a draft from another machine or container is left over."""
_LONGEST = 150
"""Bytes of a name that its draft bears: file systems take 255 in all."""
_DRAFT = re.compile(r"^\.(.+)\.(\d+)-([0-9a-f]{8})-([0-9a-f]{8,16})\.draft$")
_OLDER = re.compile(r"\.(?:new-\w+|.+\.\d+(?:\.part)?)|.+\.\d+\.part\.npy")
"""As older versions of Perdure called theirs."""


def draft_of(path: Path) -> Path:
    """A name beside `path` to make it under; nothing has it, and no other call gives it."""
    pid, name = os.getpid(), os.fsencode(path.name)[:_LONGEST].decode(errors="ignore")
    random = f"{_own(pid)}{secrets.token_hex(4)}"
    return path.with_name(f".{name}.{pid}-{_here()}-{random}.draft")


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """A new folder to fill, which goes at the end of the block if it was not renamed to `path`.

    Folders above it are made. Drafts that dead processes left there are removed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # told of what the user asked for
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
    sweep(path.parent)
    draft = draft_of(path)
    draft.mkdir()
    try:
        yield draft
    except Exception as error:  # a write that fails says of no file that it was its
        with suppress(AttributeError):
            error.filename = getattr(error, "filename", None) or str(path)  # type: ignore[attr-defined]
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def final_name(path: str) -> str:
    """A path, in which each draft is called by the name that it is to have."""
    return os.sep.join(_DRAFT.sub(r"\1", part) for part in path.split(os.sep))


def sweep(folder: Path, *, below: bool = False, ours: bool = False) -> None:
    """Remove drafts of dead processes; what cannot be looked at or removed stays.

    Args:
        below: in all folders below it too.
        ours: nobody but Perdure writes there, so that drafts of older versions are known as such.
    """
    with suppress(OSError):
        for path in list(folder.rglob("*") if below else folder.iterdir()):
            name = _DRAFT.fullmatch(path.name)
            if (name or (ours and _OLDER.fullmatch(path.name))) and _left_over(path, name):
                with suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _left_over(path: Path, name: re.Match[str] | None) -> bool:
    begun = None
    if name is not None and name[3] == _here():
        if int(name[2]) == os.getpid():  # of an earlier process of our number, unless it is ours
            return not name[4].startswith(_own(os.getpid()))
        if (begun := _begun(int(name[2]))) is None:
            return True
    try:
        newest = max(p.lstat().st_mtime for p in (path, *path.rglob("*")))
    except OSError:  # it is being made, or removed
        return False
    # A process that is younger than the draft has only got the number of the one that made it.
    return time.time() - newest > IDLE and (begun is None or begun > newest)


def _begun(pid: int) -> float | None:
    """When a process began; None: none lives that has this number."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None
    except psutil.Error:  # it may not be looked at
        return 0.0


@functools.cache
def _own(pid: int) -> str:
    """How what this process names begins; one that was forked from it has another number."""
    return secrets.token_hex(4)


@functools.cache
def _here() -> str:
    """A hash of this machine since it was started, and of the container that numbers processes."""
    said = [platform.node()]
    with suppress(OSError):  # no Linux
        said.append(Path("/proc/sys/kernel/random/boot_id").read_text("ascii"))
        said.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:8]
