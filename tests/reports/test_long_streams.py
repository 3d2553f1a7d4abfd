"""Reports of long streams: what is drawn is capped and grouped, and all numbers lie beside it."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from synthetic_runs import make_run

from perdure.commands import show as commands
from perdure.errors import RunError
from perdure.reports import caps, format, full, maps, numbers, sections, telling, write_report
from perdure.reports.data import RunView, views
from perdure.reports.figures import columns
from perdure.reports.html import write_page
from perdure.reports.terminal import show_tables
from perdure.run import Run, item_files, scored
from perdure.scoring.matrix import ScoreMatrix

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import long_runs

pytestmark = pytest.mark.unit
NAN = math.nan
TASKS = 120
"""Tasks of answers: 14,520 scores, of which all rows are read; of classes half as many."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the pages answers.html and classes.html, and what lies beside them."""
    return tmp_path_factory.mktemp("long")


def digested(run: Run, page: Path) -> RunView:
    (view,) = views([run])
    write_page([view], page)
    return view


@pytest.fixture(scope="module")
def long(folder: Path) -> RunView:
    run = long_runs.answers(folder / "run", TASKS, rows=4, kept="few")
    return digested(run, folder / "answers.html")


@pytest.fixture(scope="module")
def classed(folder: Path) -> RunView:
    run = long_runs.classes(folder / "classes", TASKS, rows=5, kept="few", probes=True)
    return digested(run, folder / "classes.html")


# --- what is chosen, by hand


def test_groups_are_neighbours_of_one_size() -> None:
    assert caps.groups(7, 3) == [range(3), range(3, 6), range(6, 7)]
    assert caps.groups(6, 3) == [range(2), range(2, 4), range(4, 6)]
    assert caps.groups(3, 20) == [range(1), range(1, 2), range(2, 3)]
    assert caps.groups(0) == []
    for count in (41, 300, 1000):
        found = caps.groups(count)
        assert len(found) <= caps.GROUPS
        assert [i for part in found for i in part] == list(range(count))


def test_spaced_places_hold_both_ends() -> None:
    assert caps.spaced(3, 5) == [0, 1, 2]
    assert caps.spaced(9, 5) == [0, 2, 4, 6, 8]
    assert caps.some_of("abcdefghi", 3) == ["a", "e", "i"]
    assert caps.named(["a", "b", "c", "d"], 2) == ["a", "b", "and 2 more"]


def test_telling_tasks_are_the_first_the_last_the_worst_and_the_best() -> None:
    #         0    1    2    3    4    5    6    7
    losses = [0.1, 0.9, 0.2, NAN, 0.5, 0.3, 0.4, 0.0]
    assert caps.telling(losses, 8) == list(range(8))
    # Of six: 0 and 7 are the ends; 1 and 4 lost most; 2 and 5 lost least. Of 3 nothing is known.
    assert caps.telling(losses, 6) == [0, 1, 2, 4, 5, 7]
    # Of a run that has learned three of eight, what is not known fills up.
    assert caps.telling([0.1, 0.5, *[NAN] * 6], 5) == [0, 1, 2, 3, 7]
    # Of those that lost alike, the earliest: they had most time to be forgotten.
    assert caps.telling([0.0] * 10, 4) == [0, 1, 2, 9]


def test_a_grouped_matrix_by_hand() -> None:
    """Four tasks in groups of two: rows are the base and the model after each group."""
    values = np.array(
        [
            [0.0, 0.2, 0.0, 0.0],
            [0.9, 0.2, 0.0, 0.0],
            [0.5, 0.7, 0.1, 0.1],
            [0.4, 0.4, 0.8, 0.1],
            [0.2, NAN, 0.6, 1.0],
        ]
    )
    found = maps.grouped(values, ["a", "b", "c", "d"], 2)
    assert [t["name"] for t in found["tasks"]] == ["1–2", "3–4"]
    assert [t["hint"] for t in found["tasks"]] == ["a to b", "c to d"]
    assert [row["title"] for row in found["rows"]] == ["base model", "after 2", "after 4"]
    texts = [[cell["text"] for cell in row["cells"]] for row in found["rows"]]
    assert texts == [["0.10", "0.00"], ["0.60", "0.10"], ["0.20", "0.80"]]
    kinds = [[cell["kind"] for cell in row["cells"]] for row in found["rows"]]
    assert kinds == [["before"] * 2, ["learned", "before"], ["after", "learned"]]
    assert found["rows"][1]["cells"][0]["hint"] == "mean; single tasks 0.50 to 0.70"
    assert found["rows"][2]["cells"][0]["hint"] == "mean of 1 of 2 tasks; single tasks 0.20 to 0.20"
    gone = maps.grouped(np.full((3, 2), NAN), ["a", "b"], 1)
    assert all(cell["missing"] for row in gone["rows"] for cell in row["cells"])


def test_short_streams_are_shown_whole(tmp_path: Path) -> None:
    (view,) = views([make_run(tmp_path / "run")])
    assert telling.charts_words([view]) == telling.rows_words([view]) == ""
    assert maps.heatmaps([view])[0]["groups"] == ""
    write_report([make_run(tmp_path / "other")], tmp_path / "page.html")
    assert not list(tmp_path.glob("page-*.csv"))


# --- a page of 120 tasks


@pytest.mark.usefixtures("long", "classed")
def test_a_long_page_is_small(folder: Path) -> None:
    """Bytes and drawn elements: one chart, row and cell for each task or pair would be 15 times
    as many."""
    for name in ("answers", "classes"):
        page = (folder / f"{name}.html").read_text(encoding="utf-8")
        assert len(page.encode()) < 500_000
        assert len(re.findall(r"<[a-z]", page)) < 12_000
        assert page.count("<td") < 3_500
        assert page.count('<figure class="chart') <= caps.CURVES + 8
        assert f"Shown are 12 of {TASKS} tasks" in page
        assert f"{name}-scores.csv" in page


def test_tables_and_charts_show_some_tasks(long: RunView) -> None:
    groups = sections.changes([long])
    assert len(groups) == caps.LISTED
    assert (groups[0]["task"], groups[-1]["task"]) == ("skill 1", f"skill {TASKS}")
    drawn = sections.task_charts([long])
    assert len(drawn) == caps.CURVES
    assert all(len(chart.table.rows[0]) <= caps.NAMED + 3 for chart in drawn)
    assert all(not line.points for chart in drawn for line in chart.lines)
    assert len(columns(long)) == len(caps.groups(TASKS)) == 20


def test_a_terminal_shows_some_tasks_within_80_columns(long: RunView, classed: RunView) -> None:
    for view in (long, classed):
        out = io.StringIO()
        show_tables([view], Console(file=out, width=80))
        lines = out.getvalue().split("\n")
        assert max(map(len, lines)) <= 80
        assert len(lines) < 250
        assert f"40 of {TASKS} tasks" in " ".join(lines)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_all_numbers_lie_beside_the_page(long: RunView, folder: Path) -> None:
    matrix = long.matrix
    lines = read_csv(folder / "answers-scores.csv")
    assert len(lines) == TASKS + 1
    for line in lines:
        for task in matrix.tasks:
            assert float(line[task]) == matrix.value(int(line["after"]), task)
    tasks = {line["task"]: line for line in read_csv(folder / "answers-tasks.csv")}
    assert list(tasks) == list(matrix.tasks)
    change = long.evidence.change(long.tasks[4], 5, TASKS)
    assert change is not None
    line = tasks["skill 5"]
    assert float(line["since_learned"]) == pytest.approx(change.mean, abs=1e-6)
    assert float(line["since_learned_low"]) == pytest.approx(change.low, abs=1e-5)
    assert line["since_learned_verdict"] == change.outcome
    assert tasks[f"skill {TASKS}"]["since_learned"] == ""  # learned last


@pytest.mark.usefixtures("classed")
def test_classes_confusion_and_probes_lie_beside_it_too(folder: Path) -> None:
    found = {file.name: read_csv(file) for file in folder.glob("classes-*.csv")}
    assert sorted(found) == [f"classes-{n}.csv" for n in
                             ("classes", "confusion", "probes", "scores", "tasks")]  # fmt: skip
    assert len(found["classes-classes.csv"]) == 5 * TASKS
    scenarios = {line["scenario"] for line in found["classes-scores.csv"]}
    assert scenarios == {"class-incremental", "task-incremental"}
    assert found["classes-scores.csv"][1]["task 2"] == ""  # not learned yet
    probes = found["classes-probes.csv"]
    assert len(probes) == 2 * (TASKS + 1)
    assert {probes[-1]["task 1"], probes[-1][f"task {TASKS}"]} == {"0.9"}
    assert full.cell(1 / 3) == "0.333333"
    assert full.cell(NAN) == full.cell(None) == ""


# --- what is read


def test_of_a_run_too_long_few_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables are judged by the same rows as in a short stream; only what rests on every cell has no
    interval, and no other file is opened."""
    run = long_runs.answers(tmp_path / "run", 12, rows=20, kept="all")
    (whole,) = views([run])
    read: list[tuple[int, str]] = []
    rows = Run.items
    monkeypatch.setattr(Run, "items", lambda *a: read.append(a[1:]) or rows(*a))
    monkeypatch.setattr("perdure.reports.evidence.MOST_CELLS", 100)
    (few,) = views([run])
    assert (whole.evidence.large, few.evidence.large) == (False, True)
    for name in ("average_accuracy", "backward_transfer", "forward_transfer", "learning_accuracy"):
        assert few.evidence.interval(name) == whole.evidence.interval(name)
    for name in ("forgetting", "average_incremental_accuracy"):
        assert whole.evidence.interval(name) is not None
        assert few.evidence.interval(name) is None
        assert few.summary(name) == whole.summary(name)
    for j, task in enumerate(few.tasks):
        assert few.evidence.change(task, j + 1, 12) == whole.evidence.change(task, j + 1, 12)
        assert few.evidence.cell(12, task.name) == whole.evidence.cell(12, task.name)
    assert few.evidence.cell(6, "skill 1") is None
    of = {task.name: j for j, task in enumerate(few.tasks)}
    assert {(after, of[name]) for after, name in read} == {
        (after, j) for j in range(12) for after in (0, j, j + 1, 12)
    }
    assert len(read) == len(set(read))
    said = numbers.of_run(few)
    assert said["rests_on"]["forgetting"] == {"used": None, "missing": None}
    assert list(said["intervals"]["scores"][6]) == ["after", "skill 6", "skill 7"]
    assert said["scores"][6]["skill 1"] == whole.score(6, "skill 1")


def test_rows_that_are_not_what_was_written_are_told_when_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.reports.facts.MOST_CELLS", 10)
    monkeypatch.setattr("perdure.reports.evidence.MOST_CELLS", 10)
    run = long_runs.answers(tmp_path / "run", 6, rows=4, kept="all")
    unread = item_files.path(run.path, "task", 3, "skill 1")
    unread.write_text(unread.read_text().replace("yes", "no"))
    write_report([Run.open(run.path)], tmp_path / "page.html")
    read = item_files.path(run.path, "task", 6, "skill 1")
    read.write_text(read.read_text().replace("yes", "no"))
    with pytest.raises(RunError, match=r"after-6-skill.*damaged"):
        write_report([Run.open(run.path)], tmp_path / "page.html")


def test_scores_are_read_once_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    times: list[Path] = []
    read: Callable[[Path], Any] = scored.read_scored
    monkeypatch.setattr(scored, "read_scored", lambda p: times.append(p) or read(p))
    assert len(run.scores()) == len(run.scores()) == 16
    assert len(times) == 1
    run.record({"kind": "task", "after": 0, "task": "new", "score": 0.5}, [{"id": "a"}])
    assert len(run.scores()) == 17
    assert run.items(0, "new") == [{"id": "a"}]
    assert len(times) == 2


def test_blocks_of_lines_are_read_as_single_lines_are(tmp_path: Path) -> None:
    """A block that is no JSON as a whole is read line by line: the broken one is named."""
    from perdure.run.sums import lines_of, with_check

    lines = [json.dumps(with_check({"kind": "task", "after": i})) for i in range(5)]
    file = tmp_path / "scores.jsonl"
    file.write_text("\n".join(lines) + "\n")
    assert lines_of(tmp_path, "scores") == ([{"kind": "task", "after": i} for i in range(5)], [])
    for broken in ('{"kind": "task", "after', "{}", "[1]", "{},{}", '{"kind": "task"} {"x": 1}'):
        file.write_text("\n".join([*lines[:2], broken, *lines[3:]]) + "\n")
        found, numbers_of = lines_of(tmp_path, "scores")
        assert [line["after"] for line in found] == [0, 1, 3, 4]
        assert numbers_of == [3]


# --- figures of large matrices


def test_figures_of_a_large_matrix_by_a_plain_reference() -> None:
    rng = np.random.default_rng(0)
    tasks = [f"t{i}" for i in range(30)]
    learned = [i % 7 != 3 for i in range(30)]
    matrix = ScoreMatrix(tasks, learned=learned)
    scores = rng.random((31, 30))
    scores[4, 9] = NAN  # before task 9 was learned: passed over
    for i, row in enumerate(scores):
        for j, score in enumerate(row):
            if not math.isnan(score):
                matrix.record(i, tasks[j], score)
    counted = [j for j in range(30) if learned[j]]
    steps = [i for i in range(1, 31) if learned[i - 1]]
    average = np.mean([np.mean([scores[i, j] for j in counted if j < i]) for i in steps])
    assert matrix.average_incremental_accuracy() == pytest.approx(average)
    drops = [np.nanmax(scores[1:30, j]) - scores[30, j] for j in counted if j < 29]
    assert matrix.forgetting() == pytest.approx(np.mean(drops))
    missing = matrix.missing("forgetting")
    assert [(c.task, c.after) for c in missing] == [("t9", 4)]
    assert matrix.missing("forgetting", since_learned=True) == ()
    assert matrix.missing("average_incremental_accuracy") == ()
    used = matrix.cells("average_incremental_accuracy").used
    assert {(c.task, c.after) for c in used} == {(tasks[j], i) for i in steps for j in counted
                                                 if j < i}  # fmt: skip


def test_files_beside_a_page_are_never_overwritten(tmp_path: Path) -> None:
    names = [f"t{i}" for i in range(caps.MOST_MAPPED + 1)]
    run = make_run(tmp_path / "run", tasks=names, matrix=[[0.5] * len(names)], general=())
    mine = tmp_path / "page-tasks.csv"
    mine.write_text("mine")
    for show in (
        lambda: commands.report(run.path, tmp_path / "page.html", False),
        lambda: commands.compare([run.path], tmp_path / "page.html", None, False),
    ):
        with pytest.raises(RunError, match=r"page-tasks\.csv: exists already"):
            show()
    assert mine.read_text() == "mine"
    assert [p.name for p in tmp_path.glob("page*")] == ["page-tasks.csv"]
    for _ in range(2):  # a run's own page is renewed, and what lies beside it
        commands.report(run.path, None, False)
    assert (run.path / "report-tasks.csv").exists()


# --- tasks that are scored in other units


def test_a_group_of_perplexities_shows_their_mean_and_not_a_colour(tmp_path: Path) -> None:
    """45 tasks, in groups of three: 50 + j after the base, so 51 in the first; 95 is the worst."""
    names = [f"t{j}" for j in range(45)]
    matrix = [[50.0 + j + after for j in range(45)] for after in range(46)]
    units = dict.fromkeys(names, "perplexity")
    run = make_run(tmp_path / "run", matrix=matrix, tasks=names, metrics=units, steps=2)
    (view,) = views([run])
    found = maps.heatmaps([view])[0]
    assert found["metric"] == "perplexity, lower is better"
    assert "the mean of a group’s scores" in found["groups"]
    first, last = found["rows"][0]["cells"][0], found["rows"][-1]["cells"][-1]
    assert (first["text"], last["text"]) == ("51.0", "138")
    assert first["hint"] == "mean; single tasks 50.0 to 52.0"
    assert first["step"] > 40  # low is good
    assert last["step"] == 0
    from perdure.reports.figures import write_figure

    drawn = write_figure([run], tmp_path / "one.svg").read_text(encoding="utf-8")
    assert "<!-- 51.0 -->" in drawn
    assert "<!-- mean of 0" not in drawn


def test_a_group_of_unlike_scores_says_what_its_mean_is(tmp_path: Path) -> None:
    """Accuracy 0.8 beside a perplexity that is the best of those seen, 1, then the worst, 0."""
    names = [f"t{j}" for j in range(44)]
    matrix = [[0.8 if j % 2 else 10.0 * (1 + after) for j in range(44)] for after in range(45)]
    units = dict.fromkeys(names[::2], "perplexity")
    run = make_run(tmp_path / "run", matrix=matrix, tasks=names, metrics=units, steps=2)
    (view,) = views([run])
    found = maps.heatmaps([view])[0]
    assert "scored in several ways" in found["groups"]
    # Groups of three: two perplexities and an accuracy.
    assert found["rows"][0]["cells"][0]["text"] == "0.93"
    assert found["rows"][-1]["cells"][0]["text"] == "0.27"
    from perdure.reports.figures import write_figure

    drawn = write_figure([run], tmp_path / "one.svg").read_text(encoding="utf-8")
    assert "<!-- mean of 0 (worst) to 1 (best) -->" in drawn
    assert "<!-- 0.93 -->" in drawn


def test_a_run_that_goes_on_shows_tasks_that_it_has_learned(tmp_path: Path) -> None:
    """15 of 45 are learned: what lost least is one of those, no task without a score."""
    names = [f"t{j}" for j in range(45)]
    matrix = [[0.1] * 45] + [
        [0.9 - 0.01 * (after - 1 - j) if j < after else 0.1 for j in range(45)]
        if after <= 15 else [NAN] * 45 for after in range(1, 46)
    ]  # fmt: skip
    run = make_run(tmp_path / "run", matrix=matrix, tasks=names, steps=2, finished=False)
    shown = [task.name for task in telling.tasks(views([run]), 12, 40)]
    assert shown == [f"t{j}" for j in (0, 1, 2, 3, 4, 5, 11, 12, 13, 14, 43, 44)]


def test_beside_a_long_run_the_end_of_a_short_one_is_shown() -> None:
    """Of 301 steps some are in the table: that after 10 tasks is the short run's last."""
    from perdure.reports import charts

    chart = charts.over_tasks(
        title="t", note="", axis=charts.score_axis([1.0]), show=lambda value: f"{value:g}",
        series=[("long", 0, [0.5] * 301), ("short", 1, [0.1] * 10 + [0.9])],
    )  # fmt: skip
    heads, short = chart.table.head, chart.table.rows[1]
    assert short[heads.index("after 10")] == "0.9"
    assert chart.lines[1].points[-1].label == "short, after 10 tasks: 0.9"
    assert heads[-1] == "after 300"


def test_what_the_files_hold_of_confusion_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = long_runs.classes(tmp_path / "run", 42, rows=5, kept="all")
    (view,) = views([run])
    assert dict(full.written([view], tmp_path / "a.html"))["a-confusion.csv"].endswith("each step")
    monkeypatch.setattr("perdure.reports.evidence.MOST_CELLS", 100)
    (few,) = views([run])
    said = dict(full.written([few], tmp_path / "b.html"))["b-confusion.csv"]
    assert said.endswith("after 40 evenly spaced steps")
    assert len(read_csv(tmp_path / "b-confusion.csv")) == 40


def test_a_task_called_as_a_key_is_does_not_overwrite_it(tmp_path: Path) -> None:
    """ "after" is a task here, and beside it how many were learned."""
    matrix = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9], [0.7, 0.8, 0.9]]
    run = make_run(tmp_path / "run", matrix=matrix, tasks=["after", "method", "b"], steps=2)
    (view,) = views([run])
    said = numbers.of_run(view)
    assert said["scores"][1] == {"after": 1, "task after": 0.4, "method": 0.5, "b": 0.6}
    row = said["intervals"]["scores"][2]
    assert (row["after"], sorted(row)) == (2, ["after", "b", "method", "task after"])
    (line, *_) = full._scores([view])
    assert line == ["method", "scenario", "after", "task after", "task method", "b"]
    assert format.apart(["after", "task after"], ["after"]) == ["task task after", "task after"]
