"""What is looked at before an adapter that Perdure did not train joins a pool.

`fit` reads the head of its file and needs no weight of the base; `size` looks at what it adds to
the base's weights. Both return findings, each with its figure: some refuse the adapter, the others
only name what the user may not have meant.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from perdure.errors import ModelError, PerdureError, RecipeError
from perdure.models.adapter_lists import holder, matrices
from perdure.recipe.mistakes import near

if TYPE_CHECKING:
    from perdure.recipe.schema import ModelConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NEARLY = 1e-5
"""An adapter that changes no layer's weights by more than this share of their norm answers as its
base does: adapters that have learned something are at 1e-3 and above."""
_PREFIX = "base_model.model."
Layers = Mapping[str, tuple[int, int] | None]
"""Each module of a base: (out, in) of its matrix, or None where it has none of its own."""


@dataclass(frozen=True)
class Finding:
    """One thing about an adapter.

    Attributes:
        what: a sentence with its figure, and the adapter's name and folder in front.
        remedy: what to do.
        refused: the adapter cannot join; else it can, and this is only said.
    """

    adapter: str
    what: str
    remedy: str
    refused: bool

    def error(self) -> PerdureError:
        return ModelError(self.what, self.remedy)


def refuse(findings: Sequence[Finding]) -> None:
    """Raise for those findings that refuse an adapter.

    Raises:
        ModelError: there is one; RecipeError: there are several, all are listed.
    """
    errors = [one.error() for one in findings if one.refused]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise RecipeError(errors)


def layers_of(base: nn.Module) -> dict[str, tuple[int, int] | None]:
    """The modules of a base model, also of one without memory, and the shapes of their matrices."""
    from transformers.pytorch_utils import Conv1D

    found: dict[str, tuple[int, int] | None] = {}
    for name, module in base.named_modules():
        weight = getattr(module, "weight", None)
        found[name] = None
        if isinstance(weight, Tensor) and weight.dim() == 2:
            first, second = weight.shape
            turned = isinstance(module, Conv1D | nn.Embedding)  # they hold (in, out)
            found[name] = (second, first) if turned else (first, second)
    return found


def layers_of_base(base: ModelConfig) -> dict[str, tuple[int, int] | None]:
    """As `layers_of`, from the configuration of a base; no weight is read.

    Raises:
        ModelError: see `perdure.models.locate`.
    """
    from perdure.models.configuration import read_config
    from perdure.models.inspect import build_empty

    return layers_of(build_empty(base, read_config(base)))


def fit(
    name: str, folder: Path, layers: Layers, base: str = "", rank: int | None = None
) -> list[Finding]:
    """What is wrong, or worth saying, of a `peft` folder that is to stand on a base.

    Args:
        layers: of the base, see `layers_of`.
        base: what the base is called here; "": not compared.
        rank: of the pool's other adapters; None: there are none.
    """
    where = f"adapter {name}: {folder}"
    config, shapes, wrong = _read(name, folder, where)
    if wrong is not None:
        return [wrong]

    def refused(what: str, remedy: str) -> Finding:
        return Finding(name, f"{where}: {what}", remedy, True)

    kind = str(config.get("peft_type"))
    if kind != "LORA":
        return [refused(f"is of the type {kind}", "a pool takes LoRA adapters")]
    found = []
    if (bias := config.get("bias", "none")) != "none":
        what = f"changes biases of the base (bias: {bias}), which all adapters of a pool share"
        found.append(refused(what, 'train it with bias: "none"'))
    strange = list(dict.fromkeys(layer for layer, _ in _tensors(shapes) if layer not in layers))
    if strange:
        known = [layer for layer, shape in layers.items() if shape is not None]
        found.append(
            refused(
                f"{len(strange)} of its modules are not in the base, such as {strange[0]}",
                near(strange[0], known) or "is it the base model that it was trained on?",
            )
        )
    misfits = list(_misfits(shapes, layers))
    if misfits:
        layer, has, wants = misfits[0]
        found.append(
            refused(
                f"{len(misfits)} of its matrices do not fit the base: at {layer} it is made for "
                f"a layer of {has}, and the base's is {wants}",
                "is it the base model that it was trained on?",
            )
        )
    noted = _noted(folder, config)
    if base and noted and not _same(base, noted):
        what = f"says that it was trained on {noted}, and stands on {base} here"
        remedy = "its shapes fit" if not found else "load the pool with that base"
        found.append(Finding(name, f"{where}: {what}", remedy, False))
    if whole := config.get("modules_to_save"):
        named = ", ".join([whole] if isinstance(whole, str) else map(str, whole))
        held = sum(math.prod(shapes[key]) for _, key in _tensors(shapes) if ".lora_" not in key)
        what = (
            f"holds whole modules beside LoRA matrices (modules_to_save: {named}), {held:,} numbers"
        )
        remedy = "it joins, and no batch mixes adapters then; LoRA on these layers mixes"
        found.append(Finding(name, f"{where}: {what}", remedy, False))
    own = config.get("r")
    if rank is not None and own != rank:
        what = f"is of rank {own}, and the pool's first adapter of {rank}"
        found.append(Finding(name, f"{where}: {what}", "both work side by side", False))
    return found


def rank_of(folder: Path) -> int | None:
    """The rank that an adapter's configuration says; None where it cannot be read."""
    config, _, wrong = _read("", folder, str(folder))
    own = config.get("r") if wrong is None else None
    return own if isinstance(own, int) else None


def delta_norm(first: Tensor, second: Tensor, scale: float) -> float:
    """The Frobenius norm of scale * B A, without making that product.

    Args: first: A, (rank, in); second: B, (out, rank).

    ||B A||^2 = trace(B'B AA'), two matrices of (rank, rank), in fp64.
    """
    a, b = first.detach().double(), second.detach().double()
    square = ((b.T @ b) * (a @ a.T)).sum().item()  # both are symmetric
    # A sum of rounded terms may end just below zero.
    return abs(scale) * math.sqrt(max(square, 0.0)) if math.isfinite(square) else math.nan


def size(model: Any, adapter: str) -> list[Finding]:
    """Whether a loaded adapter adds anything to its base's weights; empty if it does."""
    host, shares = holder(model), {}
    for layer, (first, second) in matrices(model, adapter).items():
        module = host.get_submodule(layer)
        weight = module.get_base_layer().weight.detach()
        norm = torch.linalg.vector_norm(weight, dtype=torch.float64).item()
        added = delta_norm(first, second, float(module.scaling[adapter]))
        shares[layer.removeprefix(_PREFIX)] = added / (norm or 1.0)
    return size_findings(adapter, shares)


def size_findings(adapter: str, shares: Mapping[str, float]) -> list[Finding]:
    """What the sizes of an adapter's changes say.

    Args: shares: for each layer the norm of what is added as a share of its weights' norm.
    """
    if not shares:
        return []  # it holds embeddings or whole modules alone
    broken = [layer for layer, share in shares.items() if not math.isfinite(share)]
    if broken:
        what = f"has values that are not finite at {len(broken)} layers, such as {broken[0]}"
        return [Finding(adapter, f"adapter {adapter}: {what}", "train it again", True)]
    most = max(shares, key=shares.__getitem__)
    if shares[most] == 0:
        what = (
            f"adds nothing: B A is zero at all of its {len(shares)} layers, so that it answers "
            "as the base model"
        )
        remedy = "was it trained? ask for the base by its name: base"
        return [Finding(adapter, f"adapter {adapter}: {what}", remedy, True)]
    if shares[most] < NEARLY:
        what = (
            f"adds nearly nothing: at most {shares[most]:.1e} of a layer's weights by norm, "
            f"at {most}, below {NEARLY:.0e}"
        )
        remedy = "was it trained long enough? it will answer much as the base does"
        return [Finding(adapter, f"adapter {adapter}: {what}", remedy, False)]
    return []


def _read(
    name: str, folder: Path, where: str
) -> tuple[dict[str, Any], dict[str, tuple[int, ...]], Finding | None]:
    """Configuration and shapes of a `peft` folder; or why it is none."""
    from safetensors import SafetensorError, safe_open

    def wrong(what: str, remedy: str) -> tuple[dict[str, Any], dict[str, Any], Finding]:
        return {}, {}, Finding(name, f"{where}: {what}", remedy, True)

    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            remedy = "give a folder that peft's save_pretrained wrote, with safetensors"
            return wrong(f"has no {file}", remedy)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        return wrong(f"{CONFIG} is not valid JSON: {error}", "restore it from a copy")
    if not isinstance(config, dict):
        return wrong(f"{CONFIG} is no configuration of an adapter", "restore it from a copy")
    try:
        with safe_open(folder / WEIGHTS, framework="np") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        return wrong(f"{WEIGHTS} is damaged: {error}", "restore it from a copy")
    if not shapes:
        return wrong(f"{WEIGHTS} is empty", "restore it from a copy")
    return config, shapes, None


def _tensors(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, str]]:
    """Of each tensor the base's module that it belongs to, and its key."""
    for key in shapes:
        short = key.removeprefix(_PREFIX)
        layer, lora, _ = short.partition(".lora_")
        # What is saved whole has the base's own name, in older files with a mark in it.
        layer = layer if lora else short.rpartition(".")[0].removesuffix(".modules_to_save")
        yield layer.replace(".base_layer", ""), key


def _misfits(
    shapes: Mapping[str, tuple[int, ...]], layers: Layers
) -> Iterator[tuple[str, str, str]]:
    """Each layer whose matrices are of another shape than the base's: its name, and both."""
    made: dict[str, tuple[int, int]] = {}
    for layer, key in _tensors(shapes):
        other = key.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")
        if other != key and other in shapes and len(shapes[key]) == len(shapes[other]) == 2:
            made[layer] = (shapes[other][0], shapes[key][1])
        elif ".lora_" not in key and len(shapes[key]) == 2 and (wants := layers.get(layer)):
            rows, columns = shapes[key]
            # Of what is saved whole the file does not say which of both is which.
            made[layer] = wants if {rows, columns} == set(wants) else (rows, columns)
    for layer, has in made.items():
        wants = layers.get(layer)
        if wants is not None and has != wants:
            yield layer, f"{has[0]} x {has[1]}", f"{wants[0]} x {wants[1]}"


def _noted(folder: Path, config: Mapping[str, Any]) -> str:
    """What an adapter's own files call its base."""
    from perdure.models.adapters import saved_base

    known = saved_base(folder)
    return known.path if known is not None else str(config.get("base_model_name_or_path") or "")


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    first, second = Path(one).expanduser(), Path(other).expanduser()
    return first.exists() and second.exists() and first.resolve() == second.resolve()
