"""The best of several answers, with the share that each has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

BEST = 3
"""How many are told."""


def ranked(what: str, names: Sequence[str], logits: Tensor) -> dict[str, Any]:
    """The answer with the highest logit, and the three best with their shares of the softmax.

    Args:
        what: the key of an answer.
        names: those that compete; logits: (names,), logits or log-likelihoods of them. The first
            one of equals counts, as in scoring.

    Returns: `{what: name, "score": share, "best": [{what: name, "score": share}, ...]}`.
    """
    shares = logits.double().softmax(-1).tolist()
    order = logits.sort(descending=True, stable=True).indices.tolist()
    best = [{what: names[k], "score": shares[k]} for k in order[:BEST]]
    return {**best[0], "best": best}
