"""The recipe's sections about data: the tasks and their stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator

from perdure.errors import brief, task_named
from perdure.paths import NoPathError, settled
from perdure.recipe.columns import check_cell
from perdure.recipe.general import OTHER_ENDINGS, encoding_mistakes
from perdure.recipe.mistakes import QUOTE, Mistake, near, show
from perdure.recipe.section import Section
from perdure.recipe.until import UntilConfig

Scenario = Literal["task-incremental", "domain-incremental", "class-incremental"]


def located(name: str, folder: Path) -> str:
    """A user's own function whose module is a file in the folder, with that file's path in front.

    A module that is not there, and the name of a metric or reward, are returned as they are.

    Args: name: a task's `metric`, or a reward.
    """  # fmt: skip
    module, colon, function = name.rpartition(":")
    if not colon:
        return name
    file = module if module.endswith(".py") else f"{module.replace('.', '/')}.py"
    try:
        path = settled(file, folder)
    except NoPathError:
        return name
    return f"{path}:{function}" if module.endswith(".py") or path.is_file() else name


def short_name(name: str) -> str:
    """A function's name as it is shown: without the folder of a user's own file."""
    place, _, function = name.rpartition(":")
    return f"{Path(place).stem}:{function}" if place.endswith(".py") else name


FILE_TYPES = (".jsonl", ".csv", ".tsv", ".parquet")


SPLITS = ("train", "validation", "test")
Source = str | dict[str, str]
"""A file, a split of a data set, or a text file for each of our columns, aligned line by line."""


class TaskConfig(Section):
    name: str = Field(pattern=r"^\w[\w .+-]*$", max_length=80, description="unique; names files")
    format: str = Field(
        "prompt",
        description="prompt: prompt and answer; chat: messages; labels: text and label; "
        "translation: source and target",
    )
    dataset: str | None = Field(None, description="a hub data set: splits are its own")
    subset: str | None = Field(None, description="configuration of the hub data set")
    learn: str = Field(
        "sft",
        description="sft: learn its answers; rl: from rewards of what the model writes (see rl); "
        "none: it is only scored",
    )
    until: UntilConfig | None = Field(
        None, description="end its training once sampled answers are so good"
    )
    train: Source | None = Field(
        None,
        description="file to learn from (.jsonl .csv .tsv .parquet), or a split; or a text file "
        "for each column, aligned line by line; required but with learn: none",
    )
    validation: Source | None = Field(
        None, description="file, files or split that methods may look at"
    )
    test: Source | None = Field(
        None, description="file, files or split that scores are measured on"
    )
    test_of: str | None = Field(
        None, description="another task, whose test rows are scored once for both"
    )
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
    instruction: str | None = Field(
        None,
        description="what to do, put before each text; of translation in place of its first line, "
        "or, with {source} in it, the whole prompt",
    )
    direction: str | None = Field(
        None,
        description="of translation, such as en-de; else columns source_lang and target_lang say",
    )
    answer: Literal["plain", "tagged"] = Field(
        "plain",
        description="of translation: the text itself, or <think>reasoning</think> and then "
        "<answer>text</answer>, of which the text is scored",
    )
    prefill: str = Field(
        "", description="of translation: what the prompt ends in, such as <think>; not learned"
    )
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

    def read_from(self, split: str) -> str:
        """What a split is read from, in words: a file, several, or a split of a data set."""
        source = getattr(self, split)
        return ", ".join(source.values()) if isinstance(source, dict) else source or ""

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
        yield from encoding_mistakes(self.encoding)
        read = [getattr(self, split) for split in SPLITS if getattr(self, split) is not None]
        one = [source for source in read if isinstance(source, str)]
        kinds = set() if self.dataset is not None else {Path(p).suffix.lower() for p in one}
        tables = {".csv", ".tsv"}
        for key, of in (("delimiter", tables), ("encoding", tables | {".jsonl"})):
            if key == "encoding" and len(one) < len(read):
                continue
            if getattr(self, key) is not None and not kinds & of:
                what = f"has no effect: it is of files ending in {', '.join(sorted(of))}"
                yield Mistake((key,), what, "leave it out")

    def mistakes(self) -> Iterator[Mistake]:
        yield from self._file_keys()
        yield from self._bare()
        yield from self._sources()
        if self.dataset is None and self.subset is not None:
            yield Mistake(("subset",), "has no effect without dataset", "leave it out")
        if self.group is not None and (wrong := check_cell(self.group, one_column=False)):
            yield Mistake(("group",), *wrong)
        yield from self._shared_test()
        test = self.test is None and self.test_of is None
        validation = self.validation is None
        if self.train is None:
            return
        if test * self.test_share + validation * self.validation_share >= 1:
            yield Mistake(("test_share",), "the shares set aside leave nothing to train on")

    def _sources(self) -> Iterator[Mistake]:
        """What is wrong with the names of files and splits."""
        for split in SPLITS:
            source = getattr(self, split)
            if isinstance(source, dict) and self.dataset is not None:
                yield Mistake((split,), "is files, and dataset is set", "name one of its splits")
            elif isinstance(source, dict) and len(source) < 2:
                what = "files that are aligned line by line are at least two"
                yield Mistake((split,), what, "write {source: FILE, target: FILE}")
            elif source is None or isinstance(source, dict) or self.dataset is not None:
                continue
            elif Path(source).suffix.lower() not in FILE_TYPES:
                what = f'"{source}" is none of {" ".join(FILE_TYPES)}'
                hub = "for a hub data set, also write dataset: NAME"
                ending = Path(source).suffix.lower()
                if ending == ".txt":  # a line a row, beside another file's
                    hub = f"files aligned line by line: {split}: {{source: FILE, target: FILE}}"
                hub = OTHER_ENDINGS.get(ending, hub)
                yield Mistake((split,), what, hub)

    def _shared_test(self) -> Iterator[Mistake]:
        """Keys of test rows that have no effect where those of another task are scored."""
        for key, default in (("test", None), ("test_share", 0.2), ("max_test_rows", None)):
            if self.test_of is not None and getattr(self, key) != default:
                what = f"has no effect: the test rows are those of {self.test_of}"
                yield Mistake((key,), what, "leave it out, or leave test_of out")

    def _bare(self) -> Iterator[Mistake]:
        """What is wrong without training rows, or with them where nothing is learned."""
        if self.train is None and self.learn != "none":
            what = "is required and missing"
            yield Mistake(("train",), what, "a task that is only scored says so: learn: none")
        elif self.train is None and self.test is None and self.test_of is None:
            yield Mistake(("test",), "is required and missing", "it is all that is scored")
        if self.train is not None and self.learn == "none" and self.until is not None:
            yield Mistake(("until",), "has no effect with learn: none", "leave it out")
        for key, default in (("max_train_rows", None), ("train_on", "last"), ("until", None)):
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

    @field_validator("tasks", mode="before")
    @classmethod
    def _names_are_text(cls, tasks: Any) -> Any:
        """Of a union of types pydantic tells what is wrong for the first one."""
        for i, task in enumerate(tasks if isinstance(tasks, list) else ()):
            for j, name in enumerate(task if isinstance(task, list) else ()):
                if isinstance(name, bool) or not isinstance(name, str | int | float):
                    raise ValueError(f"at {i}.{j}: {show(name)} is no text: {QUOTE}")
        return tasks

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
        if self.test_of is not None:
            yield Mistake(("test_of",), "is of single tasks", "list them under stream.tasks")
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
