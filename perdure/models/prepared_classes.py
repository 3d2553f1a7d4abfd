"""Rows of classes tokenized before weights are loaded, and kept: each text once a run.

What a classifier reads is `perdure.models.class_rows`. Where a decoder learns to write, its class
stands behind a row: " {label}" and the token that ends a text, as in SEQ*'s released code (arXiv
2312.07887).
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from typing import TYPE_CHECKING, Any

from perdure.errors import DataError, PerdureError
from perdure.models.chat import IGNORE
from perdure.models.class_rows import TEXT, ClassEncoder, context_of
from perdure.models.specials import special_pattern
from perdure.streams.task import Row, Task, place_of

if TYPE_CHECKING:
    from perdure.recipe.schema import Recipe


class KeptLengths:
    """The tokens of each row of a split; the ids themselves are kept by their text."""

    def __init__(self) -> None:
        self.splits: dict[Hashable, list[int]] = {}

    def begin(self, split: Hashable) -> None:
        """Begin a split of this name, without rows."""
        self.splits[split] = []

    def add(self, split: Hashable, row: Row, encoded: dict[str, Any], cut: bool) -> None:
        """Keep a row behind the others of its split."""
        self.splits[split].append(len(encoded["input_ids"]))


class PreparedClasses(ClassEncoder):
    """A `perdure.engine.rows.RowEncoder` of classes. Its arguments are those of `ClassEncoder`."""

    def __init__(
        self, tokenizer: Any, template: str | None, max_length: int, pooling: str, **more: Any
    ) -> None:
        super().__init__(tokenizer, template, max_length, pooling, **more)
        self._of_room = partial(ClassEncoder, tokenizer, template, pooling=pooling, **more)
        self.kept = KeptLengths()
        self._answers: dict[str, list[int]] = {}
        self._shorter: dict[int, ClassEncoder] = {}
        self._specials = special_pattern(tokenizer)

    @property
    def cut_told(self) -> str:
        """What happens to a row that is cut, to end a sentence with."""
        more = "the model reads no more"
        if self.limit < self.most:
            more = "train.max_length may be raised"
        if self.truncate == "right":
            lost = "the end is left out, template and markers too (model.truncate: right)"
        else:
            lost = "the end of the text is left out, of a relation's what is outside its entities; "
            lost += "template and markers stay"
        return f"more than {self.limit} tokens: {lost}; {more}"

    def lengths(self, split: Hashable) -> list[int]:
        """Tokens of each row that was kept of a split."""
        return self.kept.splits[split]

    def mistakes(self, task: Task) -> list[PerdureError]:
        """Nothing: the head tells classes apart, not the tokens of their names."""
        return []

    def encode_and_tell(self, row: Row, limited: bool = True) -> tuple[dict[str, Any], bool]:
        """As `encode`, and whether the row's text lost a part.

        Raises:
            DataError: as `encode`, but without the row's place, which whoever asks knows.
        """
        try:
            return self.encode(row), row["text"] in self.cut
        except DataError as error:
            what = error.what.removeprefix(f"{place_of(row)}: ")
            raise DataError(what, error.remedy) from error

    def special_in(self, row: Row) -> tuple[str, bool] | None:
        """A special token that a row's text holds, which is read as such, and that it is not in an
        answer; None if there is none."""
        found = self._specials.search(row["text"]) if self._specials else None
        return (found[0], False) if found else None

    def encode_answer(self, row: Row) -> dict[str, Any]:
        """The row with its class's name behind it, and what ends a text.

        Returns: `{"input_ids": [...], "labels": [...]}`, labels on the name and the end alone.
        """
        answer = self.answer_ids(row["label"])
        prompt = self.encode(row)["input_ids"]
        room = self.limit - len(answer)
        if len(prompt) > room:
            if room not in self._shorter:
                self._shorter[room] = self._of_room(max_length=room)
            prompt = self._shorter[room].encode(row)["input_ids"]
        return {"input_ids": prompt + answer, "labels": [IGNORE] * len(prompt) + answer}

    def answer_ids(self, label: str) -> list[int]:
        """Token ids of a class's name as it is written behind a text, and of the text's end."""
        if label not in self._answers:
            # Behind the template's last word, as a tokenizer may mark where a text begins.
            front = self.template.replace(TEXT, "")
            before = self.tokenizer(front)["input_ids"]
            both = self.tokenizer(f"{front} {label}")["input_ids"]
            if before and both[: len(before)] == before:
                found = both[len(before) :]
            else:
                found = self.tokenizer(f" {label}", add_special_tokens=False)["input_ids"]
            self._answers[label] = [*found, self.tokenizer.eos_token_id]
        return self._answers[label]


def class_encoder(recipe: Recipe, tokenizer: Any = None) -> PreparedClasses:
    """The encoder of a recipe's rows; without `tokenizer` it is the base model's, and is loaded.

    Raises:
        ModelError: as `perdure.models.load.load_tokenizer`.
        UsageError: the pooling needs what the tokenizer does not tell.
    """
    from perdure.models.configuration import is_decoder, pooling_of, read_config
    from perdure.models.load import load_tokenizer

    config = read_config(recipe.model, causal=False)
    tokenizer = tokenizer or load_tokenizer(recipe.model, config, causal=False)
    pooling = pooling_of(config, recipe.model.pooling)
    return PreparedClasses(
        tokenizer, recipe.model.template, recipe.train.max_length, pooling,
        context=context_of(config), decoder=is_decoder(config), truncate=recipe.model.truncate,
    )  # fmt: skip
