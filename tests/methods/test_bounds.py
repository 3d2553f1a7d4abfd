"""The two bounds: sequential does nothing, joint trains on every task so far."""

from __future__ import annotations

from typing import Any

import pytest
from small_tasks import FIRST, SECOND

from perdure.methods.joint import Joint, JointConfig
from perdure.methods.sequential import Sequential
from perdure.protocol.method import Method
from perdure.protocol.step import Phase

pytestmark = pytest.mark.unit


def test_sequential_overrides_nothing() -> None:
    own = [n for n in vars(Sequential) if not n.startswith("__") and hasattr(Method, n)]
    assert own == ["noop_options"]  # it has none, and so does nothing under none


@pytest.mark.parametrize("start", ["base", "current"])
def test_joint_takes_all_rows_of_the_tasks_so_far(context: Any, start: str) -> None:
    method = Joint(JointConfig(start=start))
    ctx = context(method, task=SECOND, task_index=1, tasks_seen=(FIRST,))
    assert method.phases(ctx) == (Phase(start=start),)
    rows = method.train_data(ctx, list(SECOND.train))
    assert rows == [*FIRST.train, *SECOND.train]
    first = context(method, task=FIRST)
    assert method.train_data(first, list(FIRST.train)) == FIRST.train
