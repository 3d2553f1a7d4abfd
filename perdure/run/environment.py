"""Versions, commit and hardware of this machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from perdure.files import now

_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "trl",
    "datasets",
    "tokenizers",
    "lm-eval",
)


def environment() -> dict[str, Any]:
    """Versions, commit and hardware of this machine, for environment.json."""
    import psutil

    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "perdure": metadata.version("perdure"),
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": packages,
        "hardware": {
            "cpu": platform.processor() or platform.machine(),
            "cores": _cores(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
            "gpus": _gpus(),
        },
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "started": now(),
    }


def _cores() -> int | None:
    """Cores that this process may use; all there are where the system does not tell (macOS)."""
    import psutil

    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):
        return len(process.cpu_affinity())
    found: int | None = psutil.cpu_count()
    return found


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _commit() -> str | None:
    """The commit of a checkout of Perdure, None for an installed package."""
    home = Path(__file__).resolve().parents[1]
    if not (home / ".git").exists():
        return None
    done = subprocess.run(
        ["git", "-C", str(home), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
