"""Rows of text to token ids, with the base model's own chat template; only the answer is trained.

An encoded row is `{"input_ids": [...], "labels": [...]}` of equal length, with labels -100 on the
prompt. The prompt and the answer are tokenised apart, so that scoring can share the prompt's
forward pass among answers and sees exactly the tokens that training saw.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perdure.errors import DataError, PerdureError, task_named
from perdure.models.kept_rows import KeptRows
from perdure.models.specials import special_pattern, special_tokens
from perdure.models.templates import ChatTemplate
from perdure.models.tokens import ids_of, ids_together
from perdure.recipe.schema import Recipe
from perdure.streams.labels import same_tokens
from perdure.streams.tagged import OPENING, TAGS
from perdure.streams.task import Row, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

IGNORE = -100  # the label that cross entropy skips, transformers' convention
PREFILL = "prefill"
"""The key of rows whose answer goes on behind what their prompt opens; it may be empty."""


class Encoder:
    """Turns rows of one schema (`perdure.streams.task`) into token ids.

    Args:
        tokenizer: a `transformers` tokenizer.
        chat_template: "auto" uses the tokenizer's own template where it has one, "none" writes
            plain text, anything else is a Jinja template or the path of one.
        max_length: tokens of prompt and answer together; `None` is unbounded.
        max_prompt_length: tokens of a prompt; a longer one loses its middle. `None` is unbounded.
        variables: of the template, such as `enable_thinking`.

    Attributes:
        kept: the rows of a stream that were encoded (`perdure.engine.rows.encode_stream`); they
            are looked up there and never tokenized again.
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
        text = self.template
        self._chat = None if text is None else ChatTemplate(tokenizer, text, variables)
        self._bos = self._leading_bos()
        self._header: tuple[str, list[int]] | None = None
        self._specials = special_pattern(tokenizer)
        self.kept = KeptRows()
        self._answers: dict[str, list[int]] = {}
        self._texts: dict[tuple[str, bool], NDArray[np.int32]] = {}

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id or 0)

    def lengths(self, split: Hashable) -> list[int]:
        """Tokens of each row that was kept of a split."""
        return self.kept.lengths(split)

    def prompt_text(self, row: Row) -> str:
        """The text before the answer, rendered by the template up to the assistant's turn.

        It ends in the row's `prefill`, unless the template has opened that itself.
        """
        if PREFILL in row:
            return self._opened(row)[0]
        return self._bare_prompt(row) if self._chat is None else self._chat.prompt(row)

    def prefilled(self, row: Row) -> bool:
        """Whether a row's prompt ends in an opened reasoning, by its `prefill` or its template."""
        return self.prompt_text(row).rstrip().endswith(OPENING)

    def _opened(self, row: Row) -> tuple[str, str]:
        """Prompt and answer of a row whose answer may go on behind what the prompt opens."""
        sent = self._bare_prompt(row) if self._chat is None else self._chat.sent(row)
        if not sent.rstrip().endswith(row[PREFILL].strip()):
            sent += row[PREFILL]
        answer = str(row["answer"])
        for opening in (row[PREFILL], OPENING):
            if opening and answer.startswith(opening) and sent.rstrip().endswith(opening.strip()):
                return sent, answer[len(opening) :]
        return sent, answer

    def _bare_prompt(self, row: Row) -> str:
        return "\n".join(turn["content"] for turn in row["prompt"]) + "\n"

    @property
    def end(self) -> str:
        """The text that ends an answer."""
        return self._chat.known.end if self._chat else self.tokenizer.eos_token or ""

    def pin(self, today: date) -> None:
        """Have templates that write the date write this one; what was encoded is forgotten."""
        if self._chat is not None and self._chat.today != today:
            self._chat.pin(today)
            self.kept.clear()
            self._answers.clear()

    @property
    def today(self) -> date | None:
        """The day whose date templates write; None without a template."""
        return self._chat.today if self._chat else None

    def prompt_ids(self, row: Row) -> list[int]:
        """Token ids of all before the answer.

        What is cut is the middle: the instruction stands in front, the sign to answer at the end.
        """
        if (kept := self.kept.find(row)) is not None:
            return _parted(kept)[0]
        ids = self._ids(self.prompt_text(row))
        return self._within(ids if self._chat is not None else self._bos + ids)

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer and what ends the turn, as they are behind a prompt.

        A server's prompt is tokenized apart from what the model writes, and so is an answer here;
        only blanks that the template puts before it are joined to its first word. The answer is
        kept, as labels are asked for again and again.
        """
        if answer not in self._answers:
            self._answers[answer] = self._plain_answer(answer)
        return list(self._answers[answer])

    def parts(self, row: Row) -> tuple[list[int], list[int]]:
        """`prompt_ids` of a row, and the ids of its answer with all that belongs to its turn."""
        if (kept := self.kept.find(row)) is not None:
            return _parted(kept)
        prompt, answer = self._whole(row)
        return self._within(prompt), answer

    def _whole(self, row: Row) -> tuple[list[int], list[int]]:
        """As `parts`, with a prompt of any length; each text is rendered and tokenized once."""
        if PREFILL in row:
            prompt, answer = self._opened(row)
            begun = [] if self._chat is not None else self._bos
            return begun + self._ids(prompt), self._written_ids(answer + self.end, row[PREFILL])
        if self._chat is None:
            _refuse_parts(row)
            return self._bos + self._ids(self.prompt_text(row)), self._answer(row["answer"])
        if self._chat.is_plain(row):
            return self._ids(self._chat.prompt(row)), self._answer(row["answer"])
        prompt, answer = self._chat.split(row)
        return self._ids(prompt), self._written_ids(answer)

    def _within(self, prompt: list[int]) -> list[int]:
        most = self.max_prompt_length
        if most is None or len(prompt) <= most:
            return prompt
        return prompt[: most - most // 2] + prompt[-(most // 2) :]

    def _answer(self, answer: str) -> list[int]:
        """`answer_ids` of a row's own answer: free texts are not kept, as each is met once."""
        kept = self._answers.get(answer)
        return self._plain_answer(answer) if kept is None else list(kept)

    def _plain_answer(self, answer: str) -> list[int]:
        return self._written_ids(
            answer + self.end if self._chat is None else self._chat.answer(answer)
        )

    def answer_text(self, row: Row) -> str:
        """A row's answer as `perdure.models.generate.generate` would return it."""
        if not row.get("turn"):
            return str(row["answer"])
        ids = self.parts(row)[1]
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return (text.split(self.end)[0] if self.end else text).strip()

    def _written_ids(self, written: str, header: str = "") -> list[int]:
        """Token ids of a text behind a header, which is the template's own unless it is given."""
        return self._written_of([written], header)[0]

    def _written_of(self, written: Sequence[str], header: str = "") -> list[list[int]]:
        """The same of several texts."""
        header = header or ("" if self._chat is None else self._chat.known.header)
        if not header:
            return ids_together(self.tokenizer, written)
        head = self._header_ids(header)
        every = ids_together(self.tokenizer, [header + text for text in written])
        return [
            # Sentencepiece marks the beginning of a text.
            both[len(head) :] if head and both[: len(head)] == head else self._ids(text)
            for text, both in zip(written, every, strict=True)
        ]

    def _header_ids(self, header: str) -> list[int]:
        if self._header is None or self._header[0] != header:
            self._header = (header, self._ids(header))
        return self._header[1]

    @property
    def cut_told(self) -> str:
        """What happens to a row that is cut, to end a sentence with."""
        return f"a prompt of more than {self.max_prompt_length} tokens: its middle is left out"

    def mistakes(self, task: Task) -> list[PerdureError]:
        """Labels of a task that the tokenizer cannot tell apart, and tags that are special."""
        found: list[PerdureError] = list(same_tokens(task.name, task.labels, self.answer_ids))
        tags = set(TAGS) if task.answer == "tagged" else set()
        if special := sorted(tags & special_tokens(self.tokenizer)):
            who = f"{task_named(task.name)}: answer: tagged"
            what = f"{who}: {special[0]} is a special token of the model's"
            remedy = "make it an ordinary one (special: false in tokenizer_config.json and "
            remedy += "tokenizer.json), or learn without reasoning: answer: plain"
            found.append(DataError(f"{what} tokenizer, which servers leave out of answers", remedy))
        return found

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
        return row if "input_ids" in row else self.encode_and_tell(row)[0]

    def encode_and_tell(self, row: Row, limited: bool = True) -> tuple[dict[str, Any], bool]:
        """As `encode`, and whether the row's prompt is longer than `max_prompt_length`.

        Args: limited: by `max_length`; False where the row's answer is not trained on.
        """
        if (kept := self.kept.find(row)) is not None:
            return kept, self.kept.was_cut(row)
        return self._encoded(row, *self._whole(row), limited)

    def encode_together(
        self, rows: Sequence[Row], limited: bool = True
    ) -> list[tuple[dict[str, Any], bool] | DataError]:
        """What `encode_and_tell` gives of each row, or the error that it raises, in a third of the
        time: texts are rendered and tokenized together, equal rows and answers once."""
        places: dict[bytes, list[int]] = {}
        for i, content in enumerate(self.kept.contents_of(rows)):
            places.setdefault(content, []).append(i)
        new = [same[0] for content, same in places.items() if content not in self.kept]
        wholes = dict(zip(new, self._wholes([rows[i] for i in new]), strict=True))
        found: dict[int, Any] = {}
        for first, *others in places.values():
            row, whole = rows[first], wholes.get(first)
            encode: Any = partial(self.encode_and_tell, row)
            encode = partial(self._encoded, row, *whole) if whole else encode
            try:
                one: Any = encode(limited)
            except DataError as error:
                one = error
            found |= dict.fromkeys((first, *others), one)
        return [found[i] for i in range(len(rows))]

    def _wholes(self, rows: Sequence[Row]) -> Sequence[tuple[list[int], list[int]] | None]:
        """As `_whole` of each row; None of one that has to be encoded by itself."""
        if (chat := self._chat) is None:
            return [None] * len(rows)
        alone = [PREFILL in row or bool(row.get("tools")) or not chat.is_plain(row) for row in rows]
        plain = [row for row, single in zip(rows, alone, strict=True) if not single]
        try:
            prompts = ids_together(self.tokenizer, chat.prompts(plain)) if plain else []
            new = {row["answer"]: "" for row in plain if row["answer"] not in self._answers}
            answers = dict(zip(new, self._written_of([*map(chat.answer, new)]), strict=True))
        except PerdureError:  # of one of them: each tells for itself
            return [None] * len(rows)
        found = iter(prompts)
        return [
            None
            if single
            else (next(found), [*(self._answers.get(row["answer"]) or answers[row["answer"]])])
            for row, single in zip(rows, alone, strict=True)
        ]

    def _encoded(
        self, row: Row, whole: list[int], answer: list[int], limited: bool
    ) -> tuple[dict[str, Any], bool]:
        prompt = self._within(whole)
        if limited and self.max_length is not None and len(prompt) + len(answer) > self.max_length:
            raise DataError(
                f"row starting {row['prompt'][-1]['content'][:40]!r}: "
                f"{len(prompt) + len(answer)} tokens, the limit is {self.max_length}",
                "shorten the row, raise train.max_length, or "
                f"{'lower' if self.max_prompt_length else 'set'} model.max_prompt_length",
            )
        encoded = {"input_ids": prompt + answer, "labels": [IGNORE] * len(prompt) + answer}
        return encoded, len(prompt) < len(whole)

    def encode_text(
        self, text: str, max_tokens: int | None = None, special: bool = False
    ) -> dict[str, Any]:
        """Encode plain text; every position is a label. A text is tokenized once and kept.

        Args: special: with the special tokens that the tokenizer puts around a text.
        """
        ids = self._text(text, special)[:max_tokens].tolist()
        return {"input_ids": ids, "labels": list(ids)}

    def _text(self, text: str, special: bool) -> NDArray[np.int32]:
        around = self._around
        key = (text, special and around is None)
        if key not in self._texts:
            ids = self.tokenizer(text, add_special_tokens=key[1])["input_ids"]
            self._texts[key] = np.array(list(ids), dtype=np.int32)
        kept = self._texts[key]
        if not special or around is None or not any(around):
            return kept
        before, behind = (np.array(part, dtype=np.int32) for part in around)
        return np.concatenate([before, kept, behind])

    @cached_property
    def _around(self) -> tuple[list[int], list[int]] | None:
        """The special tokens before and behind a text; None where they cannot be told apart."""
        whole, bare = (
            list(self.tokenizer("a", add_special_tokens=added)["input_ids"])
            for added in (True, False)
        )
        size = len(bare)
        found = [at for at in range(len(whole) - size + 1) if whole[at : at + size] == bare]
        return (whole[: found[0]], whole[found[0] + size :]) if bare and len(found) == 1 else None

    @cached_property
    def end_ids(self) -> list[int]:
        """Token ids of `end`."""
        return self._ids(self.end) if self.end else []

    def _ids(self, text: str) -> list[int]:
        return ids_of(self.tokenizer, text)

    def _leading_bos(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        ids = self.tokenizer("a")["input_ids"]
        return [bos] if bos is not None and ids and ids[0] == bos else []


def _parted(encoded: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Prompt and answer of an encoded row."""
    prompt = encoded["labels"].count(IGNORE)
    return encoded["input_ids"][:prompt], encoded["input_ids"][prompt:]


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


def base_encoder(recipe: Recipe) -> Encoder:
    """The encoder of a recipe's rows, with its base model's own tokenizer; loads no weight."""
    from perdure.models.load import load_tokenizer

    return recipe_encoder(load_tokenizer(recipe.model), recipe)


def recipe_encoder(tokenizer: Any, recipe: Recipe) -> Encoder:
    """The encoder of a recipe's rows."""
    model, longest = recipe.model, recipe.train.max_length
    kwargs = model.chat_template_kwargs
    return Encoder(tokenizer, model.chat_template, longest, model.max_prompt_length, kwargs)
