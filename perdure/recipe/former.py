"""What options of a method that have moved to another method are called now.

`gere` once had 22 options, which now belong to five methods. A run that was recorded with them is
read as one of the new methods, with its old values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
FORMER = ("loss", *_TEXTS, *_MARGIN, *_RARE, *_KL, "official")
"""All options that it had."""
_OFFICIAL: Options = {
    "loss": "margin", **_TEXTS, **_MARGIN, **_RARE, **_KL, **_OF_CODE, "noise_floor": None,
}  # fmt: skip
"""Defaults of `gere_official`."""


def moved_options(name: str, options: Mapping[str, Any]) -> list[str]:
    """Options of an entry of `method` that its method has no more, in the order given."""
    return [key for key in options if key in _MOVED] if name == "gere" else []


def unread(options: Mapping[str, Any]) -> dict[str, str]:
    """Options of `gere_official` that are not the default and that nothing reads, and why."""
    every = {**_OFFICIAL, **options}
    found: dict[str, str] = {}
    for names, read, why in _readers(every):
        if not read:
            found |= {n: why for n in names if n not in found and not _same(every[n], _OFFICIAL[n])}
    return found


def _readers(o: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], bool, str]]:
    """Options, whether they are read beside all others, and the reason where they are not."""
    loss, states = o["loss"], o["loss"] in ("margin", "l1", "l2")
    yield ("label_weight",), o["scope"] == "row", "with scope: micro, where it is 1"
    yield ("insert",), o["mix"] == "insert", "with mix: concat, which draws each text once an epoch"
    yield ("weight", "weight_max", "teacher"), loss != "label", f"with loss: {loss}"
    yield ("weight_max",), o["weight"] == "dynamic", "without weight: dynamic"
    yield ("k", "reduction", "stats"), loss == "margin", f"with loss: {loss}"
    yield ("layers",), states, f"with loss: {loss}"
    # 0 is what it was before the distances had a floor, and is written in older records.
    yield ("noise_floor",), states or o["noise_floor"] == 0, f"with loss: {loss}"
    yield tuple(_KL), loss == "kl", f"with loss: {loss}"
    yield ("kl_t2",), o["kl_temperature"] != 1, "with kl_temperature: 1"


def of_today(name: str, options: Mapping[str, Any]) -> tuple[str, Options]:
    """The method and options of today that do what a method with its options of then did.

    Options without effect are left at their defaults; of another method all are spelled out.
    """
    if not moved_options(name, options):
        return name, _without_idle(name, options)
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
        return "gere", _without_idle("gere", texts | {key: every[key] for key in _MARGIN})
    if loss == "kl" and not drawn and plain and every["kl_mask"]:
        kl = {key.removeprefix("kl_"): every[key] for key in _KL if key != "kl_mask"}
        return "gere_kl", _without_idle("gere_kl", texts | {"weight": every["weight"], **kl})
    if loss in ("l1", "l2") and not drawn and plain:
        held = {key: every[key] for key in ("weight", "layers")}
        return "gere_distance", texts | {"norm": loss, **held, "noise_floor": 0.0}
    if loss in ("l1", "l2"):
        every["noise_floor"] = 0.0  # they had none
    return "gere_official", _without_idle("gere_official", {"loss": loss, **every})


def _without_idle(name: str, options: Mapping[str, Any]) -> Options:
    """The options, with the default in place of what nothing reads and is refused today."""
    idle: Options = {}
    if name == "gere_official":
        idle = {key: _OFFICIAL[key] for key in unread(options)}
    elif name == "gere" and options.get("weight", 100.0) != "dynamic":
        idle = {"weight_max": None}
    elif name == "gere_kl" and options.get("temperature") == 1:
        idle = {"t2": False}
    elif name == "ewc" and options.get("tasks", "sum") == "sum":
        idle = {"decay": 1.0}
    return {key: idle.get(key, value) for key, value in options.items()}


def entry_of_today(options: Mapping[str, Any]) -> Options:
    """The entry of `method` to write today in place of `gere` with options that moved.

    Of a distance the weight and floor of today's defaults are left to it unless given: then's were
    made for the margin.

    Args: options: right ones of then.
    """
    new, every = of_today("gere", options)
    renamed = {
        key.removeprefix("kl_") if new == "gere_kl" else key: value
        for key, value in options.items()
    }
    # What had no effect then is at its default now, and left out.
    given = {key for key, value in renamed.items() if key in every and _same(every[key], value)}
    if new == "gere_official":
        given |= {k for k in every if k != "noise_floor" and not _same(every[k], _OFFICIAL[k])}
    if new == "gere_distance" or every.get("loss") in ("l1", "l2"):
        given -= {"noise_floor"}
    if new == "gere_distance":
        given |= {"norm"}
    return {"name": new, **{key: value for key, value in every.items() if key in given}}


def _same(one: Any, other: Any) -> bool:
    return bool(_tuple(one) == _tuple(other))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
