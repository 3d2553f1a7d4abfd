"""`perdure audit`: did a tuned model keep what its base could do?"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import UsageError
from perdure.prepare import load_recipe
from perdure.reports.output import escaped, first_process, working

if TYPE_CHECKING:
    from perdure.streams import Task, TaskStream


def audit(
    base: str,
    tuned: str,
    tasks: Path | None,
    junit: Path | None,
    undecided: int,
    as_json: bool,
    rows: int | None,
    **settings: Any,
) -> int:
    """Test whether `tuned` kept what `base` could do; returns the exit code.

    Without general text in the recipe, the loss is measured on Python's own reference text.
    """
    from perdure.audit.audit import Sizes
    from perdure.audit.audit import audit as compare
    from perdure.reports import make_display
    from perdure.streams import build_stream
    from perdure.streams.named.demo import pydoc_texts

    if not 0 <= undecided <= 255:
        raise UsageError(f"--undecided {undecided}: must be an exit code, 0 to 255")
    recipe = None if tasks is None else load_recipe(tasks, tasks_only=True)
    stream: TaskStream | list[Task] = []
    if recipe is not None:
        stream = build_stream(recipe.stream, recipe.general, recipe.folder, recipe.seed)
    general = getattr(stream, "general", None)
    texts = general.held_out if general and general.held_out else pydoc_texts(0).held_out[:32]
    display = make_display(json=as_json)
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
        display.message(f"both models are read with {result.template}")
    if junit is not None:
        from perdure.files import write_atomic

        write_atomic(junit, result.junit(undecided))
    if as_json:
        if first_process():
            print(escaped(result.to_json()))
    else:
        from rich.console import Console

        console = Console()
        console.print(result.table())
        if result.flips:
            console.print(result.flips_table())
    return result.exit_code(undecided)
