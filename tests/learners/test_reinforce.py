"""Advantages of REINFORCE++ by hand (M12 of the specification) and by a plain loop."""

from __future__ import annotations

import pytest
import torch

from perdure.learners.reinforce import reinforce_advantages

pytestmark = pytest.mark.unit


def test_by_hand() -> None:
    """R 1.03 and .2; beta .01 times k1 [.1, .2, 0] and [.3, .1]."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    penalties = 0.01 * torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.1, 0.0]])
    found = reinforce_advantages(torch.tensor([1.03, 0.2]), mask, penalties)
    wanted = torch.tensor([[0.727363, 0.729560, 0.733955], [-1.098735, -1.092143, 0.0]])
    assert torch.allclose(found, wanted, atol=2e-6)


def test_by_a_plain_loop() -> None:
    torch.manual_seed(0)
    rewards, lengths = torch.rand(5, dtype=torch.float64), [4, 1, 0, 3, 6]
    mask = torch.tensor([[int(k < n) for k in range(6)] for n in lengths])
    penalties = torch.rand(5, 6, dtype=torch.float64)
    returns = {}
    for i, n in enumerate(lengths):
        total = float(rewards[i])
        for k in reversed(range(n)):
            total -= float(penalties[i, k])
            returns[i, k] = total
    values = list(returns.values())
    mean = sum(values) / len(values)
    spread = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    found = reinforce_advantages(rewards, mask, penalties)
    for i in range(5):
        for k in range(6):
            wanted = (returns[i, k] - mean) / (spread + 1e-8) ** 0.5 if (i, k) in returns else 0.0
            assert float(found[i, k]) == pytest.approx(wanted, abs=1e-12)


def test_without_a_token_nothing_is_learned() -> None:
    """As where all completions were cut off, and those are masked."""
    found = reinforce_advantages(torch.tensor([1.0, 0.0]), torch.zeros(2, 3))
    assert torch.equal(found, torch.zeros(2, 3))


def test_two_processes_whiten_together() -> None:
    """Each process has its own completions; sums go over both."""
    rewards = torch.tensor([1.0, 0.5, 0.2, 0.9], dtype=torch.float64)
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]])
    whole = reinforce_advantages(rewards, mask)
    sums: list[torch.Tensor] = []
    halves = [(rewards[:2], mask[:2]), (rewards[2:], mask[2:])]
    # What the other process adds, in the order in which the function asks for it.
    means = [torch.stack([m.sum(), (r[:, None] * m).sum()]) for r, m in halves]
    mean = (means[0] + means[1])[1] / (means[0] + means[1])[0]
    spreads = [(((r[:, None] * m - mean) * m) ** 2).sum() for r, m in halves]
    for mine in (0, 1):
        others = iter([means[1 - mine], spreads[1 - mine]])

        def total(values: torch.Tensor, others: object = others) -> torch.Tensor:
            sums.append(values)
            return values + next(others)  # type: ignore[call-overload]

        part = reinforce_advantages(*halves[mine], total=total)
        assert torch.allclose(part, whole[2 * mine : 2 * mine + 2])
    assert len(sums) == 4
