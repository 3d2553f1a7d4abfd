"""A run directory holds what was written, whatever tasks are called and whatever lies beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import TASKS, make_run, write_lines

from perdure.errors import RunError
from perdure.files import numbered, read_lines
from perdure.run import Run
from perdure.run.damage import verify_scores
from perdure.seals import newest_sealed, seal, share, verify

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
    without = [{k: v for k, v in line.items() if k not in ("items", "check")}
               for line in read_lines(run.path / "scores.jsonl")]  # fmt: skip
    write_lines(run.path / "scores.jsonl", without)  # older runs kept no sums of them
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


def checkpoint(run: Run, name: str, after: int = 1) -> Path:
    folder = run.path / "checkpoints" / name
    (folder / "model").mkdir(parents=True)
    (folder / "model/weights").write_text(name)
    seal(folder, {"after": after})
    return folder


def test_what_lies_beside_a_runs_checkpoints_is_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
    strange = [
        "task-1-copy2",
        "task-3",
        "task-9",
        "task-01",
        "task-²",
        "task-1.bak",
        "task-",
        "task-2.part",
    ]
    for name in ("task-1", *strange):
        checkpoint(run, name)
    tasks = [{"name": name, "version": "1"} for name in TASKS]
    (run.path / "stream.json").write_text(json.dumps(tasks))
    assert len(TASKS) == 3
    assert run.checkpoints() == [1]  # task-3 is a copy of it under another name
    assert run.last_checkpoint() == (1, run.path / "checkpoints/task-1")
    checkpoint(run, "task-2", 2)
    assert run.checkpoints() == [1, 2]
    whole = (run.path / "stream.json").read_text()
    (run.path / "stream.json").write_text(whole[:-5])  # its sum is not known
    with pytest.raises(RunError, match=r"stream\.json: damaged: it is no JSON"):
        run.stream_facts()
    for text in ("{}", "3", "null", "[1]", '[{"version": "1"}]'):
        (run.path / "stream.json").write_text(text)
        with pytest.raises(RunError, match=r"stream\.json: damaged: it is not what was written"):
            run.stream_facts()
    (run.path / "stream.json").write_text(whole)
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


def damaged_rows(run: Run) -> str:
    with pytest.raises(RunError) as error:
        run.items(0, "t0")
    return str(error.value)


def test_a_lost_or_changed_row_is_noticed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    record(run, "t0", ["one", "two"])
    record(run, "t1", ["three"])
    file = run.path / "items" / "after-0-t0.jsonl"
    lines = file.read_text()
    verify_scores(run)
    assert [line for line in run.scores() if "items" in line or "check" in line] == []
    for text in (lines.split("\n")[0] + "\n", lines.replace("two", "2wo"), ""):
        file.write_text(text)
        assert damaged_rows(run).startswith(
            f"{file}: damaged: lines that were written are gone or changed"
        )
        assert run.items(0, "t1") == [{"text": "three"}]
        with pytest.raises(RunError, match=r"after-0-t0\.jsonl: damaged"):
            verify_scores(run)
    file.unlink()
    assert "after-0-t0.jsonl: damaged" in damaged_rows(run)
    file.write_text(lines)
    assert run.items(0, "t0") == [{"text": "one"}, {"text": "two"}]


def test_rows_that_are_scored_again_count_as_the_last(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    record(run, "t0", ["one"])
    record(run, "t0", ["two"])
    verify_scores(run)
    assert run.items(0, "t0") == [{"text": "two"}]


def test_items_of_lm_evals_tasks_lie_apart(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for after in (0, 1):
        line = {"kind": "general", "after": after, "task": "t0", "score": 0.5}
        run.record(line, [{"id": "7", "score": 0.5, "group": f"g{after}"}])
        record(run, "t0", ["of the run's own task"])
    assert run.general_items(1, "t0") == [{"id": "7", "score": 0.5, "group": "g1"}]
    assert run.general_items(0, "t0")[0]["group"] == "g0"
    assert run.items(0, "t0") == [{"text": "of the run's own task"}]
    assert run.general_items(0) == []
    other = make_run(tmp_path / "other", matrix=[], general=())
    other.take_over(run)
    assert other.general_items(0, "t0") == run.general_items(0, "t0")


def test_what_two_checkpoints_both_hold_is_stored_once(tmp_path: Path) -> None:
    """An adapter that stays has some hundred KB; of small files a link saves nothing."""
    for number, changed in enumerate((b"a", b"b")):
        folder = tmp_path / f"task-{number}"
        folder.mkdir()
        (folder / "adapter-1").write_bytes(b"x" * 65536)
        (folder / "adapter-2").write_bytes(changed * 65536)
        (folder / "small").write_bytes(b"x" * 65535)
        seal(folder, {})
    older, newer = tmp_path / "task-0", tmp_path / "task-1"
    share(older, newer)
    same = {n: (older / n).samefile(newer / n) for n in ("adapter-1", "adapter-2", "small")}
    assert same == {"adapter-1": True, "adapter-2": False, "small": False}
    verify(newer, "")
