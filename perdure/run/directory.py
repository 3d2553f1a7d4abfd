"""The run directory: everything a report needs, and enough to go on after a crash at any moment.

    recipe.yaml        the resolved recipe          environment.json   versions, hardware, commit
    stream.json        the tasks and their versions
    pinned.json        the recipe's values, and the base model's files by sha256
    scores.jsonl       one line a score             log.jsonl          one line a logged step
    facts.jsonl        one line a figure of a task's end, and what a pool of adapters holds then
    items/             scored rows and texts        checkpoints/       one sealed folder a task
    work/              checkpoints inside a task    cache/             what methods computed once
    lock, lock.pid     held by the process that learns, and its number

Nothing half-written is ever read: files are written beside their place and renamed, folders carry
a manifest that is written last, and a torn last line of a JSON Lines file is skipped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from perdure.consent import trusting
from perdure.drafts import drafted, sweep
from perdure.errors import RunError, resume_command
from perdure.failures import at, explained, reading
from perdure.files import (
    append_line,
    now,
    numbered,
    sync_folder,
    write_atomic,
)
from perdure.processes import barrier, broadcast, rank
from perdure.run import item_files
from perdure.run.environment import environment
from perdure.run.place import put, taken
from perdure.run.scored import Reader
from perdure.run.sums import lines_of, marks, read_checked, with_check
from perdure.seals import facts_of, is_sealed, recorded, seal, share

if TYPE_CHECKING:
    from perdure.recipe.schema import Recipe
    from perdure.scoring import ScoreMatrix


def only_scored(facts: Sequence[Mapping[str, str]]) -> list[str]:
    """The tasks in a run's stream.json that are not learned."""
    return [task["name"] for task in facts if task.get("learn") == "none"]


def tested_on(facts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Of the tasks in a run's stream.json that have another's test rows, the name of that one."""
    return {task["name"]: task["test_of"] for task in facts if "test_of" in task}


class Run:
    """One run directory. Make a new one with `create`, read one with `open`."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe
        self.scored = Reader(path)
        self._marks_then: dict[str, Any] = {}

    @classmethod
    def create(
        cls, path: Path | str, recipe: Recipe, fill: Callable[[Path], None] | None = None
    ) -> Run:
        """Make a new run directory; all processes call it, the first one makes it.

        Args: fill: puts more into the folder before it appears.

        Raises:
            RunError: the directory exists. An existing run is never overwritten.
        """
        path = Path(broadcast(str(path)))
        if rank() == 0:
            if path.exists():
                raise taken(path)
            from perdure.recipe.load import dump_recipe

            # Made beside its place: a run that can be seen can be resumed.
            with drafted(path) as draft:
                about = json.dumps(with_check(environment()), indent=2)
                write_atomic(draft / "environment.json", about)
                write_atomic(draft / "recipe.yaml", dump_recipe(recipe))
                if fill is not None:
                    fill(draft)
                put(draft, path)
        barrier()
        return cls(path, recipe)

    @classmethod
    def open(cls, path: Path | str, *, trust_remote_code: bool = False) -> Run:
        """Read a run directory; that runs no code of its own.

        Its recipe's `trust_remote_code` is the user's word of now, not the recorded one: a run
        directory may come from anywhere.

        Args: trust_remote_code: code that the run needs may run when it is resumed or scored.

        Raises:
            RunError: it does not exist, or is no run directory.
        """
        from perdure.recipe.load import load
        from perdure.run.old_recipes import renew

        path = Path(path)
        if not (path / "recipe.yaml").exists():
            what = "is no run directory: it has no recipe.yaml" if path.exists() else "not found"
            raise RunError(f"{path}: {what}", "give the folder that perdure run printed")
        remedy = f"put it back from a copy, then go on with: {resume_command(path)}"
        try:
            with reading(path / "recipe.yaml", remedy):
                (path / "recipe.yaml").read_text("utf-8")
        except OSError as error:
            raise explained(error, path) or error from error
        # The data may have moved since; a resume reads it again and tells.
        with trusting(trust_remote_code):
            return cls(path, load(path / "recipe.yaml", check_files=False, renew=renew))

    # --- reading

    @property
    def methods_name(self) -> str:
        """The methods' names joined by "+", as the reports call this run."""
        return "+".join(m.name for m in self.recipe.methods)

    def scores(self) -> list[dict[str, Any]]:
        """Lines of scores.jsonl; a score written again after a resume counts once, the last.

        Nobody changes the lines: they are read once for all who ask.
        """
        return [*self.scored().lines]

    def log_rows(self) -> list[dict[str, Any]]:
        """Lines of log.jsonl; a step logged again after a resume counts once, the last."""
        last: dict[tuple[Any, ...], dict[str, Any]] = {}
        for line in lines_of(self.path, "log")[0]:
            last[(line["after"], line["phase"], line["step"])] = line
        return list(last.values())

    def facts(self) -> list[dict[str, Any]]:
        """Lines of facts.jsonl: `after`, `task`, `name`, `value` of what was found at a task's end.

        A value is a number, but that of `pool` (`perdure.run.pool`).

        A fact recorded again after a resume counts once, the last.
        """
        last: dict[tuple[Any, ...], dict[str, Any]] = {}
        for line in lines_of(self.path, "facts")[0]:
            last[(line["after"], line["name"])] = line
        return list(last.values())

    def items(self, after: int, task: str) -> list[dict[str, Any]]:
        """The scored rows of one cell of the score matrix.

        Raises:
            RunError: they are not what was written.
        """
        return item_files.rows(self.path, self.scored(), "task", after, task)

    def general_items(self, after: int, task: str | None = None) -> list[dict[str, Any]]:
        """The general texts that were measured after `after` tasks: each one's loss and tokens.

        Args: task: of this task of lm-eval's the items, with their scores.

        Raises:
            RunError: they are not what was written.
        """
        return item_files.rows(self.path, self.scored(), "general", after, task)

    def environment(self) -> dict[str, Any]:
        """What environment.json says.

        Raises:
            RunError: it is not what was written.
        """
        return read_checked(self.path / "environment.json")

    @property
    def today(self) -> date | None:
        """The day on which learning began, whose date chat templates write; None before that."""
        found = self.environment().get("template_date")
        return date.fromisoformat(found) if found else None

    def matrix(self) -> ScoreMatrix:
        """The score matrix of the run's own tasks, as far as it has been scored."""
        from perdure.scoring import ScoreMatrix

        facts = self.stream_facts()
        names = [task["name"] for task in facts]
        rows = [r for r in self.scores() if r["kind"] == "task" and r["task"] in names]
        return ScoreMatrix.from_rows(rows, names, only_scored(facts), tested_on(facts))

    def stream_facts(self) -> list[dict[str, str]]:
        """Name and version of each task that the run learns, `learn` where it is not "sft", and
        `test_of` where its test rows are another's; empty before it began.

        Raises:
            RunError: it is not what was written.
        """
        path = self.path / "stream.json"
        if not path.exists():
            return []
        text, known = path.read_text("utf-8", "replace"), self.environment().get("stream_sha256")
        good, remedy = hashlib.sha256(text.encode()).hexdigest() == known, "put it back from a copy"
        found: list[dict[str, str]] = []
        if good or not known:
            with reading(path, remedy):
                found = json.loads(text)
            good = isinstance(found, list) and all(
                isinstance(task, dict) and "name" in task for task in found
            )
        if not good:
            raise RunError(f"{path}: damaged: it is not what was written", remedy)
        return found

    def pin_stream(self, facts: Sequence[Mapping[str, str]]) -> None:
        """Write stream.json. Its sum follows: without one it is taken as it is."""
        text = json.dumps(facts, indent=1)
        self.set_facts({"stream_sha256": ""})
        write_atomic(self.path / "stream.json", text)
        self.set_facts({"stream_sha256": hashlib.sha256(text.encode()).hexdigest()})

    def checkpoint(self, after: int) -> Path | None:
        """The sealed folder left after learning `after` tasks, or None."""
        folder = self.path / "checkpoints" / f"task-{after}"
        return folder if is_sealed(folder) else None

    def last_checkpoint(self) -> tuple[int, Path | None]:
        """How many tasks have been learned and sealed, and the newest sealed folder."""
        sealed = self.checkpoints()
        return (sealed[-1], self.checkpoint(sealed[-1])) if sealed else (0, None)

    def checkpoints(self) -> list[int]:
        """After how many tasks there is a sealed folder that the run left, the fewest first."""
        found = recorded(self.path / "checkpoints", self.most_tasks())
        return [n for n, _ in found if self.checkpoint(n)]

    def most_tasks(self) -> float:
        return len(self.stream_facts()) or math.inf

    @property
    def state(self) -> Literal["running", "finished", "interrupted"]:
        if self._locked():
            return "running"
        return "finished" if (self.path / "finished").exists() else "interrupted"

    # --- writing

    def record(self, line: Mapping[str, Any], items: Sequence[Mapping[str, Any]] = ()) -> None:
        """Append one score, after the rows that it was made of."""
        said = dict(line)
        if items:
            said["items"] = item_files.write(self.path, line, items)
        append_line(self.path / "scores.jsonl", with_check(said))

    def log(self, line: Mapping[str, Any]) -> None:
        append_line(self.path / "log.jsonl", with_check({"time": now(), **line}), sync=False)

    def record_fact(
        self, after: int, task: str, name: str, value: float | Mapping[str, Any]
    ) -> None:
        """Append one figure that was found at the end of learning `task`; of a pool of adapters all
        that `perdure.run.pool` says."""
        line = {"after": after, "task": task, "name": name, "value": value}
        append_line(self.path / "facts.jsonl", with_check(line))

    def note(self, text: str) -> None:
        """Add a line to perdure.log."""
        log = self.path / "perdure.log"
        with at(log), open(log, "a", encoding="utf-8") as file:
            file.write(f"{now()} {text}\n")

    def decide(self, name: str, choose: Callable[[], str]) -> str:
        """A choice that this run made when it began, kept in environment.json for a resume."""
        found = self.environment()
        value = broadcast(str(found[name] if name in found else choose()))
        if rank() == 0 and name not in found:
            self.set_facts({name: value})
        return value

    def set_facts(self, facts: Mapping[str, Any]) -> None:
        """Put facts into environment.json."""
        text = json.dumps(with_check({**self.environment(), **facts}), indent=2)
        write_atomic(self.path / "environment.json", text)

    def take_over(self, source: Run) -> None:
        """Copy the base model's scores (row 0) from another run on the same base and tasks."""
        if rank() == 0:
            have = {(s["kind"], s.get("task")) for s in self.scores()}
            for line in source.scores():
                if line["after"] == 0 and (line["kind"], line.get("task")) not in have:
                    of = (line["kind"], 0, line.get("task"))
                    self.record(line, item_files.rows(source.path, source.scored(), *of))
        barrier()

    def finish(self) -> None:
        shutil.rmtree(self.path / "work", ignore_errors=True)
        _, newest = self.last_checkpoint()
        said = {"time": now(), **marks(self.path, facts_of(newest) if newest else {})}
        write_atomic(self.path / "finished", json.dumps(said) + "\n")

    def draft(self, after: int) -> Path:
        """An empty folder to write the checkpoint of `after` tasks to, for `seal`."""
        draft = self.path / "checkpoints" / f"task-{after}.part"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        self._marks_then = marks(self.path, facts_of(draft.with_name(f"task-{after - 1}")))
        return draft

    def seal(self, after: int) -> None:
        """Make the draft the checkpoint of `after` tasks; it appears whole or not at all."""
        final = self.path / "checkpoints" / f"task-{after}"
        draft = final.with_name(final.name + ".part")
        seal(draft, {"after": after, **self._marks_then})
        if final.exists():  # a torso: a sealed one would have been resumed from
            shutil.rmtree(final)
        os.replace(draft, final)
        sync_folder(final.parent)
        sync_folder(self.path)

    def share(self, after: int) -> None:
        """Keep files of the checkpoint of `after` tasks that the one before it holds too once."""
        before, last = self.checkpoint(after - 1), self.checkpoint(after)
        if before is not None and last is not None:
            share(before, last)

    def drop_work(self, after: int) -> None:
        """Remove checkpoints inside a task that is sealed by now."""
        shutil.rmtree(self.path / "work" / f"task-{after}", ignore_errors=True)

    def drop_checkpoints_before(self, after: int) -> None:
        place = self.path / "checkpoints"
        for number, folder in (*numbered(place, "task-"), *numbered(place, "task-", ".part")):
            if number < after:
                shutil.rmtree(folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run directory; the system lets go when the process dies, however it dies.

        Raises:
            RunError: another process holds it.
        """
        from filelock import FileLock, Timeout

        if rank() != 0:
            yield
            return
        holder = self.path / "lock.pid"  # not in the lock itself: filelock may empty that file
        # It waits for a moment, as whoever asks for the state holds the lock for a moment too.
        try:
            held = FileLock(self.path / "lock", timeout=0.5).acquire()
        except Timeout:
            raise RunError(
                f"{self.path}: in use by process {_text_of(holder) or '?'}",
                f"wait for it, or stop it, then go on with: {resume_command(self.path)}",
            ) from None
        with held:
            sweep(self.path, below=True, ours=True)
            holder.write_text(str(os.getpid()), "utf-8")
            try:
                yield
            finally:
                holder.unlink(missing_ok=True)

    def _locked(self) -> bool:
        from filelock import FileLock, Timeout

        path = self.path / "lock"
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # a run that may only be read: its lock cannot be tried
            import psutil

            pid = _text_of(self.path / "lock.pid")
            return pid.isdigit() and psutil.pid_exists(int(pid))


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""
