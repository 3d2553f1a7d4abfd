"""How much general ability does `perdure repair` bring back after an ordinary short fine-tuning?

    python benchmarks/repair.py [--steps 12] [--rows 64] [--texts 24] [--tasks A,B] [--out FOLDER]

SmolLM2-135M-Instruct learns each of three tasks by itself, with `sequential`, and
each tuned model is repaired. The table's figures are those of the report halves, which neither the
training nor the search has seen. Without `--out` the models go to a temporary folder.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from perdure.demo import Size, base_model, recipe_of
from perdure.loop import learn
from perdure.models import choose_precision
from perdure.models.memory import keep_freed_memory
from perdure.repair import Grid, Repair, Sizes, repair
from perdure.run import Run
from perdure.streams.named.demo import Sizes as StreamSizes
from perdure.streams.named.demo import pydoc_texts, three_tasks
from perdure.streams.task import GeneralText, Task, TaskStream

GRID = Grid(factors=(0.3, 0.5, 0.6, 0.7, 0.8, 0.9), shares=(0.1, 0.3))
BATCH, LEARNING_RATE, TEXT_TOKENS = 8, 2e-4, 48


def tune(task: Task, steps: int, precision: str, seed: int, folder: Path) -> Run:
    """Learn one task; what the loop scores on the way is kept small."""
    size = Size("benchmark", steps, BATCH, LEARNING_RATE, test_rows=4, texts=4)
    recipe = recipe_of("sequential", str(base_model()), size, precision, seed, lora=False)
    text = pydoc_texts(seed)
    few = GeneralText(text.replay[:4], text.replay[4:6], text.source)
    run = Run.create(folder, recipe)
    learn(recipe, run, stream=TaskStream((task,), few))
    return run


def line(task: str, found: Repair, seconds: tuple[float, float]) -> str:
    report = found.report
    if report is None:
        return f"| {task} | {found.reason} | | | | | | | | {seconds[0]:.0f} + {seconds[1]:.0f} |"
    scores = [one.scores[task] for one in (report.base, report.tuned, report.repaired)]
    cells = [
        str(found.chosen),
        *(f"{one.general:.3f}" for one in (report.base, report.tuned, report.repaired)),
        f"{report.regained:.0%}",
        *(f"{score:.2f}" for score in scores),
        f"{report.kept[task]:.0%}",
        f"{seconds[0]:.0f} + {seconds[1]:.0f}",
    ]
    return f"| {task} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps a task")
    parser.add_argument("--rows", type=int, default=64, help="test rows, both halves together")
    parser.add_argument("--texts", type=int, default=24, help="texts, both halves together")
    parser.add_argument("--tasks", default="topic,language,kind", help="of `three_tasks`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a new folder to keep models and curves in")
    wanted = parser.parse_args()
    names = wanted.tasks.split(",")
    if not set(names) <= {"topic", "language", "kind"}:
        parser.error(f"--tasks {wanted.tasks}: of topic, language and kind")
    keep_freed_memory()
    if wanted.out is not None:
        wanted.out.mkdir(parents=True)
    work = wanted.out or Path(tempfile.mkdtemp())
    precision = choose_precision("auto")
    started = time.monotonic()
    print(f"computing in {precision}; {wanted.steps} steps of {BATCH} rows a task", flush=True)
    print("| task | chosen | general loss: base | tuned | repaired | regained | score: base "
          "| tuned | repaired | gain kept | seconds: tuning + repair |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    general = pydoc_texts(wanted.seed).held_out
    try:
        for task in three_tasks(wanted.seed, StreamSizes(test=wanted.rows)):
            if task.name not in names:
                continue
            begun = time.monotonic()
            run = tune(task, wanted.steps, precision, wanted.seed, work / task.name)
            tuned = time.monotonic()
            found = repair(
                base_model(),
                run.path,
                [task],
                general,
                out=work / f"{task.name}-repaired",
                grid=GRID,
                sizes=Sizes(wanted.texts, TEXT_TOKENS, wanted.rows),
                precision=precision,
                seed=wanted.seed,
            )
            seconds = (tuned - begun, time.monotonic() - tuned)
            print(line(task.name, found, seconds), flush=True)
            for note in found.notes:
                print(f"  note: {note}", flush=True)
            for point in found.points:
                shares = f"regained {point.regained:.0%}, kept {point.worst:.0%}"
                print(f"  {point.candidate}: {shares} on the search half", flush=True)
            if wanted.out is None:  # half a gigabyte each
                shutil.rmtree(run.path)
                shutil.rmtree(work / f"{task.name}-repaired")
    finally:
        if wanted.out is None:
            shutil.rmtree(work, ignore_errors=True)
    print(f"\n{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
