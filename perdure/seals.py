"""Folders and files that count only once they are sealed, and whose damage is noticed.

A sealed folder holds `manifest.json`, which is written last and names every file with its size and
sha256; everything that it names was synced to the disk before, so that after a power cut there is
the whole folder or none. A sealed text has its sha256 in a file beside it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from perdure.errors import RunError
from perdure.failures import at
from perdure.files import numbered, sync_folder, write_atomic

MANIFEST = "manifest.json"
CHUNK = 1 << 20
WORTH_A_LINK = 1 << 16
"""Bytes; of two checkpoints' equal files that are smaller both are kept."""
AT_ONCE = 1 << 26
"""Bytes; less is hashed in a tenth of a second, which is not worth a thread."""


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Sync all files in `folder`, then write the manifest: their names, sizes and sha256."""
    found = [p for p in sorted(folder.rglob("*")) if p.name != MANIFEST]
    files = {
        p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p, True)}
        for p in found
        if p.is_file()
    }
    for below in [p for p in found if p.is_dir()]:
        sync_folder(below)
    write_atomic(folder / MANIFEST, json.dumps({**facts, "files": files}, indent=1))


def share(older: Path, newer: Path) -> None:
    """Keep bytes once that two sealed folders both hold under one name, by hard links.

    A body that no longer learns is the same file in the checkpoint of each task. Where the file
    system has no links, both copies stay.
    """
    known = facts_of(older).get("files", {})
    for name, said in facts_of(newer).get("files", {}).items():
        if known.get(name) != said or not isinstance(said, dict) or said["bytes"] < WORTH_A_LINK:
            continue
        draft = newer / f"{name}.same"
        try:
            if not (older / name).samefile(newer / name):
                draft.unlink(missing_ok=True)
                os.link(older / name, draft)
                os.replace(draft, newer / name)
        except OSError:
            return


def unseal(folder: Path) -> None:
    """Say that the folder is about to change: it no longer counts until sealed again."""
    (folder / MANIFEST).unlink(missing_ok=True)


def facts_of(folder: Path) -> dict[str, Any]:
    """The manifest; empty where there is none, or where it is no manifest."""
    try:
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
    except ValueError:
        return {}
    except OSError as error:
        return _gone(error, {})
    return found if isinstance(found, dict) and isinstance(found.get("files"), dict) else {}


def is_sealed(folder: Path) -> bool:
    """Whether all files that the manifest names are there in full size; reads none of them."""
    if not (files := facts_of(folder).get("files")):
        return False
    try:
        return all((folder / n).stat().st_size == _size(said) for n, said in files.items())
    except (TypeError, KeyError, ValueError):
        return False
    except OSError as error:
        return _gone(error, False)


def damaged(folder: Path, skip: tuple[str, ...] = ()) -> str:
    """The first file that is not as it was sealed; "" if all are. Reads every byte.

    Of a manifest from before there were checksums the sizes are compared.

    Args: skip: endings of files of which the sizes alone are compared.
    """
    facts = facts_of(folder)
    if not facts and (folder / MANIFEST).exists():
        return str(folder / MANIFEST)
    for name, said in facts.get("files", {}).items():
        file = folder / name
        try:
            if file.stat().st_size != _size(said):
                return str(file)
            known = said.get("sha256") if isinstance(said, dict) else None
            if known and not name.endswith(skip) and sha256(file) != known:
                return str(file)
        except (TypeError, KeyError, ValueError):
            return str(file)
        except OSError as error:
            return _gone(error, str(file))
    return ""


def verify(folder: Path, remedy: str) -> None:
    """Raise if a file of a sealed folder is not as it was sealed.

    Raises:
        RunError: names the file.
    """
    if file := damaged(folder):
        what = f"{file}: damaged: it is not what was written (its size or sha256 differs)"
        raise RunError(what, remedy)


def recorded(checkpoints: Path, most: float) -> list[tuple[int, Path]]:
    """The `task-N` folders that a run left, by number; whether they are whole is not looked at.

    A folder without a manifest, whose manifest names another number, or of more than the run's
    `most` tasks was put there by somebody else.
    """
    return [
        (number, folder)
        for number, folder in numbered(checkpoints, "task-")
        if number <= most
        and (folder / MANIFEST).exists()
        # A manifest that is damaged names nothing, and its folder is not passed over in silence.
        and facts_of(folder).get("after", number) == number
    ]


def newest_sealed(folder: Path) -> Path | None:
    """The newest sealed `checkpoint-N` folder under `folder`, or None."""
    sealed = [p for _, p in numbered(folder, "checkpoint-") if is_sealed(p)]
    return sealed[-1] if sealed else None


def sha256(path: Path, sync: bool = False) -> str:
    """The sha256 of a file's bytes; with `sync` they are on the disk afterwards."""
    digest, buffer = hashlib.sha256(), bytearray(CHUNK)
    view = memoryview(buffer)
    with at(path), open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
        if sync:
            os.fsync(file.fileno())
    return digest.hexdigest()


def write_sealed(path: Path, text: str) -> None:
    """Write a text, and its sha256 in a file beside it."""
    write_atomic(path, text)
    write_atomic(_beside(path), hashlib.sha256(text.encode()).hexdigest() + "\n")


def is_summed(path: Path) -> bool:
    """Whether a text has its sha256 beside it, which is written behind it."""
    return _beside(path).exists()


def is_whole(path: Path) -> bool:
    """Whether a text is what `write_sealed` wrote; True where no sha256 lies beside it."""
    try:
        return _beside(path).read_text("utf-8", "replace").strip() == sha256(path)
    except FileNotFoundError:
        return path.exists()


class Sealer:
    """Seals large folders on a thread of its own, one after another, while training goes on."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None

    def begin(self, folder: Path, work: Callable[[], None]) -> None:
        """Have `work`, which seals `folder`, done once what was begun before is."""
        self.wait()
        if sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < AT_ONCE:
            work()
            return
        self._pool = self._pool or ThreadPoolExecutor(1, "seal")
        self._last = self._pool.submit(work)

    def wait(self) -> None:
        """Return once nothing is being sealed; raises what went wrong there."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()


T = TypeVar("T")


def _gone(error: OSError, answer: T) -> T:
    """`answer` where a file is not there or lies on a bad spot of the disk; what the system refuses
    now, and may grant in a while, says nothing about the file, and is raised."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO):
        return answer
    raise error


def _size(said: Any) -> int:
    return int(said["bytes"] if isinstance(said, dict) else said)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
