"""TACRED: relations of persons and organizations in news, 40 of its 41.

The paper's order (arXiv 2312.07887) is kept; which rows it drew was not seen. Here at most 320
training and 40 test rows a relation are taken of the corpus's own splits, which is about as many
as the paper's counts. `no_relation` and per:country_of_death are left out, as in the paper.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from perdure.streams.named.base import ClassStream, Found, Source, tasks_of
from perdure.streams.rows import shuffle_key

CLASSES = """
    org:founded_by per:employee_of org:alternate_names per:cities_of_residence per:children
    |
    per:title per:siblings per:religion per:age org:website
    |
    per:stateorprovinces_of_residence org:member_of org:top_members/employees
    per:countries_of_residence org:city_of_headquarters
    |
    org:members org:country_of_headquarters per:spouse org:stateorprovince_of_headquarters
    org:number_of_employees/members
    |
    org:parents org:subsidiaries per:origin org:political/religious_affiliation per:other_family
    |
    per:stateorprovince_of_birth org:dissolved per:date_of_death org:shareholders
    per:alternate_names
    |
    per:parents per:schools_attended per:cause_of_death per:city_of_death
    per:stateorprovince_of_death
    |
    org:founded per:country_of_birth per:date_of_birth per:city_of_birth per:charges
"""
SPLITS = {"train": ("train.json", 320), "validation": ("dev.json", 40), "test": ("test.json", 40)}
"""Split: file, and rows of a relation at most."""
_NEEDED = ("token", "relation", "subj_start", "subj_end", "obj_start", "obj_end")


def _read(source: Source) -> Found | None:
    tasks = tasks_of(CLASSES)
    wanted = {name for task in tasks for name in task}
    found = {}
    for split, (file, most) in SPLITS.items():
        data = source.json(file)
        if data is None:
            continue
        if not isinstance(data, list) or any(
            not isinstance(row, dict) or any(key not in row for key in _NEEDED) for row in data
        ):
            source.wrong(file, f"is no list of rows with {', '.join(_NEEDED)}")
            continue
        rows = [(n, row) for n, row in enumerate(data, 1) if row["relation"] in wanted]
        keep = _drawn(rows, most)
        found[split] = source.table(
            file, [(f"row {n}", _cells(row)) for n, row in rows if n in keep]
        )
    return Found(found, tasks)


def _drawn(rows: list[tuple[int, dict[str, Any]]], most: int) -> set[int]:
    """Numbers of the rows that are taken: of each relation the first of a fixed shuffle."""
    count: Counter[str] = Counter()
    keep = set()
    for n, row in sorted(rows, key=lambda pair: shuffle_key(0, " ".join(pair[1]["token"]))):
        count[row["relation"]] += 1
        if count[row["relation"]] <= most:
            keep.add(n)
    return keep


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """A row by our column names; its spans name their last token, ours the one behind it."""
    spans = {
        ours: [row[f"{theirs}_start"], row[f"{theirs}_end"] + 1]
        for ours, theirs in (("head", "subj"), ("tail", "obj"))
    }
    return {"tokens": row["token"], "label": row["relation"], **spans}


STREAM = ClassStream(
    name="tacred",
    about="relations of persons and organizations in news, 8 tasks of 5",
    licence="LDC2018T24: from the Linguistic Data Consortium alone, not to be passed on",
    citation="Zhang et al. 2017, Position-aware Attention and Supervised Data Improve Slot "
    "Filling (EMNLP)",
    home="catalog.ldc.upenn.edu/LDC2018T24 (data/json)",
    order="SEQ*'s (arXiv 2312.07887): one fixed order",
    classes=tasks_of(CLASSES),
    rows=(None, None, None),
    files=("train.json", "dev.json", "test.json"),
    hub=(),
    read=_read,
    format="relations",
    remark="at most 320 training, 40 validation and 40 test rows a relation; which rows the "
    "paper drew was not seen",
)
