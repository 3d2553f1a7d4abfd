"""What the instruction of a row or of a request is: the text by which they are grouped and routed.

In this order, the first that says anything:

1. the system message: all of them that stand before the first other message, joined by blank lines.
   A task's `instruction` is a system message in front of each of its rows, joined with one that the
   data brings along, so a row of such a task has it here;
2. the task's `instruction`, for rows that do not bear it (never known of a request);
3. the text of the first message of the user that has one. A later turn changes nothing: a
   conversation stays with one adapter from beginning to end, and is grouped alike whichever of its
   turns are learned.

A text of blanks alone says nothing. Where nothing is left the instruction is "", which is similar
to no text, itself included: such a request fits no group. A text of stop words alone ("What is
it?") is an instruction like any other; how similar two of them are is the similarity's matter.
Answers are never looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from perdure.errors import UsageError
from perdure.streams.cells import CellError
from perdure.streams.kinds.conversation import PARTS, texts_of

Messages = Sequence[Mapping[str, Any]]
"""A conversation before its answer: `[{"role": "user", "content": "..."}, ...]`."""
SYSTEM = ("system", "developer")
"""Roles of a message that says what to do; servers call the first one by the second name too."""


def instruction_of(given: Messages | Mapping[str, Any], task_instruction: str | None = None) -> str:
    """The instruction of messages or of a row; see the module.

    Args:
        given: messages, or a row of a task: its `prompt`, or the `text` of one with classes.
        task_instruction: the task's `instruction`.

    Returns: the text without blanks around it; half characters (lone surrogates), which no file can
        hold, are replaced by \ufffd.

    Raises:
        UsageError: `given` is neither.
    """
    if isinstance(given, Mapping):
        if "prompt" in given:
            return instruction_of(given["prompt"], task_instruction)
        if "text" in given:
            return _clean(task_instruction or "") or _clean(str(given["text"]))
        raise UsageError(
            f"a row has neither prompt nor text, but {', '.join(map(str, given)) or 'nothing'}",
            'give messages: [{"role": "user", "content": "..."}]',
        )
    turns = [(_role(turn), _content(turn)) for turn in messages(given)]
    first = next((i for i, (role, _) in enumerate(turns) if role not in SYSTEM), len(turns))
    system = "\n\n".join(text for _, text in turns[:first] if text)
    said = system or _clean(task_instruction or "")
    return said or next((text for role, text in turns if role == "user" and text), "")


def instructions_of(
    rows: Iterable[Mapping[str, Any]],
    task_instruction: str | None = None,
    most: int | None = None,
) -> tuple[str, ...]:
    """The different instructions of a task's rows, in the order in which they are met.

    Without a system message and a task's instruction these are the users' own texts, and whatever
    is grouped by them keeps them in its codebook: `most` bounds how many. Texts that differ in
    white space alone are one.

    Args: most: so many at most, spread evenly over them; None: all.
    """
    texts = (folded(instruction_of(row, task_instruction)) for row in rows)
    found = list(dict.fromkeys(filter(None, texts)))
    if most is None or len(found) <= most:
        return tuple(found)
    return tuple(found[i * len(found) // most] for i in range(most))


def folded(text: str) -> str:
    """A text with single blanks for all its white space: what two texts are compared by."""
    return " ".join(text.split())


def messages(given: Any) -> Messages:
    """What was given, if it is a list of messages.

    Raises:
        UsageError: it is not.
    """
    listed = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    if listed and all(isinstance(turn, Mapping) and "role" in turn for turn in given):
        return given
    raise UsageError(
        f"a prompt is a list of messages, not {type(given).__name__}",
        'write [{"role": "user", "content": "..."}]',
    )


def plain(given: Any) -> list[dict[str, str]]:
    """A request as its model is shown it: of each message the role and the text.

    Of a content that is a list of parts the texts are joined by single blanks, as those of rows.

    Raises:
        UsageError: it is no list of messages, has none, or one whose content is no text, or has a
            part that is none.
    """
    remedy = 'write [{"role": "user", "content": "..."}]'
    found = []
    for number, turn in enumerate(messages(given), 1):
        content = turn.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = joined(content, f"message {number}")
        if not isinstance(content, str):
            raise UsageError("a message's content is no text", remedy)
        found.append({"role": str(turn["role"]), "content": content})
    if not found:
        raise UsageError("has no message", remedy)
    return found


def joined(parts: Sequence[Any], where: str) -> str:
    """The text of a content that is a list of parts.

    Raises:
        UsageError: it is an empty list, or a part is no text; `where` says in which message.
    """
    try:
        texts = texts_of(parts, where)
    except CellError as error:
        raise UsageError(error.what, error.remedy) from error
    if not texts:
        raise UsageError(f"{where}: its content is an empty list", f"write {PARTS}")
    return " ".join(texts)


def _role(turn: Mapping[str, Any]) -> str:
    return str(turn["role"])


def _content(turn: Mapping[str, Any]) -> str:
    """A message's text; of a list of parts its text parts, joined as the rows' reader does."""
    content = turn.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        content = " ".join(part for part in parts if isinstance(part, str))
    return _clean("" if content is None else str(content))


def _clean(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()
