"""What methods see: few names, frozen facts, and nothing that anybody outside writes to."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import perdure
from perdure.engine.context import TaskContext
from perdure.protocol.context import Context
from perdure.protocol.step import Step

pytestmark = pytest.mark.unit

PACKAGE = Path(perdure.__file__).parent
SESSION = ("session", "ctx", "context")


def names(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_a_context_offers_at_most_twenty_names_and_the_engine_offers_the_same() -> None:
    assert len(names(Context)) <= 20
    assert names(TaskContext) == names(Context)


def test_a_step_is_frozen() -> None:
    step = Step()
    with pytest.raises(dataclasses.FrozenInstanceError):
        step.index = 3  # type: ignore[misc]


def test_what_a_context_offers_cannot_be_written() -> None:
    context = TaskContext(session=None)  # type: ignore[arg-type]
    for name in ("task", "step", "model", "seed"):
        with pytest.raises(AttributeError):
            setattr(context, name, None)


def writes(tree: ast.Module) -> Iterator[str]:
    """Yield assignments to an attribute of something that is called a session or a context.

    The `ctx` of an autograd function is another one.
    """
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any("Function" in ast.unparse(b) for b in node.bases)
    ]
    other = {inner for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        if node in other:
            continue
        targets = (
            node.targets if isinstance(node, ast.Assign)
            else [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign)
            else []
        )  # fmt: skip
        for target in targets:
            for part in ast.walk(target):
                if not isinstance(part, ast.Attribute):
                    continue
                owner = ast.unparse(part.value).rpartition(".")[2].lstrip("_")
                if owner in SESSION:
                    yield ast.unparse(part)


def test_nothing_outside_writes_to_a_session_or_a_context() -> None:
    found = {
        str(path.relative_to(PACKAGE)): list(writes(ast.parse(path.read_text("utf-8"))))
        for path in PACKAGE.rglob("*.py")
    }
    assert len(found) > 100
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_a_write_is_seen() -> None:
    source = "self.session.tokens += 3\nctx.step = 4\ntrainer.session = session\n"
    assert list(writes(ast.parse(source))) == ["self.session.tokens", "ctx.step"]


def test_methods_ask_only_for_names_of_the_protocol() -> None:
    asked = {
        node.attr
        for path in (PACKAGE / "methods").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "ctx"
    }
    assert asked - names(Context) == set()
    assert {"task", "log", "draw"} <= asked


@pytest.mark.train
def test_a_batch_runs_as_its_rows_do_and_none_leaves_each_module_in_its_mode(
    tiny: Any, tmp_path: Path
) -> None:
    from perdure.engine.session import TaskSession
    from perdure.models.chat import Encoder
    from perdure.protocol.method import Method, MethodConfig, Requires
    from perdure.testing import FIRST

    class Reads(Method):
        requires = Requires(logits=True)

    model, tokenizer = tiny
    session = TaskSession(
        model, Encoder(tokenizer), FIRST, methods=[Reads(MethodConfig())], cache=tmp_path
    )
    ctx = session.context
    rows = [ctx.encode(row) for row in FIRST.train[:3]]
    seen = ctx.forward(rows)
    again = ctx.forward(seen.batch)
    assert torch.equal(seen.nll, again.nll)
    modes: list[bool] = []
    layer = model.model.layers[0]
    handle = layer.register_forward_pre_hook(lambda *_: modes.append(layer.training))
    model.train()
    layer.train(False)
    state = torch.get_rng_state()
    for train in (None, True, False):
        ctx.forward(seen.batch, train=train)
    handle.remove()
    assert modes == [False, True, False]
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not layer.training
