"""A checkpoint is read again before its model is used; what somebody edited in it is told."""

from __future__ import annotations

from pathlib import Path

from perdure.errors import PerdureError, RecipeError, RunError
from perdure.seals import damaged, verify


def verify_checkpoint(folder: Path, remedy: str) -> None:
    """Raise if a file of a sealed checkpoint is not as it was sealed.

    The file of a router is there to be read, so that it is also edited by hand: what is wrong with
    it then, if anything is, is told too, and where it may be edited.

    Raises:
        RunError: names the file.
    """
    try:
        verify(folder, remedy)
    except RunError as error:
        file = Path(damaged(folder))
        if (edited := _edited(file)) is None:
            raise
        said, hints = edited
        what = f"{file}: was changed after the checkpoint was written, and {said}"
        elsewhere = (
            f"to route otherwise than the run did, copy the folder {file.parent} out of the run, "
            f"edit {file.name} there, and give that folder to perdure route, perdure audit or "
            "AdapterPool.load"
        )
        raise RunError(what, (*hints, remedy, elsewhere)) from error


def _edited(file: Path) -> tuple[str, list[str]] | None:
    """What is to be said of a router's file that was changed, and what to do about it; None: it is
    another file, or gone."""
    from perdure.models.served import ROUTERS, load_router

    if file.name not in ROUTERS or not file.is_file():
        return None
    try:
        router = load_router(file.parent)
        if router is not None:
            from perdure.models.adapter_lists import folders

            router.check(folders(file.parent))
    except PerdureError as error:
        every = error.mistakes if isinstance(error, RecipeError) else [error]
        told = [one.what.removeprefix(f"{file.parent}/").removeprefix(file.name) for one in every]
        said = "; ".join(one.removeprefix(": ") for one in told)
        return f"cannot be used as it is now: {said}", [
            line for one in every for line in one.remedy
        ]
    return "can be read, but its values are not those that the run was scored with", []
