"""FewRel: relations between two entities in sentences of Wikipedia, 80 of them.

The paper's order (arXiv 2312.07887) was not seen: here it is that of the files, train_wiki.json
before val_wiki.json. Where only val_wiki.json is there the stream has its 16 relations, 8 tasks of
2. Of each relation's rows three fifths are learned, and a fifth each is for validation and test,
420, 140 and 140 of 700, as is usual; a fixed shuffle says which.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from perdure.streams.classes import dealt
from perdure.streams.named.base import ClassStream, Found, Source, joined
from perdure.streams.rows import shuffle_key
from perdure.streams.tables import Record, Table

TASKS = 8
FILES = ("train_wiki.json", "val_wiki.json")
NAMES = "pid2name.json"
HUB, PARQUET = "thunlp/few_rel", "refs/convert/parquet"
"""The data set needs code to be run; that branch has its rows as files."""


def _read(source: Source) -> Found | None:
    table = _of_hub(source) if source.folder is None else _of_folder(source)
    if table is None:
        return None
    by_label: dict[str, list[Record]] = {}
    for record in table.records:
        by_label.setdefault(record.values["label"], []).append(record)
    parts: dict[str, list[Record]] = {"train": [], "validation": [], "test": []}
    for records in by_label.values():
        order = sorted(records, key=lambda r: shuffle_key(0, " ".join(r.values["tokens"])))
        one, other = len(order) * 3 // 5, len(order) * 4 // 5
        for split, some in zip(parts, (order[:one], order[one:other], order[other:]), strict=True):
            parts[split] += some
    tables = {split: Table(table.name, table.columns, rows) for split, rows in parts.items()}
    return Found(tables, dealt(list(by_label), TASKS))


def _of_folder(source: Source) -> Table | None:
    assert source.folder is not None
    names, tables = source.json(NAMES), []
    for file in FILES:
        if not (source.folder / file).is_file():
            continue  # val_wiki.json is there: it is asked for
        data = source.json(file)
        if not isinstance(data, dict) or not isinstance(names, dict):
            if data is not None and names is not None:
                source.wrong(file, "is no object of relations, each a list of rows")
            return None
        called = _called({pid: names[pid][0] for pid in data if names.get(pid)})
        rows: list[tuple[str, dict[str, Any]]] = []
        for pid, some in data.items():
            for n, row in enumerate(some, 1):
                if not isinstance(row, dict) or not {"tokens", "h", "t"} <= row.keys():
                    source.wrong(file, f"{pid}, row {n}: has no tokens, h and t")
                    return None
                cells = {"tokens": row["tokens"], "head": row["h"], "tail": row["t"]}
                rows.append((f"{pid}, row {n}", {**cells, "label": called.get(pid, pid)}))
        tables.append(source.table(file, rows))
    return joined("FewRel", tables)


def _of_hub(source: Source) -> Table | None:
    columns = ("names", "tokens", "head", "tail")
    tables = [source.hub(HUB, s, columns, revision=PARQUET) for s in ("train_wiki", "val_wiki")]
    found = []
    for table in tables:
        if table is None:
            return None
        records = [
            Record(r.place, {**r.values, "label": r.values["names"][0]}) for r in table.records
        ]
        found.append(Table(table.name, (*table.columns, "label"), records))
    return joined(HUB, found)


def _called(names: dict[str, str]) -> dict[str, str]:
    """Each relation's name, with its number where two have the same."""
    count = Counter(names.values())
    return {pid: f"{name} ({pid})" if count[name] > 1 else name for pid, name in names.items()}


STREAM = ClassStream(
    name="fewrel",
    about="relations in sentences of Wikipedia, 8 tasks of 10 (of 2 with val_wiki.json alone)",
    licence="MIT",
    citation="Han et al. 2018, FewRel: A Large-Scale Supervised Few-Shot Relation "
    "Classification Dataset (EMNLP)",
    home="github.com/thunlp/FewRel (data)",
    order="the stream's own, that of the files: SEQ*'s (arXiv 2312.07887) was not seen",
    classes=(TASKS, 10),
    rows=(33_600, 11_200, 11_200),
    files=("val_wiki.json", NAMES),
    more=("train_wiki.json",),
    hub=(HUB,),
    read=_read,
    format="relations",
    remark="420, 140 and 140 of a relation's 700 rows are for training, validation and test",
)
