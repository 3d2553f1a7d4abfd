"""The state of methods on disk: whose it is, and what is said of another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from perdure.engine.distillation import Distillation
from perdure.engine.method_state import STATE, load_methods, load_state, save_methods
from perdure.errors import TrainingError
from perdure.protocol.method import Method, MethodConfig

pytestmark = pytest.mark.unit

MODEL = nn.Linear(1, 1)


class Options(MethodConfig):
    rate: float = 0.5
    layers: tuple[int, ...] = (1, 2)


class Later(Options):
    """The same in a later version, with one more option."""

    norm: str = "l1"


class Keeps(Method):
    Config = Options
    saved = ("kept",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.kept = torch.zeros(2)


class Other(Keeps):
    pass


def saved(tmp_path: Path, *methods: Method) -> Path:
    save_methods(tmp_path / STATE, methods)
    return tmp_path / STATE


def test_the_same_methods_get_their_state_back(tmp_path: Path) -> None:
    first = Keeps(Options())
    first.kept = torch.tensor([1.0, 2.0])
    stem = saved(tmp_path, first)
    for options in (Options(), Later()):
        again = Keeps(options)
        load_methods(stem, [again], MODEL, compare=True)
        assert again.kept.tolist() == [1, 2]
        assert again.state_dict().keys() == {"kept"}
    assert load_state(stem)[0]["kept"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("methods", "why"),
    [
        ([Keeps(Options(rate=0.25))], "test_method_state: rate was 0.5, is 0.25 now"),
        ([Keeps(Options(layers=(1,)))], "test_method_state: layers was [1, 2], is [1] now"),
        ([Keeps(Later(norm="l2"))], 'test_method_state: norm was "l1", is "l2" now'),
        ([Other(Options())], "Keeps, where Other is attached now"),
        ([], "it holds test_method_state; attached now: none"),
        ([Keeps(Options())] * 2, "attached now: test_method_state, test_method_state"),
    ],
)
def test_what_differs_is_named(tmp_path: Path, methods: list[Method], why: str) -> None:
    stem = saved(tmp_path, Keeps(Options()))
    with pytest.raises(TrainingError) as error:
        load_methods(stem, methods, MODEL, compare=True)
    assert error.value.what.startswith(f"{tmp_path}: was written by other methods: ")
    assert error.value.what.endswith(why)
    if len(methods) == 1:  # a run compares its recipe, and the user may have accepted a change
        load_methods(stem, methods, MODEL)


def test_a_state_of_an_older_perdure_names_no_methods(tmp_path: Path) -> None:
    stem = saved(tmp_path, Keeps(Options()))
    path = stem.with_suffix(".json")
    states = json.loads(path.read_text())
    assert states[0].pop("__method__")["options"] == {"rate": 0.5, "layers": [1, 2]}
    path.write_text(json.dumps(states))
    load_methods(stem, [Keeps(Options(rate=0.25))], MODEL, compare=True)
    with pytest.raises(
        TrainingError, match="it holds a method of unknown name; attached now: none"
    ):
        load_methods(stem, [], MODEL)


def test_distilled_states_are_known_by_all_that_the_model_takes() -> None:
    row = {"input_ids": [5, 6], "labels": -100, "_text": 0}
    wanted = Distillation("states")
    plain = wanted.cache_key([row])
    assert plain.keys() == {"texts", "lengths", "layers"}
    assert wanted.cache_key([{**row, "_text": 1}]) == plain
    image = wanted.cache_key([{**row, "image": torch.zeros(3)}])
    other = wanted.cache_key([{**row, "image": torch.tensor([0, 0, 1.0])}])
    assert plain != image != other != plain
