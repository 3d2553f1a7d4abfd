"""What a linear classifier can read from a model's hidden states on a prompt.

    x = features(model, encoder, rows)               # (rows, hidden)
    found = linear_probe(x_train, y_train, x_test, y_test)

The probe is trained on the states of one model and tested on rows it has not seen; the model is
not trained. What it finds is in the model, whether the model says it or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perdure.engine.forward import capture
from perdure.errors import DataError, TrainingError, UsageError
from perdure.models.anatomy import decoder_of, layers_of
from perdure.models.chat import Encoder
from perdure.models.weights import evaluating
from perdure.processes import Progress
from perdure.protocol.batch import ForwardOutput, collate
from perdure.protocol.method import Requires
from perdure.streams.task import Row

Array = NDArray[np.float64]
Position = Literal["last", "mean"]
POSITIONS: tuple[Position, ...] = ("last", "mean")
PENALTY = 0.1
"""Inverse strength of the probe's penalty on standardised features: there are more of them than
rows, so it has to be firm."""


def features(
    model: nn.Module,
    encoder: Encoder,
    rows: Sequence[Row],
    *,
    layer: int = -1,
    position: Position = "last",
    batch_size: int = 16,
    on_progress: Progress | None = None,
) -> Array:
    """Return one hidden state a row, of the prompt alone, (rows, hidden).

    The model is in evaluation mode meanwhile; its head does not run.

    Args:
        layer: a decoder layer by index, its output; -1 is the output of the final norm.
        position: "last" takes the last token of the prompt, where the answer is about to begin;
            "mean" the mean over the prompt's tokens.
        batch_size: prompts in a forward pass; like lengths go together.
        on_progress: called as on_progress(done, total), in rows.
    Raises:
        UsageError: the model has no such layer, or an unknown position.
        TrainingError: a state is not finite: the model's weights are broken.
    """
    if position not in POSITIONS:
        raise UsageError(f"probe: position {position!r}: unknown", f"one of: {POSITIONS}")
    if layer != -1 and not 0 <= layer < (count := len(layers_of(model))):
        raise UsageError(f"probe: layer {layer}: the model has layers 0 to {count - 1}, and -1")
    prompts = [encoder.prompt_ids(row) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: -len(prompts[i]))
    found: dict[int, NDArray[Any]] = {}
    with evaluating(model), torch.no_grad():
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            states = _states(model, [prompts[i] for i in part], encoder.pad_id, layer, position)
            found |= dict(zip(part, states.double().cpu().numpy(), strict=True))
            if on_progress is not None:
                on_progress(len(found), len(rows))
    whole = np.stack([found[i] for i in range(len(rows))])
    if not np.isfinite(whole).all():
        raise TrainingError(
            "probe: the model gives hidden states that are not finite",
            "its weights are broken; a lower train.learning_rate may help",
        )
    return whole


def _states(
    model: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int, layer: int, position: str
) -> Tensor:
    """(prompts, hidden) of one forward pass; padding is on the right, causal models ignore it."""
    batch = collate([{"input_ids": ids, "labels": ids} for ids in prompts], pad_id)
    device = next(model.parameters()).device
    inputs = {k: batch[k].to(device) for k in ("input_ids", "attention_mask")}
    kept = ForwardOutput(model, dict(inputs))
    with capture(model, [Requires(hidden=(layer,))], kept):
        decoder_of(model)(**inputs, use_cache=False)
    states, mask = kept.hidden[layer], inputs["attention_mask"]
    if position == "last":
        return states[torch.arange(len(prompts), device=device), mask.sum(1) - 1]
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1)


@dataclass(frozen=True)
class Probed:
    """What a probe answered on the test rows."""

    predictions: list[str]
    correct: Array
    """1 where the probe is right, (test rows,)."""
    chance: float
    """The share of the commonest label among the test rows."""

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


def linear_probe(
    train: Array,
    train_labels: Sequence[str],
    test: Array,
    test_labels: Sequence[str],
    *,
    penalty: float = PENALTY,
) -> Probed:
    """Train a logistic regression on standardised features and test it; the same each time.

    Each feature is shifted and scaled by its mean and spread over the train rows; a feature that
    is the same in all of them is left at 0.

    Args:
        train, test: (rows, hidden).
        penalty: inverse strength of the L2 penalty (scikit-learn's `C`).
    Raises:
        DataError: fewer than two labels among the train rows, or no test row.
    """
    from sklearn.linear_model import (  # type: ignore[import-untyped, unused-ignore]
        LogisticRegression,
    )

    if len(set(train_labels)) < 2 or not len(test):
        raise DataError("probe: needs train rows of two labels at least, and a test row")
    mean, spread = train.mean(0), train.std(0)
    scale = np.where(spread > 1e-12, spread, np.inf)
    probe = LogisticRegression(C=penalty, max_iter=1000)
    probe.fit((train - mean) / scale, np.array(train_labels))
    predictions = [str(label) for label in probe.predict((test - mean) / scale)]
    right = [float(p == label) for p, label in zip(predictions, test_labels, strict=True)]
    return Probed(predictions, np.array(right), chance_of(test_labels))


def chance_of(labels: Sequence[str]) -> float:
    """The share of the commonest label: what the best constant answer scores."""
    return max(labels.count(label) for label in set(labels)) / len(labels)
