"""Small recipes on the tiny model for tests of mechanics: resume, processes, trackers.

The words are easy (one marker decides the label), so a random model learns something and scores
move, but nothing here says anything about learning.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

LABELS = {"colour": ("red", "blue"), "count": ("one", "two")}
ROOT = Path(__file__).resolve().parents[1]


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


def start(args: list[str], processes: int = 1, **popen: Any) -> subprocess.Popen[str]:
    """Start `perdure ARGS`, under torchrun if `processes` > 1, with one thread each."""
    head = [sys.executable]
    if processes > 1:
        head += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes),
                 "--master_port", str(20000 + os.getpid() % 20000)]  # fmt: skip
    return subprocess.Popen(
        [*head, "-m", "perdure", *args], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}, **popen,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for the process, check its exit code and return what it printed."""
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output[-4000:]
    return output


def scores(run: Path) -> dict[tuple[int, str], float]:
    """(after, task) to score, general ability as task "general"."""
    from perdure.run import Run

    return {(s["after"], s.get("task", "general")): s["score"] for s in Run.open(run).scores()}
