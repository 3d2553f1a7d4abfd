"""The order of the layers: `make lint` fails when any rule on imports is broken.

Each test breaks one rule in a copy of the package and runs the command that `make lint` runs.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]


class Break(NamedTuple):
    """One broken rule: `source` is appended to `file`, and lint must print all of `says`."""

    contract: str
    file: str
    source: str
    says: str


UNDER_TYPE_CHECKING = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from perdure.engine.context import Context
"""
LAYERS = "Each folder imports only folders below it"
BREAKS = {
    "upward": Break(LAYERS, "errors.py", "import perdure.loop", "perdure.errors -> perdure.loop"),
    "upward in a function": Break(
        LAYERS,
        "streams/task.py",
        "def late():\n    import perdure.scoring.matrix",
        "perdure.streams.task -> perdure.scoring.matrix",
    ),
    "upward by way of the public names": Break(
        LAYERS, "files.py", "from perdure import attach", "perdure.files -> perdure"
    ),
    "upward in types only": Break(
        LAYERS,
        "models/chat.py",
        UNDER_TYPE_CHECKING,
        "perdure.models.chat -> perdure.engine.context",
    ),
    "sideways": Break(LAYERS, "dropin.py", "import perdure.plan", "perdure.dropin -> perdure.plan"),
    "a folder without a place": Break(LAYERS, "misc/__init__.py", "", "perdure.misc"),
    "a cycle in one folder": Break(
        "No modules of one folder import each other in a circle",
        "recipe/mistakes.py",
        "import perdure.recipe.schema",
        "No cycles are allowed in perdure.recipe.",
    ),
    "a method on another": Break(
        "A method is one file and imports no other method",
        "methods/replay.py",
        "import perdure.methods.ewc",
        "perdure.methods.replay -> perdure.methods.ewc",
    ),
    "the protocol on the engine, in types only": Break(
        "The protocol stands alone",
        "protocol/batch.py",
        UNDER_TYPE_CHECKING,
        "perdure.protocol.batch -> perdure.engine.context",
    ),
    "repair on a command": Break(
        "repair needs nothing of the commands",
        "repair/result.py",
        "from perdure.commands import errors",
        "perdure.repair.result -> perdure.commands.errors",
    ),
    "a data reader on models": Break(
        "A reader of data needs nothing of the models",
        "streams/rows.py",
        "import perdure.models.chat",
        "perdure.streams.rows -> perdure.models.chat",
    ),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with the package's sources and `pyproject.toml`."""
    shutil.copytree(
        ROOT / "perdure", tmp_path / "perdure", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_make_demo_begins_with_intents() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", makefile, re.M)
    assert recipe
    assert [line.strip() for line in recipe[1].splitlines()] == [
        "$(BIN)/perdure demo intents", "$(BIN)/perdure demo $(ARGS)"
    ]  # fmt: skip


def lint(folder: Path, tool: str) -> subprocess.CompletedProcess[str]:
    """Run in `folder` the line of `make lint` that starts with `tool`."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.M)
    assert recipe, "the Makefile has no target lint"
    lines = [line.strip().removeprefix("$(BIN)/") for line in recipe[1].splitlines()]
    program, *arguments = shlex.split(next(line for line in lines if line.startswith(tool)))
    return subprocess.run(
        [Path(sys.executable).parent / program, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def append(file: Path, source: str) -> None:
    file.parent.mkdir(exist_ok=True)
    old = file.read_text("utf-8") if file.exists() else ""
    file.write_text(f"{old}\n{source}\n", "utf-8")


def test_the_package_keeps_every_contract(copy: Path) -> None:
    done = lint(copy, "lint-imports")
    assert done.returncode == 0, done.stdout
    contracts = (copy / "pyproject.toml").read_text("utf-8").count("[[tool.importlinter.contracts")
    assert f"Contracts: {contracts} kept, 0 broken." in done.stdout


def test_each_contract_is_broken_once() -> None:
    names = re.findall(
        r'^\[\[tool\.importlinter\.contracts\]\]\nid = .*\nname = "(.+)"$',
        (ROOT / "pyproject.toml").read_text("utf-8"),
        re.M,
    )
    assert names
    assert {each.contract for each in BREAKS.values()} == set(names)


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_contract_fails_lint(case: str, copy: Path) -> None:
    broken = BREAKS[case]
    append(copy / "perdure" / broken.file, broken.source)
    done = lint(copy, "lint-imports")
    assert done.returncode != 0
    assert re.search(rf"^{re.escape(broken.contract)} BROKEN", done.stdout, re.M), done.stdout
    assert broken.says in done.stdout


def test_the_package_imports_no_underscored_name(copy: Path) -> None:
    done = lint(copy, "ruff check")
    assert done.returncode == 0, done.stdout


def test_an_underscored_name_of_a_dependency_fails_lint(copy: Path) -> None:
    """Between modules of Perdure ruff allows it; `test_repository` holds these to the rule."""
    source = 'from typer.core import _hidden\n\n__all__ = ["_hidden"]\n'
    (copy / "perdure/scoring/nosy.py").write_text(source, "utf-8")
    done = lint(copy, "ruff check")
    assert done.returncode != 0
    assert "import-private-name" in done.stdout  # PLC2701
    assert "nosy.py:1" in done.stdout
