"""What tests of methods share: a context on the tiny model, and trainers with methods on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_tasks import FIRST, GENERAL, general_method

from perdure.streams.task import GeneralText, Task


@pytest.fixture
def context(tiny: Any, tmp_path: Path) -> Callable[..., Any]:
    """Make a `Context` on the tiny model: `context(method, ..., task=, task_index=, score=)`.

    What the engine holds behind it is `_session`.
    """
    from perdure.engine.session import TaskSession
    from perdure.models.chat import Encoder

    model, tokenizer = tiny

    def make(*methods: Any, task: Task = FIRST, **options: Any) -> Any:
        return TaskSession(
            options.pop("model", model), Encoder(tokenizer), task, methods=methods,
            general=options.pop("general", GeneralText(replay=GENERAL)),
            cache=options.pop("cache", tmp_path / "cache"), **options,
        ).context  # fmt: skip

    return make


@pytest.fixture
def made(context: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Make a method that replays general texts, and its begun first task.

    `made({options of context}, kind="gere", **options of the method)`; of the context what the
    engine holds is `_session`.
    """

    def make(
        ctx_options: dict[str, Any] | None = None, kind: str = "gere", **options: Any
    ) -> tuple[Any, Any]:
        method = general_method(kind, **options)
        ctx = context(method, **(ctx_options or {}))
        method.begin_task(ctx)
        return method, ctx

    return make
