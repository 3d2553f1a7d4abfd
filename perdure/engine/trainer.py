"""The `transformers.Trainer` that Perdure's own learner runs: the same optimisation, less waste.

It takes the care of `perdure.engine.careful`, and differs from a plain Trainer in four ways, none
of which changes the objective:
- the head runs on the positions that predict a label only (prompts are two thirds of a chat row);
- rows of like length share a batch, in an order that depends on seed and epoch alone, so that a
  resumed run sees the same batches;
- an epoch's last batch is filled up from the epoch's start, so that any number of processes and
  micro-batches sees the same global batches;
- extra rows of methods run in one pass with the task's rows (`perdure.engine.packing`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Sampler

from perdure.engine.careful import CarefulTrainer
from perdure.engine.packing import (
    EncodedRow,
    Packed,
    Packer,
    heads_at,
    of_tokens_alone,
    packer_of,
)
from perdure.engine.rowwise_attention import attends_by_rows, takes_rows
from perdure.engine.sampler import EpochSampler
from perdure.models.anatomy import takes_positions
from perdure.models.chat import IGNORE
from perdure.protocol.batch import ROWS, Where, batch_labels_at, batch_targets, real_positions


class PerdureTrainer(CarefulTrainer):
    """See the module. `session` and `sampler` are set by the learner right after it is built."""

    sampler: EpochSampler

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head_is_exact = takes_positions(self.model)
        self.packer: Packer | None = None
        self.looked = False  # for how this model takes packs
        self._apart = ExitStack()  # the attention that packs need, while training

    def _bare_model(self) -> nn.Module:
        host: Any = self.model
        model: nn.Module = host.get_base_model() if hasattr(host, "get_base_model") else host
        return model

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.sampler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        self.session.count_tokens(real_positions(inputs).sum())
        given = {k: v for k, v in inputs.items() if not k.startswith("_")}
        if self.head_is_exact and self.labels_at(inputs) != "row":
            targets = batch_targets(inputs)
            keep = targets != IGNORE
            given |= {"logits_to_keep": keep, "shift_labels": targets[keep]}
        return super().compute_loss(
            model, given, return_outputs, num_items_in_batch=num_items_in_batch
        )

    def labels_at(self, inputs: Mapping[str, Any]) -> Where:
        """Where the labels of a batch of this trainer stand, by its rows."""
        return batch_labels_at(inputs)

    def packed(self, inputs: Mapping[str, Any], extra: Sequence[EncodedRow]) -> Packed | None:
        """The micro-batch's rows and `extra` for one pass; None where this model takes none.

        The model is tried once: its rows in a pack must not see one another. Rows that are more
        than tokens (images, token types) are not packed.
        """
        if not of_tokens_alone(inputs):
            return None
        bare = self._bare_model()
        if not self.looked or (self._by_rows and not takes_rows(bare)):
            session = self.session
            pad = session.encoder.pad_id
            self.packer = packer_of(session.model, extra, pad, session.autocast)
            self.looked = True
            self._apart.enter_context(attends_by_rows(bare, self._by_rows))
        if self.packer is None:
            return None
        rows = inputs[ROWS]
        self.session.count_tokens(sum(len(row["input_ids"]) for row in (*rows, *extra)))
        return self.packer(
            rows, extra, extra_logits=any(m.requires.logits for m in self.session.methods)
        )

    @property
    def _by_rows(self) -> bool:
        return self.packer is not None and self.packer.by == "rows"

    def packed_loss(
        self, model: nn.Module, packed: Packed, items: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The task rows' loss, as in any other step, and the logits of task and extra rows."""
        sizes = [part.heads.stop - part.heads.start for part in (packed.main, packed.extra)]
        parts: list[Tensor] = []

        def loss_of(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
            parts.extend(outputs.logits.flatten(0, 1).split(sizes))
            bare: Any = self._bare_model()
            found: Tensor = bare.loss_function(
                logits=parts[0],
                labels=None,
                vocab_size=parts[0].shape[-1],
                num_items_in_batch=num_items_in_batch,
                shift_labels=labels,
            )
            return found

        host: Any = self
        host.compute_loss_func = loss_of
        try:
            with heads_at(self._bare_model(), packed.keep):
                inputs = {**packed.inputs, "labels": packed.main.labels}
                loss = super().compute_loss(model, inputs, False, items)
        finally:
            host.compute_loss_func = None
        return loss, parts[0], parts[1]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:
            self._apart.close()
            self.packer, self.looked = None, False
