"""What a checkpoint serves: its adapters, and a router that chooses one of them for each request.

A router is a value that lies beside the adapters in a file of its own; it is read without the
method that wrote it, so that training, scoring, an audit and a server route alike.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from perdure.errors import PerdureError, RecipeError, RunError, UsageError
from perdure.models.adapter_lists import folders, holder, names, use
from perdure.models.adapters import home_of
from perdure.models.locate import resolve_saved
from perdure.models.weights import fingerprint
from perdure.recipe.mistakes import near
from perdure.recipe.packaged import PREFIX
from perdure.seals import MANIFEST, damaged, verify

Messages = Sequence[Mapping[str, Any]]
"""A conversation before its answer: `[{"role": ..., "content": ...}]`."""
ROUTERS: dict[str, str] = {"codebook.json": "perdure.models.router:Router"}
"""Files that hold a router, and the class whose `load(folder)` reads them."""
_ROUTER = "perdure_router"
_BASE = "perdure_base_fingerprint"


class Choice(Protocol):
    """Which adapter answers one request."""

    @property
    def adapter(self) -> str | None:
        """Its name; None is the base model without an adapter."""

    @property
    def similarity(self) -> float:
        """Of the request to the nearest thing that is known, whichever adapter answers."""

    @property
    def why(self) -> str:
        """A sentence for people."""


class Router(Protocol):
    """Chooses an adapter for each request; it is shown prompts and nothing else."""

    def choose(self, prompts: Sequence[Messages]) -> Sequence[Choice]:
        """Choose an adapter for each prompt, in their order, whatever else is in the list."""

    def check(self, adapters: Collection[str]) -> None:
        """Raise where it knows adapters that are not among these."""

    def save(self, folder: Path) -> object:
        """Write the file of this router (`ROUTERS`) beside the adapters in `folder`."""


def load_router(folder: Path) -> Router | None:
    """The router that lies in a folder with adapters; None where there is none.

    Raises:
        UsageError, RecipeError: its file is none of a router.
    """
    for file, place in ROUTERS.items():
        if (folder / file).is_file():
            module, _, name = place.partition(":")
            found: Router = getattr(importlib.import_module(module), name).load(folder)
            return found
    return None


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


def verify_saved(folder: Path) -> None:
    """Check the files of a run's checkpoint that `folder`, its model or one adapter, lies in.

    Raises:
        RunError: a file is not as it was written.
    """
    above = home_of(folder).parent
    if (above / MANIFEST).exists():
        verify_checkpoint(above, "put it back from a copy, or take another checkpoint")


def _edited(file: Path) -> tuple[str, list[str]] | None:
    """What is to be said of a router's file that was changed, and what to do about it; None: it is
    another file, or gone."""
    if file.name not in ROUTERS or not file.is_file():
        return None
    try:
        router = load_router(file.parent)
        if router is not None:
            router.check(folders(file.parent))
    except PerdureError as error:
        every = error.mistakes if isinstance(error, RecipeError) else [error]
        told = [one.what.removeprefix(f"{file.parent}/").removeprefix(file.name) for one in every]
        said = "; ".join(one.removeprefix(": ") for one in told)
        return f"cannot be used as it is now: {said}", [
            line for one in every for line in one.remedy
        ]
    return "can be read, but its values are not those that the run was scored with", []


def open_router(path: str | Path) -> tuple[Router | None, Path]:
    """The router of a run, of a checkpoint in it, or of a folder with adapters; loads no model.

    Returns: the router, None where there is none; and the folder in which it was looked for.

    Raises:
        UsageError: there is no such folder, or the router's file is none.
        RunError: a run's checkpoint is not as it was written.
        others: as `keep_router`.
    """
    folder = resolve_saved(Path(path).expanduser())
    if folder is None:
        raise UsageError(f"{path}: no such folder", "give a run directory, or a folder of adapters")
    if (folder.parent / MANIFEST).exists():  # a run's checkpoint
        verify_checkpoint(folder.parent, "put it back from a copy, or take another checkpoint")
    router = load_router(folder)
    if router is not None:
        router.check(folders(folder))
    return router, folder


def note_base(model: Any, base: str) -> None:
    """Note of which base a model with adapters is: its fingerprint, see `base_of`."""
    setattr(model, _BASE, base)


def base_of(model: Any) -> str:
    """The fingerprint that was noted of a model's base: in full precision, before adapters were put
    on it, as it is when saved adapters are loaded again. "": nobody asked for it."""
    return str(vars(model).get(_BASE, ""))


def check_base(router: Router | None, base: Any, where: Path | None = None) -> None:
    """Refuse another base model than a router's adapters were trained on, where it notes which.

    Args:
        base: in full precision, without adapters: a hash of all its weights is computed. Or that
            fingerprint; "": it is not known, and nothing is compared.
        where: the folder that holds the router's file.

    Raises:
        UsageError: the fingerprints differ.
    """
    book = getattr(router, "codebook", None)
    if getattr(book, "base", ""):
        found = base if isinstance(base, str) else fingerprint(base)
        file = next(iter(ROUTERS))
        book.check_base(found, str(file if where is None else where / file))  # type: ignore[union-attr]


def keep_router(model: Any, router: Router | None) -> None:
    """Note the router that a loaded model is served with.

    Raises: what the router's `check` does, where it chooses adapters that the model has not.
    """
    if router is not None:
        router.check(names(model))
        setattr(model, _ROUTER, router)


def adapter_named(path: str | Path, name: str) -> str:
    """The adapter in a run or folder that a name stands for: its own, or its group's in the router.

    Raises:
        UsageError: nothing there is called so, or is there at all, with the nearest names.
    """
    place = Path(path).expanduser()
    if not place.exists() and not str(path).startswith(PREFIX):
        beside = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
        hint = near(place.name, beside) or "give a run directory, or a folder of adapters"
        raise UsageError(f"adapter {name}: {path}: no such folder", hint)
    folder = resolve_saved(place)
    known = {} if folder is None else folders(folder)
    if folder is None or not known:
        raise UsageError(f"adapter {name}: {path} holds no adapters", "leave it out")
    router = load_router(folder)
    if name in known and not names_group(router, name):
        return name
    by_router = getattr(router, "named", None)
    if by_router is not None and (found := by_router(name).adapter) is not None:
        return str(found)
    raise UsageError(
        f"adapter {name}: {path} has none of this name",
        near(name, list(known)) or f"there are: {', '.join(known)}",
    )


def names_group(router: Router | None, name: str) -> bool:
    """Whether a router has a group of this name: it goes before an adapter of the name, as that of
    a task `default` before the recipe's own adapter, which no task trained."""
    book = getattr(router, "codebook", None)
    return book is not None and any(group.name == name for group in book.groups)


def learned(folder: Path) -> dict[str, str]:
    """Each adapter in a folder and what it learned, in words: "of no task"; "" where no router
    says. One that cannot be named, as a group has its name, is left out."""
    router = load_router(folder)
    book = getattr(router, "codebook", None)
    tasks = {} if book is None else {group.adapter: group.tasks for group in book.groups}
    if not tasks:
        return dict.fromkeys(folders(folder), "")
    known = [name for name in folders(folder) if name in tasks or not names_group(router, name)]
    return {
        name: f"learned {', '.join(tasks[name])}" if tasks.get(name) else "of no task"
        for name in sorted(known, key=lambda one: not tasks.get(one))
    }


def adapters_told(folder: Path, most: int = 12) -> str:
    """How to name one of the adapters in a folder, and which there are: for a remedy."""
    told = [f"{name} ({what})" if what else name for name, what in learned(folder).items()]
    rest = f" and {len(told) - most} more" if len(told) > most else ""
    return f"name it with --adapter; there are {', '.join(told[:most])}{rest}"


def serve_only(model: Any, adapter: str) -> None:
    """Have one adapter answer all requests, whatever a router would choose or is active.

    Raises:
        UsageError: there is none of this name.
    """
    use(model, [adapter], ())
    vars(model).pop(_ROUTER, None)


def router_of(model: Any) -> Router | None:
    """The router that a loaded model is served with; None: the active adapters answer."""
    # Asked of the instance: a PeftModel passes unknown names on to the model below it.
    found: Router | None = vars(model).get(_ROUTER)
    return found if holder(model) is not None else None
