"""Reports of an average: weights and ways by task, in the terminal, on the page and as numbers."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_runs import TASKS, make_run, write_lines

from perdure.commands.show import compare
from perdure.reports import averaging, numbers
from perdure.reports.data import views
from perdure.reports.format import DASH
from perdure.reports.html import render
from perdure.reports.seeds import grouped
from perdure.reports.terminal import score_table
from perdure.run import Run

pytestmark = pytest.mark.unit


def with_average(folder: Path, seed: int = 0, out: float = 0.25) -> Run:
    """Deciles 0.1 to 0.9 in the first task, weights that hardly move in the second; no third."""
    made = make_run(folder, "ema", seed=seed)
    facts = []
    for after, deciles, moved in (
        (1, [0.1 * i for i in range(1, 10)], (3.0, 4.0)),
        (2, [0.9999] * 9, (0.1, 5.0)),
    ):
        figures = {
            "out_share": out, "moved": moved[0], "moved_raw": moved[1],
            **{f"decile_{i}": value for i, value in enumerate(deciles, 1)},
        }  # fmt: skip
        facts += [
            {"after": after, "task": TASKS[after - 1], "name": f"method/averaging_{k}", "value": v}
            for k, v in figures.items()
        ]
    write_lines(folder / "facts.jsonl", facts)
    return made


def test_each_task_has_its_weights_and_ways(tmp_path: Path) -> None:
    runs = [with_average(tmp_path / "ema"), make_run(tmp_path / "plain", "sequential")]
    view, plain = views(runs)
    assert averaging.numbers(plain) == averaging.tasks(plain) == []
    first, second = averaging.numbers(view)
    assert (first["task"], first["out_of_range"], first["moved"]) == (TASKS[0], 0.25, 3.0)
    assert first["deciles"] == pytest.approx([0.1 * i for i in range(1, 10)])
    assert numbers.of_run(view)["averaging"] == [first, second]
    one, two = averaging.tasks(view)
    assert averaging.cells(one)[:3] == ["25 %", "0.100", "0.200"]
    assert averaging.cells(one)[-3:] == ["3.00", "4.00", "75 %"]
    assert averaging.cells(two)[-3:] == ["0.100", "5.00", "2 %"]
    page = render(runs)
    assert page.count('id="averaging"') == 1
    assert "0.99990" in page
    assert "Average moved" in page
    target = Console(file=io.StringIO(), width=200)
    score_table(runs, target)
    text = target.file.getvalue()  # type: ignore[attr-defined]
    assert "ema: weight on the old average" in text
    assert "3.00 (75 %)" in text
    assert "sequential: weight on" not in text
    assert 'id="averaging"' not in render(runs[1:])


def test_of_several_seeds_it_is_the_mean(tmp_path: Path) -> None:
    runs = [with_average(tmp_path / str(i), seed=i, out=0.2 + 0.2 * i) for i in (0, 1)]
    (group,) = grouped(views(runs))
    assert averaging.tasks(group)[0].out == pytest.approx(0.3)


def test_compare_shows_it_in_the_terminal_on_the_page_and_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    paths = [tmp_path / "ema", tmp_path / "plain"]
    with_average(paths[0])
    make_run(paths[1], "sequential")
    compare(paths, tmp_path / "page.html", None, as_json=False)
    shown = capsys.readouterr().out
    for text in ("ema: weight on the old average", "out of range", "deciles of the weight", "25 %",
                 "0.100 0.200 0.300", "3.00 (75 %)", "weights moved", "4.00"):  # fmt: skip
        assert text in shown
    page = (tmp_path / "page.html").read_text("utf-8")
    for text in (
        "Out of range",
        "10 %",
        "90 %",
        "Average moved",
        "Weights moved",
        "0.99990",
        "5.00",
    ):
        assert text in page
    compare(paths, tmp_path / "again.html", None, as_json=True)
    ema, plain = json.loads(capsys.readouterr().out)["groups"]
    assert [one["out_of_range"] for one in ema["averaging"]] == [0.25, 0.25]
    assert [len(one["deciles"]) for one in ema["averaging"]] == [9, 9]
    assert [(one["moved"], one["moved_raw"]) for one in ema["averaging"]] == [(3, 4), (0.1, 5)]
    assert plain["averaging"] == []


def test_weights_have_the_digits_that_tell_them_from_1() -> None:
    given = (0.0, 0.5, 0.99, 0.9999, 0.9999999, 1.0, math.nan)
    shown = [averaging.weight(value) for value in given]
    assert shown == ["0", "0.500", "0.990", "0.99990", "0.9999999", "1", DASH]
