"""Findings in words: what a run learned, kept and lost, and what its rows cannot tell.

The words are those of `perdure.scoring.change`, which decides; here they become sentences. Each is
said of an interval of 95 %, by the rows themselves where a run kept them, with the margin beside it
(`scoring.max_drop`, `scoring.max_loss_rise`). General ability is one of the things that can be
lost, like a task. Nothing is called kept, or not forgotten, because no difference was seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev

from perdure.reports.caps import FEW, NAMED, named
from perdure.reports.data import RunView, TaskFacts
from perdure.reports.findings import Finding, account, findings
from perdure.reports.format import (
    DASH,
    between,
    digits_for,
    listing,
    number,
    percent,
    printer,
    signed,
    significant,
)
from perdure.scoring.change import OPEN, Change
from perdure.scoring.intervals import noise


def story(run: RunView) -> str:
    """What a run did, as clauses without their subject: "learned a and b; forgot a (0.7 → 0.3)"."""
    if not any(run.matrix.learned[: run.done]):
        return "has learned no task yet"
    what, found = account(run), findings(run)
    reached = sum(f.gained != "unknown" and not f.after for f in found)
    clauses = [f"learned {some(what.learned, reached)}"] if what.learned else []
    if what.not_learned:
        clauses.append(f"did not learn {some(what.not_learned, reached)}")
    if what.unclear:
        clauses.append(f"{OPEN} whether it learned {some(what.unclear, reached)}")
    clauses += map(further_words, what.further)
    scores = {f.task.name: f for f in found}
    if what.below:
        tasks = [scores[name] for name in what.below if name in scores]
        names = [_moved(f.task, f.base, f.final) for f in tasks]
        names += [name for name in what.below if name not in scores]
        clauses.append(f"lost {some(names, len(names))} against the base model")
    forgot = [f for f in found if f.kept == "lost"]
    if forgot:
        names = [_moved(f.task, f.learned, f.final) for f in forgot]
        clauses.append(f"forgot {some(names, what.earlier)}")
    if kept := [f.task.name for f in found if f.kept in ("kept", "improved")]:
        clauses.append(f"kept {some(kept, what.earlier)}")
    if unclear := [f.task.name for f in found if f.kept == "open"]:
        clauses.append(f"{OPEN} whether it kept {some(unclear, what.earlier)}")
    return "; ".join(clauses) or "nothing can be said of what it learned"


def told(run: RunView) -> str:
    """`story` behind the run's label, as a sentence."""
    said = story(run)
    return f"{run.label}{':' if said.startswith((OPEN, 'nothing')) else ''} {said}"


def further_words(found: Finding) -> str:
    """What a task changed where another had begun: "improved velan over warm-up (0.6 → 0.7)"."""
    over = f"{found.task.name} over {found.after}"
    show = printer(found.task)
    moved = f"({show(found.begun)} → {show(found.learned)})"
    said = {
        "learned": f"improved {over}",
        "not learned": f"did not improve {over}",
        "worse": f"left {found.task.name} worse than {found.after} did",
    }.get(found.gained, f"{OPEN} whether it improved {over}")
    return f"{said} {moved}"


def _moved(task: TaskFacts, before: float, after: float) -> str:
    show = printer(task)
    return f"{task.name} ({show(before)} → {show(after)})"


def some(names: Sequence[str], total: int) -> str:
    """The names, or, of more than three, how many of `total`."""
    if len(names) <= 3:
        return listing(names)
    return f"all {total} tasks" if len(names) == total else f"{len(names)} of {total} tasks"


def general_story(run: RunView) -> str:
    """Perplexity on general text before and after; empty where it was not measured."""
    series = [v for v in run.general if not math.isnan(v)]
    if len(series) < 2 or math.isnan(run.general_before):
        return ""
    before, after = series[0], series[-1]
    relative = percent(after / before - 1) if before > 0 else DASH
    so_far = "" if run.complete else " so far"
    change = run.evidence.general_change
    word = "" if change is None else f": {outcome_words(change)}"
    return (
        f"perplexity on general text {significant(before)} → {significant(after)}{so_far} "
        f"({relative}){word}"
    )


def headline(run: RunView) -> str:
    """The finding of a report of one run in one line: losses first, the rest as it was shown."""
    if not any(run.matrix.learned[: run.done]):
        return f"{run.label} has learned no task yet"
    what = account(run)
    reached = len(what.learned) + len(what.not_learned) + len(what.unclear)
    if what.learned:
        text = f"{run.label} learned {some(what.learned, reached)}"
    elif what.not_learned and not what.unclear:
        none = f"none of {reached} tasks" if reached > 1 else "nothing"
        text = f"{run.label} learned {none}"
    else:  # classes have no score before they are learned, from which a gain could be told
        text = f"{run.label}: {OPEN} what it learned" if reached else run.label
    text = "; ".join([text, *map(further_words, what.further)])
    losses = []
    if what.below:
        losses.append(f"lost {some(what.below, len(what.below))} against the base model")
    if what.forgotten:
        losses.append(f"forgot {some(what.forgotten, what.earlier)}")
    joined = ";" if what.further else (", and" if what.learned else ", but") if reached else ""
    if losses:
        text += f"{joined} {' and '.join(losses)}"
    elif what.nothing_lost and what.earlier and (what.learned or not reached):
        return f"{text}{joined} forgot nothing"
    if what.open:
        rest = "the rest" if losses and len(what.open) > 3 else some(what.open, len(what.open))
        text += f"{'; ' if reached or losses else ': '}{OPEN} whether it kept {rest}"
    count = sum(run.matrix.learned[: run.done])
    tasks = f"{count} task{'s' if count > 1 else ''}"
    return f"{text} has learned {tasks}" if text == run.label else text


# --- one change


def outcome_words(change: Change) -> str:
    """The outcome with its margin: "lost (more than 0.02)", "kept (within 0.02)", or the third."""
    margin = margin_words(change)
    if not change.known:
        return "no interval is known, as the run did not keep what it was made of"
    if change.gain == "learned":
        return f"improved (by more than {margin})"
    return {"lost": f"lost (more than {margin})", "kept": f"kept (within {margin})"}.get(
        change.outcome, f"{OPEN} ({reach_words(change)})"
    )


def gain_words(change: Change) -> str:
    """The same of a gain: "learned (more than 0.02)", "not learned (within 0.02)", "got worse"."""
    margin = margin_words(change)
    if not change.known:
        return "no interval is known"
    if change.outcome == "lost":
        return f"got worse (by more than {margin})"
    return {
        "learned": f"learned (more than {margin})",
        "not learned": f"not learned (less than {margin})",
    }.get(change.gain, f"{OPEN} whether it was learned")


def reach_words(change: Change) -> str:
    """What these rows could show, and how many would tell: "80 rows; a drop of 0.15 would show"."""
    unit = " nats" if change.nats else ""
    things = "texts" if change.nats else "rows"
    digits = 3 if change.smallest < 0.095 else 2
    if change.seeds:
        return (
            f"{change.seeds} seeds of {change.rows} {things} each; they show a loss from "
            f"{change.smallest:.{digits}f}{unit} on; more seeds or rows would tell"
        )
    parts = [f"{change.rows} {things}; they show a loss from {change.smallest:.{digits}f}{unit} on"]
    if change.needed is not None:
        parts.append(f"about {change.needed:,} like these would say {change.would_be}")
    else:
        parts.append("more than 10,000,000 like these would be needed")
    return "; ".join(parts)


def margin_words(change: Change) -> str:
    return f"{change.margin:g} nats" if change.nats else f"{change.margin:.3g}"


def change_words(task: TaskFacts, change: Change | None) -> str:
    """The change in the score's own direction: "+0.12", or of a perplexity "+6.4 %"."""
    if change is None or math.isnan(change.mean):
        return DASH
    value = task.sign * change.mean
    if change.nats:
        return percent(math.expm1(value))
    if not task.bounded:
        return f"+{significant(value)}" if value > 0 else significant(value)
    return signed(value, digits_for(task.rows))


def interval_words(task: TaskFacts, change: Change | None) -> str:
    """Its interval in the same unit: "−0.21 to +0.03"; empty where none is known."""
    if change is None or not change.known:
        return ""
    ends = sorted(task.sign * end for end in (change.low, change.high))
    if change.nats:
        return " to ".join(percent(math.expm1(end)) for end in ends)
    if not task.bounded:
        return " to ".join(map(significant, ends))
    return " to ".join(signed(end, digits_for(task.rows)) for end in ends)


# --- figures of a run


def figure_interval(run: RunView, key: str, digits: int, *, sign: bool) -> str:
    """A summary figure's interval in words; empty where none is known."""
    ends = run.evidence.interval(key)
    return "" if ends is None else between(ends.low, ends.high, digits, sign=sign)


SEEDS = (
    "Runs that differ in their seed alone are one row: the mean over seeds, below it its 95 % "
    "interval (at each end the wider of Student's t, one degree of freedom less than there are "
    "seeds, and of the runs' own over test rows) and sd, the standard "
    "deviation between seeds. A seed also draws rows "
    "and general texts, so the spread holds that too; general text is compared with the same "
    "run's own base model. Marked best is only what is ahead of all others by the seeds and by "
    "the rows."
)


def spread_words(run: RunView, key: str, digits: int) -> str:
    """The standard deviation over seeds: "sd 0.021"; empty for one run."""
    values = [value for one in run.members if (value := one.summary(key)) is not None]
    if len(values) < 2 or len(values) < len(run.members):
        return ""
    return f"sd {number(stdev(values), digits)}"


def cells_words(run: RunView, key: str) -> str:
    """Which cells a figure rests on where some were never scored, as after an extension.

    "3 of 4 cells; never scored: german-names after 1". Empty where it rests on all, and for a run
    that is not complete, of which that is said once.
    """
    if not run.complete:
        return ""
    # A class that was not learned yet has no score: that is no gap.
    missing = run.matrix.missing(key, since_learned=bool(run.scenario))
    if not missing:
        return ""
    gone: dict[str, list[str]] = {}
    for cell in missing:
        gone.setdefault(cell.task, []).append(str(cell.after) if cell.after else "none")
    most = NAMED if len(missing) <= NAMED else FEW
    every = [f"{task} after {_some_steps(after, most)}" for task, after in gone.items()]
    names = "; ".join(named(every, most))
    if len(every) > most:
        names += f" tasks, {len(missing):,} scores in all"
    if run.summary(key) is None:
        return f"not defined; never scored: {names}"
    used = len(run.matrix.cells(key).used)
    return f"rests on {used} of {used + len(missing)} cells; never scored: {names}"


def _some_steps(after: Sequence[str], most: int) -> str:
    return listing(after) if len(after) <= most else ", ".join(named(after, most))


def mixed_parts(run: RunView, key: str, digits: int) -> str:
    """What a mean of rises and falls is made of: "mean of +0.06 and −0.06"; else empty."""
    if key not in ("forgetting", "backward_transfer") or run.summary(key) is None:
        return ""
    parts = list(run.parts(key).values())
    shown = [signed(part, digits) for part in parts]
    if not (any(one[0] == "+" for one in shown) and any(one[0] == "−" for one in shown)):
        return ""
    if len(parts) <= 3:
        return f"mean of {listing(shown)}"
    up, down = sum(p for p in parts if p > 0), sum(p for p in parts if p < 0)
    return f"{signed(up, digits)} and {signed(down, digits)} in all, over {len(parts)} tasks"


def general_interval(run: RunView) -> str:
    change = run.evidence.general_change
    if change is None or not change.known:
        return ""
    ends = [percent(math.expm1(-end)) for end in (change.high, change.low)]
    first, second = ends[0].removesuffix(" %") if ends[1].endswith(" %") else ends[0], ends[1]
    return f"{first} to {second}"


def general_verdict(run: RunView) -> str:
    change = run.evidence.general_change
    return "" if change is None else outcome_words(change)


def resolution(tasks: Sequence[TaskFacts]) -> str:
    """How fine the scores are, for the small print; empty if the test sets are not known."""
    rows = [t.rows for t in tasks if t.higher_is_better and t.rows > 0]
    if not rows:
        return ""
    span = str(min(rows)) if min(rows) == max(rows) else f"{min(rows)} to {max(rows)}"
    bound = number(noise(0.5, 0.5, min(rows)), digits_for(min(rows)))
    return (
        f"Each score is a mean over {span} test rows. Intervals are of 95 %; a change counts as a "
        f"loss where its interval lies beyond the margin, as kept where it lies within. (Two test "
        f"sets of {min(rows)} rows drawn apart differ by up to {bound} at a score near one half; "
        f"rows compared with themselves show less.)"
    )
