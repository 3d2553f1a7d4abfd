"""A run with texts of no class: figures after each task, their passes, and an extension's."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from class_runs import save_encoder, write_class_recipe
from rich.console import Console

import perdure
from perdure.extension import extend, extension_recipe
from perdure.learners import classification
from perdure.learners.no_class import no_class_figures
from perdure.models.classifier import Classifier
from perdure.prepare import stream_of
from perdure.reports import score_table, tradeoff
from perdure.reports.data import views
from perdure.run import Run
from perdure.run.kept import kept_no_class
from perdure.scoring.no_class import Scored, figures
from perdure.streams.task import NoClass

pytestmark = pytest.mark.train

SLOW = 1.0
"""Seconds that the figures on texts of no class take at least, more than a tiny task."""
NONE = NoClass(("hello a", "hello b word"), ("who c", "who d", "zk who e word"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three tasks of two classes; `passes` of the untrained reading are counted by a hook."""
    folder = tmp_path_factory.mktemp("none")
    recipe = perdure.load_recipe(write_class_recipe(folder, save_encoder(folder / "model")))
    run = Run.create(folder / "run", recipe)
    read: list[int] = []
    made = Classifier.__init__

    def init(model: Any, *args: Any, **kwargs: Any) -> None:
        made(model, *args, **kwargs)
        model.body.register_forward_hook(
            lambda body, args, kwargs, out: read.append(len(kwargs["input_ids"])), with_kwargs=True
        )

    def slowly(*args: Any) -> dict[str, float]:
        time.sleep(SLOW)
        return no_class_figures(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "__init__", init)
        patch.setattr(classification, "no_class_figures", slowly)
        perdure.learn(recipe, run, stream=replace(stream_of(recipe), no_class=NONE))
    run.passes = sum(read)  # type: ignore[attr-defined]
    return run


def test_each_text_passes_once_more(run: Run) -> None:
    """48 training and 24 test rows, 16 steps of the warm-up's rows; 12 validation rows, 5 texts."""
    assert run.passes == 48 + 24 + 16 + 12 + 5  # type: ignore[attr-defined]


def test_the_passes_are_counted_as_needed(run: Run) -> None:
    told = (run.path / "perdure.log").read_text("utf-8")
    ((read, needed),) = re.findall(r"the body read (\d+) texts, (\d+) needed", told)
    assert read == needed


def test_the_report_counts_them_too(run: Run) -> None:
    """What facts and scores say adds up to what the body read, and to the time that went by."""
    (view,) = views([run])
    found = tradeoff.numbers(view)
    assert found["body_passes"] == run.passes  # type: ignore[attr-defined]
    assert found["body_passes_needed"] == run.passes  # type: ignore[attr-defined]
    # Each text of no class is read while the first task ends, and each time the known ones.
    facts = {(f["after"], f["name"]): f["value"] for f in run.facts()}
    assert [facts[k, "body_passes"] for k in (1, 2, 3)] == [
        16 + 16 + 8 + 4 + 5, 16 + 8 + 4, 16 + 8 + 4
    ]  # fmt: skip


def test_the_time_of_these_figures_is_part_of_the_tasks(run: Run) -> None:
    seconds = [f["value"] for f in run.facts() if f["name"] == "seconds"]
    assert min(seconds) >= SLOW


def test_figures_are_those_of_the_shares_that_predict_gives(run: Run) -> None:
    stream = stream_of(run.recipe)
    for after in (1, 2, 3):
        predict = perdure.load_predictor(run.path, after=after)
        parts = []
        for split in ("validation", "test"):
            rows = [row for task in stream.tasks[:after] for row in getattr(task, split)]
            known = predict([row["text"] for row in rows])
            unknown = predict(list(getattr(NONE, split)))
            right = [a["class"] == row["label"] for a, row in zip(known, rows, strict=True)]
            parts.append(Scored([a["score"] for a in known], right, [a["score"] for a in unknown]))
        wanted = figures(*parts)
        facts = [f for f in run.facts() if f["after"] == after and f["name"].startswith("no_class")]
        assert {f["task"] for f in facts} == {f"task {after}"}
        assert {f["name"]: f["value"] for f in facts} == pytest.approx(wanted, abs=1e-5)
        assert set(wanted) == {"no_class/auroc", "no_class/accuracy", "no_class/threshold"}


def test_one_line_tells_them(run: Run) -> None:
    shown = Console(file=StringIO(), width=200)
    score_table([run], shown)
    last = {f["name"]: f["value"] for f in run.facts() if f["after"] == 3}
    said = f"exts of no class: AUROC {last['no_class/auroc']:.3f}, accuracy "
    said += f"{last['no_class/accuracy']:.3f} with those below a share of "
    said += f"{last['no_class/threshold']:.3f} taken for none"
    assert f"seq_star: t{said}" in shown.file.getvalue()  # type: ignore[attr-defined]
    assert f"T{said}" in (run.path / "report.html").read_text("utf-8")


def test_an_extension_keeps_them(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "may.csv"
    file.write_text("text,label\n" + "".join(f"aa {i},new\n" for i in range(10)))
    recipe = extension_recipe(run, data=file)
    longer = extend(run, recipe, tmp_path / "longer")
    assert kept_no_class(longer) == NONE
    perdure.learn(recipe, longer)
    names = {f["name"] for f in longer.facts() if f["after"] == 4}
    assert "no_class/auroc" in names


def test_a_run_without_them_has_no_such_figure(tmp_path: Path) -> None:
    recipe = perdure.load_recipe(
        write_class_recipe(tmp_path, save_encoder(tmp_path / "model"), train__epochs=1)
    )
    run = Run.create(tmp_path / "run", recipe)
    perdure.learn(recipe, run)
    assert not [f for f in run.facts() if f["name"].startswith("no_class")]
    assert not (run.path / "data/no-class.json").exists()
    assert kept_no_class(run) == NoClass()


def test_under_a_body_that_learns_each_text_passes_once_a_task(tmp_path: Path) -> None:
    """After task t 4 t validation and 8 t test rows and 5 texts, for figures and scores alike; 16
    rows are learned from in each. Scores are those of a run without such figures."""
    found = []
    for none in (NONE, NoClass()):
        folder = tmp_path / ("none" if none.test else "classes")
        folder.mkdir()
        recipe = perdure.load_recipe(
            write_class_recipe(folder, save_encoder(folder / "model"), method="sequential")
        )
        run = Run.create(folder / "run", recipe)
        perdure.learn(recipe, run, stream=replace(stream_of(recipe), no_class=none))
        found.append([(s["after"], s["task"], s["measures"]) for s in run.scores()])
    assert found[0] == found[1]
    told = (tmp_path / "none/run/perdure.log").read_text("utf-8")
    steps = 3 * 16 * recipe.train.epochs
    passes = steps + sum(12 * t + 5 for t in (1, 2, 3))
    assert f"the body read {passes:.0f} texts, {passes:.0f} needed" in told
