"""The buffer keeps what it should, and the loss is a plain mean over replayed answer tokens."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from small_tasks import FIRST, SECOND

from perdure.mechanisms.buffer import balanced, reservoir, shares
from perdure.methods.replay import Replay, ReplayConfig
from perdure.protocol.batch import collate

pytestmark = pytest.mark.unit


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"answer": str(i)} for i in range(start, start + count)]


def test_reservoir_by_hand() -> None:
    kept, seen = reservoir([], 0, "a", rows(3), 4, "seed")
    assert [e["row"]["answer"] for e in kept] == ["0", "1", "2"]  # all fit
    assert seen == 3
    kept, seen = reservoir(kept, seen, "b", rows(5, 10), 4, "seed")
    assert len(kept) == 4
    assert seen == 8


def test_reservoir_keeps_every_row_of_the_stream_with_equal_chance() -> None:
    counts: Counter[str] = Counter()
    for trial in range(4000):
        kept, seen = reservoir([], 0, "a", rows(6), 4, f"a{trial}")
        kept, _ = reservoir(kept, seen, "b", rows(6, 6), 4, f"b{trial}")
        counts.update(e["row"]["answer"] for e in kept)
    # 12 rows, 4 kept: 4000 / 3 each; one standard deviation is 30
    assert all(abs(counts[str(i)] - 4000 / 3) < 120 for i in range(12))


@pytest.mark.parametrize(
    ("available", "size", "given"),
    [
        ([9, 9], 6, [3, 3]),
        ([9, 9, 9], 7, [3, 2, 2]),
        ([1, 9, 9], 9, [1, 4, 4]),
        ([2, 1], 9, [2, 1]),
        ([5, 5, 5], 2, [1, 1, 0]),
        ([], 4, []),
    ],
)
def test_shares_by_hand(available: list[int], size: int, given: list[int]) -> None:
    assert shares(available, size) == given


def test_balanced_gives_each_task_its_share_and_never_grows() -> None:
    kept = balanced([], "a", rows(20), 6, "1")
    assert Counter(e["task"] for e in kept) == {"a": 6}
    first = [e for e in kept if e["task"] == "a"]
    kept = balanced(kept, "b", rows(20, 20), 6, "2")
    assert Counter(e["task"] for e in kept) == {"a": 3, "b": 3}
    assert [e for e in kept if e["task"] == "a"] == first[:3]
    kept = balanced(kept, "c", rows(1, 40), 6, "3")
    assert Counter(e["task"] for e in kept) == {"a": 3, "b": 2, "c": 1}


def test_nothing_is_replayed_in_the_first_task(context: Any) -> None:
    method = Replay(ReplayConfig())
    ctx = context(method)
    method.begin_task(ctx)
    assert method.replay(ctx) is None
    assert method.loss(ctx, None, None) == {}


@pytest.mark.parametrize(("ratio", "size"), [(0.25, 2), (1.0, 8), (0.01, 1)])
def test_rows_a_step_are_a_share_of_the_batch(context: Any, ratio: float, size: int) -> None:
    method = Replay(ReplayConfig(ratio=ratio))
    method.end_task(context(method, task=FIRST))
    ctx = context(method, task=SECOND, task_index=1, batch_size=8)
    assert len(method.replay(ctx)) == size


def test_loss_is_the_weighted_mean_of_the_replayed_tokens(context: Any) -> None:
    method = Replay(ReplayConfig(buffer_size=6, ratio=0.5, weight=0.7))
    method.end_task(context(method, task=FIRST))
    assert len(method.kept) == 6
    assert {e["task"] for e in method.kept} == {"colour"}
    ctx = context(method, task=SECOND, task_index=1, batch_size=8)
    drawn = method.replay(ctx)
    with torch.no_grad():
        value = method.loss(ctx, None, ctx.forward(drawn))["replay"]
        total, tokens = 0.0, 0
        for row in drawn:  # one row at a time, in plain torch
            batch = collate([row], 0)
            logits = ctx.model(batch["input_ids"]).logits[0, :-1]
            nll = torch.nn.functional.cross_entropy(logits, batch["labels"][0, 1:], reduction="sum")
            total, tokens = total + nll.item(), tokens + sum(x != -100 for x in row["labels"][1:])
    assert value.item() == pytest.approx(0.7 * total / tokens, rel=1e-5)


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_the_buffer_is_the_same_in_every_process_and_after_a_restart(
    context: Any, policy: str
) -> None:
    def fill() -> Replay:
        method = Replay(ReplayConfig(buffer_size=5, policy=policy))
        method.end_task(context(method, task=FIRST))
        return method

    one, two = fill(), fill()
    assert one.state_dict() == two.state_dict()
    restarted = Replay(ReplayConfig(buffer_size=5, policy=policy))
    restarted.load_state_dict(one.state_dict())
    for method in (one, restarted):
        method.end_task(context(method, task=SECOND, task_index=1))
    assert one.state_dict() == restarted.state_dict()
    assert one.seen == 32
