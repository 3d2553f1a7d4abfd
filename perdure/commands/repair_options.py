"""The options of `perdure repair`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perdure.commands.errors import handle_errors
from perdure.commands.options import Accept, Adapter, Json, Trust


@handle_errors
def repair(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Model folder, run, .gguf, hub id.")],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="The model to repair, or a LoRA adapter on BASE.")
    ],
    general: Annotated[
        str, typer.Option(metavar="FILE", help="General texts: .txt, .jsonl, or pydoc.")
    ],
    task: Annotated[
        list[Path],
        typer.Option(metavar="RECIPE", help="Its tasks must be kept; may be given several times."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Must not exist.  [default: TUNED-repaired]"),
    ] = None,
    max_task_loss: Annotated[
        float, typer.Option(help="Share of each task's gain over BASE that may be lost.")
    ] = 0.02,
    steps: Annotated[int, typer.Option(metavar="N", help="Then train for N steps with gere.")] = 0,
    rows: Annotated[int, typer.Option(min=2, help="Test rows a task, a half to report.")] = 200,
    texts: Annotated[int, typer.Option(min=2, help="General texts, a half to report.")] = 64,
    precision: Annotated[str, typer.Option(help="fp32 or bf16, to compute in.")] = "fp32",
    seed: Annotated[int, typer.Option(min=0, help="Of the halves, and of the training.")] = 0,
    adapter: Adapter = None,
    accept_changes: Accept = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Search weights between BASE and TUNED that lose less in general: exit 0 written, 1 none."""
    from perdure.commands import repair as command

    code = command.repair(
        base, tuned, general, task, out, as_json, rows, texts,
        max_task_loss=max_task_loss, steps=steps, precision=precision, seed=seed,
        accept_changes=accept_changes, adapter=adapter,
    )  # fmt: skip
    raise typer.Exit(code)
