"""Progress and score tables in the terminal, and plain lines where there is none.

On a terminal: a live bar on stderr, and its figures in a line below. In a log file or a
pipe: one line at the start of each task, then about every ten seconds, then at its end, without a
control character. Text from recipes and data is never read as markup.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from perdure.reports import (
    averaging,
    caps,
    class_tables,
    classes,
    findings,
    format,
    general,
    left_out,
    no_class,
    pool_views,
    provenance,
    ranking,
    reinforced_views,
    telling,
    words,
)
from perdure.reports.data import (
    LEVELS,
    SUMMARY,
    RunData,
    RunView,
    TaskFacts,
    views,
)
from perdure.reports.format import plain, step_name, titled
from perdure.reports.seeds import grouped
from perdure.reports.tables import FIGURES

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID
    from rich.table import Table
    from rich.text import Text

_SAMPLED: Mapping[str, Callable[[float], str]] = {
    "reward": format.significant,
    "length": lambda value: f"{value:.0f} tokens",
    "truncated": lambda value: f"{100 * value:.0f} %",
}
PLAIN_EVERY = 10.0
"""Seconds between two lines of one task where there is no terminal."""


class Display:
    """Progress of a run: method, task, step, loss, tokens a second, time left.

    Args:
        console: where to write; None shows nothing. See `make_display`.
        clock: seconds, monotonic; decides when the next plain line is due.
    """

    def __init__(
        self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console
        self.live = bool(console and console.is_terminal and not console.is_dumb_terminal)
        self._clock = clock
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}
        # Of the plain lines: what they are about, how far it was, when the next one is due.
        self._key: tuple[str, str, str] | None = None
        self._done, self._due = 0, 0.0

    def __enter__(self) -> Display:
        if self.console is not None and self.live:
            self._progress = _progress(self.console)
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            for bar in self._bars.values():
                self._progress.remove_task(bar)  # what was done is said in plain lines
            self._progress.stop()
        self._progress, self._bars = None, {}

    def training(
        self,
        method: str,
        task: str,
        step: int,
        steps: int,
        loss: float | None = None,
        tokens_per_second: float | None = None,
        seconds_left: float | None = None,
        *,
        sampled: Mapping[str, float] | None = None,
    ) -> None:
        """Tell that `step` of `steps` optimizer steps of this task are done.

        Args: sampled: of a task learned from rewards, means over what the model wrote; its loss,
            near 0 whatever is learned, says nothing.
        """
        facts = [
            *(f"{name} {_SAMPLED[name](value)}" for name, value in (sampled or {}).items()),
            f"loss {format.significant(loss)}" if loss is not None else "",
            f"{format.significant(tokens_per_second)} tokens/s" if tokens_per_second else "",
            f"{format.duration(seconds_left)} left" if seconds_left else "",
        ]
        self._show("training", method, task, step, steps, ", ".join(f for f in facts if f))

    def scoring(self, method: str, task: str, done: int, total: int) -> None:
        """Tell that `done` of `total` rows of this task are scored."""
        self._show("scoring", method, task, done, total, "")

    def doing(self, method: str, verb: str, what: str, done: int, total: int) -> None:
        """Tell how far other slow work has come: "distilling", "general texts", 3 of 64."""
        self._show(verb, method, what, done, total, "")

    def message(self, text: str) -> None:
        """Print a line that stays."""
        if self.console is None:
            return
        for line in text.split("\n"):
            self.console.print(plain(line), soft_wrap=True)

    def _show(self, verb: str, method: str, task: str, done: int, total: int, facts: str) -> None:
        if self._progress is not None:
            self._show_live(verb, method, task, done, total, facts)
            return
        key, now = (verb, method, task), self._clock()
        if key != self._key or done < self._done:
            # Training says that it begins; scoring, often over in a moment, only if it goes on.
            self._key, self._due = key, now + (PLAIN_EVERY if verb == "scoring" else 0.0)
        elif self._done >= total:
            return  # its end was said
        self._done = done
        if done < total and now < self._due:
            return
        self._due = now + PLAIN_EVERY
        unit = "step" if verb == "training" else "row"
        text = f"{method}: {verb} {task}, {unit} {done}/{total}" + (f", {facts}" if facts else "")
        self.message(text)

    def _show_live(
        self, verb: str, method: str, task: str, done: int, total: int, facts: str
    ) -> None:
        progress = self._progress
        assert progress is not None
        fields: dict[str, Any] = {
            "what": plain(f"{method}  {verb} {task}"),
            "facts": plain(f"  {facts}", "dim") if facts else None,
        }
        for other in [name for name in self._bars if name != verb]:
            progress.remove_task(self._bars.pop(other))
        if verb not in self._bars:
            self._bars[verb] = progress.add_task("", total=total, completed=done, **fields)
        else:
            progress.update(self._bars[verb], total=total, completed=done, **fields)


class NullDisplay(Display):
    """A display that shows nothing: for `--json`, for all processes but the first, for tests."""

    def __init__(self) -> None:
        super().__init__(None)


def make_display(*, json: bool = False) -> Display:
    """A display for this process: none under `--json`, nor on any process but the first.

    It writes to stderr, so that a table on stdout can be piped.
    """
    if json or int(os.environ.get("RANK", "0")) != 0:
        return NullDisplay()
    from rich.console import Console

    return Display(Console(stderr=True))


def _progress(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn
    from rich.progress import Task as Bar
    from rich.table import Column

    class What(ProgressColumn):
        """Our field as it is; rich's TextColumn would read markup in a task's name."""

        def render(self, task: Bar) -> Text:
            text: Text = task.fields["what"]
            return text

    class TwoLines(Progress):
        """The bar, and below it the figures: both have room on 80 columns."""

        def get_renderables(self) -> Iterable[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            yield from (task.fields["facts"] for task in self.tasks if task.fields["facts"])

    return TwoLines(
        What(Column(ratio=1, overflow="ellipsis", no_wrap=True)),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=10)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
        expand=True,
    )


def score_table(runs: Sequence[RunData], console: Console | None = None) -> None:
    """Print each run's score matrix, then all methods side by side.

    Args:
        console: where to write; None is stdout. Missing scores are a dash.
    """
    show_tables(grouped(views(runs)), console)


def show_tables(digested: Sequence[RunView], console: Console | None = None) -> None:
    """The same of runs that are digested already."""
    from rich.console import Console

    target = console or Console()
    for run in digested:
        if run.tasks:
            # Too many tasks for this window: task by task; the report has the whole matrix.
            fits = 16 + sum(_least(task) + 3 for task in run.tasks) <= target.width
            target.print(_matrix_table(run) if fits else _task_table(run))
            if said := "" if fits else telling.rows_words([run]):
                target.print(plain(f"{run.label}: {said}"))
    target.print(_summary_table(digested))
    for run in digested:
        for key, title, _, _ in SUMMARY:
            if said := words.cells_words(run, key):
                target.print(plain(f"{run.label}: {title.lower()} {said}"))
    if any(run.told for run in digested):
        target.print(plain(words.SEEDS))
    if said := left_out.line(digested):
        target.print(plain(said))
    for said in class_tables.scenarios(digested):
        target.print(plain(said))
    for table in (
        *class_tables.probes(digested),
        *averaging.tables(digested),
        *reinforced_views.tables(digested),
    ):
        target.print(table)
    for said in reinforced_views.lines(digested):
        target.print(plain(said))
    for part in pool_views.tables(digested, target.width):
        target.print(plain(part) if isinstance(part, str) else part)
    if any(run.general_tasks for run in digested):
        target.print(_general_table(digested))
    for run in digested:
        if run.tasks:
            target.print(plain(words.told(run)))
        if said := words.general_story(run):
            target.print(plain(f"{run.label}: {said}"))
        if said := no_class.line(run):
            target.print(plain(f"{run.label}: {said}"))
    for one in provenance.accepted(digested):
        target.print(plain(f"{one['label']}: changed inputs were accepted: {one['change']}"))
    for run in digested:
        if not run.complete:
            target.print(plain(f"{run.label}: not finished; {format.DASH} is not scored yet"))


def _matrix_table(run: RunView) -> Table:
    """Rows by tasks learned; the score just after its task was learned stands in bold."""
    over = f", {run.told}" if run.told else ""
    table = titled(f"{run.label}: score on each task after learning ...{over}")
    table.add_column(plain(""), overflow="fold", min_width=12)
    for task in run.tasks:
        name = plain(_heading(task))
        table.add_column(name, justify="right", overflow="fold", min_width=_least(task))
    for after in range(len(run.tasks) + 1):
        title = step_name(after, run.tasks[after - 1].name) if after else "base model"
        cells = []
        for position, task in enumerate(run.tasks, start=1):
            style = "bold" if position == after else ("dim" if position > after else "")
            cells.append(plain(format.printer(task)(run.score(after, task.name)), style))
        table.add_row(plain(title), *cells)
    return table


def _task_table(run: RunView) -> Table:
    """A row for each task: the base model, just learned, at the end."""
    table = titled(f"{run.label}: score on each task{f', {run.told}' if run.told else ''}")
    table.add_column("task", overflow="fold")
    for heading in ("base model", "just learned", "at the end"):
        table.add_column(heading, justify="right")
    wanted = {t.name for t in telling.tasks([run], caps.LISTED, caps.MOST_LISTED)}
    for found in findings.findings(run):
        if found.task.name not in wanted:
            continue
        show = format.printer(found.task)
        scores = (found.base, found.learned, found.final)
        table.add_row(plain(_heading(found.task)), *(plain(show(score)) for score in scores))
    return table


def _least(task: TaskFacts) -> int:
    """Characters below which a column would break its numbers or short words."""
    return max(5, min(len(task.name), 8))


def _heading(task: TaskFacts) -> str:
    return task.name if task.higher_is_better else f"{task.name} ↓"


def _add_figure(table: Table, heading: str) -> None:
    """A column of numbers, as wide as the longest word above it: where the rest is narrow, such a
    word would be broken."""
    table.add_column(heading, justify="right", min_width=max(map(len, heading.split())))


def _summary_table(runs: Sequence[RunView]) -> Table:
    table = titled("Methods" if len(runs) > 1 else "Summary")
    table.add_column("method", overflow="fold")
    wanted = [row for row in SUMMARY if row[0] in FIGURES]
    for _, title, higher, _ in wanted:
        _add_figure(table, f"{title.lower()} {'↑' if higher else '↓'}")
    perplexity = any(run.general for run in runs)
    if perplexity:
        _add_figure(table, "general perplexity ↓")
    digits = 1 + format.digits_for(min((t.rows for r in runs for t in r.tasks), default=0))
    keys = (*(row[0] for row in wanted), ranking.GENERAL)
    best = {key: ranking.best(runs, key) for key in keys}
    for slot, run in [(i, one) for i, own in enumerate(runs) for one in classes.both(own)]:
        cells, first = [], run is runs[slot]
        for key, _, _, _ in wanted:
            show = format.signed if key == "backward_transfer" else format.number
            lines = [
                show(run.summary(key), digits),
                words.figure_interval(run, key, digits - 1, sign=key not in LEVELS),
                words.mixed_parts(run, key, digits - 1),
                words.spread_words(run, key, digits),
                *(classes.by_sample(run, digits - 1) if key == LEVELS[0] else ()),
            ]
            cells.append(_lines(lines, first and best[key] == slot))
        before, after = run.general_before, run.general_after
        shown = format.DASH
        if not (math.isnan(before) and math.isnan(after)):
            shown = f"{format.significant(before)} → {format.significant(after)}"
        if perplexity:
            ends = words.general_interval(run)
            cells.append(_lines([shown, ends], first and best[ranking.GENERAL] == slot))
        seeds = f"{len(run.members)} seeds" if len(run.members) > 1 else ""
        named = [run.label, run.scenario.replace("-", "-\n"), seeds]
        table.add_row(_lines(named, best=False), *cells)
    return table


def _lines(lines: Sequence[str], best: bool) -> Text:
    """A figure, in bold if it is the best, above its interval."""
    found = plain(lines[0], "bold green" if best else "")
    for line in lines[1:]:
        if line:
            found.append_text(plain(f"\n{line}", "dim"))
    return found


def _general_table(runs: Sequence[RunView]) -> Table:
    """A row for each lm-eval task, a column for each run: the base model → the newest score."""
    table = titled("General ability: base model → now")
    table.add_column("lm-eval task", overflow="fold")
    for run in runs:
        table.add_column(plain(run.label), justify="right", overflow="fold")
    for task in general.tasks(runs):
        found = [general.before_after(run, task.name) for run in runs]
        cells = [
            " → ".join(map(format.printer(task), pair)) if pair else format.DASH for pair in found
        ]
        table.add_row(plain(f"{_heading(task)} ({task.metric})"), *map(plain, cells))
    pairs = [general.f1_before_after(run) for run in runs]
    if any(pairs):
        shown = [
            " → ".join(format.number(v, general.DIGITS) for v in pair) if pair else format.DASH
            for pair in pairs
        ]
        table.add_row(plain(f"{general.F1} ({general.F1_WORDS})"), *map(plain, shown))
    return table
