"""Where the numbers come from: cost, recipe differences, environment, how to run it again."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.reports import tradeoff
from perdure.reports.data import MISSING, RunView
from perdure.reports.format import DASH
from perdure.reports.scenarios import foreknown


def cost(runs: Sequence[RunView]) -> dict[str, Any] | None:
    """Speed, time and memory; None where nothing was logged."""
    rows: list[dict[str, Any]] = [
        {
            "label": run.label,
            "slot": slot,
            "speed": run.tokens_per_second,
            "training": tradeoff.learning_seconds(run),
            "parameters": tradeoff.trained_parameters(run),
            "passes": tradeoff.passes(run),
            "needed": tradeoff.passes(run, "body_passes_needed"),
            "scoring": run.scoring_seconds or MISSING,
            "memory": run.peak_memory_mb,
            "steps": len({(r.get("after"), r.get("phase"), r.get("step")) for r in run.log}),
        }
        for slot, run in enumerate(runs)
    ]
    if all(math.isnan(r["speed"]) and math.isnan(r["memory"]) for r in rows):
        return None
    return {
        "rows": rows,
        "parameters": any(not math.isnan(r["parameters"]) for r in rows),
        "passes": any(not math.isnan(r["passes"]) for r in rows),
    } | {
        f"most_{key}": max((r[key] for r in rows if not math.isnan(r[key])), default=0.0) or 1.0
        for key in ("speed", "training", "memory")
    }


def differences(runs: Sequence[RunView]) -> list[tuple[str, list[str]]]:
    """Recipe keys whose values are not the same in all runs: (key, a value a run)."""
    flat = [dict(_flatten(run.recipe)) for run in runs]
    keys = list(dict.fromkeys(key for recipe in flat for key in recipe))
    table = [(key, [recipe.get(key, DASH) for recipe in flat]) for key in keys]
    return [(key, row) for key, row in table if len(set(row)) > 1 and key != "name"]


def _flatten(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flatten(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value, start=1):
            # One item is written with or without its list: both are the same key.
            yield from _flatten(item, f"{key}.{index}" if len(value) > 1 else key)
    elif isinstance(value, list):
        yield key, ", ".join(map(str, value))
    else:
        yield (
            key,
            {True: "true", False: "false", None: DASH}.get(value, str(value))
            if (value is None or isinstance(value, bool))
            else str(value),
        )


def accepted(runs: Sequence[RunView]) -> list[dict[str, str]]:
    """What had changed of a run's inputs since it began and was gone on with all the same."""
    found = []
    for run in [member for one in runs for member in one.members]:
        noted = run.environment.get("accepted_changes")
        for entry in noted if isinstance(noted, list) else ():
            if isinstance(entry, Mapping) and isinstance(entry.get("changes"), list):
                when = str(entry.get("time", ""))
                found += [
                    {"label": run.label, "time": when, "change": str(one)}
                    for one in entry["changes"]
                ]
    return found


def environments(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    """One block for each environment: the runs that share it, and its facts."""
    blocks: list[dict[str, Any]] = []
    for label, member in [(run.label, member) for run in runs for member in run.members]:
        facts = [*_facts(member.environment), *_released(member.recipe), *_foreknown(member.recipe)]
        same = next((block for block in blocks if block["facts"] == facts), None)
        if same is None:
            blocks.append({"labels": [label], "facts": facts})
        elif label not in same["labels"]:
            same["labels"].append(label)
    return blocks


def _released(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Which methods compute as the released code of their papers does (`official: true`)."""
    chosen = recipe.get("method") or ()
    specs = [chosen] if isinstance(chosen, Mapping) else list(chosen)
    names = [str(s["name"]) for s in specs if isinstance(s, Mapping) and s.get("official") is True]
    return [("As released", ", ".join(f"{name} (official: true)" for name in names))] * bool(names)


def _foreknown(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What it used of classes that were not learned yet."""
    told = foreknown(recipe)
    return [("Future knowledge", told)] * bool(told)


def _facts(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    hardware = environment.get("hardware") or {}
    packages = environment.get("packages") or {}
    gpus = hardware.get("gpus") or []
    memory = hardware.get("memory_gb")
    found = [
        ("Perdure", str(environment.get("perdure") or "")),
        ("Commit", str(environment.get("commit") or "")),
        ("Python", str(environment.get("python") or "")),
        ("Packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
        ("Processor", str(hardware.get("cpu") or "")),
        ("Cores", str(hardware.get("cores") or "")),
        ("Memory", f"{memory} GB" if memory else ""),
        ("GPUs", ", ".join(map(str, gpus)) if gpus else ("none" if hardware else "")),
    ]
    known = {"perdure", "commit", "python", "packages", "hardware", "started", "accepted_changes"}
    others = {key: value for key, value in environment.items() if key not in known}
    found += [(key.replace("_", " ").capitalize(), text) for key, text in _flatten(others)]
    return [(name, text) for name, text in found if text]


def reproduce(runs: Sequence[RunView]) -> list[dict[str, str]]:
    """Commands that make each run again: install the same versions, then run its recipe."""
    return [
        {
            "label": run.label,
            "install": _install(run.environment),
            "run": "\n".join(map(_command, run.members)),
        }
        for run in runs
    ]


def _install(environment: Mapping[str, Any]) -> str:
    versions = {"perdure": environment.get("perdure"), **(environment.get("packages") or {})}
    # A build's own suffix (2.9.1+cpu) is no version that the package index has.
    public = {n: str(v).partition("+")[0] for n, v in versions.items() if v}
    wanted = [shlex.quote(f"{n}=={v}") for n, v in public.items()]
    return f"pip install {' '.join(wanted)}" if wanted else ""


def _command(run: RunView) -> str:
    start = "perdure"
    processes = run.environment.get("processes")
    if isinstance(processes, int) and processes > 1:
        start = f"torchrun --nproc-per-node {processes} -m perdure"
    path = _short(run.path)
    again = path.with_name(f"{path.name}-again")
    recipe = shlex.quote(str(path / "recipe.yaml"))
    return f"{start} run {recipe} --out {shlex.quote(str(again))}"


def _short(path: Path) -> Path:
    """The path as one would type it here; as it is where it lies elsewhere."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path
