"""Rows of text to token ids, with the base model's own chat template; only the answer is trained.

An encoded row is `{"input_ids": [...], "labels": [...]}` of equal length, with labels -100 on the
prompt. The prompt and the answer are tokenised apart, so that scoring can share the prompt's
forward pass among answers and sees exactly the tokens that training saw.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perdure.errors import DataError
from perdure.models.templates import ChatTemplate
from perdure.recipe.schema import Recipe
from perdure.streams.task import Row

if TYPE_CHECKING:
    from datasets import Dataset

IGNORE = -100  # the label that cross entropy skips, transformers' convention


class Encoder:
    """Turns rows of one schema (`perdure.streams.task`) into token ids.

    Args:
        tokenizer: a `transformers` tokenizer.
        chat_template: "auto" uses the tokenizer's own template where it has one, "none" writes
            plain text, anything else is a Jinja template or the path of one.
        max_length: tokens of prompt and answer together; `None` is unbounded.
        max_prompt_length: tokens of a prompt; a longer one loses its middle. `None` is unbounded.
        variables: of the template, such as `enable_thinking`.
    """

    def __init__(
        self,
        tokenizer: Any,
        chat_template: str = "auto",
        max_length: int | None = None,
        max_prompt_length: int | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.max_prompt_length = max_prompt_length
        self.template: str | None = None
        if chat_template == "auto":
            self.template = tokenizer.chat_template
        elif "{{" in chat_template or "{%" in chat_template:
            self.template = chat_template
        elif chat_template != "none":
            self.template = Path(chat_template).read_text(encoding="utf-8")
        self._chat: ChatTemplate | None = None
        if self.template is not None:
            self._chat = ChatTemplate(tokenizer, self.template, variables)
        self._bos = self._leading_bos()
        self._header: tuple[str, list[int]] | None = None
        tokens = [re.escape(str(t)) for t in tokenizer.all_special_tokens if str(t).strip()]
        self._specials = re.compile("|".join(tokens)) if tokens else None
        self._new: dict[Hashable, dict[str, Any]] = {}  # a split's columns, before they are Arrow
        self._kept: dict[Hashable, Dataset] = {}
        self._lengths: dict[Hashable, list[int]] = {}
        self._places: dict[bytes, tuple[Hashable, int]] = {}  # by a row's content

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id or 0)

    def remember(self, split: Hashable, rows: Sequence[tuple[Row, dict[str, Any]]]) -> None:
        """Keep rows that were encoded, so that no row is tokenized twice.

        Args: split: names them, for `lengths`; rows: each with what `encode` gave for it.
        """
        self._lengths[split] = [len(encoded["input_ids"]) for _, encoded in rows]
        self._new[split] = {  # a list of Python's numbers would take ten times the memory
            key: [np.array(encoded[key], dtype=np.int32) for _, encoded in rows]
            for key in ("input_ids", "labels")
        }
        for number, (row, _) in enumerate(rows):
            self._places.setdefault(_content(row), (split, number))

    def lengths(self, split: Hashable) -> list[int]:
        """Tokens of each remembered row of a split."""
        return self._lengths[split]

    def dataset(self, split: Hashable) -> Dataset:
        """The remembered rows of a split, columns `input_ids` and `labels`."""
        if split in self._new:  # made when it is first asked for: a check alone never does
            from datasets import Dataset

            self._kept[split] = Dataset.from_dict(self._new.pop(split))
        return self._kept[split]

    def _remembered(self, row: Row) -> dict[str, Any] | None:
        if not self._places or (place := self._places.get(_content(row))) is None:
            return None
        split, number = place
        if (new := self._new.get(split)) is not None:  # a row that is there twice, in a check
            return {key: column[number].tolist() for key, column in new.items()}
        found: dict[str, Any] = self._kept[split][number]
        return found

    def prompt_text(self, row: Row) -> str:
        """The text before the answer, rendered by the template up to the assistant's turn."""
        if self._chat is None:
            return "\n".join(turn["content"] for turn in row["prompt"]) + "\n"
        return self._chat.prompt(row)

    @property
    def end(self) -> str:
        """The text that ends an answer."""
        return self._chat.known.end if self._chat else self.tokenizer.eos_token or ""

    def pin(self, today: date) -> None:
        """Have templates that write the date write this one."""
        if self._chat is not None:
            self._chat.pin(today)

    @property
    def today(self) -> date | None:
        """The day whose date templates write; None without a template."""
        return self._chat.today if self._chat else None

    def prompt_ids(self, row: Row) -> list[int]:
        """Token ids of all before the answer.

        What is cut is the middle: the instruction stands in front, the sign to answer at the end.
        """
        if (kept := self._remembered(row)) is not None:
            return list(kept["input_ids"][: kept["labels"].count(IGNORE)])
        ids = self._whole_prompt(row)
        most = self.max_prompt_length
        if most is None or len(ids) <= most:
            return ids
        return ids[: most - most // 2] + ids[-(most // 2) :]

    def is_cut(self, row: Row) -> bool:
        """Whether a row's prompt is longer than `max_prompt_length`."""
        most = self.max_prompt_length
        return most is not None and len(self._whole_prompt(row)) > most

    def _whole_prompt(self, row: Row) -> list[int]:
        ids = self._ids(self.prompt_text(row))
        return ids if self.template is not None else self._bos + ids

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer and what ends the turn, as they are behind a prompt.

        A server's prompt is tokenized apart from what the model writes, and so is an answer here;
        only blanks that the template puts before it are joined to its first word.
        """
        return self._written_ids(
            answer + self.end if self._chat is None else self._chat.answer(answer)
        )

    def answer_ids_of(self, row: Row) -> list[int]:
        """`answer_ids` of a row's answer, with the tools that it calls and what it thinks first."""
        if self._chat is None:
            _refuse_parts(row)
            return self.answer_ids(row["answer"])
        return self._written_ids(self._chat.answer_of(row))

    def answer_text(self, row: Row) -> str:
        """A row's answer as `perdure.models.generate.generate` would return it."""
        if not row.get("turn"):
            return str(row["answer"])
        ids = self.answer_ids_of(row)
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return (text.split(self.end)[0] if self.end else text).strip()

    def _written_ids(self, written: str) -> list[int]:
        if self._chat is None:
            return self._ids(written)
        header = self._chat.known.header
        head = self._header_ids(header)
        both = self._ids(header + written)
        if head and both[: len(head)] == head:  # sentencepiece marks the beginning of a text
            return both[len(head) :]
        return self._ids(written)

    def _header_ids(self, header: str) -> list[int]:
        if self._header is None or self._header[0] != header:
            self._header = (header, self._ids(header))
        return self._header[1]

    def special_in(self, row: Row) -> tuple[str, bool] | None:
        """A special token that a row's own texts hold, which is read as such.

        Returns: the first one, and whether it stands in the answer; None if there is none.
        """
        if self._specials is None:
            return None
        if found := self._specials.search(str(row["answer"])):
            return found[0], True
        for turn in row["prompt"]:
            if found := self._specials.search(str(turn["content"])):
                return found[0], False
        return None

    def encode(self, row: Row) -> dict[str, Any]:
        """Encode one row; a row that is encoded already comes back as it is.

        Raises:
            DataError: prompt and answer are longer than `max_length` tokens.
        """
        if "input_ids" in row:
            return row
        if (kept := self._remembered(row)) is not None:
            return kept
        prompt, answer = self.prompt_ids(row), self.answer_ids_of(row)
        if self.max_length is not None and len(prompt) + len(answer) > self.max_length:
            raise DataError(
                f"row starting {row['prompt'][-1]['content'][:40]!r}: "
                f"{len(prompt) + len(answer)} tokens, the limit is {self.max_length}",
                "shorten the row, raise train.max_length, or "
                f"{'lower' if self.max_prompt_length else 'set'} model.max_prompt_length",
            )
        return {"input_ids": prompt + answer, "labels": [IGNORE] * len(prompt) + answer}

    def encode_text(self, text: str, max_tokens: int | None = None) -> dict[str, Any]:
        """Encode plain text, without special tokens; every position is a label."""
        ids = self._ids(text)[:max_tokens]
        return {"input_ids": ids, "labels": list(ids)}

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _leading_bos(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        ids = self.tokenizer("a")["input_ids"]
        return [bos] if bos is not None and ids and ids[0] == bos else []


def _refuse_parts(row: Row) -> None:
    """What only a chat template can render must not be dropped without one."""
    turn = [key for key in row.get("turn", ()) if key != "parts"]  # they are in the text too
    beside = [*turn, *(["tools"] if row.get("tools") else [])]
    for turn in row["prompt"]:
        beside += [key for key in ("tool_calls", "reasoning_content") if turn.get(key)]
    if beside:
        raise DataError(
            f"{beside[0]}: without a chat template it would be left out",
            "take such rows out, or give a template: model.chat_template: FILE",
        )


def _content(row: Row) -> bytes:
    """A hash of what decides a row's tokens: rows that are equal in it are encoded alike."""
    text = repr([row.get(key) for key in ("prompt", "answer", "turn", "tools")])
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def base_encoder(recipe: Recipe) -> Encoder:
    """The encoder of a recipe's rows, with its base model's own tokenizer; loads no weight."""
    from perdure.models.load import load_tokenizer

    return recipe_encoder(load_tokenizer(recipe.model), recipe)


def recipe_encoder(tokenizer: Any, recipe: Recipe) -> Encoder:
    """The encoder of a recipe's rows."""
    model, longest = recipe.model, recipe.train.max_length
    kwargs = model.chat_template_kwargs
    return Encoder(tokenizer, model.chat_template, longest, model.max_prompt_length, kwargs)
