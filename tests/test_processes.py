"""Several processes give what one gives: DDP, FSDP2 (really sharded), and the launchers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_resume import kill_when, log_lines
from tiny_runs import finish, free_port, run, scores, start, start_call, write_recipe

from perdure.files import read_lines
from perdure.prepare import load_recipe
from perdure.run import Run

pytestmark = pytest.mark.process

METHODS = [{"name": "ewc", "lam": 5, "rows": 4}, {"name": "replay"}, {"name": "gere", "weight": 1}]
# Rounding differs with the order of sums; Adam makes a 1e-7 of it a 1e-4 in a dozen steps.
LOSS_TOLERANCE, PERPLEXITY_TOLERANCE = 2e-3, 2e-3


def recipe(folder: Path, model: Path, **changes: Any) -> Path:
    return write_recipe(
        folder, model, method=METHODS, train__learning_rate=1e-3, save={"steps": 3}, **changes
    )


@pytest.fixture(scope="module")
def one(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process, whose losses and scores the others must meet."""
    folder = tmp_path_factory.mktemp("one")
    run(["run", str(recipe(folder, tiny_model_dir)), "--out", str(folder / "run")])
    return folder / "run"


def _print_whether_imported() -> None:
    print("slow_imports" in sys.modules)


def test_processes_of_tests_start_with_all_slow_imports_done() -> None:
    """Else each spends ten seconds on them; the server is silent about what it cannot import."""
    assert finish(start_call(_print_whether_imported)) == "True\n"


def assert_same(two: Path, one: Path) -> None:
    rows, others = read_lines(one / "log.jsonl"), read_lines(two / "log.jsonl")
    assert len(rows) == len(others) == 24
    for a, b in zip(rows, others, strict=True):
        assert (a["after"], a["step"]) == (b["after"], b["step"])
        for key in (k for k in a if k == "loss" or k.startswith("method/")):
            assert b[key] == pytest.approx(a[key], rel=LOSS_TOLERANCE, abs=LOSS_TOLERANCE), key
    expected, found = scores(one), scores(two)
    assert set(found) == set(expected)
    for (after, task), value in expected.items():
        rel = PERPLEXITY_TOLERANCE if task == "general" else 0
        assert found[after, task] == pytest.approx(value, rel=rel, abs=1e-6), (after, task)


def test_two_ddp_processes_equal_one(one: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, tiny_model_dir)
    run(["run", str(path), "--out", str(tmp_path / "run")], processes=2)
    assert_same(tmp_path / "run", one)


def test_ddp_with_accumulation_equals_one(one: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, tiny_model_dir)
    args = ["run", str(path), "train.micro_batch_size=1", "--out", str(tmp_path / "run")]
    run(args, processes=2)
    assert_same(tmp_path / "run", one)


def test_two_fsdp2_processes_equal_one(one: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    """`model.fsdp_size` shards by transformers itself, which also works without a GPU."""
    path = recipe(tmp_path, tiny_model_dir)
    args = ["run", str(path), "model.fsdp_size=2", "save.steps=null"]
    output = run([*args, "--out", str(tmp_path / "run")], processes=2)
    assert "weights sharded over 2 processes" in (tmp_path / "run" / "perdure.log").read_text(), (
        output
    )
    assert_same(tmp_path / "run", one)


def test_two_ddp_processes_train_one_of_two_active_adapters(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Killed in the second task, they go on as one process learns that is not."""
    from safetensors.torch import load_file

    changes = {"model__tuning": "lora", "train__max_steps": 6, "train__optimizer": "sgd",
               "train__learning_rate": 0.05, "save": {"steps": 2}}  # fmt: skip
    path = write_recipe(tmp_path, tiny_model_dir, method={"name": "olora"}, **changes)
    run(["run", str(path), "--out", str(tmp_path / "one")])
    two = start(["run", str(path), "--out", str(tmp_path / "two")], processes=2)
    kill_when(two, tmp_path / "two", lambda r: log_lines(r, 2) >= 4)
    run(["resume", str(tmp_path / "two")], processes=2)
    for name in ("adapter_model", "task2/adapter_model", "../first/task2"):
        file = f"checkpoints/task-2/model/{name}.safetensors"
        alone, both = (load_file(tmp_path / out / file) for out in ("one", "two"))
        assert alone.keys() == both.keys()
        for key, weight in alone.items():
            assert float((weight - both[key]).abs().max()) < 1e-5, key


def test_resume_under_ddp(one: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, tiny_model_dir)
    out = tmp_path / "run"
    kill_when(
        start(["run", str(path), "--out", str(out)], processes=2), out,
        lambda r: log_lines(r, 2) >= 5,
    )  # fmt: skip
    run(["resume", str(out)], processes=2)
    found = {(r["after"], r["step"]): r["loss"] for r in read_lines(out / "log.jsonl")}
    for row in read_lines(one / "log.jsonl"):
        loss = found[row["after"], row["step"]]
        assert loss == pytest.approx(row["loss"], rel=LOSS_TOLERANCE)
    assert len(scores(out)) == 9


def test_processes_that_cannot_share_the_batch_are_refused(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    path = recipe(tmp_path, tiny_model_dir)
    args = ["run", str(path), "train.batch_size=3", "--out", str(tmp_path / "run")]
    output = run(args, processes=2, code=2)
    assert "train.batch_size: 3 rows cannot be split over 2 processes" in output


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
                   "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
                   "--main_process_port"],
}  # fmt: skip


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_launchers_users_have(name: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, tiny_model_dir)
    args = ["run", str(path), "train.max_steps=2", "method=sequential"]
    done = subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[name], str(free_port()), "-m", "perdure", *args,
         "--out", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(read_lines(tmp_path / "run" / "log.jsonl")) == 4
    assert '"processes": 2' in (tmp_path / "run" / "environment.json").read_text()


@pytest.mark.parametrize("dies", [0, 1])
@pytest.mark.parametrize("moment", ["training", "scoring"])
def test_when_one_process_dies_the_other_ends_with_a_line_to_go_on(
    moment: str, dies: int, tiny_model_dir: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"train__epochs": 400, "gauges": {"every": 0}}
    if moment == "scoring":
        changes = {"scoring": {"batch_size": 1}}
    path = write_recipe(tmp_path, tiny_model_dir, general=None, **changes)
    out = tmp_path / "run"
    two = start(["run", str(path), "--out", str(out)], processes=2)
    at = "log.jsonl" if moment == "training" else "data/task-2.json"
    until = time.monotonic() + 200
    while not (out / at).exists():
        assert two.alive(), two.output.read_text()
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(two.processes[dies].pid, signal.SIGKILL)
    began = time.monotonic()
    two.processes[1 - dies].join(60)
    assert time.monotonic() - began < 10
    assert two.processes[1 - dies].exitcode == 5
    text = two.output.read_text()
    two.kill()
    assert "error: " in text
    assert "another process of this run has ended" in text
    assert f"go on with: perdure resume {out}" in text
    assert "Traceback" not in text
    assert "gloo" not in text


def _dies_early(moment: str, *words: str) -> None:
    """`perdure WORDS`, of which the second process dies while the first has yet to read the rows,
    or is about to make the run directory."""
    import perdure.loop
    import perdure.prepare
    import perdure.run
    from perdure.cli import main

    def dies(*_: Any, **__: Any) -> Any:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    if moment == "create":
        perdure.run.Run.create = dies  # type: ignore[method-assign]
    perdure.loop.prepare = dies
    if moment == "prepare":
        perdure.prepare.prepare = dies
    sys.argv = ["perdure", *words]
    main()


@pytest.mark.parametrize("moment", ["prepare", "create", "resume"])
def test_when_one_dies_before_there_is_work_the_other_ends_too(
    moment: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path, tiny_model_dir, general=None)
    out = tmp_path / "run"
    words, then = ["run", str(path), "--out", str(out)], "run the command again"
    if moment == "resume":
        Run.create(out, load_recipe(path))
        words, then = ["resume", str(out)], f"go on with: perdure resume {out}"
    two = start_call(_dies_early, moment, *words, processes=2)
    two.processes[1].join(100)
    began = time.monotonic()
    two.processes[0].join(60)
    assert time.monotonic() - began < 10
    assert [p.exitcode for p in two.processes] == [5, -signal.SIGKILL]
    assert f"error: process 1 of this run has ended\n  {then}\n" in two.output.read_text()
    assert out.exists() == (moment == "resume")
