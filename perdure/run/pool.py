"""What lies in a checkpoint whose requests are routed: its adapters, their size, and their groups.

It is the fact `pool` of a task's end (facts.jsonl), so that a report says how a pool grew, also of
a run whose checkpoints are gone. Its value is

    {"adapters": [{"name": "colour@1", "parameters": 4096, "bytes": 17000}, ...],
     "groups": [{"name": "colour", "adapter": "colour@1", "tasks": ["colour"], "instructions": 1}],
     "router": {"similarity": "tfidf", "threshold": 0.9, "accept": 0.9, "fallback": "base"}}

`groups` and `router` are there where a codebook routes. The recipe's own adapter, `default`, which
no request may ever get, is in the list as well.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

POOL = "pool"


def pool_in(checkpoint: Path) -> dict[str, Any] | None:
    """What lies in a checkpoint's folder; None where nothing routes in it.

    Raises: as `perdure.models.served.load_router`.
    """
    from perdure.models.adapter_checks import CONFIG, WEIGHTS
    from perdure.models.adapter_lists import folders
    from perdure.models.codebook import FILE, Codebook
    from perdure.models.served import ROUTERS

    served = checkpoint / "serving"
    model = served if served.is_dir() else checkpoint / "model"
    if not any((model / name).is_file() for name in ROUTERS):
        return None
    found: dict[str, Any] = {}
    found["adapters"] = [
        {
            "name": name,
            "parameters": _parameters(home / WEIGHTS),
            "bytes": sum((home / file).stat().st_size for file in (CONFIG, WEIGHTS)),
        }
        for name, home in folders(model).items()
    ]
    if (model / FILE).is_file():
        book = Codebook.load(model)
        found["groups"] = [
            {
                "name": group.name,
                "adapter": group.adapter,
                "tasks": list(group.tasks),
                "instructions": len(group.instructions),
            }
            for group in book.groups
        ]
        found["router"] = {
            "similarity": book.similarity.name,
            "threshold": book.threshold,
            "accept": book.accept,
            "fallback": book.fallback,
        }
    return found


def _parameters(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(file, framework="np") as weights:
        names = weights.keys()
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
