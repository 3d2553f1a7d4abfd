"""`perdure extend`: a finished run goes on, as if all its tasks had been one stream."""

from __future__ import annotations

import errno
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import write_recipe
from typer.testing import CliRunner

import perdure
from perdure.cli import app
from perdure.errors import PerdureError, RecipeError, RunError, UsageError
from perdure.extension import extend, extension_recipe
from perdure.methods import registry
from perdure.reports.glossary import EXPLAINED, is_weight
from perdure.reports.html import render
from perdure.run import Run
from perdure.run.kept import whole_stream
from perdure.streams.task import Gone, TaskStream

pytestmark = pytest.mark.train
SHAPE = {
    "name": "shape", "format": "labels",
    **{split: f"shape-{split}.jsonl" for split in ("train", "validation", "test")},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with dropout."""
    folder = tmp_path_factory.mktemp("extend") / "model"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.1}))
    return folder


def written(folder: Path, model: Path, **changes: Any) -> tuple[Path, Path, Path]:
    """Recipes of the first two tasks, of all three, and of the third alone."""
    changes = {"train__max_steps": 3, "gauges": {"every": 2, "texts": 2, "rows": 2}, **changes}
    two = write_recipe(folder, model, **changes)
    for split in ("train", "validation", "test"):
        text = (folder / f"colour-{split}.jsonl").read_text()
        text = text.replace("colour", "shape").replace('"red"', '"round"').replace("blue", "flat")
        (folder / f"shape-{split}.jsonl").write_text(text)
    whole = json.loads(two.read_text())
    whole["stream"]["tasks"].append(SHAPE)
    three, last = folder / "three.yaml", folder / "last.yaml"
    three.write_text(json.dumps(whole))
    last.write_text(yaml.safe_dump({"stream": {"tasks": [SHAPE]}}))
    return two, three, last


def learned(path: Path, out: Path) -> Run:
    recipe = perdure.load_recipe(path)
    run = Run.create(out, recipe)
    perdure.learn(recipe, run)
    return run


def cells(run: Run) -> dict[Any, float]:
    return {(s["kind"], s["after"], s.get("task")): s["score"] for s in run.scores()}


def weights(run: Run) -> dict[str, bytes]:
    folder = run.path / "checkpoints" / "task-3"
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))
    }


def method_of(name: str) -> dict[str, Any]:
    return {"name": name, **registry.load(name).example_options}


KINDS = {name: registry.load(name) for name in registry.names()}
CASES = [(n, "full") for n, kind in KINDS.items() if not (kind.classes_only or kind.adapters)]
CASES += [(n, "lora") for n, kind in KINDS.items() if not kind.classes_only]


def test_a_check_says_what_the_machine_lacks(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a run does: else the new folder is made before it is refused."""
    two, _, last = written(tmp_path / "data", model, method=method_of("sequential"))
    old = learned(two, tmp_path / "old")
    words = ["extend", str(old.path), str(last), "--check", "--out", str(tmp_path / "new")]
    for there, said in ((10, "but the run would be refused: "), (500, "but it may be too large: ")):
        monkeypatch.setattr("perdure.learners.room.machine_mb", lambda there=there: there)
        told = CliRunner().invoke(app, words)
        assert told.exit_code == 0, told.output
        assert said in told.stderr
        assert "training takes about 0.6 GB of memory" in told.stderr


@pytest.mark.parametrize(("name", "tuning"), CASES)
def test_it_ends_as_one_run_of_all_tasks(
    model: Path, tmp_path: Path, name: str, tuning: str
) -> None:
    lora = {"model__tuning": "lora", "model__lora": {"r": 4, "dropout": 0.1}}
    changes = lora if tuning == "lora" else {}
    two, three, last = written(tmp_path / "data", model, method=method_of(name), **changes)
    old = learned(two, tmp_path / "old")
    before = {str(p): p.read_bytes() for p in sorted(old.path.rglob("*")) if p.is_file()}
    if name != "joint":  # it trains on all rows
        for file in (tmp_path / "data").glob("co*.jsonl"):
            file.rename(file.with_suffix(".gone"))
    recipe = extension_recipe(old, last)
    longer = extend(old, recipe, tmp_path / "longer")
    perdure.learn(recipe, longer)
    for file in (tmp_path / "data").glob("*.gone"):
        file.rename(file.with_suffix(".jsonl"))
    whole = learned(three, tmp_path / "whole")
    assert weights(longer) == weights(whole)
    found, wanted = cells(longer), cells(whole)
    assert found == {key: wanted[key] for key in found}
    assert wanted.keys() - found.keys() == {("task", 1, "shape")}  # before it was known
    logged = {
        key for row in longer.log_rows() for key in row if key.startswith(("method/", "gauge/"))
    }
    plain = {key for key in logged if not is_weight(key, logged)}
    assert plain <= EXPLAINED.keys()  # the page says what each is
    matrix, same = longer.matrix(), whole.matrix()
    assert matrix.tasks == ("colour", "count", "shape")
    for figure in ("average_accuracy", "backward_transfer", "forward_transfer"):
        assert getattr(matrix, figure)() == getattr(same, figure)()
    assert math.isnan(matrix.array()[1, 2])
    after = {str(p): p.read_bytes() for p in sorted(old.path.rglob("*")) if p.is_file()}
    assert after == before


# --- the command line


@pytest.fixture(scope="module")
def home(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data and a finished run, old, of two tasks."""
    folder = tmp_path_factory.mktemp("home")
    two, _, _ = written(folder / "data", model, method=method_of("replay"))
    learned(two, folder / "old")
    return folder


def typed(*words: Any) -> Any:
    return CliRunner().invoke(app, ["extend", *map(str, words)])


def test_a_file_is_enough_and_extensions_are_extended(home: Path, tmp_path: Path) -> None:
    lines = (home / "data" / "count-train.jsonl").read_text().splitlines(keepends=True)
    for month in ("may", "june"):
        (tmp_path / f"{month}.jsonl").write_text("".join(lines))
    first = typed(home / "old", "--data", tmp_path / "may.jsonl", "--out", tmp_path / "may")
    assert first.exit_code == 0, first.output
    more = typed(
        tmp_path / "may", "--data", tmp_path / "june.jsonl", "--out", tmp_path / "june",
        "train.max_steps=2",
    )  # fmt: skip
    assert more.exit_code == 0, more.output
    run = Run.open(tmp_path / "june")
    assert run.matrix().tasks == ("colour", "count", "may", "june")
    assert run.recipe.train.max_steps == 2
    shares = [len(json.loads((run.path / "data" / "task-4.json").read_text())[s])
              for s in ("validation", "test")]  # fmt: skip
    assert shares == [2, 5]  # a tenth and a fifth of 24
    rows = {(s["after"], s.get("task")) for s in run.scores() if s["kind"] == "task"}
    assert rows >= {(0, "june"), (3, "june"), (4, "june"), (0, "may"), (2, "may"), (4, "colour")}
    assert not rows & {(1, "may"), (1, "june"), (2, "june")}
    assert math.isfinite(run.matrix().forward_transfer())
    assert CliRunner().invoke(app, ["eval", str(run.path)]).exit_code == 0
    assert CliRunner().invoke(app, ["report", str(run.path)]).exit_code == 0


def test_one_that_was_killed_resumes(home: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class Stops(perdure.reports.NullDisplay):  # type: ignore[name-defined, misc]
        def training(self, method: str, task: str, step: int, *rest: Any, **more: Any) -> None:
            if step == 2:
                raise Stop

    old = Run.open(home / "old")
    recipe = extension_recipe(old, home / "data" / "last.yaml")
    killed = extend(old, recipe, tmp_path / "killed")
    with pytest.raises(Stop):
        perdure.learn(recipe, killed, display=Stops())
    assert CliRunner().invoke(app, ["resume", str(killed.path)]).exit_code == 0
    straight = extend(old, recipe, tmp_path / "straight")
    perdure.learn(recipe, straight)
    assert weights(straight) == weights(Run.open(killed.path))
    assert cells(straight) == cells(Run.open(killed.path))


@pytest.mark.parametrize(
    ("key", "value"),
    [("method", "ewc"), ("seed", 3), ("model", {"tuning": "lora"}),
     ("general", {"source": "none"})],
)  # fmt: skip
def test_what_an_extension_keeps_is_refused_with_its_line(
    home: Path, tmp_path: Path, key: str, value: Any
) -> None:
    said = {key: value, "stream": {"tasks": [SHAPE]}}
    for name in ("shape-train.jsonl", "shape-test.jsonl", "shape-validation.jsonl"):
        shutil.copy(home / "data" / name, tmp_path / name)
    path = tmp_path / "next.yaml"
    path.write_text(yaml.safe_dump(said, sort_keys=False))
    told = typed(home / "old", path, "--out", tmp_path / "new")
    assert told.exit_code == 2, told.output
    assert f"error: {path}:1: {key}: an extension keeps the run's own {key}" in told.stderr
    assert f"leave it out of {path}: it is taken from" in told.stderr
    assert not (tmp_path / "new").exists()


def test_what_an_extension_keeps_is_refused_where_the_command_line_gives_it(home: Path) -> None:
    given = ("seed=3", "method.name=ewc", "model.tuning=lora", "general.source=none")
    told = typed(home / "old", home / "data" / "last.yaml", "--check", *given)
    assert told.exit_code == 2, told.output
    for one in given:
        key = one.partition("=")[0]
        kept = key.partition(".")[0]
        said = f"command line: {key}: an extension keeps the run's own {kept}\n"
        assert f"{said}  leave it out of the command line: it is taken from" in told.stderr
    assert "last.yaml" not in told.stderr


def test_a_name_that_is_taken_is_told_with_its_line(home: Path, tmp_path: Path) -> None:
    shutil.copy(home / "data" / "count-train.jsonl", tmp_path / "count.jsonl")
    told = typed(home / "old", "--data", tmp_path / "count.jsonl", "--out", tmp_path / "new")
    assert told.exit_code == 2
    assert 'the run has learned a task "count" already' in told.stderr
    assert "stream.tasks.0.name=NAME" in told.stderr


def test_a_run_that_is_not_finished_cannot_go_on(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "old", tmp_path / "torso")
    (tmp_path / "torso" / "finished").unlink()
    told = typed(tmp_path / "torso", home / "data" / "last.yaml", "--out", tmp_path / "new")
    assert told.exit_code == 4
    assert f"perdure resume {tmp_path / 'torso'}" in told.stderr


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
)
def test_a_changed_base_is_refused(home: Path, model: Path, tmp_path: Path, name: str) -> None:
    file, new = model / name, tmp_path / "new"
    before = file.read_text()
    file.write_text(before + " ")
    try:
        told = typed(home / "old", home / "data" / "last.yaml", "--out", new)
        assert told.exit_code == 4
        assert f"base model, {name}: has other bytes since this run began" in told.stderr
        assert not new.exists()
        old = Run.open(home / "old")
        recipe = extension_recipe(old, home / "data" / "last.yaml")
        made = extend(old, recipe, new, accept_changes=True)
    finally:
        file.write_text(before)
    (noted,) = made.environment()["accepted_changes"]
    assert noted["changes"] == [f"base model, {name}: has other bytes since this run began"]
    assert f"<li>{noted['changes'][0]} <span" in render([made])


def test_a_changed_template_of_the_recipe_is_refused(model: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text((model / "chat_template.jinja").read_text())
    two, _, last = written(
        tmp_path / "data", model, model__chat_template=str(own), train__max_steps=1,
        general={"source": "none"},
    )  # fmt: skip
    old = learned(two, tmp_path / "old")
    own.write_text(own.read_text() + "{# changed #}")
    told = typed(old.path, last, "--out", tmp_path / "new")
    assert told.exit_code == 4, told.output
    assert "chat template, own.jinja: has other bytes since this run began" in told.stderr
    assert not (tmp_path / "new").exists()


def test_joint_names_the_old_files_that_are_gone(model: Path, tmp_path: Path) -> None:
    two, _, last = written(tmp_path / "data", model, method=method_of("joint"))
    old = learned(two, tmp_path / "old")
    (tmp_path / "data" / "colour-train.jsonl").unlink()
    recipe = extension_recipe(old, last)
    longer = extend(old, recipe, tmp_path / "longer")
    with pytest.raises(RunError, match=r"the old tasks' files cannot be read .*colour-train"):
        perdure.learn(recipe, longer)


def test_neither_or_both_is_refused(home: Path) -> None:
    old = Run.open(home / "old")
    for words in ((None, None), ("next.yaml", "may.csv")):
        with pytest.raises(UsageError, match="give either a recipe"):
            extension_recipe(old, words[0], data=words[1])


def test_mistakes_of_the_new_recipe_have_their_lines(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "next.yaml"
    path.write_text("stream:\n  tasks:\n    - {name: a, train: gone.csv}\n")
    with pytest.raises(RecipeError, match=r"next\.yaml:3: stream\.tasks\.0\.train: no such file"):
        extension_recipe(Run.open(home / "old"), path)


def test_rows_that_are_gone_are_never_taken_for_none() -> None:
    rows = Gone("colour")
    for look in (len, list, lambda found: found[0], lambda found: found[:2]):
        with pytest.raises(PerdureError, match="the training rows of task colour are not kept"):
            look(rows)


def test_a_run_whose_last_model_is_torn_is_refused(home: Path, tmp_path: Path) -> None:
    for damage in ("cut", "manifest", "gone"):
        run = tmp_path / damage
        shutil.copytree(home / "old", run)
        folder = run / "checkpoints" / "task-2"
        if damage == "cut":
            file = folder / "model" / "model.safetensors"
            file.write_bytes(file.read_bytes()[:-10])
        elif damage == "manifest":
            (folder / "manifest.json").write_text("{")
        else:
            shutil.rmtree(folder)
        out = tmp_path / f"new-{damage}"
        for words in (["extend", str(run), str(home / "data" / "last.yaml"), "--out", str(out)],
                      ["eval", str(run)]):  # fmt: skip
            told = CliRunner().invoke(app, words)
            assert told.exit_code == 4, (damage, words, told.output)
            assert not out.exists()
        if damage != "gone":
            told = CliRunner().invoke(app, ["export", str(run), "--out", str(out)])
            assert told.exit_code == 4, (damage, told.output)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_kept_rows_that_are_damaged_are_told_before_anything_is_made(
    home: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(home / "old", run)
    kept = run / "data" / "task-1.json"
    kept.write_text(kept.read_text()[:-5])
    told = typed(run, home / "data" / "last.yaml", "--out", tmp_path / "new")
    assert told.exit_code == 4
    assert f"error: {kept}: damaged" in told.stderr
    assert not (tmp_path / "new").exists()


def test_an_edited_recipe_is_refused_or_noted(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(home / "old", run)
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("learning_rate: 0.005", "learning_rate: 0.5"))
    words = (run, home / "data" / "last.yaml", "--out", tmp_path / "new")
    told = typed(*words)
    assert told.exit_code == 4
    assert "recipe: train.learning_rate was 0.005 when this run began, now 0.5" in told.stderr
    assert typed(*words, "--accept-changes").exit_code == 0
    noted = Run.open(tmp_path / "new").environment()["accepted_changes"]
    assert noted[0]["changes"] == [
        "recipe: train.learning_rate was 0.005 when this run began, now 0.5"
    ]


def test_the_rows_that_are_scored_stay(home: Path, tmp_path: Path) -> None:
    path = home / "data" / "fewer.yaml"
    path.write_text(yaml.safe_dump({"stream": {"tasks": [SHAPE]}, "scoring": {"max_test_rows": 2}}))
    told = typed(home / "old", path, "--out", tmp_path / "new")
    assert told.exit_code == 2
    assert "scoring.max_test_rows: an extension scores the run's own rows" in told.stderr


def test_a_damaged_recipe_of_the_old_tasks_is_told(home: Path, tmp_path: Path) -> None:
    """Methods that train on old rows read it."""
    old = Run.open(home / "old")
    recipe = extension_recipe(old, home / "data" / "last.yaml")
    longer = extend(old, recipe, tmp_path / "new")
    file = longer.path / "data" / "recipe-002.yaml"
    assert file.read_text() == (home / "old" / "recipe.yaml").read_text()
    file.write_text(file.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(RunError, match=r"recipe-002\.yaml: damaged or gone"):
        whole_stream(longer, TaskStream(()), lambda path: TaskStream(()))


def test_resume_says_that_a_run_is_finished(home: Path) -> None:
    run = home / "old"
    told = CliRunner().invoke(app, ["resume", str(run)])
    assert told.exit_code == 0, told.output
    assert f"{run}: is finished; to learn more tasks: perdure extend {run} RECIPE" in told.stderr


def test_a_finished_run_is_shown_where_nothing_can_be_written(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(runs: Any, page: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(page))

    monkeypatch.setattr("perdure.reports.write_report", refuse)
    run = home / "old"
    told = CliRunner().invoke(app, ["resume", str(run)])
    assert told.exit_code == 0, told.output
    assert "report.html: the file system can only be read, so it stays as it was" in told.stderr
    assert f"elsewhere: perdure report {run} --out FILE.html" in told.stderr


def test_rows_of_an_extension_are_read_before_anything_is_made(home: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "label"\n')
    told = typed(home / "old", "--data", tmp_path / "bad.jsonl", "--out", tmp_path / "new")
    assert told.exit_code == 2
    assert "bad.jsonl:1: broken JSON" in told.stderr
    assert "nothing was loaded or written" in told.stderr
    assert not (tmp_path / "new").exists()


def test_a_run_that_is_in_use_is_not_scored_for_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be recorded is told first; scores that are there already need no lock."""
    run = Run.open(home / "old")
    scored: list[int] = []

    def score(*_: Any) -> list[Any]:
        scored.append(1)
        return []

    monkeypatch.setattr("perdure.commands.evaluate._score", score)
    with run.lock():
        other = ["--tasks", str(home / "data" / "last.yaml")]
        told = CliRunner().invoke(app, ["eval", str(run.path), *other])
        assert told.exit_code == 4, told.output
        assert "in use by process" in told.stderr
        assert f"then go on with: perdure resume {run.path}" in told.stderr
        assert not scored
        told = CliRunner().invoke(app, ["eval", str(run.path)])
        assert told.exit_code == 0, told.output
        assert scored


def test_an_extension_is_scored_again(home: Path, tmp_path: Path) -> None:
    """Its own rows and the kept ones are what it pinned."""
    old = Run.open(home / "old")
    recipe = extension_recipe(old, home / "data" / "last.yaml")
    longer = extend(old, recipe, tmp_path / "new")
    perdure.learn(recipe, longer)
    told = CliRunner().invoke(app, ["eval", str(longer.path), "--json"])
    assert told.exit_code == 0, told.output
    for row in json.loads(told.stdout)["scores"]:
        assert row["score"] == pytest.approx(row["recorded"])


def test_own_code_that_has_changed_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old rows are scored by it too."""
    own = tmp_path / "data" / "mine.py"
    own.parent.mkdir()
    own.write_text("def same(prediction, answer):\n    return prediction == answer\n")
    two, _, last = written(tmp_path / "data", model, trust_remote_code=True, train__max_steps=1)
    data = json.loads(two.read_text())
    data["stream"]["tasks"][0] |= {"metric": "mine:same", "max_new_tokens": 2}
    two.write_text(json.dumps(data))
    old = learned(two, tmp_path / "old")
    own.write_text(own.read_text() + "# changed\n")
    told = typed(old.path, last, "--trust-remote-code", "--out", tmp_path / "new")
    assert told.exit_code == 4, told.output
    assert "own code, mine.py: has other bytes since this run began" in told.stderr


@pytest.mark.train
def test_a_file_is_like_the_last_task_that_was_learned(
    home: Path, model: Path, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path, model, general=None, gauges__every=0, train__max_steps=1)
    recipe = json.loads(path.read_text())
    scored = {"name": "again", "format": "labels", "learn": "none", "test": "count-test.jsonl"}
    recipe["stream"]["tasks"].append(scored)
    path.write_text(json.dumps(recipe))
    run = learned(path, tmp_path / "run")
    assert run.matrix().learned == (True, True, False)
    shutil.copy(tmp_path / "count-train.jsonl", tmp_path / "may.jsonl")
    found = extension_recipe(run, data=tmp_path / "may.jsonl")
    assert [(task.name, task.learn) for task in found.stream.tasks] == [("may", "sft")]
