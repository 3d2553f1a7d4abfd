"""Whether each size of the demo shows its effect for each seed, and the README's picture.

    python benchmarks/demo.py --out runs/sizes [--seeds 0 1 2 3 4] [--sizes small large]
                              [--table FILE] [--picture docs/report.png]

Plays the demo of each size and seed, alone on the machine, below `--out`; what is there already is
not played again, so that a killed benchmark goes on. Prints a table with 95 % intervals and, for
each seed, whether the demo's claims lie beyond them: `sequential` forgot, and each other method
kept more than `sequential` did. `--picture` draws the report of the first one with headless
Chromium. Exit code 1: a size does not show its effect for some seed, so it should not exist.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

from perdure.demo import METHODS, SIZES, Size, demo
from perdure.loop import learn
from perdure.reports import words
from perdure.reports.contrast import claims
from perdure.reports.data import RunView, views
from perdure.reports.format import number, significant
from perdure.run import Run

HEAD = (
    "| size | seed | method | average accuracy | forgetting | general perplexity | its change "
    "| shown beyond the interval |\n|---|---|---|---|---|---|---|---|"
)


def play(size: Size, seed: int, folder: Path) -> list[RunView]:
    """Play one demo, unless it is there, and read it."""
    facts = folder / "seconds.json"
    if not facts.exists():
        shutil.rmtree(folder, ignore_errors=True)
        wall, cpu = time.monotonic(), time.process_time()
        with redirect_stdout(sys.stderr):
            demo(out=folder, seed=seed, size=size, learn=learn)
        taken = {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu}
        facts.write_text(json.dumps(taken), "utf-8")
    return views([Run.open(folder / name) for name in METHODS])


def rows(size: Size, seed: int, runs: list[RunView]) -> list[str]:
    """The lines of the table, the plain method first as in the demo."""
    shown = claims(runs)
    found = []
    for run, claim in zip(runs, shown, strict=True):
        accuracy = _figure(run, "average_accuracy", sign=False)
        forgot = _figure(run, "forgetting", sign=True)
        general = f"{significant(run.general_before)} → {significant(run.general_after)}"
        said = claim.text if claim.shown else f"**no**: {claim.text}"
        cells = [size.name, str(seed), run.label, accuracy, forgot, general]
        found.append(f"| {' | '.join([*cells, words.general_interval(run), said])} |")
    return found


def _figure(run: RunView, key: str, *, sign: bool) -> str:
    return f"{number(run.summary(key))} ({words.figure_interval(run, key, 2, sign=sign)})"


def picture(folder: Path, image: Path) -> None:
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--disable-background-networking", f"--user-data-dir={profile}",
             "--window-size=1200,1500", f"--screenshot={image.resolve()}",
             (folder / "report.html").resolve().as_uri()],
            check=True, capture_output=True,
        )  # fmt: skip
    print(f"picture: {image}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the demos' runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    names = [size.name for size in SIZES]
    parser.add_argument("--sizes", nargs="+", choices=names, default=names)
    parser.add_argument("--table", type=Path, help="also write the table to this file")
    parser.add_argument("--picture", type=Path)
    wanted = parser.parse_args()
    table, missed = [HEAD], []
    print(HEAD, flush=True)
    for size in SIZES:
        if size.name not in wanted.sizes:
            continue
        seconds = []
        for seed in wanted.seeds:
            folder = wanted.out / f"{size.name}-{seed}"
            runs = play(size, seed, folder)
            seconds.append(json.loads((folder / "seconds.json").read_text("utf-8"))["cpu"])
            table += rows(size, seed, runs)
            print("\n".join(table[-len(runs) :]), flush=True)
            if not all(claim.shown for claim in claims(runs)):
                missed.append(f"{size.name}, seed {seed}")
        mean = sum(seconds) / len(seconds)
        table.append(f"\n{size}: {mean:.0f} CPU seconds a demo\n")
        print(table[-1], flush=True)
    if wanted.table:
        wanted.table.write_text("\n".join(table) + "\n", "utf-8")
    if wanted.picture:
        picture(wanted.out / f"{wanted.sizes[0]}-{wanted.seeds[0]}", wanted.picture)
    print(f"not shown: {'; '.join(missed)}" if missed else "each size shows it for each seed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
