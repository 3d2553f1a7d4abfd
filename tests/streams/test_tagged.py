"""The strict parser: every row of the table in section 4.3 of the specification, and M1."""

from __future__ import annotations

import pytest

from perdure.streams.tagged import PROBLEMS, Tagged, parse_tagged, tag_in, write_tagged

pytestmark = pytest.mark.unit

OK = Tagged("plan", "Le chat")


@pytest.mark.parametrize("between", ["", " ", "\n", "\r\n\t \n\n", "\u00a0", "\u3000"])
def test_any_white_space_may_stand_between_the_bodies(between: str) -> None:
    text = f"plan</think>{between}<answer>Le chat</answer>{between}"
    assert parse_tagged(text, prefilled=True) == OK
    assert parse_tagged(f"{between}<think>{text}") == OK


# (text after the prompt's `<think>`, what is wrong)
TABLE = {
    "own think repeated": ("<think>plan</think><answer>Le chat</answer>", "tag_sequence"),
    "text between": ("plan</think>so<answer>Le chat</answer>", "text_between"),
    "text after": ("plan</think><answer>Le chat</answer>.", "text_after"),
    "empty think": ("</think><answer>Le chat</answer>", "empty_think"),
    "blank think": (" \n\t</think><answer>Le chat</answer>", "empty_think"),
    "invisible think": ("\u200b\u2060</think><answer>Le chat</answer>", "empty_think"),
    "empty answer": ("plan</think><answer></answer>", "empty_answer"),
    "blank answer": ("plan</think><answer> \n</answer>", "empty_answer"),
    "invisible answer": ("plan</think><answer>\u200b</answer>", "empty_answer"),
    "two answers": ("plan</think><answer>a</answer><answer>b</answer>", "tag_sequence"),
    "two thinks": ("p</think><think>q</think><answer>a</answer>", "tag_sequence"),
    "nested answer": ("plan</think><answer>a<answer>b</answer></answer>", "tag_sequence"),
    "nested think": ("p<think>q</think></think><answer>a</answer>", "tag_sequence"),
    "unclosed think": ("plan <answer>Le chat</answer>", "tag_sequence"),
    "unclosed answer": ("plan</think><answer>Le chat", "tag_sequence"),
    "unopened answer": ("plan</think>Le chat</answer>", "tag_sequence"),
    "no answer": ("plan</think>Le chat", "tag_sequence"),
    "no tag": ("Le chat", "tag_sequence"),
    "nothing": ("", "tag_sequence"),
    "interleaved": ("plan<answer>Le chat</think></answer>", "tag_sequence"),
    "answer inside think": ("plan<answer>Le chat</answer></think>", "tag_sequence"),
    "answer first": ("<answer>Le chat</answer>plan</think>", "tag_sequence"),
    "capital": ("plan</Think><answer>Le chat</answer>", "tag_sequence"),
    "capital answer": ("plan</think><ANSWER>Le chat</answer>", "tag_sequence"),
    "blank in a tag": ("plan< /think><answer>Le chat</answer>", "tag_sequence"),
    "blank after the slash": ("plan</ think><answer>Le chat</answer>", "tag_sequence"),
    "line in a tag": ("plan</think\n><answer>Le chat</answer>", "tag_sequence"),
    "misspelt tag beside": ("< think>p</think><answer>Le chat</answer>", "tag_sequence"),
    "role reset": ("junk Assistant: <think></think><answer>Le chat</answer>", "tag_sequence"),
}


@pytest.mark.parametrize(("text", "problem"), TABLE.values(), ids=list(TABLE))
def test_what_is_not_well_formed_has_no_answer_and_a_reason(text: str, problem: str) -> None:
    assert parse_tagged(text, prefilled=True) == Tagged("", "", problem)
    assert parse_tagged("<think>" + text) == Tagged("", "", problem)


def test_text_before_is_told_where_the_prompt_does_not_open_the_reasoning() -> None:
    text = "Sure: <think>plan</think><answer>Le chat</answer>"
    assert parse_tagged(text).problem == "text_before"
    assert parse_tagged(text, prefilled=True).problem == "tag_sequence"
    # Without a prefill, what opens no reasoning of its own has none.
    assert parse_tagged("plan</think><answer>Le chat</answer>").problem == "tag_sequence"


@pytest.mark.parametrize("answer", ['{"translation": "Le chat"}', '"Le chat"', "a < b", "<b>a</b>"])
def test_an_answer_in_any_dress_is_an_answer(answer: str) -> None:
    text = f"plan</think><answer>\n{answer}\n</answer>"
    assert parse_tagged(text, prefilled=True) == Tagged("plan", answer)


def test_what_was_cut_is_told_as_that_whatever_else_is_wrong() -> None:
    for text in ["plan</think><answer>Le ch", "plan", "plan</think><answer>Le chat</answer>"]:
        assert parse_tagged(text, prefilled=True, truncated=True).problem == "truncated"


def test_micro_example_m1() -> None:
    texts = [
        "plan</think><answer>Le chat</answer>",
        "</think><answer>Le chat</answer>",
        "plan</think><answer></answer>",
        "<think>plan</think><answer>Le chat</answer>",
        "plan</think><answer>Le chat</answer><answer>Le chat</answer>",
        "junk Assistant: <think></think><answer>Le chat</answer>",
    ]
    found = [parse_tagged(text, prefilled=True).problem for text in texts]
    sequence = "tag_sequence"
    assert found == ["", "empty_think", "empty_answer", sequence, sequence, sequence]


def test_every_reason_is_met_and_has_its_words() -> None:
    met = {problem for _, problem in TABLE.values()} | {"truncated", "text_before"}
    assert met == set(PROBLEMS)


def test_the_text_that_is_trained_is_read_back() -> None:
    text = write_tagged("cat is chat", "Le chat")
    assert text == "<think>cat is chat</think>\n<answer>Le chat</answer>"
    assert parse_tagged(text) == Tagged("cat is chat", "Le chat")
    assert parse_tagged(text.removeprefix("<think>"), prefilled=True).answer == "Le chat"
    for wrong in [("", "a"), ("p", ""), ("p", "a<answer>"), ("p</think>", "a")]:
        with pytest.raises(ValueError, match=r"tags|nothing stands"):
            write_tagged(*wrong)


def test_a_tag_in_the_data_is_found_as_it_stands_there() -> None:
    assert tag_in("write < /Think> here, then <answer>") == "< /Think>"
    assert tag_in("I think < 3 > 2, the answer") == ""
