"""LoRA adapters by `peft`, and saving, so that what was saved finds its base again.

`peft` notes the base in adapter_config.json by hub id or folder only, and no chat template. So
`perdure_base.json` beside the weights keeps the recipe's whole `model` part; with it an adapter
on a GGUF file loads like any other.
"""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.consent import demand
from perdure.errors import ModelError
from perdure.models.adapter_lists import folders, holder, split_saved, use_saved, write_lists
from perdure.models.anatomy import unwrapped
from perdure.models.locate import holds_pickle, run_around
from perdure.models.restore import load_weights
from perdure.models.weights import put

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.recipe.schema import LoraConfig, ModelConfig

BASE_FILE = "perdure_base.json"


def attach_lora(model: Any, lora: LoraConfig, task_type: str = "CAUSAL_LM") -> Any:
    """Wrap `model` in a `PeftModel` whose only trainable parameters are new LoRA matrices.

    The initial matrices come from torch's global generator: seed it first.

    Raises:
        ModelError: a name in `target_modules` that no module has, each with near names.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    targets = lora.target_modules
    if targets != "all-linear":
        check_targets(model, [targets] if isinstance(targets, str) else targets)
    config = PeftLoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type=task_type,
    )
    try:
        with old_name_unsaid():
            return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(
            f"model.lora.target_modules: {str(error).splitlines()[0]}",
            'LoRA goes on linear layers; "all-linear" takes them all',
        ) from error


@contextmanager
def old_name_unsaid() -> Iterator[None]:
    """peft and TRL ask models for a property by its old name, of which transformers warns; nobody
    who reads that warning could do anything about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def check_targets(model: Any, targets: list[str]) -> None:
    """Refuse each name that matches no module; `peft` refuses only if none of them does."""
    names = [name for name, _ in model.named_modules() if name]
    last = sorted({name.rsplit(".", 1)[-1] for name in names} - {str(i) for i in range(1000)})
    wrong = []
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            close = difflib.get_close_matches(target, last, n=2, cutoff=0.5)
            wrong.append(repr(target) + (f" (did you mean {' or '.join(close)}?)" if close else ""))
    if wrong:
        import torch

        linear = sorted(
            {
                name.rsplit(".", 1)[-1]
                for name, module in model.named_modules()
                if isinstance(module, torch.nn.Linear)
            }
        )
        raise ModelError(
            f"model.lora.target_modules: no module of {type(model).__name__} is called "
            + ", ".join(wrong),
            f"its linear layers: {', '.join(linear)}",
        )


_SETTINGS = "perdure_generation_settings"


def keep_generation_settings(model: Any) -> None:
    """Note a base's own generation settings, so that `save_model` writes them as they were.

    On the model in memory they change: it is scored greedily, and a trainer adds token ids.
    """
    settings = getattr(model, "generation_config", None)
    if settings is not None and not getattr(settings, "_from_model_config", False):
        setattr(model, _SETTINGS, settings.to_json_string(use_diff=True))


def save_model(
    model: Any,
    tokenizer: Any,
    folder: Path,
    base: ModelConfig,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write weights (safetensors; of a `PeftModel` its adapters alone), tokenizer and base.

    Args:
        state: full weights by parameter name, where the model's own are sharded over processes.
    """
    save_plain(model, tokenizer, folder, state)
    text = json.dumps(base.model_dump(mode="json"), indent=1) + "\n"
    (folder / BASE_FILE).write_text(text, encoding="utf-8")
    write_lists(model, folder)


def save_plain(
    model: Any, tokenizer: Any, folder: Path, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write weights and tokenizer as transformers does, with the base's generation settings."""
    options: dict[str, Any] = {} if state is None else {"state_dict": dict(state)}
    with warnings.catch_warnings():
        # Of a GGUF file as base. What peft then assumes, an unchanged vocabulary, is so.
        warnings.filterwarnings("ignore", "Could not find a config file in")
        model.save_pretrained(folder, **options)
    settings, file = getattr(unwrapped(model), _SETTINGS, None), folder / "generation_config.json"
    if settings is not None and file.exists():
        file.write_text(settings, encoding="utf-8")
    tokenizer.save_pretrained(folder)


def saved_base(folder: Path) -> ModelConfig | None:
    """The `model` part of the recipe that `folder` was trained with, if Perdure saved it."""
    from perdure.recipe.schema import ModelConfig

    file = home_of(folder) / BASE_FILE
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        # What lies beside weights never says whose code may run; older files still try to.
        if isinstance(found, dict):
            found.pop("trust_remote_code", None)
        return _where_it_lies(ModelConfig.model_validate(found), file)
    except ValueError as error:
        raise ModelError(
            f"{file}: is damaged: {str(error).splitlines()[0]}", "restore it from a copy"
        ) from error


def _where_it_lies(base: ModelConfig, file: Path) -> ModelConfig:
    """The base, of a run's checkpoint at the place that the run's recipe names where it was moved:
    a checkpoint is sealed, and the recipe is what a user may change."""
    from perdure.recipe.yaml import read

    place = Path(base.path)
    if not place.is_absolute() or place.exists() or (run := run_around(file)) is None:
        return base
    model = read(run / "recipe.yaml").data.get("model")
    moved = model.get("path") if isinstance(model, dict) else None
    there = isinstance(moved, str) and Path(moved).is_absolute() and Path(moved).exists()
    return base.model_copy(update={"path": moved}) if there else base


def home_of(folder: Path) -> Path:
    """Where the base of an adapter is noted: one of several lies below the first one's folder."""
    below = folder.parent / "adapter_config.json"
    own = (folder / BASE_FILE).is_file() or not (folder / "adapter_config.json").is_file()
    return folder if own or not below.is_file() else folder.parent


def reading(config: ModelConfig) -> dict[str, Any]:
    """Options of `Encoder` that read rows as those were that a model of `config` was trained on.

    A template of its own lies beside a saved model's tokenizer: "auto" finds it.
    """
    return {
        "chat_template": "none" if config.chat_template == "none" else "auto",
        "max_prompt_length": config.max_prompt_length,
        "variables": config.chat_template_kwargs,
    }


def saved_template(folder: Path) -> str | None:
    """The chat template that was saved beside an adapter: the one that it was trained with."""
    file = home_of(folder) / "chat_template.jinja"
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else None
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read: {error}", "restore it from a copy") from error


def without_file(config: ModelConfig) -> ModelConfig:
    """The configuration of an adapter's base without the recipe's template file.

    That may be gone or changed; `saved_template` is the one that was trained with.
    """
    kept = "none" if config.chat_template == "none" else "auto"
    return config.model_copy(update={"chat_template": kept})


def load_adapter(folder: Path, model: Any, *, trainable: bool = False) -> Any:
    """Put the adapter in `folder` on its base model, and those in the folders below it.

    Those are active that were when they were saved; of adapters that others saved the first one.

    Args: trainable: go on training those that were trained.

    Raises:
        ModelError: an adapter's shapes or names do not fit the model, or it holds a pickle.
        ConsentError: it names code to import.
    """
    loaded = model
    for name, home in folders(folder).items():
        loaded = join_adapter(home, loaded, name, trainable=trainable)
    if split_saved(loaded, folder):  # their routers are read by nobody else
        put(loaded, load_weights(loaded, folder))
    use_saved(loaded, folder, frozen=not trainable)
    return loaded


def join_adapter(home: Path, model: Any, name: str, *, trainable: bool = False) -> Any:
    """Put one `peft` folder's adapter on a model: a base, or one that has adapters already.

    The first one is active; a later one is not.

    Args: name: see `perdure.models.adapter_lists.check_new`.

    Raises: as `load_adapter`.
    """
    import pickle

    from peft import PeftConfig, PeftModel

    first = holder(model) is None
    inner = model if first else holder(model).get_base_model()
    try:
        config = PeftConfig.from_pretrained(str(home))
        if getattr(config, "megatron_config", None):  # peft imports the module that it names
            demand(f"{home}: names Python code to import ({config.megatron_core})")
        with old_name_unsaid():
            if first:
                return PeftModel.from_pretrained(
                    model, str(home), name, is_trainable=trainable, config=config
                )
            model.load_adapter(str(home), name, is_trainable=trainable)
    except pickle.UnpicklingError as error:
        raise holds_pickle(home) from error
    except (RuntimeError, ValueError, OSError) as error:
        raise _misfit(home, type(inner).__name__, error) from error
    return model


def _misfit(folder: Path, kind: str, error: Exception) -> ModelError:
    reason = next((t for t in str(error).splitlines() if t.strip()), type(error).__name__)
    return ModelError(
        f"{folder}: the adapter does not fit {kind}: {reason.strip()}",
        "is it the base model that the adapter was trained on?",
    )
