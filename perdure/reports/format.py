"""Numbers and findings in words: how many digits to print, and what a run learned and forgot.

A change counts as learned or forgotten only if chance does not explain it: it must exceed 1.96
standard errors of the difference of two scores, each the mean of a test set drawn at random. The
variance of a score in [0, 1] is at most p (1 - p), whatever the metric, so the bound errs towards
"unchanged"; pairing by item (`perdure audit`) decides smaller changes. A score without a highest
value, such as a perplexity, has no such bound and must change by 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from perdure.errors import printable
from perdure.reports.data import RunView, TaskFacts, comparable
from perdure.scoring.intervals import noise

DASH = "–"
UNBOUNDED_CHANGE = 0.05


def digits_for(rows: int) -> int:
    """Decimals worth printing for a mean over `rows` items (standard error up to 0.5/sqrt(n))."""
    return 3 if rows >= 500 else 2


def from_outside(text: str) -> str:
    """Text from outside as `rich` shows it: no markup, and nothing that steers a terminal."""
    from rich.markup import escape

    return escape(printable(text))


def number(value: float | None, digits: int = 2) -> str:
    """`0.78`; a dash where the value is missing."""
    if value is None or math.isnan(value):
        return DASH
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def signed(value: float | None, digits: int = 2) -> str:
    """`+0.12`, `−0.45`, `0.00`; a dash where the value is missing."""
    text = number(value, digits)
    if text == DASH or text.startswith("−") or not float(text):
        return text
    return f"+{text}"


def significant(value: float | None, digits: int = 3) -> str:
    """Three significant digits without exponents where that is short: `23.4`, `1,240`, `0.0312`."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞"
    if value == 0:
        return "0"
    # Of the rounded value: 9.996 has its three digits as 10.0, not as 10.00.
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    if exponent >= 6 or exponent < -4:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    text = f"{value:,.{max(0, digits - 1 - exponent)}f}"
    return text.replace("-", "−")


def printer(task: TaskFacts) -> Callable[[float], str]:
    """How this task's scores are printed, missing ones too."""
    if not task.bounded:
        return significant
    digits = digits_for(task.rows)
    return lambda value: number(value, digits)


def percent(value: float | None) -> str:
    """A relative change: `+44 %`, `+6.4 %`; from ten times on `×12.5`."""
    if value is None or not math.isfinite(value):
        return DASH
    if value >= 9:
        return f"×{significant(1 + value)}"
    return f"{signed(100 * value, 1 if abs(value) < 0.0995 else 0)} %"


def duration(seconds: float | None) -> str:
    if seconds is None or math.isnan(seconds):
        return DASH
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def memory(megabytes: float | None) -> str:
    if megabytes is None or math.isnan(megabytes):
        return DASH
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1024 else f"{megabytes:.0f} MB"


def listing(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


@dataclass(frozen=True)
class Finding:
    """What became of one task in one run. Scores are nan where missing."""

    task: TaskFacts
    base: float
    learned: float
    final: float
    gained: str
    """learned | worse | unchanged | unknown, from base to just learned."""
    kept: str
    """kept | forgotten | improved | last | unknown, from just learned to the end."""


def change(task: TaskFacts, before: float, after: float) -> int:
    """+1 if the score got better, -1 if worse, 0 if chance may explain it."""
    if task.bounded:
        # `share` is turned so that more is better.
        shares = task.share(before), task.share(after)
        difference, bound = shares[1] - shares[0], noise(*shares, task.rows)
    elif min(before, after) > 0:
        better = 1 if task.higher_is_better else -1
        difference = better * (math.log(after) - math.log(before))
        bound = math.log1p(UNBOUNDED_CHANGE)
    else:  # of 0 there is no share
        better = 1 if task.higher_is_better else -1
        difference = better * (after - before)
        bound = UNBOUNDED_CHANGE * max(abs(before), abs(after))
    return 0 if abs(difference) <= max(bound, 1e-9) else (1 if difference > 0 else -1)


def findings(run: RunView) -> list[Finding]:
    """One finding a task, in the order of the stream, as far as the run has come."""
    found = []
    for index, task in enumerate(run.tasks, start=1):
        base, learned = run.score(0, task.name), run.score(index, task.name)
        final = run.score(run.done, task.name)
        gained = kept = "unknown"
        if not (math.isnan(base) or math.isnan(learned)):
            gained = {1: "learned", 0: "unchanged", -1: "worse"}[change(task, base, learned)]
        if run.done == index:
            kept = "last"
        elif run.done > index and not (math.isnan(learned) or math.isnan(final)):
            kept = {1: "improved", 0: "kept", -1: "forgotten"}[change(task, learned, final)]
        found.append(Finding(task, base, learned, final, gained, kept))
    return found


def forgotten(run: RunView) -> list[str]:
    """Names of the tasks that this run forgot."""
    return [f.task.name for f in findings(run) if f.kept == "forgotten"]


def story(run: RunView) -> str:
    """One sentence without its subject: "learned a and b, but forgot a (0.78 → 0.33)"."""
    if run.done == 0:
        return "has learned no task yet"
    found = findings(run)
    reached = [f for f in found if f.gained != "unknown"]
    learned = [f.task.name for f in reached if f.gained == "learned"]
    text = f"learned {_some(learned, len(reached), 'tasks')}"
    earlier = [f for f in found if f.kept not in ("unknown", "last")]
    lost = [f for f in earlier if f.kept == "forgotten"]
    if lost and len(lost) <= 3:
        text += ", but forgot " + listing(
            [
                f"{f.task.name} ({printer(f.task)(f.learned)} → {printer(f.task)(f.final)})"
                for f in lost
            ]
        )
    elif lost:
        text += f", but forgot {len(lost)} of {len(earlier)} earlier tasks"
    elif earlier and learned:
        what = {1: "the earlier task", 2: "both earlier tasks"}.get(
            len(earlier), f"all {len(earlier)} earlier tasks"
        )
        text += f", and kept {what}"
    worse = [f.task.name for f in reached if f.gained == "worse"]
    if worse:
        text += f"; training made {_some(worse, len(reached), 'tasks')} worse"
    return text


def _some(names: Sequence[str], total: int, what: str) -> str:
    if not names:
        return f"none of {total} {what}" if total > 1 else "nothing that chance could not explain"
    if len(names) <= 3:
        return listing(names)
    return f"{len(names)} of {total} {what}" if total else f"{len(names)} {what}"


def general_story(run: RunView) -> str:
    """Perplexity on general text before and after; empty where it was not measured."""
    series = [v for v in run.general if not math.isnan(v)]
    if len(series) < 2 or math.isnan(run.general_before):
        return ""
    before, after = series[0], series[-1]
    relative = percent(after / before - 1) if before > 0 else DASH
    so_far = "" if run.complete else " so far"
    return (
        f"perplexity on general text {significant(before)} → {significant(after)}{so_far} "
        f"({relative})"
    )


def headline(runs: Sequence[RunView]) -> str:
    """The finding of the whole report in one line."""
    if len(runs) == 1:
        run = runs[0]
        subject = run.label
        if run.done == 0:
            return f"{subject} has learned no task yet"
        found = findings(run)
        reached = [f for f in found if f.gained != "unknown"]
        learned = [f.task.name for f in reached if f.gained == "learned"]
        lost = [f.task.name for f in found if f.kept == "forgotten"]
        earlier = [f for f in found if f.kept not in ("unknown", "last")]
        text = f"{subject} learned {_some(learned, len(reached), 'tasks')}"
        if lost:
            return f"{text}, and forgot {_some(lost, len(earlier), 'earlier tasks')}"
        return f"{text}, and forgot nothing" if earlier and learned else text
    return _comparison(runs)


def _comparison(runs: Sequence[RunView]) -> str:
    if not comparable(runs):
        return f"{len(runs)} runs over different tasks"
    ranked = sorted(
        ((value, run) for run in runs if (value := run.summary("average_accuracy")) is not None),
        key=lambda pair: -pair[0],
    )
    if len(ranked) < len(runs):
        return f"{len(runs)} methods over the same tasks, not all of them finished"
    best = ranked[0]
    tied = [pair for pair in ranked if best[0] - pair[0] <= _mean_noise(best[1], pair[1])]
    if len(tied) == len(ranked):
        return "No method is clearly ahead at the end"
    names = listing([run.label for _, run in tied])
    if len(tied) > 3:
        names = f"{len(tied)} of {len(ranked)} methods"
    rest = ranked[len(tied) :]
    lost = {run.label: forgotten(run) for _, run in ranked}
    losers = [run.label for _, run in rest if lost[run.label]]
    if losers and not any(lost[run.label] for _, run in tied):
        # The best also kept what they learned: then that, and who did not, is the finding.
        kept = f"{names} kept what {'it' if len(tied) == 1 else 'they'} learned"
        if len(losers) == 1:
            return f"{kept}; {losers[0]} forgot {_some(lost[losers[0]], 0, 'tasks')}"
        who = listing(losers) if len(losers) < 3 else f"{len(losers)} others"
        return f"{kept}; {who} forgot"
    if len(tied) == 1 and len(rest) == 1:
        return f"{names} knows more at the end than {rest[0][1].label}"
    return f"{names} know{'s' if len(tied) == 1 else ''} the most at the end"


def _mean_noise(first: RunView, second: RunView) -> float:
    """1.96 standard errors of the difference of two runs' average accuracies."""
    tasks = [t for t in first.tasks if t.higher_is_better]
    bounds = [
        noise(first.score(first.done, t.name), second.score(second.done, t.name), t.rows)
        for t in tasks
    ]
    return math.sqrt(sum(b * b for b in bounds)) / max(len(tasks), 1)


def resolution(tasks: Sequence[TaskFacts]) -> str:
    """How fine the scores are, for the small print; empty if the test sets are not known."""
    rows = [t.rows for t in tasks if t.higher_is_better and t.rows > 0]
    if not rows:
        return ""
    span = str(min(rows)) if min(rows) == max(rows) else f"{min(rows)} to {max(rows)}"
    bound = number(noise(0.5, 0.5, min(rows)), digits_for(min(rows)))
    return (
        f"Each score is a mean over {span} test rows. The words call a change real only where "
        f"chance would give one as large less than one time in twenty (at {min(rows)} rows and a "
        f"score near one half: {bound})."
    )
