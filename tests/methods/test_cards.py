"""Every method has a card of one template, whose recipe is valid and sets real options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from perdure.methods import registry

pytestmark = pytest.mark.unit

CARDS = Path(__file__).parents[2] / "docs/methods"
HEADINGS = ["Idea", "Paper", "Loss", "Cost", "When to use it", "Recipe", "Checked"]
BUILT_IN = [name for name in registry.names() if name in registry._built_in()]


def test_every_method_has_a_card_and_every_card_a_method() -> None:
    assert sorted(path.stem for path in CARDS.glob("*.md") if path.stem != "index") == BUILT_IN


@pytest.mark.parametrize("name", BUILT_IN)
def test_card_keeps_to_the_template(name: str) -> None:
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.+)$", text, re.M) == HEADINGS
    parts = re.split(r"^## .+$", text, flags=re.M)[1:]
    assert all(part.strip() for part in parts)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_cards_recipe_loads(name: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    from tiny_runs import write_recipe

    from perdure import load_recipe

    text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    given: dict[str, Any] = YAML(typ="safe").load(snippet)
    recipe = load_recipe(write_recipe(tmp_path, tiny_model_dir, **given))
    (spec,) = recipe.methods
    assert spec.name == name
    assert registry.load_config(name, spec.options) == registry.load(name).Config(
        **{k: v for k, v in given["method"].items() if k != "name"}
    )


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_file_is_short_and_says_paper_loss_and_cost(name: str) -> None:
    source = (Path(registry.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    # The paper's method is read in five minutes; the released code has many traits to choose from.
    most = {
        "gere": 100, "gere_official": 220, "seq_star": 155, "ewc": 160, "derpp": 160,
        "general_replay": 150,
    }  # fmt: skip
    assert len(source.splitlines()) <= most.get(name, 140)
    doc = source.split('"""')[1]
    assert "    L = " in doc or "    w" in doc
    assert "Cost: " in doc
