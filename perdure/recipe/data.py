"""The recipe's sections about data: the tasks, their stream, and general text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from perdure.errors import brief, task_named
from perdure.recipe.columns import check_cell
from perdure.recipe.mistakes import Mistake, near
from perdure.recipe.section import Section

Scenario = Literal["task-incremental", "domain-incremental", "class-incremental"]
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
TEXT_FILES = (".txt", ".jsonl")
FILE_ENDINGS = (*TEXT_FILES, ".csv", ".tsv", ".parquet", ".json", ".gz", ".zip", ".zst")


class GeneralConfig(Section):
    source: str = Field(
        "pydoc",
        description="pydoc (Python's reference), none, a .txt/.jsonl file, or a hub data set",
    )
    subset: str | None = Field(None, description="configuration of the hub data set")
    split: str = Field("train", description="split of the hub data set")
    column: str = Field("text", description="column of a .jsonl file or hub data set")
    encoding: str | None = Field(
        None, description="of the files, such as cp1252; else UTF-8, or recognised"
    )
    held_out_source: str | None = Field(
        None, description="pydoc or a file: measure on it, not on other texts of source"
    )
    replay_rows: int = Field(64, ge=0, description="texts that methods may train on")
    held_out_rows: int = Field(32, ge=0, description="other texts, to measure perplexity on")
    max_tokens: int = Field(128, gt=1, description="held-out texts are cut to this many tokens")
    tasks: list[str] = Field(
        default_factory=list, description="lm-eval's tasks: names, or task files (.yaml)"
    )
    limit: int | None = Field(None, gt=0, description="score this many rows an lm-eval task")
    num_fewshot: int | None = Field(
        None, ge=0, description="examples before a question of lm-eval's; else as the task says"
    )
    group: str | None = Field(
        None, description="field of lm-eval's `doc` whose value items share that belong together"
    )

    @model_validator(mode="before")
    @classmethod
    def _only_tasks(cls, data: Any) -> Any:
        """`general: [mmlu]` stands for lm-eval's tasks and no text."""
        return {"source": "none", "tasks": data} if isinstance(data, list) and data else data

    def mistakes(self) -> Iterator[Mistake]:
        ending = Path(self.source).suffix.lower()
        on_hub = ending not in FILE_ENDINGS and (
            _HUB.fullmatch(self.source) or Path(self.source).is_absolute()  # or a folder like one
        )
        for key, known in (("source", ("pydoc", "none")), ("held_out_source", ("pydoc",))):
            value = getattr(self, key)
            if value is None or value in known or Path(value).suffix.lower() in TEXT_FILES:
                continue
            if key == "source" and on_hub:
                continue
            hub = ", or a hub data set (OWNER/NAME)" if key == "source" else ""
            hint = near(value, known) or f"name a .txt or .jsonl file, or pydoc{hub}"
            yield Mistake((key,), f'"{value}" is no source of text', hint)
        if self.held_out_source is not None and not self.held_out_rows:
            yield Mistake(
                ("held_out_source",), "has no effect with held_out_rows: 0", "ask for some rows"
            )
        for key, default in (("subset", None), ("split", "train")):  # a run writes out defaults
            if getattr(self, key) != default and not on_hub:
                yield Mistake((key,), "has no effect without a hub data set", "remove it")
        yield from _encoding(self.encoding)
        sources = (self.source, self.held_out_source or "")
        files = [s for s in sources if Path(s).suffix.lower() in TEXT_FILES]
        if self.encoding is not None and not files:
            yield Mistake(("encoding",), "has no effect: no source is a file", "leave it out")
        if not self.tasks:
            for key in ("limit", "num_fewshot", "group"):
                if getattr(self, key) is not None:
                    yield Mistake((key,), "has no effect without tasks", "list lm-eval tasks")


def _encoding(name: str | None) -> Iterator[Mistake]:
    """What is wrong with an `encoding`."""
    try:
        "".encode(name or "utf-8")
    except (LookupError, ValueError):  # no codec, or one that is not of text
        what = f'"{brief(name)}" is no encoding of text that Python knows'
        hint = near(str(name), ("utf-8", "utf-16", "latin-1", "cp1252", "shift_jis"))
        yield Mistake(("encoding",), what, hint or "for example utf-8, utf-16 or cp1252")


def located(metric: str, folder: Path) -> str:
    """A task's `metric` whose module is a file in the folder, with that file's path in front.

    A module that is not there, and the name of a metric, are returned as they are.
    """
    module, colon, function = metric.rpartition(":")
    if not colon:
        return metric
    path = Path(module) if module.endswith(".py") else Path(*module.split(".")).with_suffix(".py")
    path = (folder / path.expanduser()).resolve()
    return f"{path}:{function}" if module.endswith(".py") or path.is_file() else metric


def is_task_file(task: str) -> bool:
    """Whether an entry of `general.tasks` is a task file of lm-eval's, not the name of a task."""
    return Path(task).suffix.lower() in (".yaml", ".yml")


FILE_TYPES = (".jsonl", ".csv", ".tsv", ".parquet")


SPLITS = ("train", "validation", "test")


class TaskConfig(Section):
    name: str = Field(pattern=r"^\w[\w .+-]*$", max_length=80, description="unique; names files")
    format: str = Field(
        "prompt", description="prompt: prompt and answer; chat: messages; labels: text and label"
    )
    dataset: str | None = Field(None, description="a hub data set: splits are its own")
    subset: str | None = Field(None, description="configuration of the hub data set")
    learn: str = Field("sft", description="sft: learn its answers; none: it is only scored")
    train: str | None = Field(
        None,
        description="file to learn from (.jsonl .csv .tsv .parquet), or a split; required but with "
        "learn: none",
    )
    validation: str | None = Field(None, description="file or split that methods may look at")
    test: str | None = Field(None, description="file or split that scores are measured on")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="our column name: yours, or a text with {yours} in it, where they differ",
    )
    group: str | None = Field(
        None, description="column whose value rows share that belong together, as of one text"
    )
    delimiter: str | None = Field(
        None, description="what separates cells (tab: a tab); else recognised by the header"
    )
    encoding: str | None = Field(
        None, description="of text files, such as cp1252; else UTF-8, or recognised"
    )
    instruction: str | None = Field(None, description="what to do, put before each text")
    labels: list[str] | None = Field(None, description="all allowed answers")
    label_names: dict[str, str] | None = Field(
        None,
        description="value in the data, or number of a hub data set's class: answer; what "
        "is a label already need not be listed",
    )
    metric: str | None = Field(None, description="how answers are scored")
    max_new_tokens: int = Field(32, gt=0, description="longest answer that is generated")
    max_train_rows: int | None = Field(None, gt=0, description="use this many rows at most")
    max_validation_rows: int | None = Field(None, gt=0, description="use this many rows at most")
    max_test_rows: int | None = Field(None, gt=0, description="use this many rows at most")
    validation_share: float = Field(
        0.1, ge=0, lt=1, description="share of train set aside where there is no validation"
    )
    test_share: float = Field(
        0.2, gt=0, lt=1, description="share of train set aside where there is no test"
    )
    train_on: Literal["last", "all"] = Field(
        "last",
        description="turns of the assistant in a conversation that are learned; all: each of them "
        "after what came before it; the last alone is scored",
    )
    _places: Callable[[str], str] | None = PrivateAttr(None)

    def place(self, key: str = "") -> str:
        """`file:line: key` of one of the task's keys, to begin a message about its data with."""
        return self._places(key) if self._places else f"{task_named(self.name)}: {key}".rstrip(": ")

    def column(self, ours: str) -> str:
        """The data's name for one of our columns, or a text with names in braces."""
        return self.columns.get(ours, ours)

    @property
    def separator(self) -> str | None:
        """The sign that `delimiter` names."""
        tab = self.delimiter in ("tab", "\\t")
        return "\t" if tab else self.delimiter

    def _file_keys(self) -> Iterator[Mistake]:
        """What is wrong with `delimiter` and `encoding`."""
        sign = self.separator
        if sign is not None and (len(sign) != 1 or sign in '"\r\n'):
            what = f"{brief(sign)!r} is no single sign that can separate cells"
            yield Mistake(("delimiter",), what, "write one of , ; | or tab")
        yield from _encoding(self.encoding)
        read = [getattr(self, split) for split in SPLITS if getattr(self, split) is not None]
        kinds = set() if self.dataset is not None else {Path(p).suffix.lower() for p in read}
        for key, of in (("delimiter", {".csv", ".tsv"}), ("encoding", {".csv", ".tsv", ".jsonl"})):
            if getattr(self, key) is not None and not kinds & of:
                what = f"has no effect: it is of files ending in {', '.join(sorted(of))}"
                yield Mistake((key,), what, "leave it out")

    def mistakes(self) -> Iterator[Mistake]:
        yield from self._file_keys()
        yield from self._bare()
        if self.dataset is None:
            for split in SPLITS:
                path = getattr(self, split)
                if path is not None and Path(path).suffix.lower() not in FILE_TYPES:
                    what = f'"{path}" is none of {" ".join(FILE_TYPES)}'
                    yield Mistake((split,), what, "for a hub data set, also write dataset: NAME")
            if self.subset is not None:
                yield Mistake(("subset",), "has no effect without dataset", "leave it out")
        if self.group is not None and (wrong := check_cell(self.group, one_column=False)):
            yield Mistake(("group",), *wrong)
        test, validation = self.test is None, self.validation is None
        if self.train is None:
            return
        if test * self.test_share + validation * self.validation_share >= 1:
            yield Mistake(("test_share",), "the shares set aside leave nothing to train on")

    def _bare(self) -> Iterator[Mistake]:
        """What is wrong without training rows, or with them where nothing is learned."""
        if self.train is None and self.learn != "none":
            what = "is required and missing"
            yield Mistake(("train",), what, "a task that is only scored says so: learn: none")
        elif self.train is None and self.test is None:
            yield Mistake(("test",), "is required and missing", "it is all that is scored")
        for key, default in (("max_train_rows", None), ("train_on", "last")):
            if self.train is None and getattr(self, key) != default:
                yield Mistake((key,), "has no effect without train", "leave it out")


class DataConfig(TaskConfig):
    """One labelled source that is cut into tasks by its classes: a task's keys, and these.

    With a named stream it says what is changed of it: the keys of `CHANGES` alone.
    """

    name: str = Field("data", description="what messages call it")
    format: str = Field(
        "classes",
        description="classes: text and label; relations: tokens, head, tail and label; or "
        "another kind's",
    )
    tasks: int | list[list[str]] | None = Field(
        None, description="how many tasks of about as many classes; or each one's classes"
    )
    by: str | None = Field(None, description="column that names each row's task, such as month")
    task: str | None = Field(
        None,
        pattern=r"^\w[\w .+-]*$",
        max_length=70,
        description="what its tasks are called, with a number behind where there are several; "
        "else task 1, task 2 and so on",
    )
    order: Literal["file", "alphabetical", "frequency"] = Field(
        "file", description="of the classes: as they first come, by name, the most frequent first"
    )
    order_seed: int | None = Field(None, ge=0, description="shuffle the classes by this seed")
    repeat: bool = Field(
        False, description="a class may come again in a later task, with other rows"
    )
    rows_per_class: int | None = Field(
        None, gt=0, description="train on so many rows of each class at most"
    )
    dev_from: Literal["train", "test"] = Field(
        "train",
        description="test: validation rows are the test rows, where none are given, as in SEQ*'s "
        "released code; what a method chooses by them is then not judged by others",
    )
    fix_label_names: bool = Field(
        True,
        description="false: topic3's classes have each other's names, as in SEQ*'s released data: "
        "heads do not mind, a decoder that writes names does",
    )
    no_class: str | None = Field(
        None, description="label of rows of no class: not learned, kept apart to be scored"
    )

    def task_name(self, number: int, count: int) -> str:
        """What the task of this number is called, of so many, where no column names them."""
        if self.task is None:
            return f"task {number}"
        return self.task if count == 1 else f"{self.task} {number}"

    def mistakes(self) -> Iterator[Mistake]:
        """Those of any source; the stream adds what depends on whether it has a name."""
        if self.task is not None and self.by is not None:
            yield Mistake(("task",), "has no effect with by", "leave one out")
        if isinstance(self.tasks, int) and self.tasks < 1:
            yield Mistake(("tasks",), "must be at least 1")
        for i, task in enumerate(self.tasks if isinstance(self.tasks, list) else ()):
            if not task:
                yield Mistake(("tasks", i), "is a task without classes", "take it out")
        if self.tasks == []:
            yield Mistake(("tasks",), "the list is empty", "write how many tasks there are")
        fixed = self.by is not None or isinstance(self.tasks, list)
        for key, default in (("order", "file"), ("order_seed", None)):
            if fixed and getattr(self, key) != default:
                why = "by" if self.by else "the classes listed"
                yield Mistake((key,), f"has no effect with {why}", "leave it out")
        if self.order != "file" and self.order_seed is not None:
            yield Mistake(("order",), "has no effect with order_seed", "leave one out")

    def mistakes_of_a_table(self) -> Iterator[Mistake]:
        """What is wrong where it is a source of its own."""
        yield from super().mistakes()
        if (self.tasks is None) == (self.by is None):
            what = "has both tasks and by" if self.by else "has neither tasks nor by"
            yield Mistake((), what, "write how many tasks there are, or the column that names them")
        if not self.fix_label_names:
            yield Mistake(("fix_label_names",), "is of the stream topic3", "leave it out")
        if self.dev_from == "test" and (self.validation is not None or self.test is None):
            what = "has no effect: there are no test rows of their own"
            if self.validation is not None:
                what = "has no effect with validation"
            yield Mistake(("dev_from",), what, "leave it out")
        if self.learn == "none":
            yield Mistake(("learn",), "is of single tasks", "list them under stream.tasks")
        if self.repeat and not (self.by or self.task or isinstance(self.tasks, list)):
            what = "has no effect where classes are dealt to tasks: each goes to one"
            yield Mistake(("repeat",), what, "list each task's classes, or name a column by")

    def mistakes_of_changes(self, stream: str) -> Iterator[Mistake]:
        """What is wrong where it changes a named stream."""
        for key, field in type(self).model_fields.items():
            if key not in CHANGES and getattr(self, key) != field.get_default(
                call_default_factory=True
            ):
                what = f"cannot be changed in the stream {stream}"
                yield Mistake((key,), what, f"what can be: {', '.join(CHANGES)}")


CHANGES = (
    "tasks", "order", "order_seed", "rows_per_class", "max_train_rows", "max_validation_rows",
    "max_test_rows", "validation_share", "dev_from", "fix_label_names",
)  # fmt: skip
"""Keys of `stream.data` that change a named stream of classes."""


class StreamConfig(Section):
    name: str | None = Field(None, description="a built-in stream; see perdure streams")
    folder: str | None = Field(
        None, description="where a built-in stream's files lie; else it comes from the hub"
    )
    data: DataConfig | None = Field(
        None,
        description="one source of labelled rows, cut into tasks by class; with name: what is "
        "changed of that stream",
    )
    scenario: Scenario | None = Field(
        None, description="which answers compete: those of a task, or all that were learned"
    )
    order: list[str] | None = Field(None, description="the tasks' names in the order to learn")
    tasks: list[TaskConfig] = Field(default_factory=list, description="your own tasks, in order")

    _places: Callable[[str], str] | None = PrivateAttr(None)

    def place(self, key: str) -> str:
        """`file:line: key` of one of the section's keys, to begin a message with."""
        return self._places(key) if self._places else f"stream.{key}"

    def mistakes(self) -> Iterator[Mistake]:
        given = [k for k in ("name", "tasks", "data") if getattr(self, k) not in (None, [])]
        if self.data is not None:
            own = self.data.mistakes_of_a_table()
            for wrong in own if self.name is None else self.data.mistakes_of_changes(self.name):
                yield Mistake(("data", *wrong.key), wrong.what, wrong.remedy)
        if len(given) != 1 and given != ["name", "data"]:
            what = f"has both {' and '.join(given)}" if given else "has neither name nor tasks"
            remedy = "name a built-in stream, list your own tasks, or give one table as data"
            yield Mistake((), what, remedy)
        if self.folder is not None and self.name is None:
            yield Mistake(("folder",), "has no effect without name", "leave it out")
        names = [task.name for task in self.tasks]
        for i, name in enumerate(names):
            if name in names[:i]:
                what = f'"{name}" is the name of stream.tasks.{names.index(name)} already'
                yield Mistake(("tasks", i, "name"), what, "give each task its own name")
        for i, name in enumerate(self.order or ()):
            if self.tasks and name not in names:
                hint = near(name, names) or f"the tasks are: {', '.join(names)}"
                yield Mistake(("order", i), f'no task is called "{name}"', hint)
            elif name in (self.order or [])[:i]:
                yield Mistake(("order", i), f'"{name}" comes twice')
