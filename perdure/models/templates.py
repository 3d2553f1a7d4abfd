"""What is known of a chat template: where an answer begins and ends, found by rendering sentinels.

`tokenizer.apply_chat_template` is the one renderer. What it does with system turns, blanks, think
blocks and the generation prompt is learned once for each template, from conversations whose texts
are sentinels, so that prompt + answer + end is what the template gives for the whole conversation.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from typing import Any

from perdure.errors import DataError, ModelError
from perdure.models.limits import limited

logger = logging.getLogger("perdure")
Messages = Sequence[Mapping[str, Any]]
ROLES = ("system", "user", "assistant", "tool")
_S, _U, _A, _U2, _A2 = (f"Perdure{name}Goes{name}Here" for name in "SUAVB")
_TODAY = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
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
    """

    folds: bool
    trims: tuple[bool, bool]
    shown: frozenset[str]
    opens: bool
    blanks: str
    end: str
    header: str


class ChatTemplate:
    """A template of a tokenizer, with the variables that a recipe gives it.

    Args:
        text: the Jinja template.
        variables: `model.chat_template_kwargs`, such as `enable_thinking`.
        today: what `strftime_now` gives, so that a run that goes on next month has the prompts that
            it began with; None is the day of now.

    Raises:
        ModelError: the template shows no answer, or takes more than `perdure.models.limits`.
    """

    def __init__(
        self,
        tokenizer: Any,
        text: str,
        variables: Mapping[str, Any] | None = None,
        today: date | None = None,
    ) -> None:
        self.tokenizer, self.text, self.variables = tokenizer, text, dict(variables or {})
        self.today = today or datetime.now().date()

    def pin(self, today: date) -> None:
        """Render the date of another day from now on."""
        if today != self.today:
            self.today = today
            self.__dict__.pop("_dated", None)
            self.__dict__.pop("known", None)

    @cached_property
    def _dated(self) -> str:
        return _TODAY.sub(lambda m: '"' + self.today.strftime(m[2]) + '"', self.text)

    @cached_property
    def known(self) -> Known:
        """What the template does, learned at the first use."""
        folds = not self._shows(
            [_turn("system", _S), _turn("user", _U), _turn("assistant", _A)], _S
        )
        asked = [_turn("user", _U)]
        whole = self._tried([*asked, _turn("assistant", _A)])
        if whole is None or whole.count(_A) != 1:
            raise ModelError("the model's chat template does not show an answer", _REMEDY)
        before, after = whole.split(_A)
        sent = self._tried(asked, add_generation_prompt=True) or ""
        blanks = before[len(before.rstrip(" \t")) :]
        opens = self._opens(before, sent)
        padded = self._tried([*asked, _turn("assistant", f"  {_A}  ")]) or ""
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
        return Known(folds, trims, frozenset(shown), opens, blanks, end, header)

    def _opens(self, before: str, sent: str) -> bool:
        """Whether the generation prompt is the prompt; told where both cannot be had."""
        if before.rstrip(" \t") == sent.rstrip(" \t") or before == sent:
            return _U in sent
        if before.startswith(sent):  # no generation prompt, or more before the answer than it gives
            return False
        logger.warning(
            "the model's chat template begins an answer by %r in a finished conversation, and "
            "by %r where an answer is asked for: answers are trained and scored after the latter, "
            "as a server asks for them",
            before.rpartition(_U)[2],
            sent.rpartition(_U)[2],
        )
        return True

    def prompt(self, messages: Messages, tools: Any = None) -> str:
        """The text up to the answer to `messages`.

        Raises:
            DataError: the template refuses the conversation, or leaves out a turn.
        """
        turns = self._ready(messages)
        try:
            if self.known.opens:
                return self._apply(turns, tools, add_generation_prompt=True)
            whole = self._apply([*turns, _turn("assistant", _A)], tools)
        except ModelError:
            raise
        except Exception as error:  # whatever templates and jinja2 raise
            raise _refused(error) from error
        before, found, _ = whole.rpartition(_A)
        if not found:
            raise DataError("the model's chat template leaves out the answer", _REMEDY)
        return before[: len(before) - len(self.known.blanks)]

    def answer(self, text: str) -> str:
        """An answer as the template writes it, with blanks before it and its end."""
        left, right = self.known.trims
        text = text.lstrip() if left else text
        text = text.rstrip() if right else text
        return self.known.blanks + text + self.known.end

    def _ready(self, messages: Messages) -> list[dict[str, Any]]:
        turns = [dict(turn) for turn in messages]
        for turn in turns:
            role = turn["role"]
            if role not in self.known.shown and not (role == "system" and turn is turns[0]):
                raise DataError(
                    f"a turn of the role {role} is left out by the model's chat template", _REMEDY
                )
        if turns[0]["role"] == "system" and self.known.folds and len(turns) > 1:
            text = f"{turns[0]['content'].strip()}\n{turns[1]['content']}"
            turns = [{**turns[1], "content": text}, *turns[2:]]
        return turns

    def _shows_role(self, role: str) -> bool:
        if role == "user":
            return True
        turns = [_turn("user", _U), _turn("assistant", _A2)]
        if role == "tool":
            turns.append({"role": "tool", "name": "look", "content": _U2})
            return self._shows([*turns, _turn("assistant", _A)], _U2)
        return self._shows([*turns, _turn("user", _U2), _turn("assistant", _A)], _A2)

    def _shows(self, turns: list[dict[str, Any]], text: str) -> bool:
        return text in (self._tried(turns) or "")

    def _tried(self, turns: list[dict[str, Any]], **options: Any) -> str | None:
        try:
            return self._apply(turns, None, **options)
        except ModelError:
            raise
        except Exception:  # templates raise their own errors, e.g. "System role not supported"
            return None

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

    def _apply(self, turns: list[dict[str, Any]], tools: Any = None, **options: Any) -> str:
        def render() -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    turns,
                    tokenize=False,
                    chat_template=self._dated,
                    tools=tools,
                    **{**self.variables, **options},
                )
            )

        return limited(render, "the model's chat template")


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _refused(error: Exception) -> DataError:
    why = str(error).strip().partition("\n")[0] or type(error).__name__
    return DataError(
        f"the model's chat template refuses this conversation: {why}",
        "change its turns, leave it out, or take another template: model.chat_template",
    )
