"""A run directory holds what was written, whatever tasks are called and whatever lies beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import TASKS, make_run

from perdure.files import numbered, read_lines
from perdure.run import Run
from perdure.seals import newest_sealed, seal

pytestmark = pytest.mark.unit

NAMES = ("a b", "a+b", "a_b", "Ab", "ab", "AB", "caf\u00e9", "cafe\u0301", "t" * 80, "語" * 80)


def record(run: Run, task: str, texts: list[str]) -> None:
    run.record(
        {"kind": "task", "after": 0, "task": task, "score": 1.0}, [{"text": t} for t in texts]
    )


def test_no_two_tasks_share_a_file(tmp_path: Path) -> None:
    """Nor on file systems to which upper and lower case, or two forms of an accent, are one."""
    run = make_run(tmp_path / "run")
    for name in NAMES:
        record(run, name, [name])
    files = [path.name for path in (run.path / "items").glob("after-0-*")]
    made = [name for name in files if name.removesuffix(".jsonl")[8:] not in TASKS]
    assert len({name.casefold() for name in made}) == len(NAMES)
    assert all(name.isascii() and len(name) < 200 for name in made)
    assert [run.items(0, name) for name in NAMES] == [[{"text": name}] for name in NAMES]


def test_items_of_an_older_run_are_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for task in ("Old name", "a b", "a+b"):
        record(run, task, ["new"])
    shutil.rmtree(run.path / "items")
    (run.path / "items").mkdir()
    for name in ("Old_name", "a_b"):
        (run.path / f"items/after-0-{name}.jsonl").write_text(json.dumps({"text": "old"}) + "\n")
    assert run.items(0, "Old name") == [{"text": "old"}]
    # Two tasks wrote this file, and nobody knows which of them was the last.
    assert run.items(0, "a b") == run.items(0, "a+b") == []
    record(run, "Old name", ["new"])
    assert run.items(0, "Old name") == [{"text": "new"}]


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_rows_with_any_line_end_of_unicode_are_read(tmp_path: Path, sign: str) -> None:
    run = make_run(tmp_path / "run")
    texts = [f"before{sign}after", "plain", sign]
    record(run, "t0", texts)
    assert [item["text"] for item in run.items(0, "t0")] == texts


def test_a_line_that_a_crash_tore_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"a": 1}\n{"a": \n{"a": 3}')
    assert read_lines(tmp_path / "log.jsonl") == [{"a": 1}, {"a": 3}]


def checkpoint(run: Run, name: str) -> Path:
    folder = run.path / "checkpoints" / name
    (folder / "model").mkdir(parents=True)
    (folder / "model/weights").write_text(name)
    seal(folder, {"after": 1})
    return folder


def test_what_lies_beside_a_runs_checkpoints_is_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
    strange = ["task-1-copy2", "task-9", "task-01", "task-²", "task-1.bak", "task-", "task-2.part"]
    for name in ("task-1", *strange):
        checkpoint(run, name)
    tasks = [{"name": name, "version": "1"} for name in TASKS]
    (run.path / "stream.json").write_text(json.dumps(tasks))
    assert len(TASKS) == 3
    assert run.checkpoints() == [1]
    assert run.last_checkpoint() == (1, run.path / "checkpoints/task-1")
    checkpoint(run, "task-2")
    run.drop_checkpoints_before(3)
    left = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    assert left == sorted({*strange} - {"task-2.part"})


def test_numbered_folders(tmp_path: Path) -> None:
    names: list[Any] = ["checkpoint-2", "checkpoint-10", "checkpoint-²", "checkpoint-3-copy1"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("w")
        seal(tmp_path / name, {})
    assert numbered(tmp_path, "checkpoint-") == [
        (2, tmp_path / "checkpoint-2"),
        (10, tmp_path / "checkpoint-10"),
    ]
    assert newest_sealed(tmp_path) == tmp_path / "checkpoint-10"
