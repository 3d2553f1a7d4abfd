"""Rows of tasks with classes as token ids: the text in its template, cut so that no frame is lost.

    encoder   the text as it is
    decoder   "Input sentence: {text}\\n The label:", whose last token is the feature

Source of the template: SEQ*'s released code (arXiv 2312.07887).
"""

from __future__ import annotations

from typing import Any

from perdure.errors import DataError, brief
from perdure.streams.task import place_of

TEXT = "{text}"
SENTENCE = "Input sentence: {text}\n The label:"


class ClassEncoder:
    """Tokenizes rows of the kind "classification".

    Args:
        template: the text that is read, with {text} in it; None: the text alone, of "last" pooling
            (decoders) SEQ*'s template.
        max_length: tokens at most; a longer text loses its end, the template never anything.
    """

    def __init__(self, tokenizer: Any, template: str | None, max_length: int, pooling: str) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.template = template or (SENTENCE if pooling == "last" else TEXT)
        self.cut = 0
        """How many texts lost their end."""
        self._known: dict[str, list[int]] = {}

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def encode(self, row: dict[str, Any]) -> dict[str, Any]:
        """`{"input_ids": [...]}`; each text is tokenized once.

        Raises:
            DataError: the template alone is longer than `max_length`.
        """
        text = row["text"]
        if text not in self._known:
            self._known[text] = self._ids(text, row)
        return {"input_ids": self._known[text]}

    def _ids(self, text: str, row: dict[str, Any]) -> list[int]:
        limit = min(self.max_length, int(self.tokenizer.model_max_length))
        whole = self._tokens(text)
        if len(whole) <= limit:
            return whole
        self.cut += 1
        low, high = 0, len(text)
        while low < high:  # the longest beginning of the text that fits
            middle = (low + high + 1) // 2
            if len(self._tokens(text[:middle])) <= limit:
                low = middle
            else:
                high = middle - 1
        if not low:
            where = place_of(row) or f'the row "{brief(text)}"'
            raise DataError(
                f"{where}: no word fits into {limit} tokens beside the template",
                "raise train.max_length, or shorten model.template",
            )
        return self._tokens(text[:low].rstrip())

    def _tokens(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(self.template.replace(TEXT, text))["input_ids"]
        return found
