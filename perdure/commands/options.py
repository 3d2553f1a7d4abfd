"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that models and recipes bring.")
]
