"""The demo's table with more test rows, and the README's picture of its report.

    python benchmarks/demo.py --out runs/picture [--seed 0] [--picture docs/report.png]

Runs the demo's middle size (12 steps of 8 rows a task) with 60 test rows a task, unless `--out`
holds such a run already, prints the scores after each task, and has headless Chromium draw the
first screen of the report.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

from perdure.demo import METHODS, Size, demo
from perdure.loop import learn
from perdure.reports import write_report
from perdure.run import Run

SIZE = Size("middle, 60 test rows", steps=12, batch=8, learning_rate=2e-4, test_rows=60, texts=32)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--picture", type=Path)
    wanted = options.parse_args()
    if not wanted.out.exists():
        demo(out=wanted.out, seed=wanted.seed, size=SIZE, learn=learn)
    runs = [Run.open(wanted.out / name) for name in METHODS]
    print("| method | after | topic | language | kind | general perplexity |")
    print("|---|---|---|---|---|---|")
    for run in runs:
        found = {(s["after"], s.get("task")): s["score"] for s in run.scores()}
        for after in range(4):
            cells = [f"{found[after, t]:.2f}" for t in ("topic", "language", "kind")]
            general = f"{found[after, None]:.1f}"
            print(f"| {run.methods_name} | {after} | {' | '.join([*cells, general])} |")
    if wanted.picture:
        page = write_report(runs, wanted.out / "report.html")
        with tempfile.TemporaryDirectory() as profile:
            subprocess.run(
                ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                 "--disable-background-networking", f"--user-data-dir={profile}",
                 "--window-size=1200,1500", f"--screenshot={wanted.picture.resolve()}",
                 page.resolve().as_uri()],
                check=True, capture_output=True,
            )  # fmt: skip
        print(f"picture: {wanted.picture}")


if __name__ == "__main__":
    main()
