"""Run directories with invented numbers, in the formats of a real run, for tests of reports.

Nothing here was measured: the numbers are made up so that a test knows what a report must say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.run import Run

TASKS = ("topic", "language", "german-names")
NAN = math.nan
ENVIRONMENT = {
    "perdure": "0.1.0",
    "commit": None,
    "python": "3.11.7",
    "packages": {"torch": "2.9.1", "transformers": "5.24.0"},
    "hardware": {"cpu": "invented CPU", "cores": 2, "memory_gb": 6.0, "gpus": []},
    "precision": "fp32",
    "processes": 1,
    "started": "2026-01-02T10:00:00Z",
}
FORGETS = [
    [0.31, 0.20, 0.02],
    [0.78, 0.22, 0.04],
    [0.33, 0.95, 0.05],
    [0.29, 0.41, 0.82],
]
KEEPS = [
    [0.31, 0.20, 0.02],
    [0.76, 0.21, 0.03],
    [0.74, 0.94, 0.04],
    [0.73, 0.92, 0.80],
]


def make_run(
    folder: Path,
    method: str = "sequential",
    matrix: Sequence[Sequence[float]] = KEEPS,
    *,
    tasks: Sequence[str] = TASKS,
    metrics: Mapping[str, str] | None = None,
    general: Sequence[float] = (23.4, 24.0, 24.4, 24.9),
    rows: int = 80,
    steps: int = 32,
    own_losses: Mapping[str, float] | None = None,
    environment: Mapping[str, Any] = ENVIRONMENT,
    speed: float = 130.0,
    finished: bool = True,
    seed: int = 0,
    items: bool = False,
    texts: int = 32,
) -> Run:
    """Write a run directory: row i of `matrix` is what was scored after i tasks, nan is missing.

    With `items` it also holds the scored rows, of which the first ones are right (so many that
    their share is next to the score, which becomes their mean), and each general text's loss.
    """
    folder.mkdir(parents=True)
    methods = method.split("+")
    listed = methods[0] if len(methods) == 1 else methods
    (folder / "recipe.yaml").write_text(
        f"name: invented\nseed: {seed}\n"
        "model:\n  path: HuggingFaceTB/SmolLM2-135M-Instruct\n  tuning: full\n"
        f"stream:\n  name: demo\nmethod: {json.dumps(listed)}\n"
        "train:\n  learning_rate: 0.0001\n",
        encoding="utf-8",
    )
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    scores: list[dict[str, Any]] = []
    for after, line in enumerate(matrix):
        for task, score in zip(tasks, line, strict=True):
            metric = (metrics or {}).get(task, "label_likelihood")
            if items and not math.isnan(score):
                right = round(score * rows)
                score = right / rows
                (folder / "items").mkdir(exist_ok=True)
                write_lines(folder / "items" / f"after-{after}-{task}.jsonl", [
                    {"id": f"{task}-{k}", "score": float(k < right), "prediction": "",
                     "answer": "", "prompt": ""} for k in range(rows)
                ])  # fmt: skip
            if not math.isnan(score):
                scores.append(
                    {"kind": "task", "after": after, "task": task, "metric": metric,
                     "higher_is_better": metric != "perplexity", "score": score, "rows": rows,
                     "seconds": 3.2}
                )  # fmt: skip
        if items and after < len(general) and not math.isnan(general[after]):
            # Texts differ by much, each one's change by little: pairing is what shows it.
            losses = [math.log(general[after]) + 0.5 * (-1) ** k + 0.004 * after * (-1) ** (k // 2)
                      for k in range(texts)]  # fmt: skip
            (folder / "items").mkdir(exist_ok=True)
            write_lines(folder / "items" / f"general-{after}.jsonl", [
                {"id": f"text-{k}", "loss": loss, "tokens": 64} for k, loss in enumerate(losses)
            ])  # fmt: skip
        if after < len(general) and not math.isnan(general[after]):
            scores.append(
                {"kind": "general", "after": after, "metric": "perplexity",
                 "score": general[after], "loss": math.log(general[after]), "tokens": 4096,
                 "seconds": 2.0}
            )  # fmt: skip
    write_lines(folder / "scores.jsonl", scores)
    log = []
    for after, task in enumerate(tasks, start=1):
        for step in range(1, steps + 1):
            clock = 60 * after + step
            loss = 0.3 + 2.2 * math.exp(-6 * step / steps) + 0.12 * math.sin(7.0 * step + after)
            log.append(
                {"time": f"2026-01-02T10:{clock // 60:02d}:{clock % 60:02d}Z", "after": after,
                 "task": task, "phase": "main", "step": step, "steps": steps, "loss": loss,
                 "learning_rate": 1e-4, "tokens_per_second": speed + step % 5,
                 "seconds_left": 20.0, "memory_mb": 3100}
                | {k: v * (1 + 0.2 * math.cos(3.0 * step)) / step
                   for k, v in (own_losses or {}).items()}
            )  # fmt: skip
    write_lines(folder / "log.jsonl", log)
    if finished:
        (folder / "finished").write_text("2026-01-02T10:05:00Z\n", encoding="utf-8")
    return Run.open(folder)


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def three_methods(folder: Path, *, items: bool = False, rows: int = 80) -> list[Run]:
    """One method that forgets, two that keep."""
    almost = [[0.31, 0.20, 0.02], [0.77, 0.23, 0.03], [0.70, 0.95, 0.04], [0.69, 0.90, 0.81]]
    return [
        make_run(
            folder / "sequential", "sequential", FORGETS, general=(23.4, 27.1, 30.2, 33.8),
            items=items, rows=rows,
        ),
        make_run(
            folder / "replay", "replay", almost, general=(23.4, 26.0, 27.3, 29.1),
            own_losses={"method/replay_kept": 1.1}, speed=96.0, items=items, rows=rows,
        ),
        make_run(
            folder / "gere", "gere", KEEPS, general=(23.4, 23.9, 24.4, 24.9),
            own_losses={"method/gere_label": 1.4, "method/gere_margin": 0.6}, speed=88.0,
            items=items, rows=rows,
        ),
    ]  # fmt: skip


def twelve_runs(folder: Path) -> list[Run]:
    """Four methods with three seeds each, which move all scores a little."""
    some = [[0.31, 0.20, 0.02], [0.77, 0.23, 0.03], [0.60, 0.93, 0.04], [0.55, 0.80, 0.81]]
    ends = {"sequential": (FORGETS, 33.8), "replay": (some, 29.1), "ewc": (some, 31.2),
            "gere": (KEEPS, 24.9)}  # fmt: skip
    return [
        make_run(
            folder / f"{method}-{seed}", method,
            [[min(1.0, max(0.0, x + 0.02 * (seed - 1) + 0.01 * (i + j + seed) % 0.03))
              for j, x in enumerate(row)] for i, row in enumerate(rows)],
            general=(23.4, 24.0, 24.4, last + 0.2 * seed), seed=seed, items=True,
            own_losses={f"method/{method}_term": 1.1, f"method/{method}_other": 0.4},
        )
        for method, (rows, last) in ends.items()
        for seed in range(3)
    ]  # fmt: skip
