"""`check_method` says what is wrong with a method, and where to look."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

from perdure import Method, MethodConfig
from perdure.errors import UsageError
from perdure.methods.ewc import EWC
from perdure.protocol.method import Requires
from perdure.protocol.step import Phase
from perdure.testing import check_method

pytestmark = pytest.mark.train


class PullConfig(MethodConfig):
    weight: float = Field(0.5, description="strength")


class Pull(Method):
    """Adds a term to the loss that counts the whole optimizer step.

    It is no multiple of the loss: clipping of the gradient would hide that.
    """

    Config = PullConfig
    requires = Requires(logits=True)
    noop_options: ClassVar = {"weight": 0}

    def loss(self, ctx: Any, main: Any, extra: Any) -> Mapping[str, Any]:
        return {"pull": self.config.weight * main.token_mean(main.nll.square())}


class ByMicroBatch(Pull):
    def loss(self, ctx: Any, main: Any, extra: Any) -> Mapping[str, Any]:
        return {"pull": self.config.weight * main.nll.square().mean()}


class NeverOff(Pull):
    def loss(self, ctx: Any, main: Any, extra: Any) -> Mapping[str, Any]:
        return {"pull": main.token_mean(main.nll.square())}


class DoesNothing(Pull):
    example_options: ClassVar = {"weight": 2.0}

    def loss(self, ctx: Any, main: Any, extra: Any) -> Mapping[str, Any]:
        return {}


class Forgets(Pull):
    """Acts in the second task by what it learned in the first, and does not save it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.tasks = 0

    def loss(self, ctx: Any, main: Any, extra: Any) -> Mapping[str, Any]:
        return {"pull": self.tasks * self.config.weight * main.token_mean(main.nll.square())}

    def end_task(self, ctx: Any) -> None:
        self.tasks += 1


class Remembers(Forgets):
    saved = ("tasks",)


class Phases(Pull):
    """Trains in two phases, which takes Perdure's own learner."""

    def phases(self, ctx: Any) -> Any:
        if self.config.weight == 0:
            return (Phase(),)
        return (Phase("first"), Phase("second"))


class ForgetsInRuns(Forgets):
    """Chooses its rows by what it learned in the first task, and does not save it."""

    noop_options = None

    def train_data(self, ctx: Any, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return data[: len(data) // (1 + self.tasks)]


class Scales(Pull):
    """Makes the task's own loss larger, which clipping of the gradient hides."""

    def loss(self, ctx: Any, main: Any, extra: Any) -> Mapping[str, Any]:
        return {"scale": self.config.weight * main.token_mean(main.nll)}


class ScalesByMicroBatch(Scales):
    def loss(self, ctx: Any, main: Any, extra: Any) -> Mapping[str, Any]:
        return {"scale": self.config.weight * main.nll.sum()}


class Counts(Pull):
    """Acts by the steps it has seen in this task, and does not save their number."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.steps = 0

    def begin_task(self, ctx: Any) -> None:
        self.steps = 0

    def loss(self, ctx: Any, main: Any, extra: Any) -> Mapping[str, Any]:
        return {"pull": self.steps * self.config.weight * main.token_mean(main.nll.square())}

    def after_step(self, ctx: Any) -> None:
        self.steps += 1


class CountsAndSaves(Counts):
    saved = ("steps",)


class Writes(Pull):
    """Shrinks the weights by itself."""

    def after_step(self, ctx: Any) -> None:
        for parameter in ctx.model.parameters():
            parameter.mul_(1 - 0.01 * self.config.weight)


class WritesGradients(Pull):
    def gradients(self, ctx: Any, params: Any) -> Any:
        for parameter in params.values():
            parameter.grad.mul_(1 + self.config.weight)
        return ()


class Undescribed(Pull):
    class Config(MethodConfig):
        weight: float = 0.5


@pytest.mark.parametrize("kind", [Remembers, EWC, Phases, Scales, CountsAndSaves])
def test_right_methods_pass(
    kind: type[Method], tiny_model_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert check_method(kind, tiny_model_dir) is None
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (ByMicroBatch, "average with token_mean"),
        (NeverOff, "with noop_options {'weight': 0} weights differ"),
        (DoesNothing, "are those of plain fine-tuning"),
        (ForgetsInRuns, "name every attribute that must survive in `saved`"),
        (ScalesByMicroBatch, "average with token_mean"),
        (Counts, "interrupted within a task and went on"),
        (Writes, "after_step wrote to the weight model.embed_tokens.weight itself"),
        (WritesGradients, "gradients wrote to the gradient of "),
        (Forgets, "name every attribute that must survive in `saved`"),
        (Undescribed, "option weight has no description"),
    ],
)
def test_wrong_methods_are_told_what_is_wrong(
    kind: type[Method], told: str, tiny_model_dir: Path
) -> None:
    with pytest.raises(AssertionError) as error:
        check_method(kind, tiny_model_dir)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_options_may_be_given_and_wrong_ones_are_told(tiny_model_dir: Path) -> None:
    with pytest.raises(AssertionError, match=r"with example_options .'weight': 0.0. weights are"):
        check_method(Pull, tiny_model_dir, weight=0.0)
    with pytest.raises(UsageError, match="wieght"):
        check_method(Pull, tiny_model_dir, wieght=0.0)


@pytest.mark.process
def test_importing_perdure_leaves_it_alone() -> None:
    code = "import sys, perdure, perdure.cli; assert 'perdure.testing' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
