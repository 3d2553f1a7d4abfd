"""One matrix that every method file meets; a new file is in it because it is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import two_tasks
from tiny_runs import finish, start_call, write_recipe
from torch import Tensor
from two_tasks import ACTIVE, METHODS, OWN_ROWS

from perdure import testing

pytestmark = pytest.mark.train

ATTACHED = sorted(set(ACTIVE) - OWN_ROWS)
Weights = dict[str, Tensor]


def same(a: Weights, b: Weights, tolerance: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(
            value, b[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def plain(tiny_model_dir: Path) -> Weights:
    """The weights after both tasks with no method."""
    return testing.learned(tiny_model_dir, None, {})


@pytest.mark.parametrize("name", sorted(METHODS))
def test_its_examples_are_options_that_it_has(name: str) -> None:
    kind = METHODS[name]
    for options in (kind.example_options, kind.noop_options or {}):
        assert testing.make(kind, options).config.model_dump().keys() >= options.keys()


@pytest.mark.parametrize("name", ATTACHED)
def test_switched_off_it_changes_nothing(tiny_model_dir: Path, plain: Weights, name: str) -> None:
    assert testing.check_switched_off(tiny_model_dir, METHODS[name], plain) is None


@pytest.mark.parametrize("name", ATTACHED)
def test_switched_on_it_changes_something_and_not_by_how_the_batch_is_split(
    tiny_model_dir: Path, plain: Weights, name: str
) -> None:
    assert testing.check_split(tiny_model_dir, METHODS[name], plain) is None


@pytest.mark.parametrize("name", ATTACHED)
def test_its_state_on_disk_is_all_it_needs(tiny_model_dir: Path, name: str) -> None:
    testing.check_saved_state(tiny_model_dir, METHODS[name])
    assert all(hasattr(testing.make(METHODS[name], {}), key) for key in METHODS[name].saved)


@pytest.mark.parametrize("name", sorted(OWN_ROWS))
def test_in_runs_it_acts_and_neither_split_nor_resume_matter(
    tiny_model_dir: Path, name: str
) -> None:
    kind, learn = METHODS[name], testing.learned_in_a_run
    plain = learn(tiny_model_dir, None, {})
    assert testing.check_split(tiny_model_dir, kind, plain, learn) is None
    assert testing.check_whole_runs(tiny_model_dir, kind) is None


@pytest.mark.process
def test_two_processes_learn_the_same(tiny_model_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    finish(start_call(two_tasks.main, str(tiny_model_dir), str(tmp_path), processes=2))
    for name in ATTACHED:
        one = testing.learned(tiny_model_dir, METHODS[name], ACTIVE[name])
        same(load_file(tmp_path / f"{name}.safetensors"), one, 2e-6)


# --- in whole runs, by Perdure's own learner


@pytest.fixture
def learned(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Any]:
    """Run a recipe of two tasks with a method and return the run."""

    def run(name: str, options: dict[str, Any], **changes: Any) -> Any:
        from perdure import Run, learn, load_recipe

        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        changes = {"train__epochs": 0.5, "scoring__max_test_rows": 4, **changes}
        recipe = load_recipe(
            write_recipe(folder, tiny_model_dir, method={"name": name, **options}, **changes)
        )
        run = Run.create(folder / "run", recipe)
        learn(recipe, run)
        return run

    return run


@pytest.mark.parametrize(
    ("name", "tuning"),
    [(name, "full") for name in sorted(ACTIVE) if not METHODS[name].adapters]
    + [(name, "lora") for name in sorted(ACTIVE)],
)
def test_whole_runs_with_full_and_lora_tuning(learned: Any, name: str, tuning: str) -> None:
    run = learned(name, ACTIVE[name], model__tuning=tuning)
    assert run.state == "finished"
    assert len(run.scores()) == 9  # two tasks and general ability, after 0, 1 and 2 tasks
    losses = [row["loss"] for row in run.log_rows()]
    assert losses
    assert all(0 < loss < 50 for loss in losses)


def test_joint_trains_on_more_rows_in_the_second_task(learned: Any) -> None:
    run = learned("joint", {}, train__epochs=1)
    steps = [max(r["step"] for r in run.log_rows() if r["after"] == i) for i in (1, 2)]
    assert steps == [6, 12]


@pytest.mark.parametrize("micro", [1, 2])
def test_joint_does_not_depend_on_how_the_batch_is_split(learned: Any, micro: int) -> None:
    from safetensors.torch import load_file

    def weights_of(**changes: Any) -> Weights:
        options = {"train__epochs": 0.25, "train__optimizer": "sgd", **changes}
        return load_file(learned("joint", {}, **options).checkpoint(2) / "model/model.safetensors")

    same(weights_of(), weights_of(train__micro_batch_size=micro), 1e-5)
