"""A run killed with SIGKILL at any moment resumes and ends with an undisturbed one's scores."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import Started, finish, scores, start, write_recipe

from perdure.errors import RunError
from perdure.files import append_line, read_lines, write_atomic
from perdure.run import Run
from perdure.run.pins import pin
from perdure.seals import is_sealed, newest_sealed, seal

pytestmark = pytest.mark.process

METHODS = [{"name": "ewc", "lam": 5, "rows": 4}, {"name": "replay"}, {"name": "gere"}]


@pytest.fixture(scope="module")
def recipe(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods at once, all with state, and a checkpoint each 3 steps of 12."""
    folder = tmp_path_factory.mktemp("resume")
    return write_recipe(folder, tiny_model_dir, method=METHODS, save={"steps": 3})


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> dict[tuple[int, str], float]:
    out = recipe.parent / "undisturbed"
    finish(start(["run", str(recipe), "--out", str(out)]))
    found = scores(out)
    assert len(found) == 9
    return found


def log_lines(run: Path, after: int) -> int:
    return sum(row["after"] == after for row in read_lines(run / "log.jsonl"))


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "while training the first task": lambda run: log_lines(run, 1) >= 5,
    "while a checkpoint inside a task is written": lambda run: any(
        not is_sealed(p) for p in run.glob("work/task-1/main/checkpoint-*")
    ),
    "while a task's checkpoint is written": lambda run: (
        run / "checkpoints/task-1.part/model/config.json"
    ).exists(),
    "between the tasks": lambda run: is_sealed(run / "checkpoints/task-1"),
    "while training the second task": lambda run: log_lines(run, 2) >= 4,
}


def kill_when(started: Started, run: Path, moment: Callable[[Path], bool]) -> None:
    until = time.monotonic() + 200
    while not moment(run):
        assert started.alive(), started.output.read_text()[-3000:]
        assert time.monotonic() < until, "the moment never came"
        time.sleep(0.001)
    started.kill()


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_ends_with_the_same_scores(
    recipe: Path, undisturbed: dict[tuple[int, str], float], moment: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    kill_when(start(["run", str(recipe), "--out", str(run)]), run, MOMENTS[moment])
    assert Run.open(run).state == "interrupted"
    finish(start(["resume", str(run)]))
    assert Run.open(run).state == "finished"
    assert scores(run) == undisturbed


def test_killed_again_and_again(
    recipe: Path, undisturbed: dict[tuple[int, str], float], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    kill_when(start(["run", str(recipe), "--out", str(run)]), run, lambda r: log_lines(r, 1) >= 4)
    kill_when(start(["resume", str(run)]), run, lambda r: log_lines(r, 1) >= 10)
    kill_when(start(["resume", str(run)]), run, lambda r: log_lines(r, 2) >= 7)
    finish(start(["resume", str(run)]))
    assert scores(run) == undisturbed


def test_experts_of_a_mixture_come_back_inside_a_task(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Their family saves each expert apart, under other names than the parameters have."""
    import torch
    from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MixtralForCausalLM(
            MixtralConfig(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32,
                num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                num_local_experts=4, max_position_embeddings=512,
                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
    model.save_pretrained(tmp_path / "mixtral")
    tokenizer.save_pretrained(tmp_path / "mixtral")
    recipe = write_recipe(tmp_path / "shop", tmp_path / "mixtral", save={"steps": 3})
    finish(start(["run", str(recipe), "--out", str(tmp_path / "whole")]))
    run = tmp_path / "run"
    kill_when(start(["run", str(recipe), "--out", str(run)]), run, lambda r: log_lines(r, 1) >= 5)
    finish(start(["resume", str(run)]))
    assert scores(run) == scores(tmp_path / "whole")


def test_same_seed_same_scores_and_two_runs_at_once(
    recipe: Path, undisturbed: dict[tuple[int, str], float], tmp_path: Path
) -> None:
    both = [start(["run", str(recipe), "--out", str(tmp_path / n)]) for n in "ab"]
    for process in both:
        finish(process)
    assert scores(tmp_path / "a") == scores(tmp_path / "b") == undisturbed


def test_a_run_in_use_is_refused_and_an_existing_one_never_overwritten(
    recipe: Path, tmp_path: Path
) -> None:
    from perdure.prepare import load_recipe

    run = Run.create(tmp_path / "run", load_recipe(recipe))
    with run.lock():
        assert run.state == "running"
        output = finish(start(["resume", str(run.path)]), code=4)
        assert "in use by process" in output
    with pytest.raises(RunError, match="never overwritten"):
        Run.create(tmp_path / "run", load_recipe(recipe))


def test_general_text_that_changed_is_told(recipe: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from perdure.prepare import load_recipe
    from perdure.streams import build_stream
    from perdure.streams.task import GeneralText

    read = load_recipe(recipe)
    run = Run.create(tmp_path / "run", read)
    stream = build_stream(read.stream, read.general, read.folder, read.seed)
    pin(run, run.recipe, stream)
    pin(run, run.recipe, stream)
    changed = replace(stream, general=GeneralText(("other",), stream.general.held_out))
    with pytest.raises(RunError, match="the general text has changed since this run began"):
        pin(run, run.recipe, changed)


def test_a_run_waits_for_a_reader_of_its_lock(recipe: Path, tmp_path: Path) -> None:
    import threading

    from filelock import FileLock

    from perdure.prepare import load_recipe

    run = Run.create(tmp_path / "run", load_recipe(recipe))
    with run.lock():
        pass
    reader = FileLock(run.path / "lock", thread_local=False)
    reader.acquire()
    threading.Timer(0.1, reader.release).start()
    with run.lock():
        assert run.state == "running"


def test_a_lock_tells_its_holder_and_goes_with_a_killed_one(recipe: Path, tmp_path: Path) -> None:
    from perdure.prepare import load_recipe

    run = Run.create(tmp_path / "run", load_recipe(recipe))
    (run.path / "lock").write_text("4711", "utf-8")  # as older runs left it, with the number inside
    assert run.state == "interrupted"
    holding = (
        "import sys, time\nfrom perdure.run import Run\n"
        "with Run.open(sys.argv[1]).lock():\n    print('held', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holding, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    for _ in range(3):  # asking for the state takes nothing from the holder
        assert run.state == "running"
    with pytest.raises(RunError, match=rf"in use by process {process.pid}\n"), run.lock():
        raise AssertionError("two processes hold one run")
    process.kill()
    process.wait()
    assert run.state == "interrupted"
    with run.lock():
        assert run.state == "running"
        assert (run.path / "lock.pid").read_text("utf-8") == str(os.getpid())
    run.finish()
    assert run.state == "finished"


def test_the_state_of_a_run_that_may_only_be_read(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import filelock

    from perdure.prepare import load_recipe

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    run = Run.create(tmp_path / "run", load_recipe(recipe))
    with run.lock():
        monkeypatch.setattr(filelock.FileLock, "acquire", refused)
        assert run.state == "running"
    assert run.state == "interrupted"


def test_a_folder_counts_only_when_all_its_files_are_there_in_full(tmp_path: Path) -> None:
    old, new = tmp_path / "checkpoint-3", tmp_path / "checkpoint-10"
    for folder in (old, new):
        write_atomic(folder / "weights", "0123456789")
        seal(folder, {"step": 1})
    assert newest_sealed(tmp_path) == new
    (new / "weights").write_text("01234")
    assert not is_sealed(new)
    assert newest_sealed(tmp_path) == old


def test_a_torn_last_line_is_skipped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    append_line(file, {"a": 1})
    with open(file, "a", encoding="utf-8") as handle:
        handle.write('{"a": 2')
    append_line(file, {"a": 3})
    assert read_lines(file) == [{"a": 1}, {"a": 3}]
    assert file.read_text().count("\n") == 2  # what was torn is cut off
