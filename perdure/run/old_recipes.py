"""Recipes that older run directories hold, read as they would be written today, values and all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perdure.recipe.former import of_today


def renew(data: dict[str, Any]) -> None:
    """Rewrite a recorded recipe's data in place."""
    model = data.get("model")
    if isinstance(model, dict) and "trust_remote_code" in model:
        data["trust_remote_code"] = model.pop("trust_remote_code")
    methods = data.get("method")
    if isinstance(methods, list):
        data["method"] = [renewed(m) if isinstance(m, Mapping) else m for m in methods]
    elif isinstance(methods, Mapping):
        data["method"] = renewed(methods)


def renewed(method: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of `method` as it is written today; one that is of today comes back as it is."""
    options = {key: value for key, value in method.items() if key != "name"}
    name, options = of_today(str(method.get("name", "")), options)
    return {"name": name, **options} if "name" in method else dict(method)
