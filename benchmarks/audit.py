"""How often is a verdict of `perdure audit` wrong, and how often does it decide?

    python benchmarks/audit.py [--quick] [--groups] [--out FILE]

Item scores are drawn afresh, thousands of times, from populations whose true change is known:
none, exactly the margin, twice the margin. Each draw goes through the functions that the audit
uses (`bootstrap_bounds`, `imagined_limit`, `shared_alpha`), and what they say is compared with the
truth. With several tasks an audit is wrong if any one of its verdicts is. Items also come in
groups of 1, 2, 5 and 10 and of unequal sizes (`ratio_bounds`).

It exits with 1 if a rate of false verdicts is above 5%, or a coverage below 95%, by more than
chance.

The intervals of a report's summary figures are measured likewise (`perdure.scoring.resampling`):
matrices of known true scores are drawn row by row, and it is counted how often an interval that
aims at 95% holds the true figure. `--coverage` prints these alone.
Three minutes on one core; `--quick` three quarters of a minute; `--coverage` one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from perdure.scoring.intervals import (
    bootstrap_bounds,
    imagined_limit,
    items_needed,
    ratio_bounds,
    shared_alpha,
)
from perdure.scoring.matrix import ScoreMatrix
from perdure.scoring.resampling import Column, resample

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...], float], Array]
"""draw(rng, shape, drop) -> changes with the mean -drop, more is better."""
ALPHA = 0.05
DRAWS = 4_000  # the audit itself takes 20,000
_ROWS = 1000  # samples judged at once: 64 MB of bootstrap means


@dataclass(frozen=True)
class Population:
    name: str
    draw: Draw
    margin: float
    sizes: tuple[int, ...]
    limits: tuple[float, float] | None = (-1.0, 1.0)
    """What one item can be at worst and best; None: no limits, nats."""
    best: float | None = None
    """A limit above where there is none below."""


def right_or_wrong(mended: float) -> Draw:
    """A share `mended` of the items goes from wrong to right, `mended` + drop the other way."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...], drop: float) -> Array:
        u = rng.random(shape)
        return np.where(u < mended + drop, -1.0, np.where(u > 1 - mended, 1.0, 0.0))

    return draw


def dense(rng: np.random.Generator, shape: tuple[int, ...], drop: float) -> Array:
    """All items change: symmetric within 0.4, as ROUGE does when wording changes."""
    return -drop + 0.4 * (2 * rng.beta(2, 2, shape) - 1)


def sparse(rng: np.random.Generator, shape: tuple[int, ...], drop: float) -> Array:
    """A few items lose between nothing and everything, some gain; the others stay."""
    gain = 0.02
    u, size = rng.random(shape), rng.random(shape)  # size: mean 1/2
    lose = 2 * drop + gain
    return np.where(u < lose, -size, np.where(u > 1 - gain, size, 0.0))


def skewed(rng: np.random.Generator, shape: tuple[int, ...], drop: float) -> Array:
    """Most lose next to nothing, few nearly all: -Beta(0.1, .), of either sign if none is lost."""
    size = drop if drop else 0.05
    lost: Array = rng.beta(0.1, 0.1 * (1 - size) / size, shape)
    if drop:
        return -lost
    return lost * rng.choice((-1.0, 1.0), shape)


def nats(noise: Callable[[np.random.Generator, tuple[int, ...]], Array], spread: float) -> Draw:
    """A rise of the loss of each text around the mean, with standard deviation `spread`."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...], drop: float) -> Array:
        return -(drop + spread * noise(rng, shape))

    return draw


def gaussian(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape)


def exponential(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_exponential(shape) - 1


def heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_t(3, shape) / np.sqrt(3.0)


def divergence(rng: np.random.Generator, shape: tuple[int, ...], drop: float) -> Array:
    """KL of each text: log-normal (sigma 0.8), so its mean is drop and it is never below 0."""
    return -drop * np.exp(0.8 * rng.standard_normal(shape) - 0.32)


SCORES = (30, 100, 300)
TEXTS = (32, 128)
POPULATIONS = (
    Population("right or wrong, none mended", right_or_wrong(0.0), 0.05, (*SCORES, 1000)),
    Population("right or wrong, 3% mended", right_or_wrong(0.03), 0.05, (*SCORES, 1000)),
    Population("right or wrong, margin 0.02", right_or_wrong(0.01), 0.02, (300, 1000)),
    Population("score, all items change", dense, 0.05, SCORES),
    Population("score, few items change", sparse, 0.05, SCORES),
    Population("score, very skewed", skewed, 0.05, SCORES),
    Population("loss, normal", nats(gaussian, 0.1), 0.05, TEXTS, None),
    Population("loss, exponential", nats(exponential, 0.1), 0.05, TEXTS, None),
    Population("loss, Student t 3", nats(heavy, 0.1), 0.05, TEXTS, None),
    Population("KL, log-normal", divergence, 0.05, TEXTS, None, best=0.0),
)


def bounds(population: Population, change: Array, alpha: float) -> tuple[Array, Array]:
    """`bootstrap_bounds` of many samples, (samples, items); equal ones are computed once."""
    rows, back = np.unique(np.sort(change, axis=1), axis=0, return_inverse=True)
    low, high = np.empty(len(rows)), np.empty(len(rows))
    for at in range(0, len(rows), _ROWS):
        part = rows[at : at + _ROWS]
        worst: float | Array
        best: float | Array
        if population.limits is not None:
            worst, best = population.limits
        else:
            limit = imagined_limit(part, population.margin)
            worst, best = -limit, limit if population.best is None else population.best
        low[at : at + _ROWS], high[at : at + _ROWS] = bootstrap_bounds(
            part, alpha, worst, best, draws=DRAWS, seed=at
        )
    return low[back], high[back]


@dataclass(frozen=True)
class Cell:
    """Rates over audits; `kept`, `lost` and `open` over tasks."""

    false_kept: float
    false_lost: float
    kept: float
    lost: float
    open: float


def simulate(
    population: Population, n: int, tasks: int, drop: float, audits: int, seed: int
) -> Cell:
    rng = np.random.default_rng(seed)
    change = population.draw(rng, (audits * tasks, n), drop)
    low, high = bounds(population, change, shared_alpha(ALPHA, tasks))
    kept = (low > -population.margin).reshape(audits, tasks)
    lost = (high < -population.margin).reshape(audits, tasks)
    return Cell(
        false_kept=float(kept.any(1).mean()) if drop >= population.margin else 0.0,
        false_lost=float(lost.any(1).mean()) if drop <= population.margin else 0.0,
        kept=float(kept.mean()),
        lost=float(lost.mean()),
        open=float(1 - kept.mean() - lost.mean()),
    )


def table(audits: int, out: Callable[[str], None]) -> list[tuple[str, float]]:
    """Print all cells; return those with a false rate above 5% by more than chance."""
    out("| population | margin | items | tasks | true drop | false kept | false lost | kept | lost "
        "| undecided |")  # fmt: skip
    out("|---|---|---|---|---|---|---|---|---|---|")
    bad, highest, seed = [], 0.0, 0
    allowed = stats.binom.ppf(0.999, audits, ALPHA) / audits
    for population in POPULATIONS:
        for n in population.sizes:
            for tasks in (1, 5):
                for times, shown in ((0, "none"), (1, "= margin"), (2, "2 x margin")):
                    seed += 1
                    # Several tasks multiply the work and are told by their worst case.
                    if tasks == 5 and (times != 1 and n != max(population.sizes)):
                        continue
                    cell = simulate(population, n, tasks, times * population.margin, audits, seed)
                    wrong = (
                        f"{cell.false_kept:.1%}" if times else "",
                        f"{cell.false_lost:.1%}" if times < 2 else "",
                    )
                    out(
                        f"| {population.name} | {population.margin} | {n} | {tasks} | {shown} | "
                        f"{wrong[0]} | {wrong[1]} | {cell.kept:.0%} | {cell.lost:.0%} | "
                        f"{cell.open:.0%} |"
                    )
                    worst = max(cell.false_kept, cell.false_lost)
                    highest = max(highest, worst)
                    if worst > allowed:
                        bad.append((f"{population.name}, {n} items, {tasks} tasks", worst))
    out(f"\nHighest rate of false verdicts: {highest:.1%} (promised: at most {ALPHA:.0%}; "
        f"{audits} audits a row, so up to {allowed:.1%} could be chance).")  # fmt: skip
    return bad


# --- items in groups

Drawn = Callable[[np.random.Generator, Array, float], Array]
"""drawn(rng, sizes, drop) -> the sums of the groups' changes; the mean over items is -drop."""
UNEQUAL = ((1, 2, 3, 4, 5), (1, 2, 5, 10, 20))
GROUPED = 300
"""Items of a sample of groups; of unequal ones so many on average."""


def together(follow: float, mended: float) -> Drawn:
    """Right or wrong items; each is like its group with probability `follow`, else on its own."""

    def draw(rng: np.random.Generator, sizes: Array, drop: float) -> Array:
        alone = rng.binomial(sizes.astype(int), 1 - follow)
        broken = rng.binomial(alone, mended + drop)
        healed = rng.binomial(alone - broken, mended / (1 - mended - drop))
        whole: Array = right_or_wrong(mended)(rng, sizes.shape, drop)
        return np.asarray(whole * (sizes - alone) + healed - broken, dtype=np.float64)

    return draw


def scored(rng: np.random.Generator, sizes: Array, drop: float) -> Array:
    """Scores: nine tenths of the spread are the group's, one tenth the items' own."""
    whole = 0.6 * (2 * rng.beta(2, 2, sizes.shape) - 1)
    own = 0.2 * rng.standard_normal(sizes.shape) / np.sqrt(sizes)
    return np.asarray(sizes * (np.clip(whole + np.clip(own, -0.3, 0.3), -0.9, 0.9) - drop))


def larger_worse(rng: np.random.Generator, sizes: Array, drop: float) -> Array:
    """Whole groups break, each with a probability in proportion to its size."""
    size = np.unique(sizes)
    chance = drop * size.mean() / (size**2).mean() * sizes
    return np.where(rng.random(sizes.shape) < chance, -sizes, 0.0)


def grouped(audits: int, out: Callable[[str], None]) -> list[tuple[str, float]]:
    """The promise for items that belong together, true drop = margin; the false rates above it."""
    out(f"\nItems in groups, {GROUPED} items, true drop = margin = 0.05, false `kept` / `lost`, "
        "and power:\n")  # fmt: skip
    out("| population | items a group | over groups | as if items were alone | `kept` if nothing "
        "is lost | `lost` at twice the margin |")  # fmt: skip
    out("|---|---|---|---|---|---|")
    bad, margin = [], 0.05
    allowed = stats.binom.ppf(0.999, audits, ALPHA) / audits
    layouts: list[tuple[int, ...]] = [(1,), (2,), (5,), (10,), *UNEQUAL]
    populations: list[tuple[str, Drawn]] = [
        ("whole groups break, none mended", together(1.0, 0.0)),
        ("right or wrong, 9 of 10 like their group, 3% mended", together(0.9, 0.03)),
        ("scores, 9 tenths of the variance the group's", scored),
        ("larger groups break more", larger_worse),
    ]
    for seed, (name, drawn) in enumerate(populations):
        for sizes in layouts:
            shown = " or ".join(filter(None, [", ".join(map(str, sizes[:-1])), str(sizes[-1])]))
            if drawn is larger_worse and len(sizes) == 1:
                continue
            rng = np.random.default_rng([seed, *sizes])
            count = round(GROUPED / np.mean(sizes))
            rates = []
            for times in (1, 0, 2):
                size = rng.choice(np.array(sizes, dtype=np.float64), (audits, count))
                sums = drawn(rng, size, times * margin)
                low, high = ratio_bounds(sums, size, ALPHA, -1.0, 1.0, draws=DRAWS, seed=seed)
                rates.append((float(np.mean(low > -margin)), float(np.mean(high < -margin))))
                if times == 1:
                    naive = _alone(sums, size, margin)
            (kept, lost), (power, _), (_, found) = rates
            out(f"| {name} | {shown} | {kept:.1%} / {lost:.1%} | {naive[0]:.1%} / {naive[1]:.1%} | "
                f"{power:.0%} | {found:.0%} |")  # fmt: skip
            if max(kept, lost) > allowed:
                bad.append((f"{name}, groups of {shown}", max(kept, lost)))
    return bad


def _alone(sums: Array, sizes: Array, margin: float) -> tuple[float, float]:
    """False `kept` and `lost` where each item counts as a draw of its own, 400 audits.

    Each item stands for its group's mean change, so that what is shown is the groups' doing alone.
    """
    wrong = np.zeros(2)
    for one, size in zip(sums[:400], sizes[:400], strict=True):
        change = np.repeat(one / size, size.astype(int))
        low, high = bootstrap_bounds(change, ALPHA, -1.0, 1.0, draws=DRAWS // 2)
        wrong += (float(low) > -margin, float(high) < -margin)
    return float(wrong[0] / len(sums[:400])), float(wrong[1] / len(sums[:400]))


def few_hurt(audits: int, out: Callable[[str], None]) -> None:
    """What is not promised: one text in twenty loses 1 nat, the others nothing (drop = margin)."""
    out("\nNot promised: a loss of which one text in twenty bears all (1 nat; the others change by "
        "0.002), true rise = margin = 0.05:\n")  # fmt: skip
    out("| texts | false `kept` | of these with a worst tenth above the margin | undecided |")
    out("|---|---|---|---|")
    for n in (32, 64, 128, 512):
        rng = np.random.default_rng(n)
        hurt = rng.random((audits, n)) < 0.05
        change = -hurt.astype(float) + 0.002 * rng.standard_normal((audits, n))
        population = Population("", dense, 0.05, (), None)
        low, high = bounds(population, change, ALPHA)
        kept = low > -0.05
        tenth = -np.sort(change, axis=1)[:, : -(-n // 10)].mean(axis=1)
        seen = np.mean(tenth[kept] > 0.05) if kept.any() else 0.0
        out(f"| {n} | {kept.mean():.1%} | {seen:.0%} | {np.mean(~kept & (high >= -0.05)):.0%} |")


def others(audits: int, out: Callable[[str], None]) -> None:
    """What usual intervals would do where the true drop is the margin, one task."""
    out("\nFalse `kept` of other intervals at the same alpha, true drop = margin, one task:\n")
    out("| population | items | this audit | percentile bootstrap | Student t | normal score |")
    out("|---|---|---|---|---|---|")
    rng = np.random.default_rng(1)
    for population, n in (
        (POPULATIONS[0], 30),
        (POPULATIONS[0], 100),
        (POPULATIONS[1], 30),
        (POPULATIONS[4], 30),
        (POPULATIONS[5], 100),
        (POPULATIONS[7], 32),
    ):
        change = population.draw(rng, (audits, n), population.margin)
        ours, _ = bounds(population, change, ALPHA)
        counts = rng.multinomial(n, np.full(n, 1 / n), size=2000) / n
        plain = np.quantile(change @ counts.T, ALPHA, axis=1)
        mean, spread = change.mean(1), change.std(1, ddof=1) / np.sqrt(n)
        student = mean - stats.t.ppf(1 - ALPHA, n - 1) * spread
        score = "-"
        if population.name.startswith("right"):
            passed = tango(change, population.margin) > stats.norm.ppf(1 - ALPHA)
            score = f"{np.mean(passed):.1%}"
        rates = [f"{np.mean(low > -population.margin):.1%}" for low in (ours, plain, student)]
        out(f"| {population.name} | {n} | {' | '.join(rates)} | {score} |")


def tango(change: Array, margin: float) -> Array:
    """Tango's (1998) score statistic for a difference of paired proportions of -margin."""
    n = change.shape[1]
    broken, mended = (change == -1).sum(1), (change == 1).sum(1)
    b = -mended - broken - (2 * n - mended + broken) * margin
    c = broken * margin * (1 + margin)
    share = (np.sqrt(b**2 - 8 * n * c) - b) / (4 * n)
    variance = n * (2 * share - margin * (1 + margin))
    return (mended - broken + n * margin) / np.sqrt(np.maximum(variance, 1e-12))


def enumerated(out: Callable[[str], None]) -> None:
    """Without chance: all outcomes of n items, each with its probability, true drop = margin."""
    out("\nRight or wrong items, all outcomes enumerated, worst of 20 shares mended, true drop = "
        "margin:\n")  # fmt: skip
    out("| items | margin | false kept | false lost | false kept by normal score |")
    out("|---|---|---|---|---|")
    for n, margin in ((10, 0.02), (30, 0.1), (100, 0.1), (150, 0.05)):
        pairs = [(b, m) for b in range(n + 1) for m in range(n + 1 - b)]
        broken, mended = np.array(pairs).T
        place = np.arange(n)
        change = np.where(
            place < broken[:, None], -1.0, (place < (broken + mended)[:, None]).astype(float)
        )
        low, high = bounds(Population("", dense, margin, ()), change, ALPHA)
        score = tango(change, margin) > stats.norm.ppf(1 - ALPHA)
        counts = np.stack([broken, mended, n - broken - mended], axis=1)
        worst = np.zeros(3)
        for share in np.linspace(0, 0.19, 20):
            chances = [share + margin, share, 1 - 2 * share - margin]
            chance = stats.multinomial.pmf(counts, n, chances)
            rates = [chance[low > -margin], chance[high < -margin], chance[score]]
            worst = np.maximum(worst, [rate.sum() for rate in rates])
        out(f"| {n} | {margin} | {' | '.join(f'{rate:.1%}' for rate in worst)} |")


def planned(audits: int, out: Callable[[str], None]) -> None:
    """Does the number of items that `undecided` asks for decide?"""
    out("\nItems asked for by `undecided` (median of those asked), and how often an audit with so "
        "many decides:\n")  # fmt: skip
    out("| population | items | true drop | asked for, in all | then decided |")
    out("|---|---|---|---|---|")
    for population, n, times in (
        (POPULATIONS[1], 100, 0.0),
        (POPULATIONS[1], 100, 2.0),
        (POPULATIONS[4], 100, 0.0),
        (POPULATIONS[6], 32, 0.5),
    ):
        rng = np.random.default_rng(7)
        drop = times * population.margin
        change = population.draw(rng, (200, n), drop)
        low, high = bounds(population, change, ALPHA)
        open_ones = change[(low <= -population.margin) & (high >= -population.margin)]
        asked = [_asked(population, one) for one in open_ones]
        wanted = int(np.median([a for a in asked if a is not None and a > n] or [n]))
        cell = simulate(population, wanted, 1, drop, audits // 4, 3)
        out(
            f"| {population.name} | {n} | {times:g} x margin | {wanted} | "
            f"{cell.kept + cell.lost:.0%} |"
        )


TRUTHS = {
    # True scores: a row for the base model and after each of three tasks.
    "forgets much": ((0.3, 0.2, 0.1), (0.8, 0.2, 0.1), (0.4, 0.9, 0.2), (0.3, 0.5, 0.8)),
    "forgets little": ((0.3, 0.2, 0.1), (0.8, 0.25, 0.1), (0.78, 0.9, 0.1), (0.76, 0.87, 0.8)),
    "forgets nothing": ((0.5, 0.5, 0.5), (0.7, 0.5, 0.5), (0.7, 0.7, 0.5), (0.7, 0.7, 0.7)),
    "all rows alike": ((0.6, 0.6, 0.6),) * 4,
    "nearly perfect": ((0.5, 0.5, 0.5), (0.99, 0.5, 0.5), (0.99, 0.98, 0.5), (0.98, 0.97, 0.99)),
}
FIGURES = ("average_accuracy", "forgetting", "backward_transfer")
SHARED = 0.7  # of the rows, the share whose difficulty is the same after each task


def drawn_items(rng: np.random.Generator, truth: Array, n: int, dense: bool) -> Array:
    """Items of one task, (rows of the matrix, n), whose means are `truth` in expectation."""
    same = rng.random(n) < SHARED
    u = np.where(same, rng.random(n), rng.random((len(truth), n)))
    if not dense:
        return (u < truth[:, None]).astype(float)
    return np.stack(
        [stats.beta.ppf(one, 4 * p, 4 * (1 - p)) for one, p in zip(u, truth, strict=True)]
    )


def coverage(repeats: int, out: Callable[[str], None]) -> list[tuple[str, float]]:
    """How often a figure's interval holds the true figure; return those below by over chance."""
    out("\nIntervals of summary figures, aimed at 95%: how often they hold the true figure, and "
        f"their mean width ({repeats} matrices a row):\n")  # fmt: skip
    names = [name.replace("_", " ") for name in FIGURES]
    out(f"| true scores | rows a task | {' | '.join(names)} | widths | bias of forgetting |")
    out("|---|---|---|---|---|---|---|")
    bad, allowed = [], stats.binom.ppf(0.001, repeats, 0.95) / repeats
    cases = [(name, False) for name in TRUTHS] + [("forgets little", True)]
    for number, (name, dense) in enumerate(cases):
        truth = np.array(TRUTHS[name])
        right = _matrix(truth)
        for n in (50, 500):
            rng = np.random.default_rng([number, n])
            held, width, bias = np.zeros(3), np.zeros(3), 0.0
            for _ in range(repeats):
                items = [drawn_items(rng, truth[:, j], n, dense) for j in range(3)]
                seen = _matrix(np.stack([one.mean(1) for one in items], axis=1))
                columns = [
                    Column(one.mean(1), n, one, key=int(rng.integers(1 << 30))) for one in items
                ]
                found = resample(seen, columns, draws=1000).figures
                for k, figure in enumerate(FIGURES):
                    ends = found[figure].interval()
                    held[k] += ends.low <= getattr(right, figure)() <= ends.high
                    width[k] += ends.high - ends.low
                bias += seen.forgetting() - right.forgetting()
            rates = held / repeats
            shown = f"{name}{', scores between 0 and 1' if dense else ''}"
            widths = " / ".join(f"{one:.3f}" for one in width / repeats)
            cells = [f"{rate:.1%}" for rate in rates] + [widths, f"{bias / repeats:+.3f}"]
            out(f"| {shown} | {n} | {' | '.join(cells)} |")
            bad += [
                (f"{figure} of {shown}, {n} rows", rate)
                for figure, rate in zip(FIGURES, rates, strict=True)
                if rate < allowed
            ]
    return bad


def _matrix(scores: Array) -> ScoreMatrix:
    names = [f"t{j}" for j in range(scores.shape[1])]
    found = ScoreMatrix(names)
    for after, row in enumerate(scores):
        for name, score in zip(names, row, strict=True):
            found.record(after, name, float(score))
    return found


def _asked(population: Population, change: Array) -> int | None:
    if population.limits is not None:
        worst, best = population.limits
    else:
        best = float(imagined_limit(change, population.margin))
        worst = -best
    return items_needed(change, population.margin, ALPHA, worst, best)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="400 audits a row instead of 2,000")
    parser.add_argument(
        "--groups", action="store_true", help="only items in groups, and what is not promised"
    )
    parser.add_argument("--coverage", action="store_true", help="only that of summary figures")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    arguments = parser.parse_args()
    lines: list[str] = []

    def out(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    started = time.process_time()
    audits = 400 if arguments.quick else 2000
    every = not (arguments.groups or arguments.coverage)
    bad: list[tuple[str, float]] = table(audits, out) if every else []
    if every or arguments.groups:
        bad += grouped(audits, out)
        few_hurt(audits, out)
    if every:
        others(audits, out)
        enumerated(out)
        planned(audits, out)
    only_groups = arguments.groups and not arguments.coverage
    missed = [] if only_groups else coverage(100 if arguments.quick else 400, out)
    out(f"\n{time.process_time() - started:.0f} s of processor time")
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, rate in bad:
        print(f"false verdicts: {rate:.1%}: {name}", file=sys.stderr)
    for name, rate in missed:
        print(f"coverage: {rate:.1%}: {name}", file=sys.stderr)
    return 1 if bad or missed else 0


if __name__ == "__main__":
    sys.exit(main())
