"""Two small tasks and general texts for tests of methods."""

from __future__ import annotations

from typing import Any

from perdure.testing import FIRST, GENERAL, SECOND, task_of

__all__ = ["FIRST", "GENERAL", "SECOND", "general_method", "task_of"]


def general_method(kind: str = "gere", **options: Any) -> Any:
    """A method that replays general texts, by its name, with few texts of few tokens."""
    from perdure.methods import registry

    given = {"max_tokens": 12, "samples": len(GENERAL), **options}
    return registry.load(kind)(registry.load_config(kind, given))
