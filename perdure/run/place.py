"""Whether a run directory can be made at a place, told before anything is read for it."""

from __future__ import annotations

import os
from pathlib import Path

from perdure.errors import PerdureError, RunError, UsageError, resume_command
from perdure.paths import no_place


def taken(path: Path) -> RunError:
    """That a run cannot have this directory."""
    other = "choose another --out"
    if (path / "recipe.yaml").exists():  # else it is no run, and nothing goes on with it
        return RunError(
            f"{path}: exists already, and a run is never overwritten",
            (f"go on with it: {resume_command(path)}", f"or {other}"),
        )
    return RunError(f"{path}: exists already, and a run is never overwritten", other)


def put(draft: Path, path: Path) -> None:
    """Have a new run directory appear, unless another process was faster."""
    try:
        os.rename(draft, path)
    except OSError:
        if path.exists():  # what is there is its run, and nothing to be moved away
            raise taken(path) from None
        raise


def refused(path: Path) -> PerdureError | None:
    """Why a new run cannot be made at this place; None if it can."""
    if path.exists():
        return taken(path)
    if path.is_symlink():
        what = f"{path}: is a link to {os.readlink(path)}, which does not exist"
        return UsageError(what, "choose another --out")
    why = no_place(path)
    return UsageError(f"{path}: {why}", "choose another --out") if why else None
