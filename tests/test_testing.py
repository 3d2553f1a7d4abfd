"""`check_method` says what is wrong: a method forgets, depends on the split, or is never off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

from perdure import Method, MethodConfig
from perdure.methods.ewc import EWC
from perdure.methods.joint import Joint
from perdure.protocol.method import Requires
from perdure.testing import check_method

pytestmark = pytest.mark.train


class PullConfig(MethodConfig):
    weight: float = Field(0.5, description="strength")


class Pull(Method):
    """Adds a term to the loss that counts the whole optimizer step."""

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


class Undescribed(Pull):
    class Config(MethodConfig):
        weight: float = 0.5


@pytest.mark.parametrize("kind", [Pull, Remembers, EWC, Joint])
def test_right_methods_pass(kind: type[Method], tiny_model_dir: Path) -> None:
    assert check_method(kind, tiny_model_dir) is None


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (ByMicroBatch, "average with token_mean"),
        (NeverOff, "with noop_options {'weight': 0} weights differ"),
        (DoesNothing, "are those of plain fine-tuning"),
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
