"""What a comparison shows against `sequential`, and that what it does not show is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.reports.contrast import claims, lines
from perdure.reports.data import views
from tests.synthetic_runs import FORGETS, KEEPS, make_run, three_methods

pytestmark = pytest.mark.unit
FLAT = (23.4, 23.4, 23.4, 23.4)


def test_what_is_shown_says_by_how_much(tmp_path: Path) -> None:
    plain, replay, gere = claims(views(three_methods(tmp_path, items=True, rows=80)))
    assert plain.shown
    assert plain.text == "sequential forgot topic and language, and lost general ability"
    assert replay.shown
    # By rows of 80: (62 - 23 + 76 - 33) / 160 less (62 - 55 + 76 - 72) / 160; 29.1 / 33.8.
    assert replay.text == (
        "against sequential, replay forgot 0.44 less of the tasks (+0.32 to +0.55) "
        "and kept general ability better (perplexity lower by 14 %; 10 % to 15 %)"
    )
    assert gere.shown
    assert "and kept general ability better (perplexity lower by 26 %; 2" in gere.text
    assert lines(views(three_methods(tmp_path / "again", items=True)))[0].startswith("shown: ")


def test_what_is_not_shown_is_not_claimed(tmp_path: Path) -> None:
    """Six rows that all methods keep: no claim, though the figures differ by a row."""
    almost = [[*row] for row in KEEPS]
    almost[3][0] -= 1 / 6
    runs = [
        make_run(tmp_path / "sequential", "sequential", almost, general=FLAT, rows=6, items=True),
        make_run(tmp_path / "replay", "replay", KEEPS, general=FLAT, rows=6, items=True),
    ]
    found = claims(views(runs))
    assert [claim.shown for claim in found] == [False, False]
    assert lines(views(runs)) == [
        "NOT shown: that sequential forgot any task",
        "NOT shown: that replay forgot the tasks less or kept general ability better",
    ]


def test_one_of_two_is_said_as_one_of_two(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "s", "sequential", FORGETS, general=FLAT, rows=80, items=True),
        make_run(tmp_path / "r", "replay", KEEPS, general=FLAT, rows=80, items=True),
    ]
    found = claims(views(runs))[1]
    assert found.shown
    assert found.text.endswith("; not shown that it kept general ability better")


def test_without_the_plain_method_nothing_is_claimed(tmp_path: Path) -> None:
    assert claims(views([make_run(tmp_path / "replay", "replay", items=True)])) == []
