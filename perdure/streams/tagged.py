"""Read an answer that follows its reasoning: `<think>...</think><answer>...</answer>`, strictly.

Scores, rewards and predictions read with this one function, so that a text which trains well also
scores well. It is strict, because a policy that is rewarded finds every text that a lenient reader
takes: in the released reward of R1-T1 (arXiv 2502.19735) an empty reasoning gets full pay, and a
role name inside the text makes the reader start anew behind it.

    parse_tagged("<think>cat is chat</think>\\n<answer>Le chat</answer>").answer     Le chat
    parse_tagged("plan</think><answer>Le chat</answer>", prefilled=True).answer     Le chat
    parse_tagged("<think></think><answer>Le chat</answer>").problem                  empty_think
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

__all__ = [
    "OPENING", "PROBLEMS", "TAGS", "Tagged", "parse_tagged", "tag_in", "visible", "write_tagged",
]  # fmt: skip

OPENING = "<think>"
"""What a prompt may end with, so that every answer begins with its reasoning."""

PROBLEMS = {
    "truncated": "it was cut at the longest answer allowed",
    "tag_sequence": "its tags are not <think>, </think>, <answer>, </answer>, each once, in order",
    "text_before": "there is text before <think>",
    "text_between": "there is text between </think> and <answer>",
    "text_after": "there is text after </answer>",
    "empty_think": "nothing stands between <think> and </think>",
    "empty_answer": "nothing stands between <answer> and </answer>",
}
"""What can be wrong with an answer, with the words that say so."""

_TAG = re.compile(r"<\s*/?\s*(?:think|answer)\s*>", re.IGNORECASE)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True)
class Tagged:
    """An answer and the reasoning before it, without white space around them.

    `problem` is "" where the text is well formed, else a key of `PROBLEMS`; then both are "".
    """

    thinking: str = ""
    answer: str = ""
    problem: str = ""


def parse_tagged(text: str, *, prefilled: bool = False, truncated: bool = False) -> Tagged:
    """Take an answer apart, or say what is wrong with it.

    What looks like a tag is one, in any case and with any white space inside; only the four exact
    spellings, once each and in order, are right. Outside the two bodies only white space may stand.
    A body in which no character can be seen is empty.

    Args:
        text: all that the model wrote, without the end-of-turn token and padding alone.
        prefilled: the prompt ended in `<think>`, which therefore does not stand in `text`.
        truncated: the text was cut, that is, the model did not end it.

    Returns:
        The first problem in the order of `PROBLEMS`: a text that was cut has that as its problem,
        whatever else is wrong with it.
    """
    if truncated:
        return Tagged(problem="truncated")
    if prefilled:
        text = OPENING + text
    tags = list(_TAG.finditer(text))
    if [tag.group() for tag in tags] != list(TAGS):
        return Tagged(problem="tag_sequence")
    ends = [0, *(tag.end() for tag in tags)]
    starts = [*(tag.start() for tag in tags), len(text)]
    before, thinking, between, answer, after = (
        text[end:start].strip() for end, start in zip(ends, starts, strict=True)
    )
    outside = {"text_before": before, "text_between": between, "text_after": after}
    for problem, found in outside.items():
        if found:
            return Tagged(problem=problem)
    for problem, body in {"empty_think": thinking, "empty_answer": answer}.items():
        if not visible(body):
            return Tagged(problem=problem)
    return Tagged(thinking, answer)


def visible(text: str) -> bool:
    """Whether a character of the text can be seen; a zero-width space, say, cannot."""
    return any(unicodedata.category(character)[0] not in "ZC" for character in text)


def tag_in(text: str) -> str:
    """The first tag in a text, as it stands there; "" where there is none.

    A source or a translation with a tag in it cannot be told from the tags around it.
    """
    found = _TAG.search(text)
    return found.group() if found else ""


def write_tagged(thinking: str, answer: str) -> str:
    """The text that `parse_tagged` takes apart into these two.

    Raises:
        ValueError: it would not, because one is empty or holds a tag.
    """
    text = f"<think>{thinking}</think>\n<answer>{answer}</answer>"
    if problem := parse_tagged(text).problem:
        raise ValueError(f"{PROBLEMS[problem]}: {text}")
    return text
