"""Numbers in words: how many digits to print; and what text and tables look like in a terminal."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from perdure.errors import printable
from perdure.reports.facts import TaskFacts

if TYPE_CHECKING:
    from markupsafe import Markup
    from rich.table import Table
    from rich.text import Text

DASH = "–"


def digits_for(rows: int) -> int:
    """Decimals worth printing for a mean over `rows` items (standard error up to 0.5/sqrt(n))."""
    return 3 if rows >= 500 else 2


def apart(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Tasks' names as keys beside others: one that is such a key ("after") has "task " before it,
    so that neither overwrites the other."""
    found, used = [], {*taken, *names}
    for name in names:
        key = name
        while key in taken or (key != name and key in used):
            key = "task " + key
        used.add(key)
        found.append(key)
    return found


def csv_text(lines: Iterable[Sequence[Any]]) -> str:
    """Lines as CSV, each ended by a line feed, which any reader takes apart as they were: `csv`
    quotes a carriage return only where it ends lines itself, and readers end a line at one."""

    class Lines(list[str]):
        def write(self, line: str) -> None:
            self.append(line.removesuffix("\r\n") + "\n")

    found = Lines()
    csv.writer(found, lineterminator="\r\n").writerows(lines)
    return "".join(found)


def step_name(number: int, task: str) -> str:
    """What a step is called that learned the task of this number: "3 colour", but "task 3" once."""
    head = task.removesuffix(str(number))
    own = head not in ("", task) and not head[-1:].isdigit()
    return task if own else f"{number} {task}"


def breakable(name: str) -> Markup:
    """A name in HTML that a narrow column breaks after an underscore, before it breaks a word."""
    from markupsafe import Markup, escape

    return Markup(str(escape(name)).replace("_", "_<wbr>"))


def from_outside(text: str) -> str:
    """Text from outside as `rich` shows it: no markup, and nothing that steers a terminal."""
    from rich.markup import escape

    return escape(printable(text))


def plain(text: str, style: str = "") -> Text:
    """Text that shows what is written: no markup, and no control character reaches a terminal."""
    from rich.text import Text

    return Text(printable(text).replace("\t", " "), style)


def titled(title: str) -> Table:
    """An empty table for a terminal, under its title, which a narrow table does not break."""
    from rich import box
    from rich.table import Table

    head = plain(title, "bold")
    head.no_wrap, head.overflow = True, "ignore"
    return Table(title=head, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


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


def count(value: float | None) -> str:
    """A whole number: `19,500`; a dash where the value is missing."""
    return DASH if value is None or math.isnan(value) else f"{round(value):,}"


def listing(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def between(low: float, high: float, digits: int = 2, *, sign: bool = False) -> str:
    """An interval: `0.45 to 0.56`, with signs where it is one of a change; empty if unknown."""
    if math.isnan(low) or math.isnan(high):
        return ""
    show = signed if sign else number
    return f"{show(low, digits)} to {show(high, digits)}"
