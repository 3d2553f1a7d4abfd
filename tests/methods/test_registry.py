"""Methods are found by file name and by entry point, and a mistake is told with the near name."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import UsageError
from perdure.methods import registry
from perdure.protocol.method import Method
from perdure.recipe.schema import MethodSpec

pytestmark = pytest.mark.unit

BUILT_IN = sorted(path.stem for path in Path(registry.__file__).parent.glob("[a-z]*.py"))
BUILT_IN.remove("registry")

THIRD_PARTY = '''"""Hold on to the third party's way.

More about it.
"""
from perdure.protocol.method import Method

class Mine(Method):
    pass

NOT_A_METHOD = 3
'''


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a package `third_party` that offers entry points name -> value."""
    (tmp_path / "third_party").mkdir()
    (tmp_path / "third_party/__init__.py").write_text("raise RuntimeError('was imported')\n")
    (tmp_path / "third_party/mine.py").write_text(THIRD_PARTY)
    (tmp_path / "lone_module.py").write_text(THIRD_PARTY)
    monkeypatch.syspath_prepend(str(tmp_path))

    def points(**offers: str) -> None:
        found = [EntryPoint(name, value, registry.GROUP) for name, value in offers.items()]
        monkeypatch.setattr(registry, "_third_party", lambda: found)

    yield points
    for name in [n for n in sys.modules if n.split(".")[0] in ("third_party", "lone_module")]:
        del sys.modules[name]


def test_all_built_in_methods_are_there_and_say_what_they_do() -> None:
    assert {"sequential", "gere"} <= set(BUILT_IN) <= set(registry.names())
    for name in BUILT_IN:
        assert issubclass(registry.load(name), Method)
        line = registry.describe(name)
        assert 20 < len(line) < 100
        assert line.endswith((".", ":"))


@pytest.mark.process
def test_listing_and_describing_import_neither_torch_nor_the_method() -> None:
    code = (
        "import sys; from perdure.methods import registry\n"
        "[registry.describe(n) for n in registry.names()]\n"
        "assert 'torch' not in sys.modules and 'perdure.methods.gere' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_every_option_is_described() -> None:
    for name in BUILT_IN:
        for key, option in registry.load(name).Config.model_fields.items():
            assert option.description, f"{name}.{key}"


def test_build_makes_the_listed_methods_in_order() -> None:
    specs = [
        MethodSpec(name="replay", options={"buffer_size": 5}),
        MethodSpec(name="ewc"),
    ]
    made = registry.build(specs)
    assert [type(m).__name__ for m in made] == ["Replay", "EWC"]
    assert made[0].config.buffer_size == 5


def test_a_misspelt_name_is_told_with_the_near_one() -> None:
    with pytest.raises(UsageError) as error:
        registry.load("ger")
    assert str(error.value) == (
        "no method is called 'ger'; did you mean \"gere\"?\n  all of them: perdure methods"
    )
    assert error.value.exit_code == 2


def test_all_wrong_options_are_told_at_once() -> None:
    with pytest.raises(UsageError) as error:
        registry.load_config("gere", {"weigth": 1, "k": -1, "weight": "x"})
    assert str(error.value).splitlines() == [
        "method.weigth: unknown key",
        '  did you mean "weight"?',
        'method.weight: must be a number, not "x"',
        "  of the margin; null: 100, and 1 under learn: rl; dynamic: as large as the CE, detached",
        "method.k: must be greater than 0, not -1",
        "  half width of the middle interval in deviations",
    ]


def test_a_third_partys_method_is_listed_and_described_without_importing_it(offer: Any) -> None:
    offer(mine="third_party.mine:Mine")
    assert "mine" in registry.names()
    assert registry.describe("mine") == "Hold on to the third party's way."


def test_a_third_partys_method_loads(offer: Any) -> None:
    offer(mine="lone_module:Mine")
    assert registry.load("mine").__name__ == "Mine"
    assert registry.describe("mine") == "Hold on to the third party's way."


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("lone_module:NOT_A_METHOD", "lone_module:NOT_A_METHOD is no Method"),
        ("lone_module:Missing", "cannot be imported"),
        ("no_such_package:Mine", "cannot be imported"),
    ],
)
def test_a_broken_entry_point_names_its_owner(offer: Any, value: str, told: str) -> None:
    offer(mine=value)
    with pytest.raises(UsageError, match=told):
        registry.load("mine")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("no_such_package:Mine", "there is no module no_such_package"),
        ("third_party.gone:Mine", "there is no module third_party.gone"),
        ("lone_module:Missing", "lone_module.py has no Missing"),
        ("bad_source:Mine", "bad_source.py: "),
    ],
)
def test_a_broken_entry_point_is_named_with_its_error_in_the_list(
    offer: Any, tmp_path: Path, value: str, told: str
) -> None:
    (tmp_path / "bad_source.py").write_text("def (:\n")
    offer(mine=value)
    found = {name: (about, whole) for name, about, whole in registry.described()}
    about, whole = found.pop("mine")
    assert not whole
    assert about.startswith(f"broken: method 'mine' of {value.split(':')[0].split('.')[0]} ")
    assert told in about
    assert all(whole for _, whole in found.values())  # the others are listed as ever


def test_one_that_raises_on_import_is_told_as_an_error(offer: Any) -> None:
    offer(mine="third_party.mine:Mine")  # whose package raises RuntimeError
    with pytest.raises(UsageError, match="third_party cannot be imported: RuntimeError: was impo"):
        registry.load("mine")


def test_a_name_offered_twice_does_not_hide_the_list(offer: Any) -> None:
    offer(gere="lone_module:Mine")
    found = {name: whole for name, _, whole in registry.described()}
    assert found["gere"] is False
    assert sum(found.values()) == len(BUILT_IN) - 1


def test_a_name_that_is_built_in_already_is_refused(offer: Any) -> None:
    offer(gere="lone_module:Mine")
    with pytest.raises(UsageError, match="'gere' is offered more than once: perdure, lone_module"):
        registry.load("gere")
    assert registry.names().count("gere") == 1
