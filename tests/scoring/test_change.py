"""What a change means: three outcomes by hand, and how many rows would tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from perdure.scoring.change import Change, of_items, pooled_values, unknown, unpaired
from perdure.scoring.intervals import noise

pytestmark = pytest.mark.unit


def rows(broken: int, mended: int, same: int) -> np.ndarray:
    return np.concatenate([np.full(broken, -1.0), np.full(mended, 1.0), np.zeros(same)])


def judged(broken: int, mended: int, same: int, margin: float = 0.02) -> Change:
    return of_items(rows(broken, mended, same), margin, worst=-1.0, best=1.0)


@pytest.mark.parametrize(
    ("change", "outcome", "gain"),
    [
        # 16 rows, 10 right before and 4 after: nothing was shown to be kept.
        (unpaired(10 / 16, 4 / 16, 16, 0.02), "open", "not learned"),
        (judged(9, 3, 4), "open", "open"),  # the same scores, row by row
        (judged(6, 0, 10), "lost", "not learned"),  # the same again, and no row was mended
        (judged(0, 0, 16), "open", "open"),  # no row changed: 16 rows still say nothing
        (judged(0, 0, 170), "open", "open"),  # ln 0.025 / ln 0.98 = 182.6 rows say kept
        (judged(0, 0, 195), "kept", "not learned"),
        (judged(0, 12, 12), "kept", "learned"),
        (judged(400, 380, 220), "open", "open"),
        (unpaired(0.30, 0.80, 80, 0.02), "kept", "learned"),
        (unpaired(0.80, 0.30, 80, 0.02), "lost", "not learned"),
        (unpaired(0.50, 0.55, 80, 0.02), "open", "open"),
        (unpaired(0.30, 0.80, 0, 0.02), "open", "open"),  # rows not known
        (unknown(-3.0, 0.05), "open", "open"),
    ],
)
def test_outcomes_by_hand(change: Change, outcome: str, gain: str) -> None:
    assert (change.outcome, change.gain) == (outcome, gain)


def test_of_rows_that_did_not_change_the_lower_end_is_the_rule_of_three() -> None:
    found = judged(0, 0, 100)
    assert found.mean == 0
    assert found.low == pytest.approx(-(1 - 0.025 ** (1 / 100)), abs=0.002)
    assert found.high == pytest.approx(-found.low, abs=0.002)
    # A drop as wide as the interval reaches beyond the margin would have been seen.
    assert found.smallest == pytest.approx(0.02 + found.high)
    assert found.would_be == "kept"
    assert found.needed is not None
    assert abs(found.needed - 183) <= 12  # of the formula above, by an approximation


def test_unpaired_changes_by_hand() -> None:
    found = unpaired(0.625, 0.25, 16, 0.02)
    reach = noise(0.625, 0.25, 16)
    assert (found.low, found.high) == (pytest.approx(-0.375 - reach), pytest.approx(reach - 0.375))
    assert found.smallest == pytest.approx(0.02 + reach)  # 0.39: what 16 rows can show
    assert round(found.smallest, 2) == 0.39
    assert found.would_be == "lost"
    assert found.needed is not None
    assert noise(0.625, 0.25, found.needed) < 0.355 <= noise(0.625, 0.25, found.needed - 1)
    wide = unpaired(0.2, 0.3, 50, 0.2, span=10.0)  # a metric from 0 to 10
    assert wide.mean == pytest.approx(1.0)
    assert wide.high - wide.mean == pytest.approx(10 * noise(0.2, 0.3, 50))


def test_what_enough_rows_would_say() -> None:
    assert unpaired(0.5, 0.5, 80, 0.02).would_be == "kept"
    same = unpaired(0.5, 0.48, 80, 0.02)  # exactly the margin: no number of rows tells
    assert same.needed is None
    found = unknown(-1.0, 0.5)
    assert not found.known
    assert math.isnan(found.smallest)


def test_losses_have_no_limits_and_are_imagined_beyond_the_largest() -> None:
    rise = np.full(32, -0.5)  # each of 32 texts lost half a nat
    assert of_items(rise, 0.05, nats=True).outcome == "lost"
    one = np.zeros(32)
    one[0] = -5.0  # one lost five: the mean is -0.16, and 32 texts cannot tell
    assert of_items(one, 0.05, nats=True).outcome == "open"
    assert of_items(np.zeros(400), 0.05, nats=True).outcome == "kept"


def test_pooled_values_by_hand() -> None:
    values, tokens = np.array([1.0, 4.0]), np.array([3.0, 1.0])
    # The mean over tokens is (3 + 4) / 4 = 1.75; the mean number of tokens is 2.
    assert pooled_values(values, tokens) == pytest.approx(
        [1.75 + 3 * (1 - 1.75) / 2, 1.75 + 1 * (4 - 1.75) / 2]
    )
    assert pooled_values(values, tokens).mean() == pytest.approx(1.75)
    rng = np.random.default_rng(0)
    values, tokens = rng.random((3, 50)), rng.integers(1, 9, 50).astype(float)
    slow = [sum(v * t for v, t in zip(row, tokens, strict=True)) / tokens.sum() for row in values]
    assert pooled_values(values, tokens).mean(-1) == pytest.approx(slow)


def test_the_word_errs_as_rarely_as_it_says() -> None:
    """At a true drop of exactly the margin, a false word in at most 1 of 40 on either side."""
    rng, n = np.random.default_rng(0), 200
    words = []
    for _ in range(300):
        broken, mended, same = rng.multinomial(n, [0.06, 0.04, 0.90])
        change = rows(broken, mended, same)
        words.append(of_items(change, 0.02, worst=-1.0, best=1.0, draws=1000).outcome)
    limit = stats.binom.ppf(0.999, 300, 0.025)
    assert words.count("kept") <= limit
    assert words.count("lost") <= limit
