"""The options of `perdure audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.commands.errors import handle_errors
from perdure.commands.options import Accept, Adapter, Json, Trust


@handle_errors
def audit(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="Model folder, run, .gguf, package:NAME, hub id.")
    ],
    tuned: Annotated[
        str | None,
        typer.Argument(metavar="TUNED", help="The model to test; a run alone: BASE is its own."),
    ] = None,
    tasks: Annotated[
        Path | None, typer.Option(metavar="RECIPE", help="Compare on its tasks and general text.")
    ] = None,
    scores: Annotated[
        bool,
        typer.Option(
            "--scores", help="BASE and TUNED are scores of items: lm-eval, Inspect, .jsonl."
        ),
    ] = False,
    metric: Annotated[
        str | None,
        typer.Option(help="With --scores: which, as acc or exact_match,strict-match."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="With --scores: what items share that belong together."),
    ] = None,
    max_drop: Annotated[float, typer.Option(help="Allowed drop of a task's score, 0 to 1.")] = 0.02,
    max_loss_rise: Annotated[
        float, typer.Option(help="Allowed rise of the loss on general text, nats a token.")
    ] = 0.05,
    max_kl: Annotated[
        float | None,
        typer.Option(help="Allowed KL from BASE, nats a token.  [default: only reported]"),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Chance that any verdict is wrong.")] = 0.05,
    rows: Annotated[
        int | None, typer.Option(min=2, help="Test rows a task at most.  [default: all]")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    noise_floor: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Score BASE N times more, in other ways; no margin below that noise.",
        ),
    ] = 0,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first measure that is lost.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of sampled texts and bootstrap.")] = 0,
    undecided: Annotated[
        int, typer.Option(metavar="CODE", help="Exit code if nothing is lost, something open.")
    ] = 3,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write JUnit XML for a CI.")
    ] = None,
    flips: Annotated[
        bool, typer.Option("--flips", help="Print each item that flipped; --json has them.")
    ] = False,
    adapter: Adapter = None,
    accept_changes: Accept = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Test whether TUNED still can what BASE could: exit 0 kept, 1 lost, 3 undecided."""
    from perdure.commands import audit as command

    base, tuned = command.both(base, tuned, scores)
    shown = command.Shown(junit, undecided, as_json, flips)
    both: dict[str, Any] = {
        "max_drop": max_drop,
        "alpha": alpha,
        "fail_fast": fail_fast,
        "seed": seed,
    }
    models: dict[str, Any] = {
        "tasks": tasks, "rows": rows, "max_loss_rise": max_loss_rise, "max_kl": max_kl,
        "precision": precision, "noise_floor": noise_floor, "accept_changes": accept_changes,
        "adapter": adapter,
    }  # fmt: skip
    files = {"metric": metric, "group": group}
    if scores:
        command.refuse_options(models, "has no effect with --scores")
        raise typer.Exit(command.scores(base, tuned, shown, **files, **both))
    command.refuse_options(files, "is of --scores", "a task's group is a key of its recipe")
    raise typer.Exit(command.audit(base, tuned, shown, **models, **both))
