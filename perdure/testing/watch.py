"""See what a method's hooks write to by themselves, where the runner alone may write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from perdure.protocol.method import Method

if TYPE_CHECKING:
    from torch import Tensor, nn

HOOKS = ("begin_task", "replay", "loss", "after_step", "end_task", "serving")
"""Hooks that get a context and after which each weight is what it was before."""


def watched(kind: type[Method]) -> tuple[type[Method], list[str]]:
    """A class that does what `kind` does, and a list of what its hooks wrote to themselves.

    The list is empty at first and grows while methods of that class are at work.
    """
    wrote: list[str] = []
    own: dict[str, Any] = {"__module__": kind.__module__}
    for name in HOOKS:
        if getattr(kind, name) is not getattr(Method, name):
            own[name] = _looking_on(name, getattr(kind, name), wrote)
    if kind.gradients is not Method.gradients:
        own["gradients"] = _at_gradients(kind.gradients, wrote)
    return type(kind.__name__, (kind,), own), wrote


def _looking_on(name: str, hook: Callable[..., Any], wrote: list[str]) -> Callable[..., Any]:
    def and_look(self: Method, ctx: Any, *args: Any) -> Any:
        before = _copies(ctx.model)
        found = hook(self, ctx, *args)
        _note(name, ctx.model, before, wrote)
        return found

    return and_look


def _at_gradients(hook: Callable[..., Any], wrote: list[str]) -> Callable[..., Any]:
    def and_look(
        self: Method, ctx: Any, params: Mapping[str, nn.Parameter]
    ) -> Iterator[tuple[str, Tensor | None]]:
        before, given = _copies(ctx.model), set()
        gradients = {n: p.grad.clone() for n, p in params.items() if p.grad is not None}
        found: Iterable[tuple[str, Tensor | None]] = hook(self, ctx, params)
        for name, gradient in found:
            given.add(name)
            yield name, gradient
        _note("gradients", ctx.model, before, wrote)
        for name in gradients.keys() - given:
            now = params[name].grad
            if now is None or not torch.equal(now, gradients[name]):
                wrote.append(f"gradients wrote to the gradient of {name} itself")
                return

    return and_look


def _copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _note(hook: str, model: nn.Module, before: Mapping[str, Tensor], wrote: list[str]) -> None:
    """Note the first weight that is not as it was; one that is new is the hook's to add."""
    now = dict(model.named_parameters())
    for name, old in before.items():
        if name in now and not torch.equal(now[name].detach(), old):
            wrote.append(f"{hook} wrote to the weight {name} itself")
            return
