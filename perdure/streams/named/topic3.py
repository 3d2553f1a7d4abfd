"""topic3: topics of news (AG News), encyclopedia (DBpedia) and questions (Yahoo), 25 of them.

Rows and the order of the classes are drawn from a seed as SEQ*'s released code does it (arXiv
2312.07887): 3,000 training rows a class and 2,000 test rows, of AG News 1,900. Departs: it drew
validation rows from the test file, here they are the 300 training rows of a class that come next;
it permuted the classes but not their names; an empty cell became the text "nan".
"""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from perdure.streams.classes import dealt
from perdure.streams.named.base import ClassStream, Found, Source, joined
from perdure.streams.tables import Record, Table, shown

SEED = 1
TRAIN, VALIDATION, TEST = 3_000, 300, 2_000
TASKS = 5


class Set(NamedTuple):
    """One of the three.

    Attributes:
        folder: in the stream's folder; dataset: on the hub, with the columns of label and texts.
        names: our name of each of its classes, in the order of its file; None: it is left out.
    """

    folder: str
    dataset: str
    columns: tuple[str, ...]
    names: tuple[str | None, ...]


SETS = (
    Set(
        "agnews", "fancyzhx/ag_news", ("label", "text"),
        ("World", "Sports", "Business", "Science and Technology"),
    ),
    Set(
        "dbpedia", "fancyzhx/dbpedia_14", ("label", "title", "content"),
        (
            "Company", "Educational Institution", "Artist", "Athlete", "Office Holder",
            "Mean Of Transportation", "Building", "Natural Place", "Village", "Animal", "Plant",
            "Album", "Film", "Written Work",
        ),
    ),
    Set(
        "yahoo", "community-datasets/yahoo_answers_topics",
        ("topic", "question_title", "question_content", "best_answer"),
        (
            "Society and Culture", None, "Health", "Education and Reference",
            "Computers and Internet", None, None, "Entertainment and Music",
            "Family and Relationships", "Politics and Government",
        ),
    ),
)  # fmt: skip
NAMES = [name for one in SETS for name in one.names if name is not None]
ORDER = (
    10, 15, 4, 11, 14, 19, 13, 20, 2, 21, 5, 1, 7, 6, 12, 18, 0, 9, 16, 8, 22, 24, 3, 17, 23,
)  # fmt: skip
"""Where each class of `NAMES` comes, if the whole files are drawn from with seed 1."""


def drawn(
    records: Sequence[tuple[int, Record]], classes: int, generator: random.Random
) -> list[list[Record]]:
    """Each class's rows in a random order, as the released code draws them.

    Args: records: class number and row.
    """
    mixed = list(records)
    generator.shuffle(mixed)
    own: list[list[Record]] = [[] for _ in range(classes)]
    for number, record in mixed:
        own[number].append(record)
    for rows in own:
        generator.shuffle(rows)
    return own


def order_after(generator: random.Random, classes: int) -> list[int]:
    """Which class, by its number in the files, comes where: the last draw."""
    order = list(range(classes))
    generator.shuffle(order)
    place = [0] * classes
    for old, new in enumerate(order):
        place[new] = old
    return place


def _read(source: Source) -> Found | None:
    generator = random.Random(SEED if source.seed is None else source.seed)
    parts: dict[str, list[Table]] = {"train": [], "validation": [], "test": []}
    for one in SETS:
        names = [name for name in one.names if name is not None]
        files = {split: _rows(source, one, split) for split in ("train", "test")}
        train, test = files["train"], files["test"]
        if train is None or test is None:
            continue
        by_class = drawn(train, len(names), generator)
        drawn(test, len(names), generator)  # what the released code took for validation
        tested = drawn(test, len(names), generator)
        for split, rows in (
            ("train", [own[:TRAIN] for own in by_class]),
            ("validation", [own[TRAIN : TRAIN + VALIDATION] for own in by_class]),
            ("test", [own[:TEST] for own in tested]),
        ):
            some = [record for own in rows for record in own]
            parts[split].append(Table(one.folder, ("text", "label"), some))
    if any(len(tables) < len(SETS) for tables in parts.values()):
        return None
    order = [NAMES[number] for number in order_after(generator, len(NAMES))]
    tables = {split: joined("topic3", some) for split, some in parts.items()}
    if not source.fix_label_names:
        called = as_released(order)
        tables = {split: _renamed(table, called) for split, table in tables.items()}
        order = [called[name] for name in order]
    return Found(tables, dealt(order, TASKS))


def as_released(order: Sequence[str]) -> dict[str, str]:
    """What the released data call each class: the name of the class whose number in the files is
    the place where it comes. They number the classes anew, and leave the list of names as it was.

    Args: order: the classes as they come.
    """
    return dict(zip(order, NAMES, strict=True))


def _renamed(table: Table, names: Mapping[str, str]) -> Table:
    records = [Record(r.place, {**r.values, "label": names[r.values["label"]]})
               for r in table.records]  # fmt: skip
    return Table(table.name, table.columns, records)


def _rows(source: Source, one: Set, split: str) -> list[tuple[int, Record]] | None:
    """Rows of the classes that are kept, each with its class's number among those."""
    kept = [n for n, name in enumerate(one.names) if name is not None]
    found: list[tuple[int, Record]] = []
    if source.folder is None:
        table = source.hub(one.dataset, split, one.columns)
        if table is None:
            return None
        cells = [
            (r.place, getattr(r.values[one.columns[0]], "number", r.values[one.columns[0]]),
             [r.values[column] for column in one.columns[1:]])
            for r in table.records
        ]  # fmt: skip
    else:
        path = source.folder / one.folder / f"{split}.csv"
        cells = []
        with path.open(encoding="utf-8", newline="") as file:
            for n, row in enumerate(csv.reader(file), 1):
                if not row or not row[0].isdecimal() or not 1 <= int(row[0]) <= len(one.names):
                    what = f"row {n}: begins with no number of a class, 1 to {len(one.names)}"
                    source.wrong(f"{one.folder}/{split}.csv", what)
                    return None
                cells.append((f"{shown(path)}: row {n}", int(row[0]) - 1, row[1:]))
    for place, number, texts in cells:
        if number in kept:
            values = {"text": _text(texts), "label": one.names[number]}
            found.append((kept.index(number), Record(place, values)))
    return found


def _text(cells: Sequence[Any]) -> str:
    """Title and body in one line; the files write a line end as \\n."""
    return " ".join(str(cell).replace("\\n", " ") for cell in cells if cell).strip()


STREAM = ClassStream(
    name="topic3",
    about="topics of news, encyclopedia and questions, 5 tasks of 5",
    licence="DBpedia: CC BY-SA 3.0; AG News: for research, not commercial; Yahoo: none is known",
    citation="Zhang et al. 2015, Character-level Convolutional Networks for Text "
    "Classification (NeurIPS), arXiv 1509.01626",
    home="the sets of Zhang et al. 2015, unpacked into agnews, dbpedia and yahoo",
    order="SEQ*'s (arXiv 2312.07887) for seed 1; data: {order_seed: N} draws rows and order anew",
    classes=dealt([NAMES[old] for old in (ORDER.index(new) for new in range(len(ORDER)))], TASKS),
    rows=(75_000, 7_500, 49_600),
    files=tuple(f"{one.folder}/{split}.csv" for one in SETS for split in ("train", "test")),
    hub=tuple(one.dataset for one in SETS),
    read=_read,
    seeded=True,
    scrambled=True,
)
