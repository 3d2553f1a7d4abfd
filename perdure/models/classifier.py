"""A classifier whose classes grow: a pretrained body, a pooled feature, and one head a task.

    ids ──► body ──► states (rows, seq, hidden) ──► pooling ──► features (rows, hidden)
        ──► heads ──► logits (rows, classes), those of one task side by side with those of the next

Class number c is column c: classes are numbered in the order in which they are learned, so a new
task's head moves no older column.

A decoder may keep the head that writes text beside them (`language`), for phases in which it learns
to write a class's name behind the text:

    ids ──► body ──► states ──► language head ──► logits (rows, seq, vocab)
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput, SequenceClassifierOutput

from perdure.models.anatomy import takes_positions
from perdure.models.chat import IGNORE
from perdure.models.configuration import OWN_POSITIONS
from perdure.models.heads import Heads
from perdure.models.labels import label_places
from perdure.models.rivals import rivals_of, within_own
from perdure.models.task_adapters import AdapterBody


def positions(mask: Tensor) -> Tensor:
    """Position of each token in its text, (rows, seq), whichever side is padded."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def pooled(states: Tensor, mask: Tensor, pooling: str, starts: Tensor | None = None) -> Tensor:
    """One feature a row of the body's states.

    Args:
        states: (rows, seq, hidden); mask: (rows, seq), padded on either side.
        pooling: "cls" (the first token), "last" (the last one), "mean" (over all tokens), or
            "entity_starts" (the two entities' first markers, side by side).
        starts: (rows, 2), for "entity_starts" the markers' places, from each row's first token.

    Returns: (rows, hidden); of "entity_starts" (rows, 2 · hidden).
    """
    row, first = torch.arange(len(states), device=states.device), mask.long().argmax(1)
    if pooling == "mean":
        real = mask.unsqueeze(-1).to(states.dtype)
        return (states * real).sum(1) / real.sum(1).clamp(min=1)
    if pooling == "entity_starts":
        assert starts is not None
        return states[row[:, None], first[:, None] + starts].flatten(1)
    if pooling == "cls":
        return states[row, first]
    last = mask.shape[1] - 1 - mask.flip(1).long().argmax(1)
    return states[row, last]


def class_loss(
    logits: Tensor,
    labels: Tensor,
    rivals: Tensor | None = None,
    items: Tensor | int | None = None,
) -> Tensor:
    """Cross-entropy of the right classes.

    Args:
        logits: (rows, classes); labels: (rows,), -100 counts nowhere.
        rivals: (classes, classes) bool, which classes compete with each one: those of a row's own
            task alone (task-incremental). None: all of them do (class-incremental).
        items: what the sum is divided by; None: this batch's labelled rows.
    """
    if rivals is not None:
        logits = within_own(logits, labels, rivals)
    found = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
    count = (labels != IGNORE).sum() if items is None else items
    return found / count.clamp(min=1) if isinstance(count, Tensor) else found / max(1, count)


class Classifier(AdapterBody, PreTrainedModel):
    """Body, pooling and heads; see the module.

    Args:
        body: an encoder, or a decoder without its language-model head.
        within: classes compete within their own task (task-incremental), not all of them.
        language: the causal language model whose body this is. Its head is no part of this model:
            it is not saved, and learns nothing unless it is tied to the body's embeddings.
    """

    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    accepts_loss_kwargs = True

    def __init__(
        self, body: Any, pooling: str, heads: Heads, within: bool = False, language: Any = None
    ) -> None:
        super().__init__(body.config)
        self.body, self.pooling, self.heads, self.within = body, pooling, heads, within
        self.owners: list[int] = []
        """The task of each learned class, the first one of a class that comes again."""
        self.adapters, self.select, self.learning = {}, "concat", "own"
        self.again: dict[int, tuple[int, ...]] = {}
        """By task the older classes that come again in it."""
        self._rivals: Tensor | None = None
        self.body_passes = 0
        """Texts that the body has read."""
        self.learning_passes = 0
        """Those among them that it has learned from."""
        self.objective = "task"
        """What a pass computes: classes ("task"), or next tokens ("lm")."""
        self.frozen_eval = True
        """Whether a body that is frozen as a whole has no dropout."""
        # In a tuple: it is no module of this one.
        self._language: tuple[Any, ...] = () if language is None else (language,)
        if language is not None:
            head = language.get_output_embeddings()
            if head.weight is not language.get_input_embeddings().weight:
                head.requires_grad_(False)
        bare = body.get_base_model() if hasattr(body, "get_base_model") else body
        accepts = inspect.signature(bare.forward).parameters
        self.numbers_positions = (
            "position_ids" in accepts and body.config.model_type not in OWN_POSITIONS
        )

    def grow(self, classes: int, task: int, again: Sequence[int] = ()) -> None:
        """Add a head of so many classes for a task, in which older ones may come again."""
        self.heads.grow(classes, task)
        self.owners += [task] * classes
        self.again |= {task: tuple(again)} if again else {}
        self._rivals = None

    @property
    def rivals(self) -> Tensor:
        """Which columns compete with each class where its task is known; see `rivals_of`."""
        if self._rivals is None:
            found = rivals_of(self.owners, self.again, self.heads.reserved)
            self._rivals = found.to(next(self.heads.parameters()).device)
        return self._rivals

    def compete(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits with -inf at the classes that do not compete with each label: those of other
        tasks where the task is known; (rows, columns), labels (rows,)."""
        return within_own(logits, labels, self.rivals) if self.apart else logits

    def get_decoder(self) -> Any:
        """The part below the heads, as methods know it of language models."""
        return self.body

    def get_output_embeddings(self) -> Any:
        if self.objective == "lm":
            return self._language[0].get_output_embeddings()
        return self.heads

    def train(self, mode: bool = True) -> Classifier:
        """As any module; a body that is frozen as a whole has no dropout, so that a text's feature
        is the same at each look, unless `frozen_eval` is off."""
        super().train(mode)
        if mode and self.frozen_eval and not any(p.requires_grad for p in self.body.parameters()):
            self.body.eval()
        return self

    def features(
        self, input_ids: Tensor, attention_mask: Tensor, entity_starts: Tensor | None = None
    ) -> Tensor:
        """One vector a row, (rows, width)."""
        options = self._counted(attention_mask)
        states = self.body(input_ids=input_ids, attention_mask=attention_mask, **options)
        if states.last_hidden_state.requires_grad:
            self.learning_passes += len(input_ids)
        return pooled(states.last_hidden_state, attention_mask, self.pooling, entity_starts)

    def _counted(self, mask: Tensor) -> dict[str, Any]:
        """Count the rows of a pass of the body; what the body is told beside them."""
        self.body_passes += len(mask)
        return {"position_ids": positions(mask)} if self.numbers_positions else {}

    def _written(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None,
        keep: Tensor | int | None,
        shifted: Tensor | None,
        items: Tensor | int | None,
    ) -> CausalLMOutput:
        """Logits of next tokens, and their cross-entropy where there are labels, (rows, seq).

        Args:
            keep: positions whose logits are computed, as the model's own `logits_to_keep`.
            shifted: the labels of those positions, (tokens,).
        """
        model, options = self._language[0], self._counted(attention_mask)
        if self.training and torch.is_grad_enabled():
            self.learning_passes += len(input_ids)
        model.get_output_embeddings().to(input_ids.device)
        cuts = takes_positions(model)
        if keep is not None and cuts:
            options["logits_to_keep"] = keep
        logits = model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **options
        ).logits
        if isinstance(keep, Tensor) and not cuts:
            logits = logits[keep]
        if labels is None and shifted is None:
            return CausalLMOutput(logits=logits)
        if shifted is None:
            assert labels is not None
            shifted = label_places(labels, "next").flatten()
        loss = class_loss(logits.flatten(0, -2), shifted, items=items)
        return CausalLMOutput(loss=loss, logits=logits)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        entity_starts: Tensor | None = None,
        features: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        logits_to_keep: Tensor | int | None = None,
        shift_labels: Tensor | None = None,
        others: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput | CausalLMOutput:
        """Logits over all classes, (rows, classes), and the loss where there are labels; where
        tasks have adapters of their own, those of the one at work. Of the objective "lm": tokens'.

        Args:
            features: (rows, width) in place of token ids, where they were computed before.
            logits_to_keep, shift_labels: of "lm", as causal language models have them.
            others: logits of the tasks whose adapter is not at work, (rows, classes).
        """
        if self.objective == "lm":
            assert input_ids is not None
            assert attention_mask is not None
            return self._written(
                input_ids, attention_mask, labels, logits_to_keep, shift_labels, num_items_in_batch
            )
        if features is None:
            assert input_ids is not None
            assert attention_mask is not None
            features = self.features(input_ids, attention_mask, entity_starts)
        logits = self.heads(features)
        logits = self.own_alone(logits, others) if self.adapters else logits
        loss = None
        if labels is not None:
            rivals = self.rivals if self.apart else None
            loss = class_loss(logits, labels, rivals, num_items_in_batch)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def views(logits: Tensor, owners: Sequence[int], own: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The class with the highest logit, among all learned ones and among those of `own`.

    Args:
        logits: (rows, columns); owners: the task of each learned class, the first columns.
        own: numbers of the classes that a task-incremental answer chooses from.

    Returns: both as class numbers, each (rows,).
    """
    seen = logits[:, : len(owners)]
    columns = torch.tensor(list(own), device=logits.device)
    return seen.argmax(-1), columns[seen[:, columns].argmax(-1)]
