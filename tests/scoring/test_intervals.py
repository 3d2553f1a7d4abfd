"""The audit's statistics: by hand, against plain references, and what they promise."""

from __future__ import annotations

import itertools
import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from perdure.audit.measure import Measure
from perdure.audit.result import AuditResult, flips, judge
from perdure.scoring.intervals import (
    bootstrap_bounds,
    imagined_limit,
    is_binary,
    items_needed,
    mcnemar_exact,
    pearson3,
    shared_alpha,
    verdict_of,
)

pytestmark = pytest.mark.unit


def changes(broken: int, mended: int, same: int) -> np.ndarray:
    return np.concatenate([np.full(broken, -1.0), np.full(mended, 1.0), np.zeros(same)])


# --- the interval


@pytest.mark.parametrize(("right", "wrong"), [(0, 12), (3, 17), (40, 60)])
def test_of_right_or_wrong_answers_the_bounds_are_clopper_and_pearsons(right, wrong):
    items = changes(0, right, wrong)
    low, high = bootstrap_bounds(items, 0.05, 0.0, 1.0)
    exact_low = stats.beta.ppf(0.05, right, wrong + 1) if right else 0.0
    exact_high = stats.beta.ppf(0.95, right + 1, wrong)
    assert low == pytest.approx(exact_low, abs=0.004)
    assert high == pytest.approx(exact_high, abs=0.006)


def test_equal_items_leave_room_by_the_rule_of_three():
    # P(no drop among n | share q drops) = (1 - q)^n = alpha, so q = 1 - alpha^(1/n), about 3 / n.
    for n in (5, 30, 300):
        low, high = bootstrap_bounds(np.zeros(n), 0.05, -1.0, 1.0)
        assert low == pytest.approx(-(1 - 0.05 ** (1 / n)), rel=0.05)
        assert high == pytest.approx(1 - 0.05 ** (1 / n), rel=0.05)


def test_one_item_by_hand():
    # w_1 is uniform on [0, 1]: the mean of 0.5 and an imagined -1 is 0.5 w - (1 - w) = 1.5 w - 1.
    low, high = bootstrap_bounds(np.array([0.5]), 0.1, -1.0, 1.0)
    assert low == pytest.approx(1.5 * 0.1 - 1, abs=0.02)
    assert high == pytest.approx(1 - 0.5 * 0.1, abs=0.01)


def test_bounds_agree_with_a_plain_loop_over_dirichlet_draws():
    rng = np.random.default_rng(3)
    items = rng.normal(0.1, 0.3, 25).clip(-1, 1)
    means = sorted(
        sum(w * x for w, x in zip(weights, [*items, -1.0], strict=True))
        for weights in rng.dirichlet(np.ones(26), size=20_000)
    )
    low, _ = bootstrap_bounds(items, 0.025, -1.0, 1.0)
    assert low == pytest.approx(means[round(0.025 * 20_000)], abs=0.008)


def test_many_samples_at_once_are_the_same_as_one_by_one():
    rng = np.random.default_rng(0)
    items = rng.normal(size=(2, 3, 9))
    worst = -np.abs(items).max(-1)
    low, high = bootstrap_bounds(items, 0.05, worst, 4.0, draws=500)
    for i, j in itertools.product(range(2), range(3)):
        one = bootstrap_bounds(items[i, j], 0.05, worst[i, j], 4.0, draws=500)
        assert (low[i, j], high[i, j]) == pytest.approx((float(one[0]), float(one[1])), abs=1e-12)


def test_for_many_items_it_is_the_normal_interval():
    items = np.random.default_rng(1).normal(0.1, 0.2, 20_000).clip(-1, 1)
    low, high = bootstrap_bounds(items, 0.05, -1.0, 1.0, draws=4000)
    half = stats.norm.ppf(0.95) * items.std() / math.sqrt(len(items))
    assert low == pytest.approx(items.mean() - half, abs=2e-4)
    assert high == pytest.approx(items.mean() + half, abs=2e-4)


def test_no_items_or_too_few_draws_are_refused():
    with pytest.raises(ValueError, match="0 items"):
        bootstrap_bounds(np.zeros(0), 0.05, -1, 1)
    with pytest.raises(ValueError, match="50 draws"):
        bootstrap_bounds(np.zeros(9), 0.01, -1, 1, draws=50)


def test_the_limit_where_there_is_none():
    # 1.5 * 0.4 is above 5 * 0.1; 1.5 * 0.02 is not.
    assert imagined_limit(np.array([[0.1, -0.4], [0.02, 0.0]]), 0.1).tolist() == pytest.approx(
        [0.6, 0.5]
    )


# --- the promise, without simulation: every outcome with its probability


@pytest.mark.parametrize(("n", "margin", "alpha"), [(12, 0.1, 0.05), (50, 0.05, 0.05)])
def test_false_verdicts_on_right_or_wrong_items_stay_within_alpha(n, margin, alpha):
    outcomes = [(b, m) for b in range(n + 1) for m in range(n + 1 - b)]
    items = np.stack([changes(b, m, n - b - m) for b, m in outcomes])
    low, high = bootstrap_bounds(items, alpha, -1.0, 1.0, draws=5000)
    broken, mended = np.array(outcomes).T
    counts = np.stack([broken, mended, n - broken - mended], axis=1)
    for mends in (0.0, 0.01, 0.05, 0.2):
        breaks = mends + margin  # the true drop is the margin: neither verdict is true
        chance = stats.multinomial.pmf(counts, n, [breaks, mends, 1 - breaks - mends])
        assert chance.sum() == pytest.approx(1)
        assert chance[low > -margin].sum() <= alpha
        assert chance[high < -margin].sum() <= alpha


def test_a_percentile_bootstrap_would_break_the_promise():
    # Why the imagined item is there: 12 items of which a tenth breaks show no drop at all with
    # probability 0.9^12 = 0.28, and then a plain bootstrap is certain of it.
    assert 0.9**12 > 0.05
    assert bootstrap_bounds(np.zeros(12), 0.05, 0.0, 0.0)[0] == 0.0
    assert bootstrap_bounds(np.zeros(12), 0.05, -1.0, 1.0)[0] < -0.1


# --- verdicts


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.01, 0.03, "kept"),
        (-0.02, 0.03, "undecided"),
        (-0.05, -0.02, "undecided"),
        (-0.05, -0.021, "lost"),
    ],
)
def test_verdict_by_hand(low, high, verdict):
    assert verdict_of(low, high, 0.02) == verdict


def test_identical_scores_on_few_items_are_not_kept():
    scores = np.ones(5)
    found = judge("t", "task", "exact_match", scores, scores, margin=0.02, alpha=0.05)
    assert found.verdict == "undecided"
    assert found.change == 0
    # ln 0.05 / ln 0.98 = 148.3
    assert found.more_items == pytest.approx(149 - 5, abs=3)


def test_identical_scores_on_enough_items_are_kept():
    few, enough = np.ones(140), np.ones(160)
    assert judge("t", "task", "m", few, few, margin=0.02, alpha=0.05).verdict == "undecided"
    assert judge("t", "task", "m", enough, enough, margin=0.02, alpha=0.05).verdict == "kept"


def test_identical_weights_and_scores_are_kept_at_any_number():
    scores = np.array([1.0, 0.0])
    found = judge("t", "task", "m", scores, scores, margin=0.02, alpha=0.05, identical=True)
    assert (found.verdict, found.low, found.high) == ("kept", 0.0, 0.0)
    assert found.note == "weights are identical"
    # but not if a chat template or tokenizer made the scores differ
    found = judge("t", "task", "m", scores, scores[::-1], margin=0.02, alpha=0.05, identical=True)
    assert found.verdict == "undecided"


def test_a_large_drop_is_lost_and_says_which_way():
    base, tuned = np.ones(60), np.r_[np.zeros(30), np.ones(30)]
    found = judge("t", "task", "m", base, tuned, margin=0.02, alpha=0.05)
    assert found.verdict == "lost"
    assert (found.base, found.tuned, found.change) == (1.0, 0.5, -0.5)
    assert found.low < -0.5 < found.high < -0.02
    assert (found.broken, found.mended) == (30, 0)
    assert found.mcnemar_p == pytest.approx(2 * 0.5**30)


def test_loss_turns_the_right_way_round():
    base = np.linspace(2, 4, 40)
    rise = judge("g", "loss", "nats", base, base + 0.3, margin=0.05, alpha=0.05)
    assert rise.verdict == "lost"
    assert rise.low < 0.3 < rise.high
    fall = judge("g", "loss", "nats", base, base - 0.3, margin=0.05, alpha=0.05)
    assert fall.verdict == "kept"
    assert fall.low < -0.3 < fall.high
    assert fall.mcnemar_p is None


def test_kl_is_decided_against_a_budget_or_reported_only():
    kl = np.linspace(0.0, 0.02, 40)
    zeros = np.zeros(40)
    assert judge("k", "kl", "nats", zeros, kl, margin=0.1, alpha=0.05).verdict == "kept"
    assert judge("k", "kl", "nats", zeros, kl, margin=0.001, alpha=0.05).verdict == "lost"
    free = judge("k", "kl", "nats", zeros, kl, margin=None, alpha=0.05)
    assert free.verdict is None
    assert 0 <= free.low < 0.01 < free.high


# --- how many more


@pytest.mark.parametrize(("broken", "mended", "same"), [(3, 3, 54), (0, 0, 20), (12, 2, 46)])
def test_items_needed_is_where_the_interval_of_as_many_like_them_decides(broken, mended, same):
    items = changes(broken, mended, same)
    wanted = items_needed(items, 0.1, 0.05, -1.0, 1.0)
    assert wanted is not None
    times = wanted / len(items)

    def decides(factor):
        more = changes(*(round(count * times * factor) for count in (broken, mended, same)))
        low, high = bootstrap_bounds(more, 0.05, -1.0, 1.0)
        return verdict_of(float(low), float(high), 0.1) != "undecided"

    assert decides(1.15)
    assert not decides(0.85)


def test_items_needed_on_the_margin_is_never_enough():
    assert items_needed(changes(2, 0, 18), 0.1, 0.05, -1.0, 1.0) is None


def test_bonferroni_by_hand():
    assert shared_alpha(0.05, 5) == pytest.approx(0.01)
    assert shared_alpha(0.05, 0) == 0.05


# --- McNemar


def test_mcnemar_by_hand():
    base = np.array([1.0] * 5 + [0.0] * 1 + [1.0] * 10)
    tuned = np.array([0.0] * 5 + [1.0] * 1 + [1.0] * 10)
    # 6 tosses, 5 one way: 2 * (C(6,0) + C(6,1)) / 2^6
    assert mcnemar_exact(base, tuned) == pytest.approx(2 * 7 / 64)
    assert mcnemar_exact(base, base) == 1.0


def test_mcnemar_against_plain_counting():
    """All splits of the items that differ, those no likelier than the seen one, out of 2^n."""
    rng = np.random.default_rng(5)
    for _ in range(5):
        base, tuned = rng.integers(0, 2, (2, 40)).astype(float)
        broken, mended = int((base > tuned).sum()), int((base < tuned).sum())
        n = broken + mended
        rare = sum(math.comb(n, k) for k in range(n + 1) if math.comb(n, k) <= math.comb(n, broken))
        assert mcnemar_exact(base, tuned) == pytest.approx(rare / 2**n)


def test_is_binary():
    assert is_binary(np.array([0.0, 1.0]), np.array([1.0]))
    assert not is_binary(np.array([0.0, 0.5]))


# --- what is handed out


def item(key: str, score: float, said: str) -> dict[str, object]:
    return {"id": key, "score": score, "prediction": said, "answer": "yes", "prompt": f"q {key}"}


def test_flips_by_hand():
    base = [item("a", 1, "yes"), item("b", 0, "no"), item("c", 1, "yes"), item("d", 0.9, "yes!")]
    tuned = [item("a", 0, "no"), item("b", 1, "yes"), item("c", 1, "yes"), item("d", 0.3, "y")]
    found = flips("t", base, tuned)
    assert [(f["id"], f["change"]) for f in found] == [
        ("a", "right -> wrong"),
        ("b", "wrong -> right"),
        ("d", "worse"),
    ]
    assert found[0]["base_prediction"] == "yes"
    assert found[0]["tuned_prediction"] == "no"


def result(*verdicts: str | None, **more: object) -> AuditResult:
    measures = [
        Measure(
            name=f"task{i}",
            kind="task",
            metric="exact_match",
            unit="score",
            items=50,
            base=0.8,
            tuned=0.7,
            change=-0.1,
            low=-0.2,
            high=math.inf if verdict is None else -0.01,
            alpha=0.05,
            higher_is_better=True,
            margin=None if verdict is None else 0.02,
            verdict=verdict,  # type: ignore[arg-type]
            more_items=120 if verdict == "undecided" else None,
        )
        for i, verdict in enumerate(verdicts)
    ]
    fields = {"flips": (), "skipped": ()} | more
    return AuditResult("b", "t", 0.05, len(verdicts), 0, False, tuple(measures), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (["kept", "kept", None], 0),
        (["kept", "undecided"], 3),
        (["undecided", "lost"], 1),
    ],
)
def test_exit_codes(verdicts, code):
    assert result(*verdicts).exit_code() == code
    assert result("undecided").exit_code(undecided=0) == 0


def test_json_holds_everything_and_only_json():
    found = json.loads(result("kept", None).to_json())
    assert found["verdict"] == "kept"
    assert found["correction"] == "bonferroni"
    assert found["measures"][0]["low"] == -0.2
    assert found["measures"][1]["high"] is None  # infinity is no JSON


def test_junit_counts_and_names():
    flip = flips("task1", [item("a", 1, "yes")], [item("a", 0, "\x00no")])
    text = result("kept", "lost", "undecided", flips=tuple(flip), skipped=("late",)).junit()
    suite = ElementTree.fromstring(text.encode())
    assert {k: suite.get(k) for k in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4",
        "failures": "2",
        "errors": "0",
        "skipped": "1",
    }
    kept, lost, undecided, late = suite.findall("testcase")
    assert kept.find("failure") is None
    failure = lost.find("failure")
    assert failure is not None
    assert failure.get("type") == "lost"
    assert "change -0.1000 [-0.2000, -0.0100]" in failure.get("message", "")
    assert "right -> wrong" in lost.findtext("system-out", "")
    open_case = undecided.find("failure")
    assert open_case is not None
    assert "about 120 more items would decide" in open_case.get("message", "")
    assert late.find("skipped") is not None
    calm = ElementTree.fromstring(result("undecided").junit(undecided=0).encode())
    assert (calm.get("failures"), calm.get("skipped")) == ("0", "1")


def test_table_says_verdict_interval_and_what_more_is_needed():
    from rich.console import Console

    flip = flips("task1", [item("a", 1, "[red]yes")], [item("a", 0, "no")])
    shown = result("kept", "undecided", flips=tuple(flip))
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(shown.table())
        console.print(shown.flips_table())
    text = capture.get()
    assert "about 120 more items would decide" in text
    assert "-0.100 [-0.200, -0.010]" in text
    assert "kept" in text
    assert "[red]yes" in text


def test_a_quantile_of_pearson_iii_is_scipys():
    for skew in (-3.0, -0.4, -1e-7, 0.0, 1e-3, 0.4, 3.0):
        for share in (0.001, 0.025, 0.5, 0.975):
            assert pearson3(share, skew) == pytest.approx(stats.pearson3.ppf(share, skew), abs=1e-9)


def test_bounds_of_the_same_rows_are_the_same_each_time():
    """Weights are kept between calls and never changed."""
    change = np.array([0.0, 1.0, -1.0, 0.5])
    first, other, again = (
        bootstrap_bounds(one, 0.025, -1, 1, draws=2000) for one in (change, change[:3], change)
    )
    assert first == again != other
