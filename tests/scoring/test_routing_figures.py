"""How well requests were routed, by hand; requests of one instruction are one draw."""

from __future__ import annotations

import math
from typing import Any

import pytest

from perdure.scoring.routing_figures import figures, fits, is_right

pytestmark = pytest.mark.unit


def item(adapter: str, right: str | None, text: str, fit: bool | None = True) -> dict[str, Any]:
    said = {"adapter": adapter, "prompt": text}
    return (
        said | ({} if fit is None else {"fits": fit}) | ({} if right is None else {"right": right})
    )


def test_counts_by_hand() -> None:
    items = [
        *[item("a@1", "a@1", "say a")] * 3,
        item("b@2", "a@1", "say b?"),
        item("base", "a@1", "what?", fit=False),
        item("a@1", "a@1", "huh?", fit=False),  # the fallback was right all the same
        item("b@2", "b@2", "say b"),
        item("a@1", None, "of no task"),
        {"prompt": "not routed", "score": 1.0},
    ]
    found = figures(items)
    assert found is not None
    assert (found.requests, found.known, found.right, found.none, found.none_right) == (
        8,
        7,
        4,
        2,
        1,
    )
    assert found.instructions == 5
    assert found.interval is not None
    assert found.interval.value == pytest.approx(4 / 7)
    assert found.interval.low < 4 / 7 < found.interval.high
    assert found.words().startswith("4 of 7 requests were routed to the adapter of their task: ")
    assert "accuracy 0.571 (" in found.words()
    assert "over 5 different instructions" in found.words()
    assert (
        "2 fit no group (the fallback had the right adapter for 1 of them); 1 more" in found.words()
    )
    assert "1 more is of a task that no adapter has learned" in found.words()
    assert found.numbers()["fit_none_right"] == 1


def test_requests_of_one_instruction_count_once() -> None:
    """All right: of G instructions alike in size the lower end is the G-th root of .025."""
    for many in (1, 2, 3):
        items = [item("a@1", "a@1", f"say {k % many}") for k in range(12 * many)]
        found = figures(items)
        assert found is not None
        assert found.interval is not None
        assert (found.interval.value, found.interval.high) == (1, 1)
        assert found.interval.low == pytest.approx(math.pow(0.025, 1 / many), abs=0.02)
    # The instruction of a conversation stands apart from its prompt.
    items = [item("a@1", "a@1", f"row {k}") | {"instruction": "say a"} for k in range(12)]
    found = figures(items)
    assert found is not None
    assert found.instructions == 1


@pytest.mark.parametrize("rows", [1, 40])
def test_five_instructions_that_are_all_right_leave_room(rows: int) -> None:
    """As docs/scores.md says, however many rows each has."""
    found = figures([item("a@1", "a@1", text) for text in "ABCDE" for _ in range(rows)])
    assert found is not None
    assert found.interval is not None
    assert (round(found.interval.low, 2), found.interval.high) == (0.46, 1.0)


def test_what_is_not_known_is_not_made_up() -> None:
    assert figures([]) is None
    assert figures([{"score": 1.0, "prompt": "x"}]) is None
    found = figures([item("a@1", None, "x")])
    assert found is not None
    assert found.interval is None
    assert found.numbers()["accuracy"] is None
    assert "nobody can say which of them went right" in found.words()


def test_a_router_that_does_not_say_what_fits() -> None:
    assert fits(item("a", "a", "x", fit=None))
    assert not fits(item("base", "a", "x", fit=None))
    assert is_right(item("a", "a", "x", fit=None))
    assert not is_right(item("base", "base", "x", fit=None))
