"""After a power cut a run goes on to the same end, whatever of it had reached the disk.

The syncs, renames and removals of a whole run are recorded. After each of them two states are
rebuilt that a power cut may leave: one in which every name is there, but a file holds only what was
synced of it (the rest is cut in half); and one in which a name is there only if its folder was
synced. Each must resume to the weights and scores of the run that was not cut.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_recipe

import perdure
from perdure.run import Run

pytestmark = pytest.mark.train
Tree = dict[str, bytes]
"""What is on a disk: each file's path below the run, and its bytes."""
MOST = int(os.environ.get("PERDURE_POWER_CUTS", "10"))
"""States that are resumed, evenly drawn from all; PERDURE_POWER_CUTS=9999 takes them all."""


class Disk:
    """What of a folder has reached the disk: bytes by inode, and names by folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bytes: dict[int, bytes] = {}
        self.names: dict[int, dict[str, tuple[bool, int]]] = {}
        self.states: dict[str, Tree] = {}

    def sync(self, handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.is_dir():
            found = {e.name: (e.is_dir(), e.inode()) for e in os.scandir(path)}
            self.names[path.stat().st_ino] = found
        else:
            self.bytes[path.stat().st_ino] = path.read_bytes()

    def look(self) -> None:
        """Note both states that a power cut at this moment may leave."""
        if (self.root / "recipe.yaml").exists():
            for tree in (dict(self._all_names()), dict(self._synced_names())):
                text = repr(sorted((n, hashlib.sha256(b).digest()) for n, b in tree.items()))
                self.states.setdefault(text, tree)

    def _all_names(self) -> Iterator[tuple[str, bytes]]:
        for path in sorted(self.root.rglob("*")):
            if path.is_file():
                found, there = path.read_bytes(), self.bytes.get(path.stat().st_ino, b"")
                if found.startswith(there):  # appended to: half of the rest has arrived
                    there = found[: len(there) + (len(found) - len(there)) // 2]
                yield str(path.relative_to(self.root)), there

    def _synced_names(self, inode: int = 0, below: str = "") -> Iterator[tuple[str, bytes]]:
        names = self.names.get(inode or self.root.stat().st_ino, {})
        for name, (is_folder, number) in names.items():
            if is_folder:
                yield from self._synced_names(number, f"{below}{name}/")
            else:
                yield below + name, self.bytes.get(number, b"")


@contextmanager
def recorded(disk: Disk, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have `disk` see every sync inside the block, and look after each change of a name."""

    def watched(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*args: Any, **options: Any) -> Any:
            found = real(*args, **options)
            if name == "fsync":
                disk.sync(args[0])
            disk.look()
            return found

        patch.setattr(module, name, call)

    for module, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (os, "unlink"),
                         (shutil, "rmtree")):  # fmt: skip
        watched(module, name)
    yield
    patch.undo()


def end_of(run: Path) -> tuple[bytes, list[tuple[Any, ...]]]:
    scores = [(s["kind"], s["after"], s.get("task"), s["score"]) for s in Run.open(run).scores()]
    weights = run / "checkpoints" / "task-2" / "model" / "model.safetensors"
    return weights.read_bytes(), sorted(scores, key=str)


def test_every_state_resumes_to_the_same_end(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(
        tmp_path, tiny_model_dir, train__max_steps=4, save__steps=2,
        method={"name": "ewc", "rows": 4}, gauges={"every": 0},
    )  # fmt: skip
    recipe = perdure.load_recipe(path)
    root = tmp_path / "run"
    disk = Disk(root)
    with recorded(disk, monkeypatch):
        perdure.learn(recipe, Run.create(root, recipe))
    end = end_of(root)
    states = [tree for tree in disk.states.values() if tree.get("recipe.yaml")]
    assert len(states) > 50
    step = max(1, len(states) // MOST)
    for number, tree in list(enumerate(states))[::step]:
        cut = tmp_path / f"cut-{number}"
        for name, content in tree.items():
            (cut / name).parent.mkdir(parents=True, exist_ok=True)
            (cut / name).write_bytes(content)
        run = Run.open(cut)
        perdure.learn(run.recipe, run)
        assert end_of(cut) == end, f"state {number} of {len(states)}"
        shutil.rmtree(cut)


def test_the_recorder_sees_what_is_not_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    disk = Disk(root)
    with recorded(disk, monkeypatch):
        with open(root / "recipe.yaml", "w", encoding="utf-8") as file:
            file.write("whole")
            file.flush()
            os.fsync(file.fileno())
        (root / "draft").write_text("abcd")
        os.replace(root / "draft", root / "kept")
        handle = os.open(root, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    trees = list(disk.states.values())
    assert trees == [
        {"recipe.yaml": b"whole"},  # its name may be gone, or not
        {},
        {"recipe.yaml": b"whole", "kept": b"ab"},
        {"recipe.yaml": b"whole", "kept": b""},
    ]
