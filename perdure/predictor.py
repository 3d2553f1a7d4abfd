"""What a run's model answers to texts that have no label.

    predict = perdure.load_predictor("runs/intents")
    for answer in predict(["where is my card", "close my account"]):
        print(answer["class"], answer["score"])

The run directory is enough: it keeps the names of its classes and tasks, and rows are read in the
form in which training read them (columns, instruction, template). Nothing is written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.consent import by_argument, trusting
from perdure.errors import RecipeError, RunError, UsageError, brief, resume_command, task_named
from perdure.recipe.data import TaskConfig
from perdure.recipe.mistakes import near
from perdure.streams.unlabelled import Unlabelled, holds_messages, reads_messages

if TYPE_CHECKING:
    from perdure.learners.base import Learner
    from perdure.learners.listener import Listener
    from perdure.processes import Progress
    from perdure.run import Run
    from perdure.streams.task import Task, TaskStream

logger = logging.getLogger("perdure")
AT_A_TIME = 2048
"""Rows that go through the model before their answers are handed on."""


@by_argument
def load_predictor(
    run: str | Path,
    *,
    after: int | None = None,
    task: str | None = None,
    column: str | None = None,
    direction: str | None = None,
    accept_changes: bool = False,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
) -> Predictor:
    """Load the model of a run, to ask it.

    Args:
        run: a run directory.
        after: the model after so many tasks; None: the newest.
        task: ask as this task; None: all learned classes compete in a class-incremental run, and
            elsewhere it is the last task that was learned.
        column: the column that holds the text; None: as in the run's recipe.
        direction: of a task that translates, such as en-de; None: as in the run's recipe, or as the
            rows' own columns say.
        accept_changes: also if the recipe or the base model have changed since the run began.
        trust_remote_code: code that the model brings may run.
        listener: hears how loading and answering go on; None is silent.

    Raises:
        RunError: there is no such run or checkpoint, or it is damaged or has changed.
        UsageError: there is no such task, or no class was learned yet.
    """
    found = open_predictor(
        run,
        after=after,
        task=task,
        column=column,
        direction=direction,
        accept_changes=accept_changes,
        trust_remote_code=trust_remote_code,
        listener=listener,
    )
    _ = found.learner
    return found


def open_predictor(
    run: str | Path,
    *,
    after: int | None = None,
    task: str | None = None,
    column: str | None = None,
    direction: str | None = None,
    accept_changes: bool = False,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
) -> Predictor:
    """As `load_predictor`; weights are loaded when the first row is answered."""
    from perdure.run import Run
    from perdure.run.damage import verify

    found = Run.open(run, trust_remote_code=trust_remote_code)
    if after is None:  # the weights are read and checked when they are loaded
        verify(found, weights=False, scores=False)
    learned = found.last_checkpoint()[0] if after is None else after
    stream = _stream(found)
    asked = _asked(stream, task, learned)
    chats = _chats(found, stream, learned)
    form = _form(found, stream, asked, column, direction, [one.name for one in chats])
    folder = _folder(found, stream, learned)
    whole = task is None and stream.scenario == "class-incremental" and bool(stream.classes)
    within = None if whole and _of_classes(asked) else asked
    if within is not None and _of_classes(asked):
        _refuse_unlearned(stream, asked, learned)

    def load() -> Learner:
        from perdure.reports.silence import silent  # it loads transformers

        quiet = silent() if listener is None else nullcontext()
        with trusting(found.recipe.trust_remote_code), quiet:
            return _learner(found, stream, folder, learned, accept_changes, listener)

    chat = None
    if chats and task is None and direction is None and asked not in chats:
        chat = chats[-1], _form(found, stream, chats[-1], column, None)
    return Predictor(load, asked, within, form, chat)


class Predictor:
    """A run's model, and how its rows are read. See `load_predictor`.

    Attributes:
        task: the task whose form rows have; form: how they are read.
    """

    def __init__(
        self,
        load: Callable[[], Learner],
        task: Task,
        within: Task | None,
        form: Unlabelled,
        chat: tuple[Task, Unlabelled] | None = None,
    ) -> None:
        self._load, self.task, self._within, self.form = load, task, within, form
        self._chat = chat

    @cached_property
    def learner(self) -> Learner:
        """The model, with all that its kind of task needs; loaded when it is first used."""
        return self._load()

    def __call__(self, texts: Sequence[str | Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answer texts, or records with the columns of the run's data; in their order.

        Returns: for each of them `text`, `class` and its `score` (its share of the softmax), and
            `best`, the three best of them; of tasks whose answers are text `answer`, with `score`
            and `best` where it is one of a task's labels, and with `reasoning` and `problem` where
            it is tagged: `problem` says why no answer could be read, else it is "". Where the run
            has a router, also `adapter` (None: the base model), `similarity`, `fits` and `why`. A
            text with nothing in it has None.

        Raises:
            RecipeError: records without the columns, or with something else than text in them.
        """
        return list(self.each(self.form.of_texts(texts)))

    def suited(self, path: str | Path) -> Predictor:
        """This predictor; or, where a file's rows are lists of messages and nobody said as which
        task to ask, one with the same model that asks as the last task that reads such rows."""
        if self._chat is None:
            return self
        task, form = self._chat
        column = form.task.column(form.first)
        if not holds_messages(Path(path), column, self.form.task.column(self.form.first)):
            return self
        logger.warning(
            '%s: "%s" holds lists of messages: answered as %s; as another task: --task NAME',
            path,
            column,
            task_named(task.name),
        )
        return Predictor(lambda: self.learner, task, task, form)

    def file(self, path: str | Path) -> Sequence[dict[str, Any] | None]:
        """The rows of a file, to give to `each`; None for a row with no text in it.

        Raises:
            RecipeError: the file cannot be read, or has no such column.
        """
        return self.form.of_file(Path(path))

    def each(
        self, rows: Sequence[dict[str, Any] | None], progress: Progress | None = None
    ) -> Iterator[dict[str, Any]]:
        """The answers to rows that `file` gave, one after the other."""
        for start in range(0, len(rows), AT_A_TIME):
            some = rows[start : start + AT_A_TIME]
            full = [row for row in some if row is not None]
            found = iter(self.learner.predict(full, self.task, self._within) if full else ())
            for row in some:
                yield {"text": "", self.learner.answer: None} if row is None else next(found)
            if progress is not None:
                progress(min(start + AT_A_TIME, len(rows)), len(rows))


def _stream(run: Run) -> TaskStream:
    """The run's tasks as it keeps them, so that its data files may be gone."""
    from perdure.prepare import run_stream
    from perdure.run.asked import tasks_without_rows
    from perdure.run.kept import kept_general, kept_tasks
    from perdure.streams.kinds import kind
    from perdure.streams.task import GeneralText, TaskStream

    facts = run.stream_facts()
    given, general = run.recipe.stream, GeneralText()
    if facts and (run.path / "data" / f"task-{len(facts)}.json").exists():
        tasks, general = kept_tasks(run, len(facts)), kept_general(run)
    elif not (tasks := tasks_without_rows(run, facts)):
        try:
            return run_stream(run)  # not begun yet, or begun by an older Perdure
        except (RecipeError, RunError) as error:
            if not facts or (run.path / "data").is_dir():
                raise
            raise RunError(
                f"{run.path / 'data'}: was deleted, and its recipe does not list which answers "
                "there are",
                "put the folder back from a copy",
            ) from error
    scenario = given.scenario or kind(tasks[0].kind).scenarios[0]
    return TaskStream(tuple(tasks), general, scenario, given.name or "")


def _asked(stream: TaskStream, name: str | None, learned: int) -> Task:
    """The task whose form is asked for, which must be learned where its kind has no answer else."""
    names = [task.name for task in stream]
    if name is not None and name not in names:
        hint = near(name, names) or f"tasks of this run: {', '.join(map(brief, names))}"
        raise UsageError(f'the run has no task "{brief(name)}"', hint)
    before = [task for task in stream.tasks[:learned] if task.learn != "none"]
    if name is None:
        return (before or list(stream.tasks))[-1]
    return stream.tasks[names.index(name)]


def _of_classes(task: Task) -> bool:
    return task.kind != "generation"


def _refuse_unlearned(stream: TaskStream, task: Task, learned: int) -> None:
    first = max((stream.classes[name] for name in task.labels), default=0)
    if first >= learned:
        raise UsageError(
            f"{task_named(task.name)}: the model after {learned} tasks has not learned it",
            f"ask a later one: --after {first + 1}",
        )


def _form(
    run: Run,
    stream: TaskStream,
    task: Task,
    column: str | None,
    direction: str | None,
    chats: Sequence[str] = (),
) -> Unlabelled:
    """How rows of a task are read: by the recipe that it was learned by."""
    from perdure.run.asked import recipe_of
    from perdure.streams.named.find import table_like

    recipe = recipe_of(run, [t.name for t in stream].index(task.name))
    config: TaskConfig | None = next((t for t in recipe.stream.tasks if t.name == task.name), None)
    data = recipe.stream.data
    if config is None and data is not None and (data.train or data.dataset):
        config = data  # the table that it was cut from; with a named stream, what is changed of it
    if config is None and _of_classes(task):
        config = table_like(recipe.stream.name)
    return Unlabelled(config or _built_in(run, task), column, direction, chats)


def _chats(run: Run, stream: TaskStream, learned: int) -> list[Task]:
    """The learned tasks whose rows are lists of messages."""
    from perdure.run.asked import sections
    from perdure.streams.kinds import format_of

    if _of_classes(stream.tasks[0]):
        return []
    told = {n for n, one in sections(run).items() if reads_messages(format_of(one.format)[1])}
    return [task for task in stream.tasks[:learned] if task.learn != "none" and task.name in told]


def _built_in(run: Run, task: Task) -> TaskConfig:
    """How rows of a built-in stream's task of texts are read: by our own names of columns.

    Raises:
        RunError: it is none, but one whose recipe was deleted with the run's rows.
    """
    if not task.test:
        told = [t.name for t in run.recipe.stream.tasks]
        raise RunError(
            f"{run.path / 'data'}: was deleted, and with it how rows of {task_named(task.name)} "
            "are read",
            f"put it back from a copy, or ask as {' or '.join(map(brief, told))}: --task NAME",
        )
    first = [row["prompt"][0] for row in task.test]
    said = {turn["content"] for turn in first if turn["role"] == "system"}
    same = len(said) == 1 and all(turn["role"] == "system" for turn in first)
    form = "labels" if task.labels else "prompt"
    return TaskConfig(
        name=task.name, format=form, train="rows.jsonl", instruction=said.pop() if same else None
    )


def _folder(run: Run, stream: TaskStream, after: int) -> Path | None:
    """The folder of the model after so many tasks; None for the base model."""
    folder = run.checkpoint(after) if after else None
    if after and folder is None:
        raise RunError(
            f"{run.path}: has no model after {after} tasks",
            f"it has: 0 (the base){''.join(f', {k}' for k in run.checkpoints())}",
        )
    if not after and stream.classes and _of_classes(stream.tasks[0]):
        raise UsageError(
            f"{run.path}: no class was learned after 0 tasks",
            "ask the model after a task: --after 1" if run.checkpoints() else
            f"learn first: {resume_command(run.path)}",
        )  # fmt: skip
    if folder is None:
        return None
    served = folder / "serving"
    return served if served.is_dir() else folder / "model"


def _learner(
    run: Run,
    stream: TaskStream,
    folder: Path | None,
    after: int,
    accept_changes: bool,
    listener: Listener | None,
) -> Learner:
    from perdure import learners
    from perdure.learners.listener import Folders
    from perdure.run.pins import refuse_changes

    refuse_changes(run, accept=accept_changes, base=after == 0 or run.recipe.model.tuning == "lora")
    return learners.build_saved(
        run.recipe,
        stream,
        folder,
        after,
        precision=str(run.environment().get("precision", "fp32")),
        folders=Folders.below(run.path),
        listener=listener,
        today=run.today,
        lm_eval_tasks={},
    )
