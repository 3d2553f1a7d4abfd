"""A codebook's router beside adapters: saved with them, read back without a method, and checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from perdure.cli import app
from perdure.errors import PerdureError, RunError, UsageError
from perdure.models import adapter_lists, load_saved
from perdure.models.adapters import attach_lora, save_model
from perdure.models.codebook import Codebook, Group
from perdure.models.pool import AdapterPool
from perdure.models.router import Router
from perdure.models.served import (
    adapter_named,
    adapters_told,
    learned,
    load_router,
    open_router,
    router_of,
    serve_only,
)
from perdure.recipe.schema import LoraConfig, ModelConfig
from perdure.scoring.routed import Routed, as_prompt
from perdure.seals import seal

pytestmark = pytest.mark.train
BOOK = Codebook(
    groups=(
        Group(name="red", adapter="default", instructions=("Name the colour of the house.",)),
        Group(name="sum", adapter="sum@2", instructions=("Add both numbers up.",)),
    ),
    accept=0.3,
)


@pytest.fixture
def folder(tiny: Any, tiny_model_dir: Path, tmp_path: Path) -> Path:
    model = attach_lora(tiny[0], LoraConfig(r=2))
    adapter_lists.add(model, "sum@2")
    base = ModelConfig(path=str(tiny_model_dir), tuning="lora")
    save_model(model, tiny[1], tmp_path / "model", base)
    Router(BOOK).save(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_router_is_that_of_the_loaded_model(folder: Path) -> None:
    model, _ = load_saved(folder)
    router = router_of(model)
    assert isinstance(router, Router)
    assert router.codebook == BOOK
    asked = ["Name the colour of a car.", "Translate this.", "Add these numbers up."]
    found = Routed(router, map(as_prompt, asked)).of_texts(asked)
    assert [one.adapter for one in found] == ["default", None, "sum@2"]
    assert all(one.why for one in found)
    # One adapter by itself is served as it is.
    alone, _ = load_saved(folder / "sum@2")
    assert router_of(alone) is None
    assert load_router(folder / "sum@2") is None


def test_a_codebook_with_an_adapter_that_is_not_there_is_refused(folder: Path) -> None:
    file = folder / "codebook.json"
    found = json.loads(file.read_text())
    found["groups"][1]["adapter"] = "sum@3"
    file.write_text(json.dumps(found))
    with pytest.raises(PerdureError, match="sum@3"):
        load_saved(folder)


def test_a_codebook_of_another_base_is_refused(folder: Path) -> None:
    Router(BOOK.model_copy(update={"base": "0123"})).save(folder)
    with pytest.raises(PerdureError, match="fingerprint 0123, and the one at hand has"):
        load_saved(folder)


def first_two(book: Any) -> None:
    """Two groups of one name."""
    book["groups"][1]["name"] = "red"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: d.update(threshold=1.5), "threshold: must be less than or equal to 1, not 1.5"),
        (lambda d: d.update(accept=-1, fallback="lasst"), 'did you mean "last"'),
        (first_two, 'groups.1.name (group red): two groups are called "red"'),
        (lambda d: d["groups"][1].update(adapter="sum@3"), "no adapter is called 'sum@3'"),
        (lambda d: d["groups"][1].update(adapter="sum@3"), "did you mean sum@2"),
        (lambda d: d.update(accept=0.4), "can be read, but its values are not those that the run"),
    ],
)
def test_a_codebook_that_was_edited_in_a_sealed_checkpoint(
    folder: Path, edit: Any, said: str, tmp_path: Path
) -> None:
    seal(tmp_path, {"after": 1})
    file = folder / "codebook.json"
    found = json.loads(file.read_text())
    edit(found)
    file.write_text(json.dumps(found))
    for reader in (load_saved, open_router):
        with pytest.raises(RunError) as caught:
            reader(folder)
        told = str(caught.value)
        assert told.startswith(f"{file}: was changed after the checkpoint was written, and ")
        assert said in told
        assert told.count(str(file)) == 1  # where it stands is said once
        assert "put it back from a copy" in told
        assert f"copy the folder {folder} out of the run" in told


def test_copied_out_of_the_run_a_codebook_may_be_edited(folder: Path, tmp_path: Path) -> None:
    seal(tmp_path, {"after": 1})
    shutil.copytree(folder, own := tmp_path / "own")
    said = json.loads((own / "codebook.json").read_text()) | {"fallback": "nearest"}
    (own / "codebook.json").write_text(json.dumps(said))
    router, _ = open_router(own)
    assert router is not None
    # Similar to a group, and to none enough to fit it.
    found = router.choose([as_prompt("The colour of a river, a planet, a composer, a hat.")])[0]
    assert (found.fits, found.adapter) == (False, "default")
    assert AdapterPool.load(own).router is not None


def test_another_file_that_was_changed_is_damaged(folder: Path, tmp_path: Path) -> None:
    seal(tmp_path, {"after": 1})
    (folder / "perdure_base.json").write_text("{}")
    with pytest.raises(RunError, match=r"perdure_base\.json: damaged: it is not what was written"):
        load_saved(folder)


def test_a_group_called_default_goes_before_the_recipe_s_own_adapter(folder: Path) -> None:
    """A task may be called so; its adapter is sum@2 here, and no task trained `default`."""
    groups = [{**dict(BOOK.groups[1]), "name": "default", "tasks": ("default",)}]
    Router(Codebook(groups=groups, accept=0.3)).save(folder)
    assert adapter_named(folder, "default") == "sum@2"
    assert AdapterPool.load(folder).named("default").adapter == "sum@2"
    assert adapters_told(folder) == "name it with --adapter; there are sum@2 (learned default)"
    assert learned(folder) == {"sum@2": "learned default"}


def test_exported_adapters_are_listed_with_what_they_learned(folder: Path, tmp_path: Path) -> None:
    groups = [dict(BOOK.groups[0]), {**dict(BOOK.groups[1]), "tasks": ("one", "two")}]
    Router(Codebook(groups=groups, accept=0.3)).save(folder)
    for as_json in ([], ["--json"]):
        out = tmp_path / f"out{len(as_json)}"
        typed = ["export", str(folder), "--to", "peft", "--out", str(out), *as_json]
        told = CliRunner().invoke(app, typed)
        assert told.exit_code == 0, told.output
        found = [
            {"name": "default", "folder": str(out), "learned": "of no task"},
            {"name": "sum@2", "folder": str(out / "sum@2"), "learned": "learned one, two"},
        ]
        if as_json:
            assert json.loads(told.stdout)["adapters"] == found
        else:
            lines = [f"adapter {one['name']} ({one['learned']}): {one['folder']}" for one in found]
            assert told.stdout.splitlines() == [f"model: {out}", *lines]


def test_one_adapter_by_its_name_or_its_groups(folder: Path, tiny_model_dir: Path) -> None:
    assert [adapter_named(folder, name) for name in ("sum", "sum@2", "red")] == [
        "sum@2", "sum@2", "default"
    ]  # fmt: skip
    with pytest.raises(PerdureError, match=r"did you mean sum"):
        adapter_named(folder, "sun")
    with pytest.raises(PerdureError, match="holds no adapters"):
        adapter_named(tiny_model_dir, "sum")
    for missing, remedy in (
        (folder.parent / "modle", 'did you mean "model"?'),
        (Path("nowhere/at/all"), "give a run directory, or a folder of adapters"),
    ):
        with pytest.raises(UsageError, match=f"adapter sum: {missing}: no such folder") as caught:
            adapter_named(missing, "sum")
        assert caught.value.remedy == (remedy,)
    with pytest.raises(UsageError, match="package:some_model holds no adapters"):
        adapter_named("package:some_model", "sum")
    model, _ = load_saved(folder)
    serve_only(model, "sum@2")
    assert router_of(model) is None
    assert adapter_lists.active(model) == ("sum@2",)
    assert adapter_lists.trained(model) == ()
