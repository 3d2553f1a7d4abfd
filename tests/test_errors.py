"""How messages name what they are about."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perdure.errors import task_named, typed

pytestmark = pytest.mark.unit

SOURCE = Path(__file__).parents[1] / "perdure"
UNQUOTED = re.compile(r"(?<!-)\btask (?:\{(?!number\})[^{}!]+\}|%s)")
"""The word before a name that stands without quotes, but for task N by its number."""


@pytest.mark.parametrize(
    ("name", "said"),
    [("colour", "task colour"), ("task 5", "task 5"), ("Task 5", "Task 5"), ("task", "task"),
     ("task2", "task2"), ("task_b", "task_b"), ("tasks", "task tasks"), ("may", "task may")],
)  # fmt: skip
def test_a_task_by_its_name(name: str, said: str) -> None:
    assert task_named(name) == said


def test_no_message_says_task_task_5() -> None:
    """Tasks that are cut from a table are called task 1, task 2 and so on."""
    assert UNQUOTED.search('f"task {task.name}: no row"')
    for file in sorted(SOURCE.rglob("*.py")):
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            if "def task_named" in line or 'else f"task {name}"' in line:
                continue
            found = UNQUOTED.search(line)
            assert found is None, f"{file.relative_to(SOURCE)}:{number}: write task_named(name)"


COMMAND = re.compile(r"perdure (?:run|resume|extend|predict|report|eval|export|compare) [^\"']*\{")
"""A command with a value in it that nobody quotes."""


def test_each_command_with_a_path_in_it_can_be_pasted() -> None:
    assert COMMAND.search('f"go on with: perdure resume {run.path}"')
    for file in sorted(SOURCE.rglob("*.py")):
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            found = COMMAND.search(line)
            assert found is None, f"{file.relative_to(SOURCE)}:{number}: write typed(...)"
    assert typed("resume", Path("runs/my shop")) == "perdure resume 'runs/my shop'"
    assert typed("report", "-x", "--out", "FILE") == "perdure report ./-x --out FILE"
