"""What a run keeps of its data, so that it can go on when the files are gone.

data/task-1.json     test and validation rows of the first task, and what is known of it
data/general.json    general texts
data/no-class.json   texts of no class, where the stream has some
data/recipe-2.yaml   the recipe by which the first two tasks were learned; of extensions alone
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.consent import ConsentError
from perdure.errors import RunError, task_named
from perdure.failures import reading
from perdure.processes import barrier, rank
from perdure.run.sums import deleted
from perdure.seals import is_summed, is_whole, write_sealed
from perdure.streams.task import GeneralText, NoClass, Task, TaskStream

if TYPE_CHECKING:
    from perdure.run.directory import Run

_FACTS = (
    "name", "metric", "kind", "version", "max_new_tokens", "source", "learn", "answer", "prefill",
    "test_of",
)  # fmt: skip


def keep(run: Run, stream: TaskStream) -> None:
    """Write what is not there yet; all processes call it."""
    folder = run.path / "data"
    if rank() == 0:
        texts = stream.general
        said: dict[str, Any] = {
            "replay": [*texts.replay],
            "held_out": [*texts.held_out],
            "source": texts.source,
        }
        _write(folder / "general.json", said, ("replay", "held_out"))
        none = {name: [*getattr(stream.no_class, name)] for name in ("validation", "test")}
        if any(none.values()):
            _write(folder / "no-class.json", none, tuple(none))
        for number, task in enumerate(stream, 1):
            facts = {name: getattr(task, name) for name in _FACTS}
            rows = {"validation": [*task.validation], "test": [*task.test]}
            said = {**facts, "labels": [*task.labels], **rows}
            if task.train_kept:  # else it is what was kept
                _write(folder / f"task-{number}.json", said, ("version",))
    barrier()


def kept_tasks(run: Run, count: int) -> list[Task]:
    """The first `count` tasks of a run, without training rows.

    Raises:
        RunError: one is damaged or gone.
    """
    if count and not (run.path / "data").is_dir():
        raise deleted(run.path, run.path / "data")
    found = []
    for number in range(1, count + 1):
        said = _read(run.path / "data" / f"task-{number}.json")
        found.append(Task(**{**said, "labels": tuple(said["labels"])}, train=(), train_kept=False))
    return found


def tasks_before(run: Run, extends: bool = False) -> list[Task]:
    """The tasks that a run learned before it was extended, as `kept_tasks`.

    Args: extends: an extension of this run is meant, which is not made yet.
    """
    told = run.environment().get("extends", {})
    return kept_tasks(run, len(run.stream_facts()) if extends else int(told.get("tasks", 0)))


def kept_labels(run: Path, count: int) -> list[tuple[str, ...]]:
    """The labels of each of a run's first `count` tasks, for a report: () of a task whose file is
    not there or cannot be read, as in a folder that was damaged or made by hand.

    Args: run: the run's directory.
    """
    found = []
    for number in range(1, count + 1):
        try:
            said = json.loads((run / "data" / f"task-{number}.json").read_text("utf-8"))
            found.append(tuple(map(str, said["labels"])))
        except (OSError, ValueError, KeyError, TypeError):
            found.append(())
    return found


def kept_general(run: Run) -> GeneralText:
    """The general texts of a run."""
    said = _read(run.path / "data" / "general.json")
    return GeneralText(tuple(said["replay"]), tuple(said["held_out"]), said["source"])


def kept_no_class(run: Run) -> NoClass:
    """The texts of no class of a run; none where its stream had none."""
    file = run.path / "data" / "no-class.json"
    said = _read(file) if file.exists() else {}
    return NoClass(tuple(said.get("validation", ())), tuple(said.get("test", ())))


def whole_stream(
    run: Run,
    new: TaskStream,
    old: Callable[[Path], TaskStream] | None = None,
    extends: bool = False,
) -> TaskStream:
    """The tasks that a run learned before it was extended, and the new ones after them.

    Args:
        new: what the run's own recipe names; of a run that extends none it is the whole.
        old: reads the stream of an earlier recipe, where a method trains on the old rows too.
        extends: `new` are the tasks of an extension of this run, which is not made yet.

    Raises:
        RunError: the old files are gone or have changed since they were learned.
    """
    files = sorted((run.path / "data").glob("recipe-*.yaml"))
    files += [run.path / "recipe.yaml"] if extends else []
    if not (tasks := tasks_before(run, extends)):
        return new
    if old is not None:
        rows = {t.name: t for file in files for t in _told(run, file, old)}
        for number, task in enumerate(tasks):
            read = rows.get(task.name)
            if read is None or read.version != task.version:
                raise RunError(
                    f"{run.path}: the rows of {task_named(task.name)} have changed since it "
                    "was learned",
                    "this method trains on them: put the old files back",
                )
            tasks[number] = replace(task, train=read.train, train_kept=True)
    fresh = new.no_class
    return replace(
        new,
        tasks=(*tasks, *new.tasks),
        general=kept_general(run),
        no_class=fresh if fresh.validation or fresh.test else kept_no_class(run),
    )


def _told(run: Run, file: Path, old: Callable[[Path], TaskStream]) -> TaskStream:
    if not is_whole(file):
        raise RunError(f"{file}: damaged or gone", "put it back from a copy")
    try:
        return old(file)
    except ConsentError:
        raise
    except Exception as error:
        raise RunError(
            f"{run.path}: the old tasks' files cannot be read any more: "
            f"{str(error).splitlines()[0]}",
            "this method trains on them: put them back, or take a method that does not",
        ) from error


def _write(path: Path, data: dict[str, Any], decide: Sequence[str]) -> None:
    """Write what is not there to its sum, or is of rows that were changed and accepted since."""
    if path.exists():
        there = _read(path)
        if all(there[key] == data[key] for key in decide) and is_summed(path):
            return
    path.parent.mkdir(exist_ok=True)
    write_sealed(path, json.dumps(data, ensure_ascii=False))


def _read(path: Path) -> dict[str, Any]:
    with reading(path, "put it back from a copy"):
        if not is_whole(path):
            raise RunError(f"{path}: damaged or gone", "put it back from a copy")
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found
