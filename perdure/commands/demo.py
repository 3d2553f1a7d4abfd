"""`perdure demo`: forgetting, and what methods save, on a small model in minutes."""

from __future__ import annotations

from typing import Any


def demo(methods: str, as_json: bool, **options: Any) -> int:
    """Play the demo with methods named "a,b,..."; returns the exit code."""
    from perdure.demo import demo as play
    from perdure.loop import learn

    names = [name.strip() for name in methods.split(",") if name.strip()]
    return play(names, json=as_json, learn=learn, **options)
