"""A byte that is changed in any file of a run is told by the file's name, or changes no figure."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tiny_runs import write_recipe

from perdure import learn, load_recipe
from perdure.errors import PerdureError
from perdure.files import append_line
from perdure.reports.data import RunView, views
from perdure.run import Run
from perdure.run.damage import verify
from perdure.run.kept import kept_general, kept_tasks
from perdure.run.sums import GROWING, lines_of, with_check
from perdure.seals import damaged

pytestmark = pytest.mark.train

UNREAD = {"perdure.log", "lock", "report.html", "report.md"}
"""Written for people, or made anew."""


@pytest.fixture(scope="module")
def finished(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("flipped")
    recipe = load_recipe(
        write_recipe(place, tiny_model_dir, method="gere", train__max_steps=2),
        ["train.log_steps=1"],
    )
    learn(recipe, Run.create(place / "run", recipe))
    return place / "run"


def view(run: Run) -> tuple[RunView, list[list[float]]]:
    (found,) = views([run])
    matrix = found.matrix.array().tolist()
    alike = {"evidence": None, "path": None, "matrix": None}
    return dataclasses.replace(found, **alike), matrix  # type: ignore[arg-type]


READERS: tuple[Callable[[Run], object], ...] = (
    verify,
    view,
    lambda run: kept_tasks(run, 2),
    kept_general,
    # Whoever loads weights, or states of general texts, checks their folder first.
    lambda run: [
        damaged(folder)
        for kept in ("checkpoints", "cache")
        for folder in sorted((run.path / kept).iterdir())
    ],
)


def told_of(
    path: Path,
    caplog: pytest.LogCaptureFixture,
    readers: Sequence[Callable[[Run], object]] = READERS,
) -> str:
    said = []
    for read in readers:
        try:  # any other error would be a traceback to the user
            found = read(Run.open(path))
            said += [str(one) for one in found] if read is READERS[-1] else []  # type: ignore[attr-defined]
        except PerdureError as error:
            said.append(str(error))
    return "\n".join([*said, caplog.text]).strip()


def files_of(run: Path) -> Iterator[str]:
    for file in sorted(run.rglob("*")):
        name = file.relative_to(run).as_posix()
        if file.is_file() and file.stat().st_size and name not in UNREAD:
            yield name


def test_each_file_is_told_or_changes_nothing(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "perdure")
    whole, names = view(Run.open(finished)), list(files_of(finished))
    assert {n.split("/")[0] for n in names} >= {"items", "data", "checkpoints", "facts.jsonl"}
    assert not told_of(finished, caplog)
    silent = []
    for number, name in enumerate(names):
        copy = tmp_path / str(number)
        shutil.copytree(finished, copy, copy_function=shutil.copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        caplog.clear()
        said = told_of(copy, caplog)
        if Path(name).name not in said and not (name.endswith("sha256") and name[:-7] in said):
            silent.append(name)
            assert view(Run.open(copy)) == whole, name
        shutil.rmtree(copy)
    # A sum that was changed is told of the file whose sum it is, if at all.
    assert {Path(name).name for name in silent} <= {"manifest.json", "finished"}


def flips(data: bytes, places: int) -> Iterator[bytes]:
    """`data` with one bit changed, at places over all of it; a high bit is no UTF-8 any more."""
    for place in sorted({0, len(data) - 1, *range(0, len(data), max(1, len(data) // places))}):
        for bit in (0x01, 0x80):
            yield data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


@pytest.mark.parametrize("name", GROWING.values())
def test_each_line_is_told_where_no_mark_follows_it(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Of a run that was killed before it ended the last lines are not marked."""
    caplog.set_level(logging.WARNING, "perdure")
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "finished").unlink()
    shutil.rmtree(run / "checkpoints")
    data, short = (run / name).read_bytes(), {file: key for key, file in GROWING.items()}[name]
    whole, told = lines_of(run, short)[0], 0
    assert not told_of(run, caplog, READERS[1:2])
    for other in flips(data, 24):
        (run / name).write_bytes(other)
        caplog.clear()
        if said := told_of(run, caplog, READERS[1:2]):
            told += 1
            assert f"{run / name}: damaged: lines that were written are gone or changed" in said
            assert "put it back from a copy" in said
        else:
            # The last digit of a long number may be another and the number the same; and without
            # the name of its sum a first line is taken for an older Perdure's. No value changes.
            rows = lines_of(run, short)[0]
            assert [{k: row.get(k) for k in w} for row, w in zip(rows, whole, strict=True)] == whole
    assert told > 40


@pytest.mark.parametrize("kept", ["finished", "checkpoints/task-2/manifest.json"])
def test_a_changed_mark_is_not_put_down_to_what_it_marks(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: str
) -> None:
    caplog.set_level(logging.WARNING, "perdure")
    run = tmp_path / "run"
    shutil.copytree(finished, run, copy_function=shutil.copy)
    whole, text = view(Run.open(run)), (run / kept).read_text()
    sums = json.loads(text)
    changes = [text.replace(sums[n]["sha256"], "0" * 64) for n in GROWING]
    for other in (*changes, text.replace('"bytes": ', '"bytds": ', 3)):
        assert other != text
        (run / kept).write_text(other)
        caplog.clear()
        said = told_of(run, caplog, READERS[1:2])
        assert f"{run / kept}: damaged: what it says of" in said
        assert "lines that were written are gone or changed" not in said
        assert view(Run.open(run)) == whole


def test_lines_of_old_runs_and_torn_ones_are_no_damage(tmp_path: Path) -> None:
    old, new = {"after": 1, "name": "old", "value": 1.0}, {"after": 2, "name": "new", "value": 2.0}
    file = tmp_path / "facts.jsonl"
    # An older Perdure closed a line that a crash had torn, and went on behind it.
    before = json.dumps(old) + '\n{"after": 1, "na\n' + json.dumps(old) + "\n"
    file.write_text(before + json.dumps(with_check(new)) + "\n" + '{"after": 3, "n')
    assert lines_of(tmp_path, "facts") == ([old, old, new], [])
    append_line(file, with_check(new))
    assert lines_of(tmp_path, "facts") == ([old, old, new, new], [])
    # A last line that lacks its line feed alone is whole, and stays.
    file.write_bytes(file.read_bytes()[:-1])
    append_line(file, with_check(new))
    assert lines_of(tmp_path, "facts") == ([old, old, new, new, new], [])
    # Behind lines that bear a sum one without is told, by its number.
    with open(file, "a", encoding="utf-8") as opened:
        opened.write(json.dumps(old) + "\n")
    assert lines_of(tmp_path, "facts")[1] == [7]
