"""What must hold of every file: tests assert, files stay short, light modules stay light."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import perdure

pytestmark = pytest.mark.unit
pytest_plugins = "pytester"

TESTS = Path(__file__).parent
PACKAGE = Path(perdure.__file__).parent
LONGEST = 400
HEAVY = {"torch", "transformers", "datasets", "trl", "peft", "accelerate", "matplotlib", "scipy"}
LIGHT = [
    "perdure.cli",
    "perdure.recipe.schema",
    "perdure.errors",
    "perdure.streams",
    "perdure.run.directory",
]


def checks(node: ast.AST) -> bool:
    """Whether a node is an assertion: assert, pytest.raises or .warns, or a call to assert_*."""
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func).rpartition(".")
    return name[2].startswith("assert_") or (name[0] == "pytest" and name[2] in ("raises", "warns"))


def without_assertion(tree: ast.Module) -> Iterator[str]:
    """Yield the names of test functions that check nothing, also by a function of their file."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    checking = {f.name for f in functions if any(map(checks, ast.walk(f)))}
    for function in functions:
        if not function.name.startswith("test_") or function.name in checking:
            continue
        calls = [n.func for n in ast.walk(function) if isinstance(n, ast.Call)]
        if not any(isinstance(call, ast.Name) and call.id in checking for call in calls):
            yield function.name


def test_every_test_asserts() -> None:
    silent = [
        f"{path.relative_to(TESTS)}: {name}"
        for path in sorted(TESTS.rglob("test_*.py"))
        for name in without_assertion(ast.parse(path.read_text("utf-8")))
    ]
    assert silent == []


def test_a_test_without_assertion_is_found() -> None:
    source = (
        "def helper():\n    assert x\n"
        "def test_good():\n    helper()\n"
        "def test_raises():\n    with pytest.raises(E): f()\n"
        "def test_close():\n    torch.testing.assert_close(a, b)\n"
        "class TestX:\n    def test_bad(self):\n        run()\n"
    )
    assert list(without_assertion(ast.parse(source))) == ["test_bad"]


def test_no_file_is_long() -> None:
    lines = {
        str(path.relative_to(PACKAGE)): path.read_text("utf-8").count("\n")
        for path in PACKAGE.rglob("*.py")
    }
    assert len(lines) > 10
    assert {name: count for name, count in lines.items() if count > LONGEST} == {}


def marks(pytester: pytest.Pytester, source: str, *args: str) -> pytest.RunResult:
    """Collect a module of tests with this repository's rules about marks."""
    pytester.makeconftest("from cost_marks import *\n" + FIXTURES)
    pytester.makeini("[pytest]\nmarkers =\n unit\n train\n process\n real\n")
    pytester.makepyfile("import pytest\n" + source)
    return pytester.runpytest("--collect-only", "-q", *args)


FIXTURES = """
import pytest

@pytest.fixture
def tiny_model_dir(): ...

@pytest.fixture
def smollm2_dir(): ...
"""


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def test_bare(): ...", "::test_bare: no cost mark; give it one of unit,"),
        (
            "@pytest.mark.unit\n@pytest.mark.train\ndef test_both(): ...",
            "::test_both: two cost marks: unit, train",
        ),
        (
            "pytestmark = [pytest.mark.unit, pytest.mark.real]\ndef test_in(): ...",
            ".py: two cost marks: unit, real",
        ),
    ],
)
def test_a_test_without_one_cost_mark_is_refused(
    pytester: pytest.Pytester, source: str, says: str
) -> None:
    result = marks(pytester, source)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*{says}*"])


def test_the_nearest_or_the_dearest_cost_mark_counts(pytester: pytest.Pytester) -> None:
    source = """
pytestmark = pytest.mark.unit

def test_of_its_module(): ...

def test_of_a_fixture(tiny_model_dir): ...

def test_of_the_dearest(tiny_model_dir, smollm2_dir): ...

@pytest.mark.process
def test_of_its_own(tiny_model_dir): ...

@pytest.mark.train
class TestIn:
    def test_of_its_class(self, smollm2_dir): ...
"""
    found = {}
    for cost in ("unit", "train", "process", "real"):
        lines = marks(pytester, source, "-m", cost).outlines
        found[cost] = [line.rpartition("::test_of_")[2] for line in lines if "::test_" in line]
    assert found == {
        "unit": ["its_module"],
        "train": ["a_fixture", "its_class"],
        "process": ["its_own"],
        "real": ["the_dearest"],
    }


def test_costs_are_summed_by_mark_file_and_test(monkeypatch: pytest.MonkeyPatch) -> None:
    import measured_costs

    lines = [
        {"file": "test_a.py", "collect": 0.5},
        {"file": "test_a.py", "test": "test_a.py::x", "mark": "unit", "setup": 1, "call": 2.25},
        {"file": "test_b.py", "test": "test_b.py::y", "mark": "train", "call": 4, "teardown": 1},
    ]
    found = measured_costs.table(map(json.dumps, lines)).split()
    assert found[:5] == ["8.8", "CPU", "seconds", "in", "all"]
    assert found[5:11] == ["5.0", "train", "3.2", "unit", "0.5", "imports"]
    assert found[11:] == ["5.0", "test_b.py", "3.8", "test_a.py", "5.0", "test_b.py::y", "3.2",
                          "test_a.py::x"]  # fmt: skip
    clock = iter([2.0, 3.5])
    spent: dict[str, float] = {}
    with monkeypatch.context() as patch:  # the hook of this very test runs on
        patch.setattr(measured_costs, "cpu_seconds", lambda: next(clock))
        with measured_costs.measured(spent, "call"):
            pass
    assert spent == {"call": 1.5}


@pytest.mark.process
@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert HEAVY & set(done.stdout.split()) == set()


def underscored_imports(tree: ast.Module) -> Iterator[str]:
    """Yield what a file imports of names, or of modules, that begin with one underscore."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = [part for part in name.split(".") if part.startswith("_")]
            if any(not part.startswith("__") for part in parts):
                yield name


def test_no_module_imports_anothers_underscored_name() -> None:
    # Ruff's PLC2701 asks this of dependencies only, not between the modules of one package.
    found = [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in underscored_imports(ast.parse(path.read_text("utf-8")))
    ]
    assert found == []
    broken = "from perdure.x import _y\nfrom lm_eval._z import y\nimport a._b\nfrom . import __v__"
    assert list(underscored_imports(ast.parse(broken))) == ["perdure.x._y", "lm_eval._z.y", "a._b"]
