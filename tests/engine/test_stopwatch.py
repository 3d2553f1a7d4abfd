"""Seconds of passes: by the clock of a CPU, by a GPU's events without waiting for it."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import pytest
import torch

from perdure.engine.stopwatch import Stopwatch

pytestmark = pytest.mark.unit


def test_a_cpus_seconds_add_up_until_they_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 20.0, 20.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    watch = Stopwatch(torch.device("cpu"))
    with watch.measured():
        pass
    with pytest.raises(ValueError, match="spoilt"), watch.measured():
        raise ValueError("spoilt")
    assert watch.take() == 2.5
    assert watch.take() == 0.0


class Event:
    """Stands for a GPU's: passed where the GPU has got to, at the time that it is recorded."""

    queue: ClassVar[list[Event]] = []
    passed = 0
    waited = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.number = len(Event.queue)
        Event.queue.append(self)

    def query(self) -> bool:
        return self.number < Event.passed

    def synchronize(self) -> None:
        Event.waited += 1
        Event.passed = max(Event.passed, self.number + 1)

    def elapsed_time(self, end: Event) -> float:
        assert end.query()
        return 250.0 * (end.number - self.number)  # milliseconds


def test_a_gpu_is_waited_for_only_when_seconds_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch: Any = Stopwatch(torch.device("cuda"))
    for _ in range(3):
        with watch.measured():
            pass
    assert (Event.waited, watch.seconds) == (0, 0.0)
    Event.passed = 4  # the first two passes are done
    with watch.measured():
        pass
    assert (Event.waited, watch.seconds) == (0, 0.5)
    assert watch.take() == 1.0
    assert Event.waited > 0
    assert watch.take() == 0.0
