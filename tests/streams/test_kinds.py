"""Kinds, formats and metrics are records in one file; a user's own join by name or entry point."""

from __future__ import annotations

import ast
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import write_recipe
from torch import nn

import perdure
from perdure import load_recipe
from perdure.audit.plan import plan_measures
from perdure.audit.result import judge
from perdure.consent import trusting
from perdure.diagnose.measurements import in_front
from perdure.errors import RecipeError, UsageError
from perdure.repair.halves import halve
from perdure.repair.result import goodness
from perdure.reports.data import RunView, views
from perdure.reports.maps import heatmaps
from perdure.reports.sections import changes
from perdure.reports.words import findings
from perdure.run import Run
from perdure.scoring.matrix import ScoreMatrix
from perdure.streams import build_stream, kinds
from perdure.streams.kinds import find
from perdure.streams.rows import each_once
from perdure.streams.task import Task

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def the_users_word() -> Iterator[None]:
    """These tests run code of their own; `tests/test_consent.py` asks what happens without."""
    with trusting(True):
        yield


PACKAGE = Path(perdure.__file__).parent
HOME = "streams/kinds/text.py"
METRICS = {one.name for one in kinds.kind("generation").metrics}
FORMATS = {one.name for one in kinds.kind("generation").formats}
LM_EVALS = {("scoring/lm_eval.py", "exact_match")}

OWN = """
from perdure.streams.kinds import Metric

def shared_words(prediction, answer):
    said, right = set(prediction.split()), set(answer.split())
    return len(said & right) / max(1, len(right))

def letters_apart(prediction, answer):
    return min(1.0, abs(len(prediction) - len(answer)) / 10)

APART = Metric("apart", "letters apart", needs="text", higher_is_better=False,
               function=letters_apart)

def too_much(prediction, answer):
    return 7

NUMBER = 3
"""
PAIRS = """
from perdure.streams.cells import cell_text
from perdure.streams.kinds import Format, Kind, Metric

def row(values, task):
    one, two = (cell_text(values, task.column(name)) for name in ("first", "second"))
    return {"texts": [one, two], "alike": cell_text(values, task.column("alike"))}

F1 = Metric("pair_f1", "F1", needs="pairs")
KIND = Kind(
    "pairs",
    schema={"texts": "two texts", "alike": "a label"},
    formats=(Format("pairs", ("first", "second", "alike"), "pair_f1", row, label="alike"),),
    metrics=(F1,),
    learner="my_pairs:Learner",
)
NUMBER = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(OWN)
    return tmp_path


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install the modules `my_pairs` and `my_scores`, and offer entry points of them."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "my_pairs.py").write_text(PAIRS)
    (site / "my_scores.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(site))

    def points(group: str, **offers: str) -> None:
        found = [EntryPoint(name, value, group) for name, value in offers.items()]
        monkeypatch.setattr(find, "offers", lambda asked: found if asked == group else [])

    yield points
    for name in ("my_pairs", "my_scores"):
        sys.modules.pop(name, None)


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return [line for one in error.value.mistakes for line in str(one).splitlines()]


# --- one file says the names


def named_elsewhere(package: Path) -> list[str]:
    """Places outside the kind's own file that hold a metric's name or compare a format's."""
    found = []
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(package).as_posix()
        if where == HOME:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and node.value in METRICS:
                if (where, node.value) not in LM_EVALS:
                    found.append(f"{where}:{node.lineno}: {node.value}")
            elif isinstance(node, ast.Compare | ast.match_case | ast.Dict):
                if not isinstance(node, ast.Dict) and "format" not in ast.unparse(node):
                    continue
                inside = node.keys if isinstance(node, ast.Dict) else list(ast.walk(node))
                names = {n.value for n in inside if isinstance(n, ast.Constant)} & FORMATS
                # A dict with one of these as key is a row, one with two a table of formats.
                if len(names) >= (2 if isinstance(node, ast.Dict) else 1):
                    found.append(f"{where}: {', '.join(sorted(names))}")
    return found


def test_no_other_file_names_a_metric_or_compares_a_format() -> None:
    assert named_elsewhere(PACKAGE) == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('BAD = task.metric == "perplexity"', "perplexity"),
        ('BAD = task.metric in ("rouge_l", "x")', "rouge_l"),
        ('BAD = {"chrf": 1}[metric]', "chrf"),
        ('BAD = config.format == "labels"', "labels"),
        ('BAD = {"prompt": 1, "chat": 2}[config.format]', "chat"),
    ],
)
def test_a_comparison_in_a_copy_is_seen(tmp_path: Path, line: str, told: str) -> None:
    copy = tmp_path / "perdure"
    copy.mkdir()
    shutil.copy(PACKAGE / "plan.py", copy / "plan.py")
    assert named_elsewhere(copy) == []
    with (copy / "plan.py").open("a") as file:
        file.write(line + "\n")
    (found,) = named_elsewhere(copy)
    assert told in found


@pytest.mark.process
def test_kinds_are_found_without_torch() -> None:
    code = (
        "import sys; from perdure.streams import kinds\n"
        "kinds.kinds(), kinds.metric('chrf'), kinds.format_of('chat')\n"
        "assert 'torch' not in sys.modules and 'perdure.scoring' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_the_records_of_text() -> None:
    kind, form = kinds.format_of("labels")
    assert (kind.name, form.columns, form.metric) == ("generation", ("text", "label"), "label_" +
                                                      "likelihood")  # fmt: skip
    assert kind.learner == "perdure.learners.generation:GenerationLearner"
    loss = kinds.metric("perplexity")
    assert (loss.higher_is_better, loss.low, loss.high) == (False, 1.0, math.inf)
    assert not loss.bounded
    with pytest.raises(UsageError, match=r'"rouge" is none of .*\n  did you mean "rouge_l"'):
        kinds.metric("rouge")


# --- a user's own metric


def test_a_metric_beside_the_recipe_scores_and_is_reported(
    own: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from perdure.loop import learn

    path = write_recipe(own, tiny_model_dir, train__max_steps=1, gauges={"every": 0})
    metrics = ["stream.tasks.0.metric=mine:shared_words", "stream.tasks.1.metric=mine:APART"]
    text = json.loads(path.read_text())
    text["stream"]["tasks"][0]["metric"], text["stream"]["tasks"][1]["metric"] = (
        one.partition("=")[2] for one in metrics
    )
    path.write_text(json.dumps(text))
    recipe = load_recipe(path, ["general={source: none}"])
    run = Run.create(tmp_path / "run", recipe)
    learn(recipe, run)

    lines = [line for line in run.scores() if line["kind"] == "task"]
    assert [(line["metric"], line["higher_is_better"]) for line in lines[:2]] == [
        ("mine:shared_words", True),
        ("apart", False),
    ]
    assert all(0 <= line["score"] <= 1 for line in lines)
    # The run's own recipe knows the file, wherever it is opened; a report needs it no more.
    opened = Run.open(run.path)
    assert opened.recipe.stream.tasks[0].metric == f"{own / 'mine.py'}:shared_words"
    assert build_stream(opened.recipe.stream, None, opened.recipe.folder, 0).tasks[0].metric
    (own / "mine.py").unlink()
    (view,) = views([Run.open(run.path)])
    first, second = view.tasks
    assert (first.label, first.bounded, first.higher_is_better) == ("shared words", True, True)
    assert (second.label, second.bounded, second.higher_is_better) == ("letters apart", True, False)
    (matrix,) = heatmaps([view])
    assert [t["metric"] for t in matrix["tasks"]] == [
        "shared words",
        "letters apart, lower is better",
    ]
    with pytest.raises(RecipeError, match=r"metric: no such file: .*mine\.py"):
        build_stream(opened.recipe.stream, None, opened.recipe.folder, 0)


@pytest.mark.train
def test_score_task_takes_a_module_from_the_path(offer: Any, tiny: Any) -> None:
    from perdure.models.chat import Encoder
    from perdure.scoring import score_task

    offer("none")
    rows = [{"prompt": [{"role": "user", "content": "a"}], "answer": "b c"}] * 3
    task = Task("own", (), (), rows, metric="my_scores:shared_words", max_new_tokens=4)
    assert task.higher_is_better
    model, encoder = tiny[0], Encoder(tiny[1])
    found = score_task(model, encoder, task)
    by_hand = [len(set(i["prediction"].split()) & {"b", "c"}) / 2 for i in found.items]
    assert found.score == sum(by_hand) / 3
    assert found.measures == {"my_scores:shared_words": found.score}
    wrong = Task("own", (), (), rows, metric="my_scores:too_much", max_new_tokens=4)
    with pytest.raises(UsageError, match="too_much gave 7, which is not from 0 to 1"):
        score_task(model, encoder, wrong)


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("mine:shared_wrods", ['mine.py has no function "shared_wrods"',
                               '  did you mean "shared_words"?']),
        ("mine:NUMBER", ["mine.py:NUMBER is neither a function nor a Metric",
                         "  write a function of (prediction, answer) that returns a number"]),
        ("nowhere_at_all:f", ['there is no module "nowhere_at_all"',
                              "  put nowhere_at_all.py beside the recipe, or install its package"]),
        ("./gone.py:f", ["no such file: HERE/gone.py",
                         "  a metric's own file is needed"]),
        ("broken:f", ["broken.py cannot be imported: ZeroDivisionError: division by zero"]),
    ],
)  # fmt: skip
def test_a_wrong_one_is_told_with_its_line(
    own: Path, tiny_model_dir: Path, metric: str, told: list[str]
) -> None:
    (own / "broken.py").write_text("1 / 0\n")
    path = write_recipe(own, tiny_model_dir)
    with_metric = f'\n"name": "colour", "metric": "{metric}",'
    path.write_text(path.read_text().replace('"name": "colour",', with_metric))
    first, *rest = mistakes(path)
    told = [line.replace("HERE", str(own)) for line in told]
    assert first.startswith(f"{path}:2: stream.tasks.0.metric: ")
    assert first.endswith(told[0])
    assert rest == told[1:]


def test_one_by_entry_point(offer: Any, tmp_path: Path, tiny_model_dir: Path) -> None:
    offer(find.METRICS, overlap="my_scores:shared_words", apart="my_scores:APART")
    assert kinds.metric("overlap").of_item()("a b", "a c") == 0.5
    assert kinds.metric("overlap").label == "overlap"
    assert not kinds.metric("apart").higher_is_better
    path = write_recipe(tmp_path / "data", tiny_model_dir)
    recipe = load_recipe(path, ["stream.tasks.0.metric=overlap"])
    built = build_stream(recipe.stream, None, recipe.folder, 0)
    assert built.tasks[0].metric == "overlap"
    assert mistakes(path, "stream.tasks.0.metric=overlop") == [
        f'command line: stream.tasks.0.metric: "overlop" is none of {", ".join(kinds.metrics())}',
        '  did you mean "overlap"?',
    ]
    offer(find.METRICS, overlap="my_scores:missing")
    with pytest.raises(UsageError, match="metric 'overlap' of my_scores cannot be imported"):
        kinds.metric("overlap")
    offer(find.METRICS, chrf="my_scores:shared_words")
    with pytest.raises(UsageError, match="'chrf' is offered more than once: perdure, my_scores"):
        kinds.metric("chrf")


def view_of(tmp_path: Path, line: dict[str, Any], scores: list[list[float]]) -> RunView:
    """A report's view of a run of two tasks whose scores have the facts of `line`."""
    from synthetic_runs import make_run

    run = make_run(tmp_path / "run", matrix=scores, tasks=("a", "b"), general=())
    path = run.path / "scores.jsonl"
    rows = [json.loads(text) | line for text in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (view,) = views([Run.open(run.path)])
    return view


def test_lower_is_better_in_matrix_and_report(tmp_path: Path) -> None:
    facts = {"metric": "gone:apart", "higher_is_better": False}
    known = {"label": "letters apart", "low": 0.0, "high": 1.0}
    view = view_of(tmp_path, facts | known, [[0.9, 0.8], [0.0, 0.8], [0.7, 0.0]])
    assert view.matrix.left_out == ("a", "b")
    assert view.matrix.higher_is_better == (False, False)
    first, second = findings(view)
    assert (first.gained, first.kept) == ("learned", "lost")
    assert second.gained == "learned"
    (matrix,) = heatmaps([view])
    assert matrix["metric"] == "letters apart, lower is better"
    best, worst = matrix["rows"][1]["cells"][0]["step"], matrix["rows"][0]["cells"][0]["step"]
    assert best > worst
    assert changes([view])[0]["rows"][0]["change"] == "+0.70"


def test_a_metric_that_nobody_knows_any_more_is_reported(tmp_path: Path) -> None:
    facts = {"metric": "edit_rate", "higher_is_better": False}
    view = view_of(tmp_path, facts, [[2.0, 3.0], [0.0, 3.0], [1.5, 0.5]])
    first, _ = findings(view)
    # Its range is not known, and the run kept no rows: nothing can be said of its changes.
    assert (first.gained, first.kept) == ("open", "open")
    (matrix,) = heatmaps([view])
    assert matrix["metric"] == "edit rate, lower is better"
    assert changes([view])[0]["rows"]


def test_a_matrix_leaves_out_what_is_better_lower() -> None:
    matrix = ScoreMatrix(["a", "b"], [True, kinds.metric("perplexity").higher_is_better])
    assert matrix.left_out == ("b",)


def test_audit_and_repair_know_which_way_is_better(own: Path) -> None:
    apart = f"{own / 'mine.py'}:APART"
    task = Task("a", (), (), [{"prompt": [], "answer": "x"}], metric=apart)
    (part,) = plan_measures(("tasks",), [task], (), None).parts
    assert (part.kind, part.metric, part.higher_is_better) == ("task", "apart", False)
    low, high = np.zeros(60), np.ones(60)
    for before, after, verdict in ((low, high, "lost"), (high, low, "kept")):
        found = judge("a", part.kind, part.metric, before, after, margin=0.2, alpha=0.05,
                      higher_is_better=part.higher_is_better)  # fmt: skip
        assert (found.verdict, found.change, found.higher_is_better) == (
            verdict, after[0] - before[0], False)  # fmt: skip
    assert goodness(apart, 0.2) > goodness(apart, 0.4)
    assert goodness("perplexity", math.e) == -1.0
    (own / "mine.py").write_text(OWN.replace("higher_is_better=False", "high=9.0"))
    with pytest.raises(UsageError, match="audit: task a: its metric apart is not from 0 to 1"):
        plan_measures(("tasks",), [task], (), None)


# --- a kind of another package


def test_a_third_partys_kind_is_found_and_read(
    offer: Any, tmp_path: Path, tiny_model_dir: Path
) -> None:
    offer(find.KINDS, pairs="my_pairs:KIND")
    assert [one.name for one in kinds.kinds()] == ["generation", "classification", "pairs"]
    assert kinds.metric("pair_f1").needs == "pairs"
    path = write_recipe(tmp_path / "data", tiny_model_dir)
    lines = [{"first": f"a {i}", "second": "b", "same": "yn"[i % 2]} for i in range(20)]
    (path.parent / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    text = json.loads(path.read_text())
    section = {"name": "p", "format": "pairs", "train": "pairs.jsonl", "columns": {"alike": "same"}}
    text["stream"]["tasks"] = [section]
    path.write_text(json.dumps(text))
    recipe = load_recipe(path)
    (task,) = build_stream(recipe.stream, None, recipe.folder, 0)
    assert (task.kind, task.metric, task.labels) == ("pairs", "pair_f1", ("n", "y"))
    assert sorted(map(len, (task.train, task.validation, task.test))) == [2, 4, 14]
    assert {"texts": ["a 0", "b"], "alike": "y"} in [*task.train, *task.validation, *task.test]
    section["columns"] = {"alik": "same"}
    path.write_text(json.dumps(text))
    assert mistakes(path) == [
        f"{path}:1: stream.tasks.0.columns.alik: format pairs has the columns first, second, alike",
        '  did you mean "alike"?',
    ]
    offer(find.KINDS, pairs="my_pairs:NUMBER")
    with pytest.raises(UsageError, match="kind 'pairs' of my_pairs: my_pairs:NUMBER is no Kind"):
        kinds.kinds()
    assert kinds.format_of("chat")[0].name == "generation"  # a broken package disturbs no other


def pair(first: str, second: str, alike: str, **beside: str) -> dict[str, Any]:
    return {"texts": [first, second], "alike": alike, **beside}


def test_rows_of_another_kind_are_dealt_and_counted_by_what_they_hold(offer: Any) -> None:
    """Their kind says what makes two rows one; what stands beside it, a group, does not."""
    offer(find.KINDS, pairs="my_pairs:KIND")
    rows = [pair("a", f"{i}", "yes") for i in range(6)]
    again = [pair("a", "0", "yes", group="here"), pair("a", "0", "no")]
    found = each_once(kinds.kind("pairs"), [*rows, *again])
    assert [(row["texts"][1], row["alike"]) for row in found] == [
        *((str(i), "yes") for i in range(6)), ("0", "no"),
    ]  # fmt: skip
    task = Task("alike", (), (), [*rows, *again], "pair_f1", kind="pairs")
    halves = halve(["one text", "another"], [task], (2, 99), 0)
    sides = [half.tasks[0].test for half in halves]
    assert sum(map(len, sides)) == 7
    assert all(len(side) >= 3 for side in sides)


def test_examples_in_front_are_the_kinds_own(offer: Any) -> None:
    row = {"prompt": [{"role": "user", "content": "2+2"}], "answer": "4"}
    shown = {"prompt": [{"role": "user", "content": "1+1"}], "answer": "2"}
    (found,) = in_front(Task("sums", (), (), [row], "exact_match"), [shown]).test
    assert [turn["content"] for turn in found["prompt"]] == ["1+1", "2", "2+2"]
    offer(find.KINDS, pairs="my_pairs:KIND")
    other = Task("alike", (), (), [pair("a", "b", "yes")], "pair_f1", kind="pairs")
    with pytest.raises(UsageError, match="task alike: rows of kind pairs have no place for exam"):
        in_front(other, [pair("a", "c", "no")])


@pytest.mark.parametrize("who", ["audit", "diagnose", "repair", "scoring"])
def test_who_reads_prompts_and_answers_refuses_other_rows_by_name(
    who: str, offer: Any, tmp_path: Path
) -> None:
    """Before a model is loaded: none of these folders is there."""
    from perdure.audit.audit import audit
    from perdure.diagnose.diagnose import diagnose
    from perdure.repair.search import repair
    from perdure.scoring import score_task

    offer(find.KINDS, pairs="my_pairs:KIND")
    rows = [pair("a", f"{i}", "yes") for i in range(6)]
    task = Task("alike", rows, (), rows, "exact_match", kind="pairs")
    nowhere, model = str(tmp_path / "no base"), str(tmp_path / "no model")
    calls: dict[str, Any] = {
        "audit": lambda: audit(nowhere, model, [task]),
        "diagnose": lambda: diagnose(nowhere, model, [task]),
        "repair": lambda: repair(nowhere, model, [task], ["one text", "another"]),
        "scoring": lambda: score_task(nn.Linear(1, 1), None, task),  # type: ignore[arg-type]
    }
    with pytest.raises(UsageError) as caught:
        calls[who]()
    assert str(caught.value).splitlines() == [
        f"{who}: task alike is of kind pairs, whose rows have no prompt and no answer",
        "  only the learner of kind pairs scores it, in a run of its own; here, leave it out",
    ]


def test_train_on_all_is_refused_where_rows_have_one_answer(
    offer: Any, tmp_path: Path, tiny_model_dir: Path
) -> None:
    offer(find.KINDS, pairs="my_pairs:KIND")
    lines = [{"first": "a", "second": str(i), "alike": "yn"[i % 2]} for i in range(6)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    section = {"name": "alike", "format": "pairs", "train": "p.jsonl", "test": "p.jsonl",
               "train_on": "all"}  # fmt: skip
    recipe = load_recipe(
        write_recipe(tmp_path, tiny_model_dir, stream={"tasks": [section]}, general=None)
    )
    with pytest.raises(RecipeError, match="train_on: all: rows of kind pairs have one answer each"):
        build_stream(recipe.stream, recipe.general, tmp_path, 0)
