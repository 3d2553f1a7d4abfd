"""Tasks that are only scored (`learn: none`): no figure counts them, no word calls them learned."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic_runs import make_run

from perdure.reports import findings, numbers, ranking, words
from perdure.reports.data import comparable, views
from perdure.reports.html import render
from perdure.reports.left_out import left_out_of_means
from perdure.reports.seeds import grouped
from perdure.reports.tables import table
from perdure.reports.terminal import score_table
from perdure.run import Run

pytestmark = pytest.mark.unit

ABC = ("a", "b", "c")
SCORES = [[0.1, 0.1, 0.5], [0.8, 0.1, 0.5], [0.8, 0.9, 0.1], [0.8, 0.9, 0.1]]
"""Of c, which is only scored, the model loses much."""


def run_of(
    folder: Path, method: str = "replay", only: tuple[str, ...] = ("c",), **more: Any
) -> Run:
    return make_run(folder, method, SCORES, tasks=ABC, only_scored=only, steps=2, **more)


def printed(runs: list[Run]) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    score_table(runs, console)
    return " ".join(console.export_text().split())


def test_a_mean_over_seeds_does_not_count_them_either(tmp_path: Path) -> None:
    """The mean of .8 and .9 alone: .85; with c's .1 it would be .6."""
    (group,) = grouped(views([run_of(tmp_path / str(seed), seed=seed) for seed in range(2)]))
    assert group.matrix.left_out == ("c",)
    assert group.summary("average_accuracy") == pytest.approx(0.85)
    assert float(group.matrix.average_accuracy()) == pytest.approx(0.85)


def test_runs_that_do_not_learn_the_same_tasks_are_not_compared(tmp_path: Path) -> None:
    one, two = run_of(tmp_path / "one", "replay"), run_of(tmp_path / "two", "gere", ())
    shown = views([one, two])
    assert not comparable(shown)
    assert comparable([shown[0], *views([run_of(tmp_path / "three", "gere")])])
    assert ranking.best(shown, "average_accuracy") is None
    said = "2 runs of the same tasks, not all learned and scored alike"
    assert ranking.headline(shown) == said
    assert "or did not learn and score them alike" in render([one, two])


def test_runs_of_which_one_only_scores_a_task_are_no_seeds_of_one_method(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / "one", seed=0), run_of(tmp_path / "two", only=(), seed=1)]
    assert len(grouped(views(runs))) == 2


def test_what_the_means_leave_out_is_told_with_its_run(tmp_path: Path) -> None:
    one, two = run_of(tmp_path / "one", "replay"), run_of(tmp_path / "two", "gere", ())
    assert left_out_of_means(views([one])) == ["c"]
    assert left_out_of_means(views([one, two])) == ["c (of replay)"]
    assert "only scored): c (of replay)" in printed([one, two])
    assert "only scored: c (of replay)." in render([one, two])


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_a_table_says_what_its_means_leave_out(tmp_path: Path, form: str) -> None:
    said = "Not in these means (only scored): "
    one, two = run_of(tmp_path / "one", "replay"), run_of(tmp_path / "two", "gere", ())
    assert f"{said}c." in table([one], form)
    assert f"{said}c (of replay)." in table([one, two], form)
    assert said not in table([two], form)


def test_a_name_with_a_line_break_stays_in_latex_s_comment(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "r", "replay", [[0.1], [0.2]], tasks=["a\nb"], only_scored=["a\nb"], steps=1
    )
    assert "only scored): a b." in table([run], "latex").splitlines()[0]


MANY = 20_000


def test_no_word_says_that_an_only_scored_task_was_learned(tmp_path: Path) -> None:
    """c falls from .5 to .1, which is a loss against the base model and nothing else."""
    run = run_of(tmp_path / "run", rows=MANY, general=())
    (view,) = views([run])
    found = {f.task.name: f for f in findings.findings(view)}
    assert (found["c"].gained, found["c"].kept, found["c"].only_scored) == (
        "unknown", "unknown", True,
    )  # fmt: skip
    assert found["c"].learned != found["c"].learned  # nan
    what = findings.account(view)
    assert (what.learned, what.not_learned, what.unclear) == (("a", "b"), (), ())
    assert (what.below, what.earlier) == (("c",), 1)
    assert words.story(view) == (
        "learned a and b; lost c (0.500 → 0.100) against the base model; kept a"
    )
    changes = numbers.of_run(view)["intervals"]["changes"]["tasks"]
    assert (changes["c"]["learned"], changes["c"]["since_learned"]) == (None, None)
    assert changes["c"]["since_base"]["outcome"] == "lost"
    page = " ".join(render([run]).split())
    assert "only scored; <span" in page
    assert "not learned" not in words.headline(view)


def test_the_last_task_is_the_last_that_was_learned(tmp_path: Path) -> None:
    """Of 40 rows each nothing is told of a kept task; b was learned last and needs no word."""
    (view,) = views([run_of(tmp_path / "run", rows=40, general=())])
    assert [f.kept for f in findings.findings(view)] == ["open", "last", "unknown"]
    assert findings.account(view).open == ("a",)
    assert "whether it kept a" in words.story(view)
    assert numbers.of_run(view)["intervals"]["changes"]["tasks"]["b"]["since_learned"] is None


def test_before_anything_is_learned_nothing_is_said_of_it(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", "replay", SCORES[:2], tasks=ABC, only_scored=["a"], finished=False,
        steps=1,
    )  # fmt: skip
    (view,) = views([run])
    assert words.story(view) == "has learned no task yet"
    assert words.headline(view) == "replay has learned no task yet"
