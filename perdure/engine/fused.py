"""A head that TRL fused into log-probabilities: what they are of, without making logits.

`trl.trainer.utils.add_fused_lm_head` gives the model of a `GRPOTrainer` such a head. It computes
the log-probabilities of labels in tiles, at the temperature at which the trainer samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from perdure.models.chat import IGNORE
from perdure.models.labels import label_places

FUSED = "_fused"
"""Key of a batch whose trainer gave the model such a head."""


def is_fused(batch: Mapping[str, Any]) -> bool:
    """Whether the model that a batch is for has such a head."""
    return bool(batch.get(FUSED))


def fused_options(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the model, beside its inputs, that run this head on the batch's labels."""
    return {"labels": batch["labels"], "fused_lm_head": True}


def fused_log_probs(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    """Log-probability of each label token, of such a pass, (tokens,)."""
    found: Tensor = outputs.log_probs  # (batch, seq - 1): of each next token
    return found[label_places(batch["labels"], "next")[:, :-1] != IGNORE]


__all__ = ["FUSED", "fused_log_probs", "fused_options", "is_fused"]
