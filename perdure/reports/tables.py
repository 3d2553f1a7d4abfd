"""The table of a comparison for a spreadsheet (CSV), a paper (LaTeX) or a README (Markdown).

CSV holds every number in full, a line a method, empty where one is missing. LaTeX and Markdown are
what the terminal prints: rounded, each figure with its interval, the best ones in bold, which only
those are that are ahead of all others (`ranking`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

from perdure.errors import UsageError
from perdure.reports import (
    classes,
    format,
    left_out,
    numbers,
    pool_views,
    ranking,
    reinforced_views,
    words,
)
from perdure.reports.data import SUMMARY, RunData, RunView, task_order, views
from perdure.reports.pools import pool_of
from perdure.reports.seeds import grouped, seed_of

Form = Literal["csv", "latex", "markdown"]
FORMS: tuple[str, ...] = get_args(Form)
FIGURES = (
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "forgetting",
)
"""Of the rounded tables; CSV has all."""
_TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def table(runs: Sequence[RunData], form: str) -> str:
    """The table as text that ends in a newline.

    Raises: UsageError for a form that is none of `FORMS`.
    """
    if form not in FORMS:
        raise UsageError(f"--table {form}: no such form", f"one of: {', '.join(FORMS)}")
    shown = grouped(views(runs))
    return {"csv": _csv, "latex": _latex, "markdown": _markdown}[form](shown)


def _csv(runs: Sequence[RunView]) -> str:
    tasks = [task.name for task in task_order(runs)]
    figures = [f"{key}{end}" for key in numbers.KEYS for end in ("", "_low", "_high", "_sd")]
    ends = [f"end:{task}{end}" for task in tasks for end in ("", "_low", "_high")]
    general = ["general_base", "general_end", "general_nats", "general_nats_low",
               "general_nats_high"]  # fmt: skip
    scenario = ["scenario"] if any(run.scenario for run in runs) else []
    pools = list(pool_views.CSV) if any(map(pool_of, runs)) else []
    rewards = reinforced_views.csv_heads(runs)
    heads = [*scenario, *figures, *ends, *general, *pools, *rewards]
    lines: list[list[Any]] = [["method", "seeds", "runs", *heads]]
    for run in (one for own in runs for one in classes.both(own)):
        cells: list[Any] = []
        for key in numbers.KEYS:
            found = numbers.figure(run, key)
            cells += [found["mean"], found["low"], found["high"], found["sd"]]
        for task in tasks:
            score = run.score(len(run.tasks), task)
            cell = run.evidence.cell(len(run.tasks), task) if task in run.matrix.tasks else None
            cells += [score, *((None, None) if cell is None else (cell.low, cell.high))]
        change = run.evidence.general_change
        cells += [run.general_before, run.general_after]
        # As printed elsewhere: above 0 is a rise of the loss.
        cells += [None] * 3 if change is None else [-change.mean, -change.high, -change.low]
        cells += pool_views.csv_cells(pool_of(run)) if pools else []
        cells += reinforced_views.csv_cells(run, runs)
        seeds = " ".join(map(seed_of, run.members))
        first = [run.label, seeds, len(run.members), *([run.scenario] if scenario else [])]
        lines.append([*first, *map(_number, cells)])
    return format.csv_text(lines)


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(float(value))


def _rounded(runs: Sequence[RunView]) -> tuple[list[str], list[list[tuple[str, str, bool]]]]:
    """Headings, and for each method its cells: (figure, interval, best)."""
    digits = 1 + format.digits_for(min((t.rows for r in runs for t in r.tasks), default=0))
    wanted = [row for row in SUMMARY if row[0] in FIGURES]
    best = {key: ranking.best(runs, key) for key in (*FIGURES, ranking.GENERAL)}
    # Of classes both scenarios' figures are there, and one is ahead of what is scored alike alone.
    others = [run.other for run in runs if run.other is not None]
    alike = len(others) == len(runs)
    best_other = {key: ranking.best(others, key) if alike else None for key in best}
    scenario = any(run.scenario for run in runs)
    heads = ["Method", "Seeds", *(["Scenario"] if scenario else [])]
    heads += [f"{title} {'↑' if up else '↓'}" for _, title, up, _ in wanted]
    general = any(run.general for run in runs)
    heads += ["General perplexity ↓"] if general else []
    pools = any(map(pool_of, runs))
    heads += [one.title.capitalize() for one in pool_views.shortened(None)] if pools else []
    heads += reinforced_views.short_heads(runs)
    rows = []
    for slot, run in [(i, one) for i, own in enumerate(runs) for one in classes.both(own)]:
        at = best if run is runs[slot] else best_other
        cells = [(run.label, "", False), (", ".join(map(seed_of, run.members)), "", False)]
        cells += [(run.scenario, "", False)] if scenario else []
        for key, _, _, _ in wanted:
            show = format.signed if key == "backward_transfer" else format.number
            ends = words.figure_interval(run, key, digits, sign=key == "backward_transfer")
            cells.append((show(run.summary(key), digits), ends, at[key] == slot))
        if general:
            values = (run.general_before, run.general_after)
            text = " → ".join(map(format.significant, values))
            cells.append((text, words.general_interval(run), at[ranking.GENERAL] == slot))
        if pools:
            shown = pool_views.shortened(pool_of(run))
            cells += [(one.text, one.interval, False) for one in shown]
        cells += [(text, "", False) for text in reinforced_views.short_cells(run, runs)]
        rows.append(cells)
    return heads, rows


def _named(heads: Sequence[str]) -> int:
    """Columns of text, which stand before those of figures."""
    return 2 + ("Scenario" in heads)


def _markdown(runs: Sequence[RunView]) -> str:
    heads, rows = _rounded(runs)

    def clean(text: str) -> str:
        return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")

    def cell(found: tuple[str, str, bool]) -> str:
        text, ends, best = clean(found[0]), clean(found[1]), found[2]
        return (f"**{text}**" if best else text) + (f" ({ends})" if ends else "")

    named = _named(heads)
    lines = [
        heads,
        [*["---"] * named, *["---:"] * (len(heads) - named)],
        *[map(cell, r) for r in rows],
    ]
    drawn = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{drawn}\n{_small_print(runs)}\n"


def _latex(runs: Sequence[RunView]) -> str:
    heads, rows = _rounded(runs)

    def cell(found: tuple[str, str, bool]) -> str:
        text, ends, best = tex(found[0]), tex(found[1]), found[2]
        text = rf"\textbf{{{text}}}" if best else text
        return rf"{text} {{\small ({ends})}}" if ends else text

    named = _named(heads)
    lines = [
        rf"% Needs \usepackage{{booktabs}}. {_small_print(runs)}",
        rf"\begin{{tabular}}{{{'l' * named}{'r' * (len(heads) - named)}}}",
        r"\toprule",
        rf"{' & '.join(map(tex, heads))} \\",
        r"\midrule",
        *(rf"{' & '.join(map(cell, row))} \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def tex(text: str) -> str:
    """Text as LaTeX prints it: its own signs escaped, arrows, minus and dash as commands."""
    signs: dict[str, str] = _TEX | {
        "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$", "−": "$-$", "–": "--",
        "×": r"$\times$", "∞": r"$\infty$", "\n": " ",
    }  # fmt: skip
    return "".join(signs.get(sign, sign) for sign in text)


def _small_print(runs: Sequence[RunView]) -> str:
    over = (
        "over test rows, and where there are several seeds over them too (Student's t, n - 1), "
        "whichever is wider"
        if any(len(run.members) > 1 for run in runs)
        else "over test rows"
    )
    said = (
        f"In brackets: 95 % intervals, {over}; of general perplexity, of its change. "
        "Bold: ahead of all others beyond the interval of the difference."
    )
    # A line break in a name would end LaTeX's comment.
    missing = " ".join(left_out.line(runs).split())
    return f"{said} {missing[0].upper()}{missing[1:]}." if missing else said
