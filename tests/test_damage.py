"""Damage is noticed: one flipped byte, lost lines, a changed recipe or base, and a power cut."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import write_recipe
from typer.testing import CliRunner

import perdure
from perdure import seals
from perdure.cli import app
from perdure.errors import RunError
from perdure.mechanisms.state_cache import StateCache
from perdure.models.load import load_base
from perdure.models.pool import AdapterPool
from perdure.prepare import stream_of
from perdure.recipe.schema import ModelConfig
from perdure.run import Run
from perdure.run.pins import recipe_changes, refuse_changes, rows_since
from perdure.run.sums import with_check
from perdure.seals import Sealer, damaged, is_sealed, is_whole, seal, sha256, write_sealed
from perdure.streams.task import GeneralText

pytestmark = pytest.mark.train


def flip(file: Path) -> None:
    """Change one bit in the middle of a file, which keeps its size."""
    found = bytearray(file.read_bytes())
    found[len(found) // 2] ^= 1
    file.write_bytes(found)


# --- seals


def test_a_manifest_names_sizes_and_checksums(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "below" / "b").write_bytes(b"")
    seal(tmp_path, {"step": 3})
    # FIPS 180-2, appendix B.1: the digest of "abc"; and that of nothing.
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert json.loads((tmp_path / "manifest.json").read_text()) == {
        "step": 3,
        "files": {"a": {"bytes": 3, "sha256": abc}, "below/b": {"bytes": 0, "sha256": nothing}},
    }
    assert damaged(tmp_path) == ""
    flip(tmp_path / "a")
    assert is_sealed(tmp_path)  # sizes alone do not tell
    assert damaged(tmp_path) == str(tmp_path / "a")


def test_a_manifest_of_sizes_alone_is_still_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "manifest.json").write_text('{"files": {"a": 3}}')
    assert is_sealed(tmp_path)
    assert damaged(tmp_path) == ""
    (tmp_path / "a").write_bytes(b"ab")
    assert not is_sealed(tmp_path)


@pytest.mark.parametrize("text", ["[]", '{"files": 3}', "{}", "", "\x00", '{"files": []}'])
def test_what_is_no_manifest_seals_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert not is_sealed(tmp_path)


def test_a_checksum_is_that_of_hashlib(tmp_path: Path) -> None:
    for size in (0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1):
        (tmp_path / "a").write_bytes(bytes(i % 251 for i in range(size)))
        assert sha256(tmp_path / "a") == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()


def test_a_sealed_text(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    assert not is_whole(path)
    path.write_text("by hand\n")
    assert is_whole(path)  # nothing says otherwise
    write_sealed(path, "caf\u00e9\n")
    assert is_whole(path)
    flip(path)
    assert not is_whole(path)


def test_large_folders_are_sealed_while_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "AT_ONCE", 0)
    go, done = threading.Event(), []
    sealer = Sealer()
    sealer.begin(tmp_path, lambda: (go.wait(10), done.append(1))[1])
    assert done == []
    go.set()
    sealer.wait()
    assert done == [1]

    def fails() -> None:
        raise OSError("no space")

    sealer.begin(tmp_path, fails)
    with pytest.raises(OSError, match="no space"):
        sealer.wait()
    sealer.wait()


# --- runs


@pytest.fixture(scope="module")
def stopped(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that stopped within task 2, and one of the same recipe that went through."""
    folder = tmp_path_factory.mktemp("damage")
    model = folder / "model"
    shutil.copytree(tiny_model_dir, model)
    path = write_recipe(
        folder, model, method={"name": "gere", "max_tokens": 16, "insert": 2}, save__steps=2
    )
    recipe = perdure.load_recipe(path)
    perdure.learn(recipe, Run.create(folder / "whole", recipe))
    run = Run.create(folder / "stopped", recipe)

    class Stop(Exception):
        pass

    class Stops(perdure.reports.NullDisplay):  # type: ignore[name-defined, misc]
        def training(self, method: str, task: str, step: int, *rest: Any, **more: Any) -> None:
            if task == "count" and step == 5:
                raise Stop

    with pytest.raises(Stop):
        perdure.learn(recipe, run, display=Stops())
    return run.path, folder / "whole"


@pytest.fixture
def torn(stopped: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the stopped run; the model and the data that it names are its own copies too."""
    home = stopped[0].parent
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    recipe = copy / "stopped" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(home), str(copy)))
    pinned = copy / "stopped" / "pinned.json"
    moved = json.loads(pinned.read_text().replace(str(home), str(copy)))
    pinned.write_text(json.dumps(with_check(moved)))
    return copy / "stopped", stopped[1]


def same_end(run: Path, other: Path) -> None:
    last = "checkpoints/task-2/model/model.safetensors"
    assert (run / last).read_bytes() == (other / last).read_bytes()
    scores = [[(s["after"], s.get("task"), s["score"]) for s in Run.open(p).scores()]
              for p in (run, other)]  # fmt: skip
    assert scores[0] == scores[1]


def test_training_and_scoring_go_on_while_a_checkpoint_is_hashed(
    stopped: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each seal waits for the next step of its task, or for the next scored rows, to be told."""
    from perdure.engine import callbacks
    from perdure.run import directory

    monkeypatch.setattr(seals, "AT_ONCE", 0)
    stepped, scored = threading.Condition(), threading.Event()
    step_now, outrun = [0], dict[str, bool]()

    class Sees(perdure.reports.NullDisplay):  # type: ignore[name-defined, misc]
        def training(self, method: str, task: str, step: int, *rest: Any, **more: Any) -> None:
            with stepped:
                step_now[0] = step
                scored.clear()
                stepped.notify_all()

        def scoring(self, *rest: Any, **more: Any) -> None:
            scored.set()

    def slow_within_a_task(folder: Path, facts: Any) -> None:
        if facts["step"] < 12:  # the last one of a task is waited for
            with stepped:
                name = f"{folder.parents[1].name} step {facts['step']}"
                outrun[name] = stepped.wait_for(lambda: step_now[0] == facts["step"] + 1, 20)
        seal(folder, facts)

    def slow_between_tasks(folder: Path, facts: Any) -> None:
        outrun[folder.name] = scored.wait(20)
        seal(folder, facts)

    monkeypatch.setattr(callbacks, "seal", slow_within_a_task)
    monkeypatch.setattr(directory, "seal", slow_between_tasks)
    recipe = perdure.load_recipe(stopped[0].parent / "recipe.yaml")
    run = Run.create(tmp_path / "run", recipe)
    perdure.learn(recipe, run, display=Sees())
    assert len(outrun) == 2 * 5 + 2  # steps 2, 4, ... 10 of 12, and the tasks
    assert all(outrun.values()), outrun
    same_end(run.path, stopped[1])


def resume(run: Path, *more: str) -> Any:
    return CliRunner().invoke(app, ["resume", str(run), *more])


def noted(run: Path) -> str:
    """What was said while it went on; warnings are there too."""
    return (run / "perdure.log").read_text("utf-8")


def test_without_damage_it_ends_as_the_other(torn: tuple[Path, Path]) -> None:
    run, whole = torn
    assert resume(run).exit_code == 0
    same_end(run, whole)


DAMAGED: dict[str, Callable[[Path], Path]] = {
    "weights inside the task": lambda run: newest(run) / "model.safetensors",
    "optimizer": lambda run: newest(run) / "optimizer.pt",
    "trainer's state": lambda run: newest(run) / "trainer_state.json",
}


def newest(run: Path) -> Path:
    found = seals.newest_sealed(run / "work" / "task-2" / "main")
    assert found is not None
    return found


@pytest.mark.parametrize("what", DAMAGED)
def test_one_flipped_bit_is_named(torn: tuple[Path, Path], what: str) -> None:
    """The task goes on from the checkpoint before it, and of both it says so."""
    run, whole = torn
    kept = [p for _, p in seals.numbered(run / "work" / "task-2" / "main", "checkpoint-")]
    file = DAMAGED[what](run)
    flip(file)
    told = resume(run)
    assert told.exit_code == 0, told.output
    said = f"{file}: damaged: it is not what was written, so the task goes on from {kept[0].name}"
    assert said in noted(run)
    assert f"12 steps, from {kept[0].name}" in noted(run)
    same_end(run, whole)


def test_without_an_older_one_a_task_begins_again(torn: tuple[Path, Path]) -> None:
    run, whole = torn
    for _, folder in seals.numbered(run / "work" / "task-2" / "main", "checkpoint-"):
        (folder / "manifest.json").write_text("[]")  # no torso, which has none
    told = resume(run)
    assert told.exit_code == 0, told.output
    assert noted(run).count("manifest.json: damaged: ") == 2
    assert "so the task goes on from its beginning" in noted(run)
    same_end(run, whole)


CONTENT: dict[str, Callable[[Path], Path]] = {
    "weights between tasks": lambda run: run / "checkpoints/task-1/model/model.safetensors",
    "methods' state": lambda run: run / "checkpoints/task-1/perdure_methods.json",
    **DAMAGED,
    "methods' state inside the task": lambda run: newest(run) / "perdure_methods.json",
}


@pytest.mark.parametrize("what", [name for name in CONTENT if name != "optimizer"])
def test_what_its_sum_does_not_tell_is_told_when_it_is_read(
    torn: tuple[Path, Path], what: str
) -> None:
    """As in a run of an older Perdure, which kept no sums."""
    run, _ = torn
    file = CONTENT[what](run)
    content = bytearray(file.read_bytes())
    content[20] = 0xFF  # no UTF-8, in the header of safetensors too
    file.write_bytes(content)
    folder = next(p for p in file.parents if (p / "manifest.json").exists())
    facts = seals.facts_of(folder)
    seal(folder, {k: v for k, v in facts.items() if k != "files"})
    told = resume(run)
    assert told.exit_code == 4, told.output
    assert re.search(f"error: {folder}\\S*: damaged: it is no ", told.stderr)
    assert f"delete the folder {folder}" in told.stderr
    assert f"then go on with: perdure resume {run}" in told.stderr


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_inside_a_task_is_refused_by_name(
    torn: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    """Whoever made the run's folder has sealed it as well, so no sum tells."""
    folder, mark = newest(torn[0]), tmp_path / "ran"
    assert (folder / name).is_file()
    torch.save({"state": Bomb(mark)}, folder / name)
    seal(folder, seals.facts_of(folder))
    told = resume(torn[0])
    assert told.exit_code == 4, told.output
    assert f"error: {folder}: holds a pickle with more than tensors in it" in told.stderr
    assert f"delete the folder {folder}" in told.stderr
    assert not mark.exists()
    torch.load(folder / name, weights_only=False)
    assert mark.exists()  # the bomb is a bomb


@pytest.mark.parametrize("work", [True, False])
def test_a_damaged_checkpoint_between_tasks(torn: tuple[Path, Path], work: bool) -> None:
    """It is set aside, and its task learned again; what was learned of the next one counts."""
    run, whole = torn
    file = run / "checkpoints" / "task-1" / "model" / "model.safetensors"
    flip(file)
    if not work:
        shutil.rmtree(run / "work")
    told = resume(run)
    assert told.exit_code == 0, told.output
    assert (
        f"{file}: damaged: it is not what was written, so the run goes on from the base"
        in noted(run)
    )
    assert (run / "checkpoints" / "task-1.damaged" / "model" / "model.safetensors").exists()
    same_end(run, whole)


def test_of_several_the_newest_whole_one_is_gone_on_from(torn: tuple[Path, Path]) -> None:
    run, whole = torn
    shutil.copytree(run / "checkpoints" / "task-1", run / "checkpoints" / "task-1-copy2")
    assert resume(run).exit_code == 0  # finished; what lies beside is none of the run's
    (run / "finished").unlink()
    flip(run / "checkpoints" / "task-2" / "model" / "model.safetensors")
    told = resume(run)
    assert told.exit_code == 0, told.output
    assert (
        "so the run goes on from task-1; what is there now is set aside as task-2.damaged"
        in noted(run)
    )
    same_end(run, whole)


def test_with_none_before_it_a_damaged_checkpoint_is_refused(torn: tuple[Path, Path]) -> None:
    """With `save.tasks: last` all tasks would be learned again, which only the user may decide."""
    run, _ = torn
    assert resume(run).exit_code == 0
    (run / "finished").unlink()
    shutil.rmtree(run / "checkpoints" / "task-1")
    file = run / "checkpoints" / "task-2" / "model" / "model.safetensors"
    flip(file)
    told = resume(run)
    assert told.exit_code == 4, told.output
    assert f"error: {file}: damaged: " in told.stderr
    assert f"or delete the folder {file.parents[1]}: the run then goes on after 0 tasks" in (
        told.stderr
    )


def test_a_damaged_cache_is_made_again(
    torn: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    run, whole = torn
    for file in sorted((run / "cache").glob("states-*/00000.safetensors")):
        flip(file)
    assert resume(run).exit_code == 0
    assert caplog.text.count("damaged, so it is made again") >= 2  # the method's and the gauges'
    same_end(run, whole)


@pytest.mark.parametrize("number", [0, -1])
def test_a_changed_score_is_noticed(torn: tuple[Path, Path], number: int) -> None:
    run, _ = torn
    file = run / "scores.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    score = json.loads(lines[number])["score"]
    lines[number] = lines[number].replace(f'"score": {score}', f'"score": {score + 0.25}')
    file.write_text("".join(lines))
    told = resume(run)
    assert told.exit_code == 4
    assert "scores.jsonl: damaged: lines that were written are gone or changed" in told.stderr


def test_lost_scores_are_noticed(torn: tuple[Path, Path]) -> None:
    run, _ = torn
    file = run / "scores.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    for left in (lines[1:], [*lines[:1], *lines[2:]], []):
        file.write_text("".join(left))
        told = resume(run)
        assert told.exit_code == 4
        assert "scores.jsonl: damaged: lines that were written are gone or changed" in told.stderr
    file.unlink()
    assert resume(run).exit_code == 4


def test_scores_behind_the_newest_checkpoint_are_made_again(torn: tuple[Path, Path]) -> None:
    """Of an interrupted run nothing says that there were any: a report has them as missing."""
    run, whole = torn
    file = run / "scores.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    lost = {number for number, line in enumerate(lines) if json.loads(line)["after"] == 1}
    assert len(lost) >= 3
    file.write_text("".join(line for n, line in enumerate(lines) if n not in lost))
    told = command("report", run, "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert (found["state"], found["scores"][1]) == (
        "interrupted", {"after": 1, "colour": None, "count": None}
    )  # fmt: skip
    assert [found[key] for key in ("average_accuracy", "forgetting", "forward_transfer")] == (
        [None] * 3
    )
    page = (run / "report.html").read_text()
    assert "<strong>Not complete:</strong>" in page
    assert "has learned no task yet" in page
    assert resume(run).exit_code == 0
    same_end(run, whole)


# --- what a run rests on


def test_a_run_whose_data_and_base_were_moved_goes_on(torn: tuple[Path, Path]) -> None:
    """What is in them is compared, not where they lie."""
    run, whole = torn
    home = run.parent
    there = home.with_name("other place")
    shutil.move(home, there)
    moved = there / run.name
    with pytest.raises(RunError, match=r"is gone since this run began\n  what was moved: "):
        refuse_changes(Run.open(moved), accept=False)
    told = resume(moved)
    assert told.exit_code == 2
    assert f"what was moved: write its new place into {moved / 'recipe.yaml'}" in told.stderr
    assert f"then go on with: perdure resume '{moved}'" in told.stderr
    recipe = moved / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(f"{home}/", f"{there}/"))
    told = resume(moved)
    assert told.exit_code == 0, told.output
    assert "accepted_changes" not in Run.open(moved).environment()
    same_end(moved, whole)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("key", "old", "new", "files", "told"),
    [
        ("model.path", "/a/base", "/b/base", True, False),
        ("model.path", "/a/base", "/b/base", False, True),  # nobody noted what was in it
        ("model.path", "/a/base", "/gone/base", True, True),
        ("stream.tasks.0.train", "/a/t.csv", "/gone/t.csv", False, True),
        ("model.path", "org/a", "org/b", True, True),
        ("model.path", "org/a", "/b/base", True, True),
        ("model.chat_template", "/a/t.jinja", "none", True, True),
        ("stream.tasks.0.train", "/a/t.csv", "/b/t.csv", False, False),
        ("stream.data.test.source", "/a/t.txt", "/b/t.txt", False, False),
        ("general.source", "/a/t.txt", "pydoc", False, True),
        ("general.tasks.0", "/a/t.yaml", "/b/t.yaml", True, True),
        ("stream.tasks.0.name", "/a", "/b", True, True),
    ],
)
def test_another_place_of_a_file_whose_content_is_noted_is_no_change(
    key: str, old: str, new: str, files: bool, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.run.pins.os.path.exists", lambda path: path.startswith("/b/"))
    noted = {"recipe": {key: old}, "files": {"base model, a": "1"} if files else {}}
    assert bool(list(recipe_changes(noted, {key: new}))) == told


def test_a_changed_recipe_is_refused_with_what_differs(torn: tuple[Path, Path]) -> None:
    run, _ = torn
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("learning_rate: 0.005", "learning_rate: 0.5"))
    told = resume(run)
    assert told.exit_code == 4
    assert "recipe: train.learning_rate was 0.005 when this run began, now 0.5" in told.stderr
    assert f"perdure resume {run} --accept-changes" in told.stderr
    assert resume(run, "--accept-changes").exit_code == 0
    change = "recipe: train.learning_rate was 0.005 when this run began, now 0.5"
    assert Run.open(run).environment()["accepted_changes"][0]["changes"] == [change]
    page = (run / "report.html").read_text()
    assert "was accepted (<code>--accept-changes</code>)" in page
    assert f"<li>{change} <span" in page


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_changed_base_is_refused(torn: tuple[Path, Path], name: str) -> None:
    run, _ = torn
    file = run.parent / "model" / name
    if name.endswith(".json"):
        file.write_text(json.dumps(json.loads(file.read_text())))  # the same, other bytes
    else:
        flip(file)
    told = resume(run)
    assert told.exit_code == 4
    assert f"base model, {name}: has other bytes since this run began" in told.stderr


def test_a_finished_run_is_read_again_before_it_is_scored(torn: tuple[Path, Path]) -> None:
    run, _ = torn
    assert resume(run).exit_code == 0
    assert CliRunner().invoke(app, ["eval", str(run)]).exit_code == 0
    for file in (run / "checkpoints/task-2/model/model.safetensors", run / "scores.jsonl"):
        flip(file)
        told = CliRunner().invoke(app, ["eval", str(run)])
        assert told.exit_code == 4
        assert f"error: {file}: damaged: " in told.stderr
        flip(file)
    flip(run / "checkpoints/task-2/model/model.safetensors")
    told = CliRunner().invoke(app, ["audit", str(run.parent / "model"), str(run)])
    assert told.exit_code == 4, told.output


def test_a_finished_runs_short_file_is_named_and_its_task_learned_again_as_told(
    torn: tuple[Path, Path],
) -> None:
    """Its folder is there, so it is not the model that is gone; and the way on is one."""
    run, whole = torn
    assert resume(run).exit_code == 0
    file = run / "checkpoints" / "task-2" / "model" / "config.json"
    file.write_bytes(file.read_bytes()[:40])
    told = CliRunner().invoke(app, ["eval", str(run)])
    assert told.exit_code == 4, told.output
    assert f"error: {file}: damaged: it is not what was written" in told.stderr
    assert f"learn it again: delete {run}/finished, then perdure resume {run}\n" in told.stderr
    (run / "finished").unlink()
    assert resume(run).exit_code == 0
    same_end(run, whole)
    assert CliRunner().invoke(app, ["eval", str(run)]).exit_code == 0


def test_states_that_a_power_cut_cut_off_are_computed_again(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a cache that is being built: each text has a file, which nothing has synced."""
    path = write_recipe(
        tmp_path, tiny_model_dir, train__max_steps=1, gauges={"every": 0},
        general={"source": "pydoc", "replay_rows": 4, "held_out_rows": 2, "max_tokens": 16},
        method={"name": "gere", "max_tokens": 16, "insert": 2},
    )  # fmt: skip
    recipe = perdure.load_recipe(path)
    perdure.learn(recipe, whole := Run.create(tmp_path / "whole", recipe))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StateCache, "_code", stop)
        with pytest.raises(KeyboardInterrupt):
            perdure.learn(recipe, run := Run.create(tmp_path / "run", recipe))
    empty, half, _, gone = sorted(run.path.glob("cache/states-*.part/*.raw"))
    empty.write_bytes(b"")
    half.write_bytes(half.read_bytes()[:-40])
    gone.unlink()
    told = resume(run.path)
    assert told.exit_code == 0, told.output
    same_end(run.path, whole.path)


def test_two_changes_are_told_at_once(torn: tuple[Path, Path]) -> None:
    run, _ = torn
    flip(run.parent / "model" / "model.safetensors")
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("batch_size: 4", "batch_size: 2"))
    opened = Run.open(run)
    with pytest.raises(RunError) as error:
        perdure.learn(opened.recipe, opened)
    assert str(error.value).count(str(run) + ": ") == 2


def test_a_changed_method_file_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    source = (
        "from perdure import Method, MethodConfig\n"
        "class Mine(Method):\n    Config = MethodConfig\n    def after_step(self, ctx):\n"
        "        ctx.log('seen', 1.0)\n"
    )
    own = tmp_path / "mine.py"
    own.write_text(source)
    path = write_recipe(
        tmp_path / "data", tiny_model_dir, method={"file": str(own)}, train__max_steps=1,
        trust_remote_code=True,
    )  # fmt: skip
    recipe = perdure.load_recipe(path)
    run = Run.create(tmp_path / "run", recipe)
    perdure.learn(recipe, run)
    (run.path / "finished").unlink()
    own.write_text(source.replace("1.0", "2.0"))
    told = resume(run.path, "--trust-remote-code")
    assert told.exit_code == 4, told.output
    assert "own code, mine.py: has other bytes since this run began" in told.stderr


# --- what is scored or audited rests on the same


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an adapter; the model and the data that it names are beside it."""
    folder = tmp_path_factory.mktemp("adapter")
    shutil.copytree(tiny_model_dir, folder / "model")
    path = write_recipe(
        folder, folder / "model", model__tuning="lora", train__max_steps=1,
        general={"source": "none"},
    )  # fmt: skip
    recipe = perdure.load_recipe(path)
    perdure.learn(recipe, Run.create(folder / "run", recipe))
    return folder / "run"


def command(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def other_base(adapter: Path) -> Iterator[Path]:
    """The run's base model, of which one bit of the weights is another."""
    file = adapter.parent / "model" / "model.safetensors"
    before = file.read_bytes()
    flip(file)
    yield file.parent
    file.write_bytes(before)


def test_a_changed_base_is_not_scored_in_silence(adapter: Path, other_base: Path) -> None:
    differs = f"{adapter}: base model, model.safetensors: has other bytes since this run began"
    for words in (("eval", adapter), ("eval", adapter, "--after", "0")):
        told = command(*words)
        assert told.exit_code == 4, told.output
        assert differs in told.stderr
        assert "go on all the same: --accept-changes" in told.stderr
    done = command("eval", adapter, "--accept-changes", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["accepted_changes"] == [differs.partition(": ")[2]]


def test_a_changed_base_is_not_audited_in_silence(adapter: Path, other_base: Path) -> None:
    words = ("audit", other_base, adapter, "--rows", "4")
    for tuned in (adapter, adapter / "checkpoints/task-1", adapter / "checkpoints/task-2/model"):
        told = command("audit", other_base, tuned)
        assert told.exit_code == 4, told.output
        assert "base model, model.safetensors: has other bytes since this run began" in told.stderr
    done = command(*words, "--accept-changes", "--json")
    assert done.exit_code in (0, 1, 3), done.output
    (change,) = json.loads(done.stdout)["accepted_changes"]
    assert change == "base model, model.safetensors: has other bytes since this run began"


def test_a_changed_base_is_neither_diagnosed_nor_repaired_in_silence(
    adapter: Path, other_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, out = adapter.parent / "recipe.yaml", tmp_path / "repaired"
    diagnose = ("diagnose", other_base, adapter, "--tasks", recipe, "--rows", "4", "--relearn", "0")
    repair = (
        "repair", other_base, adapter, "--general", "pydoc", "--task", recipe, "--out", out,
        "--rows", "4", "--texts", "4",
    )  # fmt: skip
    for words in (diagnose, repair):
        told = command(*words)
        assert told.exit_code == 4, told.output
        assert "base model, model.safetensors: has other bytes since this run began" in told.stderr
        assert "go on all the same: --accept-changes" in told.stderr
    assert not out.exists()
    for words, codes in ((diagnose, (0,)), (repair, (0, 1))):
        caplog.clear()
        done = command(*words, "--accept-changes")
        assert done.exit_code in codes, done.output
        assert "accepted: base model, model.safetensors: has other bytes" in caplog.text


def of_two(adapter: Path, tasks: Path, out: Path) -> dict[str, tuple[object, ...]]:
    """Commands that read two models and a recipe's rows."""
    base = adapter.parent / "model"
    return {
        "audit": ("audit", base, adapter, "--tasks", tasks, "--rows", "4"),
        "diagnose": ("diagnose", base, adapter, "--tasks", tasks, "--rows", "4", "--relearn", "0"),
        "repair": ("repair", base, adapter, "--general", "pydoc", "--task", tasks, "--out", out,
                   "--rows", "4", "--texts", "4"),
    }  # fmt: skip


def test_changed_rows_of_a_run_are_not_audited_in_silence(adapter: Path, tmp_path: Path) -> None:
    """Where the recipe is the run's own, by its file or by what it says."""
    file, recipe = adapter.parent / "colour-test.jsonl", adapter.parent / "recipe.yaml"
    before = file.read_text()
    told = f"{adapter}: the rows of task colour have changed since this run began (version "
    file.write_text(before.replace("test 0", "test zero"))
    try:
        for tasks in (recipe, adapter / "recipe.yaml"):
            for name, words in of_two(adapter, tasks, tmp_path / "out").items():
                done = command(*words)
                assert done.exit_code == 4, (name, done.output)
                assert told in done.stderr, name
                assert "task count" not in done.stderr
                assert "put the old rows back, or go on all the same: --accept-changes" in (
                    done.stderr
                )
        words = of_two(adapter, recipe, tmp_path / "out")["audit"]
        done = command(*words, "--accept-changes", "--json")
        assert done.exit_code in (0, 1, 3), done.output
        (change,) = json.loads(done.stdout)["accepted_changes"]
        assert change.startswith("the rows of task colour have changed since this run began")
        # Another seed sets other rows aside, and other files are other tasks, whatever their name.
        opened = Run.open(adapter)
        loaded = perdure.load_recipe(recipe)
        stream = stream_of(loaded)
        assert len(rows_since(opened, loaded, stream)) == 1
        assert rows_since(opened, loaded.model_copy(update={"seed": 5}), stream) == []
        copy = tmp_path / "copy"
        shutil.copytree(adapter.parent, copy)
        other = perdure.load_recipe(copy / "recipe.yaml")
        assert rows_since(opened, other, stream_of(other)) == []
    finally:
        file.write_text(before)
    assert rows_since(opened, loaded, stream_of(loaded)) == []


def test_a_changed_general_text_is_not_audited_in_silence(adapter: Path) -> None:
    opened, recipe = Run.open(adapter), perdure.load_recipe(adapter.parent / "recipe.yaml")
    stream = stream_of(recipe)
    assert rows_since(opened, recipe, stream) == []
    changed = replace(stream, general=GeneralText(held_out=("another text",)))
    (told,) = rows_since(opened, recipe, changed)
    assert told.startswith("the general text has changed since this run began (version ")


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_a_changed_tokenizer_or_template_is_not_read_in_silence(
    adapter: Path, tmp_path: Path, name: str
) -> None:
    """Of the base and of the checkpoint, which brings the template it was trained with."""
    recipe = adapter.parent / "recipe.yaml"
    place = adapter / "checkpoints/task-2/model"
    for file, told in (
        (adapter.parent / "model" / name, f"base model, {name}: has other bytes since this run"),
        (place / name, f"error: {place / name}: damaged: "),
    ):
        if not file.exists():
            assert file.parent == place  # an adapter has its base's tokenizer
            continue
        before = file.read_bytes()
        file.write_bytes(before + b" ")
        try:
            for command_name, words in of_two(adapter, recipe, tmp_path / "out").items():
                done = command(*words)
                assert done.exit_code == 4, (command_name, file, done.output)
                assert told in done.stderr, command_name
        finally:
            file.write_bytes(before)


def test_a_damaged_adapter_is_read_nowhere(adapter: Path, tmp_path: Path) -> None:
    place = adapter / "checkpoints/task-2/model"
    file, out = place / "adapter_model.safetensors", tmp_path / "out"
    words = of_two(adapter, adapter.parent / "recipe.yaml", out)
    words |= {
        f"export {to}": ("export", adapter, "--to", to, "--out", out) for to in ("peft", "merged")
    }
    flip(file)
    try:
        for name, typed in words.items():
            done = command(*typed)
            assert done.exit_code == 4, (name, done.output)
            assert f"error: {file}: damaged: " in done.stderr, name
            assert not out.exists()
        for source in (adapter, place):
            with pytest.raises(RunError, match="damaged"):
                AdapterPool(str(adapter.parent / "model"), {"one": source})
        with pytest.raises(RunError, match="damaged"):
            AdapterPool.load(adapter)
    finally:
        flip(file)


def test_a_damaged_run_is_no_base_model(torn: tuple[Path, Path]) -> None:
    run, _ = torn
    assert resume(run).exit_code == 0
    load_base(ModelConfig(path=str(run)))
    file = run / "checkpoints/task-2/model/model.safetensors"
    flip(file)
    for path in (run, run / "checkpoints/task-2"):
        with pytest.raises(RunError, match=f"{re.escape(str(file))}: damaged"):
            load_base(ModelConfig(path=str(path)))


def test_rows_that_have_changed_are_not_scored_in_silence(adapter: Path) -> None:
    file = adapter.parent / "colour-test.jsonl"
    before = file.read_text()
    file.write_text(before.replace("test 0", "test zero"))
    try:
        told = command("eval", adapter)
        assert told.exit_code == 4
        assert "the rows of task colour have changed since this run began" in told.stderr
    finally:
        file.write_text(before)


def test_a_run_of_all_weights_is_scored_without_its_base(torn: tuple[Path, Path]) -> None:
    run, _ = torn
    assert resume(run).exit_code == 0
    shutil.rmtree(run.parent / "model")
    assert command("eval", run).exit_code == 0
    assert command("audit", run / "checkpoints/task-1", run).exit_code in (0, 1, 3)


def test_a_checkpoint_is_read_once_to_be_checked(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    before = seals.sha256

    def counted(path: Path, sync: bool = False) -> str:
        read.append(str(path))
        return before(path, sync)

    monkeypatch.setattr(seals, "sha256", counted)
    assert command("eval", adapter).exit_code == 0
    last = str(adapter / "checkpoints/task-2/model/adapter_model.safetensors")
    assert read.count(last) == 1


def test_a_lost_row_is_noticed(torn: tuple[Path, Path]) -> None:
    run, _ = torn
    file = run / "items" / "after-0-colour.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))
    told = resume(run)
    assert told.exit_code == 4
    assert f"error: {file}: damaged: lines that were written are gone or changed" in told.stderr
    file.write_text("".join(lines))
    assert resume(run).exit_code == 0


# --- what cannot be kept is told before the work, and not after hours of it


@pytest.mark.parametrize("command", ["predict", "audit"])
def test_a_place_that_cannot_be_written_is_told_before_a_model_is_loaded(
    adapter: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.reports.output.working", lambda *_: pytest.fail("it works"))
    monkeypatch.setattr("perdure.commands.audit.working", lambda *_: pytest.fail("it works"))
    (tmp_path / "file").write_text("x")
    (tmp_path / "new.jsonl").write_text(json.dumps({"text": "xq"}) + "\n")
    place = tmp_path / "file" / "a"
    words = {
        "predict": ("predict", adapter, tmp_path / "new.jsonl", "--out", place),
        "audit": ("audit", adapter.parent / "model", adapter, "--junit", place),
    }
    told = CliRunner().invoke(app, [*map(str, words[command])])
    assert told.exit_code == 2, told.output
    assert f"{place}: {tmp_path / 'file'} is a file, not a folder" in told.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "new.jsonl"]


def test_an_audit_is_shown_although_its_file_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = tmp_path / "items.jsonl"
    rows = [{"id": i, "score": 1.0} for i in range(40)]
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "", str(tmp_path / "a.xml"))

    monkeypatch.setattr("perdure.commands.audit.write_atomic", full)
    told = command("audit", items, items, "--scores", "--junit", tmp_path / "a.xml")
    assert told.exit_code == 5, told.output
    assert "a.xml: no space left on the disk" in told.stderr
    assert "verdict: " in told.stdout


def test_scores_that_a_run_cannot_take_are_told_before_they_are_made(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that it has already are shown although it may only be read."""
    other = write_recipe(tmp_path, adapter.parent / "model", general=None)
    other.write_text(other.read_text().replace('"name": "c', '"name": "other c'))

    def refuses(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "", str(adapter / "lock"))

    monkeypatch.setattr("filelock.FileLock.acquire", refuses)
    assert command("eval", adapter).exit_code == 0
    monkeypatch.setattr("perdure.commands.evaluate._score", lambda *_: pytest.fail("it scores"))
    told = command("eval", adapter, "--tasks", other)
    assert told.exit_code == 2, told.output
    assert "lock: the file system can only be read" in told.stderr
