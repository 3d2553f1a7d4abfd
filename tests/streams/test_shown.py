"""Which test rows are scored where not all are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from perdure.streams.task import Task, shown

pytestmark = pytest.mark.unit


def task(rows: list[dict[str, Any]], labels: tuple[str, ...]) -> Task:
    return Task("t", (), (), rows, "accuracy", labels=labels)


@pytest.mark.parametrize("key", ["label", "answer"])
def test_of_each_label_as_nearly_the_same_number_as_there_are(key: str) -> None:
    """A file that is sorted by label is not scored on its first label alone."""
    rows = [{"n": i, key: name} for i, name in enumerate("aaaaaaabbbc")]
    found = shown(task(rows, ("a", "b", "c")), 6)
    assert Counter(row[key] for row in found) == {"a": 3, "b": 2, "c": 1}
    assert [row["n"] for row in found] == [0, 1, 2, 7, 8, 10]  # in their order, the first of each
    assert [row["n"] for row in shown(task(rows, ("a", "b", "c")), 2)] == [0, 7]


def test_all_where_there_are_no_more_and_the_first_of_free_answers() -> None:
    rows = [{"n": i, "answer": name} for i, name in enumerate("aab")]
    for most in (None, 3, 9):
        assert shown(task(rows, ("a", "b")), most) == rows
    assert [row["n"] for row in shown(task(rows, ()), 2)] == [0, 1]
