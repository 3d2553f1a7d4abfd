"""Rows of tasks with classes as token ids: the text in its template, cut so that no frame is lost.

    encoder   the text as it is
    decoder   "Input sentence: {text}\\n The label:", whose last token is the feature
    and where a decoder learns to write: " {label}" and the token that ends a text

Source of the template: SEQ*'s released code (arXiv 2312.07887).
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from perdure.errors import DataError, PerdureError, UsageError, brief
from perdure.models.chat import IGNORE

if TYPE_CHECKING:
    from perdure.recipe.schema import Recipe
    from perdure.streams.task import Task

TEXT = "{text}"
SENTENCE = "Input sentence: {text}\n The label:"


class KeptLengths:
    """The tokens of each row of a split; the ids themselves are kept by their text."""

    def __init__(self) -> None:
        self.splits: dict[Hashable, list[int]] = {}

    def begin(self, split: Hashable) -> None:
        """Begin a split of this name, without rows."""
        self.splits[split] = []

    def add(self, split: Hashable, row: Any, encoded: dict[str, Any], cut: bool) -> None:
        """Keep a row behind the others of its split."""
        self.splits[split].append(len(encoded["input_ids"]))


class ClassEncoder:
    """Tokenizes rows of the kind "classification".

    Args:
        template: the text that is read, with {text} in it; None: the text alone, of "last" pooling
            (decoders) SEQ*'s template.
        max_length: tokens at most; a longer text loses its end, the template never anything.
    """

    def __init__(self, tokenizer: Any, template: str | None, max_length: int, pooling: str) -> None:
        self.tokenizer, self.max_length, self.pooling = tokenizer, max_length, pooling
        self.template = template or (SENTENCE if pooling == "last" else TEXT)
        self.kept = KeptLengths()
        self._known: dict[str, list[int]] = {}
        self._cut: set[str] = set()
        self._answers: dict[str, list[int]] = {}
        tokens = [re.escape(str(t)) for t in tokenizer.all_special_tokens if str(t).strip()]
        self._specials = re.compile("|".join(tokens)) if tokens else None

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @property
    def cut(self) -> int:
        """How many texts lost their end."""
        return len(self._cut)

    @property
    def cut_told(self) -> str:
        """What happens to a row that is cut, to end a sentence with."""
        return f"a text of more than {self.limit} tokens: its end is left out"

    @property
    def limit(self) -> int:
        """Tokens that a row may have."""
        return min(self.max_length, int(self.tokenizer.model_max_length))

    def lengths(self, split: Hashable) -> list[int]:
        """Tokens of each row that was kept of a split."""
        return self.kept.splits[split]

    def encode(self, row: dict[str, Any]) -> dict[str, Any]:
        """`{"input_ids": [...]}`; each text is tokenized once.

        Raises:
            DataError: the template alone is longer than `max_length`.
            UsageError: the feature is read at entities, and the row has none.
        """
        text = row["text"]
        if text not in self._known:
            self._known[text] = self._ids(row, self.limit)
        found = {"input_ids": self._known[text]}
        if self.pooling == "entity_starts" and "entity_starts" not in found:
            raise UsageError(
                "model.pooling: entity_starts: the tasks' rows have no entities",
                "write mean, cls or last, or take a format of rows with entities",
            )
        return found

    def encode_and_tell(self, row: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """As `encode`, and whether the row's text lost its end."""
        return self.encode(row), row["text"] in self._cut

    def mistakes(self, task: Task) -> list[PerdureError]:
        """Nothing: the head tells classes apart, not the tokens of their names."""
        return []

    def special_in(self, row: dict[str, Any]) -> tuple[str, bool] | None:
        """A special token that a row's text holds, which is read as such, and that it is not in an
        answer; None if there is none."""
        found = self._specials.search(row["text"]) if self._specials else None
        return (found[0], False) if found else None

    def encode_answer(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its class's name behind it, and what ends a text.

        Returns: `{"input_ids": [...], "labels": [...]}`, labels on the name and the end alone.
        """
        answer = self.answer_ids(row["label"])
        prompt = self.encode(row)["input_ids"]
        if len(prompt) + len(answer) > self.limit:
            prompt = self._ids(row, self.limit - len(answer))
        return {"input_ids": prompt + answer, "labels": [IGNORE] * len(prompt) + answer}

    def answer_ids(self, label: str) -> list[int]:
        """Token ids of a class's name as it is written behind a text, and of the text's end."""
        if label not in self._answers:
            # Behind the template's last word, as a tokenizer may mark where a text begins.
            front = self._tokens("").copy()
            both = self.tokenizer(f"{self.template.replace(TEXT, '')} {label}")["input_ids"]
            if both[: len(front)] != front:
                both = self.tokenizer(f" {label}", add_special_tokens=False)["input_ids"]
                front = []
            self._answers[label] = [*both[len(front) :], self.tokenizer.eos_token_id]
        return self._answers[label]

    def _ids(self, row: dict[str, Any], limit: int) -> list[int]:
        text = row["text"]
        whole = self._tokens(text)
        if len(whole) <= limit:
            return whole
        self._cut.add(text)
        low, high = 0, len(text)
        while low < high:  # the longest beginning of the text that fits
            middle = (low + high + 1) // 2
            if len(self._tokens(text[:middle])) <= limit:
                low = middle
            else:
                high = middle - 1
        if not low:
            raise DataError(
                f'no word of "{brief(text)}" fits into {limit} tokens beside the template',
                "raise train.max_length, or shorten model.template",
            )
        return self._tokens(text[:low].rstrip())

    def _tokens(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(self.template.replace(TEXT, text))["input_ids"]
        return found


def class_encoder(recipe: Recipe, tokenizer: Any = None) -> ClassEncoder:
    """The encoder of a recipe's rows; without `tokenizer` it is the base model's, and is loaded.

    Raises:
        ModelError: as `perdure.models.load.load_tokenizer`.
    """
    from perdure.models.configuration import pooling_of, read_config
    from perdure.models.load import load_tokenizer

    config = read_config(recipe.model, causal=False)
    tokenizer = tokenizer or load_tokenizer(recipe.model, config, causal=False)
    pooling = pooling_of(config, recipe.model.pooling)
    return ClassEncoder(tokenizer, recipe.model.template, recipe.train.max_length, pooling)
