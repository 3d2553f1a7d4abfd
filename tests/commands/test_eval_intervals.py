"""`perdure eval --json`: each score with its interval, over rows or their groups."""

from __future__ import annotations

import math

import pytest

from perdure.commands.evaluate import interval

pytestmark = pytest.mark.unit

HALF = [{"score": float(k < 5)} for k in range(10)]


def test_interval_of_a_share_by_hand() -> None:
    """Clopper and Pearson's of 5 in 10; of two groups, one all right: sqrt(.975) from an end."""
    found = interval({"metric": "exact_match"}, HALF)
    assert found == pytest.approx({"low": 0.187, "high": 0.813}, abs=0.015)
    grouped = [{**item, "group": str(k // 5)} for k, item in enumerate(HALF)]
    root = math.sqrt(0.975)
    assert interval({"metric": "exact_match"}, grouped) == pytest.approx(
        {"low": 1 - root, "high": root}, abs=0.01
    )


def test_a_metric_of_ones_own_has_its_range() -> None:
    line = {"metric": "stars", "low": 0.0, "high": 10.0}
    found = interval(line, [{"score": 10 * item["score"]} for item in HALF])
    assert found == pytest.approx({"low": 1.87, "high": 8.13}, abs=0.15)


def test_without_limits_or_rows_there_is_none() -> None:
    none = {"low": None, "high": None}
    assert interval({"metric": "perplexity"}, [{"score": 3.0}]) == none
    assert interval({"metric": "acc"}, []) == none  # of lm-eval


def test_an_lm_eval_metric_has_an_interval_only_in_shares_of_one() -> None:
    """BLEU goes to 100: taken for a share, its interval would be clipped to end at 1."""
    bleu = {"kind": "general", "metric": "bleu"}
    assert interval(bleu, [{"score": 30.0}, {"score": 40.0}]) == {"low": None, "high": None}
    assert interval(bleu, [{"score": 0.5}, {"score": -0.1}]) == {"low": None, "high": None}
    # A name that Perdure has too says nothing of lm-eval's metric.
    match = {"kind": "general", "metric": "exact_match"}
    assert interval(match, [{"score": 100 * item["score"]} for item in HALF])["low"] is None
    found = interval({"kind": "general", "metric": "acc"}, HALF)
    assert found == pytest.approx({"low": 0.187, "high": 0.813}, abs=0.015)
