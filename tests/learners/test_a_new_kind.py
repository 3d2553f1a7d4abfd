"""A kind of task from another package learns, is scored and resumes without an edit in Perdure."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import fork_server, write_recipe
from torch import Tensor
from typer.testing import CliRunner

import perdure
from perdure import GeneralText, Task, TaskStream
from perdure.cli import app
from perdure.engine.method_state import STATE, load_state
from perdure.errors import RecipeError, UsageError
from perdure.learners import build, learner_class
from perdure.learners.listener import Folders
from perdure.methods.joint import Joint
from perdure.models.weights import trainable
from perdure.prepare import chosen_methods
from perdure.protocol.method import Method
from perdure.recipe.schema import Recipe
from perdure.run import Run

pytestmark = pytest.mark.train

SOURCE = Path(__file__).parent / "toy_package" / "toy_kind.py"
METHODS: dict[str, Any] = {
    "replay": {"name": "replay", "ratio": 0.5},
    "ewc": {"name": "ewc", "lam": 50, "rows": 6},
    "joint": {"name": "joint"},
}


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The file as a package `toy_kind`, installed as pip would leave it."""
    site = tmp_path_factory.mktemp("site")
    shutil.copy(SOURCE, site)
    info = site / "toy_kind-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-kind\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[perdure.kinds]\ntoy = toy_kind:KIND\n")
    sys.path.insert(0, str(site))
    yield
    sys.path.remove(str(site))
    sys.modules.pop("toy_kind", None)


def two_tasks() -> TaskStream:
    """Two tasks of two classes each, told apart by a word."""
    tasks = []
    for number, words in enumerate((("red", "blue"), ("cold", "warm"))):
        rows = [
            {
                "text": f"{words[i % 2]} thing {number} {i}{' and' * (i % 5)}",
                "class": 2 * number + i % 2,
            }
            for i in range(32)
        ]  # fmt: skip
        tasks.append(
            Task(
                name=f"task {number + 1}", train=rows[:24], validation=(), test=rows[24:],
                metric="exact_match", kind="toy", version=str(number),
            )
        )  # fmt: skip
    return TaskStream(tuple(tasks), GeneralText())


def recipe_of(folder: Path, model: Path, method: Any, **changes: Any) -> Recipe:
    path = write_recipe(
        folder, model, method=method, general=None, save={"steps": 4},
        train__learning_rate=1e-2, **changes,
    )  # fmt: skip
    return perdure.load_recipe(path)


def learn(out: Path, recipe: Path, die: bool) -> None:
    """Begin or go on; `die`: by SIGKILL after five steps of the second task."""
    run = Run.open(out) if out.exists() else Run.create(out, perdure.load_recipe(recipe))
    log = run.log

    def log_and_die(line: Any) -> None:
        log(line)
        if line["after"] == 2 and line["step"] == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    if die:
        run.log = log_and_die  # type: ignore[method-assign]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the process that dies
    try:
        perdure.learn(run.recipe, run, stream=two_tasks())
    finally:
        torch.set_num_threads(threads)


def learn_and_die(out: Path, recipe: Path) -> int | None:
    """`learn` in a process of its own, which dies; its exit code."""
    process = fork_server().Process(target=learn, args=(out, recipe, True))
    process.start()
    process.join(250)
    return process.exitcode


def weights(run: Path, after: int = 2) -> dict[str, Tensor]:
    return load_file(run / f"checkpoints/task-{after}/model/model.safetensors")


@pytest.mark.unit
def test_it_is_short() -> None:
    assert len(SOURCE.read_text().splitlines()) < 100


@pytest.mark.process
@pytest.mark.parametrize("method", METHODS)
def test_a_stream_with_a_method_and_killed_within_task_2(
    tiny_model_dir: Path, tmp_path: Path, method: str
) -> None:
    recipe = recipe_of(tmp_path, tiny_model_dir, METHODS[method]).folder / "recipe.yaml"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert learn_and_die(killed, recipe) == -signal.SIGKILL
    assert Run.open(killed).state == "interrupted"
    assert [p.name for p in sorted(killed.glob("work/task-2/main/checkpoint-*"))] != []
    learn(killed, recipe, False)
    learn(whole, recipe, False)
    assert "from checkpoint-4" in (killed / "perdure.log").read_text()

    for after in (1, 2):
        found, resumed = weights(whole, after), weights(killed, after)
        heads = {n for n in found if n.endswith("weight") and n.startswith("heads.")}
        assert heads == {f"heads.parts.{i}.weight" for i in range(after)}
        assert found.keys() == resumed.keys()
        assert all(torch.equal(found[name], resumed[name]) for name in found)

    run = Run.open(whole)
    lines = [{**s, "seconds": 0} for s in run.scores()]
    assert lines == [{**s, "seconds": 0} for s in Run.open(killed).scores()]
    assert [(s["after"], s["task"]) for s in lines] == [
        (1, "task 1"), (2, "task 1"), (2, "task 2"),
    ]  # fmt: skip
    for line in lines:
        assert set(line["measures"]) == {"exact_match", "accuracy_within_task"}
        assert line["measures"]["exact_match"] == line["score"]
        assert line["measures"]["accuracy_within_task"] >= line["score"]
    matrix = run.matrix().array()
    assert torch.tensor(matrix).isnan().tolist() == [[True, True], [False, True], [False, False]]
    assert matrix[1, 0] == 1.0
    assert run.matrix().summary()["forgetting"] == matrix[1, 0] - matrix[2, 0]
    state = load_state(whole / "checkpoints/task-2" / STATE)[0]
    if method == "replay":
        assert {entry["task"] for entry in state["kept"]} == {"task 1", "task 2"}
        assert all(r["method/replay"] > 0 for r in run.log_rows() if r["after"] == 2)
    if method == "ewc":
        assert all(state["fisher"][n].max() > 0 for n in ("body.1.weight", *heads))
        assert any(r.get("method/ewc_penalty", 0) > 0 for r in run.log_rows() if r["after"] == 2)
    if method != "ewc":  # its penalty is too weak for so few rows to say so of it
        assert matrix[2].mean() > 0.9


def learner_of(tmp_path: Path, recipe: Recipe, *methods: Method, **changes: Any) -> Any:
    stream = replace(two_tasks(), **changes)
    chosen = methods or chosen_methods(recipe, stream)
    folders = Folders.below(tmp_path / "run")
    return build(recipe, stream, methods=chosen, precision="fp32", folders=folders)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A recipe with files of the toy kind: two tasks that are learned, and one that is not."""
    folder = tmp_path_factory.mktemp("shop")
    for task in two_tasks():
        for split in ("train", "test"):
            lines = (json.dumps(row) for row in getattr(task, split))
            (folder / f"{task.name}-{split}.jsonl").write_text("".join(f"{x}\n" for x in lines))
    tasks = [
        {"name": t.name, "format": "toy", "train": f"{t.name}-train.jsonl",
         "test": f"{t.name}-test.jsonl", "validation_share": 0}
        for t in two_tasks()
    ]  # fmt: skip
    tasks.append({"name": "again", "format": "toy", "learn": "none", "test": tasks[0]["test"]})
    return write_recipe(
        folder, tiny_model_dir, stream={"tasks": tasks}, general=None, method="sequential",
        train__learning_rate=1e-2,
    )  # fmt: skip


def command(*args: str, code: int = 0) -> str:
    found = CliRunner().invoke(app, args, prog_name="perdure")
    assert found.exit_code == code, found.output
    return found.stdout if code == 0 else found.stderr


def test_the_commands_take_its_files(shop: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    planned = json.loads(command("run", str(shop), "--check", "--json"))
    assert [t["steps"] for t in planned["tasks"]] == [12, 12, 0]
    assert [t["train_rows"] for t in planned["tasks"]] == [24, 24, 0]
    assert planned["seconds"] is None
    told = command("run", str(shop), "--check")
    assert "time and memory of tasks of kind toy are not known" in told

    run = tmp_path / "run"
    command("run", str(shop), "--out", str(run), "--json")
    matrix = perdure.Run.open(run).matrix()
    assert matrix.learned == (True, True, False)
    assert matrix.left_out == ("again",)
    scores = matrix.array()
    assert (scores[1:, 2] == scores[1:, 0]).all()  # its rows are those of the first task
    assert matrix.summary()["forgetting"] == scores[1:3, 0].max() - scores[3, 0]
    assert matrix.summary()["average_accuracy"] == scores[3, :2].mean()
    for after in ("1", "3"):
        again = json.loads(command("eval", str(run), "--after", after, "--json"))["scores"]
        assert [s["score"] for s in again] == [s["recorded"] for s in again] != []
        assert again[0]["measures"]["accuracy_within_task"] == 1.0
    told = command("audit", str(tiny_model_dir), str(run), "--tasks", str(shop), code=2)
    assert "task 1 is of kind toy, whose rows have no prompt and no answer" in told


def test_words_for_learning_are_the_kinds(shop: Path) -> None:
    for override, told in (
        ("stream.tasks.0.learn=rl", 'stream.tasks.0.learn: "rl" is none of sft, none'),
        ("stream.tasks.2.learn=sft", "stream.tasks.2.train: is required and missing"),
    ):
        with pytest.raises(RecipeError, match=re.escape(told)):
            perdure.load_recipe(shop, [override])


def test_joint_starts_from_heads_as_first_drawn(tiny_model_dir: Path, tmp_path: Path) -> None:
    starts: list[dict[str, Tensor]] = []

    class Watched(Joint):
        def train_data(self, ctx: Any, data: Any) -> Any:
            starts.append(ctx.snapshot())
            return super().train_data(ctx, data)

    watched = Watched(Joint.Config())
    learner = learner_of(tmp_path, recipe_of(tmp_path, tiny_model_dir, "joint"), watched)
    learner.fit(0)
    moved = {n: p.detach().clone() for n, p in trainable(learner.model).items()}
    learner.fit(1)
    first, second = starts
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert set(second) - set(first) == {"heads.parts.1.weight", "heads.parts.1.bias"}
    assert not torch.equal(moved["heads.parts.0.weight"], second["heads.parts.0.weight"])


def test_heads_learn_at_their_own_rate(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, tiny_model_dir, "sequential", train__max_steps=1)
    learner = learner_of(tmp_path, recipe)
    learner.fit(0)
    start = learner.base_weights()
    moved = {n: (p - start[n]).abs().max() for n, p in trainable(learner.model).items()}
    # Adam's first step is the rate itself, wherever there is a gradient.
    torch.testing.assert_close(moved["body.1.weight"], torch.tensor(0.01), rtol=1e-3, atol=0)
    torch.testing.assert_close(moved["heads.parts.0.weight"], torch.tensor(0.1), rtol=1e-3, atol=0)


def test_what_the_kind_lacks_is_refused_by_name(tiny_model_dir: Path, tmp_path: Path) -> None:
    stream, recipe = two_tasks(), recipe_of(tmp_path, tiny_model_dir, "ewc")
    with pytest.raises(UsageError, match="kind toy have no measure of general ability"):
        learner_of(tmp_path, recipe, general=GeneralText((), ("some text",)))
    one, two = stream.tasks
    for changed, message in (
        (replace(two, kind="generation"), "task 1 is of kind toy, task 2 of kind generation"),
        (replace(two, learn="rl"), "task 2: learn: rl: tasks cannot be learned in this way"),
    ):
        with pytest.raises(UsageError, match=message):
            learner_class(TaskStream((one, changed)))
    with pytest.raises(UsageError, match='"picture" is none of generation, classification, toy'):
        learner_class(TaskStream((replace(one, kind="picture"),)))
    assert learner_class(stream).__module__ == "toy_kind"


def test_a_task_that_is_only_scored(tiny_model_dir: Path, tmp_path: Path) -> None:
    stream = two_tasks()
    stream = replace(stream, tasks=(stream.tasks[0], replace(stream.tasks[1], learn="none")))
    recipe = recipe_of(tmp_path, tiny_model_dir, "rewind")
    with pytest.raises(UsageError, match="task 1 has none"):
        chosen_methods(recipe, stream)
    recipe = recipe_of(tmp_path, tiny_model_dir, ["ewc", "replay"])
    run = Run.create(tmp_path / "run", recipe)
    perdure.learn(recipe, run, stream=stream)
    one, two = weights(run.path, 1), weights(run.path, 2)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert "task 2: is only scored" in (run.path / "perdure.log").read_text()
    assert [(s["after"], s["task"]) for s in run.scores()] == [(1, "task 1"), (2, "task 1")]
    assert {row["after"] for row in run.log_rows()} == {1}


TERMS: dict[str, tuple[dict[str, Any], str]] = {
    "lwf": ({"name": "lwf"}, "lwf"),
    "gere": ({"name": "gere", "insert": 2, "label_weight": 0, "max_tokens": 12}, "gere_margin"),
}
"""Methods that run the kind's batches and rows again, and the loss that each adds."""


@pytest.mark.parametrize("method", TERMS)
def test_each_extra_pass_gets_all_that_the_model_needs(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    options, term = TERMS[method]
    stream = replace(two_tasks(), general=GeneralText(("one text of many words", "a short one")))
    sizes: list[int] = []

    def encode_text(learner: Any, text: str, max_tokens: int, special: bool) -> dict[str, Any]:
        ids = learner.tokenizer(text)["input_ids"][:max_tokens]
        sizes.append(len(ids))
        return {"input_ids": ids, "labels": -100, "size": len(ids) / 10}

    monkeypatch.setattr(learner_class(stream), "encode_text", encode_text)
    recipe = recipe_of(tmp_path, tiny_model_dir, options, train__max_steps=2)
    run = Run.create(tmp_path / "run", recipe)
    perdure.learn(recipe, run, stream=stream)
    found = {(r["after"], r["step"]): r[f"method/{term}"] for r in run.log_rows()}
    assert found[1, 1] == 0.0  # the model as it was before
    assert found[1, 2] > 0
    assert (len(sizes) == 2 * 2) == (method == "gere")
