"""Read tables: local .jsonl, .csv, .tsv and .parquet files, and data sets of the hub.

A table is records with the place each came from, so that every later complaint can name file and
line. Nothing raises here: a mistake is noted in `Mistakes` and reading goes on, since people fix
five mistakes as fast as one.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from perdure.errors import brief
from perdure.files import cache_folder, read_lines
from perdure.paths import no_file
from perdure.recipe.mistakes import near
from perdure.seals import is_whole, write_sealed
from perdure.streams.cells import ClassName, one_spaced
from perdure.streams.hub import asked_once
from perdure.streams.tables import (
    Mistakes,
    Record,
    Table,
    arrow_cells,
    choices,
    listed,
    shown,
)
from perdure.streams.text_files import DecodingError, decode, find_delimiter, told

logger = logging.getLogger("perdure")
DRAWN_FROM = 10_000
"""Rows of a streamed data set that texts are drawn from at a time."""
ROWS_AT_A_TIME = 10_000


class Reading(NamedTuple):
    """How a file is read.

    `delimiter` and `encoding` are as the user names them, None where they are to be recognised;
    `needed` are columns that a right delimiter shows in the header. `whose` is the section that
    has these keys, for a message; "" where the user has none.
    """

    delimiter: str | None = None
    encoding: str | None = None
    needed: tuple[str, ...] = ()
    whose: str = "the task's"


class Reader:
    """Reads each source once; paths are relative to `folder`, that of the recipe."""

    def __init__(self, folder: Path, mistakes: Mistakes) -> None:
        self.folder = folder
        self.mistakes = mistakes
        self._files: dict[tuple[Path, Reading], Table | None] = {}
        self._told: set[str] = set()
        self._unreachable = ""  # the hub's answer; retrying takes half a minute each time

    def file(self, path: str, how: Reading = Reading()) -> Table | None:
        """Return the table in a local file, None if a mistake was noted."""
        key = (self.folder / path, how)
        if key not in self._files:
            self._files[key] = self._read(*key)
        return self._files[key]

    def text(self, path: str, how: Reading = Reading()) -> str | None:
        """Return a text file's content, None if a mistake was noted."""
        found = self._decoded(self.folder / path, how)
        if found is None:
            return None
        self._tell(shown(self.folder / path), how, found[1])
        return found[0]

    def _read(self, path: Path, how: Reading) -> Table | None:
        read = FORMATS.get(path.suffix.lower())
        name = shown(path)
        if not self._is_file(path):
            return None
        if read is None:
            what = f'{name}: files ending in "{path.suffix}" are not read'
            self.mistakes.add(name, what, choices(path.suffix, FORMATS, "endings that are"))
            return None
        before = len(self.mistakes)
        records = list(read(self, path, how))
        if len(self.mistakes) > before:
            return None
        if not records:
            self.mistakes.add(name, f"{name}: empty: no rows", "one row for each example is needed")
            return None
        columns = dict.fromkeys(key for record in records for key in record.values)
        return Table(name, tuple(columns), records)

    def _tell(self, name: str, how: Reading, encoding: str, delimiter: str = "") -> None:
        """Say once what was recognised in a file."""
        if (line := told(name, encoding, delimiter, whose=how.whose)) and line not in self._told:
            self._told.add(line)
            logger.warning("%s", line)

    def _is_file(self, path: Path) -> bool:
        what = no_file(path)
        if not what:
            return True
        name = shown(path)
        here = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        remedy = near(path.name, here) or "paths are relative to the recipe's folder"
        self.mistakes.add(name, f"{name}: {what}", remedy)
        return False

    def _decoded(self, path: Path, how: Reading) -> tuple[str, str] | None:
        """Return a text file's content without a byte order mark, and what was recognised."""
        if not self._is_file(path):
            return None
        name = shown(path)
        try:
            return decode(path.read_bytes(), how.encoding, how.whose)
        except DecodingError as error:
            self.mistakes.add(name, f"{name}:{error.line}: {error}", error.remedy)
        except OSError as error:
            self.mistakes.add(name, f"{name}: cannot be read: {error.strerror}")
        return None

    def _json_lines(self, path: Path, how: Reading) -> Iterator[Record]:
        name = shown(path)
        text, encoding = self._decoded(path, how) or ("", "")
        self._tell(name, how, encoding)
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            place = f"{name}:{number}"
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                at = f" (column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
                why = getattr(error, "msg", str(error))
                self.mistakes.add(
                    name, f"{place}: broken JSON: {why}{at}", "each line is one JSON object"
                )
                if number == 1 and line.strip() in ("[", "{"):
                    return  # one value over many lines: each of them would be a mistake
                continue
            if isinstance(values, dict) and _half_inside(line, values):
                self.mistakes.add(name, f"{place}: has half a character (a lone surrogate)")
            elif isinstance(values, dict):
                yield Record(place, values)
            else:
                what = f"{place}: not a JSON object but a {_kind(values)}"
                self.mistakes.add(name, what, 'each line is one object, {"column": "cell", ...}')

    def _delimited(self, path: Path, how: Reading, usual: str) -> Iterator[Record]:
        name = shown(path)
        if (decoded := self._decoded(path, how)) is None:
            return
        text, encoding = decoded
        found = find_delimiter(text, usual, how.needed)
        delimiter = how.delimiter or found.delimiter
        self._tell(name, how, encoding, "" if how.delimiter or delimiter == usual else delimiter)
        lines = csv.reader(
            io.StringIO(text[found.begins :], newline=""), delimiter=delimiter, strict=True
        )
        header: list[str] | None = None
        first = 2 if found.begins else 1
        while True:
            start = lines.line_num + first  # a quoted cell may go over many lines: name the first
            try:
                cells = next(lines)
            except StopIteration:
                return
            except csv.Error as error:
                what = f"{name}:{start}: broken {path.suffix[1:].upper()}: {error}"
                self.mistakes.add(
                    name, what, 'a quote inside a quoted cell is written twice: "say ""hi"""'
                )
                return  # where the next row begins cannot be known
            if not cells:
                continue
            if header is None:
                header = cells
                if twice := sorted({c for c in cells if c.strip() and cells.count(c) > 1}):
                    what = f"{name}:{start}: column twice in the header: {listed(twice)}"
                    self.mistakes.add(name, what, "rename one of them")
            elif len(cells) == len(header) or not any(map(str.strip, cells)):
                # Cells below no name are left out: spreadsheets write whole empty columns.
                there = zip(header, cells + [""] * len(header), strict=False)
                yield Record(f"{name}:{start}", {key: cell for key, cell in there if key.strip()})
            else:
                what = f"{name}:{start}: {len(cells)} cells, but the header has {len(header)}"
                seen = "a tab" if delimiter == "\t" else f'"{delimiter}"'
                remedy = [f"put cells with {seen} in quotes"]
                if len(cells) < len(header):
                    remedy = [f"add what is missing: a row has {len(header) - 1} times {seen}"]
                if len(header) == 1:
                    remedy = [*remedy, "or name what separates the cells: delimiter: ;"]
                self.mistakes.add(name, what, remedy)

    def _parquet(self, path: Path, how: Reading) -> Iterator[Record]:
        import pyarrow
        from pyarrow import parquet

        name = shown(path)
        try:
            table = parquet.ParquetFile(path).read()
        except (pyarrow.ArrowException, OSError) as error:
            why = str(error).splitlines()[0]
            remedy = "write it again, or copy it again from where it came"
            self.mistakes.add(name, f"{name}: not a readable Parquet file: {why}", remedy)
            return
        columns = table.column_names
        if twice := sorted({column for column in columns if columns.count(column) > 1}):
            what = f"{name}: column twice: {listed(twice)}"
            self.mistakes.add(name, what, "rename one of them")
            return
        cells = [
            arrow_cells(name, *pair, self.mistakes)
            for pair in zip(columns, table.columns, strict=True)
        ]
        for number, values in enumerate(zip(*cells, strict=True), start=1):
            yield Record(f"{name}: row {number}", dict(zip(columns, values, strict=True)))

    def hub(
        self,
        dataset: str,
        subset: str | None,
        split: str,
        place: str,
        needed: Iterable[str],
        most: int | None = None,
        seed: int = 0,
        revision: str | None = None,
        instead: str = "`dataset`: train: FILE.jsonl",
    ) -> Table | None:
        """Return one split of a hub data set, or of a local folder that `datasets` can load.

        Classes' numbers are replaced by their names, which know the numbers. None if a mistake was
        noted; its message begins with `place`, where the recipe asks for the split. Of the columns
        only the needed ones are read, as far as there are any; of more than `most` rows so many,
        drawn with the seed.

        Args:
            revision: a branch of the data set, where that is not its main one.
            instead: "X: FILE" for the remedy to give a file instead of X.
        """
        import datasets

        where, name = self._where(dataset), _hub_name(dataset, subset)
        far = where == dataset
        with self._hub_mistakes(name, split, place, instead, far):
            self._ask_hub()
            options = {} if revision is None else {"revision": revision}
            data = datasets.load_dataset(where, subset, split=split, **options)
            read = [name for name in data.column_names if name in needed] or data.column_names
            columns, data = tuple(data.column_names), data.select_columns(read)
            numbers: Sequence[int] = range(len(data))
            if most is not None and most < len(data):
                numbers = sorted(random.Random(seed).sample(numbers, most))
                data = data.select(numbers)
            # By whole Arrow tables: far quicker than row by row where a set has a million rows.
            tables = data.with_format("arrow").iter(ROWS_AT_A_TIME)
            rows = (row for table in tables for row in table.to_pylist())
            records = [
                Record(f"{name}, {split}: row {n + 1}", row)
                for n, row in zip(numbers, rows, strict=True)
            ]
            for column, feature in data.features.items():
                if isinstance(feature, datasets.ClassLabel):
                    classes = tuple(feature.names)
                    for record in records:
                        index = record.values[column]
                        if index is not None and index >= 0:  # -1 stands for "no label"
                            record.values[column] = ClassName(classes, index)
            if records:
                return Table(f"{name}, {split}", columns, records)
            self.mistakes.add(name, f"{place}: {name}, split {split}: empty: no rows")
        return None

    def hub_texts(
        self, dataset: str, subset: str | None, split: str, column: str, count: int, seed: int
    ) -> list[str] | None:
        """Return `count` different texts of a hub data set (or folder), drawn as it streams.

        The set is shuffled by its files and by `DRAWN_FROM` rows at a time; more texts begin with
        those of fewer. What was drawn from the hub is kept in `cache_folder()`, so that a run finds
        the same texts when it goes on. None if a mistake was noted.
        """
        import datasets

        where, name = self._where(dataset), _hub_name(dataset, subset)
        about = json.dumps([dataset, subset, split, column, count, seed])
        kept = cache_folder() / f"texts/{hashlib.sha256(about.encode()).hexdigest()[:12]}.jsonl"
        if where == dataset and kept.exists():
            if is_whole(kept):
                return [line["text"] for line in read_lines(kept)]
            logger.warning("%s: damaged, so it is made again", kept)
        found: dict[str, str] = {}
        far = where == dataset
        with self._hub_mistakes(name, split, "general.source", "a hub data set: FILE.jsonl", far):
            self._ask_hub()
            data = datasets.load_dataset(where, subset, split=split, streaming=True)
            for row in data.shuffle(seed=seed, buffer_size=DRAWN_FROM) if count else ():
                if column not in row:
                    what = f'general.column: {name} has no column "{column}"'
                    self.mistakes.add(name, what, choices(column, row, "columns there are"))
                    return None
                if text := str(row[column] or "").strip():
                    found.setdefault(one_spaced(text), text)
                if len(found) == count:
                    break
            if where == dataset:
                kept.parent.mkdir(parents=True, exist_ok=True)
                lines = (json.dumps({"text": text}) + "\n" for text in found.values())
                write_sealed(kept, "".join(lines))
            return list(found.values())
        return None

    def _where(self, dataset: str) -> str:
        local = self.folder / dataset
        return str(local) if local.is_dir() else dataset

    def _ask_hub(self) -> None:
        if self._unreachable:
            raise ConnectionError(self._unreachable)

    @contextmanager
    def _hub_mistakes(
        self, name: str, split: str, place: str, instead: str, far: bool
    ) -> Iterator[None]:
        """Note what `datasets` raises inside the block, which is left then.

        Args:
            instead: "X: FILE" for the remedy to give a file instead of X.
            far: the set is the hub's, and no folder here.
        """
        import datasets

        try:
            with asked_once() if far else nullcontext():
                yield
        except ConnectionError as error:
            self._unreachable = brief(str(error).splitlines()[0], 300)
            self._hub_down(name, place, instead)
        except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
            remedy = "`train`, `validation` and `test` are names of its splits"
            if "scripts are no longer supported" in str(error):
                remedy = "take a copy of it as Parquet, which the hub has of many sets"
            elif isinstance(error, datasets.exceptions.DatasetNotFoundError):
                remedy = "check the name; for a private one, log in: hf auth login"
            why = brief(str(error).splitlines()[0] if str(error) else type(error).__name__, 300)
            self.mistakes.add(name, f"{place}: {name}, split {split}: {why}", [remedy])

    def _hub_down(self, name: str, place: str, instead: str) -> None:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        self.mistakes.add(
            name,
            f"{place}: {name}: the hub cannot be reached: {self._unreachable}",
            [
                "HF_HUB_OFFLINE is set: unset it to allow the download"
                if offline
                else "check the network and HF_ENDPOINT; what is in the cache needs neither",
                f"or give local files instead of {instead}",
            ],
        )


def _hub_name(dataset: str, subset: str | None) -> str:
    return f'data set "{dataset}"' + (f", subset {subset}" if subset else "")


FORMATS: dict[str, Callable[[Reader, Path, Reading], Iterator[Record]]] = {
    ".jsonl": Reader._json_lines,
    ".csv": lambda reader, path, how: reader._delimited(path, how, ","),
    ".tsv": lambda reader, path, how: reader._delimited(path, how, "\t"),
    ".parquet": Reader._parquet,
}


def _half_inside(line: str, values: dict[str, Any]) -> bool:
    """Whether a value with parts has half a character in it; of texts their cell says it."""
    if "\\ud" not in line.lower():
        return False
    parts = [value for value in values.values() if isinstance(value, dict | list)]
    try:
        json.dumps([*parts, *values], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _kind(value: object) -> str:
    names = {list: "list", str: "string", type(None): "null", bool: "boolean"}
    return names.get(type(value), "number")
