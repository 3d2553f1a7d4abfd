"""One forward pass as methods see it, and the rows that ran in it.

Every mean is taken over the *whole optimizer step* (all micro-batches, all processes), so that a
method's gradient does not depend on how a batch is split. A pass knows the step's counts; it
returns its own share, scaled so that what the trainer does next (divide by accumulation steps,
average over processes) gives the mean of the step exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from perdure.models.chat import IGNORE
from perdure.models.labels import Where, label_places
from perdure.protocol.labels import (
    LABELS_AT,
    ROWS,
    batch_labels_at,
    batch_targets,
    labels_at,
    labels_of,
    row_targets,
    unlabelled,
)

__all__ = [
    "LABELS_AT",
    "ROWS",
    "EncodedRows",
    "ForwardOutput",
    "HostRows",
    "StepCounts",
    "Where",
    "batch_labels_at",
    "batch_targets",
    "collate",
    "label_places",
    "labels_at",
    "labels_of",
    "model_inputs",
    "real_positions",
    "row_targets",
    "unlabelled",
]


@dataclass(frozen=True)
class StepCounts:
    """Counts over one optimizer step, and how many passes share it (micro-batches x processes).

    For the task's batch only label tokens are counted: rows and positions are None.
    """

    rows: int | None
    tokens: Tensor | int
    positions: int | None
    shares: int = 1
    weights: Tensor | None = None
    """What each label token of this pass counts, (tokens,), where not all count alike, as in a mean
    of each completion's mean."""


@dataclass(frozen=True)
class EncodedRows(Sequence[dict[str, Any]]):
    """Encoded rows: `input_ids`, `labels` (see `label_places`), and keys that start with "_", which
    only methods see.

    A slice made by `ctx.draw` carries the `counts` of the whole step's draw. `fills` marks
    one whose only row fills a process's place in a pass: no method sees it, and it counts nowhere.
    """

    rows: Sequence[dict[str, Any]] = ()
    counts: StepCounts | None = None
    fills: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def counts_of_all(self, shares: int = 1) -> StepCounts:
        """The counts of these rows taken as a whole step."""
        tokens = sum(labels_of(row) for row in self.rows)
        positions = sum(len(row["input_ids"]) for row in self.rows)
        return StepCounts(len(self.rows), tokens, positions, shares)


@dataclass
class ForwardOutput:
    """What one forward pass computed. Only what some method `requires` is there."""

    model: nn.Module
    batch: dict[str, Any]
    counts: StepCounts | None = None
    rows: Sequence[Mapping[str, Any]] = ()
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    """Layer to its output, (batch, seq, hidden); -1 is the output of the final norm."""
    last: Tensor | None = None
    head: Tensor | None = None
    exact: bool = False
    """The head ran on just the label positions: `head` is (tokens, vocab)."""
    final: bool = False
    """`head` is the model's own output: what comes after the head (soft capping) is in it."""
    attentions: Sequence[Tensor] | None = None
    """Attention maps, one a layer, (batch, heads, seq, seq)."""
    read: Tensor | None = None
    """What the head was given where each row has one label: (batch, hidden), or at all positions.
    """
    given: Tensor | None = None
    """Log-probability of each label token, (tokens,), where the trainer itself computed it, at the
    temperature at which it samples; no logits are then needed for it."""
    trained: Tensor | None = None
    """The loss that the trainer goes back through, () before any method's is added: this pass's
    share of the step's mean, as `token_mean` gives it."""
    drawn: Tensor | None = None
    """That of the model which sampled the label tokens, (tokens,), where it is another than this
    pass's."""

    @cached_property
    def mask(self) -> Tensor:
        """Real positions, (batch, seq) bool."""
        return real_positions(self.batch)

    @cached_property
    def targets(self) -> Tensor:
        """Labels moved to the position that predicts them, (batch, seq); -100 is no label.

        (batch, 1) where each row has one label.
        """
        return batch_targets(self.batch, self.rows)

    @property
    def _one_a_row(self) -> bool:
        labels = self.batch.get("labels")
        return labels is not None and labels.dim() == 1

    @cached_property
    def where(self) -> tuple[Tensor, Tensor]:
        """Row and column of each position that predicts a label, each (tokens,)."""
        row, column = (self.targets != IGNORE).nonzero(as_tuple=True)
        return row, column

    @property
    def row_of(self) -> Tensor:
        """The row each label token belongs to, (tokens,)."""
        return self.where[0]

    @cached_property
    def labels(self) -> Tensor:
        """Label token ids, (tokens,)."""
        return self.targets[self.where]

    @cached_property
    def logits(self) -> Tensor:
        """Logits at the positions that predict a label, (tokens, vocab) fp32.

        Taken from the head's own output where it ran as a module; where a trainer fuses the head
        into its loss, the head runs again on these positions only. Where each row has one label,
        (rows, classes).
        """
        row, column = self.where
        if self.head is not None and self.exact:
            return self._cap(self.head.float())
        if self.head is not None and self._one_a_row:  # (batch, classes)
            return self._cap(self.head[row].float())
        if self.head is not None and self.head.shape[:2] == self.targets.shape:
            return self._cap(self.head[row, column].float())
        if self.last is None:
            raise ValueError("logits were not captured: set `requires = Requires(logits=True)`")
        model: Any = self.model
        return self._cap(model.get_output_embeddings()(self.last[row, column]).float())

    def _cap(self, logits: Tensor) -> Tensor:
        """Gemma's soft capping, which comes after the head."""
        model: Any = self.model
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if not cap or self.final else cap * torch.tanh(logits / cap)

    @cached_property
    def competing(self) -> Tensor:
        """`logits` with -inf where a class does not compete with the label, as those of other
        tasks where a row's task is known; of tokens all compete."""
        compete: Any = getattr(self.model, "compete", None)
        return self.logits if compete is None else compete(self.logits, self.labels)

    @cached_property
    def features(self) -> Tensor:
        """What the head reads for each label, (tokens, hidden) fp32, in a pass of `ctx.forward`."""
        row, column = self.where
        found = self.read if self._one_a_row else self.last
        if found is None:
            raise ValueError("features were not captured: set `requires = Requires(logits=True)`")
        if self._one_a_row:
            if found.dim() == 2:
                return found[row].float()
            # A head that runs at all positions predicts at the last real one.
            places = torch.arange(self.mask.shape[1], device=self.mask.device)
            column = (places * self.mask)[row].argmax(-1)
        return found[row, column].float()

    @cached_property
    def log_probs(self) -> Tensor:
        """Log-probability of each label token, (tokens,): of completions at the temperature at
        which they were sampled."""
        if self.given is not None:
            return self.given
        return self.competing.log_softmax(-1).gather(-1, self.labels.unsqueeze(-1)).squeeze(-1)

    @property
    def sampling_log_probs(self) -> Tensor:
        """`log_probs` of the model that sampled the label tokens, without gradient, (tokens,)."""
        return (self.log_probs if self.drawn is None else self.drawn).detach()

    @property
    def nll(self) -> Tensor:
        """Negative log-likelihood of each label token, (tokens,)."""
        return -self.log_probs

    @property
    def row_nll(self) -> Tensor:
        """Mean negative log-likelihood of each row's label tokens, (rows,); 0 without any."""
        return self.per_row(self.nll)

    def per_row(self, values: Tensor, padded: bool = False) -> Tensor:
        """Mean of `values` (tokens,) in each row, (rows,): over the row's label tokens.

        Args: padded: over the batch's width, so that padding counts as zero.
        """
        sums = values.new_zeros(len(self.mask)).index_add(0, self.row_of, values)
        ones = torch.ones(self.row_of.shape, device=self.row_of.device)
        counts = ones.new_zeros(len(self.mask)).index_add(0, self.row_of, ones)
        means = sums / counts.clamp(min=1)
        return means * counts / self.mask.shape[1] if padded else means

    @property
    def step_rows(self) -> int:
        """Rows of the whole optimizer step's draw, over all micro-batches and processes."""
        found = self.counts.rows if self.counts else None
        return found if found else len(self.mask)

    def extra(self, name: str) -> list[Any]:
        """The rows' own value under `name` (a key that starts with "_"), in batch order."""
        return [row[name] for row in self.rows]

    def token_mean(self, values: Tensor) -> Tensor:
        """Mean over the step's label tokens of `values` (tokens,); 0 where there are none."""
        total = self.counts.tokens if self.counts else values.numel()
        if self.counts and self.counts.weights is not None:
            values = values * self.counts.weights
        return self._mean(values.sum(), total)

    def row_mean(self, values: Tensor) -> Tensor:
        """Mean over the step's rows of `values` (rows,)."""
        return self._mean(values.sum(), self.counts.rows if self.counts else values.numel())

    def position_mean(self, values: Tensor) -> Tensor:
        """Mean over the step's real positions of `values` (batch, seq)."""
        total = self.counts.positions if self.counts else int(self.mask.sum())
        return self._mean((values * self.mask).sum(), total)

    def _mean(self, total: Tensor, count: Tensor | int | None) -> Tensor:
        if count is None:
            raise ValueError("for the task's batch only label tokens are counted: use token_mean")
        shares = self.counts.shares if self.counts else 1
        if isinstance(count, Tensor):
            return total / count.clamp(min=1) * shares
        return total / max(count, 1) * shares

    def split(
        self, sizes: Sequence[int], counts: Sequence[StepCounts | None]
    ) -> list[ForwardOutput]:
        """Cut a pass over several methods' rows into one pass a method, in the same order."""
        parts, start, spoken = [], 0, 0
        for size, count in zip(sizes, counts, strict=True):
            cut = slice(start, start + size)
            head = None if self.head is None else self.head[cut]
            if self.exact and self.head is not None:
                labels = sum(labels_of(row) for row in self.rows[cut])
                head = self.head
                if labels < len(head):  # a slice of all would be copied on the way back
                    head = head[spoken : spoken + labels]
                spoken += labels
            part = ForwardOutput(
                self.model,
                _cut_batch(self.batch, cut, len(self.rows)),
                count,
                self.rows[cut],
                {k: v[cut] for k, v in self.hidden.items()},
                None if self.last is None else self.last[cut],
                head,
                self.exact,
                self.final,
                None if self.attentions is None else [a[cut] for a in self.attentions],
            )
            if not self.batch:  # of a pack, which has no batch to work them out from
                _cut_known(self, part, cut)
            parts.append(part)
            start += size
        return parts


def _cut_batch(batch: Mapping[str, Any], cut: slice, rows: int) -> dict[str, Any]:
    """The rows in `cut` of a batch; what has no entry for each row stays as it is."""
    by_row = {k: v for k, v in batch.items() if torch.is_tensor(v) and v.dim() and len(v) == rows}
    return {**batch, **{k: v[cut] for k, v in by_row.items()}}


def _cut_known(whole: ForwardOutput, part: ForwardOutput, cut: slice) -> None:
    before = sum(labels_of(row) for row in whole.rows[: cut.start])
    spoken = slice(before, before + sum(labels_of(row) for row in part.rows))
    row, column = whole.where
    part.__dict__["mask"] = whole.mask[cut]
    part.__dict__["where"] = (row[spoken] - cut.start, column[spoken])
    part.__dict__["labels"] = whole.labels[spoken]


_NO_INPUTS = frozenset({"labels", "shift_labels", "logits_to_keep"})


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a model takes of a batch to compute states and predictions, by name.

    All but the labels, the head's positions, and names that begin with "_", which are for methods
    and the engine: what a kind's `collate` makes (images, token types) is in every pass.
    """
    return {k: v for k, v in batch.items() if k not in _NO_INPUTS and not k.startswith("_")}


def real_positions(batch: Mapping[str, Any]) -> Tensor:
    """Positions of a batch that are no padding, (batch, seq) bool."""
    mask = batch.get("attention_mask")
    return (torch.ones_like(batch["input_ids"]) if mask is None else mask).bool()


def collate(rows: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """Pad encoded rows on the right to one batch.

    Returns: `input_ids`, `attention_mask`, `labels`, each (batch, seq) int64; `labels` (batch,)
        where each row has one. A list that has an entry for each token (token types) is padded
        with 0; what is of another form is for the kind's own `collate`. Keys that start with "_"
        stay out: they belong to methods, not to the model.
    """
    width = max(len(row["input_ids"]) for row in rows)
    shape = (len(rows), width)
    ids = torch.full(shape, pad_id, dtype=torch.long)
    one = labels_at(rows[0]) == "row"
    labels = torch.full(shape[:1] if one else shape, IGNORE, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        ids[i, :n] = torch.as_tensor(row["input_ids"], dtype=torch.long)
        mask[i, :n] = 1
        if one:
            labels[i] = int(row["labels"])
        else:
            labels[i, :n] = torch.as_tensor(row["labels"], dtype=torch.long)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    for name in sorted(model_inputs(rows[0]).keys() - batch.keys()):
        if all(_has_one_a_token(row, name) for row in rows):
            values = [torch.as_tensor(row[name]) for row in rows]
            batch[name] = nn.utils.rnn.pad_sequence(values, batch_first=True)
    return batch


def _has_one_a_token(row: Mapping[str, Any], name: str) -> bool:
    value: Any = row.get(name)
    numbers = isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value)
    listed = numbers or (isinstance(value, Tensor) and value.dim() == 1)
    return listed and len(value) == len(row["input_ids"])


class HostRows(Sequence[Mapping[str, Any]]):
    """A batch's encoded rows, which stay on the host when the batch goes to the device."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = rows

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)
