"""The recipes that ship with Perdure: commented YAML to copy and edit.

A recipe is a file `NAME.yaml` here, or a folder `NAME` with `NAME.yaml` and the sample data that
it reads. It opens with the command that runs it, then says in one line what it is for.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from perdure.errors import RunError, UsageError, typed
from perdure.failures import at
from perdure.recipe.mistakes import near

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """All recipes, then those in folders: the configurations for `accelerate launch`
    (`accelerate/...`), and a paper's (`seq_star/...`)."""
    files = sorted(FOLDER.rglob("*.yaml"))
    found = [_name(path) for path in files]
    return sorted(found, key=lambda name: ("/" in name, name))


def path(name: str) -> Path:
    """The file of a shipped recipe.

    Raises:
        UsageError: there is none of this name; the nearest is suggested.
    """
    files = {_name(path): path for path in FOLDER.rglob("*.yaml")}
    wanted = name.removesuffix(".yaml")
    if wanted not in files:
        hint = near(wanted, list(files))
        raise UsageError(
            f'no recipe is called "{name}"', [*filter(None, [hint]), "all of them: perdure recipes"]
        )
    return files[wanted]


def describe(name: str) -> str:
    """What the recipe is for: the second paragraph of the comment at its top, on one line."""
    head = []
    for line in path(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        head.append(line.lstrip("# ").rstrip())
    paragraphs = [p for p in re.split(r"\n{2,}", "\n".join(head)) if p]
    return paragraphs[1].replace("\n", " ") if len(paragraphs) > 1 else ""


def command(name: str) -> str:
    """The command that the recipe opens with."""
    first = path(name).read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").rstrip()


def copy(name: str, destination: Path) -> list[Path]:
    """Copy a recipe and the sample data it reads; returns the new files, the recipe first.

    Args:
        destination: a folder, which is made if needed, or the new `.yaml` file.

    Raises:
        UsageError: no recipe of this name.
        RunError: a file of this name exists already; nothing was copied then.
    """
    source = path(name)
    named = destination.suffix in (".yaml", ".yml")
    folder = destination.parent if named else destination
    target = destination if named else folder / source.name
    files = [(source, target)]
    if source.parent.name == source.stem:
        files += [(p, folder / p.name) for p in sorted(source.parent.iterdir()) if p != source]
    if there := [str(new) for _, new in files if new.exists()]:
        raise RunError(
            f"{', '.join(there)}: exists already, and nothing was copied",
            f"give another folder: {typed('recipes', 'copy', name, 'FOLDER')}",
        )
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    try:
        for old, new in files:
            with at(new), open(new, "xb") as file:
                made.append(new)
                file.write(old.read_bytes())
    except BaseException:  # all of them, or the same command would be refused the next time
        for new in made:
            with suppress(OSError):
                new.unlink()
        raise
    return made


def _name(path: Path) -> str:
    relative = path.relative_to(FOLDER)
    return (
        relative.stem
        if len(relative.parts) == 1 or relative.parent.name == relative.stem
        else (str(relative.with_suffix("").as_posix()))
    )
