"""Where single classes went: confusion of old and new, and losses, by hand."""

from __future__ import annotations

import pytest

from perdure.scoring.classes import confusion, losses

pytestmark = pytest.mark.unit


def test_confusion_of_old_and_new_by_hand() -> None:
    pairs = [
        *[("a", "a")] * 4, ("a", "b"), ("a", "n"), ("b", "n"), ("b", "b"),  # eight old rows
        ("n", "n"), ("n", "m"), ("m", "a"), ("m", "m"), ("m", "b"),  # five new ones
    ]  # fmt: skip
    found = confusion(pairs, {"n", "m"})
    assert (found.right, found.other_old, found.as_new) == (5 / 8, 1 / 8, 2 / 8)
    assert found.as_old == 2 / 5


def test_the_first_step_has_no_old_rows() -> None:
    found = confusion([("a", "b"), ("b", "b")], {"a", "b"})
    assert (found.right, found.other_old, found.as_new, found.as_old) == (None, None, None, 0.0)
    assert confusion([("a", "a")], {"n"}).as_old is None


def test_classes_by_loss() -> None:
    first = {"one": [("a", "a"), ("a", "a"), ("b", "b"), ("b", "a")], "two": [("c", "c")]}
    last = {
        "one": [("a", "c"), ("a", "c"), ("b", "b"), ("b", "b")],
        "two": [("c", "c")],
        "three": [("d", "d")],
    }
    found = losses(first, last)
    assert [(c.name, c.task, c.learned, c.end, c.loss, c.most, c.rows) for c in found] == [
        ("a", "one", 1.0, 0.0, 1.0, "c", 2),
        ("c", "two", 1.0, 1.0, 0.0, "", 1),
        ("b", "one", 0.5, 1.0, -0.5, "", 2),
    ]
