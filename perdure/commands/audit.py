"""`perdure audit`: did a tuned model keep what its base could do?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import UsageError, typed
from perdure.files import try_place, write_atomic
from perdure.paths import no_place
from perdure.reports.output import escaped, first_process, working

if TYPE_CHECKING:
    from perdure.audit.result import AuditResult
    from perdure.streams import Task, TaskStream

_DEFAULTS = {"max_loss_rise": 0.05, "precision": "fp32", "noise_floor": 0, "accept_changes": False}
"""Of options that are not None by default."""


@dataclass(frozen=True)
class Shown:
    """How an audit's result is handed out."""

    junit: Path | None
    undecided: int
    as_json: bool
    flips: bool

    def __post_init__(self) -> None:
        if not 0 <= self.undecided <= 255:
            raise UsageError(f"--undecided {self.undecided}: must be an exit code, 0 to 255")
        if self.junit is not None and (why := no_place(self.junit)):
            raise UsageError(f"--junit {self.junit}: {why}", "name a file that can be written")


def refuse_options(options: Mapping[str, Any], why: str, remedy: str = "leave it out") -> None:
    """Raise UsageError for an option that was given and would do nothing."""
    for name, value in options.items():
        if value != _DEFAULTS.get(name):
            raise UsageError(f"--{name.replace('_', '-')}: {why}", remedy)


def both(base: str, tuned: str | None, scores: bool) -> tuple[str, str]:
    """What is compared: as it is given, or a run, given alone, with the base model of its recipe.

    Raises:
        UsageError: one is given, and no run knows the other.
    """
    if tuned is not None:
        return base, tuned
    if scores:
        raise UsageError(
            f"{base}: the scores of one model, and two are compared",
            typed("audit", "--scores", base, "TUNED"),
        )
    from perdure.audit.runs import run_of

    if (run := run_of(base)) is None:
        raise UsageError(
            f"{base}: one model, and two are compared: only a run knows its base model",
            f"name the base model first: {typed('audit', 'BASE', base)}",
        )
    model = run.recipe.model
    if model.revision is not None:
        raise UsageError(
            f"{base}: learned from {model.path} at revision {model.revision}, and an audit takes "
            "no revision",
            "download that revision, and name its folder first: " + typed("audit", "FOLDER", base),
        )
    return model.path, base


def audit(
    base: str,
    tuned: str,
    shown: Shown,
    *,
    tasks: Path | None,
    rows: int | None,
    **settings: Any,
) -> int:
    """Test whether `tuned` kept what `base` could do; returns the exit code.

    Without general text in the recipe, the loss is measured on Python's own reference text.
    """
    from perdure.audit.audit import Sizes
    from perdure.audit.audit import audit as compare
    from perdure.audit.runs import changed_rows
    from perdure.prepare import load_recipe
    from perdure.reports import make_display
    from perdure.streams import build_stream
    from perdure.streams.named.demo import pydoc_texts

    if shown.junit is not None and first_process():
        try_place(shown.junit)
    recipe = None if tasks is None else load_recipe(tasks, tasks_only=True)
    stream: TaskStream | list[Task] = []
    changes: tuple[str, ...] = ()
    if recipe is not None:
        stream = build_stream(recipe.stream, recipe.general, recipe.folder, recipe.seed)
        changes = changed_rows((base, tuned), recipe, stream, bool(settings["accept_changes"]))
    general = getattr(stream, "general", None)
    texts = general.held_out if general and general.held_out else pydoc_texts(0).held_out[:32]
    display = make_display(json=shown.as_json)
    with working(), display:
        result = compare(
            base,
            tuned,
            stream,
            texts,
            sizes=Sizes(rows=rows),
            on_progress=partial(display.scoring, "audit"),
            **settings,
        )
        result = replace(result, accepted_changes=(*result.accepted_changes, *changes))
        display.message(f"both models are read with {result.template}")
        for change in result.accepted_changes:
            display.message(f"accepted: {change}")
    return _hand_out(result, shown)


def scores(base: str, tuned: str, shown: Shown, **settings: Any) -> int:
    """The same test on scores in files; no model is loaded. Returns the exit code."""
    from perdure.audit.scores import audit_scores

    return _hand_out(audit_scores(base, tuned, **settings), shown)


def _hand_out(result: AuditResult, shown: Shown) -> int:
    _show(result, shown)
    if shown.junit is not None and first_process():  # last: what was found is seen in any case
        write_atomic(shown.junit, result.junit(shown.undecided))
    return result.exit_code(shown.undecided)


def _show(result: AuditResult, shown: Shown) -> None:
    if shown.as_json:
        if first_process():
            print(escaped(result.to_json()))
    elif first_process():
        from rich.console import Console

        console = Console()
        width = max(60, min(console.width, 120))
        console.print(result.table(width), soft_wrap=True)
        if shown.flips and result.flips:
            console.print()
            console.print(result.flips_table(width), soft_wrap=True)
        console.print()
        closing = result.closing(shown.undecided, flips_shown=shown.flips)
        console.print(closing, soft_wrap=True, markup=False)
