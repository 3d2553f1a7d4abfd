"""Runs with rewards that are struck at a moment of their own: each goes on to the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rl_runs import fixed, write_recipe
from safetensors.torch import load_file
from typer.testing import CliRunner

import perdure
from perdure.cli import app
from perdure.engine.callbacks import ProgressCallback
from perdure.errors import TrainingError
from perdure.learners import rl, until
from perdure.learners.rl import RLTrainer
from perdure.learners.rollouts import Judge
from perdure.run import Run

pytestmark = pytest.mark.train

DROPS = {"model__tuning": "lora", "model__lora": {"dropout": 0.3}}
"""Adapters with dropout: a draw more or less from the random state changes the weights."""


def begun(folder: Path, model: Path, *overrides: str, **changes: Any) -> tuple[Any, Run]:
    recipe = perdure.load_recipe(write_recipe(folder, model, **changes), list(overrides))
    return recipe, Run.create(folder / "run", recipe)


def learned(folder: Path, model: Path, *overrides: str, **changes: Any) -> Run:
    recipe, run = begun(folder, model, *overrides, **changes)
    perdure.learn(recipe, run)
    return run


def same(one: Run, two: Run) -> bool:
    """Whether both tasks ended with the same weights, to the bit."""
    found = []
    for run in (one, two):
        files = sorted((run.path / "checkpoints").glob("task-?/model/*model.safetensors"))
        assert [file.parts[-3] for file in files[-2:]] == ["task-1", "task-2"]
        found.append([load_file(file) for file in files[-2:]])
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(*found, strict=True)
    )


def struck(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """End all, as a kill does, in place of a function's call number `call`."""
    made, calls = getattr(owner, name), []

    def ended(*args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return made(*args, **more)

    patch.setattr(owner, name, ended)


MOMENTS = {
    "it samples": (RLTrainer, "_generate_single_turn", 3),
    "it judges": (Judge, "reward", 3),
    "it computes a loss": (RLTrainer, "compute_loss", 3),
    "it has moved the weights": (RLTrainer, "_maybe_log_save_evaluate", 3),
    "it writes a checkpoint": (rl, "write_atomic", 3),
    "it would seal a checkpoint": (ProgressCallback, "on_save", 3),
    "its last step is made": (ProgressCallback, "on_train_end", 1),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Run:
    return learned(tmp_path_factory.mktemp("whole"), tiny_model_dir, save={"steps": 1}, **DROPS)


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while(
    moment: str, whole: Run, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = begun(tmp_path, tiny_model_dir, save={"steps": 1}, **DROPS)
    with monkeypatch.context() as patch:
        struck(patch, *MOMENTS[moment])
        with pytest.raises(KeyboardInterrupt):
            perdure.learn(recipe, run)
    assert not (run.path / "checkpoints" / "task-1").exists()
    perdure.learn(recipe, Run.open(run.path))
    assert same(whole, run)
    lines = [[(line["task"], line["step"]) for line in one.log_rows()] for one in (whole, run)]
    assert lines[0] == lines[1]


# --- a warm-up that ends by what it samples


class Looks:
    """Real looks, of which each is then said to have found a tenth of its step."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.step, self.written = 0, {}
        sampled, written, looked = until.sampled, until.sample_texts, until.Until.on_step_end

        def wrote(*args: Any, **more: Any) -> Any:
            found = written(*args, **more)
            ids = [one.ids for one in found]
            assert self.written.setdefault(self.step, ids) == ids  # also where it looks again
            return found

        def noted(*args: Any, **more: Any) -> dict[str, float]:
            return dict.fromkeys(sampled(*args, **more), self.step / 10)

        def begun(callback: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.step = state.global_step
            looked(callback, args, state, control, **more)

        patch.setattr(until, "sample_texts", wrote)
        patch.setattr(until, "sampled", noted)
        patch.setattr(until.Until, "on_step_end", begun)


@pytest.mark.parametrize("learn", ["sft", "rl"])
def test_a_task_that_ends_by_what_it_samples_is_killed(
    learn: str, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends at step 6 of 8, behind the checkpoint of step 4: in its second look, between two
    looks, and once it has ended, where it goes on from step 4 and ends again."""
    other = "rl" if learn == "sft" else "sft"
    overrides = (
        "stream.tasks.one.until={reach: {chrf: 0.6}, every: 2, rows: 3}",
        f"stream.tasks.one.learn={learn}", f"stream.tasks.two.learn={other}",
        "stream.tasks.two.max_new_tokens=8",
    )  # fmt: skip
    changes = {"rl__max_steps": 8, "rl__epochs": 2, "train__max_steps": 8, "train__epochs": 8,
               "save": {"steps": 4}, **DROPS}  # fmt: skip
    moments = ((until, "sampled", 2), (ProgressCallback, "on_step_end", 5),
               (until.Until, "on_train_end", 1))  # fmt: skip
    looks = Looks(monkeypatch)
    whole = learned(tmp_path / "whole", tiny_model_dir, *overrides, **changes)
    assert list(looks.written) == [2, 4, 6]
    lines = [(line["task"], line["step"]) for line in whole.log_rows()]
    assert lines == [*(("one", k) for k in range(1, 7)), *(("two", k) for k in range(1, 9))]
    for number, moment in enumerate(moments):
        recipe, run = begun(tmp_path / str(number), tiny_model_dir, *overrides, **changes)
        with monkeypatch.context() as patch:
            struck(patch, *moment)
            with pytest.raises(KeyboardInterrupt):
                perdure.learn(recipe, run)
        perdure.learn(recipe, Run.open(run.path))
        assert same(whole, run), moment
        assert lines == [(line["task"], line["step"]) for line in run.log_rows()]
        assert run.log_rows()[5]["until/chrf"] == 0.6


# --- what is no number


def test_a_run_goes_on_where_a_reward_gives_numbers_again(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server that was down. Where its code was changed to mend it, it is another reward: the
    task begins again, once its folder is deleted."""
    monkeypatch.setattr(RLTrainer, "_generate_single_turn", fixed)
    code = (
        "import math\nfrom pathlib import Path\n\nbatches = []\n\n\ndef late(samples):\n"
        "    batches.append(samples)\n    down = Path(__file__).with_name('down').exists()\n"
        "    values = [len(one.completion) % 5 / 4 for one in samples]\n"
        "    return [math.nan] * 8 if down and len(batches) > 2 else values\n"  # the first is tried
    )
    runs = []
    for number, name in enumerate(("whole", "down", "other")):
        # Modules of three names: one that was imported is kept.
        rewards = {"rl__rewards": ["chrf", f"own_rewards_3{number}:late"], "save": {"steps": 1}}
        path = write_recipe(tmp_path / name, tiny_model_dir, **rewards)
        own = path.with_name(f"own_rewards_3{number}.py")
        own.write_text(code)
        (down := path.with_name("down")).touch()
        if name == "whole":
            down.unlink()
        out = tmp_path / name / "run"
        begin = ["run", str(path), "--trust-remote-code", "--out", str(out)]
        again = ["resume", str(out), "--trust-remote-code"]
        told = CliRunner().invoke(app, begin)
        assert told.exit_code == (0 if name == "whole" else 5), told.output
        runs.append(Run.open(out))
        if name == "whole":
            continue
        down.unlink()
        if name == "other":
            own.write_text(code + "# mended\n")
            told = CliRunner().invoke(app, again)
            assert told.exit_code == 4, told.output
            said = " ".join(told.output.split())
            assert "cannot be gone on from: rewards.own_rewards_32:late.version" in said
            folder = out / "work" / "task-1" / "main"
            assert f"delete the folder {folder}: the task begins again" in said
            assert folder.is_dir()
        else:
            told = CliRunner().invoke(app, again)
            assert told.exit_code == 0, told.output
            assert same(runs[0], runs[-1])


def refused(recipe: Any, run: Run, told: str) -> None:
    """A run of broken numbers ends with this message, and nothing of its first task is kept."""
    with pytest.raises(TrainingError, match=told):
        perdure.learn(recipe, run)
    assert not (run.path / "checkpoints" / "task-1").exists()


def goes_on(recipe: Any, run: Run) -> None:
    perdure.learn(recipe, Run.open(run.path))
    assert Run.open(run.path).state == "finished"


def loss_is_nan(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
    return loss * torch.nan


def weight_is_nan(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
    """Of a weight that this loss, finite, was computed with before."""
    with torch.no_grad():
        next(trainer.model.parameters())[:] = torch.nan
    return loss.detach().requires_grad_()


@pytest.mark.parametrize("where", ["rl", "until"])
@pytest.mark.parametrize(
    ("broken", "log_steps", "told"),
    [
        (loss_is_nan, 1, "the loss is not finite at step 2"),
        (loss_is_nan, 9, "the loss is not finite at step 2"),
        (weight_is_nan, 9, "the model's predictions are not finite after step 2"),
    ],
)
def test_what_is_not_finite_stops_the_run(
    broken: Any, log_steps: int, told: str, where: str, tmp_path: Path, tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also between two lines of the log, where the next completions could not be sampled; from
    what was saved before it the run goes on."""
    from perdure.engine.trainer import PerdureTrainer

    kind = RLTrainer if where == "rl" else PerdureTrainer
    overrides = [] if where == "rl" else [
        "stream.tasks.one.until={reach: {format: 1}, every: 2, rows: 3}",
        "stream.tasks.one.learn=sft", "stream.tasks.two.learn=rl",
        "stream.tasks.two.max_new_tokens=8",
    ]  # fmt: skip
    recipe, run = begun(
        tmp_path, tiny_model_dir, *overrides, train__log_steps=log_steps, train__max_steps=4,
        train__epochs=4,
    )  # fmt: skip
    computed = kind.compute_loss

    def spoilt(self: Any, *args: Any, **more: Any) -> Any:
        loss = computed(self, *args, **more)
        return broken(self, loss) if self.state.global_step == 1 else loss

    with monkeypatch.context() as patch:
        patch.setattr(kind, "compute_loss", spoilt)
        refused(recipe, run, f"task one: {told} .learning rate")
    goes_on(recipe, run)


@pytest.mark.parametrize("saved", [1, 9], ids=["inside the task", "at its end"])
def test_weights_that_an_update_broke_are_not_kept(
    saved: int, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last loss was finite, so that nothing else would tell before the scores."""
    from perdure.engine.trainer import PerdureTrainer

    recipe, run = begun(
        tmp_path, tiny_model_dir, "stream.tasks.one.learn=sft", "stream.tasks.two.learn=rl",
        "stream.tasks.two.max_new_tokens=8", train__log_steps=9, train__max_steps=4,
        train__epochs=4, save__steps=saved,
    )  # fmt: skip
    ended = PerdureTrainer._maybe_log_save_evaluate

    def broke(self: Any, *args: Any, **more: Any) -> None:
        if self.state.global_step == 4:
            with torch.no_grad():
                next(self.model.parameters())[0] = torch.inf
        ended(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(PerdureTrainer, "_maybe_log_save_evaluate", broke)
        refused(recipe, run, r"the weights of .* are not finite after step 4")
    goes_on(recipe, run)
