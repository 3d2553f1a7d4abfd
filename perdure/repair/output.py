"""The folder of a repair: it appears whole or not at all, and never in place of another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perdure.drafts import drafted
from perdure.errors import RunError
from perdure.repair.curve import write_curve
from perdure.repair.path import Line
from perdure.repair.result import Repair


def refuse_existing(out: Path) -> None:
    """Raise `RunError` if the folder is there already."""
    if out.exists():
        raise RunError(f"{out}: exists already, and nothing is overwritten", "choose another --out")


@contextmanager
def new_folder(out: str | Path | None) -> Iterator[Path | None]:
    """A folder beside `out` that takes its place at the end, and goes if the block fails.

    Yields None for None.

    Raises:
        RunError: `out` exists, before the block or after it.
        OSError: the folder cannot be made; told of `out`.
    """
    if out is None:
        yield None
        return
    final = Path(out)
    refuse_existing(final)
    with drafted(final) as draft:
        yield draft
        refuse_existing(final)
        os.rename(draft, final)


def write(found: Repair, line: Line, folder: Path) -> None:
    """Write `curve.json`, `curve.svg`, and `model/` if a candidate was chosen."""
    (folder / "curve.json").write_text(found.to_json() + "\n", encoding="utf-8")
    write_curve(found, folder / "curve.svg")
    if found.chosen is not None:
        line.save(folder / "model")
