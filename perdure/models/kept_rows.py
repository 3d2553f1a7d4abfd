"""Rows of a stream that were tokenized once, for the whole run: to train on and to score.

A split is kept as a `datasets.Dataset`, columns `input_ids` and `labels`. Its numbers are one array
in memory, which the Dataset and the look-up by content both see: nothing is there twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from perdure.streams.task import Row

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

COLUMNS = ("input_ids", "labels")
DECIDE = ("prompt", "answer", "turn", "tools", "prefill")
"""Keys of a row that decide its tokens."""


class KeptRows:
    """Encoded rows, found again by their content, or all rows of a split at once."""

    def __init__(self) -> None:
        self._splits: dict[Hashable, dict[str, list[NDArray[np.int32]]]] = {}
        self._sets: dict[Hashable, Dataset] = {}
        self._places: dict[bytes, tuple[Hashable, int]] = {}  # by a row's content
        self._cut: set[bytes] = set()
        self._block: dict[int, tuple[Row, bytes]] = {}  # rows that are about to be kept

    def __len__(self) -> int:
        return sum(len(columns["labels"]) for columns in self._splits.values())

    def __contains__(self, content: bytes) -> bool:
        """Whether a row of this content is kept (`content_of`)."""
        return content in self._places

    def contents_of(self, rows: Sequence[Row]) -> list[bytes]:
        """What decides the tokens of each row, as a hash, which `add` then need not make again."""
        found = [content_of(row) for row in rows]
        self._block = {id(row): (row, one) for row, one in zip(rows, found, strict=True)}
        return found

    def begin(self, split: Hashable) -> None:
        """Begin a split of this name, without rows."""
        self._splits[split] = {name: [] for name in COLUMNS}
        self._sets.pop(split, None)

    def add(self, split: Hashable, row: Row, encoded: dict[str, Any], cut: bool) -> None:
        """Keep a row behind the others of its split; `cut`: its prompt lost its middle."""
        columns = self._splits[split]
        known = self._block.get(id(row))
        content = known[1] if known is not None and known[0] is row else content_of(row)
        self._places.setdefault(content, (split, len(columns["labels"])))
        for name in COLUMNS:  # a list of Python's numbers would take ten times the memory
            columns[name].append(np.array(encoded[name], dtype=np.int32))
        if cut:
            self._cut.add(content)

    def find(self, row: Row) -> dict[str, Any] | None:
        """What was kept of a row that is equal in all that decides its tokens."""
        if not self._places or (place := self._places.get(content_of(row))) is None:
            return None
        split, number = place
        return {name: self._splits[split][name][number].tolist() for name in COLUMNS}

    def was_cut(self, row: Row) -> bool:
        """Whether a kept row's prompt lost its middle."""
        return bool(self._cut) and content_of(row) in self._cut

    def lengths(self, split: Hashable) -> list[int]:
        """Tokens of each row of a split."""
        return [len(ids) for ids in self._splits[split]["input_ids"]]

    def dataset(self, split: Hashable) -> Dataset:
        """The rows of a split. It is made when it is first asked for: a check alone never does."""
        if split not in self._sets:
            self._sets[split] = _dataset(self._splits[split])
        return self._sets[split]

    def select(self, rows: Sequence[Row]) -> tuple[Dataset, list[int]] | None:
        """The kept ones of `rows` in their order, and the tokens of each; None: some are not kept.

        The rows may be of several splits and tasks.
        """
        if not rows or any("input_ids" in row for row in rows):
            return None
        places = [self._places.get(content_of(row)) for row in rows]
        if None in places:
            return None
        from datasets import concatenate_datasets

        whole = [place for place in places if place is not None]
        starts: dict[Hashable, int] = {}
        parts: list[Dataset] = []
        for split, _ in whole:
            if split not in starts:
                starts[split] = sum(map(len, parts))
                parts.append(self.dataset(split))
        together = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
        lengths = [len(self._splits[split]["input_ids"][number]) for split, number in whole]
        return together.select([starts[split] + number for split, number in whole]), lengths

    def clear(self) -> None:
        """Forget all rows."""
        for kept in (self._splits, self._sets, self._places, self._cut, self._block):
            kept.clear()


def _dataset(columns: dict[str, list[NDArray[np.int32]]]) -> Dataset:
    """A Dataset of the columns, whose arrays are afterwards views of the Dataset's own numbers."""
    import pyarrow as pa
    from datasets import Dataset

    found: dict[str, Any] = {}
    for name, rows in columns.items():
        ends = np.cumsum([0, *map(len, rows)])
        flat = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int32)
        # Large: a plain list's offsets end at 2^31 tokens.
        offsets = pa.array(ends.astype(np.int64))
        found[name] = pa.LargeListArray.from_arrays(offsets, pa.array(flat))
        columns[name] = list(_parts(flat, ends))
    return Dataset.from_dict(found)


def _parts(flat: NDArray[np.int32], ends: NDArray[Any]) -> Iterator[NDArray[np.int32]]:
    for start, end in pairwise(ends):
        yield flat[start:end]


def content_of(row: Row) -> bytes:
    """A hash of what decides a row's tokens: rows that are equal in it are encoded alike."""
    text = repr([row.get(key) for key in DECIDE])
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
