"""Items that belong together: the intervals over groups, by hand and against a plain loop."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from perdure.audit.measure import explain
from perdure.audit.result import AuditResult, judge
from perdure.scoring.intervals import (
    bootstrap_bounds,
    group_numbers,
    imagined_limit,
    items_needed,
    ratio_bounds,
)

pytestmark = pytest.mark.unit


def test_groups_are_those_that_share_a_declared_group_or_a_prompt():
    declared = ["a", "a", None, "b", None, "c"]
    prompts = ["1", "2", "2", "3", "4", "3"]
    # 0-1 by group, 1-2 by prompt, 3-5 by prompt, 4 alone
    found = group_numbers(declared, prompts)
    assert found is not None
    assert found.tolist() == [0, 0, 0, 1, 2, 1]
    assert group_numbers(["a", "b"], [None, None]) is None
    chain = group_numbers(["x", "y", "z", "x"], ["p", "p", "q", "q"])
    assert chain is not None
    assert chain.tolist() == [0, 0, 0, 0]


def test_whole_groups_of_one_size_are_worth_one_item_each():
    """20 passages of five questions, 3 wrong: Clopper and Pearson's bounds of 20, not of 100."""
    right = np.repeat([1.0] * 17 + [0.0] * 3, 5)
    groups = np.repeat(np.arange(20), 5)
    low, high = bootstrap_bounds(right, 0.05, 0.0, 1.0, groups=groups)
    assert low == pytest.approx(stats.beta.ppf(0.05, 17, 4), abs=0.005)
    assert high == pytest.approx(stats.beta.ppf(0.95, 18, 3), abs=0.005)
    alone = bootstrap_bounds(right, 0.05, 0.0, 1.0)[0]
    assert alone > low + 0.05


def test_one_group_and_two_groups_by_hand():
    # One group of 2: w uniform, (w S + (1 - w) 2 worst) / 2 = 0.5 w - (1 - w) = 1.5 w - 1.
    groups = np.array([0, 0])
    low, _ = bootstrap_bounds(np.array([0.0, 1.0]), 0.1, -1.0, 1.0, groups=groups, draws=200_000)
    assert low == pytest.approx(1.5 * 0.1 - 1, abs=0.005)
    # Sizes 1 and 3, no change: the imagined group of 3 has the share 3 w_0 / (w_1 + 3 w_2 + 3 w_0),
    # above t exactly if 3 (1 - t) w_0 > t (w_1 + 3 w_2), exponentials. With a = 3 (1 - t) / t:
    # P = E exp(-(w_1 + 3 w_2) / a) = 1 / ((1 + 1 / a) (1 + 3 / a)), and low is -t.
    low, _ = bootstrap_bounds(
        np.zeros(4), 0.1, -1.0, 1.0, groups=np.array([0, 1, 1, 1]), draws=200_000
    )
    a = 3 * (1 + float(low)) / -float(low)
    assert 1 / ((1 + 1 / a) * (1 + 3 / a)) == pytest.approx(0.1, abs=0.003)


def test_bounds_over_groups_against_a_plain_loop():
    rng = np.random.default_rng(3)
    sizes = [1, 4, 2, 7, 3, 3, 1, 5, 2, 6, 4, 2]
    groups = np.repeat(np.arange(len(sizes)), sizes)
    order = rng.permutation(len(groups))
    change, groups = rng.uniform(-0.5, 0.4, len(groups))[order], groups[order]
    found = bootstrap_bounds(change, 0.05, -1.0, 0.8, groups=groups, draws=20_000, seed=1)

    means: dict[float, list[float]] = {-1.0: [], 0.8: []}
    other = np.random.default_rng(99)
    for _ in range(20_000):
        weight = other.standard_exponential(len(sizes) + 1)
        of_item = weight[groups]
        for imagined, drawn in means.items():
            drawn.append(
                float(of_item @ change + weight[-1] * 7 * imagined)
                / float(of_item.sum() + weight[-1] * 7)
            )
    assert found[0] == pytest.approx(np.quantile(means[-1.0], 0.05), abs=0.006)
    assert found[1] == pytest.approx(np.quantile(means[0.8], 0.95), abs=0.006)


def test_groups_of_one_change_nothing_and_leading_dimensions_are_samples_of_their_own():
    rng = np.random.default_rng(4)
    items = rng.uniform(-1, 1, (2, 3, 12))
    alone = bootstrap_bounds(items, 0.05, -1.0, 1.0, draws=500)
    ones = bootstrap_bounds(items, 0.05, -1.0, 1.0, groups=np.arange(12), draws=500)
    assert np.array_equal(alone[0], ones[0])
    groups = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 5])
    low, high = bootstrap_bounds(items, 0.05, -1.0, 1.0, groups=groups, draws=500)
    one = bootstrap_bounds(items[1, 2], 0.05, -1.0, 1.0, groups=groups, draws=500)
    assert (low[1, 2], high[1, 2]) == pytest.approx((float(one[0]), float(one[1])))


@pytest.mark.parametrize("sizes", [(2,), (5,), (10,), (1, 2, 3, 4, 5)])
def test_the_promise_holds_at_a_true_drop_of_exactly_the_margin(sizes):
    """Whole groups break: at 300 items, five a group, 24 % of `kept` were false without groups."""
    rng = np.random.default_rng(7)
    margin, audits = 0.05, 400
    size = rng.choice(np.array(sizes, dtype=float), (audits, round(300 / np.mean(sizes))))
    sums = np.where(rng.random(size.shape) < margin, -size, 0.0)
    low, high = ratio_bounds(sums, size, 0.05, -1.0, 1.0, draws=1000)
    allowed = stats.binom.ppf(0.999, audits, 0.05) / audits
    assert np.mean(low > -margin) <= allowed
    assert np.mean(high < -margin) <= allowed


def test_items_needed_comes_true_for_groups():
    """Three of 60 groups of four are broken, at a margin of 0.1."""
    change = np.repeat(np.array([-1.0] * 3 + [0.0] * 57), 4)
    groups = np.repeat(np.arange(60), 4)
    wanted = items_needed(change, 0.1, 0.05, -1.0, 1.0, groups)
    alone = items_needed(change, 0.1, 0.05, -1.0, 1.0)
    assert wanted is not None
    assert alone is not None
    assert wanted == pytest.approx(4 * items_needed(change[::4], 0.1, 0.05, -1.0, 1.0), abs=4)  # type: ignore[operator]
    assert wanted > 3 * alone


def test_a_verdict_over_groups_says_so_and_leaves_mcnemar_out():
    base = np.ones(300)
    tuned = np.repeat([0.0] * 3 + [1.0] * 57, 5)
    alone = judge("t", "task", "acc", base, tuned, margin=0.1, alpha=0.05)
    found = judge(
        "t", "task", "acc", base, tuned, margin=0.1, alpha=0.05, groups=np.repeat(np.arange(60), 5)
    )
    assert (alone.verdict, found.verdict) == ("kept", "undecided")
    assert (found.items, found.groups, found.change) == (300, 60, pytest.approx(-0.05))
    assert found.mcnemar_p is None
    assert (found.broken, found.mended) == (15, 0)
    assert "in 60 groups" in explain(found)
    assert alone.groups is None
    assert alone.mcnemar_p is not None


# --- what is not promised


def test_a_loss_prints_the_worst_tenth_of_its_texts():
    base = np.zeros(32)
    tuned = np.zeros(32)
    tuned[[3, 9]] = 1.0, 0.6
    found = judge("loss", "loss", "nats a token", base, tuned, margin=0.5, alpha=0.05)
    assert found.worst_items == 4  # a tenth of 32, rounded up
    assert found.worst_tenth == pytest.approx((1.0 + 0.6) / 4)
    told = explain(found)
    assert "about the typical text; worst tenth (4 of 32 texts) +0.400" in told
    score = judge("t", "task", "acc", base, tuned, margin=0.5, alpha=0.05)
    assert score.worst_tenth is None  # scores have limits: the promise holds for any of them


def test_the_worst_tenth_is_in_json_and_junit():
    tuned = np.zeros(32)
    tuned[5] = 1.0
    found = judge("loss", "loss", "nats a token", np.zeros(32), tuned, margin=0.5, alpha=0.05)
    result = AuditResult("b", "t", 0.05, 1, 0, False, (found,))
    written = json.loads(result.to_json())["measures"][0]
    assert (written["worst_tenth"], written["worst_items"]) == (0.25, 4)
    assert "worst tenth (4 of 32 texts) +0.250" in result.junit()


def test_the_imagined_text_of_groups_is_measured_by_their_means():
    base = np.zeros(8)
    tuned = np.tile([1.0, -1.0], 4)  # each pair cancels out
    groups = np.repeat(np.arange(4), 2)
    found = judge("l", "loss", "nats", base, tuned, margin=0.05, alpha=0.05, groups=groups)
    expected = float(imagined_limit(np.zeros(4), 0.05))
    assert found.high <= expected
    assert found.groups == 4
