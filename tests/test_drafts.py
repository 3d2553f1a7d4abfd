"""Drafts lie beside their place under names that nothing has, and those of the dead are removed."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from perdure import drafts
from perdure.drafts import IDLE, draft_of, drafted, final_name, sweep
from perdure.files import write_atomic

pytestmark = pytest.mark.unit


def dead_draft(path: Path) -> Path:
    """Begin a draft in a process that is then killed."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        draft = draft_of(path)
        draft.mkdir()
        (draft / "half").write_text("x")
        os.write(writes, os.fsencode(draft))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writes)
    with open(reads, "rb") as file:
        return Path(os.fsdecode(file.read()))


def aged(path: Path) -> Path:
    """Change nothing of it for longer than a living process would."""
    then = time.time() - IDLE - 60
    for each in (path, *path.rglob("*")):
        os.utime(each, (then, then))
    return path


def test_no_name_is_given_twice_and_each_tells_its_place(tmp_path: Path) -> None:
    names = {draft_of(tmp_path / "a.json").name for _ in range(100)}
    assert len(names) == 100
    for name in names:
        assert name.startswith(f".a.json.{os.getpid()}-")
        assert final_name(f"{tmp_path}/{name}") == f"{tmp_path}/a.json"
        # A text inside a folder that is a draft itself.
        inner = draft_of(tmp_path / name / "recipe.yaml")
        assert final_name(str(inner)) == f"{tmp_path}/a.json/recipe.yaml"
    for letter in ("x", "語"):  # of the second one a name has fewer characters than bytes
        long = draft_of(tmp_path / (letter * (250 // len(letter.encode()))))
        long.touch()


def test_what_a_dead_process_left_goes_and_what_lives_stays(tmp_path: Path) -> None:
    dead, living = dead_draft(tmp_path / "run"), draft_of(tmp_path / "run")
    living.mkdir()
    (tmp_path / ".run.4711").mkdir()  # anybody's
    assert dead.is_dir()
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([living, tmp_path / ".run.4711"])


def test_a_number_that_a_younger_process_has_by_now_keeps_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)  # a process that lives, and is not ours
    draft = draft_of(tmp_path / "run")
    draft.mkdir()
    monkeypatch.undo()
    sweep(tmp_path)
    assert draft.exists()  # its own, as far as anybody knows
    aged(tmp_path)
    monkeypatch.setattr(drafts, "_begun", lambda pid: time.time() - 2 * IDLE)
    sweep(tmp_path)
    assert draft.exists()  # as slow as it is
    monkeypatch.setattr(drafts, "_begun", lambda pid: time.time() - IDLE / 2)
    sweep(tmp_path)
    assert not draft.exists()


def test_when_a_process_began_is_asked_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < time.time() - (drafts._begun(os.getpid()) or 0) < 24 * 3600
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert drafts._begun(child) is None
    refused = psutil.AccessDenied()
    monkeypatch.setattr(psutil, "Process", lambda pid: (_ for _ in ()).throw(refused))
    assert drafts._begun(1) == 0.0


def test_in_a_new_container_process_numbers_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the draft's process number may be our own; so age alone tells."""
    monkeypatch.setattr(drafts, "_here", lambda: "0" * 8)
    other = draft_of(tmp_path / "run")
    other.mkdir()
    monkeypatch.undo()
    sweep(tmp_path)
    assert other.exists()  # it may be at work, on a disk that both see
    sweep(aged(tmp_path))
    assert not other.exists()


def test_in_a_container_that_is_started_again_all_numbers_are_the_same(tmp_path: Path) -> None:
    """Its machine's, its own and, nearly always, ours."""
    living = draft_of(tmp_path / "run")
    living.mkdir()
    drafts._own.cache_clear()  # as in a new process
    later = draft_of(tmp_path / "run")
    later.mkdir()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [later]


@pytest.mark.parametrize(
    "name", [".new-a1b2", ".gauge-texts.jsonl.4711", ".report.html.12.part", "b1.4711.part.npy"]
)
def test_drafts_of_older_versions_go_where_nobody_else_writes(tmp_path: Path, name: str) -> None:
    (tmp_path / "cache").mkdir()
    old = tmp_path / "cache" / name
    old.write_text("x")
    sweep(tmp_path, below=True, ours=True)
    assert old.exists()
    aged(tmp_path)
    sweep(tmp_path, below=True)
    assert old.exists()
    sweep(tmp_path, below=True, ours=True)
    assert not old.exists()
    kept = [".hidden", "task-1.json", "items.4711", "model.safetensors"]
    for other in kept:
        (tmp_path / other).write_text("x")
    sweep(aged(tmp_path), below=True, ours=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["cache", *kept])


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "new" / "run"
    with drafted(place) as draft:
        (draft / "a").write_text("x")
        os.rename(draft, place)
    assert [p.name for p in place.parent.iterdir()] == ["run"]

    def fails() -> None:
        with drafted(tmp_path / "other"):
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert [p.name for p in tmp_path.iterdir()] == ["new"]
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError) as told, drafted(tmp_path / "file" / "run"):
        pytest.fail("it began")
    assert told.value.filename == str(tmp_path / "file" / "run")


def test_a_text_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(handle: int) -> Any:
        raise OSError(errno.EDQUOT, "quota")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="quota") as told:
        write_atomic(tmp_path / "a.json", "{}")
    assert told.value.filename == str(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.train
def test_a_run_removes_what_lies_beside_it_and_in_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    from tiny_runs import write_recipe

    import perdure
    from perdure.run import Run

    recipe = perdure.load_recipe(write_recipe(tmp_path / "shop", tiny_model_dir))
    dead = dead_draft(tmp_path / "other run")
    run = Run.create(tmp_path / "run", recipe)
    assert not dead.exists()
    (run.path / "cache").mkdir()
    inside = dead_draft(run.path / "cache" / "texts")
    with run.lock():
        assert not inside.exists()
