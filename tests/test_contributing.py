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
CARD = """# confidence

## Idea
Keep predictions from becoming certain.

Acts on: the task's texts.

## Paper
Confidence penalty, Pereyra et al. 2017 ([arXiv 1701.06548](https://arxiv.org/abs/1701.06548)).

## Loss
`L = CE(task) - weight * mean over answer tokens of H(p)`.

## Cost
A softmax of the logits at answer positions; nothing is kept.

## When to use it
When answers need not be certain.

## Recipe
```yaml
method: {name: confidence, weight: 0.2}
```

## Checked
Entropy by hand and against plain Python.
"""


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


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with this file in its methods, and its card."""
    copy = tmp_path_factory.mktemp("grown")
    skip = shutil.ignore_patterns("__pycache__")
    for folder in ("perdure", "docs", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=skip)
    for file in (*ROOT.glob("*.md"), ROOT / "pyproject.toml"):
        shutil.copy(file, copy)
    (copy / "perdure/methods/confidence.py").write_text(METHOD, encoding="utf-8")
    (copy / "docs/methods/confidence.md").write_text(CARD, encoding="utf-8")
    printed = in_copy(copy, "docs/generate.py").splitlines()
    assert {"README.md", "docs/methods/index.md", "docs/recipes.md"} <= set(printed)
    return copy


def in_copy(copy: Path, *args: str) -> str:
    """What `python ARGS` prints in a copy of the repository, which it imports Perdure from."""
    done = subprocess.run(
        [sys.executable, *args],
        env={**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True, text=True, timeout=250, check=False, cwd=copy,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.process
def test_as_one_new_file_of_perdure(grown: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir, train__max_steps=1, method="confidence")
    program = (
        "import sys; from perdure.methods import registry; from perdure.cli import main\n"
        f"assert registry.describe('confidence') == {ABOUT!r}\n"
        f"assert registry.__file__.startswith({str(grown)!r})\n"
        f"sys.argv = ['perdure', 'run', {str(recipe)!r}, '--json', "
        f"'--out', {str(tmp_path / 'run')!r}]; main()"
    )
    assert json.loads(in_copy(grown, "-c", program))["method"] == "confidence"


@pytest.mark.process
def test_with_its_card_it_passes_the_tests_of_all_methods_with_no_other_edit(grown: Path) -> None:
    # Those that go over all methods, without the whole runs and two processes (test_cards.py and
    # test_every_method.py of the copy take one parameter a method, so -k picks its own).
    over_all = (
        "confidence", "every_card", "all_built_in", "every_option_is_described",
        "generated_pages", "readme_lists", "every_key_of_a_recipe",
    )  # fmt: skip
    files = (
        "methods/test_registry.py", "methods/test_cards.py", "methods/test_every_method.py",
        "test_docs.py", "recipe/test_recipe.py",
    )  # fmt: skip
    chosen = f"({' or '.join(over_all)}) and not whole_runs"
    told = in_copy(
        grown, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen,
        *(f"tests/{file}" for file in files), "-rA",
    )  # fmt: skip
    passed = set(re.findall(r"^PASSED \S*::(\w+)(?:\[confidence\])?$", told, re.M))
    assert passed == {
        "test_all_built_in_methods_are_there_and_say_what_they_do",
        "test_every_option_is_described",
        "test_every_method_has_a_card_and_every_card_a_method",
        "test_card_keeps_to_the_template",
        "test_the_cards_recipe_loads",
        "test_the_file_is_short_and_says_paper_loss_and_cost",
        "test_its_examples_are_options_that_it_has",
        "test_switched_off_it_changes_nothing",
        "test_switched_on_it_changes_something_and_not_by_how_the_batch_is_split",
        "test_its_state_on_disk_is_all_it_needs",
        "test_generated_pages_are_up_to_date",
        "test_the_readme_lists_the_methods_as_the_command_does",
        "test_every_key_of_a_recipe_is_explained",
        "test_every_option_of_a_method_is_read_in_its_file",
    }
