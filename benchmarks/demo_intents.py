"""How `perdure demo intents` comes out for several seeds, and what it costs.

    python benchmarks/demo_intents.py --out runs/intents --seeds 0 1 2 [--quick] [--methods A,B]

Each seed is one run of the command, as a user would type it, with an empty cache. Printed are, for
each method, the mean score of a task just after it was learned, that of the five earlier tasks at
the end, how many of those were shown to be lost, and the average accuracy; and of each command the
CPU seconds, from its start to its end. Exit code 1 if for some seed the effect was not shown: that
`sequential` lost each earlier task, and that each other method forgot less. A seed whose folder is
there already is read from it, without its seconds.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from perdure.demo_intents import METHODS
from perdure.reports import words
from perdure.reports.contrast import claims
from perdure.reports.data import RunView, views
from perdure.run import Run


def play(out: Path, seed: int, methods: str, quick: bool) -> float:
    """Run the command once; the CPU seconds that it took."""
    line = [sys.executable, "-m", "perdure", "demo", "intents", "--json", "--methods", methods]
    line += ["--seed", str(seed), "--out", str(out), *(["--quick"] if quick else [])]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as cache:
        place = {**os.environ, "PERDURE_CACHE": cache}
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env=place)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def row(seed: int, run: RunView, seconds: float | None) -> str:
    """One line of the table."""
    found = words.findings(run)
    earlier = [f for f in found if not f.last]
    learned = sum(f.learned for f in found) / len(found)
    kept = sum(f.final for f in earlier) / len(earlier)
    lost = sum(f.kept == "lost" for f in earlier)
    average = run.summary("average_accuracy")
    cost = "" if seconds is None else f"{seconds:.0f}"
    return (
        f"| {seed} | {run.method} | {learned:.2f} | {kept:.2f} | {lost} of {len(earlier)} "
        f"| {average:.2f} | {cost} |"
    )


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--out", type=Path, required=True, help="folder for the runs")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--methods", default=",".join(METHODS))
    options.add_argument("--quick", action="store_true")
    wanted = options.parse_args()
    print("| seed | method | just learned | earlier tasks, at the end | lost | average | CPU s |")
    print("|---|---|---|---|---|---|---|")
    missed = []
    for seed in wanted.seeds:
        out = wanted.out / str(seed)
        seconds = None
        if not out.exists():
            seconds = play(out, seed, wanted.methods, wanted.quick)
        runs = views([Run.open(out / name) for name in wanted.methods.split(",")])
        for number, run in enumerate(runs):
            print(row(seed, run, None if number else seconds), flush=True)
        first = words.findings(runs[0])
        if any(f.kept != "lost" for f in first if not f.last):
            missed.append(f"seed {seed}: sequential did not lose each earlier task")
        missed += [f"seed {seed}: {claim.text}" for claim in claims(runs) if not claim.shown]
    print(f"not shown: {'; '.join(missed)}" if missed else "each seed shows it")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
