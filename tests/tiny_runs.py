"""Small recipes on the tiny model for tests of mechanics: resume, processes, trackers.

The words are easy (one marker decides the label), so a random model learns something and scores
move, but nothing here says anything about learning.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

import pytest

LABELS = {"colour": ("red", "blue"), "count": ("one", "two")}


def write_recipe(folder: Path, model: Path, **changes: Any) -> Path:
    """Two labelled tasks of 24 rows and general text; `changes` are keys like `train__epochs`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, labels in LABELS.items():
        rng = random.Random(name)
        for split, count in (("train", 24), ("validation", 8), ("test", 12)):
            rows = []
            for i in range(count):
                answer = rng.randrange(2)
                filler = " word" * rng.randrange(5)
                text = f"{'xq' if answer else 'zk'} {name} {split} {i}{filler}"
                rows.append({"text": text, "label": labels[answer]})
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}-{split}.jsonl").write_text(text)
    recipe: dict[str, Any] = {
        "model": {"path": str(model)},
        "stream": {
            "tasks": [
                {
                    "name": name,
                    "format": "labels",
                    **{s: f"{name}-{s}.jsonl" for s in ("train", "validation", "test")},
                }
                for name in LABELS
            ]
        },
        "general": {"source": "pydoc", "replay_rows": 6, "held_out_rows": 4, "max_tokens": 32},
        "method": {"name": "sequential"},
        "train": {"learning_rate": 5e-3, "epochs": 2, "batch_size": 4, "precision": "fp32"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            recipe.setdefault(section, {})[name] = value
        else:
            recipe[section] = value
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


@dataclass
class Started:
    """Processes that run one command, and the file that they print to."""

    processes: list[Any]
    output: Path

    def alive(self) -> bool:
        return any(p.is_alive() for p in self.processes)

    def kill(self) -> None:
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.join()


def fork_server() -> Any:
    """A server that has imported all that is slow and forks a clean process for each command.

    Before Python 3.13 the server looks for what it imports on PYTHONPATH only, and says nothing if
    it is not there.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["slow_imports"])
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.getenv("PYTHONPATH")]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        ensure_running()
    return context


def _child(
    call: Callable[..., object], args: Sequence[Any], output: Path, environment: dict[str, str]
) -> None:
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.clear()  # the server began with an older one
    os.environ.update(environment)
    call(*args)


def _perdure(*args: str) -> None:
    from perdure.cli import main

    sys.argv = ["perdure", *args]
    main()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def start(args: list[str], processes: int = 1) -> Started:
    """Start `perdure ARGS` in processes of their own, as torchrun would, one thread each."""
    return start_call(_perdure, *args, processes=processes)


def start_call(call: Callable[..., object], *args: Any, processes: int = 1) -> Started:
    """Start `call(*args)`, a function of a module of tests, in processes like those of `start`."""
    port = free_port()
    output = Path(tempfile.mkdtemp()) / "output.txt"
    started = []
    for rank in range(processes):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if processes > 1:
            environment |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }  # fmt: skip
        process = fork_server().Process(target=_child, args=(call, args, output, environment))
        process.start()
        started.append(process)
    return Started(started, output)


def finish(started: Started, code: int = 0) -> str:
    """Wait for the processes, check their exit codes and return what they printed."""
    for process in started.processes:
        process.join(timeout=200)
    output = started.output.read_text() if started.output.exists() else ""
    codes = [p.exitcode for p in started.processes]
    started.kill()
    assert codes == [code] * len(codes), f"exit codes {codes}: {output[-4000:]}"
    return output


def run(args: list[str], processes: int = 1, code: int = 0) -> str:
    """`finish(start(...))`."""
    return finish(start(args, processes), code)


def scores(run: Path) -> dict[tuple[int, str], float]:
    """(after, task) to score, general ability as task "general"."""
    from perdure.run import Run

    return {(s["after"], s.get("task", "general")): s["score"] for s in Run.open(run).scores()}
