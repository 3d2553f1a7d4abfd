"""`perdure export`: a run's model as a folder that other programs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perdure.commands.errors import handle_errors
from perdure.commands.options import Json, Trust
from perdure.errors import printable


@handle_errors
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run, checkpoint or model folder.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Must not exist.", show_default=False)],
    to: Annotated[
        str, typer.Option(help="merged: a whole model; peft: the adapter alone.")
    ] = "merged",
    adapter: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="One of RUN's adapters.  [default: all of them]"),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16; auto: as the base is stored.")
    ] = "auto",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write RUN's model to a new folder, for transformers, vLLM and others."""
    from perdure.models.adapter_lists import folders
    from perdure.models.export import export as write
    from perdure.models.served import learned
    from perdure.reports import make_display
    from perdure.reports.output import emit, first_process, working

    display = make_display(json=as_json)
    with working(), display:
        folder = write(run, out, to, dtype, tell=display.message, adapter=adapter)
    found: list[dict[str, str]] = []
    if to == "peft" and first_process() and len(homes := folders(folder)) > 1:
        known = learned(folder)
        found = [
            {"name": name, "folder": str(home), "learned": known.get(name, "")}
            for name, home in homes.items()
        ]
    if as_json:
        emit({"model": str(folder), "to": to} | ({"adapters": found} if found else {}))
    elif first_process():
        print(f"model: {folder}")
        for one in found:
            what = f" ({one['learned']})" if one["learned"] else ""
            print(printable(f"adapter {one['name']}{what}: {one['folder']}"))
