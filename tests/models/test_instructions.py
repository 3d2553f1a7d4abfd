"""What the instruction of a row or a request is."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.errors import UsageError
from perdure.models.instructions import instruction_of, instructions_of
from perdure.recipe.data import TaskConfig
from perdure.streams.kinds import format_of

pytestmark = pytest.mark.unit


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


SYSTEM, USER = turn("system", "Be brief."), turn("user", "Is it good?")
LATER = [turn("assistant", "Yes."), turn("user", "And the other one?")]


@pytest.mark.parametrize(
    ("messages", "task", "found"),
    [
        ([SYSTEM, USER], None, "Be brief."),
        ([SYSTEM, USER], "Judge it.", "Be brief."),  # rows bear the task's own in front already
        ([turn("system", "A"), turn("developer", "B"), USER], None, "A\n\nB"),
        ([USER], "Judge it.", "Judge it."),
        ([USER], " \n", "Is it good?"),
        ([turn("system", "  "), USER], None, "Is it good?"),
        ([USER, *LATER], None, "Is it good?"),  # a conversation stays with one adapter
        ([USER, turn("system", "late"), *LATER], None, "Is it good?"),
        ([turn("system", ""), turn("user", " "), *LATER], None, "And the other one?"),
        ([turn("user", "What is it?")], None, "What is it?"),  # of stop words alone
        ([turn("assistant", "Hello.")], None, ""),
        ([turn("user", None)], None, ""),
        ([], None, ""),
        ([turn("user", [{"type": "text", "text": "Is it"}, {"type": "image"},
                        {"type": "text", "text": "good?"}])], None, "Is it good?"),
        ([turn("user", "half \ud83d, whole \ud83d\ude00")], None, "half \ufffd, whole \U0001f600"),
    ],
)  # fmt: skip
def test_the_first_that_says_anything_counts(messages: Any, task: Any, found: str) -> None:
    assert instruction_of(messages, task) == found
    assert instruction_of({"prompt": messages, "answer": "never looked at"}, task) == found


def test_rows_as_their_reader_makes_them_bear_their_task_s_instruction() -> None:
    config = TaskConfig(name="t", train="t.jsonl", instruction="Judge it.\n")
    row = format_of("labels")[1].row({"text": "Fine.", "label": "good"}, config)
    assert instruction_of(row) == instruction_of(row, config.instruction) == "Judge it."
    own = [turn("system", "Be kind."), USER, turn("assistant", "Yes.")]
    row = format_of("chat")[1].row({"messages": own}, config)
    assert instruction_of(row).split() == ["Judge", "it.", "Be", "kind."]


def test_rows_with_a_class_have_their_task_s_instruction_or_their_text() -> None:
    assert instruction_of({"text": " Play jazz. ", "label": "music"}) == "Play jazz."
    assert instruction_of({"text": "Play jazz.", "label": "music"}, "Which intent?") == (
        "Which intent?"
    )


@pytest.mark.parametrize("given", ["Is it good?", {"question": "?"}, [["user", "?"]], 3])
def test_what_is_no_prompt_is_refused_with_the_form_of_one(given: Any) -> None:
    with pytest.raises(UsageError, match=r'\[\{"role": "user", "content"'):
        instruction_of(given)


def test_a_task_has_each_instruction_once_in_order_and_not_more_than_asked() -> None:
    texts = ["b", "a", "", "b", "c", "d", "e"]
    rows = [{"prompt": [turn("user", text)], "answer": "x"} for text in texts]
    assert instructions_of(rows) == ("b", "a", "c", "d", "e")
    assert instructions_of(rows, most=2) == ("b", "c")  # numbers 0 and 5 // 2
    assert instructions_of(rows, most=5) == instructions_of(rows, most=9) == instructions_of(rows)
    assert instructions_of(rows, "Judge it.") == ("Judge it.",)
    assert instructions_of([]) == ()
    spaced = [{"prompt": [turn("user", t)], "answer": "x"} for t in ("a  b", "a b", "a\n b", "ab")]
    assert instructions_of(spaced) == ("a b", "ab")
