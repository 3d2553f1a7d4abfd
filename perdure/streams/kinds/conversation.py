"""A list of messages as prompt, answer, and what belongs to them beside their text.

Calls of tools, thoughts and tools are kept, for the chat template to render; whether it does is
checked where rows are encoded (`perdure.models.templates`). Nothing of a message that is meant for
the model is dropped.

A content that is a list of text parts is kept as `parts` beside `content`, in which they are joined
by single blanks, as transformers' own server joins them for a template that takes a text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from perdure.errors import brief
from perdure.streams.cells import CellError, EmptyCell, EmptySystem, as_text, is_empty
from perdure.streams.tables import choices

ROLES = ("system", "user", "assistant", "tool")
SHAPE = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
PARTS = '[{"type": "text", "text": "..."}]'
_TEXTS = ("text", "input_text", "output_text")
"""Types of a part that is text, as transformers' own server takes them."""
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Names of one thing; the first is what templates read."""
_REFUSED = {
    "function_call": 'write it as "tool_calls"',
    "images": "only text is learned: leave such conversations out",
    "audio": "only text is learned: leave such conversations out",
}


def conversation(value: Any, column: str) -> tuple[list[dict[str, Any]], str, dict[str, Any]]:
    """Split a list of messages into prompt and answer; in a CSV cell it is JSON.

    Returns: the messages before the last one of the assistant, its text, and what it has beside
        its text (`tool_calls`, `reasoning_content`).

    Raises: CellError: no conversation, or a part of it that is not read.
    """
    value = _parsed(value, column)
    messages = [_message(one, number, column) for number, one in enumerate(value, start=1)]
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=None)
    if last is None:
        raise CellError(f'"{column}" has no message of the assistant', "its last one is the answer")
    if not any(m["role"] == "user" for m in messages[:last]):
        raise CellError(f'"{column}" has no message of the user before the answer')
    answer = {key: part for key, part in messages[last].items() if key not in ("role", "content")}
    return messages[:last], messages[last]["content"], answer


def tools_of(value: Any, column: str) -> list[dict[str, Any]]:
    """The tools of a conversation, as JSON schemas; in many data sets they are JSON in a text.

    Raises: CellError: it is something else.
    """
    if is_empty(value) or value == []:
        return []
    shape = '[{"type": "function", "function": {"name": "...", "parameters": {}}}]'
    found = _json(value, column, shape)
    if not isinstance(found, Sequence) or not all(isinstance(one, Mapping) for one in found):
        raise CellError(f'"{column}" is no list of tools', f"write {shape}")
    return [dict(one) for one in found]


def _parsed(value: Any, column: str) -> Sequence[Any]:
    if is_empty(value):
        raise EmptyCell(f'"{column}" is empty', "fill it in, or take the row out")
    value = _json(value, column, SHAPE)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise CellError(f'"{column}" is no list of messages', f"write {SHAPE}")
    return value


def _json(value: Any, column: str, shape: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise CellError(f'"{column}" is no JSON: {error}', f"write {shape}") from None


def _message(message: Any, number: int, column: str) -> dict[str, Any]:
    where = f'"{column}": message {number}'
    parts = message if isinstance(message, Mapping) else {}
    calls = parts.get("tool_calls") or None
    if "role" not in parts or ("content" not in parts and not calls):
        raise CellError(f"{where} has no role and content", f"write {SHAPE}")
    role = parts["role"]
    if role not in ROLES:
        raise CellError(
            f'{where}: role "{brief(role)}" is unknown',
            *choices(str(role), ROLES, "roles there are"),
        )
    for key, remedy in _REFUSED.items():
        if parts.get(key):
            raise CellError(f"{where} has {key}, which is not read", remedy)
    thought = next((parts[key] for key in _THOUGHTS if parts.get(key)), None)
    beside = {"tool_calls": calls, "reasoning_content": thought}
    if role != "assistant" and (strange := [key for key, part in beside.items() if part]):
        raise CellError(f"{where} has {strange[0]}, but only the assistant's can")
    if calls is not None and (not isinstance(calls, Sequence) or isinstance(calls, str)):
        raise CellError(f"{where}: tool_calls is no list")
    if role == "tool":
        beside |= {key: parts.get(key) for key in ("name", "tool_call_id")}
    content = parts.get("content")
    texts: list[str] = []
    if isinstance(content, Sequence) and not isinstance(content, str):
        texts = texts_of(content, where)
        content = " ".join(texts)
    if role == "system" and is_empty(content):
        remedy = "leave the empty system turn out"
        raise EmptySystem(f'"{column}, message {number}" is empty', remedy)
    only_calls = calls and is_empty(content)
    text = "" if only_calls else as_text(content, f"{column}, message {number}")
    beside["parts"] = texts if text else None
    return {"role": str(role), "content": text, **{k: part for k, part in beside.items() if part}}


def texts_of(parts: Sequence[Any], where: str) -> list[str]:
    """The texts of a content that is a list of parts.

    Raises:
        CellError: one is no text; `where` says in which message.
    """
    return [_part(one, where) for one in parts]


def _part(part: Any, where: str) -> str:
    """The text of one part of a content."""
    if not isinstance(part, Mapping) or "type" not in part:
        raise CellError(f"{where}: a part of its content has no type", f"write {PARTS}")
    if part["type"] not in _TEXTS:
        raise CellError(
            f'{where}: its content has a part of the type "{brief(part["type"])}"',
            "only text is read: leave such conversations out",
        )
    if not isinstance(part.get("text"), str):
        raise CellError(f"{where}: a part of the type text has no text", f"write {PARTS}")
    return str(part["text"])
