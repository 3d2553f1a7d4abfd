"""The promised time: estimated anew from what was done, and told where it has changed by much."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.reports.forecast import Forecast, Promise
from perdure.reports.terminal import Display

pytestmark = pytest.mark.unit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Heard(Display):
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(None)
        self.messages: list[str] = []
        self.shown: list[tuple[Any, ...]] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def training(self, *facts: Any, **more: Any) -> None:
        self.shown.append(("training", *facts))

    def scoring(self, *facts: Any, **more: Any) -> None:
        self.shown.append(("scoring", *facts))

    def doing(self, *facts: Any, **more: Any) -> None:
        self.shown.append(("doing", *facts))


def test_a_forecast_by_hand() -> None:
    clock = Clock()
    forecast = Forecast([("a", 100.0), ("b", 300.0)], clock)
    assert (forecast.left, forecast.whole) == (400, 400)
    clock.now += 200  # twice as slow
    forecast.reach("a", 1.0)
    # rate (200 + 40) / (100 + 40), of 300 seconds that are left
    assert forecast.left == pytest.approx(300 * 240 / 140)
    assert forecast.whole == pytest.approx(200 + 300 * 240 / 140)
    told, now = forecast.news() or (0, 0)
    assert (told, now) == (400, pytest.approx(200 + 300 * 240 / 140))
    assert forecast.news() is None  # told once
    forecast.reach("a", 0.5)  # never goes back
    forecast.reach("unknown", 1.0)
    assert forecast.whole == pytest.approx(200 + 300 * 240 / 140)
    forecast.reach("b", 1.0)
    assert (forecast.left, forecast.whole) == (0, 200)
    assert forecast.news() == (pytest.approx(200 + 300 * 240 / 140), 200)


def test_what_comes_as_estimated_is_no_news() -> None:
    clock = Clock()
    forecast = Forecast([(k, 10.0) for k in range(20)], clock)
    for k in range(20):
        clock.now += 10.5
        forecast.reach(k, 1.0)
        assert forecast.news() is None


def test_a_promise_is_told_anew_while_a_run_is_slower() -> None:
    """Training and scoring of two tasks with two methods, the second twice as slow as estimated."""
    clock, heard = Clock(), Heard()
    parts = [
        ((method, work, after), 0.0 if (method, after) == ("b", 0) else 60.0)
        for method in ("a", "b")
        for after in (0, 1, 2)
        for work in (("training", "scoring") if after else ("scoring",))
    ]
    promise = Promise(heard, Forecast(parts, clock), cells=3)
    for number, method in enumerate(("a", "b"), start=1):
        promise.begin(number, 2, method)
        slow = number
        for after in (0, 1, 2):
            if after:
                for step in range(1, 5):
                    clock.now += 15 * slow
                    promise.training(method, f"task {after}", step, 4, 1.0, 100.0, 3.0)
            if (method, after) != ("b", 0):
                for cell in ("task 1", "task 2", "general text"):
                    clock.now += 20 * slow
                    promise.scoring(method, cell, 8, 8)
    assert heard.messages[0] == "method 1 of 2: a"
    assert heard.messages[1] == "method 2 of 2: b, about 4 min 0 s left"
    assert heard.messages[2].startswith("estimated anew: about 11 min ")
    assert " in all instead of 9 min 0 s, " in heard.messages[2]
    assert len(heard.messages) == 3  # it is told when it has changed, not at each step
    assert clock.now - 1000 == 300 + 480
    assert promise.forecast.left == 0
    assert ("training", "b", "task 2", 4, 4, 1.0, 100.0, 3.0) in heard.shown
    promise.doing("b", "distilling", "general texts", 1, 2)
    assert heard.shown[-1] == ("doing", "b", "distilling", "general texts", 1, 2)
