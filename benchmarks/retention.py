"""What each method learns and keeps: public text tasks, learned one after another, several seeds.

    python benchmarks/retention.py --data DIR --general FILE --out runs/retention
        [--tasks agnews,sst2,...] [--steps 12] [--test-rows 40] [--seeds 0,1,2] [--only gere,...]

DIR holds a folder a task with train.jsonl and test.jsonl (`text`, `label`) and a tasks.json with
each one's `labels` and `instruction`, as the 15-task continual-learning benchmark of O-LoRA; FILE
is plain text, a sentence a line, in the order of its documents. Each condition and seed is a run
directory below --out: what is there is not run again, what was interrupted goes on, and several
processes may share it if each has seeds of its own. SmolLM2-135M-Instruct, full fine-tuning.

Printed, as mean and 95% t-interval over the seeds: average accuracy, forgetting, perplexity on
held-out general text (and as a ratio to the base's: each seed holds out other texts), and the
harmonic mean of general and downstream (the paper's F1 Avg), with general = base perplexity /
perplexity now, at most 1. Then two answers:

- how much of what real general text retains is retained with texts of the base model itself: the
  rise in general loss (nats a token) that each avoids of `sequential`'s rise; real text both of the
  source that is held out, and of another (boolq's passages);
- how well the gauges that were logged predict what was lost: Spearman's rank correlation over all
  runs, of the gauge's highest value in a run with its forgetting and that ratio. The logged flip
  share is on given general text; `--own-gauge` adds that of each run's last model on texts which
  the base model wrote, as where a recipe names none, and of the logged one at its last step.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy import stats

from perdure.demo import base_model
from perdure.loop import learn
from perdure.models.memory import keep_freed_memory
from perdure.recipe.schema import Recipe
from perdure.reports import make_display
from perdure.reports.general import f1_average
from perdure.run import Run

TASKS = ("agnews", "amazon", "boolq", "copa", "mnli", "rte", "sst2", "cb", "dbpedia")
TOKENS = 48
"""Tokens of a general text, given or sampled: so many are trained on for each."""
GIVEN = 64
"""General texts of a run; own ones as many, whatever share of so short a training they cost, except
where the condition says so."""


HELD: dict[str, dict[str, Any]] = {
    "margin": {"name": "gere"},
    "label": {"name": "general_replay"},
    "kl": {"name": "gere_kl"},
    # The published figures are without a floor.
    "l1": {"name": "gere_distance", "norm": "l1", "weight": 1.0, "noise_floor": 0},
    "l2": {"name": "gere_distance", "norm": "l2", "weight": 1.0, "noise_floor": 0},
}
"""What stands beside the general texts' own loss."""


def gere(loss: str, **options: Any) -> dict[str, Any]:
    return {"method": {**HELD[loss], "max_tokens": TOKENS, **options}}


WEIGHTS = (1, 10, 100)
"""Weights of `gere_distance` that are compared, each with the noise floor that is measured."""

OTHER = "boolq"
"""A task whose passages, of Wikipedia, are general text of another source than what is held out."""
NO_TEXT = {"general": {"replay_rows": 0}}


def own(loss: str, **options: Any) -> dict[str, Any]:
    return gere(loss, samples=GIVEN, own_share=1.0, **options) | NO_TEXT


CONDITIONS: dict[str, dict[str, Any]] = {
    "sequential": {"method": "sequential"},
    "lower rate": {"method": "sequential", "train": {"learning_rate": 4e-5}},
    "freeze": {"method": "freeze"},
    "rewind": {"method": {"name": "rewind", "rows": 24}},
    "eaft": {"method": "eaft"},
    "replay": {"method": {"name": "replay", "buffer_size": 64}},
    "gere margin": gere("margin"),
    "gere label": gere("label"),
    "gere kl": gere("kl"),
    "gere l1": gere("l1"),
    "gere l2": gere("l2"),
    "gere margin own samples": own("margin"),
    "gere label own samples": own("label"),
    "gere kl own samples": own("kl"),
    "gere l1 own samples": own("l1"),
    "gere l2 own samples": own("l2"),
    "gere margin other text": gere("margin") | {"general": {"source": OTHER}},
    "gere margin default own samples": gere("margin") | NO_TEXT,
    "joint": {"method": "joint"},
} | {
    f"gere {norm} weight {weight}": gere(norm, weight=weight, noise_floor="measured")
    for norm in ("l1", "l2") for weight in WEIGHTS
}  # fmt: skip


def main() -> int:
    options = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--general", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--tasks", default=",".join(TASKS))
    options.add_argument("--steps", type=int, default=12)
    options.add_argument("--test-rows", type=int, default=40)
    options.add_argument("--max-tokens", type=int, default=128, help="longer rows are left out")
    options.add_argument("--seeds", default="0,1,2")
    options.add_argument("--only", default="", help="conditions, by name")
    options.add_argument("--table", action="store_true", help="only print what is there")
    options.add_argument("--own-gauge", action="store_true", help="see above")
    wanted = options.parse_args()
    for path in (wanted.data / "tasks.json", wanted.general):
        if not path.exists():
            print(f"{path}: not found; nothing was run", file=sys.stderr)
            return 2
    keep_freed_memory()
    names = wanted.only.split(",") if wanted.only else list(CONDITIONS)
    seeds = [int(s) for s in wanted.seeds.split(",")]
    if not wanted.table:
        general = _texts(wanted.general, wanted.out)
        for seed in seeds:
            for name in names:
                _run(name, seed, wanted, general)
    _print(wanted.out, list(CONDITIONS), wanted.own_gauge)
    return 0


def _texts(source: Path, out: Path) -> Path:
    """The sentences, a few of them a text, as JSON Lines; each text is long enough to be cut."""
    path = out / "general.jsonl"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        lines = [line.strip() for line in source.read_text(encoding="utf-8").splitlines()]
        texts = [" ".join(lines[i : i + 4]) for i in range(0, len(lines) - 4, 4)]
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


def _other(data: Path, out: Path) -> Path:
    """Passages of `OTHER`, without title and question, as JSON Lines."""
    path = out / "other.jsonl"
    if not path.exists():
        lines = (data / OTHER / "train.jsonl").read_text(encoding="utf-8").splitlines()
        found = [json.loads(line)["text"].partition("passage: ")[2] for line in lines]
        texts = [text.partition(" -- ")[2] or text for text in found]
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


def _rows(data: Path, out: Path, task: str, labels: Sequence[str], limit: int) -> dict[str, str]:
    """Files without the rows that are longer than `limit` tokens, so that no prompt is cut, and
    without those on whose label the annotators did not agree (mnli's "-")."""
    from transformers import AutoTokenizer

    from perdure.models import load_tokenizer

    found = {}
    tokenizer: AutoTokenizer | None = None
    for split in ("train", "test"):
        path = out / "data" / f"{task}-{split}-{limit}.jsonl"
        if not path.exists():
            if tokenizer is None:
                tokenizer = load_tokenizer(_recipe_model())
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = (data / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
            kept = [
                line for line in lines
                if (row := json.loads(line))["label"] in labels
                and len(tokenizer(row["text"])["input_ids"]) <= limit  # type: ignore[operator]
            ]  # fmt: skip
            # In the data's order a class may fill the first rows.
            random.Random(0).shuffle(kept)
            path.write_text("\n".join(kept) + "\n", encoding="utf-8")
        found[split] = str(path)
    return found


def _recipe_model() -> Any:
    from perdure.recipe.schema import ModelConfig

    return ModelConfig(path=str(base_model()))


def _recipe(name: str, seed: int, wanted: argparse.Namespace, general: Path) -> Recipe:
    facts = json.loads((wanted.data / "tasks.json").read_text(encoding="utf-8"))
    change = dict(CONDITIONS[name])
    texts = dict(change.get("general", {}))
    if texts.get("source") == OTHER:
        texts = {"source": str(_other(wanted.data, wanted.out)), "held_out_source": str(general)}
    method = change.pop("method")
    batch = 8
    tasks = [
        {
            "name": task,
            "format": "labels",
            "labels": facts[task]["labels"],
            "instruction": facts[task]["instruction"],
            **_rows(wanted.data, wanted.out, task, facts[task]["labels"], wanted.max_tokens),
            "max_train_rows": wanted.steps * batch + 24,
            "max_test_rows": wanted.test_rows,
            "validation_share": 24 / (wanted.steps * batch + 24),
        }
        for task in wanted.tasks.split(",")
    ]
    return Recipe.model_validate(
        {
            "name": name.replace(" ", "-"),
            "seed": seed,
            "model": {"path": str(base_model())},
            "stream": {"tasks": tasks},
            "method": method,
            "general": {
                "source": str(general), "replay_rows": GIVEN, "held_out_rows": 48,
                "max_tokens": TOKENS, **texts,
            },
            "train": {
                "learning_rate": 2e-4, "batch_size": batch, "micro_batch_size": batch,
                "max_steps": wanted.steps * (len(tasks) if method == "joint" else 1),
                "epochs": 1, **change.get("train", {}),
            },
            "save": {"tasks": "last"},
        }
    )  # fmt: skip


def _run(name: str, seed: int, wanted: argparse.Namespace, general: Path) -> None:
    path = wanted.out / f"{name.replace(' ', '-')}-{seed}"
    first = wanted.out / f"sequential-{seed}"
    if path.exists():
        run = Run.open(path)
        if run.state == "finished":
            return
        recipe = run.recipe
    else:
        recipe = _recipe(name, seed, wanted, general)
        run = Run.create(path, recipe)
    print(f"{name}, seed {seed}", flush=True)
    # The base model's scores are the same for all methods of a seed.
    known = Run.open(first) if first.exists() and first != path else None
    with make_display() as display:
        learn(recipe, run, display=display, base_scores=known)


def _print(out: Path, names: Sequence[str], own_gauge: bool) -> None:
    runs = {name: list(_finished(out, name)) for name in names}
    print("| condition | seeds | average accuracy | forgetting | general perplexity "
          "| of the base's | F1 Avg |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for name, found in runs.items():
        if found:
            figures = [_figures(run) for run in found]
            cells = [_interval([f[k] for f in figures]) for k in figures[0]]
            print(f"| {name} | {len(found)} | {' | '.join(cells)} |")
    print()
    for loss in ("margin", "label", "kl", "l1", "l2"):
        _print_own(loss, runs)
    for gauge in ("kl", "flip_share"):
        _print_correlations(gauge, [run for found in runs.values() for run in found])
    if own_gauge:
        _print_own_gauge(out, [run for found in runs.values() for run in found])


def _print_correlations(gauge: str, every: Sequence[Run]) -> None:
    """With what was lost in the end, and with general perplexity as it was after each task."""
    for loss, what in (("forgetting", "forgetting"), ("ratio", "general perplexity")):
        rho, count = _correlation((_gauge(run, gauge), _figures(run)[loss]) for run in every)
        print(f"{gauge} and {what}: rank correlation {rho:.2f} over {count} runs")
    in_turn = [run for run in every if run.methods_name != "joint"]
    each = [
        _correlation((_gauge(run, gauge, after), _general(run)[after]) for run in in_turn)
        for after in range(1, max((len(run.matrix().tasks) for run in in_turn), default=0) + 1)
    ]
    shown = ", ".join(f"{rho:.2f}" for rho, _ in each)
    print(f"{gauge} at a task's end and general perplexity then: {shown} (first task to last)")


def _correlation(pairs: Iterable[tuple[float, float]]) -> tuple[float, int]:
    """Spearman's, over the pairs without a missing value; and how many those are."""
    whole = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    if len(whole) < 3:
        return math.nan, len(whole)
    return float(stats.spearmanr(*zip(*whole, strict=True)).statistic), len(whole)


def _print_own_gauge(out: Path, every: Sequence[Run]) -> None:
    """Reads the runs' models again, a quarter of a minute each; what was read is kept."""
    known = out / "own-gauge.json"
    found = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
    for run in every:
        if run.path.name not in found:
            found[run.path.name] = _own_flips(run, out / "own-gauge" / f"{run.recipe.seed}")
            known.write_text(json.dumps(found, indent=1), encoding="utf-8")
    last = len(every[0].matrix().tasks)
    own = {"the base's own": lambda run: found[run.path.name]}
    given = {"given": lambda run: _gauge(run, "flip_share", last)}
    for text, value in (own | given).items():
        rho, count = _correlation((value(run), _figures(run)["ratio"]) for run in every)
        print(
            f"flip_share at the end on {text} text and general perplexity then: rank correlation "
            f"{rho:.2f} over {count} runs"
        )


def _own_flips(run: Run, cache: Path) -> float:
    """Flip share of the run's last model on texts that its base wrote."""
    from perdure.engine.session import TaskSession
    from perdure.models import load_base, load_weights
    from perdure.models.chat import recipe_encoder
    from perdure.models.weights import put
    from perdure.scoring.gauges import Gauges
    from perdure.streams import build_stream

    recipe, (_, folder) = run.recipe, run.last_checkpoint()
    assert folder is not None
    model, tokenizer = load_base(recipe.model)
    stream = build_stream(recipe.stream, None, run.path, recipe.seed)
    encoder = recipe_encoder(tokenizer, recipe)
    ctx = TaskSession(model, encoder, stream.tasks[0], seed=recipe.seed, cache=cache)
    gauges = Gauges(recipe.gauges, stream, ctx)
    put(model, load_weights(model, folder / "model"))
    return gauges.read(ctx)["flip_share"]


def _print_own(loss: str, runs: dict[str, list[Run]]) -> None:
    """Own samples against real text: the rise in loss each avoids, by seed."""
    kinds = {
        "sequential": "sequential",
        "real text": f"gere {loss}",
        "real text of another source": f"gere {loss} other text",
        "own samples": f"gere {loss} own samples",
        "own samples by default": f"gere {loss} default own samples",
    }
    rises = {
        kind: {run.recipe.seed: _rise(run) for run in runs[name]}
        for kind, name in kinds.items()
        if runs.get(name)
    }
    seeds = sorted(set.intersection(*(set(found) for found in rises.values())) if rises else ())
    if not seeds or "sequential" not in rises or len(rises) == 1:
        return
    total = mean(rises["sequential"][seed] for seed in seeds)
    for kind, found in rises.items():
        values = [found[seed] for seed in seeds]
        print(
            f"gere {loss}, {kind}: rise in general loss {_interval(values)}, "
            f"{1 - mean(values) / total:.0%} of sequential's avoided"
        )


def _rise(run: Run) -> float:
    """Nats a token that general text is worse predicted by than by the base model."""
    return math.log(_figures(run)["ratio"])


def _finished(out: Path, name: str) -> Iterable[Run]:
    for path in sorted(out.glob(f"{name.replace(' ', '-')}-[0-9]*")):
        if (run := Run.open(path)).state == "finished":
            yield run


def _general(run: Run) -> dict[int, float]:
    """Perplexity on held-out general text as a ratio to the base's, by tasks learned."""
    found = {s["after"]: s["score"] for s in run.scores() if s["kind"] == "general"}
    return {after: score / found[0] for after, score in found.items()}


def _figures(run: Run) -> dict[str, float]:
    matrix = run.matrix()
    accuracy = matrix.average_accuracy()
    general = [s["score"] for s in run.scores() if s["kind"] == "general"]
    ratio = general[-1] / general[0]
    return {
        "accuracy": accuracy,
        "forgetting": matrix.forgetting(),
        "perplexity": general[-1],
        "ratio": ratio,
        "f1": f1_average([min(1.0, 1 / ratio)], [accuracy]),
    }


def _gauge(run: Run, name: str, after: int | None = None) -> float:
    """The largest value that the gauge showed over the run, or its last one in a task."""
    key = f"gauge/{name}"
    values = [r[key] for r in run.log_rows() if key in r and after in (None, r["after"])]
    return math.nan if not values else max(values) if after is None else values[-1]


def _interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3g}"
    half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return f"{mean(values):.3g} ± {half:.2g}"


if __name__ == "__main__":
    sys.exit(main())
