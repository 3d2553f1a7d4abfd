"""`perdure methods`, `streams` and `recipes`: what there is, one line each. No torch here."""

from __future__ import annotations

from pathlib import Path

from perdure.reports.output import emit, lines


def methods(name: str | None, as_json: bool) -> None:
    from perdure.methods import registry

    if name is not None:
        _options(name, as_json)
        return
    found = [(each, registry.describe(each)) for each in registry.names()]
    _show(found, as_json)


def _options(name: str, as_json: bool) -> None:
    """One method in full; loads it, and so torch."""
    import inspect

    from perdure.methods import registry

    kind = registry.load(name)
    text = inspect.getdoc(inspect.getmodule(kind)) or ""
    options = {
        key: {
            "default": None
            if field.is_required()
            else field.get_default(call_default_factory=True),
            "description": field.description or "",
        }
        for key, field in kind.Config.model_fields.items()
    }
    if as_json:
        emit({"name": name, "about": text, "options": options})
        return
    print(f"{name}: {text}\n\nOptions:" if options else f"{name}: {text}\n\nNo options.")
    lines(
        [
            (f"  {key}: {'required' if field.is_required() else options[key]['default']}",
             field.description or "")
            for key, field in kind.Config.model_fields.items()
        ]
    )  # fmt: skip


def streams(as_json: bool) -> None:
    from perdure.streams import STREAMS

    _show([(name, about) for name, (about, _) in STREAMS.items()], as_json)


def recipes(as_json: bool) -> None:
    from perdure import recipes

    _show([(name, recipes.describe(name)) for name in recipes.names()], as_json)


def copy_recipe(name: str, destination: Path) -> None:
    from perdure import recipes

    for path in recipes.copy(name, destination):
        print(path)


def _show(found: list[tuple[str, str]], as_json: bool) -> None:
    if as_json:
        emit([{"name": name, "about": about} for name, about in found])
    else:
        lines(found)
