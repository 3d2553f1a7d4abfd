"""The method printed in CONTRIBUTING.md works as it is: as another package's, and in Perdure."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_docs import ROOT, blocks
from tiny_runs import write_recipe
from typer.testing import CliRunner

import perdure
from perdure.cli import app
from perdure.methods import registry

pytestmark = pytest.mark.unit

PAGE = ROOT / "CONTRIBUTING.md"
METHOD, PUT_THROUGH, CHECK = (b.text for b in blocks(PAGE) if b.language == "python")
(ENTRY_POINT,) = (b.text for b in blocks(PAGE) if b.language == "toml")
ABOUT = METHOD.partition("\n")[0].strip('"')
PACKAGE = Path(perdure.__file__).parent


def state_of_the_package() -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in PACKAGE.rglob("*") if "__pycache__" not in str(p)}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file in a package `my_package`, installed as pip would leave it."""
    site = tmp_path / "site"
    (site / "my_package").mkdir(parents=True)
    (site / "my_package" / "__init__.py").touch()
    (site / "my_package" / "confidence.py").write_text(METHOD, encoding="utf-8")
    info = site / "my_package-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 0.1\n")
    group = re.search(r'\[project\.entry-points\."(.+)"\]\n(\w+) = "(.+)"', ENTRY_POINT)
    assert group
    (info / "entry_points.txt").write_text(f"[{group[1]}]\n{group[2]} = {group[3]}\n")
    monkeypatch.syspath_prepend(site)
    yield
    for module in [m for m in sys.modules if m.partition(".")[0] == "my_package"]:
        del sys.modules[module]


def command(*args: str | Path) -> Any:
    result = CliRunner().invoke(app, [*map(str, args), "--json"], prog_name="perdure")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.usefixtures("installed")
def test_as_a_third_partys_package(tiny_model_dir: Path, tmp_path: Path) -> None:
    before = state_of_the_package()
    assert {"name": "confidence", "about": ABOUT} in command("methods")
    assert "my_package" not in sys.modules  # listing imports nobody's code
    options = command("methods", "confidence")["options"]
    assert options["weight"]["default"] == 0.1
    recipe = write_recipe(tmp_path, tiny_model_dir, train__max_steps=3)
    chosen = ["method.name=confidence", "method.weight=0.5"]
    found = command("run", recipe, *chosen, "--out", tmp_path / "run")
    assert found["method"] == "confidence"
    assert [row["after"] for row in found["scores"]] == [0, 1, 2]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    # Near ln 512 for a random model, times the weight, taken off.
    assert [row["method/confidence"] < -0.5 for row in log] == [True] * 6
    assert "confidence" in Path(found["report"]).read_text(encoding="utf-8")
    assert state_of_the_package() == before


@pytest.mark.usefixtures("installed")
def test_its_loss_by_hand() -> None:
    module = importlib.import_module("my_package.confidence")
    exec(compile(CHECK, str(PAGE), "exec"), {"entropy": module.entropy})
    assert CHECK.count("assert_close") == 2


@pytest.mark.usefixtures("installed")
def test_it_passes_the_checks_of_every_method(tiny_model_dir: Path) -> None:
    """As printed, but on the tests' own tiny model, which is the one that it would make."""
    kind = importlib.import_module("my_package.confidence").Confidence
    program = PUT_THROUGH.replace("check_method(Confidence)", "check_method(Confidence, folder)")
    assert program != PUT_THROUGH
    exec(compile(program, str(PAGE), "exec"), {"Confidence": kind, "folder": tiny_model_dir})


@pytest.mark.usefixtures("installed")
def test_its_mistakes_are_told_like_any_others(tmp_path: Path, tiny_model_dir: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir, method={"name": "confidence", "wieght": 1})
    result = CliRunner().invoke(app, ["run", str(recipe), "--check"])
    assert result.exit_code == 2
    assert "wieght" in result.stderr
    assert "weight" in result.stderr
    assert registry.load("confidence").__module__ == "my_package.confidence"


@pytest.mark.process
def test_as_one_new_file_of_perdure(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A copy of the package with this file in its methods, in a process of its own."""
    copy = tmp_path / "source" / "perdure"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "methods" / "confidence.py").write_text(METHOD, encoding="utf-8")
    recipe = write_recipe(tmp_path, tiny_model_dir, train__max_steps=1, method="confidence")
    program = (
        "import sys; from perdure.methods import registry; from perdure.cli import main\n"
        f"assert registry.describe('confidence') == {ABOUT!r}\n"
        f"assert registry.__file__.startswith({str(copy)!r})\n"
        f"sys.argv = ['perdure', 'run', {str(recipe)!r}, '--json', "
        f"'--out', {str(tmp_path / 'run')!r}]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(copy.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=200, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["method"] == "confidence"


ENUMERATE = [
    "tests/methods/test_registry.py", "tests/methods/test_cards.py",
    "tests/methods/test_every_method.py", "tests/recipe/test_recipe.py", "tests/test_docs.py",
]  # fmt: skip
"""Test files that go through all methods there are."""


@pytest.mark.process
def test_the_suite_takes_it_with_its_card_and_no_other_edit(tmp_path: Path) -> None:
    """What goes through all methods passes in a copy of the repository that has one more."""
    root = tmp_path / "repository"
    for name in ("perdure", "tests", "docs", "benchmarks"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile"):
        shutil.copy(ROOT / name, root)
    (root / "perdure/methods/confidence.py").write_text(METHOD, encoding="utf-8")
    card = (root / "docs/methods/eaft.md").read_text(encoding="utf-8")
    card = card.replace("{name: eaft, top: 20, alpha: 1.0}", "{name: confidence, weight: 0.1}")
    card = card.replace("eaft", "confidence")
    (root / "docs/methods/confidence.md").write_text(card, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    for command in (
        ["docs/generate.py"],
        ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *ENUMERATE, "-k",
         "confidence or has_a_card or all_built_in or every_option or generated_pages or "
         "readme_lists"],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True,
            timeout=280, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
    assert "confidence" in (root / "README.md").read_text(encoding="utf-8")
