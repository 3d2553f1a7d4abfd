"""What lies beside the page of a long stream: whole, and readable as it was; and what a page says
of a table that has not all rows."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from rich.console import Console
from synthetic_runs import make_run, write_lines

from perdure.reports import caps, classes, format, full, pool_shown, pool_views, words
from perdure.reports.data import RunView, views
from perdure.reports.figures import write_figure
from perdure.reports.html import write_page
from perdure.reports.pools import Confusion, pool_of
from perdure.reports.terminal import show_tables
from perdure.run import Run

pytestmark = pytest.mark.unit
TASKS = 64
NAMES = [f"t{j}" for j in range(TASKS)]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def routed(folder: Path) -> RunView:
    """64 tasks with an average and a pool: of four requests a task, its own adapter answers two,
    the next task's one, and one fits none."""
    matrix = [[0.5] * TASKS for _ in range(TASKS + 1)]
    texts = [20.0 + 0.1 * i for i in range(TASKS + 1)]
    make_run(folder, "lcia", matrix, tasks=NAMES, rows=4, steps=2, general=texts)
    (folder / "items").mkdir()
    facts = []
    for j, name in enumerate(NAMES):
        other = NAMES[(j + 1) % TASKS]
        write_lines(folder / f"items/after-{TASKS}-{name}.jsonl", [
            {"id": f"{name}-{k}", "score": float(k < 2), "prompt": f"{name} {k}", "right": name,
             "adapter": (name, name, other, "base")[k], "fits": k < 3, "instruction": "x"}
            | ({"right_score": 1.0} if k > 1 else {}) for k in range(4)
        ])  # fmt: skip
        groups = [{"name": n, "adapter": n, "tasks": [n]} for n in NAMES[: j + 1]]
        adapters = [{"name": n, "parameters": 10, "bytes": 40} for n in NAMES[: j + 1]]
        figures = {f"decile_{i}": 1 - 1e-8 * i for i in range(1, 10)}
        for key, value in {
            "pool": {"groups": groups, "adapters": adapters}, "method/nearest_group/t0": 0.25,
            **{f"method/averaging_{k}": v for k, v in figures.items()},
        }.items():  # fmt: skip
            facts.append({"after": j + 1, "task": name, "name": key, "value": value})
    write_lines(folder / "facts.jsonl", facts)
    (view,) = views([Run.open(folder)])
    return view


def test_a_pool_an_average_and_general_text_lie_beside_a_page(tmp_path: Path) -> None:
    view, page = routed(tmp_path / "run"), tmp_path / "page.html"
    write_page([view], page)
    pool = read(tmp_path / "page-pool.csv")
    assert [line["task"] for line in pool] == NAMES
    assert (pool[9]["adapter"], pool[9]["nearest"], pool[9]["nearest_similarity"]) == (
        "t9", "t0", "0.25"
    )  # fmt: skip
    assert (pool[9]["served"], pool[9]["right_adapter"], pool[9]["cost"]) == ("0.5", "1", "0.5")
    found = {(line["task"], line["adapter"]): line for line in read(tmp_path / "page-routing.csv")}
    assert len(found) == 3 * TASKS
    assert (found["t7", "t7"]["requests"], found["t7", "t7"]["right"]) == ("2", "true")
    assert (found["t7", "t8"]["requests"], found["t7", "t8"]["right"]) == ("1", "false")
    assert found["t7", "none fits"]["requests"] == "1"
    average = read(tmp_path / "page-averaging.csv")
    assert len(average) == TASKS
    assert float(average[3]["decile_9"]) == 1 - 9e-8  # in six digits it would be 1
    general = read(tmp_path / "page-general.csv")
    found = [float(line["general_perplexity"]) for line in general]
    assert found == pytest.approx(list(view.general))
    text = page.read_text(encoding="utf-8")
    for name in ("pool", "routing", "averaging", "general", "scores", "tasks"):
        assert f'href="page-{name}.csv"' in text
    assert text.count(f"Shown are 40 of {TASKS} tasks, evenly spaced.") == 3
    assert f"Shown are 40 of {TASKS} rows, evenly spaced. Answers of adapters without" in text
    assert text.count(f"Of 40 of {TASKS} tasks, evenly spaced.") >= 1  # numbers of the loss
    out = io.StringIO()
    show_tables([view], Console(file=out, width=200))
    assert " ".join(out.getvalue().split()).count("evenly spaced.") == 4


def test_who_answered_is_whole_beside_a_page_of_few_tasks(tmp_path: Path) -> None:
    """Items of lm-eval’s tasks are routed too, and there may be more adapters than tasks."""
    view = routed(tmp_path / "run")
    pool = pool_of(view)
    assert pool is not None
    few = Confusion(pool.confusion.columns[:61], pool.confusion.rows[:40])
    assert "others" in pool_shown.confusion_cut(few)
    assert pool_shown.confusion_cut(Confusion(few.columns[:60], few.rows)) == ""
    assert pool_views.shown_of(few).columns[-1] == "others"
    assert full.needed([view])


def test_any_name_is_read_from_csv_as_it_was() -> None:
    """A carriage return ends a line for readers, and was not quoted."""
    lines = [["a", "b"], ["x\ry", "1"], ["x\nz", "2"], ['q"q,', "3"], [" =1+1", ""], ["\r\n", "-"]]
    text = format.csv_text(lines)
    assert text.startswith('a,b\n"x\ry",1\n')
    assert list(csv.reader(io.StringIO(text, newline=""))) == lines


def test_steps_that_are_not_shown_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import long_runs

    monkeypatch.setattr(caps, "MOST_LISTED", 6)
    monkeypatch.setattr(caps, "LISTED", 4)
    run = long_runs.classes(tmp_path / "run", 8, rows=5)
    (section,) = classes.sections(views([run]))
    assert (len(section["steps"]), section["cut"]) == (4, "Shown are 4 of 8 steps, evenly spaced.")
    page = write_page(views([run]), tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Confusion at some steps" in page


def test_scores_that_are_missing_are_named_while_they_are_few(tmp_path: Path) -> None:
    """A column of hundreds of names would be the longest part of the page."""
    count = 30
    matrix = [[0.5] * count for _ in range(count + 1)]
    for j in range(count - 8):
        for after in range(j + 2, j + 8):
            matrix[after][j] = math.nan
    names = NAMES[:count]
    (view,) = views([make_run(tmp_path / "run", matrix=matrix, tasks=names, steps=2, general=())])
    said = words.cells_words(view, "forgetting")
    assert said == (
        "not defined; never scored: t0 after 2, 3, 4, and 3 more; t1 after 3, 4, 5, and 3 more; "
        "t2 after 4, 5, 6, and 3 more; and 19 more tasks, 132 scores in all"
    )


def test_a_change_of_scores_is_never_beyond_their_range(tmp_path: Path) -> None:
    """Of rows that a run did not keep, a fall from 1 to 0.1 reached -1.4."""
    matrix = [[0.1, 0.1], [1.0, 0.1], [0.1, 0.9]]
    run = make_run(tmp_path / "run", matrix=matrix, tasks=NAMES[:2], rows=6, general=())
    (view,) = views([run])
    found = view.evidence.change(view.tasks[0], 1, 2)
    assert found is not None
    assert (found.mean, found.low, found.outcome) == (-0.9, -1.0, "lost")
    back = view.evidence.change(view.tasks[0], 2, 1)
    assert back is not None
    assert back.high == 1.0
    # What could be shown is as it was: the reach of these rows, not what is left up to 1.
    assert back.smallest == pytest.approx(back.margin + back.mean - back.low)
    assert json.dumps(found.low) == "-1.0"


def test_a_page_s_links_lead_to_the_files_whatever_it_is_called(tmp_path: Path) -> None:
    """In a link "#" begins a place in a page, "?" a question, and "12:" a protocol."""
    matrix = [[0.5] * 41 for _ in range(42)]
    run = make_run(tmp_path / "run", matrix=matrix, tasks=NAMES[:41], steps=1, general=())
    page = write_page(views([run]), tmp_path / "12:30 of #1? 50%.html")
    links = re.findall(r'href="([^"]*csv)"', page.read_text(encoding="utf-8"))
    assert [(tmp_path / unquote(urlsplit(link).path)).name for link in links] == [
        "12:30 of #1? 50%-scores.csv", "12:30 of #1? 50%-tasks.csv"
    ]  # fmt: skip
    assert all((tmp_path / unquote(urlsplit(link).path)).is_file() for link in links)


def test_a_group_of_one_task_is_no_span(tmp_path: Path) -> None:
    matrix = [[0.5] * 41 for _ in range(42)]
    run = make_run(tmp_path / "run", matrix=matrix, tasks=NAMES[:41], steps=1, general=())
    drawn = write_figure([run], tmp_path / "one.svg").read_text(encoding="utf-8")
    assert "<!-- 41 -->" in drawn
    assert "41–41" not in drawn
