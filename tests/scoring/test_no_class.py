"""Texts of no class: AUROC and accuracy at a threshold, by hand and beside slow references."""

from __future__ import annotations

import math
import random

import pytest

from perdure.scoring.no_class import Scored, accuracy_at, auroc, best_threshold, figures

pytestmark = pytest.mark.unit

TEXTS = Scored([0.9, 0.8, 0.3], [True, False, True], [0.5, 0.2])


def test_by_hand() -> None:
    """Of the six pairs one is the wrong way round: .3 of a class below .5 of none."""
    assert auroc(TEXTS.known, TEXTS.unknown) == pytest.approx(5 / 6)
    assert auroc([0.4, 0.4], [0.4]) == 0.5
    # At .4: .9 is kept and right, .8 kept and wrong, .3 refused; .5 kept, .2 refused.
    assert accuracy_at(0.4, TEXTS) == 2 / 5
    assert accuracy_at(0.0, TEXTS) == 2 / 5
    assert accuracy_at(math.inf, TEXTS) == 2 / 5
    # Right at inf, .9, .8, .5, .3, .2: 2, 3, 3, 2, 3, 2 of 5.
    assert [5 * accuracy_at(t, TEXTS) for t in (math.inf, 0.9, 0.8, 0.5, 0.3, 0.2)] == [
        2, 3, 3, 2, 3, 2,
    ]  # fmt: skip
    assert best_threshold(TEXTS) == 0.3


def test_against_every_pair_and_every_threshold() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        known = [rng.randrange(8) / 8 for _ in range(rng.randrange(1, 30))]
        unknown = [rng.randrange(8) / 10 for _ in range(rng.randrange(1, 30))]
        right = [rng.random() < 0.7 for _ in known]
        pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in known for b in unknown]
        assert auroc(known, unknown) == pytest.approx(sum(pairs) / len(pairs))
        texts = Scored(known, right, unknown)
        candidates = sorted({*known, *unknown, math.inf})
        best = max(accuracy_at(t, texts) for t in candidates)
        assert best_threshold(texts) == next(t for t in candidates if accuracy_at(t, texts) == best)


def test_the_threshold_comes_from_validation_texts() -> None:
    test = Scored([0.9, 0.2], [True, True], [0.25])
    found = figures(TEXTS, test)
    assert found == {
        "no_class/auroc": 0.5,
        "no_class/accuracy": pytest.approx(2 / 3),  # at .3: .2 is refused
        "no_class/threshold": 0.3,
    }
    assert figures(Scored([], [], []), test) == {"no_class/auroc": 0.5}
    assert figures(TEXTS, Scored([0.5], [True], [])) == {}
    everything_wrong = Scored([0.9], [False], [0.95])
    assert figures(everything_wrong, test)["no_class/threshold"] == 2.0


def test_one_of_both_is_an_error() -> None:
    with pytest.raises(ValueError, match="of classes and of no class are needed"):
        auroc([0.5], [])
