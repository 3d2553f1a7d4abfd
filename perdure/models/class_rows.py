"""Rows of tasks with classes as token ids: the text in its template, cut so that no frame is lost.

    encoder   the text as it is, a relation's with the markers around its entities
    decoder   "Input sentence: {text}\\n The label:", whose last token is the feature; a relation as
              "Input sentence: {text}\\n The relationship between {head} and {tail} is", unmarked

Source of the templates: SEQ*'s released code (arXiv 2312.07887).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from perdure.errors import DataError, UsageError, brief
from perdure.streams.cells import CellError
from perdure.streams.kinds.relations import HEAD, TAIL, Relation, has_markers, relation, unmarked
from perdure.streams.task import Row, place_of

if TYPE_CHECKING:
    pass

TEXT, NAMES = "{text}", ("{head}", "{tail}")
SENTENCE = "Input sentence: {text}\n The label:"
RELATION = "Input sentence: {text}\n The relationship between {head} and {tail} is"


class ClassEncoder:
    """Tokenizes rows of the kind "classification".

    A text with markers around two entities is a relation's. Its markers stay, unless the template
    names {head} and {tail} and the feature is not read from the markers.

    Args:
        template: the text that is read, with {text}, and of relations {head} and {tail}, in it;
            None: of an encoder the text alone, of a decoder SEQ*'s templates.
        max_length: tokens at most. A longer text loses its end, a relation's first what is right
            of its second entity and then what is left of its first one; template, markers and
            what is between them stay.
        context: tokens that the model has places for; 0: not known.
        decoder: whose template is read; None: the one that pools the last token is a decoder.
        truncate: "right": a text that is too long loses the end of all that is read, template and
            markers too, as in the released code.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | None,
        max_length: int,
        pooling: str,
        context: int = 0,
        decoder: bool | None = None,
        truncate: str = "text_only",
    ) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        frames = pooling == "last" if decoder is None else decoder
        self.template = template or (SENTENCE if frames else TEXT)
        self.of_relations = template or (RELATION if frames else TEXT)
        most = int(tokenizer.model_max_length)
        self.most = min(most, context) if context else most
        """Tokens that the model reads, whatever `max_length` says."""
        self.limit = min(max_length, self.most)
        self.truncate = truncate
        self.starts = pooling == "entity_starts"
        self.unmarks = not self.starts and any(name in self.of_relations for name in NAMES)
        self.cut: set[str] = set()
        """Texts that lost a part."""
        self._known: dict[str, dict[str, Any]] = {}
        self._last: tuple[str | None, list[int]] = (None, [])
        if self.starts and not getattr(tokenizer, "is_fast", False):
            raise UsageError(
                "model.pooling: entity_starts needs a tokenizer that knows where its tokens stand "
                "in the text, and the model's does not",
                "take another pooling, or a model with a tokenizer.json",
            )

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def encode(self, row: Row) -> dict[str, Any]:
        """`{"input_ids": [...]}`, and for "entity_starts" the places of both entities' first
        markers, `[head, tail]`; each text is tokenized once.

        Raises:
            DataError: what must stay is longer than the limit, or a marker is missing or cut off.
        """
        text = row["text"]
        if text not in self._known:
            self._known[text] = self._encoded(text, row)
        return self._known[text]

    def _encoded(self, text: str, row: Row) -> dict[str, Any]:
        parts = None
        if has_markers(text) or self.starts:
            try:
                parts = relation(text)
            except CellError as wrong:
                # A text that is no relation's may speak of a marker.
                if "head" in row or self.starts:
                    where = _where(row)
                    raise DataError(f"{where}: {wrong.what}", wrong.remedy) from None
        filled = self._filled(parts) if parts else lambda left, right: self._plain(right)
        left, right = (parts.left, parts.right) if parts else ("", text)
        if self.truncate == "right":
            whole = filled(left, right)
            if self._count(whole) > self.limit:
                self.cut.add(text)
            return self._found(whole, row)
        least = 0 if parts else 1
        written = self._longest(lambda n: filled(left, _beginning(right, n)), len(right), least)
        if written is None and parts:
            written = self._longest(lambda n: filled(left[len(left) - n :], ""), len(left), 0)
        if written is None:
            rest = "the entities and what is between them do not fit" if parts else "no word fits"
            where = _where(row)
            more = "raise train.max_length, " if self.limit < self.most else ""
            raise DataError(
                f"{where}: {rest} into {self.limit} tokens beside the template",
                f"{more}shorten model.template, or take the row out",
                where.rpartition(":")[0],
            )
        if written != filled(left, right):
            self.cut.add(text)
        return self._found(written, row)

    def _plain(self, text: str) -> str:
        return self.template.replace(TEXT, text)

    def _filled(self, parts: Relation) -> Callable[[str, str], str]:
        """The template of a relation as a function of what is left and right of its entities."""

        def filled(left: str, right: str) -> str:
            text = left + parts.middle + right
            # What stands in the text is no place to fill, whatever it looks like.
            names = [_named(piece, parts) for piece in self.of_relations.split(TEXT)]
            return (unmarked(text) if self.unmarks else text).join(names)

        return filled

    def _longest(self, written: Callable[[int], str], most: int, least: int) -> str | None:
        """The text that keeps as many characters as fit into the limit; None: not even `least`."""
        whole = written(most)
        if self._count(whole) <= self.limit:
            return whole
        if self._count(written(least)) > self.limit:
            return None
        low, high = least, most
        while high - low > 1:
            middle = (low + high) // 2
            if self._count(written(middle)) <= self.limit:
                low = middle
            else:
                high = middle
        return written(low)

    def _count(self, text: str) -> int:
        return len(self._read(text))

    def _read(self, text: str) -> list[int]:
        """Ids of a text; those of the last one are kept, which is mostly the one that fits."""
        if self._last[0] != text:
            # A text may be longer than the model reads: it is cut here, so nobody need be warned.
            self._last = text, self.tokenizer(text, verbose=False)["input_ids"]
        return self._last[1]

    def _found(self, text: str, row: Row) -> dict[str, Any]:
        ids = self._read(text)
        if len(ids) > self.limit:  # the tokenizer keeps what it puts around a text
            ids = self._cut_right(text)["input_ids"]
        if not self.starts:
            return {"input_ids": ids}
        spans: Sequence[tuple[int, int]] = self._cut_right(text, True)["offset_mapping"]
        places = [text.index(marker) for marker, _ in (HEAD, TAIL)]
        starts = [
            next((i for i, (start, end) in enumerate(spans) if start <= place < end), None)
            for place in places
        ]
        if None in starts:
            raise DataError(
                f"{_where(row)}: an entity's marker is cut off at {self.limit} tokens",
                "write model.truncate: text_only, or raise train.max_length",
                _where(row).rpartition(":")[0],
            )
        return {"input_ids": ids, "entity_starts": starts}

    def _cut_right(self, text: str, spans: bool = False) -> Any:
        side, self.tokenizer.truncation_side = self.tokenizer.truncation_side, "right"
        try:
            return self.tokenizer(
                text, truncation=True, max_length=self.limit, return_offsets_mapping=spans,
                verbose=False,
            )  # fmt: skip
        finally:
            self.tokenizer.truncation_side = side


def context_of(config: Any) -> int:
    """Tokens that a model has places for, of its configuration; 0: it does not say.

    Families that count from an offset of their own have fewer places than rows in their table.
    """
    from perdure.models.configuration import OWN_POSITIONS

    most = int(getattr(config, "max_position_embeddings", None) or 0)
    if most and config.model_type in OWN_POSITIONS:
        most -= int(getattr(config, "pad_token_id", None) or 0) + 1
    return most


def _named(template: str, parts: Relation) -> str:
    """A piece of a template with the entities' names in it."""
    pieces = [piece.replace(NAMES[1], parts.tail) for piece in template.split(NAMES[0])]
    return parts.head.join(pieces)


def _beginning(text: str, count: int) -> str:
    """So many characters of a text; one that is cut ends in no blank."""
    return text if count == len(text) else text[:count].rstrip()


def _where(row: Row) -> str:
    return place_of(row) or f'the row "{brief(row["text"])}"'
