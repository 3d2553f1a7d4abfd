"""An audit as a terminal shows it: a line of numbers a measure, what stands behind it below.

Every word is whole: a line is cut only between words, and what is longer than a line (a path)
stands on a line of its own. What comes last is what is looked for: the verdict and the exit code.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from perdure.audit.measure import Measure, explain
from perdure.errors import printable

if TYPE_CHECKING:
    from rich.text import Text

    from perdure.scoring.routing_figures import RoutingFigures

WIDTH = 80
PROMPT = 160
"""Of a prompt that is longer than this the end is shown."""
_COLOURS = {"kept": "green", "lost": "bold red", "undecided": "yellow", None: "dim"}
_NUMBERS = 55  # of a line: items, change, allowed, verdict


class Shown(Protocol):
    """What is shown of an audit; see `perdure.audit.result.AuditResult`."""

    @property
    def base(self) -> str: ...
    @property
    def tuned(self) -> str: ...
    @property
    def alpha(self) -> float: ...
    @property
    def judged(self) -> int: ...
    @property
    def measures(self) -> Sequence[Measure]: ...
    @property
    def skipped(self) -> Sequence[str]: ...
    @property
    def flips(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def routing(self) -> RoutingFigures | None: ...
    @property
    def verdict(self) -> str: ...
    def exit_code(self, undecided: int = 3) -> int: ...


def table(result: Shown, width: int = WIDTH) -> Text:
    """The two models, then each measure with its numbers and, below, why."""
    from rich.text import Text

    room = max(12, width - _NUMBERS)
    text = Text()
    text.append(f"base   {printable(result.base)}\n")
    text.append(f"tuned  {printable(result.tuned)}\n\n")
    heading = f"{'items':>7}{'change [interval]':>28}{'allowed':>9}  verdict"
    text.append(f"{'measure':<{room}}{heading}\n", "bold")
    text.append("─" * (room + _NUMBERS) + "\n", "dim")
    for m in result.measures:
        text.append(_named(m.name, room))
        text.append(f"{m.items:>7,}{f'{signed(m.change)} {interval(m)}':>28}{allowed(m):>9}  ")
        text.append(f"{m.verdict or 'reported'}\n", _COLOURS[m.verdict])
        below = [f"{m.metric}: base {m.base:.3f}, tuned {m.tuned:.3f}", explain(m)]
        text.append(_wrapped("; ".join(filter(None, below)), width), "dim")
    for name in result.skipped:
        text.append(f"{_named(name, room)}{'':>46}skipped\n", "dim")
        text.append(_wrapped("an earlier one is lost", width), "dim")
    if result.routing is not None:
        text.append("\n" + _wrapped(f"tuned: {result.routing.words()}", width, ""))
    share = (
        f"The chance that an end of an interval is wrong is at most {result.alpha:g} / "
        f"{max(result.judged, 1)}, and that any verdict is false at most {result.alpha:g}."
    )
    text.append("\n" + _wrapped(share, width, ""), "dim")
    text.rstrip()
    return text


def flips_list(flips: Sequence[Mapping[str, Any]], width: int = WIDTH) -> Text:
    """Each item that flipped: its prompt's end, the right answer and both predictions."""
    from rich.text import Text

    text = Text(f"{_flipped(flips)}\n", "bold")
    for flip in flips:
        text.append(f"{printable(str(flip['task']))}: {flip['change']}\n")
        text.append(_wrapped(_end(str(flip["prompt"])), width), "dim")
        said = (("answer", "answer"), ("base", "base_prediction"), ("tuned", "tuned_prediction"))
        parts = [f"{name}: {flip[key]}" for name, key in said if str(flip[key])]
        if parts:
            text.append(_wrapped("; ".join(parts), width))
    text.rstrip()
    return text


def closing(result: Shown, undecided: int = 3, flips_shown: bool = False) -> Iterator[str]:
    """The last lines: how to see what flipped, the verdict, the exit code."""
    if result.flips and not flips_shown:
        yield f"{_flipped(result.flips)}: --flips shows them, --json too"
    yield f"verdict: {result.verdict} (exit code {result.exit_code(undecided)})"


def signed(value: float) -> str:
    """`+0.0012` below 0.01, else `-0.120`."""
    return f"{value:+.4f}" if abs(value) < 0.01 else f"{value:+.3f}"


def interval(measure: Measure) -> str:
    return f"[{signed(measure.low)}, {signed(measure.high)}]"


def allowed(measure: Measure) -> str:
    """The margin as a change: a drop of a score, a rise of a loss; "" without one."""
    if measure.margin is None:
        return ""
    return f"{-measure.margin if measure.higher_is_better else measure.margin:+g}"


def _flipped(flips: Sequence[Mapping[str, Any]]) -> str:
    return f"{len(flips):,} item{'' if len(flips) == 1 else 's'} flipped"


def _named(name: str, room: int) -> str:
    """The name in its column, or before it on a line of its own."""
    name = printable(name)
    return f"{name:<{room}}" if len(name) < room else f"{name}\n{'':<{room}}"


def _end(prompt: str) -> str:
    """The end of a prompt, from a whole word on."""
    if len(prompt) <= PROMPT:
        return prompt
    end = prompt[-PROMPT:]
    _, space, rest = end.partition(" ")
    return f"... {rest if space and rest else end}"


def _wrapped(words: str, width: int, indent: str = "  ") -> str:
    lines = textwrap.wrap(
        printable(words), width, initial_indent=indent, subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return "".join(f"{line}\n" for line in lines)
