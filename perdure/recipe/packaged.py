"""Models that an installed Python package brings: `package:NAME`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from perdure.errors import brief

PREFIX = "package:"


def packaged_model(path: str) -> tuple[Path, tuple[str, str] | None] | None:
    """The model that `package:NAME` stands for; the package is not imported.

    Returns: None if `path` is written otherwise; else its GGUF file, or its folder with a
        config.json, and what is wrong with its remedy (None if the package has exactly one).
    """
    if not path.startswith(PREFIX):
        return None
    package = path.removeprefix(PREFIX)
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # of __main__, and of modules that another program has put there
        spec = None
    # Resolved, as all paths of a recipe are: a run that is opened again has its links followed, and
    # would seem to have another model where the environment is reached by a link.
    homes = [
        Path(folder).resolve()
        for folder in (spec.submodule_search_locations if spec else None) or ()
    ]
    found = sorted(file for home in homes for file in home.rglob("*.gguf"))
    if not found:
        configs = (file.parent for home in homes for file in home.rglob("config.json"))
        found = sorted(one for one in configs if any(one.glob("*.safetensors")))
    if len(found) == 1:
        return found[0], None
    shown = brief(package)
    what = f"package {shown} has {len(found)} models" if spec else f"no package {shown}"
    name = "".join(c for c in package[:80] if c.isprintable() and c != "/")
    remedy = f"pip install {shown.replace('_', '-')}"
    if package in sys.stdlib_module_names or package.startswith("_"):
        remedy = "name a package that brings one"
    return Path(f"{name}.gguf"), (what, remedy)


def as_written(path: str) -> str:
    """A model's path as people write it: `package:NAME` where it lies in an installed package, as
    the one that this stands for; any other path as it is, also below a folder without `__init__`
    that Python would import from."""
    installed = {Path(entry).resolve() for entry in sys.path if entry}
    for folder in Path(path).resolve().parents:
        if folder.parent not in installed or not (folder / "__init__.py").is_file():
            continue
        if packaged_model(PREFIX + folder.name) == (Path(path).resolve(), None):
            return PREFIX + folder.name
    return path
