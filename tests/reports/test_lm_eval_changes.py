"""Changes on lm-eval's tasks: one interval for page and JSON, over seeds too; F1 Avg's tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_runs import make_run

from perdure.reports import numbers
from perdure.reports.data import views
from perdure.reports.general import change_of, changes, f1_before_after
from perdure.reports.html import render
from perdure.reports.seeds import grouped
from perdure.run import Run

pytestmark = pytest.mark.unit


def quiz_run(folder: Path, lost: int = 4, *, seed: int = 0, group: bool = False) -> Run:
    """200 items, of which the first 100 are right, and `lost` of those not any more."""
    run = make_run(folder, matrix=[[0.5], [0.5]], tasks=["a"], seed=seed, steps=1)
    for after, wrong in ((0, 0), (1, lost)):
        items = [
            {"id": str(i), "score": float(wrong <= i < 100)}
            | ({"group": str(i // 50)} if group else {})
            for i in range(200)
        ]
        line = {"kind": "general", "after": after, "task": "quiz", "metric": "acc",
                "higher_is_better": True, "score": (100 - wrong) / 200, "rows": 200}  # fmt: skip
        run.record(line, items)
    return run


@pytest.mark.parametrize("group", [False, True])
def test_json_and_page_give_the_same_interval(tmp_path: Path, group: bool) -> None:
    """Of paired items: no lower than -.0504, where two samples of 200 rows say -.098."""
    (view,) = views([quiz_run(tmp_path / "run", group=group)])
    found = numbers.of_run(view)["general_tasks"]["quiz"]["change"]
    ((task, _),) = view.general_tasks
    assert found == numbers.change(view.evidence.harness_change(task, (0, 0.5), (1, 0.48)))
    assert found["paired"]
    assert (found["low"] > -0.055) is not group  # four groups tell less than 200 items
    (row,) = changes([view])[0]["rows"]
    ends = [float(end.replace("−", "-")) for end in row["interval"].split(" to ")]
    assert ends == pytest.approx([found["low"], found["high"]], abs=0.006)


def test_over_seeds_it_is_the_wider_of_seeds_and_items(tmp_path: Path) -> None:
    runs = [quiz_run(tmp_path / str(seed), 4 + seed, seed=seed) for seed in range(3)]
    (group,) = grouped(views(runs))
    ((task, _),) = group.general_tasks
    found = change_of(group, task)
    assert found is not None
    assert found.mean == pytest.approx(-0.025)
    assert found.seeds == 3
    own = [change_of(one, task) for one in group.members]
    assert found.low <= sum(one.low for one in own if one) / 3
    assert "quiz" in render(runs)


def test_f1_average_is_over_the_learned_tasks(tmp_path: Path) -> None:
    """.5 of the quiz with a's .4 and .6; b, which is only scored, does not count."""
    run = make_run(
        tmp_path / "run", matrix=[[0.4, 0.1], [0.6, 0.1], [0.6, 0.1]], tasks=["a", "b"],
        only_scored=["b"], steps=1,
    )  # fmt: skip
    for after in range(3):
        run.record({"kind": "general", "after": after, "task": "quiz", "metric": "acc",
                    "higher_is_better": True, "score": 0.5, "rows": 200}, [])  # fmt: skip
    (view,) = views([run])
    assert f1_before_after(view) == pytest.approx((2 * 0.5 * 0.4 / 0.9, 2 * 0.5 * 0.6 / 1.1))


def test_there_is_no_f1_average_where_nothing_is_learned(tmp_path: Path) -> None:
    run = quiz_run(tmp_path / "run")
    (run.path / "stream.json").write_text('[{"name": "a", "learn": "none"}]')
    assert f1_before_after(views([run])[0]) is None
