"""Intervals of cells and figures: against a slow plain loop, by hand, and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from perdure.scoring.intervals import bootstrap_bounds, noise
from perdure.scoring.matrix import ScoreMatrix
from perdure.scoring.resampling import (
    Column,
    difference_over_seeds,
    mean_interval,
    normal_interval,
    resample,
)

pytestmark = pytest.mark.unit

TRUTH = np.array([[0.3, 0.2, 0.1], [0.8, 0.2, 0.1], [0.6, 0.9, 0.2], [0.5, 0.7, 0.8]])


def matrix_of(scores: np.ndarray) -> ScoreMatrix:
    found = ScoreMatrix([f"t{j}" for j in range(scores.shape[1])])
    for after, row in enumerate(scores):
        for name, score in zip(found.tasks, row, strict=True):
            if not math.isnan(score):
                found.record(after, name, float(score))
    return found


def drawn(seed: int, n: int = 60) -> tuple[ScoreMatrix, list[Column]]:
    rng = np.random.default_rng(seed)
    items = [(rng.random((4, n)) < TRUTH[:, j : j + 1]).astype(float) for j in range(3)]
    matrix = matrix_of(np.stack([one.mean(1) for one in items], axis=1))
    return matrix, [Column(one.mean(1), n, one, key=j + 1) for j, one in enumerate(items)]


def slow_ends(columns: list[Column], draws: int) -> dict[str, tuple[float, float]]:
    """Ends of three figures of three tasks, one draw and one row at a time."""
    lower: dict[str, list[float]] = {"acc": [], "bwt": [], "forgetting": []}
    upper: dict[str, list[float]] = {"acc": [], "bwt": [], "forgetting": []}
    rngs = [np.random.default_rng([c.key, 1]) for c in columns]
    for _ in range(draws):
        means, extra = [], []
        for column, rng in zip(columns, rngs, strict=True):
            assert column.items is not None
            weights = rng.standard_exponential(column.rows + 1)
            weights = weights / weights.sum()
            means.append(
                [sum(w * x for w, x in zip(weights[:-1], row, strict=True)) for row in column.items]
            )
            extra.append(weights[-1])
        lower["acc"].append(sum(m[3] for m in means) / 3)
        upper["acc"].append(sum(m[3] + e for m, e in zip(means, extra, strict=True)) / 3)
        changes = [means[j][3] - means[j][j + 1] for j in (0, 1)]
        lower["bwt"].append((sum(changes) - extra[0] - extra[1]) / 2)
        upper["bwt"].append((sum(changes) + extra[0] + extra[1]) / 2)
        drops = [max(means[j][1:3]) - means[j][3] for j in (0, 1)]
        upper["forgetting"].append((sum(drops) + extra[0] + extra[1]) / 2)
    k = math.floor(0.025 * (draws + 1))
    return {
        name: (sorted(lower[name])[k - 1] if lower[name] else math.nan, sorted(upper[name])[-k])
        for name in lower
    }


def test_figures_against_a_slow_plain_loop() -> None:
    matrix, columns = drawn(3)
    found = resample(matrix, columns, draws=400)
    slow = slow_ends(columns, 400)
    for name, short in (("average_accuracy", "acc"), ("backward_transfer", "bwt")):
        ends = found.figures[name].interval()
        assert (ends.low, ends.high) == pytest.approx(slow[short])
        assert ends.value == pytest.approx(getattr(matrix, name)())
        assert ends.low < ends.value < ends.high
    assert found.figures["forgetting"].interval().high == pytest.approx(slow["forgetting"][1])


def test_weighted_figures_have_the_ends_of_a_weighted_mean() -> None:
    matrix, columns = drawn(4)
    found = resample(matrix, columns, draws=400).figures["average_incremental_accuracy"]
    rngs = [np.random.default_rng([c.key, 1]) for c in columns]
    lower, upper = [], []
    for _ in range(400):
        means, extra = [], []
        for column, rng in zip(columns, rngs, strict=True):
            weights = rng.standard_exponential(column.rows + 1)
            weights = weights / weights.sum()
            means.append(column.items @ weights[:-1])
            extra.append(weights[-1])
        lower.append(sum(sum(means[j][i] for j in range(i)) / i for i in (1, 2, 3)) / 3)
        imagined = sum(sum(extra[:i]) / i for i in (1, 2, 3)) / 3
        upper.append(lower[-1] + imagined)
    k = math.floor(0.025 * 401)
    ends = found.interval()
    assert ends.value == pytest.approx(matrix.average_incremental_accuracy())
    assert (ends.low, ends.high) == pytest.approx((sorted(lower)[k - 1], sorted(upper)[-k]))


def test_a_lower_triangle_has_intervals() -> None:
    scores = np.array([[math.nan] * 3, [0.9, math.nan, math.nan], [0.7, 0.8, math.nan],
                       [0.75, 0.6, 0.88]])  # fmt: skip
    columns = [Column(scores[:, j], 100) for j in range(3)]
    found = resample(matrix_of(scores), columns).figures
    assert set(found) == set(ScoreMatrix.FIGURES) - {"forward_transfer"}
    ends = found["average_incremental_accuracy"].interval()
    assert ends.low < ends.value < ends.high
    assert ends.value == pytest.approx(0.797778, abs=1e-6)
    assert found["forgetting"].interval().value == pytest.approx(0.175)


def test_cells_are_those_of_the_audits_interval() -> None:
    matrix, columns = drawn(5)
    found = resample(matrix, columns)
    items = columns[1].items
    assert items is not None
    low, high = bootstrap_bounds(items, 0.025, 0.0, 1.0)
    assert found.low[:, 1] == pytest.approx(low, abs=0.012)  # other draws
    assert found.high[:, 1] == pytest.approx(high, abs=0.012)


def test_rows_are_resampled_together() -> None:
    """What does not change between two rows of the matrix makes their difference no wider."""
    same = (np.arange(200) % 2).astype(float)
    items = np.stack([same, same, same])
    other = np.stack([same, 1 - same, same])
    scores = np.full((3, 2), 0.5)
    paired = [Column(scores[:, 0], 200, items, key=1), Column(scores[:, 1], 200, items, key=2)]
    ends = resample(matrix_of(scores), paired).figures["backward_transfer"].interval()
    assert -0.03 < ends.low <= 0 <= ends.high < 0.03
    alone = [Column(scores[:, 0], 200, None, key=1), paired[1]]
    wide = resample(matrix_of(scores), alone).figures["backward_transfer"].interval()
    assert wide.high == pytest.approx(noise(0.5, 0.5, 200), rel=0.1)
    assert len({tuple(row) for row in other}) == 2


def test_the_same_rows_of_two_runs_are_paired_and_others_are_not() -> None:
    matrix, columns = drawn(7, 100)
    first = resample(matrix, columns).figures["average_accuracy"]
    again = first.minus(first).interval()
    assert again.value == 0
    assert again.high < 0.06  # the imagined rows alone
    apart = [Column(c.scores, c.rows, c.items, key=c.key + 9) for c in columns]
    other = resample(matrix, apart).figures["average_accuracy"]
    assert first.minus(other).interval().high > 2 * again.high - 0.02


def test_forgetting_allows_for_its_maximum() -> None:
    """One row far above the others: no choice, so both ends are those of a plain difference."""
    n = 80
    items = np.zeros((4, n))
    items[1, :70], items[2, :10], items[3, :30] = 1, 1, 1
    rest = np.tile((np.arange(n) % 2).astype(float), (4, 1))
    scores = np.stack([items.mean(1), rest.mean(1), rest.mean(1)], axis=1)
    columns = [Column(items.mean(1), n, items, key=1)] + [
        Column(rest.mean(1), n, rest, key=k) for k in (2, 3)
    ]
    found = resample(matrix_of(scores), columns).figures
    drop, change = found["forgetting"].interval(), found["backward_transfer"].interval()
    assert drop.value == pytest.approx(-change.value)
    assert drop.low == pytest.approx(-change.high, abs=0.01)
    assert drop.high == pytest.approx(-change.low, abs=0.01)
    # Two rows alike and independent: the highest is above both truths in the mean.
    rng = np.random.default_rng(0)
    noisy = (rng.random((4, n)) < 0.5).astype(float)
    columns[0] = Column(noisy.mean(1), n, noisy, key=1)
    scores[:, 0] = noisy.mean(1)
    found = resample(matrix_of(scores), columns).figures
    drop, change = found["forgetting"].interval(), found["backward_transfer"].interval()
    assert drop.high - drop.low > change.high - change.low


def test_what_is_missing_has_no_interval() -> None:
    matrix, columns = drawn(1)
    scores = matrix.array()
    scores[3, 2] = np.nan
    gone = [Column(scores[:, j], c.rows, None, key=c.key) for j, c in enumerate(columns)]
    found = resample(matrix_of(scores), gone)
    assert math.isnan(found.low[3, 2])
    assert "average_accuracy" not in found.figures
    assert "backward_transfer" in found.figures
    unknown = [Column(c.scores, 0, None, key=c.key) for c in columns]
    assert resample(matrix, unknown).figures == {}
    endless = [Column(c.scores, c.rows, None, high=math.inf, key=c.key) for c in columns]
    assert resample(matrix, endless).figures == {}


def test_cells_stay_within_the_metrics_range() -> None:
    ones = np.ones((2, 20))
    found = resample(matrix_of(np.ones((2, 1))), [Column(np.ones(2), 20, ones, key=1)])
    assert found.high.max() == 1.0
    # 20 of 20 right: Clopper and Pearson's lower end is 0.025 ^ (1 / 20)
    assert found.low[0, 0] == pytest.approx(0.025 ** (1 / 20), abs=0.02)


@pytest.mark.parametrize("rows", [50, 500])
@pytest.mark.parametrize("figure", ["average_accuracy", "forgetting", "backward_transfer"])
def test_intervals_hold_the_truth(figure: str, rows: int) -> None:
    right = getattr(matrix_of(TRUTH), figure)()
    held = 0
    for seed in range(150):
        matrix, columns = drawn(1000 + seed, rows)
        # Other weights for other rows, as a run's hash of its rows gives them.
        columns = [Column(c.scores, c.rows, c.items, key=3 * seed + c.key) for c in columns]
        ends = resample(matrix, columns, draws=500).figures[figure].interval()
        held += ends.low <= right <= ends.high
    assert held >= 134  # 95 % of 150 are 142.5; below 134 in one of a thousand


def test_spread_over_seeds_by_hand() -> None:
    found = normal_interval([0.4, 0.5, 0.6])
    # t of 2 degrees of freedom at 97.5 %: 4.302653; the standard deviation is 0.1
    assert found.high - found.value == pytest.approx(4.302653 * 0.1 / math.sqrt(3))
    assert math.isnan(normal_interval([0.4]).low)


def test_a_difference_is_paired_by_seed_or_welchs() -> None:
    """By hand: t(.975, 2) = 4.302653. Differences .19, .20, .21 have s = .01."""
    first = {"0": 0.60, "1": 0.75, "2": 0.90}
    paired = difference_over_seeds(first, {"0": 0.41, "1": 0.55, "2": 0.69})
    assert paired is not None
    reach = 4.302653 * 0.01 / math.sqrt(3)
    assert [paired.value, paired.low, paired.high] == pytest.approx([0.2, 0.2 - reach, 0.2 + reach])
    # Welch: s2/n = .01 of each, so a standard error of sqrt(.02), .02^2 / (.01^2 + .01^2) = 2.
    other = difference_over_seeds({"0": 0.6, "1": 0.8}, {"5": 0.1, "6": 0.3})
    assert other is not None
    reach = 4.302653 * math.sqrt(0.02)
    assert [other.value, other.low, other.high] == pytest.approx([0.5, 0.5 - reach, 0.5 + reach])
    assert difference_over_seeds({"0": 0.6}, first) is None


def test_groups_have_one_weight() -> None:
    """By hand: of two groups of five rows one is all right, so a draw is Beta's: 1 - sqrt(.975) is
    the .025 quantile of Beta(1, 2), sqrt(.975) the .975 quantile of Beta(2, 1)."""
    groups = np.repeat([0, 1], 5)
    items = np.repeat([1.0, 0.0], 5)[None, :]
    matrix = ScoreMatrix(["t"])
    matrix.record(0, "t", 0.5)
    items = np.concatenate([items, np.full((1, 10), np.nan)])
    scores = np.array([0.5, math.nan])
    ends = (1 - math.sqrt(0.975), math.sqrt(0.975))
    found = resample(matrix, [Column(scores, 10, items, groups=groups)], draws=40_000)
    assert (found.low[0, 0], found.high[0, 0]) == pytest.approx(ends, abs=0.004)
    alone = resample(matrix, [Column(scores, 10, items)], draws=40_000)
    # Clopper and Pearson's interval of 5 in 10 is .187 to .813.
    assert (alone.low[0, 0], alone.high[0, 0]) == pytest.approx((0.187, 0.813), abs=0.006)
    one = mean_interval([1.0] * 5 + [0.0] * 5, 0.0, 1.0, groups)
    assert (one.low, one.high) == pytest.approx(ends, abs=0.008)


def test_unequal_groups_are_a_ratio() -> None:
    """As `bootstrap_bounds` has it for the same rows, within the noise of two sets of draws."""
    groups = np.array([0, 0, 0, 1, 2, 2, 3, 4, 5, 6])
    items = np.array([1, 1, 1, 0, 1, 0, 1, 0, 1, 1], np.float64)
    matrix = ScoreMatrix(["t"])
    matrix.record(0, "t", 0.7)
    cells = np.stack([items, np.full(10, np.nan)])
    column = Column(np.array([0.7, math.nan]), 10, cells, groups=groups)
    found = resample(matrix, [column], draws=40_000)
    low, high = bootstrap_bounds(items, 0.025, 0.0, 1.0, groups=groups, draws=40_000)
    assert (found.low[0, 0], found.high[0, 0]) == pytest.approx((float(low), float(high)), abs=0.01)
