"""Models that an installed Python package brings: `package:NAME`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PREFIX = "package:"


def packaged_model(path: str) -> tuple[Path, tuple[str, str] | None] | None:
    """The GGUF file that `package:NAME` stands for; the package is not imported.

    Returns: None if `path` is written otherwise; else the file, and what is wrong with its remedy
        (None if the package has exactly one such file).
    """
    if not path.startswith(PREFIX):
        return None
    package = path.removeprefix(PREFIX)
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = (spec.submodule_search_locations if spec else None) or ()
    files = sorted(file for folder in folders for file in Path(folder).rglob("*.gguf"))
    if len(files) == 1:
        return files[0], None
    what = f"package {package} has {len(files)} GGUF files" if spec else f"no package {package}"
    return Path(f"{package}.gguf"), (what, f"pip install {package.replace('_', '-')}")
