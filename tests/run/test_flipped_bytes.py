"""A byte that is changed in any file of a run is told by the file's name, or changes no figure."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tiny_runs import write_recipe

from perdure import learn, load_recipe
from perdure.errors import PerdureError
from perdure.reports.data import RunView, views
from perdure.run import Run
from perdure.run.damage import verify
from perdure.run.kept import kept_general, kept_tasks
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


def told_of(path: Path, caplog: pytest.LogCaptureFixture) -> str:
    said = []
    for read in READERS:
        with suppress(ValueError, KeyError):  # of a file that is no longer JSON: told by another
            try:
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
