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
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
NewRun = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Must not exist.  [default: runs/NAME-TIME]"),
]
