"""What is known of a chat template: where an answer begins and ends, found by rendering sentinels.

`tokenizer.apply_chat_template` is the one renderer. What it does with system turns, blanks, think
blocks and the generation prompt is learned once for each template, from conversations whose texts
are sentinels, so that prompt + answer + end is what the template gives for the whole conversation.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from perdure.errors import DataError, ModelError
from perdure.models.rendering import Renderer
from perdure.streams.task import Row

logger = logging.getLogger("perdure")
_TOLD: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
"""Of which templates of a tokenizer it was told that they begin answers in two ways: once each."""
Messages = Sequence[Mapping[str, Any]]
ROLES = ("system", "user", "assistant", "tool")
_S, _U, _A, _U2, _A2, _T, _V = (f"Perdure{name}Goes{name}Here" for name in "SUAVBTW")
_ODD = f"{_A} <&\"'\\>\n  * a  b\n\n\tc {{}} {_A2}"
"""An answer with signs that a template may write otherwise."""
_THOUGHT = f"<think>\n{_U2}\n</think>\n\n{_A}"
_TOOL = {
    "type": "function",
    "function": {
        "name": _T,
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}
_ID = "perdure01"  # some templates want nine letters and digits
_REMEDY = (
    "give a template that does, model.chat_template: FILE (a Jinja file), or none for plain text"
)


@dataclass(frozen=True)
class Known:
    """What was learned of a template.

    Attributes:
        folds: a system turn is refused or dropped, so its text goes in front of the user's.
        trims: the left and the right blanks of an answer are taken away.
        shown: the roles whose text is rendered.
        opens: the prompt is what the generation prompt ends in, as a server sends it; else it is
            what stands before the answer in the finished conversation.
        blanks: blanks between prompt and answer, which belong to the answer: tokenizers join them
            to its first word.
        end: the text that ends an answer.
        header: what stands between the user's text and the answer.
        before: the text up to the answer in the conversation of one question.
        verbatim: the text of an answer is written as it is, but for `trims`.
        thinks: a thought in an answer (`<think>`) is written otherwise than it stands there.
    """

    folds: bool
    trims: tuple[bool, bool]
    shown: frozenset[str]
    opens: bool
    blanks: str
    end: str
    header: str
    before: str
    verbatim: bool
    thinks: bool


class ChatTemplate(Renderer):
    """What a template does with conversations, learned once.

    Raises:
        ModelError: the template shows no answer, or takes more than `perdure.models.limits`.
    """

    @cached_property
    def known(self) -> Known:
        """What the template does, learned at the first use."""
        folds = not self._shows(
            [_turn("system", _S), _turn("user", _U), _turn("assistant", _A)], _S
        )
        asked = [_turn("user", _U)]
        whole = self.tried([*asked, _turn("assistant", _A)])
        if whole is None or whole.count(_A) != 1:
            raise ModelError("the model's chat template does not show an answer", _REMEDY)
        before, after = whole.split(_A)
        sent = self.tried(asked, add_generation_prompt=True) or ""
        blanks = before[len(before.rstrip(" \t")) :]
        opens = self._opens(before, sent)
        padded = self.tried([*asked, _turn("assistant", f"  {_A}  ")]) or ""
        left, _, right = padded.partition(_A)
        trims = (not left.endswith("  "), not right.startswith("  "))
        header = (sent if opens else before).rpartition(_U)[2]
        if opens:
            blanks = before[len(sent) :] if before.startswith(sent) else ""
        else:
            header = header[: len(header) - len(blanks)]
        shown = {role for role in ROLES if role != "system" and self._shows_role(role)}
        if not folds:
            shown.add("system")
        end = self._first_special(after)
        begun = sent if opens else before[: len(before) - len(blanks)]
        odd, thought = (
            self.tried([*asked, _turn("assistant", text)]) == before + text + after
            for text in (_ODD, _THOUGHT)
        )
        return Known(
            folds, trims, frozenset(shown), opens, blanks, end, header, begun, odd, not thought
        )

    def _opens(self, before: str, sent: str) -> bool:
        """Whether the generation prompt is the prompt; told where both cannot be had."""
        if before.rstrip(" \t") == sent.rstrip(" \t") or before == sent:
            return _U in sent
        if before.startswith(sent):  # no generation prompt, or more before the answer than it gives
            return False
        told = _TOLD.setdefault(self.tokenizer, set())
        if self.text in told:
            return True
        told.add(self.text)
        logger.warning(
            "the model's chat template begins an answer by %r in a finished conversation, and "
            "by %r where an answer is asked for: answers are trained and scored after the latter, "
            "as a server asks for them",
            before.rpartition(_U)[2],
            sent.rpartition(_U)[2],
        )
        return True

    def prompt(self, row: Row) -> str:
        """The text up to a row's answer.

        Raises:
            DataError: the template refuses the conversation, or leaves out a part of it.
        """
        return self._prompt(row) if self.is_plain(row) else self.split(row)[0]

    def prompts(self, rows: Sequence[Row]) -> list[str]:
        """The same of several rows that are all plain and without tools, in less time.

        Raises:
            DataError: as `prompt`, of one of them.
        """
        turns = [self._ready(row["prompt"]) for row in rows]
        if self.known.opens:
            return self.rendered_together(turns, add_generation_prompt=True)
        last = _turn("assistant", _A)
        return [self._before(t) for t in self.rendered_together([[*one, last] for one in turns])]

    def sent(self, row: Row) -> str:
        """The text that a server sends for a row, whatever its answer: where the template writes
        an empty think block before an answer without a thought, it is not there.

        Raises:
            DataError: as `prompt`.
        """
        if not self._generates:
            return self._prompt(row)
        turns = self._ready(row["prompt"])
        return self.rendered(turns, self._tools(row), add_generation_prompt=True)

    @cached_property
    def _generates(self) -> bool:
        """Whether the template has a text with which an answer is asked for."""
        asked = [_turn("user", _U)]
        sent = self.tried(asked, add_generation_prompt=True)
        return sent is not None and sent != self.tried(asked)

    def answer(self, text: str) -> str:
        """The text of an answer as the template writes it, with blanks before it and its end."""
        if not self.known.verbatim:
            whole = self.rendered([_turn("user", _U), _turn("assistant", text)])
            if whole.startswith(self.known.before):
                return self._ended(whole[len(self.known.before) :])
        left, right = self.known.trims
        text = text.lstrip() if left else text
        text = text.rstrip() if right else text
        return self.known.blanks + text + self.known.end

    def is_plain(self, row: Row) -> bool:
        """Whether an answer is its text alone, so that the prompt does not depend on it."""
        beside = row.get("turn", {}).keys() - (set() if self._takes_parts else {"parts"})
        return not beside and not (self.known.thinks and "</think>" in row["answer"])

    def _prompt(self, row: Row) -> str:
        turns, tools = self._ready(row["prompt"]), self._tools(row)
        if self.known.opens:
            return self.rendered(turns, tools, add_generation_prompt=True)
        return self._before(self.rendered([*turns, _turn("assistant", _A)], tools))

    def _before(self, whole: str) -> str:
        """The prompt of a conversation whose answer is a mark."""
        before, found, _ = whole.rpartition(_A)
        if not found:
            raise DataError("the model's chat template leaves out the answer", _REMEDY)
        return before[: len(before) - len(self.known.blanks)]

    def split(self, row: Row) -> tuple[str, str]:
        """Prompt and answer of a row whose answer has a thought or calls tools.

        Raises:
            DataError: as `prompt`.
        """
        answer = {**_turn("assistant", row["answer"]), **row.get("turn", {})}
        *turns, answer = self._ready([*row["prompt"], answer])
        tools = self._tools(row)
        whole = self.rendered([*turns, answer], tools)
        begun = self._prompt(row)
        if whole.startswith(begun):
            return begun, self._ended(whole[len(begun) :])
        # No empty think block then: the model thinks behind what a server sends.
        sent = self.rendered(turns, tools, add_generation_prompt=True)
        if whole.startswith(sent) and sent != self.rendered(turns, tools):
            return sent, self._ended(whole[len(sent) :])
        if row.get("turn"):
            raise DataError(
                "the model's chat template begins this answer otherwise than a server asks for it",
                _REMEDY,
            )
        # The template leaves the thought out of a finished conversation, and opens its block.
        text = str(row["answer"]).lstrip()
        opened = next(
            (k for k in range(len(text), 0, -1) if begun.endswith(text[:k])),
            len("<think>") if "<think>" in begun[-20:] and text.startswith("<think>") else 0,
        )
        return begun, text[opened:] + self.known.end

    def _ended(self, text: str) -> str:
        """An answer without what the template writes behind its end."""
        at = text.rfind(self.known.end)
        return text[: at + len(self.known.end)] if at >= 0 else text.rstrip()

    def _tools(self, row: Row) -> list[Any] | None:
        tools = row.get("tools") or None
        if tools and not self._shows_tools:
            raise _left_out("tools")
        return tools

    @cached_property
    def _shows_tools(self) -> bool:
        turns = [_turn("user", _U), _turn("assistant", _A)]
        return _T in (self.tried(turns, tools=[_TOOL]) or "")

    @cached_property
    def _shows_thoughts(self) -> bool:
        thought = {**_turn("assistant", _A), "reasoning_content": _U2}
        return self._shows([_turn("user", _U), thought], _U2)

    @cached_property
    def _arguments(self) -> str:
        """How the template takes the arguments of a call: "object", "text", or "" not at all."""
        for name, arguments in (("object", {"at": _V}), ("text", json.dumps({"at": _V}))):
            text = self.tried([_turn("user", _U), _calling(arguments)], tools=[_TOOL]) or ""
            if _T in text and _V in text:
                return name
        return ""

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template writes the texts of a content that is a list of parts."""
        parts = _in_parts({**_turn("user", ""), "parts": [_U, _U2]})
        text = self.tried([parts, _turn("assistant", _A)]) or ""
        between = text.partition(_U)[2].partition(_U2)[0]
        # A template that takes a text writes the list as Python or JSON does.
        return _U in text and _U2 in text and "type" not in between

    def _ready(self, messages: Messages) -> list[dict[str, Any]]:
        turns = [dict(turn) for turn in messages]
        for turn in turns:
            role = turn["role"]
            if role not in self.known.shown and not (role == "system" and turn is turns[0]):
                raise DataError(
                    f"a turn of the role {role} is left out by the model's chat template", _REMEDY
                )
            if turn.get("tool_calls"):
                turn["tool_calls"] = [self._call(one) for one in turn["tool_calls"]]
        # Templates leave out the thoughts of earlier turns, as servers do; not the answer's.
        if turns[-1].get("reasoning_content") and not self._shows_thoughts:
            raise _left_out("reasoning_content")
        if turns[0]["role"] == "system" and self.known.folds and len(turns) > 1:
            at = next((i for i, turn in enumerate(turns) if turn["role"] == "user"), None)
            if at is None:
                raise DataError("a system turn has no user's turn to stand in front of", _REMEDY)
            before, user = f"{turns[0]['content'].strip()}\n", turns[at]
            user = {**user, "content": before + user["content"]}
            if first := user.get("parts"):
                user["parts"] = [before + first[0], *first[1:]]
            turns = [*turns[1:at], user, *turns[at + 1 :]]
        if self._takes_parts:
            return [_in_parts(turn) for turn in turns]
        return [{k: v for k, v in turn.items() if k != "parts"} for turn in turns]

    def _call(self, call: Any) -> Any:
        """A call with its arguments as the template takes them; OpenAI writes them as a text."""
        if not self._arguments:
            raise _left_out("tool_calls")
        inner = call.get("function", call) if isinstance(call, Mapping) else {}
        if not isinstance(inner, Mapping) or "name" not in inner:
            raise DataError("a call in tool_calls has no name", "write function: {name, arguments}")
        given = inner.get("arguments", {})
        if self._arguments == "text" and not isinstance(given, str):
            given = json.dumps(given, ensure_ascii=False)
        elif self._arguments == "object" and isinstance(given, str):
            try:
                given = json.loads(given)
            except ValueError as error:
                raise DataError(f"the arguments of {inner['name']} are no JSON: {error}") from None
        function = {**inner, "arguments": given}
        return (
            {"type": "function", **call, "function": function} if "function" in call else function
        )

    def _shows_role(self, role: str) -> bool:
        if role == "user":
            return True
        turns = [_turn("user", _U), _turn("assistant", _A2)]
        if role == "tool":
            told = {"role": "tool", "name": _T, "tool_call_id": _ID, "content": _U2}
            way = {"object": {"at": _V}, "text": json.dumps({"at": _V})}.get(self._arguments)
            calls = [_turn("assistant", _A2)] + ([] if way is None else [_calling(way)])
            ends: tuple[list[dict[str, Any]], ...] = ([], [_turn("assistant", _A)])
            return any(self._shows([turns[0], c, told, *e], _U2) for c in calls for e in ends)
        return self._shows([*turns, _turn("user", _U2), _turn("assistant", _A)], _A2)

    def _shows(self, turns: list[dict[str, Any]], text: str) -> bool:
        return text in (self.tried(turns) or "")

    def _first_special(self, after: str) -> str:
        """What ends an answer: up to the first special token, behind which models do not write."""
        ends = [
            after.index(token) + len(token)
            for token in map(str, self.tokenizer.all_special_tokens)
            if token.strip() and token in after
        ]
        if ends:
            return after[: min(ends)]
        # Templates put white space after the end-of-turn mark; the model stops before it.
        return after.rstrip() or (self.tokenizer.eos_token or "")


def _calling(arguments: Any) -> dict[str, Any]:
    call = {"id": _ID, "type": "function", "function": {"name": _T, "arguments": arguments}}
    return {**_turn("assistant", ""), "tool_calls": [call]}


def _in_parts(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn whose content is the list of its parts, if it has any."""
    found = {k: v for k, v in turn.items() if k != "parts"}
    if parts := turn.get("parts"):
        found["content"] = [{"type": "text", "text": text} for text in parts]
    return found


def _left_out(what: str) -> DataError:
    return DataError(
        f"{what}: the model's chat template leaves them out",
        "take such rows out, or give a template that renders them: model.chat_template: FILE",
    )


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}
