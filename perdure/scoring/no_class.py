"""Whether a classifier knows what it does not know: texts of no class beside those of classes.

A text has a score, the share of the softmax that its best class has. Texts of no class should have
low ones. Two figures:

    AUROC       the chance that a text of a class has a higher score than one of no class (equals
                count half); 0.5 is chance. No threshold is needed.
    accuracy    of an answer "none of the classes" below a threshold: a text of a class is right if
                its score is not below it and its class is right, one of no class if its score is
                below it. The threshold is the one that is best on validation rows.

Source: the two settings of CLINC150's paper (Larson et al. 2019, arXiv 1909.02027), which reports a
threshold on the softmax's highest probability that is chosen on validation rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Scored(NamedTuple):
    """Texts of classes and of no class, scored.

    Attributes:
        known: a score of each text of a class; right: whether its best class is its own.
        unknown: a score of each text of no class.
    """

    known: Sequence[float]
    right: Sequence[bool]
    unknown: Sequence[float]


def auroc(known: Sequence[float], unknown: Sequence[float]) -> float:
    """Area under the ROC curve of scores: how well they tell known texts from unknown ones.

    Raises:
        ValueError: there is none of one of both.
    """
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped, unused-ignore]

    if not known or not unknown:
        raise ValueError("texts of classes and of no class are needed")
    truth = [1] * len(known) + [0] * len(unknown)
    return float(roc_auc_score(truth, [*known, *unknown]))


def accuracy_at(threshold: float, texts: Scored) -> float:
    """Share of right answers where a score below the threshold means none of the classes."""
    kept = sum(
        right and score >= threshold for score, right in zip(texts.known, texts.right, strict=True)
    )
    refused = sum(score < threshold for score in texts.unknown)
    return (kept + refused) / (len(texts.known) + len(texts.unknown))


def best_threshold(texts: Scored) -> float:
    """The threshold with the highest accuracy on these texts; of equals the lowest.

    Candidates are the scores, and infinity, which refuses all.
    """
    # From the highest down: each text that comes in changes the count by at most one.
    every = [(score, 1 if right else 0)
             for score, right in zip(texts.known, texts.right, strict=True)]  # fmt: skip
    every += [(score, -1) for score in texts.unknown]
    every.sort(key=lambda one: -one[0])
    found, best = math.inf, len(texts.unknown)
    count = best
    for place, (score, gain) in enumerate(every):
        count += gain
        last_of_equals = place + 1 == len(every) or every[place + 1][0] != score
        if last_of_equals and count >= best:
            found, best = score, count
    return found


def figures(validation: Scored, test: Scored) -> dict[str, float]:
    """`no_class/auroc`, and with validation texts of both `no_class/accuracy` at
    `no_class/threshold`; nothing without test texts of both."""
    if not test.known or not test.unknown:
        return {}
    found = {"no_class/auroc": auroc(test.known, test.unknown)}
    if validation.known and validation.unknown:
        # No score is above 1: what refuses all is written as a number that JSON has.
        threshold = min(best_threshold(validation), 2.0)
        found["no_class/accuracy"] = accuracy_at(threshold, test)
        found["no_class/threshold"] = threshold
    return found
