"""SIGTERM and SIGUSR1, which clusters send before the end: saved at the next step, and resumed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import class_runs
import pytest
import torch
from learners import rl_runs
from safetensors.torch import load_file
from tiny_runs import finish, start, write_recipe
from typer.testing import CliRunner

import perdure
from perdure import stopping
from perdure.cli import app
from perdure.engine.saving import SaveOrStop
from perdure.reports import NullDisplay
from perdure.run import Run
from perdure.seals import newest_sealed
from perdure.stopping import Stopped

# --- the signals alone


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.unit
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR1", 138)])
def test_at_any_other_time_it_ends_the_work_at_once(name: str, code: int) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with stopping.heard(), pytest.raises(Stopped, match=f"^stopped by {name}$") as told:
        send(number)
    assert told.value.exit_code == code  # a shell's for a process that the signal ended
    assert signal.getsignal(number) is before


@pytest.mark.unit
def test_held_it_waits() -> None:
    done = []

    def work() -> None:
        with stopping.held():
            send(signal.SIGUSR1)
            send(signal.SIGTERM)  # of two the first counts
            done.append(stopping.wanted())

    with stopping.heard(), pytest.raises(Stopped, match="SIGUSR1"):
        work()
    assert done == [signal.SIGUSR1]
    assert stopping.wanted() == 0  # a later run in this process is not stopped


@pytest.mark.unit
def test_what_may_be_broken_off_does_not_wait() -> None:
    done = []

    def work(early: bool) -> None:
        with stopping.held():
            if early:
                send(signal.SIGTERM)
            done.append("held")
            with stopping.at_once():
                if not early:
                    send(signal.SIGTERM)
                done.append("never")

    for early in (True, False):
        with stopping.heard(), pytest.raises(Stopped):
            work(early)
    assert done == ["held", "held"]


@pytest.mark.unit
def test_a_handler_of_the_caller_stays() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with stopping.heard():
            send(signal.SIGTERM)
            with pytest.raises(Stopped):
                send(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


@pytest.mark.unit
def test_commands_that_make_no_run_are_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """`eval`, `audit` and the others: it ends at once, with the line that the work begins anew."""
    from perdure.reports.output import working

    def work() -> None:
        with working():
            send(signal.SIGTERM)

    with pytest.raises(Stopped) as told:
        work()
    assert told.value.args == ("run the command again",)
    # Of several processes one may wait in C, where no handler runs: torchrun must end it.
    monkeypatch.setenv("WORLD_SIZE", "2")
    with working():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.unit
def test_in_a_thread_nothing_is_heard() -> None:
    """Python calls handlers in the main thread alone, and lets no other one set them."""
    found: list[Any] = []

    def work() -> None:
        with stopping.heard():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


@pytest.mark.unit
def test_a_helper_that_was_forked_ends_as_any_other() -> None:
    """A worker of a data loader is ended by SIGTERM too, and must not take it for its own."""
    with stopping.heard():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM


@pytest.mark.unit
def test_it_saves_each_so_many_minutes_and_where_a_run_can_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from types import SimpleNamespace

    now = [0.0]
    monkeypatch.setattr("perdure.engine.saving.time.monotonic", lambda: now[0])
    session: Any = SimpleNamespace(task=SimpleNamespace(name="colour"))
    callback = SaveOrStop(session, torch.device("cpu"), minutes=2, every=3)
    state = SimpleNamespace(global_step=0, max_steps=12)
    callback.on_train_begin(None, state, None)
    saved = []
    for state.global_step in range(1, 13):
        now[0] += 50
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        callback.on_step_end(None, state, control)
        if control.should_save:
            saved.append(state.global_step)
            callback.on_save()
    # 150 s at step 3; then 300 s at 6, and so on: each first step that is a multiple of 3 and two
    # minutes after the last one.
    assert saved == [3, 6, 9, 12]


# --- runs that are stopped


def end_of(run: Path) -> tuple[Any, ...]:
    """Scores, and all weights of the last checkpoint."""
    opened = Run.open(run)
    scores = [(s["kind"], s["after"], s.get("task"), s["score"]) for s in opened.scores()]
    _, folder = opened.last_checkpoint()
    assert folder is not None
    files = sorted((folder / "model").glob("*.safetensors"))
    weights = {
        (f.name, name): tensor.numpy().tobytes()
        for f in files
        for name, tensor in load_file(f).items()
    }
    return sorted(scores, key=str), weights


class Signals(NullDisplay):
    """Sends a signal to this process when the task and step, or the scoring, is reached."""

    def __init__(self, number: int, task: str, step: int | None) -> None:
        super().__init__()
        self.number, self.at = number, (task, step)

    def training(self, method: str, task: str, step: int, *rest: Any, **more: Any) -> None:
        if (task, step) == self.at:
            self.at = ("", None)
            os.kill(os.getpid(), self.number)

    def scoring(self, method: str, task: str, done: int, total: int) -> None:
        if (task, None) == self.at:
            self.at = ("", -1)
            os.kill(os.getpid(), self.number)


def of_text(folder: Path, model: Path) -> Path:
    return write_recipe(
        folder, model, gauges={"every": 0}, train__max_steps=4, train__micro_batch_size=2,
        method=[{"name": "ewc", "rows": 4}, {"name": "replay"}],
    )  # fmt: skip


def of_classes(folder: Path, model: Path) -> Path:
    """SEQ* warms up by heads alone, on features, and then trains all; later bodies are frozen."""
    encoder = class_runs.save_encoder(folder / "encoder")
    return class_runs.write_class_recipe(folder, encoder)


def of_rewards(folder: Path, model: Path) -> Path:
    """Two steps on the same completions: it goes on only where new ones are written."""
    return rl_runs.write_recipe(
        folder, model, rl__iterations=2, train__micro_batch_size=4, rl__clip=0.1
    )


STOPS: dict[str, tuple[Callable[[Path, Path], Path], list[tuple[str, int | None, str]]]] = {
    "text": (of_text, [
        ("colour", 2, "saved after step 3 of 4 of task colour"),
        ("count", 3, "saved after step 4 of 4 of task count"),
        ("count", None, ""),
    ]),
    "classes": (of_classes, [
        ("task 1", 2, "saved after step 3 of 4 of task 1"),
        ("task 2", 1, "saved after step 2 of 8 of task 2"),
    ]),
    "rewards": (of_rewards, [("one", 2, "saved after step 4 of 4 of task one")]),
}  # fmt: skip


@pytest.mark.train
@pytest.mark.parametrize("kind", STOPS)
def test_stopped_and_resumed_ends_the_same(
    kind: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perdure.learners.rl import RLTrainer

    monkeypatch.setattr(RLTrainer, "_generate_single_turn", rl_runs.fixed)
    write, stops = STOPS[kind]
    recipe = perdure.load_recipe(write(tmp_path, tiny_model_dir))
    perdure.learn(recipe, whole := Run.create(tmp_path / "whole", recipe))
    run = Run.create(tmp_path / "my run", recipe)
    for number, (task, step, said) in zip((15, 10, 15), stops, strict=False):
        with pytest.raises(Stopped) as told:
            perdure.learn(recipe, run, display=Signals(number, task, step))
        assert told.value.number == number
        assert told.value.said == said
        assert told.value.args == (f"resume with: perdure resume '{run.path}'",)
        assert run.state == "interrupted"
        if said:
            *_, folder = [p for p in sorted(run.path.glob("work/*/*")) if newest_sealed(p)]
            found = newest_sealed(folder)
            assert found is not None
            assert f"step {found.name.split('-')[1]} " in said
    perdure.learn(recipe, run)
    assert end_of(run.path) == end_of(whole.path)
    # What it cost is counted over all processes, and not that of the last one alone.
    assert counts_of(run.path) == counts_of(whole.path)


def counts_of(run: Path) -> dict[tuple[int, str], float]:
    """What was found at tasks' ends, but the seconds, which are never alike."""
    facts = Run.open(run).facts()
    assert all(fact["value"] > 0 for fact in facts if fact["name"] == "seconds")
    return {(f["after"], f["name"]): f["value"] for f in facts if f["name"] != "seconds"}


@pytest.mark.unit
def test_what_a_task_cost_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 seconds and 7 passes to a checkpoint; the next process spends 5 before it goes on, which
    is not counted, and 20 and 4 passes after."""
    from types import SimpleNamespace

    from perdure.learners.spent import Spent
    from perdure.seals import seal

    now, body = SimpleNamespace(seconds=100.0), SimpleNamespace(passes=2)
    monkeypatch.setattr("perdure.learners.spent.time.monotonic", lambda: now.seconds)

    def passed(seconds: float, passes: int) -> None:
        now.seconds += seconds
        body.passes += passes

    spent = Spent(lambda: {"body_passes": body.passes})
    passed(30, 7)
    assert spent.now() == {"seconds": 30, "body_passes": 7}
    (tmp_path / "weights").write_text("x")
    seal(tmp_path, {"step": 3, "spent": spent.now()})
    again = Spent(lambda: {"body_passes": body.passes})
    passed(5, 1)
    again.go_on(tmp_path)
    passed(20, 4)
    assert again.now() == {"seconds": 50, "body_passes": 11}


@pytest.mark.train
def test_heads_alone_are_saved_too(tmp_path: Path) -> None:
    """Later tasks of SEQ* train a head on features, in a loop of its own."""
    from perdure.learners.heads_only import HeadsTrainer

    recipe = perdure.load_recipe(of_classes(tmp_path, Path()))
    run = Run.create(tmp_path / "run", recipe)
    seen: list[Any] = []

    real = HeadsTrainer._run_epoch

    def epoch(self: Any, **of: Any) -> None:
        seen.append(self)
        real(self, **of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeadsTrainer, "_run_epoch", epoch)
        with pytest.raises(Stopped, match="saved after step 2 of 8 of task 3"):
            perdure.learn(recipe, run, display=Signals(signal.SIGTERM, "task 3", 1))
    assert seen[-1].state.global_step == 2


@pytest.mark.train
def test_at_a_tasks_end_its_checkpoint_is_written_first(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perdure.learners.generation import GenerationLearner

    real = GenerationLearner.save_weights

    def slow(self: Any, folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        real(self, folder)

    path = of_text(tmp_path, tiny_model_dir)
    monkeypatch.setattr(GenerationLearner, "save_weights", slow)
    told = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "run")])
    assert told.exit_code == 143, told.output
    resume = f"  resume with: perdure resume {tmp_path / 'run'}\n"
    assert told.stderr.endswith(f"\nstopped by SIGTERM\n{resume}")
    assert Run.open(tmp_path / "run").checkpoints() == [1]


@pytest.mark.train
def test_minutes_save_inside_a_task(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = of_text(tmp_path, tiny_model_dir)
    recipe = perdure.load_recipe(path, ["save.minutes=1e-6"])  # shorter than a step

    class Stop(Exception):
        pass

    class Stops(NullDisplay):
        def training(self, method: str, task: str, step: int, *rest: Any, **more: Any) -> None:
            if (task, step) == ("colour", 4):
                raise Stop

    run = Run.create(tmp_path / "run", recipe)
    with pytest.raises(Stop):
        perdure.learn(recipe, run, display=Stops())
    folders = sorted(p.name for p in (run.path / "work/task-1/main").iterdir())
    assert folders == ["checkpoint-2", "checkpoint-3"]


@pytest.mark.unit
def test_a_sharded_model_has_no_minutes(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, tmp_path / "model", model__fsdp_size=2, save__minutes=5)
    with pytest.raises(perdure.errors.RecipeError, match=r"save\.minutes: a sharded model"):
        perdure.load_recipe(path)


@pytest.mark.process
def test_two_processes_stop_at_the_same_step(tiny_model_dir: Path, tmp_path: Path) -> None:
    """One of them is told; both save, and end."""
    import time

    path = write_recipe(tmp_path, tiny_model_dir, gauges={"every": 0}, general=None,
                        train__epochs=400)  # fmt: skip
    out = tmp_path / "run"
    started = start(["run", str(path), "--out", str(out)], processes=2)
    until = time.monotonic() + 200
    while not (out / "log.jsonl").exists():
        assert started.alive(), started.output.read_text()
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(started.processes[1].pid, signal.SIGTERM)
    asked = time.monotonic()
    text = finish(started, code=143)
    assert time.monotonic() - asked < 30
    assert "stopped by SIGTERM: saved after step" in text
    assert text.endswith(f"  resume with: perdure resume {out}\n")
    assert "Traceback" not in text
    assert newest_sealed(out / "work/task-1/main") is not None
