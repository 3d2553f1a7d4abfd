"""Methods that have adapters of their own: two of them in one recipe are refused by name."""

from __future__ import annotations

from itertools import combinations_with_replacement
from pathlib import Path

import pytest
from tiny_runs import write_recipe

from perdure.errors import UsageError
from perdure.methods import registry
from perdure.prepare import load_recipe, prepare
from perdure.protocol.method import refuse_clashes
from perdure.recipe.schema import MethodSpec

pytestmark = pytest.mark.unit


def owners() -> list[str]:
    """All built-in methods that add adapters, by what they say of themselves."""
    files = Path(registry.__file__).parent.glob("[!_]*.py")
    names = sorted(file.stem for file in files if file.stem not in ("registry",))
    made = registry.build(MethodSpec(name=name) for name in names)
    found = zip(names, made, strict=True)
    return [name for name, m in found if m.adapters or m.requires.adapters is not None]


def test_a_method_file_that_adds_adapters_says_so() -> None:
    """Else the walk over all pairs would pass it by."""
    folder = Path(registry.__file__).parent
    adding = {file.stem for file in folder.glob("*.py") if "ctx.adapters." in file.read_text()}
    assert adding <= set(owners())
    assert set(owners()) == {*adding, "lora_sequence"}  # whose learner adds them


@pytest.mark.parametrize("pair", list(combinations_with_replacement(owners(), 2)), ids="+".join)
@pytest.mark.parametrize("ordered", [False, True])
def test_two_of_them_are_refused_by_name(pair: tuple[str, str], ordered: bool) -> None:
    both = registry.build(MethodSpec(name=name) for name in pair)
    with pytest.raises(UsageError) as caught:
        refuse_clashes(both, ordered)
    assert caught.value.what.startswith(f"method: {pair[0]} and {pair[1]} both have adapters")
    assert caught.value.remedy == ("drop one",)


@pytest.mark.parametrize("pair", [("lcia", "olora"), ("moelora", "lcia")])
def test_a_recipe_with_both_is_refused_without_its_model(
    pair: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    path = write_recipe(tmp_path, tmp_path / "empty", model__tuning="lora", method=list(pair))
    with pytest.raises(UsageError, match=f"{pair[0]} and {pair[1]} both have adapters"):
        prepare(load_recipe(path))


def test_one_of_them_goes_with_other_methods() -> None:
    for name in owners():
        others = ("ewc", "replay", "rewind")
        made = registry.build(MethodSpec(name=n) for n in (name, *others))
        refuse_clashes(made)  # raises nothing
        assert sum(m.adapters or m.requires.adapters is not None for m in made) == 1
