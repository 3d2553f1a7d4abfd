"""What options of a method that have moved to another method are called now.

`gere` once had 22 options, which now belong to five methods. A run that was recorded with them is
read as one of the new methods, with its old values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Options = dict[str, Any]

_TEXTS: Options = {
    "label_weight": 1.0, "insert": 4, "samples": 1000, "own_share": 0.06, "max_tokens": 563,
}  # fmt: skip
_MARGIN: Options = {
    "weight": 100.0, "weight_max": None, "k": 1.0, "layers": (-1,), "teacher": "base",
}  # fmt: skip
_RARE: Options = {
    "reduction": "violating", "noise_floor": 0.0, "scope": "row", "stats": "two_pass",
    "mix": "insert", "add_special_tokens": False,
}  # fmt: skip
_KL: Options = {"kl_temperature": 2.0, "kl_mask": True, "kl_t2": False, "kl_top": 64}
_OF_CODE: Options = {
    "mix": "concat", "scope": "micro", "stats": "one_pass_fp32", "kl_mask": False,
}  # fmt: skip
"""What `official: true` set where the recipe did not say otherwise."""
_MOVED = {"loss", "official", *_RARE, *_KL}
"""Options that `gere` has no more."""


def moved_options(name: str, options: Mapping[str, Any]) -> list[str]:
    """Options of an entry of `method` that its method has no more, in the order given."""
    return [key for key in options if key in _MOVED] if name == "gere" else []


def of_today(name: str, options: Mapping[str, Any]) -> tuple[str, Options]:
    """The method and options of today that do what a method with its options of then did.

    Options without effect are left out; all others are spelled out.
    """
    if not moved_options(name, options):
        return name, dict(options)
    given = {**_OF_CODE, **options} if options.get("official") else dict(options)
    given.pop("official", None)
    loss = given.pop("loss", "margin")
    every = {**_TEXTS, **_MARGIN, **_RARE, **_KL, **given}
    texts = {key: every[key] for key in _TEXTS}
    unusual = {key for key, usual in _RARE.items() if every[key] != usual}
    drawn = unusual & {"scope", "mix", "add_special_tokens"}
    plain = every["weight"] != "dynamic" and every["teacher"] == "base"
    if loss == "label" and not drawn:
        return "general_replay", texts
    if loss == "margin" and not unusual:
        return "gere", texts | {key: every[key] for key in _MARGIN}
    if loss == "kl" and not drawn and plain and every["kl_mask"]:
        kl = {key.removeprefix("kl_"): every[key] for key in _KL if key != "kl_mask"}
        return "gere_kl", texts | {"weight": every["weight"], **kl}
    if loss in ("l1", "l2") and not drawn and plain:
        held = {key: every[key] for key in ("weight", "layers")}
        return "gere_distance", texts | {"norm": loss, **held, "noise_floor": 0.0}
    return "gere_official", {"loss": loss, **every}


def what_to_write(name: str, options: Mapping[str, Any]) -> str:
    """The entry of `method` to write today in place of one with options that moved.

    Of a distance the weight and floor of today's defaults are left to it unless given: then's were
    made for the margin.
    """
    new, every = of_today(name, options)
    given = {key.removeprefix("kl_") if new == "gere_kl" else key for key in options}
    if new == "gere_official":
        given |= {key for key, value in _OF_CODE.items() if every[key] != value}
    if new == "gere_distance":
        given = given - {"noise_floor"} | {"norm"}
    kept = [f"{key}: {json.dumps(value)}" for key, value in every.items() if key in given]
    words = ", ".join([f"name: {new}", *kept]).replace('"', "")
    return f"method: {{{words}}}"
