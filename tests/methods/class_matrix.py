"""Runs of every method on a small classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import class_runs
import torch
from class_runs import write_class_recipe
from torch import Tensor

import perdure
from perdure.methods import registry
from perdure.run import Run

HELD = {"label_weight": 0, "insert": 2, "max_tokens": 12, "samples": 6}
OPTIONS: dict[str, dict[str, Any]] = {
    "sequential": {},
    "seq_star": {"warmup_epochs": 1},
    "replay": {"buffer_size": 6, "balance": "class", "choose": "herding", "ratio": 0.5},
    "ewc": {"lam": 50, "rows": 4},
    "lwf": {"weight": 1.0},
    "joint": {},
    "eaft": {},
    "freeze": {"layers": 1},
    "rewind": {"grid": [0.5], "tolerance": 100},
    "gere": {**HELD, "weight": 100},
    "gere_distance": {**HELD, "weight": 100, "noise_floor": 0.0},
    "derpp": {"buffer_size": 6, "ratio": 0.5},
}
"""Options under which methods act here, where their own examples do not."""
OFF: dict[str, dict[str, Any]] = {
    "seq_star": {"warmup_epochs": 0, "freeze_body": False, "freeze_old_heads": False},
    "replay": {"weight": 0},
    "ewc": {"lam": 0, "rows": 2},
    "lwf": {"weight": 0},
    "eaft": {"alpha": 0},
    "freeze": {"layers": 0, "embeddings": False},
    "rewind": {"grid": [1.0]},
    "gere": {**HELD, "weight": 0},
    "gere_distance": {**HELD, "weight": 0},
    "derpp": {"alpha": 0, "beta": 0},
}
"""Options under which they change nothing."""


def _options(name: str) -> dict[str, Any]:
    return OPTIONS.get(name, dict(registry.load(name).example_options))


def _reads_text(name: str) -> bool:
    kind = registry.load(name)
    return kind(registry.load_config(name, _options(name))).requires.texts == "labels"


REFUSED = [name for name in registry.names() if _reads_text(name)]
"""Methods that learn general texts, which a classifier does not predict."""
UNFIT = {"kl": "of a new class the reference knows nothing"}
"""Methods that cannot work on classes, and what is said of it."""
MATRIX = {
    name: _options(name)
    for name in registry.names()
    if name not in REFUSED and name not in UNFIT and not registry.load(name).adapters
}
"""All others: a new file is in it because it is there."""
NOOP = {
    name: OFF.get(name, dict(registry.load(name).noop_options or {}))
    for name in MATRIX
    if registry.load(name).noop_options is not None
}
TEXTS = [f"General text {i} of the world and its {'many ' * (i % 3)}things." for i in range(8)]


def recipe_of(folder: Path, encoder: Path, method: Any, **changes: Any) -> Path:
    """Three tasks of two classes at one epoch, with general texts for those that take some."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    names = [m["name"] for m in (method if isinstance(method, list) else [method])]
    if any(name.startswith(("gere", "general")) for name in names):
        source = str(folder / "texts.jsonl")
        general = {"source": source, "replay_rows": 8, "held_out_rows": 0}
        changes.setdefault("general", general)
    if "lora_sequence" in names:
        changes.setdefault("model__tuning", "lora")
    rate = {"train__optimizer": "sgd", "train__learning_rate": 0.05}
    changes = {"train__epochs": 1, **rate, **changes}
    return write_class_recipe(folder, encoder, method=method, **changes)


class Stopped(Exception):
    """Stands for a kill."""


def learn(out: Path, recipe: Path, stop: tuple[int, int] | None = None) -> Run:
    """Begin or go on; `stop`: at that task's line of the log for that step."""
    run = Run.open(out) if out.exists() else Run.create(out, perdure.load_recipe(recipe))
    log = run.log

    def log_or_stop(line: Any) -> None:
        log(line)
        if (line["after"], line["step"]) == stop:
            raise Stopped

    run.log = log_or_stop  # type: ignore[method-assign]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        perdure.learn(run.recipe, run)
    finally:
        torch.set_num_threads(threads)
    return run


def learn_all(*recipes: Path) -> None:
    """Learn recipes in turn, each to `run` beside it."""
    for recipe in recipes:
        learn(recipe.parent / "run", recipe)


def weights(run: Run | Path, after: int = 3) -> dict[str, Tensor]:
    return class_runs.weights(run if isinstance(run, Path) else run.path, after)
