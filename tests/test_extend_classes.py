"""`perdure extend` of a class stream: a file's classes become one more task."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import class_runs
import numpy as np
import pytest
import torch
from class_runs import CLASSES, save_encoder, write_class_recipe, write_classes
from torch import Tensor
from typer.testing import CliRunner, Result

import perdure
from perdure import extension
from perdure.cli import app
from perdure.errors import RecipeError, UsageError
from perdure.extension import extend, extension_recipe
from perdure.run import Run
from perdure.streams.growing import spelling

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny body with dropout."""
    return save_encoder(tmp_path_factory.mktemp("body") / "model", dropout=0.1)


def only(folder: Path, classes: tuple[str, ...]) -> None:
    """Take the rows of other classes out of the files of `write_classes`."""
    for file in folder.glob("*.jsonl"):
        rows = [
            line for line in file.read_text().splitlines() if json.loads(line)["label"] in classes
        ]
        file.write_text("".join(line + "\n" for line in rows))


def written(folder: Path, model: Path, tasks: int, **changes: Any) -> Path:
    """A recipe of the first so many of three tasks of two classes."""
    path = write_class_recipe(folder, model, **changes)
    said = json.loads(path.read_text())
    said["stream"]["data"]["tasks"] = said["stream"]["data"]["tasks"][:tasks]
    path.write_text(json.dumps(said))
    only(folder, CLASSES[: 2 * tasks])
    return path


def learned(path: Path, out: Path) -> Run:
    recipe = perdure.load_recipe(path)
    run = Run.create(out, recipe)
    perdure.learn(recipe, run)
    return run


@pytest.fixture(scope="module")
def two(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of SEQ* over two tasks, the files of which are gone; read only."""
    folder = tmp_path_factory.mktemp("two")
    run = learned(written(folder / "data", encoder, 2), folder / "run")
    for file in (folder / "data").glob("*.jsonl"):
        file.unlink()
    return run


def weights(run: Run, after: int = 3) -> dict[str, Tensor]:
    return class_runs.weights(run.path, after)


def cells(run: Run) -> dict[Any, Any]:
    return {(s["after"], s["task"]): (s["score"], s["measures"]) for s in run.scores()}


def may(folder: Path, *rows: tuple[str, str], name: str = "may.csv") -> Path:
    """A file of eight rows of each class given, with its word."""
    lines = [f"{word} {i} more,{label}" for word, label in rows for i in range(8)]
    (folder / name).write_text("text,label\n" + "".join(line + "\n" for line in lines), "utf-8")
    return folder / name


def typed(*words: Any) -> Result:
    return CliRunner().invoke(app, ["extend", *map(str, words)])


SEQ = {"name": "seq_star", "warmup_epochs": 1}
LORA = {"name": "lora_sequence"}


@pytest.mark.parametrize(
    "method", [SEQ, {"name": "sequential"}, [SEQ, {"name": "replay", "ratio": 0.5}], LORA],
    ids=["seq_star", "sequential", "replay", "lora_sequence"],
)  # fmt: skip
def test_it_ends_as_one_run_of_three_tasks(encoder: Path, tmp_path: Path, method: Any) -> None:
    given = {"method": method, "model__tuning": "lora" if method == LORA else "full"}
    old = learned(written(tmp_path / "two", encoder, 2, **given), tmp_path / "old")
    whole = learned(written(tmp_path / "three", encoder, 3, **given), tmp_path / "whole")
    write_classes(tmp_path / "next")
    only(tmp_path / "next", CLASSES[4:])
    data = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
    last = tmp_path / "next/next.yaml"
    table = {**data, "tasks": [list(CLASSES[4:])], "task": "task 3"}
    last.write_text(json.dumps({"stream": {"data": table}}))
    recipe = extension_recipe(old, last)
    longer = extend(old, recipe, tmp_path / "longer")
    perdure.learn(recipe, longer)
    ours, theirs = weights(longer), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert cells(longer) == cells(whole)
    np.testing.assert_array_equal(longer.matrix().array(), whole.matrix().array())
    told = json.loads((longer.path / "checkpoints/task-3/model/classes.json").read_text())
    assert told["classes"] == list(CLASSES)
    assert told["tasks"] == [0, 0, 1, 1, 2, 2]
    moved = [
        name for name in ours
        if name in weights(old, 2) and not torch.equal(ours[name], weights(old, 2)[name])
    ]  # fmt: skip
    assert bool(moved) == (method == {"name": "sequential"})


def test_a_file_becomes_one_more_task(two: Run, tmp_path: Path) -> None:
    """One new class is enough; the old files are gone; an extension is extended."""
    told = typed(two.path, "--data", may(tmp_path, ("xx", "new one")), "--out", tmp_path / "may")
    assert told.exit_code == 0, told.output
    first = Run.open(tmp_path / "may")
    assert first.matrix().tasks == ("task 1", "task 2", "may")
    matrix = first.matrix().array()
    assert matrix.shape == (4, 3)
    assert math.isnan(matrix[2, 2])
    assert not math.isnan(matrix[3, 2])
    old, new = weights(two, 2), weights(first)
    assert all(torch.equal(new[name], old[name]) for name in old)  # SEQ* moves no old head
    assert new["heads.parts.2.weight"].shape == (1, 32)
    assert first.recipe.stream.data is not None
    assert first.recipe.stream.data.task == "may"
    assert (first.path / "data/recipe-002.yaml").read_text() == (
        two.path / "recipe.yaml"
    ).read_text()
    june = may(tmp_path, ("yy", "June a"), ("zz", "June b"), name="june.csv")
    told = typed(first.path, "--data", june, "--out", tmp_path / "june")
    assert told.exit_code == 0, told.output
    second = Run.open(tmp_path / "june")
    assert second.matrix().tasks == ("task 1", "task 2", "may", "june")
    assert second.matrix().array().shape == (5, 4)
    asked = perdure.load_predictor(second.path, task="june")
    assert {b["class"] for b in asked(["yy 1 more"])[0]["best"]} == {"June a", "June b"}
    again = CliRunner().invoke(app, ["eval", str(second.path), "--json"])
    assert again.exit_code == 0, again.output
    assert all(s["score"] == s["recorded"] for s in json.loads(again.stdout)["scores"])


def test_a_file_with_other_columns_names_them_and_what_to_give(
    two: Run, encoder: Path, tmp_path: Path
) -> None:
    """The new file is at fault, so no line of the old recipe is named; then the remedy works."""
    file = may(tmp_path, ("aa", "e"), ("bb", "f"))
    file.write_text(file.read_text().replace("text,label", "question,intent"))
    told = typed(two.path, "--data", file, "--out", tmp_path / "new")
    assert told.exit_code == 2, told.output
    assert "recipe.yaml" not in told.stderr
    for ours in ("text", "label"):
        said = f'command line: stream.data.columns.{ours}: {file} has no column "{ours}"'
        assert said in told.stderr
        assert f"it: stream.data.columns.{ours}=YOUR-COLUMN" in told.stderr
    assert told.stderr.count("columns there are: question, intent") == 2
    named = ["stream.data.columns.text=question", "stream.data.columns.label=intent"]
    recipe = extension_recipe(two, None, named, data=file)
    assert [task.labels for task in extension.stream_of(recipe)] == [("e", "f")]


def test_a_data_file_that_is_not_there_or_has_a_strange_name(two: Run, tmp_path: Path) -> None:
    may(tmp_path, ("aa", "e"))
    for given, said in ((tmp_path / "mai.csv", r'mai\.csv: no such file\n.*"may\.csv"'),
                        (tmp_path, "is a folder, not a file")):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            extension_recipe(two, data=given)
    odd = (tmp_path / "may.csv").rename(tmp_path / "may (2).csv")
    found = extension_recipe(two, data=odd)
    assert found.stream.data is not None
    assert (found.name, found.stream.data.task) == ("recipe-may-2", "may 2")
    with pytest.raises(RecipeError, match=r"^command line: stream\.data\.task: "):
        extension_recipe(two, None, ["stream.data.task=a/b"], data=odd)


def test_what_is_not_new_is_told_by_name_before_weights(
    two: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`two` has learned red, blue, cold and warm."""
    monkeypatch.setattr(perdure.loop, "learn", None)
    file = may(
        tmp_path, ("aa", "red"), ("bb", "Blue"), ("cc", "co ld"), ("dd", "ｗarm"), ("ee", "e")
    )
    told = typed(two.path, "--data", file, "--out", tmp_path / "new")
    assert told.exit_code == 2, told.output
    for said in (
        ':2: the class "red" was learned in the task "task 1" already',
        "stream.data.repeat=true",
        ':10: the class "Blue" is "blue" of the task "task 1" in another spelling (case)',
        'if it is the same class, write it "blue"',
        'the class "co ld" is "cold" of the task "task 2" in another spelling (blanks)',
        'the class "ｗarm" is "warm" of the task "task 2" in another spelling (Unicode form)',
    ):
        assert said in told.stderr
    assert '"e"' not in told.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("Card arrival", "card  arrival", True), ("cardarrival", "card arrival", True),
     ("caf\u00e9", "cafe\u0301", True), ("stra\u00dfe", "STRASSE", True), ("\uff21", "a", True),
     ("a\u200bb", "ab", True), ("cafe", "caf\u00e9", False), ("pin 1", "pin 2", False),
     ("card_arrival", "card arrival", False)],
)  # fmt: skip
def test_spellings_by_hand(one: str, other: str, same: bool) -> None:
    assert (spelling(one) == spelling(other)) is same


def test_a_class_that_comes_again(two: Run, tmp_path: Path) -> None:
    file = may(tmp_path, ("aa", "red"), ("ee", "e"))
    told = typed(two.path, "--data", file, "stream.data.repeat=true", "--out", tmp_path / "new")
    assert told.exit_code == 0, told.output
    run = Run.open(tmp_path / "new")
    said = json.loads((run.path / "checkpoints/task-3/model/classes.json").read_text())
    assert said["classes"] == [*CLASSES[:4], "e"]
    assert said["tasks"] == [0, 0, 1, 1, 2]
    assert {item["answer"] for item in run.items(3, "may")} == {"red", "e"}


def test_more_classes_than_were_preallocated(encoder: Path, tmp_path: Path) -> None:
    head = {"preallocate": 5, "learning_rate": 1e-2}
    run = learned(
        written(tmp_path / "data", encoder, 2, model__head=head, train__epochs=1), tmp_path / "run"
    )
    file = may(tmp_path, ("aa", "e"), ("bb", "f"))
    told = typed(run.path, "--data", file, "--out", tmp_path / "new")
    assert told.exit_code == 2
    assert "model.head.preallocate: 5: with 2 new classes the run has 6" in told.stderr
    assert not (tmp_path / "new").exists()
    fits = typed(run.path, "--data", may(tmp_path, ("aa", "e")), "--out", tmp_path / "new")
    assert fits.exit_code == 0, fits.output
    # The column that was kept is the one that the class takes.
    kept = weights(run, 2)["heads.reserve.weight"]
    assert kept.shape == (1, 32)
    assert weights(Run.open(tmp_path / "new"))["heads.parts.2.weight"].shape == (1, 32)


def test_a_name_that_is_taken_and_another_scenario(two: Run, tmp_path: Path) -> None:
    may(tmp_path, ("aa", "e"), ("bb", "f"))
    next_one = tmp_path / "next.yaml"
    next_one.write_text("stream:\n  data: {train: may.csv, tasks: 1}\n")
    with pytest.raises(
        UsageError, match=r'learned a task "task 1" already\n.*stream.data.task=june'
    ):
        extend(two, extension_recipe(two, next_one), tmp_path / "new")
    next_one.write_text(
        "stream:\n  scenario: task-incremental\n  data: {train: may.csv, tasks: 1, task: may}\n"
    )
    with pytest.raises(RecipeError, match=r"next\.yaml:2: stream\.scenario: .* class-incremental"):
        extension_recipe(two, next_one)
    next_one.write_text("stream: {data: {train: may.csv, tasks: 2, task: may}}\n")
    longer = extend(two, extension_recipe(two, next_one), tmp_path / "new")
    assert [t.name for t in extension.stream_of(longer.recipe)] == ["may 1", "may 2"]


def test_an_extension_that_was_killed_goes_on(two: Run, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    recipe = extension_recipe(two, data=may(tmp_path, ("aa", "e"), ("bb", "f")))
    killed = extend(two, recipe, tmp_path / "killed")
    log = killed.log

    def log_and_stop(line: Any) -> None:
        log(line)
        raise Stop

    killed.log = log_and_stop  # type: ignore[method-assign]
    with pytest.raises(Stop):
        perdure.learn(recipe, killed)
    assert CliRunner().invoke(app, ["resume", str(killed.path)]).exit_code == 0
    straight = extend(two, recipe, tmp_path / "straight")
    perdure.learn(recipe, straight)
    assert cells(straight) == cells(Run.open(killed.path))
    ours, theirs = weights(straight), weights(killed)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_of_listed_tasks_takes_a_file_of_one_class(encoder: Path, tmp_path: Path) -> None:
    """Tasks with a file each (`format: classes`) and columns of their own."""
    path = written(tmp_path / "data", encoder, 2, train__epochs=1)
    said = json.loads(path.read_text())
    rows = [json.loads(line) for line in (tmp_path / "data/train.jsonl").read_text().splitlines()]
    for name, classes in (("a", CLASSES[:2]), ("b", CLASSES[2:4])):
        some = [{"said": r["text"], "what": r["label"]} for r in rows if r["label"] in classes]
        (tmp_path / f"data/{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in some))
    columns = {"text": "said", "label": "what"}
    said["stream"] = {"tasks": [
        {"name": name, "format": "classes", "train": f"{name}.jsonl", "columns": columns,
         "test_share": 0.3} for name in ("a", "b")
    ]}  # fmt: skip
    path.write_text(json.dumps(said))
    run = learned(path, tmp_path / "run")
    file = may(tmp_path, ("ee", "e"))
    file.write_text(file.read_text().replace("text,label", "said,what"))
    told = typed(run.path, "--data", file, "--out", tmp_path / "new")
    assert told.exit_code == 0, told.output
    longer = Run.open(tmp_path / "new")
    assert longer.matrix().tasks == ("a", "b", "may")
    data = longer.recipe.stream.data
    assert data is not None
    assert (data.columns, data.test_share) == (columns, 0.3)


def test_only_classes_that_come_again(encoder: Path, tmp_path: Path) -> None:
    """No head is new: where the method keeps nothing back, the old columns are trained."""
    method = {"name": "sequential"}
    run = learned(
        written(tmp_path / "data", encoder, 2, method=method, train__epochs=1), tmp_path / "run"
    )
    file = may(tmp_path, ("xq", "red"), ("zk", "blue"))
    told = typed(run.path, "--data", file, "stream.data.repeat=true", "--out", tmp_path / "new")
    assert told.exit_code == 0, told.output
    old, new = weights(run, 2), weights(Run.open(tmp_path / "new"))
    assert old.keys() == new.keys()
    assert not torch.equal(old["heads.parts.0.weight"], new["heads.parts.0.weight"])


def test_seq_star_has_nothing_to_learn_of_old_classes_alone(
    two: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told; and the next task's head is the one that is trained."""
    file = may(tmp_path, ("xq", "red"), ("zk", "blue"))
    again = typed(two.path, "--data", file, "stream.data.repeat=true", "--out", tmp_path / "may")
    assert again.exit_code == 0, again.output
    assert "task may: all its classes are old and old heads stay" in caplog.text
    same, old = weights(Run.open(tmp_path / "may")), weights(two, 2)
    assert same.keys() == old.keys()
    assert all(torch.equal(same[name], old[name]) for name in old)
    june = may(tmp_path, ("yy", "e"), ("zz", "f"), name="june.csv")
    more = typed(tmp_path / "may", "--data", june, "--out", tmp_path / "june")
    assert more.exit_code == 0, more.output
    run = Run.open(tmp_path / "june")
    new = weights(run, 4)
    assert new.keys() - old.keys() == {"heads.parts.3.weight"}
    assert all(torch.equal(new[name], old[name]) for name in old)
    assert any(row["after"] == 4 for row in run.log_rows())
    told = CliRunner().invoke(app, ["eval", str(run.path), "--json"])
    assert told.exit_code == 0, told.output
    assert all(s["score"] == s["recorded"] for s in json.loads(told.stdout)["scores"])
