"""Several adapters on one base: which there are, which are active, and which are trained.

`peft` keeps an active list in each layer, switches what is trained whenever it is told which
adapters are active, and saves neither. Here both lists are set apart from each other, and written
beside the adapters: `default` lies in the checkpoint's folder itself, as `peft` puts it, each other
adapter in a folder of its name below, which is a plain `peft` folder too.

    model/adapter_config.json, adapter_model.safetensors     the adapter `default`
    model/NAME/adapter_config.json, adapter_model...         each other one
    model/perdure_adapters.json                              {"active": [...], "trained": [...]},
                                                             and experts: {NAME: number}

Active adapters add up, in the order of their list.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from perdure.errors import ModelError, UsageError
from perdure.models.experts import numbers, split
from perdure.models.weights import adapter_off, is_sharded
from perdure.recipe.mistakes import near

if TYPE_CHECKING:
    from torch.nn import Parameter

ADAPTERS_FILE = "perdure_adapters.json"
DEFAULT = "default"
"""The adapter that a recipe's `tuning: lora` makes."""
BASE = "__base__"
"""In the place of an adapter's name, as `peft` has it: the base model alone."""
_NAME = re.compile(r"\w[\w @+-]*")
_PREFIX = "lora_"


def holder(model: Any) -> Any:
    """The `PeftModel` in a model: itself, or a classifier's body; None where there is none."""
    for one in (model, getattr(model, "body", None)):
        if hasattr(one, "peft_config") and hasattr(one, "disable_adapter"):
            return one
    return None


def names(model: Any) -> tuple[str, ...]:
    """All adapters, in the order in which they were added."""
    found = holder(model)
    return () if found is None else tuple(found.peft_config)


def active(model: Any) -> tuple[str, ...]:
    """The adapters that take part in a pass, in the order in which they add up."""
    found = holder(model)
    return () if found is None else tuple(found.active_adapters)


def trained(model: nn.Module) -> tuple[str, ...]:
    """The adapters of which some parameter gets updates."""
    some = {adapter_of(model, n) for n, p in model.named_parameters() if p.requires_grad}
    return tuple(name for name in names(model) if name in some)


def adapter_of(model: Any, parameter: str) -> str | None:
    """The adapter that a parameter belongs to, by its name; None: it is the base's."""
    parts = parameter.split(".")
    known = names(model)
    for before, part in pairwise(parts):
        if part in known and before.startswith((_PREFIX, "modules_to_save")):
            return part
    return None


def parameters_of(model: nn.Module, adapter: str) -> dict[str, Parameter]:
    """An adapter's parameters by their names in the model."""
    return {n: p for n, p in model.named_parameters() if adapter_of(model, n) == adapter}


def matrices(model: nn.Module, adapter: str) -> dict[str, tuple[Parameter, Parameter]]:
    """An adapter's two matrices by the name of the layer that they are on.

    Returns: A (rank, in) and B (out, rank); what is added to the layer's weight is B A, times the
        adapter's scale.
    """
    found = {}
    params = parameters_of(model, adapter)
    for name, first in params.items():
        other = name.replace(".lora_A.", ".lora_B.")
        if other != name:
            found[name.partition(".lora_A.")[0]] = (first, params[other])
    return found


def check_known(model: Any, wanted: Sequence[str]) -> None:
    """Raise for an adapter that is not there.

    Raises:
        UsageError: names it, and the nearest name that there is.
    """
    known = names(model)
    for name in wanted:
        if name not in known:
            raise UsageError(
                f"adapter {name}: there is none of this name",
                near(name, known) or f"there are: {', '.join(known) or 'none'}",
            )


def check_new(model: nn.Module, name: str) -> None:
    """Raise where an adapter cannot be added under this name.

    Raises:
        UsageError: the name is taken, is no name of a folder, or is a part of the model's own
            names, so that parameters could not be told apart; or weights are sharded.
    """
    inside = {part for module, _ in model.named_modules() for part in module.split(".")}
    if name in names(model):
        raise UsageError(f"adapter {name}: there is one of this name already", "take another name")
    if not _NAME.fullmatch(name) or name in inside or name in _PREFIX or name == "base":
        raise UsageError(
            f"adapter {name!r}: is not a name that an adapter can have",
            "take letters, digits, _, - and @, and no name of the model's own modules",
        )
    if is_sharded(model):
        raise UsageError(
            f"adapter {name}: adapters cannot be added to weights that are sharded",
            "leave out model.fsdp_size",
        )


@torch.no_grad()
def add(model: nn.Module, name: str, like: str | None = None) -> None:
    """Add an adapter, neither active nor trained yet: a fresh one, or a copy of `like`.

    A fresh one is made as `default` was (rank, scale, layers), so that it adds nothing at first.
    Its A comes from torch's global generator on the CPU: seed it first.

    Raises:
        UsageError: see `check_new`; or there is no adapter `like`.
    """
    host: Any = holder(model)
    check_new(model, name)
    check_known(model, [] if like is None else [like])
    flags = _flags(model)
    host.add_adapter(name, copy.deepcopy(host.peft_config[like or names(model)[0]]))
    if like is not None:
        old, new = parameters_of(model, like), parameters_of(model, name)
        for (_, source), (_, target) in zip(old.items(), new.items(), strict=True):
            target.copy_(source)
    for parameter in parameters_of(model, name).values():
        parameter.requires_grad_(False)
    _set_flags(model, flags)


def remove(model: nn.Module, name: str) -> None:
    """Take an adapter out of the model.

    Raises:
        UsageError: there is none of this name; it is active; or it is `default`, without which a
            folder of adapters cannot be loaded.
    """
    check_known(model, [name])
    if name == DEFAULT or name in active(model):
        why = "it is active", "have others active first"
        if name == DEFAULT:
            why = "it is the one that lies in the folder itself", "leave it there, inactive"
        raise UsageError(f"adapter {name}: cannot be removed: {why[0]}", why[1])
    flags = _flags(model)
    holder(model).delete_adapter(name)
    _set_flags(model, flags)


def use(model: nn.Module, active: Sequence[str], trained: Sequence[str]) -> None:
    """Have `active` take part in passes, and of all adapters train `trained` alone.

    Raises:
        UsageError: there is no such adapter, none is active, or one is trained without being
            active, so that it would get no gradient.
    """
    check_known(model, [*active, *trained])
    if not active or len(set(active)) < len(active):
        raise UsageError("adapters: name those to be active, each once", "use(active=[NAME], ...)")
    if idle := [name for name in trained if name not in active]:
        raise UsageError(
            f"adapter {idle[0]}: cannot be trained without being active",
            f"use(active=[..., {idle[0]!r}], ...)",
        )
    _activate(model, active)
    for name, parameter in model.named_parameters():
        if (owner := adapter_of(model, name)) is not None:
            parameter.requires_grad_(owner in trained)


def _activate(model: Any, active: Sequence[str]) -> None:
    host = holder(model)
    host.active_adapter = active[0]  # peft looks up one configuration by it
    host.base_model.set_adapter(list(active))


@contextmanager
def showing(model: Any, adapters: Sequence[str]) -> Iterator[None]:
    """Have `adapters` active inside the block (none, or `BASE`: the base model alone); afterwards
    both lists, and what a phase has frozen, are as they were."""
    if holder(model) is None or tuple(adapters) == active(model):
        yield
        return
    if not adapters or tuple(adapters) == (BASE,):
        with adapter_off(holder(model)):
            yield
        return
    check_known(model, adapters)
    before, flags = active(model), _flags(model)
    try:
        _activate(model, adapters)
        yield
    finally:
        _activate(model, before)
        _set_flags(model, flags)


def _flags(model: nn.Module) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in model.named_parameters()}


def _set_flags(model: nn.Module, flags: Mapping[str, bool]) -> None:
    for name, parameter in model.named_parameters():
        if name in flags:
            parameter.requires_grad_(flags[name])


# --- on disk


def folders(folder: Path) -> dict[str, Path]:
    """The adapters that lie in a folder, by name, each in a plain `peft` folder.

    Where no list lies beside them, those that `peft` puts there: a trainer's checkpoints below the
    adapter that it ended with are none of them.

    Raises:
        ModelError: a list names an adapter that does not lie there.
    """
    file = "adapter_config.json"
    if known := _read(folder).get("names"):
        found = {name: folder if name == DEFAULT else folder / name for name in known}
        if lost := [name for name, home in found.items() if not (home / file).is_file()]:
            raise ModelError(
                f"{folder / ADAPTERS_FILE}: names the adapter {lost[0]}, which does not lie in "
                f"{folder}",
                "put its folder back from a copy",
            )
        return found
    below = [p for p in sorted(folder.iterdir()) if p.is_dir() and (p / file).is_file()]
    others = {p.name: p for p in below if not re.fullmatch(r"checkpoint-\d+", p.name)}
    return {DEFAULT: folder, **others} if (folder / file).is_file() else {}


def write_lists(model: nn.Module, folder: Path) -> None:
    """Write the lists beside the adapters; a single adapter, which is active, needs none."""
    experts = numbers(model) if holder(model) is model else {}
    if holder(model) is not model or (len(names(model)) < 2 and not experts):
        return
    lists: dict[str, Any] = {
        "names": names(model), "active": active(model), "trained": trained(model)
    }  # fmt: skip
    if experts:
        lists["experts"] = dict(experts)
    (folder / ADAPTERS_FILE).write_text(json.dumps(lists, indent=1) + "\n", encoding="utf-8")


def read_lists(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The active and the trained adapters of a folder, in their order.

    Raises:
        ModelError: the file is damaged, or names an adapter that is not there.
    """
    lists, there = _read(folder), folders(folder)
    found = []
    for key in ("active", "trained"):
        one = lists.get(key, [DEFAULT])
        strange = [name for name in one if name not in there]
        if strange:
            raise ModelError(
                f"{folder / ADAPTERS_FILE}: {key}: names the adapter {strange[0]}, which does not "
                f"lie in {folder}",
                f"put it back from a copy; there are: {', '.join(there)}",
            )
        found.append(tuple(one))
    return found[0], found[1]


def _read(folder: Path) -> dict[str, Any]:
    file = folder / ADAPTERS_FILE
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file}: is not valid JSON: {error}", "restore it from a copy") from error
    keys = ("names", "active", "trained")
    if (
        not isinstance(found, dict)
        or not all(
            isinstance(found.get(key), list)
            and all(isinstance(n, str) and _NAME.fullmatch(n) for n in found[key])
            for key in keys
        )
        or not isinstance(found.get("experts", {}), dict)
    ):
        raise ModelError(
            f"{file}: does not hold the lists {', '.join(keys)} of adapters' names",
            "restore it from a copy",
        )
    return found


def add_saved(model: nn.Module, folder: Path) -> None:
    """Add the adapters of a folder that the model lacks, as they were configured; their weights
    are put in afterwards (`perdure.models.restore.load_weights`)."""
    from peft import PeftConfig

    host: Any = holder(model)
    if host is None:
        return
    for name, home in folders(folder).items():
        if name in names(model):
            continue
        check_new(model, name)
        flags, config = _flags(model), PeftConfig.from_pretrained(str(home))
        config.inference_mode = False
        # What is drawn is written over.
        with torch.random.fork_rng(devices=[]):
            host.add_adapter(name, config)
        for parameter in parameters_of(model, name).values():
            parameter.requires_grad_(False)
        _set_flags(model, flags)
    split_saved(model, folder)


def split_saved(model: nn.Module, folder: Path) -> bool:
    """Split adapters among experts as those of a folder are; says whether any is."""
    experts: Mapping[str, int] = _read(folder).get("experts", {})
    with torch.random.fork_rng(devices=[]):  # what is drawn is written over
        for name, number in experts.items():
            split(holder(model), name, number)
    return bool(experts)


def use_saved(model: nn.Module, folder: Path, *, frozen: bool = False, kept: bool = False) -> None:
    """Have the adapters active and trained that a folder says.

    Args:
        frozen: none is trained.
        kept: what a phase has frozen stays so: no parameter becomes one that is trained.
    """
    if holder(model) is None or len(names(model)) < 2 or not folders(folder):
        return  # a classifier keeps its adapters in files of its own
    lists, flags = read_lists(folder), _flags(model)
    use(model, lists[0], () if frozen else lists[1])
    if kept:
        now = _flags(model)
        _set_flags(model, {name: flag and now[name] for name, flag in flags.items()})


FIRST = "first"
"""Folder in a checkpoint with the first values of adapters that were added, one file each."""


def write_first(model: nn.Module, first: Mapping[str, Tensor], folder: Path) -> None:
    """Write the first values of added adapters, by parameter name in `first`."""
    from safetensors.torch import save_file

    if holder(model) is not model:  # a classifier draws its adapters' first values again
        return
    for adapter in names(model):
        if own := {n: first[n].contiguous() for n in parameters_of(model, adapter) if n in first}:
            (folder / FIRST).mkdir(parents=True, exist_ok=True)
            save_file(own, folder / FIRST / f"{adapter}.safetensors")


def read_first(folder: Path) -> dict[str, Tensor]:
    """What `write_first` wrote."""
    from safetensors.torch import load_file

    files = sorted((folder / FIRST).glob("*.safetensors")) if (folder / FIRST).is_dir() else []
    return {name: value for file in files for name, value in load_file(file).items()}
