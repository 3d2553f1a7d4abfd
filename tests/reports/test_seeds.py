"""Runs that differ in their seed alone are one method: means, intervals, words, marks, tables."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_runs import FORGETS, KEEPS, NAN, make_run, write_lines

from perdure.commands import show
from perdure.errors import PerdureError
from perdure.reports import numbers, ranking, words
from perdure.reports.data import RunView, views
from perdure.reports.html import render
from perdure.reports.seeds import grouped, mean_log, over_seeds
from perdure.reports.tables import table, tex
from perdure.reports.terminal import score_table
from perdure.run import Run
from perdure.scoring.change import Change

pytestmark = pytest.mark.unit

T2 = 4.302653  # t(.975) with 2 degrees of freedom
TWO = ("a", "b")


def matrix(end_a: float, end_b: float, learned_a: float = 0.8) -> list[list[float]]:
    return [[0.1, 0.1], [learned_a, 0.1], [end_a, end_b]]


def runs_of(
    folder: Path, method: str, ends: Sequence[float], *, rows: int = 20_000, first: int = 0
) -> list[Run]:
    """A run a seed, whose score on both tasks at the end is this value."""
    return [
        make_run(
            folder / f"{method}-{seed}", method, matrix(end, end), tasks=TWO, rows=rows, seed=seed,
            general=(20.0, 20.0 + seed, 22.0 + seed), steps=2,
        )
        for seed, end in enumerate(ends, start=first)
    ]  # fmt: skip


def group_of(runs: Sequence[Run]) -> RunView:
    (found,) = grouped(views(runs))
    return found


def text_of(runs: Sequence[Run], width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    score_table(runs, console)
    return console.export_text()


def test_mean_and_interval_over_seeds_by_hand(tmp_path: Path) -> None:
    """.6, .7, .8: mean .7, s .1, and 4.302653 * .1 / sqrt(3) on either side."""
    group = group_of(runs_of(tmp_path, "replay", [0.6, 0.7, 0.8]))
    assert (group.label, group.told) == ("replay", "mean over 3 seeds (0, 1, 2)")
    found = numbers.figure(group, "average_accuracy")
    reach = T2 * 0.1 / math.sqrt(3)
    assert found == pytest.approx(
        {"mean": 0.7, "sd": 0.1, "low": 0.7 - reach, "high": 0.7 + reach, "seeds": 3}
    )
    assert group.score(2, "a") == pytest.approx(0.7)
    cell = group.evidence.cell(2, "a")
    assert cell is not None
    assert (cell.low, cell.high) == pytest.approx((0.7 - reach, 0.7 + reach))


def test_where_all_seeds_agree_the_rows_interval_is_left(tmp_path: Path) -> None:
    """.6 at each seed, of 20 rows: the spread over seeds is 0, but another 20 rows may differ."""
    group = group_of(runs_of(tmp_path, "replay", [0.6, 0.6, 0.6], rows=20))
    found, own = numbers.figure(group, "average_accuracy"), []
    for run in group.members:
        ends = run.evidence.interval("average_accuracy")
        assert ends is not None
        own.append((ends.low, ends.high))
    low, high = (sum(ends) / 3 for ends in zip(*own, strict=True))
    assert found == pytest.approx({"mean": 0.6, "sd": 0.0, "low": low, "high": high, "seeds": 3})
    assert low < 0.5 < 0.7 < high
    cell = group.evidence.cell(2, "a")
    assert cell is not None
    assert cell.low < 0.5 < 0.7 < cell.high


def test_an_interval_over_seeds_is_the_wider_at_each_end(tmp_path: Path) -> None:
    """Seeds that hardly differ (.6, .6001, .5999) say less than 20 rows do; without rows, all."""
    few = group_of(runs_of(tmp_path / "few", "replay", [0.6, 0.6001, 0.5999], rows=20))
    ends = few.evidence.interval("average_accuracy")
    assert ends is not None
    assert ends.low < 0.5 < 0.7 < ends.high
    none = group_of(runs_of(tmp_path / "none", "replay", [0.6, 0.6001, 0.5999], rows=0))
    ends = none.evidence.interval("average_accuracy")
    reach = T2 * 0.0001 / math.sqrt(3)
    assert ends is not None
    assert (ends.low, ends.high) == pytest.approx((0.6 - reach, 0.6 + reach))
    same = group_of(runs_of(tmp_path / "same", "replay", [0.6, 0.6], rows=0))
    assert same.evidence.interval("average_accuracy") is None


def test_forgetting_is_the_mean_of_the_runs_own(tmp_path: Path) -> None:
    """Of two seeds, whose best was before and after task b: not that of the mean matrix."""
    rows = [
        [[0.1, 0.1, 0.1], [0.9, 0.1, 0.1], [0.5, 0.9, 0.1], [0.5, 0.9, 0.9]],
        [[0.1, 0.1, 0.1], [0.5, 0.1, 0.1], [0.9, 0.9, 0.1], [0.5, 0.9, 0.9]],
    ]
    runs = [make_run(tmp_path / str(k), "ewc", one, seed=k, steps=2) for k, one in enumerate(rows)]
    # Each: (.9 - .5 + 0) / 2 = .2; of the mean matrix (.7 - .5) / 2 = .1.
    assert group_of(runs).summary("forgetting") == pytest.approx(0.2)


def test_only_the_seed_may_differ(tmp_path: Path) -> None:
    same = runs_of(tmp_path, "replay", [0.6, 0.7])
    other = make_run(tmp_path / "other", "replay", matrix(0.5, 0.5), tasks=TWO, seed=2, steps=2)
    recipe = other.path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("0.0001", "0.001"))
    again = make_run(tmp_path / "again", "replay", matrix(0.5, 0.5), tasks=TWO, seed=1, steps=2)
    half = make_run(tmp_path / "half", "replay", [[0.1, 0.1], [0.8, 0.1], [NAN, NAN]], tasks=TWO,
                    seed=7, steps=2, finished=False)  # fmt: skip
    found = grouped(views([*same, other, again, half]))
    assert [len(view.members) for view in found] == [2, 1, 1, 1]
    labels = ["replay (replay-0)", "replay (other)", "replay (again)", "replay (half)"]
    assert [view.label for view in found] == labels
    alone = views([same[0], other])
    assert grouped(alone) == alone


def test_best_is_what_differs_seed_by_seed(tmp_path: Path) -> None:
    """The seeds move both alike (sd .15 each), one is ahead by .19 to .21 at each: paired, it is
    best; with other seeds, so that they cannot be paired, none is."""
    good = runs_of(tmp_path / "good", "gere", [0.60, 0.75, 0.90])
    bad = runs_of(tmp_path / "bad", "ewc", [0.41, 0.55, 0.69])
    assert ranking.best(grouped(views([*bad, *good])), "average_accuracy") == 1
    apart = runs_of(tmp_path / "apart", "ewc", [0.41, 0.55, 0.69], first=3)
    assert ranking.best(grouped(views([*apart, *good])), "average_accuracy") is None


def test_the_best_single_run_is_not_marked(tmp_path: Path) -> None:
    """Nothing is known of the seeds of a method that ran once, however good that run was."""
    three = runs_of(tmp_path / "three", "sequential", [0.5, 0.52, 0.54])
    one = runs_of(tmp_path / "one", "replay", [0.9])
    shown = grouped(views([*three, *one]))
    assert ranking.best(shown, "average_accuracy") is None
    assert not any(ranking.leading(shown, key) for key in numbers.KEYS)


def test_seeds_that_agree_on_few_rows_show_nothing(tmp_path: Path) -> None:
    """Two methods, equal at all seeds, on the same 20 rows: the seeds agree, the rows do not."""
    few = runs_of(tmp_path / "few", "sequential", [0.5, 0.5, 0.5], rows=20)
    more = runs_of(tmp_path / "more", "replay", [0.6, 0.6, 0.6], rows=20)
    assert ranking.best(grouped(views([*few, *more])), "average_accuracy") is None
    many = runs_of(tmp_path / "many", "gere", [0.6, 0.6, 0.6])
    base = runs_of(tmp_path / "base", "ewc", [0.5, 0.5, 0.5])
    assert ranking.best(grouped(views([*base, *many])), "average_accuracy") == 1


def test_a_change_over_seeds_needs_seeds_and_rows() -> None:
    """Rows say -.01 to .01 in each run, the seeds -.1, 0 and .1: not kept. And the other way."""

    def change(mean: float, reach: float) -> Change:
        return Change(mean, mean - reach, mean + reach, 0.02, 50)

    wide = over_seeds([change(mean, 0.01) for mean in (-0.1, 0.0, 0.1)])
    assert wide is not None
    assert (wide.low, wide.high) == pytest.approx((-T2 * 0.1 / 3**0.5, T2 * 0.1 / 3**0.5))
    assert (wide.outcome, wide.seeds) == ("open", 3)
    assert words.outcome_words(wide).startswith("too few rows to tell (3 seeds of 50 rows each;")
    few = over_seeds([change(0.0, 0.2)] * 3)
    assert few is not None
    assert (few.low, few.high, few.outcome) == (pytest.approx(-0.2), pytest.approx(0.2), "open")
    sure = over_seeds([change(mean, 0.01) for mean in (0.0, 0.001, -0.001)])
    assert sure is not None
    assert sure.outcome == "kept"


def test_the_log_of_seeds_is_a_mean_a_step() -> None:
    first = [{"after": 1, "task": "a", "step": k, "loss": 1.0 * k, "time": "x"} for k in (1, 2)]
    second = [{"after": 1, "task": "a", "step": k, "loss": 3.0 * k} for k in (1, 2, 2)]
    assert mean_log([first, second]) == (
        {"after": 1, "task": "a", "step": 1, "loss": 2.0},
        {"after": 1, "task": "a", "step": 2, "loss": 4.0},
    )


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("twelve")
    ends = {"sequential": 0.3, "replay": 0.6, "ewc": 0.5, "gere": 0.7}
    return [
        run
        for method, end in ends.items()
        for run in runs_of(folder, method, [end, end + 0.02, end - 0.01])
    ]


def test_a_page_of_twelve_runs_is_one_of_four_methods(twelve: list[Run]) -> None:
    page = render(twelve)
    assert page.count('<div class="card map">') == 4
    assert len(re.findall(r'<ul class="stories">(.*?)</ul>', page, re.S)[0].split("<li>")) == 5
    assert page.count('class="bar-row"') == 4
    assert "mean over 3 seeds (0, 1, 2)" in page
    assert "sd 0.015" in page  # of .0, .02, -.01: sqrt(.0004667 / 2) = .01528
    assert words.SEEDS.replace("'", "&#39;") in page
    for seed in range(3):
        assert f"ewc-{seed}/recipe.yaml" in page  # each run can be made again


def test_the_terminal_groups_twelve_runs(twelve: list[Run]) -> None:
    text = " ".join(text_of(twelve).split())
    assert text.count("mean over 3 seeds (0, 1, 2)") == 4
    assert "0.703" in text  # gere: (.7 + .72 + .69) / 3
    assert "Student's t" in text
    assert max(map(len, text_of(twelve, 80).splitlines())) <= 80


def test_json_has_groups_with_intervals(
    twelve: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show.compare([run.path for run in twelve], tmp_path / "a.html", None, True)
    found = json.loads(capsys.readouterr().out)
    assert len(found["runs"]) == 12
    gere = next(group for group in found["groups"] if group["method"] == "gere")
    assert gere["seeds"] == [0, 1, 2]
    figure = gere["figures"]["average_accuracy"]
    assert figure["mean"] == pytest.approx(0.70333333)
    reach = T2 * figure["sd"] / math.sqrt(3)
    assert (figure["low"], figure["high"]) == pytest.approx(
        (figure["mean"] - reach, figure["mean"] + reach)
    )
    assert found["best"]["average_accuracy"] == "gere"
    run = found["runs"][0]
    assert run["intervals"]["average_accuracy"]["low"] < run["average_accuracy"]
    assert run["intervals"]["scores"][2]["a"]["high"] > run["scores"][2]["a"]
    assert run["intervals"]["changes"]["tasks"]["a"]["since_learned"]["outcome"] == "lost"
    assert run["rests_on"]["average_accuracy"]["used"] == [
        {"task": "a", "after": 2}, {"task": "b", "after": 2},
    ]  # fmt: skip


def test_report_prints_its_figures_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", "replay", KEEPS, steps=2)
    show.report(run.path, None, True)
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == str(run.path / "report.html")
    ends = found["intervals"]["forgetting"]
    assert ends["low"] < found["forgetting"] < ends["high"]


# --- tables


def test_csv_holds_every_figure(twelve: list[Run]) -> None:
    rows = list(csv.DictReader(io.StringIO(table(twelve, "csv"))))
    assert [row["method"] for row in rows] == ["sequential", "replay", "ewc", "gere"]
    gere = rows[-1]
    assert (gere["seeds"], gere["runs"]) == ("0 1 2", "3")
    assert float(gere["average_accuracy"]) == pytest.approx(0.70333333)
    assert float(gere["average_accuracy_sd"]) == pytest.approx(0.01527525)
    assert float(gere["end:a"]) == pytest.approx(0.70333333)
    # General text: ln(22/20), ln(23/20), ln(24/20), each against the same run's own base.
    mean = (math.log(1.1) + math.log(1.15) + math.log(1.2)) / 3
    assert float(gere["general_nats"]) == pytest.approx(mean)
    # These seeds agree: what is left is the rows' interval.
    assert float(gere["forward_transfer_sd"]) == 0
    assert float(gere["forward_transfer_low"]) < 0 < float(gere["forward_transfer_high"])


def test_latex_escapes_and_marks_the_best(tmp_path: Path, twelve: list[Run]) -> None:
    text = table(twelve, "latex")
    lines = text.splitlines()
    assert lines[1:3] == [r"\begin{tabular}{llrrrrr}", r"\toprule"]
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    best = next(line for line in lines if line.startswith("gere"))
    assert r"\textbf{0.7033} {\small (0.6654 to 0.7413)}" in best
    assert not any(r"\textbf{0.6" in line for line in lines)
    assert all(line.endswith(r"\\") and line.count(" & ") == 6 for line in lines[5:-2])
    assert tex("a_b & 5 % ~^\\{}#$") == (
        r"a\_b \& 5 \% \textasciitilde{}\textasciicircum{}\textbackslash{}\{\}\#\$"
    )


def test_markdown_is_a_table(twelve: list[Run]) -> None:
    lines = table(twelve, "markdown").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 6
    assert {row.count("|") for row in rows} == {8}
    assert "**0.7033** (0.6654 to 0.7413)" in rows[-1]


def test_the_command_writes_a_table_and_refuses_the_rest(
    twelve: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths, out = [run.path for run in twelve[:2]], tmp_path / "new" / "t.csv"
    show.compare(paths, out, None, False, "csv")
    assert out.read_text("utf-8") == table(twelve[:2], "csv")
    assert capsys.readouterr().out == f"{out}\n"
    show.compare(paths, None, None, False, "markdown")
    assert capsys.readouterr().out == table(twelve[:2], "markdown")
    for call in (
        lambda: show.compare(paths, out, None, False, "csv"),  # exists
        lambda: show.compare(paths, None, None, True, "csv"),
        lambda: show.compare(paths, None, tmp_path / "f.svg", False, "csv"),
        lambda: show.compare(paths, None, None, False, "excel"),
    ):
        with pytest.raises(PerdureError):
            call()
    assert not list(tmp_path.glob("*.html"))


# --- what a figure rests on, and which rows belong together


def test_figures_of_an_extension_say_their_cells(tmp_path: Path) -> None:
    gone = [list(row) for row in FORGETS]
    gone[1][1] = NAN  # the second task joined later: never scored after the first
    run = make_run(tmp_path / "run", "replay", gone, steps=2)
    (view,) = views([run])
    said = words.cells_words(view, "forgetting")
    assert said == "rests on 5 of 6 cells; never scored: language after 1"
    assert words.cells_words(view, "average_accuracy") == ""
    assert words.cells_words(view, "forward_transfer") == (
        "not defined; never scored: language after 1"
    )
    assert said in render([run])
    assert f"forgetting {said}" in " ".join(text_of([run]).split())
    assert numbers.of_run(view)["rests_on"]["forgetting"]["missing"] == [
        {"task": "language", "after": 1}
    ]


def test_intervals_are_over_declared_groups(tmp_path: Path) -> None:
    """Ten rows in two groups, one all right: by hand 1 - sqrt(.975) to sqrt(.975)."""
    run = make_run(tmp_path / "run", "replay", [[0.5], [0.5]], tasks=["t"], rows=10, items=True,
                   steps=2)  # fmt: skip

    def end() -> tuple[float, float]:
        cell = views([run])[0].evidence.cell(1, "t")
        assert cell is not None
        return cell.low, cell.high

    assert end() == pytest.approx((0.187, 0.813), abs=0.015)  # Clopper and Pearson's of 5 in 10
    for after in (0, 1):
        rows = run.items(after, "t")
        marked = [{**row, "group": f"passage {k // 5}"} for k, row in enumerate(rows)]
        write_lines(run.path / "items" / f"after-{after}-t.jsonl", marked)
    hand = (1 - math.sqrt(0.975), math.sqrt(0.975))
    assert end() == pytest.approx(hand, abs=0.01)
    change = views([run])[0].evidence.change(views([run])[0].tasks[0], 0, 1)
    assert change is not None
    # No row changed: of two groups the imagined one weighs Beta(1, 2), .025 from the end.
    assert change.low == pytest.approx(-(1 - math.sqrt(0.025)), abs=0.01)
    for after in (0, 1):  # the same questions under no declared group
        asked = [{**row, "group": "", "prompt": f"Who?  {k // 5}"} for k, row in
                 enumerate(run.items(after, "t"))]  # fmt: skip
        write_lines(run.path / "items" / f"after-{after}-t.jsonl", asked)
    assert end() == pytest.approx(hand, abs=0.01)
