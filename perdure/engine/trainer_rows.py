"""The rows of a trainer that is not ours, as methods read them: each by itself, encoded.

A trainer may put several rows into one line of tokens (TRL's `packing` and `padding_free`): then
position ids begin anew with each row, and attention keeps the rows apart. Methods get the rows as
they are, cut where the positions begin anew, so that a buffer counts rows and a row that is
replayed alone has the loss that it had in its line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from perdure.errors import UsageError
from perdure.models.chat import IGNORE
from perdure.streams.task import Row

if TYPE_CHECKING:
    from transformers import Trainer

READ = frozenset({"input_ids", "labels", "attention_mask", "position_ids"})
"""Keys of a batch that a row is made of."""
BORDERS = frozenset({"seq_idx", "seq_lengths", "use_cache"})
"""Keys that only say where rows of one line end, with all that begin as below."""
BORDER_NAMES = ("cu_seq_lens", "max_length_")


class TrainerRows(Sequence[Row]):
    """A trainer's own rows as its collator makes them: `input_ids` and `labels`, no padding.

    Args:
        rows: what the trainer's loader would index; None: no rows.
        look: find the rows of each line now. Without it a line is taken for a row.
        alone: the rows are run again, each alone: refuse lines in which they see one another.

    Raises:
        UsageError: the collator makes no batch of labelled tokens of one row.
    """

    def __init__(
        self, trainer: Trainer, rows: Any, *, look: bool = True, alone: bool = True
    ) -> None:
        self.rows: Any = () if rows is None else rows
        self._alone = alone
        # As the trainer's own loader does: columns that the model does not take are left out.
        self.collate = trainer._get_collator_with_removed_columns(trainer.data_collator)
        self._places: list[tuple[int, int]] | None = None
        self.lines = len(self.rows)
        """Lines of tokens; a line is one row unless rows are packed."""
        if look and self.lines and self._may_be_packed():
            self._places = list(self._find(self.lines))

    @property
    def packed(self) -> bool:
        """Whether a line holds several rows."""
        return self._places is not None and len(self._places) != self.lines

    def __len__(self) -> int:
        return self.lines if self._places is None else len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        line, number = (index, None) if self._places is None else self._places[index]
        batch = self.batch(line)
        ids, labels = self._tokens(batch)
        if number is not None:
            start, end = self._pieces(batch)[number]
            ids, labels = ids[start:end], labels[start:end]
        return {"input_ids": ids.tolist(), "labels": labels.tolist()}

    def batch(self, line: int) -> Mapping[str, Any]:
        """What the collator makes of one line."""
        try:
            found = self.collate([self.rows[line]])
        except Exception as error:  # whatever the user's own collator raises
            raise UsageError(
                f"the trainer's collator makes no batch of one of its rows: "
                f"{type(error).__name__}: {error}",
                "rows are read one at a time: give rows that are tokenized, and a data_collator "
                "that takes a list of one",
            ) from error
        if not isinstance(found, Mapping) or not all(
            torch.is_tensor(found.get(key)) for key in ("input_ids", "labels")
        ):
            has = ", ".join(found) if isinstance(found, Mapping) else type(found).__name__
            raise UsageError(
                f"the trainer's batches have no input_ids and labels to learn from ({has})",
                "give a data_collator that makes both, for example "
                "DataCollatorForLanguageModeling(tokenizer, mlm=False)",
            )
        self.check_labels(found)
        return cast(Mapping[str, Any], found)

    def check_labels(self, found: Mapping[str, Any]) -> None:
        """Raise `UsageError` where a batch's labels are not of this kind."""
        if found["labels"].shape != found["input_ids"].shape or found["labels"].dim() != 2:
            raise UsageError(
                "the trainer's labels are no next tokens: their shape is "
                f"{tuple(found['labels'].shape)}, of input_ids {tuple(found['input_ids'].shape)}",
                "a label stands for each token, -100 where nothing is learned",
            )

    def _tokens(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Ids and labels of a line without its padding, each (tokens,)."""
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        mask = batch.get("attention_mask")
        if not torch.is_tensor(mask) or mask.dim() != 2:
            return ids, labels
        return ids[mask[0].bool()], labels[mask[0].bool()]

    def _borders(self, batch: Mapping[str, Any]) -> list[int] | None:
        """Where rows begin in a line without its padding; None: nothing says so, it is one row."""
        positions = batch.get("position_ids")
        if torch.is_tensor(positions):
            line = positions.view(-1, positions.size(-1))[0]
            mask = batch.get("attention_mask")
            if torch.is_tensor(mask) and mask.dim() == 2:
                line = line[mask[0].bool()]
            return [int(place) for place in (line == 0).nonzero().flatten()]
        ends = batch.get("cu_seq_lens_q")
        return [int(place) for place in ends[:-1]] if torch.is_tensor(ends) else None

    def _pieces(self, batch: Mapping[str, Any]) -> list[tuple[int, int]]:
        """First token and end of each row of a line. What predicts nothing is padding: a token
        by itself."""
        total = len(self._tokens(batch)[0])
        starts = self._borders(batch) or []
        if not starts or starts[0] != 0:
            starts = [0, *starts]  # a row whose beginning lies in another line
        pieces = zip(starts, [*starts[1:], total], strict=True)
        return [(start, end) for start, end in pieces if end - start > 1] or [(0, total)]

    def _may_be_packed(self) -> bool:
        """Whether any line may hold several rows; else none has to be collated to know."""
        batch = self.batch(0)
        if self._borders(batch) is None:
            return False
        first = self.rows[0]
        named = first.keys() if isinstance(first, Mapping) else ()
        # Without any of these the collator itself gives one row its positions.
        said = any(k in BORDERS or k == "position_ids" or k.startswith(BORDER_NAMES) for k in named)
        return said or len(self._pieces(batch)) > 1

    def _find(self, lines: int) -> Iterator[tuple[int, int]]:
        """Line, and number in the line, of every row."""
        for line in range(lines):
            batch = self.batch(line)
            pieces = self._pieces(batch)
            if self._alone and len(pieces) > 1:
                self._refuse_mixed(batch, pieces)
            for number in range(len(pieces)):
                yield line, number

    def _refuse_mixed(self, batch: Mapping[str, Any], pieces: Sequence[tuple[int, int]]) -> None:
        """Refuse a line whose rows see one another, so that none has its loss when it is alone."""
        if torch.is_tensor(batch.get("attention_mask")):
            raise UsageError(
                "the trainer's rows are packed, and its attention_mask lets rows of one line see "
                "one another: alone a row has another loss",
                "leave attention_mask out of the batches, as SFTConfig(padding_free=True) does, "
                "or do not pack",
            )
        labels = self._tokens(batch)[1]
        if any(int(labels[start]) != IGNORE for start, _ in pieces[1:]):
            raise UsageError(
                "the trainer's rows are packed, and the first token of a row is learned from the "
                "row before it: alone a row has another loss",
                "set the label of each row's first token to -100, as "
                "DataCollatorWithFlattening and SFTConfig(packing=True) do, or do not pack",
            )
