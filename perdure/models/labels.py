"""Where a label stands in a row: known here alone."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from perdure.models.chat import IGNORE

Where = Literal["next", "own", "row"]


def label_places(labels: Any, at: Where) -> Any:
    """Labels at the positions that predict them: the one place that knows where a label stands.

    Args:
        labels: of one encoded row, a list or a number; or of a batch, a tensor (batch, seq), or
            (batch,) where each row has one.
        at: "next": a position predicts the token after it; "own": a position predicts its own
            label, as a tagger does; "row": the whole row has one.

    Returns: as many labels as there are positions, with -100 where nothing is predicted; of "row"
        a single one, (batch, 1).
    """
    if at == "row":
        return labels[:, None] if isinstance(labels, Tensor) and labels.dim() else [int(labels)]
    if at == "own":
        return labels
    if isinstance(labels, Tensor):
        return nn.functional.pad(labels[..., 1:], (0, 1), value=IGNORE)
    return [*labels[1:], IGNORE]
