"""A method under test: made of its options, and what it needs to learn with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.testing.tiny import FIRST

if TYPE_CHECKING:
    from perdure.protocol.method import Method


def make(kind: type[Method], options: Mapping[str, Any]) -> Method:
    """A method of this class with these options, validated."""
    from perdure.methods.registry import load_config

    return kind(load_config(kind, options))


def chooses_rows(kind: type[Method]) -> bool:
    """Whether a method chooses the rows that are trained on, which takes Perdure's own learner."""
    from perdure.protocol.method import Method as Base

    return kind.train_data is not Base.train_data


def own_learner(kind: type[Method]) -> bool:
    """Whether a method takes Perdure's own learner whatever its options: it chooses rows, adds
    adapters or routes."""
    from perdure.protocol.method import Method as Base

    return chooses_rows(kind) or kind.adapters or kind.router is not Base.router


def needs_runs(kind: type[Method], folder: Path) -> bool:
    """Whether `perdure.attach` would refuse a method: see `own_learner`; or it trains in phases."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from perdure.engine.session import TaskSession
    from perdure.models.chat import Encoder
    from perdure.protocol.method import Method as Base

    if own_learner(kind) or kind.phases is Base.phases:
        return own_learner(kind)
    method = make(kind, kind.example_options)
    encoder = Encoder(AutoTokenizer.from_pretrained(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    session = TaskSession(model, encoder, FIRST, methods=[method], cache=folder / "cache")
    phases = method.phases(session.context)
    return len(phases) != 1 or phases[0].epochs is not None or phases[0].start != "current"
