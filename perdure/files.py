"""Files that are never seen half-written."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from perdure.drafts import draft_of


def numbered(folder: Path, prefix: str, suffix: str = "") -> list[tuple[int, Path]]:
    """What in `folder` is called `prefix`, a number as we write it, and `suffix`; by number.

    Copies that people make beside ("task-1-copy2", "task-01", "task-1.bak") are none of them.
    """
    called = re.compile(f"{re.escape(prefix)}(0|[1-9][0-9]*){re.escape(suffix)}")
    found = ((called.fullmatch(p.name), p) for p in folder.glob(f"{prefix}*"))
    return sorted((int(match[1]), p) for match, p in found if match)


def free_place(path: Path, word: str) -> Path:
    """A name beside `path` that nothing has: `task-2.damaged`, or `task-2.damaged-2`."""
    found, number = path.with_name(f"{path.name}.{word}"), 2
    while found.exists():
        found, number = path.with_name(f"{path.name}.{word}-{number}"), number + 1
    return found


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new text, whenever we are killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    try:
        with _naming(path), open(draft, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` once the block ends well: a reader, or a
    browser that reloads, never sees half of it."""
    draft = draft_of(path)
    try:
        with _naming(path):
            yield draft
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def try_place(path: Path) -> None:
    """Have what the system refuses told before the work whose result goes to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    with _naming(path):
        draft.touch()
        draft.unlink()


def append_line(path: Path, line: Mapping[str, Any], sync: bool = True) -> None:
    """Append one JSON line; a torn line left by a crash is cut off first.

    So a line in the middle that cannot be read was damaged, and is not taken for a torn one.
    """
    between = _end_of(path)
    with _naming(path), open(path, "a", encoding="utf-8") as file:
        file.write(between + json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()
        if sync:
            os.fsync(file.fileno())


def _end_of(path: Path) -> str:
    """Cut off a torn last line; returns what must stand before the next one."""
    if not path.exists() or not path.stat().st_size:
        return ""
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return ""
    text = path.read_bytes()
    begin = text.rfind(b"\n") + 1
    if not is_torn(text[begin:]):
        return "\n"
    os.truncate(path, begin)
    return ""


def is_torn(line: bytes) -> bool:
    """Whether a line of ours was not written to its end: it does not begin with a whole object."""
    try:
        # Within a whole line that was damaged there may be bytes that are no UTF-8.
        json.JSONDecoder().raw_decode(line.decode(errors="replace"))
    except ValueError:
        return True
    return False


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSON Lines file of ours; lines that cannot be read are skipped.

    Lines end at a line feed and nowhere else: texts hold U+2028, U+2029 and U+0085 as they are.
    """
    return lines_in(path.read_bytes()) if path.exists() else []


def lines_in(text: bytes) -> list[dict[str, Any]]:
    """The same of what such a file holds."""
    found = []
    for line in text.split(b"\n"):
        try:
            found.append(json.loads(line.decode()))
        except ValueError:
            continue
    return [line for line in found if isinstance(line, dict)]


def sync_folder(path: Path) -> None:
    """Make a rename in `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with _naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in an error of the system, which a failed write or sync does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def cache_folder() -> Path:
    """Where converted models are kept; may be deleted at any time."""
    if own := os.environ.get("PERDURE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "perdure"
