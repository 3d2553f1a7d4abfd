"""`perdure demo`: forgetting, and what methods save, on a small model in minutes."""

from __future__ import annotations

from typing import Any

from perdure.errors import UsageError


def demo(what: str | None, methods: str | None, as_json: bool, **options: Any) -> int:
    """Play a demo with methods named "a,b,..."; returns the exit code."""
    if what is not None:
        return _intents(what, methods, as_json, **options)
    from perdure.demo import METHODS
    from perdure.demo import demo as play
    from perdure.loop import learn

    return play(_names(methods, METHODS), json=as_json, learn=learn, **options)


def _intents(
    what: str, methods: str | None, as_json: bool, minutes: float | None = None, **options: Any
) -> int:
    if what != "intents":
        raise UsageError(f'no demo is called "{what}"', "perdure demo, or perdure demo intents")
    if minutes is not None:
        raise UsageError(
            "--minutes has no effect with intents, which takes two",
            "leave it out; --quick takes less",
        )
    from perdure.demo_intents import METHODS, demo_intents
    from perdure.loop import learn

    return demo_intents(_names(methods, METHODS), json=as_json, learn=learn, **options)


def _names(methods: str | None, default: tuple[str, ...]) -> list[str]:
    if methods is None:
        return list(default)
    return [name.strip() for name in methods.split(",") if name.strip()]
