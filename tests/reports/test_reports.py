"""What reports say about runs with invented numbers, and that they say it safely."""

from __future__ import annotations

import html
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from synthetic_runs import (
    ENVIRONMENT,
    FORGETS,
    KEEPS,
    NAN,
    TASKS,
    make_run,
    three_methods,
    write_lines,
)
from tiny_runs import write_recipe

from perdure.commands import show
from perdure.errors import UsageError
from perdure.reports import (
    charts,
    colours,
    curves,
    findings,
    format,
    maps,
    provenance,
    ranking,
    sections,
    tradeoff,
    training,
    words,
)
from perdure.reports.data import RunView, TaskFacts, views
from perdure.reports.evidence import Margins, of_scores
from perdure.reports.figures import write_figure
from perdure.reports.html import render, write_report
from perdure.reports.terminal import Display, NullDisplay, make_display, score_table
from perdure.run import Run
from perdure.scoring.intervals import noise

pytestmark = pytest.mark.unit

HOSTILE = "<script>alert(1)</script>\"'&"


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    return three_methods(tmp_path_factory.mktemp("three"))


def view(run: Run) -> RunView:
    return views([run])[0]


# --- the digest


def test_view_reads_a_run(tmp_path: Path) -> None:
    run = view(make_run(tmp_path / "run", "gere+ewc", KEEPS))
    assert (run.label, run.name, run.state, run.done, run.complete) == (
        "gere+ewc", "invented", "finished", 3, True,
    )  # fmt: skip
    assert [t.name for t in run.tasks] == list(TASKS)
    assert run.over_time("language") == [0.20, 0.21, 0.94, 0.92]
    assert run.general == (23.4, 24.0, 24.4, 24.9)
    # By hand: (0.73 + 0.92 + 0.80) / 3, ((0.73 - 0.76) + (0.92 - 0.94)) / 2
    assert run.summary("average_accuracy") == pytest.approx(2.45 / 3)
    assert run.summary("backward_transfer") == pytest.approx(-0.025)
    assert run.tokens_per_second == 132  # steps log 130 to 134, evenly
    assert run.peak_memory_mb == 3100


def test_what_is_missing_stays_missing(tmp_path: Path) -> None:
    run = view(make_run(tmp_path / "run", "gere", [KEEPS[0], [0.76, NAN, NAN]], finished=False))
    assert math.isnan(run.score(1, "language"))
    assert math.isnan(run.score(3, "topic"))
    assert math.isnan(run.score(0, "no such task"))
    assert run.summary("average_accuracy") is None
    assert (run.done, run.complete, run.state) == (1, False, "interrupted")


def test_a_run_without_any_score(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "gere", [], general=(), steps=0, finished=False)
    assert view(run).tasks == ()
    assert "has learned no task yet" in render([run])
    with_base = make_run(tmp_path / "base", "gere", KEEPS[:1], finished=False)
    assert "gere has learned no task yet" in render([with_base])


def test_runs_of_one_method_get_labels_of_their_own(tmp_path: Path) -> None:
    places = ["a/x", "b/x", "c/y", "d/z"]
    methods = ["gere", "gere", "gere", "lwf"]
    runs = [make_run(tmp_path / p, m) for p, m in zip(places, methods, strict=True)]
    assert [r.label for r in views(runs)] == ["gere (x) #1", "gere (x) #2", "gere (y)", "lwf"]


def test_tasks_scored_later_stay_out_of_the_matrix(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "gere", KEEPS)
    with open(run.path / "scores.jsonl", "a", encoding="utf-8") as file:
        for after in (0, 3):
            file.write(json.dumps({"kind": "task", "after": after, "task": "other",
                                   "metric": "exact_match", "higher_is_better": True,
                                   "score": 0.125, "rows": 8}) + "\n")  # fmt: skip
    digest = view(Run.open(run.path))
    assert [t.name for t in digest.tasks] == list(TASKS)
    assert digest.unseen == (("other", 0, 0.125), ("other", 3, 0.125))
    assert digest.summary("average_accuracy") == pytest.approx(2.45 / 3)
    assert "Tasks outside the stream" in render([run])


# --- words and numbers


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (format.number(0.784), "0.78"),
        (format.number(-0.004), "0.00"),
        (format.number(-0.006), "−0.01"),
        (format.number(NAN), "–"),
        (format.number(None), "–"),
        (format.signed(0.1), "+0.10"),
        (format.signed(-0.1), "−0.10"),
        (format.signed(0.001), "0.00"),
        (format.significant(23.44), "23.4"),
        (format.significant(1239.6), "1,240"),
        (format.significant(9.996), "10.0"),
        (format.significant(0.03125), "0.0312"),
        (format.significant(1.5e7), "1.50e+07"),
        (format.significant(math.inf), "∞"),
        (format.significant(0.0), "0"),
        (format.percent(0.443), "+44 %"),
        (format.percent(-0.0123), "−1.2 %"),
        (format.percent(41.0), "×42.0"),
        (format.duration(3.21), "3.2 s"),
        (format.duration(59.9), "1 min 0 s"),
        (format.duration(200), "3 min 20 s"),
        (format.duration(7260), "2 h 1 min"),
        (format.memory(812), "812 MB"),
        (format.memory(3100), "3.0 GB"),
        (format.listing([]), ""),
        (format.listing(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_in_words(text: str, wanted: str) -> None:
    assert text == wanted


def test_noise_by_hand() -> None:
    # 96 rows: (0.5 * 96 + 2) / 100 = 0.5, and (96 + 2) / 100 = 0.98; scaled back by 100 / 96
    assert noise(0.5, 0.5, 96) * 0.96 == pytest.approx(1.96 * math.sqrt(2 * 0.25 / 100))
    assert noise(0.5, 1.0, 96) * 0.96 == pytest.approx(
        1.96 * math.sqrt((0.5 * 0.5 + 0.98 * 0.02) / 100)
    )
    assert noise(0.5, 0.5, 0) == 0


def test_noise_covers_chance() -> None:
    """Two test sets of one true score differ by more than the bound in at most 5 % of draws."""
    import numpy as np

    random = np.random.default_rng(0)
    for true, rows in [(0.5, 80), (0.95, 80), (0.05, 30), (0.5, 20), (0.3, 40), (0.5, 200)]:
        hits = random.binomial(rows, true, (20_000, 2)) / rows
        beyond = sum(abs(a - b) > noise(a, b, rows) for a, b in hits.tolist())
        assert beyond / 20_000 <= 0.053, (true, rows)


@pytest.mark.parametrize(
    ("before", "after", "metric", "wanted"),
    [
        (0.30, 0.80, "exact_match", "kept learned"),
        (0.80, 0.30, "exact_match", "lost not learned"),
        (0.50, 0.55, "exact_match", "open open"),
        # Of two perplexities alone nothing is known: no interval, so no word.
        (20.0, 40.0, "perplexity", "open open"),
        (40.0, 20.0, "perplexity", "open open"),
    ],
)
def test_change_of_two_scores(before: float, after: float, metric: str, wanted: str) -> None:
    task = TaskFacts("t", metric, metric != "perplexity", 80)
    found = of_scores(task, before, after, Margins())
    assert f"{found.outcome} {found.gain}" == wanted


def test_the_headline_of_one_run(tmp_path: Path) -> None:
    learned = "learned topic, language and german-names"
    open_words = "too few rows to tell whether it kept"
    forgets = view(make_run(tmp_path / "f", "sequential", FORGETS, general=()))
    assert words.headline(forgets) == f"sequential {learned}, and forgot topic and language"
    assert words.story(forgets) == (
        f"{learned}; forgot topic (0.78 → 0.29) and language (0.95 → 0.41)"
    )
    # 80 rows cannot show that three points were kept.
    few = view(make_run(tmp_path / "k", "gere", KEEPS))
    assert words.headline(few) == (
        f"gere {learned}; {open_words} topic, language and general ability"
    )
    assert words.story(few) == f"{learned}; {open_words} topic and language"
    nothing = view(make_run(tmp_path / "n", "freeze", [KEEPS[0]] * 4, rows=2000, items=True))
    assert words.headline(nothing).startswith("freeze learned none of 3 tasks")


SAME = [[0.3, 0.2, 0.1], [0.8, 0.2, 0.1], [0.8, 0.9, 0.1], [0.8, 0.9, 0.8]]
SAME_TEXT = (23.4, 23.4, 23.4, 23.4)


@pytest.mark.parametrize(
    ("matrix", "general", "rows", "ending"),
    [
        (SAME, SAME_TEXT, 1000, ", and forgot nothing"),
        (SAME, (), 1000, ", and forgot nothing"),
        # 40 rows without a change leave room for a drop of 0.09.
        (SAME, (), 40, "; too few rows to tell whether it kept a and b"),
        (SAME, (23.4, 24.0, 30.0, 46.8), 1000, ", and lost general ability against the base model"),
        ([*SAME[:3], [0.5, 0.9, 0.8]], SAME_TEXT, 1000, ", and forgot a"),
        ([*SAME[:3], [0.1, 0.9, 0.8]], SAME_TEXT, 1000, ", and lost a against the base model"),
        ([*SAME[:3], [0.1, 0.6, 0.8]], (23.4, 24.0, 30.0, 46.8), 1000,
         ", and lost a and general ability against the base model and forgot b"),
        ([*SAME[:3], [0.5, 0.9, 0.8]], (23.4, 23.4, 23.4, 24.9), 1000,
         ", and forgot a; too few rows to tell whether it kept general ability"),
    ],
)  # fmt: skip
def test_headlines_of_all_mixes(
    tmp_path: Path, matrix: list[list[float]], general: tuple[float, ...], rows: int, ending: str
) -> None:
    run = make_run(tmp_path / "r", "gere", matrix, tasks=("a", "b", "c"), general=general,
                   rows=rows, items=True, texts=300 if general == SAME_TEXT else 32)  # fmt: skip
    assert words.headline(view(run)) == f"gere learned a, b and c{ending}"


@pytest.mark.parametrize("items", [False, True])
def test_sixteen_rows_are_never_said_to_keep(tmp_path: Path, items: bool) -> None:
    """.62 with the base model, .25 at the end, of 16 rows: once "kept both earlier tasks"."""
    matrix = [[0.62, 0.5, 0.5], [0.62, 0.5, 0.5], [0.62, 0.5, 0.5], [0.25, 0.5, 0.5]]
    run = make_run(tmp_path / "r", "replay", matrix, rows=16, items=items)
    found = view(run)
    first, second, _ = findings.findings(found)
    # The rows themselves show it (six were broken, none mended); two scores alone do not.
    assert first.kept == ("lost" if items else "open")
    assert second.kept == "open"
    target, file = console(force_terminal=False)
    score_table([run], target)
    for said in (words.headline(found), words.story(found), file.getvalue()):
        assert not re.search(r"(?<!it )\bkept\b|forgot nothing", said), said
    page = render([run])
    assert "16 rows; they show a loss from" in page
    assert 'class="verdict kept"' not in page


def test_margins_stand_beside_the_word(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "gere", SAME, tasks=("a", "b", "c"), rows=1000, items=True)
    page = render([run])
    assert "learned (more than 0.02)" in page
    assert "kept (within 0.02)" in page
    recipe = run.path / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "scoring: {max_drop: 0.001}\n")
    assert "kept (within" not in render([Run.open(run.path)])
    assert "learned (more than 0.001)" in render([Run.open(run.path)])


def test_changed_inputs_that_were_accepted_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change = f"base model, {HOSTILE}.json: has other bytes since this run began"
    noted = [{"time": "2026-02-03T10:00:00Z", "changes": [change, "recipe: seed was 0"]}]
    plain = make_run(tmp_path / "plain", "sequential", FORGETS)
    run = make_run(
        tmp_path / "run", "replay", environment=ENVIRONMENT | {"accepted_changes": noted}
    )
    for runs, who in (([run], ""), ([plain, run], "replay: ")):
        page = render(runs)
        (banner,) = re.findall(r'<div class="banner" role="note">(.*?)</div>', page, re.S)
        told = html.unescape(banner)
        assert "Inputs have changed" in told
        assert "was accepted (<code>--accept-changes" in told
        assert f"<li>{who}{change} <span" in told
        assert f"<li>{who}recipe: seed was 0 <span" in told
        assert HOSTILE not in page
        assert "Accepted changes" not in page  # said once
    assert "Inputs have changed" not in render([plain])
    stdout, text = console()
    score_table([plain, run], stdout)
    shown = " ".join(text.getvalue().split())
    assert f"replay: changed inputs were accepted: {change}" in shown
    assert "sequential: changed" not in shown
    show.report(run.path, None, True)
    assert json.loads(capsys.readouterr().out)["accepted_changes"] == noted[0]["changes"]


@pytest.mark.parametrize("noted", [3, "x", [3], [{"changes": "abc"}], [{}], {"a": 1}, None])
def test_a_note_of_another_shape_is_passed_over(tmp_path: Path, noted: object) -> None:
    run = make_run(tmp_path / "run", environment=ENVIRONMENT | {"accepted_changes": noted})
    assert "Inputs have changed" not in render([run])


def test_rows_that_do_not_make_up_the_score_are_not_used(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "gere", SAME, tasks=("a", "b", "c"), rows=1000, items=True)
    task = view(run).tasks[0]
    paired = view(run).evidence.change(task, 0, 1)
    assert paired is not None
    assert paired.paired
    path = run.path / "items" / "after-1-a.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))  # one row is gone
    other = view(run).evidence.change(task, 0, 1)
    assert other is not None
    assert not other.paired


def test_forgetting_that_is_a_rise_and_a_fall_says_so(tmp_path: Path) -> None:
    matrix = [[0.5, 0.5, 0.5], [0.6, 0.5, 0.5], [0.6, 0.6, 0.5], [0.66, 0.54, 0.7]]
    run = view(make_run(tmp_path / "r", "gere", matrix, rows=100))
    assert run.summary("forgetting") == pytest.approx(0)
    assert words.mixed_parts(run, "forgetting", 2) == "mean of −0.06 and +0.06"
    assert words.mixed_parts(run, "backward_transfer", 2) == "mean of +0.06 and −0.06"
    assert words.mixed_parts(run, "average_accuracy", 2) == ""
    falls = view(make_run(tmp_path / "f", "gere", FORGETS))
    assert words.mixed_parts(falls, "forgetting", 2) == ""


def test_every_figure_and_cell_has_its_interval(tmp_path: Path) -> None:
    for items in (False, True):
        run = make_run(tmp_path / f"r{items}", "gere", KEEPS, items=items)
        (row,) = sections.summary(views([run]))["rows"]
        assert all(re.fullmatch(r"\S+ to \S+", cell["interval"]) for cell in row["cells"])
        (heat,) = maps.heatmaps(views([run]))
        assert all("95 % interval" in c["hint"] for line in heat["rows"] for c in line["cells"])
        assert 'title="95 % interval: ' in render([run])


def test_general_ability_is_ranked_by_its_texts(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", "sequential", KEEPS, general=(23.4, 30.0, 35.0, 40.0), items=True),
        make_run(tmp_path / "b", "gere", KEEPS, general=(23.4, 23.4, 23.5, 23.6), items=True),
    ]
    found = views(runs)
    assert ranking.best(found, ranking.GENERAL) == 1
    assert ranking.best(found, "average_accuracy") is None
    assert ranking.headline(found) == (
        "gere has the best general ability; sequential lost general ability"
    )
    rows = sections.summary(found)["rows"]
    assert [row["best"] for row in rows] == [False, True]


def test_the_headline_of_several_runs(tmp_path: Path, three: list[Run]) -> None:
    runs = views(three)
    assert ranking.headline(runs) == (
        "replay and gere know the most at the end; sequential lost topic and language"
    )
    assert ranking.headline(runs[1:]) == "No method is clearly ahead at the end"
    worse = [KEEPS[0], KEEPS[1], [0.40, 0.94, 0.04], [0.10, 0.30, 0.80]]
    pair = views([three[0], make_run(tmp_path / "w", "lwf", worse)])
    assert ranking.headline(pair) == "sequential knows more at the end than lwf"
    other = view(make_run(tmp_path / "o", "gere", KEEPS, tasks=("a", "b", "c")))
    assert ranking.headline([runs[0], other]) == "2 runs over different tasks"
    begun = view(make_run(tmp_path / "b", "ewc", KEEPS[:2], finished=False))
    assert "not all of them finished" in ranking.headline([runs[0], begun])


# --- charts and colours


def test_ticks_enclose_the_values() -> None:
    assert charts.score_ticks(0.3) == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert charts.score_ticks(0.51) == charts.score_ticks(1) == [0, 0.25, 0.5, 0.75, 1]
    assert charts.nice_ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert charts.nice_ticks(0, 96) == [0, 25, 50, 75, 100]
    assert charts.log_ticks(3, 45) == [2, 5, 10, 20, 50]
    for low, high in [(0.1, 0.11), (-3.0, 8.0), (23.4, 33.8), (5.0, 5.0), (0.0, 1e-9)]:
        ticks = charts.nice_ticks(low, high)
        assert ticks[0] <= low <= high <= ticks[-1]
        assert 2 <= len(ticks) <= 12
    for low, high in [(6.28, 52.7), (1.0, 1000.0), (1e-5, 1e4), (2e-8, 3e14), (0.9, 7.3)]:
        ticks = charts.log_ticks(low, high)
        assert ticks[0] <= low <= high <= ticks[-1]
        assert 3 <= len(ticks) <= 11


def test_tick_labels() -> None:
    labels = [charts.tick_label(v) for v in (0, 0.25, 1500, -2.5, 2e-5, 1e6)]
    assert labels == ["0", "0.25", "1,500", "−2.5", "2e−5", "1e6"]


def test_a_missing_value_lifts_the_pen() -> None:
    assert charts.polyline([(0, 1), (2, 3), None, (4, 5)]) == "M0,1L2,3M4,5"
    assert charts.polyline([]) == ""


def test_moving_mean_by_hand() -> None:
    values = [(float(i), float(v)) for i, v in enumerate([3, 6, 0] + [1] * 37)]
    means = [v for _, v in curves.moving_mean(values)]  # 40 points: two on either side
    assert means[:4] == [3, 3, (3 + 6 + 0 + 1 + 1) / 5, (6 + 0 + 1 + 1 + 1) / 5]
    slow = [  # the plain reference: each window summed by itself
        sum(v for _, v in values[max(0, i - n) : i + n + 1]) / (2 * n + 1)
        for i in range(40)
        for n in [min(2, i, 39 - i)]
    ]
    assert means == pytest.approx(slow)
    assert curves.moving_mean([(0.0, 2.0)]) == [(0.0, 2.0)]


def test_steps_count_on_over_tasks_and_phases(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "gere", KEEPS, steps=2)
    row = {"time": "2026-01-02T10:00:00Z", "loss": 1.0, "tokens_per_second": 1.0, "memory_mb": 1}
    write_lines(run.path / "log.jsonl", [
        {**row, "after": 1, "task": "topic", "phase": "warm", "step": 1, "steps": 2},
        {**row, "after": 1, "task": "topic", "phase": "warm", "step": 2, "steps": 2, "loss": NAN},
        {**row, "after": 1, "task": "topic", "phase": "main", "step": 3, "steps": 3, "loss": 2.0},
        {**row, "after": 2, "task": "language", "phase": "main", "step": 1, "steps": 1},
    ])  # fmt: skip
    found = training.stretches(view(Run.open(run.path)), "loss")
    assert [(s.task, s.start, s.end, s.values) for s in found] == [
        ("topic (warm)", 0, 2, ((1, 1.0),)),
        ("topic (main)", 2, 5, ((5, 2.0),)),
        ("language", 5, 6, ((6, 1.0),)),
    ]


def test_every_step_of_the_heat_map_is_legible() -> None:
    assert colours.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert colours.heat(0, ("#000000", "#ffffff")) == "#000000"
    assert colours.heat(0.5, ("#000000", "#ffffff")) == "#808080"
    for step in colours.ramp_css():
        assert colours.contrast(step["light"], step["light_ink"]) >= 4.5
        assert colours.contrast(step["dark"], step["dark_ink"]) >= 4.5


def stylesheet_modes() -> list[dict[str, str]]:
    """The variables of the light and of the dark mode, as report.css declares them."""
    css = (Path(charts.__file__).parent / "report.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\n\s*\}", css, re.S)
    return [dict(re.findall(r"(--\w+): (#[0-9a-f]{6})", block)) for block in blocks[:2]]


def seen_by(colour: str, kind: str) -> list[float]:
    """Lab coordinates of a colour as the colour-blind see it (Machado et al. 2009, severity 1)."""
    matrices = {
        "nobody": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                   [-0.011820, 0.042940, 0.968881]],
    }  # fmt: skip
    rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    r, g, b = (sum(m * c for m, c in zip(row, linear, strict=True)) for row in matrices[kind])
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089,
    )
    x, y, z = (
        c ** (1 / 3) if c > 0.008856 else 7.787 * c + 16 / 116 for c in (max(c, 0) for c in xyz)
    )
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


def test_colours_of_methods_stay_apart() -> None:
    modes = stylesheet_modes()
    assert len(modes) == 2
    for mode in modes:
        series = [mode[f"--s{i}"] for i in range(charts.COLOURS)]
        for colour in series:
            assert colours.contrast(colour, mode["--card"]) >= 3, colour
        for text in ("--ink", "--soft", "--lost", "--accent"):
            assert colours.contrast(mode[text], mode["--card"]) >= 4.5, text
        for kind in ("nobody", "protan", "deutan"):
            near = [(a, b) for a, b in combinations(series[:5], 2)
                    if math.dist(seen_by(a, kind), seen_by(b, kind)) < 12]  # fmt: skip
            assert near == [], kind


def test_slots_beyond_the_palette_differ_by_dash() -> None:
    looks = {(line.colour, line.dash) for line in (charts.Line(s, "") for s in range(32))}
    assert len(looks) == 32


# --- the page


class Checker(HTMLParser):
    """Collects what a page holds, and complains about tags that are not closed in order."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def test_page_is_well_formed_and_stands_alone(three: list[Run]) -> None:
    for runs in (three, three[:1]):
        text = render(runs)
        page = Checker(text)
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text
        assert "url(" not in text
        assert "@import" not in text
        for tag, attributes in page.attributes:
            assert tag not in ("script", "iframe", "object", "embed", "img")
            assert not any(name.startswith("on") for name in attributes)
            assert str(attributes.get("href") or "#").startswith(("#", "data:image/svg+xml"))
            assert "src" not in attributes
        ids = [a["id"] for _, a in page.attributes if "id" in a]
        assert len(ids) == len(set(ids))
        targets = [a["href"] for t, a in page.attributes if t == "a"]
        assert {str(t)[1:] for t in targets} <= set(ids)
        described = [a["aria-labelledby"] for _, a in page.attributes if "aria-labelledby" in a]
        assert {i for d in described for i in str(d).split()} <= set(ids)


def test_every_section_is_there(three: list[Run]) -> None:
    text = render(three)
    for heading in ("What was learned, what was forgotten", "From base model to end",
                    "Methods side by side", "Score matrix", "Task by task", "General ability",
                    "Training", "The methods’ terms, before any weight", "Cost", "Reproduce",
                    "What differs between the recipes", "Run it again", "Recipe",
                    "Environment"):  # fmt: skip
        assert f">{heading}<" in text, heading
    for number in ("0.817", "−0.515", "0.843", "+0.025", "23.4 → 33.8", "132", "3.0 GB"):
        assert number in text, number
    assert "gere: margin" in text
    assert "learning_rate: 0.0001" in text  # the recipe itself
    assert "lower is better" in text


def test_every_chart_has_words_and_numbers(three: list[Run]) -> None:
    text = render(three)
    drawn = re.findall(r'<svg viewBox="0 0 340 216".*?</details>', text, re.S)
    # Tasks, general, training loss, own losses, accuracy against time.
    assert len(drawn) == 3 + 1 + 3 + 3 + 1
    for chart in drawn:
        assert 'role="img"' in chart
        assert re.search(r"<title id=[^>]*>[^<]+</title>", chart)
        assert re.search(r"<desc id=[^>]*>[^<]{20,}</desc>", chart)
        assert "<table>" in chart
        assert not re.search(r"\b(nan|inf)\b", chart)
    topic = drawn[0]
    assert "sequential: 0.31, 0.78, 0.33, 0.29" in topic
    assert re.search(r"<td>0\.33</td>", topic)


def test_matrix_cells_are_a_table(tmp_path: Path) -> None:
    text = render([make_run(tmp_path / "run", "gere", [KEEPS[0], [0.76, NAN, 0.03]])])
    heat = re.search(r'<table class="heat">.*?</table>', text, re.S)
    assert heat is not None
    cells = re.findall(r"<td class=\"([^\"]*)\"[^>]*>(.*?)</td>", heat.group(), re.S)
    assert [c for c, _ in cells].count("empty learned") == 2
    shown = [re.sub(r"<[^>]+>", "", cell) for _, cell in cells]
    assert shown[:6] == ["0.31", "0.20", "0.02", "0.76 just learned", "–missing", "0.03"]
    assert "missing: never scored" in text  # the legend


@pytest.mark.parametrize("several", [False, True])
def test_names_are_text_not_markup(tmp_path: Path, several: bool) -> None:
    tasks = (HOSTILE, "{{ 7 * 7 }}", "plain")
    environment = {"hardware": {"cpu": HOSTILE}, "packages": {HOSTILE: HOSTILE}, HOSTILE: HOSTILE}
    run = make_run(tmp_path / "<b>x", "gere", FORGETS, tasks=tasks, environment=environment,
                   own_losses={f"method/{HOSTILE}": 1.0})  # fmt: skip
    runs = [run, make_run(tmp_path / "y", "gere", KEEPS, tasks=tasks)] if several else [run]
    text = render(runs)
    Checker(text)
    assert "<script" not in text
    assert "<b>x" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }}" in text
    assert 'class="' + HOSTILE not in text


def test_perplexity_tasks_are_told_apart(tmp_path: Path) -> None:
    matrix = [[0.31, 80.0], [0.78, 60.0], [0.70, 12.0]]
    run = make_run(tmp_path / "run", "gere", matrix, tasks=("topic", "verse"),
                   metrics={"verse": "perplexity"})  # fmt: skip
    text = render([run])
    assert "perplexity, lower is better" in text
    assert "do not run from 0 to 1, or lower is better: verse." in text
    assert view(run).summary("average_accuracy") == 0.70
    heat = re.findall(r'<td class="h(\d+) [a-z]+"[^>]*>([\d.]+)', text)
    assert ("0", "80.0") in heat  # the worst
    assert ("50", "12.0") in heat  # the best


def test_best_is_marked_only_where_runs_compare(tmp_path: Path, three: list[Run]) -> None:
    rows = sections.summary(views(three))["rows"]
    # gere and replay are ahead of sequential, and not of one another.
    assert not any(c["best"] for row in rows for c in row["cells"])
    many = views(three_methods(tmp_path / "many", items=True, rows=400))
    rows = sections.summary(many)["rows"]
    assert [[c["best"] for c in row["cells"]] for row in rows] == [
        [False] * 6, [False] * 6, [True, False, True, True, False, False],
    ]  # fmt: skip
    other = make_run(tmp_path / "o", "ewc", KEEPS, tasks=("a", "b", "c"))
    rows = sections.summary(views([three[0], other]))["rows"]
    assert not any(c["best"] for row in rows for c in row["cells"])
    assert "learned different tasks" in render([three[0], other])


def test_the_same_runs_give_the_same_page(three: list[Run], tmp_path: Path) -> None:
    first = write_report(three, tmp_path / "deep" / "a.html").read_bytes()
    second = write_report(three, tmp_path / "b.html").read_bytes()
    assert first == second
    assert {p.name for p in tmp_path.iterdir()} == {"deep", "b.html"}  # no half file is left


def test_a_failed_report_leaves_the_old_one(tmp_path: Path) -> None:
    old = tmp_path / "report.html"
    old.write_text("old", encoding="utf-8")
    with pytest.raises(UsageError, match="no run given"):
        write_report([], old)
    assert old.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_a_damaged_run_still_has_a_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "gere", KEEPS)
    for name in ("scores.jsonl", "log.jsonl"):
        with open(run.path / name, "a", encoding="utf-8") as file:
            file.write('{"torn')
    (run.path / "recipe.yaml").write_text("name: [torn", encoding="utf-8")
    text = render([run])
    assert "name: [torn" in text
    assert "0.817" in text


def test_many_tasks_and_methods(tmp_path: Path) -> None:
    tasks = [f"task number {i}" for i in range(12)]
    runs = []
    for k in range(10):
        matrix = [[0.1 + 0.6 * (j < i) - 0.02 * max(0, i - j) for j in range(12)]
                  for i in range(13)]  # fmt: skip
        runs.append(make_run(tmp_path / f"r{k}", "gere", matrix, tasks=tasks, steps=4,
                             general=tuple(20.0 + i * k * 30 for i in range(13))))  # fmt: skip
    Checker(text := render(runs))
    assert "logarithmic" in text
    assert text.count('<table class="heat many">') == 10


def test_a_tasks_own_loss_is_drawn_apart_from_the_sum(tmp_path: Path) -> None:
    run = make_run(tmp_path / "gere", "gere", KEEPS, own_losses={"method/gere_label": 1.4})
    plain = make_run(tmp_path / "plain", "sequential", KEEPS)
    for one, extra in ((run, 2.0), (plain, 0.0)):
        rows = [json.loads(line) for line in (one.path / "log.jsonl").read_text().splitlines()]
        rows = [row | {"task_loss": row["loss"], "loss": row["loss"] + extra} for row in rows]
        write_lines(one.path / "log.jsonl", rows)
    found = views([Run.open(run.path), Run.open(plain.path)])
    assert [chart.title for chart in training.losses(found)] == ["gere", "sequential"]
    assert [chart.title for chart in training.sums(found)] == ["gere"]
    first, second = training.losses(found)
    assert first.table == second.table
    page = render([Run.open(run.path), Run.open(plain.path)])
    assert "What was trained on" in page
    assert "<dt>gere_label</dt>" in page


def test_terms_are_drawn_unscaled_beside_their_weight(tmp_path: Path) -> None:
    """loss = task_loss + term * weight: 2.0 = 1.4 + 0.9 * 2/3; each chart says its unit."""
    run = make_run(tmp_path / "gere", "gere", KEEPS)
    lines = [
        {**row, "task_loss": 1.4, "loss": 2.0, "method/gere_label": 0.9,
         "method/gere_label_weight": 2 / 3}
        for row in run.log_rows()
    ]  # fmt: skip
    write_lines(run.path / "log.jsonl", lines)
    (term,) = training.method_losses([view(run)])
    assert (term.title, term.note) == ("gere: label", "times a weight of 0.667")
    assert term.table.rows[0][2] == "0.900"
    (own,), (whole,) = training.losses([view(run)]), training.sums([view(run)])
    assert (own.table.rows[0][2], whole.table.rows[0][2]) == ("1.40", "2.00")
    assert {chart.y_title for chart in (own, whole, term)} == {"nats a token"}
    page = render([run])
    assert "<dt>weight</dt>" in page
    assert page.count(">nats a token</text>") == 3
    for chart in (own, whole, term, *sections.task_charts([view(run)])):
        assert chart.y_title
        assert all(re.fullmatch("[−0-9.,e]+", tick.label) for tick in chart.y_ticks)


def test_what_is_logged_is_explained() -> None:
    """Every figure that Perdure's methods log by name has its sentence."""
    from perdure.reports.glossary import EXPLAINED

    folder = Path(charts.__file__).parents[1]
    text = "\n".join(p.read_text(encoding="utf-8") for p in (folder / "methods").glob("*.py"))
    names = set(re.findall(r"ctx\.log\(\"(\w+)\"", text))
    names |= set(re.findall(r"(?:return \{|losses\[)\"(\w+)\"", text))
    assert {"gere_label", "gere_weight", "replay", "lwf", "rewind_factor"} <= names
    # GeRe's family gives its held term a short name, before which "gere_" is put.
    known = {key.removeprefix("method/").removeprefix("gere_") for key in EXPLAINED}
    assert {name.removeprefix("gere_") for name in names} <= known


# --- provenance


def test_differences_between_recipes(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / m, m, seed=s) for m, s in [("gere", 0), ("replay+ewc", 1)]]
    found = dict(provenance.differences(views(runs)))
    assert found == {"seed": ["0", "1"], "method": ["gere", "replay, ewc"]}
    assert provenance.differences(views(runs[:1])) == []


def test_how_to_run_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packages = {"torch": "2.9.1+cpu", "transformers": "5.24.0"}  # the index has no +cpu
    plain = make_run(
        tmp_path / "runs" / "one", "gere", environment=ENVIRONMENT | {"packages": packages}
    )
    spaced = make_run(tmp_path / "my run", "gere", environment={"processes": 2})
    first, second = provenance.reproduce(views([plain, spaced]))
    assert first["install"] == "pip install perdure==0.1.0 torch==2.9.1 transformers==5.24.0"
    assert first["run"] == "perdure run runs/one/recipe.yaml --out runs/one-again"
    assert second["install"] == ""
    assert second["run"] == (
        "torchrun --nproc-per-node 2 -m perdure run 'my run/recipe.yaml' --out 'my run-again'"
    )


def test_pauses_are_no_training_time(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "gere", KEEPS)
    clock = ["10:00:00", "10:00:02", "10:00:04", "13:00:00", "13:00:02"]
    write_lines(run.path / "log.jsonl", [
        {"time": f"2026-01-02T{t}Z", "after": 1, "task": "topic", "phase": "main", "step": i,
         "steps": 5, "loss": 1.0} for i, t in enumerate(clock, start=1)
    ])  # fmt: skip
    assert tradeoff.training_seconds(view(Run.open(run.path))) == 6


def test_environments_are_said_once(three: list[Run], tmp_path: Path) -> None:
    (block,) = provenance.environments(views(three))
    assert ("Packages", "torch 2.9.1, transformers 5.24.0") in block["facts"]
    assert ("GPUs", "none") in block["facts"]
    assert ("Precision", "fp32") in block["facts"]
    odd = make_run(tmp_path / "odd", "lwf", environment={})
    assert len(provenance.environments(views([*three, odd]))) == 2


# --- the terminal


def console(**settings: object) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=100, **settings), file  # type: ignore[arg-type]


def control_characters(text: str) -> set[str]:
    return {c for c in text if not c.isprintable() and c != "\n"}


def test_plain_lines_without_a_terminal() -> None:
    target, file = console(force_terminal=False)
    now = [0.0]
    with Display(target, clock=lambda: now[0]) as display:
        for step in range(61):
            now[0] = step / 2  # half a second a step: 30 seconds
            display.training("gere", "topic", step, 60, 1.234, 131.0, 30 - now[0])
        display.training("gere", "topic", 60, 60, 1.0, 131.0, 0.0)
        display.scoring("gere", "language", 0, 80)
        display.scoring("gere", "language", 80, 80)
        display.message("[bold]saved[/bold] \x1b[31mred")
    lines = file.getvalue().splitlines()
    assert lines == [
        "gere: training topic, step 0/60, loss 1.23, 131 tokens/s, 30 s left",
        "gere: training topic, step 20/60, loss 1.23, 131 tokens/s, 20 s left",
        "gere: training topic, step 40/60, loss 1.23, 131 tokens/s, 10 s left",
        "gere: training topic, step 60/60, loss 1.23, 131 tokens/s",
        "gere: scoring language, row 80/80",
        "[bold]saved[/bold] �[31mred",
    ]
    assert control_characters(file.getvalue()) == set()


def test_a_task_trained_again_is_told_again() -> None:
    target, file = console(force_terminal=False)
    display = Display(target, clock=lambda: 0.0)
    for task in ("topic", "language", "topic", "topic"):
        display.scoring("gere", task, 1, 2)
        display.scoring("gere", task, 2, 2)
        display.scoring("gere", task, 2, 2)
    assert file.getvalue().count("scoring topic, row 2/2") == 3
    assert file.getvalue().count("\n") == 4


def test_live_bars_on_a_terminal() -> None:
    target, file = console(force_terminal=True, color_system=None)
    with Display(target) as display:
        assert display.live
        display.training("gere", "[red]topic", 3, 32, 1.234, 131.0, 75.0)
        assert display._progress is not None
        display._progress.refresh()
        display.scoring("gere", "language", 5, 80)
        display._progress.refresh()
        display.message("a line that stays")
    shown = file.getvalue()
    for part in ("gere  training [red]topic", "3/32", "loss 1.23", "131 tokens/s",
                 "1 min 15 s left", "gere  scoring language", "5/80",
                 "a line that stays"):  # fmt: skip
        assert part in shown, part


def test_an_error_restores_the_terminal() -> None:
    target, file = console(force_terminal=True)
    display = Display(target)
    with pytest.raises(RuntimeError, match="stop"), display:
        raise RuntimeError("stop")
    text = file.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again
    assert display._progress is None


def test_who_gets_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert isinstance(make_display(), Display)
    assert isinstance(make_display(json=True), NullDisplay)
    monkeypatch.setenv("RANK", "1")
    assert isinstance(make_display(), NullDisplay)


def test_null_display_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with NullDisplay() as display:
        display.training("gere", "topic", 1, 2, 1.0, 1.0, 1.0)
        display.scoring("gere", "topic", 1, 2)
        display.message("nothing")
    assert capsys.readouterr() == ("", "")


def test_score_table(three: list[Run], tmp_path: Path) -> None:
    target, file = console(force_terminal=False)
    begun = make_run(tmp_path / "b", "ewc", KEEPS[:2], finished=False)
    score_table([*three, begun], target)
    text = file.getvalue()
    rows = [re.sub(r"[\s─]+", " ", line).strip() for line in text.splitlines()]
    assert "3 german-names 0.29 0.41 0.82" in rows
    assert "base model 0.31 0.20 0.02" in rows
    assert "sequential 0.507 0.642 −0.515 0.515 23.4 → 33.8" in rows
    assert "gere 0.817 0.806 −0.025 0.025 23.4 → 24.9" in rows
    assert "ewc: not finished; – is not scored yet" in rows
    assert control_characters(text) == set()
    narrow = io.StringIO()
    score_table(three, Console(file=narrow, width=80))  # where a longer text breaks first
    assert {"incremental", "forgetting", "perplexity"} <= set(narrow.getvalue().split())


def test_score_table_of_more_tasks_than_fit(tmp_path: Path) -> None:
    tasks = [f"task-{i}" for i in range(15)]
    matrix = [[0.125 * (j < i) for j in range(15)] for i in range(16)]
    run = make_run(tmp_path / "run", "gere", matrix, tasks=tasks, steps=1, rows=8)
    wide, narrow = io.StringIO(), io.StringIO()
    score_table([run], Console(file=wide, width=180))
    score_table([run], Console(file=narrow, width=80))
    assert "15 task-14" in wide.getvalue()
    rows = [" ".join(line.split()) for line in narrow.getvalue().splitlines()]
    assert "task base model just learned at the end" in rows
    assert "task-0 0.00 0.12 0.12" in rows
    assert max(map(len, narrow.getvalue().splitlines())) <= 80


def test_score_table_takes_names_as_they_are(tmp_path: Path) -> None:
    target, file = console(force_terminal=False)
    score_table([make_run(tmp_path / "r", "gere", KEEPS, tasks=("[red]a", "\x1b[31mb", "c"))],
                target)  # fmt: skip
    assert "[red]a" in file.getvalue()
    assert control_characters(file.getvalue()) == set()


# --- figures


def test_figure_files(three: list[Run], tmp_path: Path) -> None:
    png = write_figure(three, tmp_path / "new" / "a.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) > 20_000
    svg = write_figure(three, tmp_path / "a.svg").read_bytes()
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert svg == write_figure(three, tmp_path / "b.svg").read_bytes()
    assert write_figure(three[:1], tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("name", ["a.gif", "a"])
def test_figure_of_an_unknown_kind(three: list[Run], tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot write a figure as") as error:
        write_figure(three, tmp_path / name)
    assert "end its name in .png, .svg or .pdf" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def odd_runs(folder: Path) -> Sequence[Run]:
    odd = [[0.1, 40.0], [0.5, NAN]]
    return [
        make_run(folder / f"odd{i}", "gere", odd, tasks=("$x_1$ <b>", "verse " * 9),
                 metrics={"verse " * 9: "perplexity"}, general=(20.0, 900.0), finished=False)
        for i in range(5)
    ]  # fmt: skip


def test_figure_of_odd_runs(tmp_path: Path) -> None:
    out = write_figure(odd_runs(tmp_path), tmp_path / "odd.png")
    assert out.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="no run given"):
        write_figure([], tmp_path / "none.png")


def test_names_of_own_losses(three: list[Run]) -> None:
    titles = [chart.title for chart in training.method_losses(views(three))]
    assert titles == ["replay: kept", "gere: label", "gere: margin"]


# --- a run that was really run


def test_report_of_a_real_run(tiny_model_dir: Path, tmp_path: Path) -> None:
    """All views of a run of the real loop (a tiny random model) say what its files say."""
    from perdure.loop import learn
    from perdure.prepare import load_recipe

    recipe = load_recipe(
        write_recipe(tmp_path / "data", tiny_model_dir, method={"name": "gere"}, train__epochs=1)
    )
    run = Run.create(tmp_path / "run", recipe)
    target, file = console(force_terminal=False)
    with Display(target) as display:
        matrix = learn(recipe, run, display=display)
    progress = file.getvalue()
    for line in ("gere: training colour, step 6/6", "gere: training count, step 6/6",
                 "gere: scoring count, row 12/12"):  # fmt: skip
        assert line in progress
    digest = view(run)
    assert digest.complete
    assert digest.summary("average_accuracy") == pytest.approx(matrix.average_accuracy())
    text = write_report([run], run.path / "report.html").read_text(encoding="utf-8")
    Checker(text)
    assert html.escape(words.headline(digest)) in text
    for after in range(3):
        for task in ("colour", "count"):
            assert f">{format.number(matrix.value(after, task))}<" in text
    assert digest.method_keys  # GeRe has losses of its own
    for key in (k for k in digest.method_keys if not k.endswith(("label_weight", "margin_weight"))):
        assert f">gere: {key.removeprefix('method/gere_')}<" in text
    assert format.significant(digest.general_after) in text
    score_table([run], target)
    assert format.number(matrix.average_accuracy(), 3) in file.getvalue()


@pytest.mark.process
def test_reports_import_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "datasets", "matplotlib", "jinja2", "rich"]
    program = f"import sys, perdure.reports; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_value_that_was_logged_once_is_marked() -> None:
    axis = charts.value_axis([0.5])
    one = curves.Stretch("topic", 10.0, 22.0, ((22.0, 0.5),))
    many = curves.Stretch("kind", 22.0, 34.0, tuple((22.0 + i, 0.1) for i in range(1, 13)))
    chart = curves.over_steps(
        title="KL", note="", slot=0, stretches=[one, many], axis=axis, show=str
    )
    assert [point.label for line in chart.lines for point in line.points] == ["topic, step 12: 0.5"]
