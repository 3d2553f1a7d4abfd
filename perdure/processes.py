"""The processes that torchrun or accelerate started, as far as a run directory cares."""

from __future__ import annotations

import os
from typing import Any


def rank() -> int:
    """This process's number among those that torchrun or accelerate started; 0 when alone."""
    return int(os.environ.get("RANK", "0"))


def share(value: str) -> str:
    """The first process's `value`, on all processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return value
    from accelerate.utils import broadcast_object_list

    processes()
    found: str = broadcast_object_list([value])[0]
    return found


def barrier() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        processes().wait_for_everyone()


def processes() -> Any:
    """accelerate's view of the processes, on gloo where there is no GPU."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())
