"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that models and recipes bring.")
]
Accept = Annotated[
    bool, typer.Option("--accept-changes", help="Also if recipe, rows or base have changed.")
]
Adapter = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of TUNED's adapters.  [default: as it is served]"),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
NewRun = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Must not exist.  [default: runs/NAME-TIME]"),
]

DemoName = Annotated[
    str | None,
    typer.Argument(metavar="intents", help="A classifier that grows: six tasks in two minutes."),
]
DemoMinutes = Annotated[
    float | None,
    typer.Option(min=1, metavar="N", help="How long it may take.  [default: 12, with --quick 4]"),
]
DemoMethods = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,...",
        help="Methods, by name.  [default: sequential,replay,gere; of intents "
        "sequential,seq_star,replay,joint]",
    ),
]
DemoBase = Annotated[
    str | None,
    typer.Option(
        help="Base model: hub id, folder or .gguf.  [default: SmolLM2-135M; of intents "
        "all-MiniLM-L6-v2]"
    ),
]
