"""What a named stream of classes is, and where its rows are read from: a folder, or the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from perdure.recipe.data import DataConfig, StreamConfig
from perdure.recipe.mistakes import near
from perdure.streams.sources import Reader
from perdure.streams.tables import Record, Table, shown


class Found(NamedTuple):
    """What a named stream's reader gives.

    Attributes:
        tables: "train" and, where the source has them, "validation" and "test".
        tasks: each task's classes, in the order in which they are learned.
        columns: our column names in the tables, where they differ.
    """

    tables: Mapping[str, Table]
    tasks: Sequence[Sequence[str]]
    columns: Mapping[str, str] = {}


@dataclass(frozen=True)
class ClassStream:
    """A named stream of classes.

    Attributes:
        about: one line for people; home: where it comes from; citation: the paper to name.
        order: where the order of the classes comes from.
        classes: the tasks' classes, or their number a task where the data names them.
        rows: training, validation and test rows, as they are without `stream.data`; None: as many
            as the data has.
        files: what `stream.folder` must hold; more: what is read there too, if it is there.
        hub: data sets of the hub that are read without a folder; () where it is on none.
        read: gives the rows; None where a mistake was noted.
        no_class: the label of its rows of no class.
        validated: whether it has validation rows of its own.
        seeded: whether its reader draws by the recipe's `order_seed` itself.
        scrambled: whether SEQ*'s released data have its names at other classes (`fix_label_names`).
        remark: what else is to be known.
    """

    name: str
    about: str
    licence: str
    citation: str
    home: str
    order: str
    classes: Sequence[Sequence[str]] | tuple[int, int]
    rows: tuple[int | None, int | None, int | None]
    files: tuple[str, ...]
    hub: tuple[str, ...]
    read: Callable[[Source], Found | None]
    format: str = "classes"
    more: tuple[str, ...] = ()
    no_class: str | None = None
    validated: bool = True
    seeded: bool = False
    scrambled: bool = False
    remark: str = ""

    @property
    def tasks(self) -> list[tuple[str, ...]]:
        """Each task's classes; [] where the data names them."""
        return [tuple(task) for task in self.classes if not isinstance(task, int)]

    @property
    def counts(self) -> tuple[int, int]:
        """How many tasks and classes there are."""
        if named := self.tasks:
            return len(named), sum(map(len, named))
        tasks, each = self.classes
        assert isinstance(tasks, int)
        assert isinstance(each, int)
        return tasks, tasks * each


class Source:
    """A named stream's folder or the hub; mistakes are noted in the reader's."""

    def __init__(self, stream: ClassStream, config: StreamConfig, reader: Reader) -> None:
        self.stream, self.config, self.reader = stream, config, reader
        self.folder = None if config.folder is None else reader.folder / config.folder
        self.seed = None if config.data is None else config.data.order_seed
        self.fix_label_names = config.data is None or config.data.fix_label_names

    def found(self) -> Found | None:
        """The stream's rows; None where a mistake was noted."""
        before = len(self.reader.mistakes)
        if self.folder is not None and not self._has_files(self.folder):
            return None
        found = self.stream.read(self)
        return None if len(self.reader.mistakes) > before else found

    def settings(self, found: Found) -> DataConfig:
        """The section of a table that stands for the stream, with what the recipe changes."""
        changes = self.config.data or DataConfig.model_construct()
        config = changes.model_copy(
            update={
                "name": self.stream.name,
                "format": self.stream.format,
                "train": f"{self.stream.name}, {self.stream.home}",  # tasks name it as source
                "validation": "" if "validation" in found.tables else None,
                "test": "" if "test" in found.tables else None,
                "columns": dict(found.columns),
                "no_class": self.stream.no_class,
                "order_seed": None if self.stream.seeded else changes.order_seed,
            }
        )

        def place(key: str) -> str:
            data = self.config.data
            said = data is not None and key.partition(".")[0] in data.model_fields_set
            return data.place(key) if said and data is not None else f"{self.stream.name}: {key}"

        config._places = place
        return config

    def _has_files(self, folder: Path) -> bool:
        name, where = self.stream.name, shown(folder)
        place = self.config.place("folder")
        if not folder.is_dir():
            self.reader.mistakes.add(name, f"{place}: no such folder: {where}", self._remedy())
            return False
        missing = [file for file in self.stream.files if not (folder / file).is_file()]
        for file in missing:
            here = sorted(str(p.relative_to(folder)) for p in folder.glob("**/*") if p.is_file())
            hint = near(file, here[:1000])
            what = f"{place}: {where} has no file {file}"
            self.reader.mistakes.add(name, what, [*filter(None, [hint]), *self._remedy()])
        return not missing

    def _remedy(self) -> list[str]:
        files = f"{self.stream.name} reads {', '.join(self.stream.files)} of {self.stream.home}"
        hub = ["or leave folder out: it is read from the hub"] if self.stream.hub else []
        return [files, *hub]

    def json(self, file: str) -> Any:
        """What a JSON file of the folder holds; None where a mistake was noted."""
        assert self.folder is not None
        path, mistakes = self.folder / file, self.reader.mistakes
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            what = f"{shown(path)}: is no readable JSON: {str(error).splitlines()[0]}"
            mistakes.add(shown(path), what, f"get it anew from {self.stream.home}")
            return None

    def wrong(self, file: str, what: str) -> None:
        """Note that a file does not hold what it should."""
        assert self.folder is not None
        name = shown(self.folder / file)
        remedy = f"get it anew from {self.stream.home}"
        self.reader.mistakes.add(name, f"{name}: {what}", remedy)

    def table(self, file: str, rows: Iterable[tuple[str, dict[str, Any]]]) -> Table:
        """A table of a file's rows, each with its place in the file."""
        assert self.folder is not None
        name = shown(self.folder / file)
        records = [Record(f"{name}: {place}", values) for place, values in rows]
        columns = dict.fromkeys(key for record in records for key in record.values)
        return Table(name, tuple(columns), records)

    def hub(
        self,
        dataset: str,
        split: str,
        columns: Iterable[str],
        subset: str | None = None,
        revision: str | None = None,
    ) -> Table | None:
        """A split of a data set of the hub; None where a mistake was noted."""
        place = self.config.place("name")
        files = f"the hub's: stream.folder: FOLDER with {', '.join(self.stream.files)}"
        asked = (dataset, subset, split, place, tuple(columns))
        return self.reader.hub(*asked, revision=revision, instead=files)


def joined(name: str, tables: Iterable[Table]) -> Table:
    """Several tables as one."""
    every = list(tables)
    columns = dict.fromkeys(column for table in every for column in table.columns)
    return Table(name, tuple(columns), [record for table in every for record in table.records])


def tasks_of(listed: str) -> list[tuple[str, ...]]:
    """Tasks from names of classes between blanks, tasks between bars."""
    return [tuple(task.split()) for task in listed.split("|")]
