"""Probes on features: by hand, and against a slow plain loop."""

from __future__ import annotations

import math

import pytest
import torch

from perdure.scoring.probes import PROBES, chunks, fit, logits, means

pytestmark = pytest.mark.unit

# Example 10.11 of SEQ*'s specification: class a is (1,0), (3,0), class b (.5,.5), (.5,.7).
FEATURES = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.5, 0.5], [0.5, 0.7]])
LABELS = torch.tensor([0, 0, 1, 1])
QUERY = torch.tensor([[0.9, 0.8]])


def test_prototypes_by_hand() -> None:
    found = fit("prototype", FEATURES, LABELS, 2)
    torch.testing.assert_close(found, torch.tensor([[2.0, 0.0], [0.5, 0.6]]))
    torch.testing.assert_close(logits("prototype", found, QUERY), torch.tensor([[1.8, 0.93]]))
    torch.testing.assert_close(
        logits("cosine_prototype", fit("cosine_prototype", FEATURES, LABELS, 2), QUERY),
        torch.tensor([[0.747409, 0.988858]]),
    )


def test_a_mean_counts_rows_and_not_batches() -> None:
    """Three rows of one class and one of another: each mean is over its own rows."""
    features = torch.tensor([[3.0], [6.0], [0.0], [5.0]])
    assert means(features, torch.tensor([0, 0, 0, 2]), 3).tolist() == [[3.0], [0.0], [5.0]]


def test_rows_are_cut_as_the_released_code_cuts_them() -> None:
    """Example 10.22: 1000 rows are six of 143 and one of 142; fewer than 128 are one batch."""
    assert [len(c) for c in chunks(torch.arange(1000))] == [143] * 6 + [142]
    assert [len(c) for c in chunks(torch.arange(127))] == [127]
    assert [len(c) for c in chunks(torch.arange(256))] == [128, 128]


def slow_fit(features: torch.Tensor, labels: torch.Tensor, classes: int, cosine: bool) -> list:
    """Adam written out in Python floats, a row at a time."""
    draw = torch.Generator().manual_seed(0)
    width = features.shape[1]
    reach = 1 / math.sqrt(width)
    first = torch.empty(classes, width).uniform_(-reach, reach, generator=draw)
    w = [[float(x) for x in row] for row in first]
    m = [[0.0] * width for _ in range(classes)]
    v = [[0.0] * width for _ in range(classes)]
    for step in range(1, 21):  # fewer than 256 rows: one batch an epoch
        order = torch.randperm(len(features), generator=draw).tolist()
        grad = [[0.0] * width for _ in range(classes)]
        for i in order:
            f = [float(x) for x in features[i]]
            if cosine:
                f = [x / math.sqrt(sum(y * y for y in f)) for x in f]
            norms = [math.sqrt(sum(x * x for x in row)) if cosine else 1.0 for row in w]
            z = [
                sum(a * b for a, b in zip(row, f, strict=True)) / n
                for row, n in zip(w, norms, strict=True)
            ]
            top = sum(math.exp(x) for x in z)
            for c in range(classes):
                d = (math.exp(z[c]) / top - (c == int(labels[i]))) / len(order)
                for k in range(width):
                    of_norm = z[c] * w[c][k] / norms[c] ** 2 if cosine else 0.0
                    grad[c][k] += d * (f[k] / norms[c] - of_norm)
        for c in range(classes):
            for k in range(width):
                m[c][k] = 0.9 * m[c][k] + 0.1 * grad[c][k]
                v[c][k] = 0.999 * v[c][k] + 0.001 * grad[c][k] ** 2
                up, down = m[c][k] / (1 - 0.9**step), math.sqrt(v[c][k] / (1 - 0.999**step))
                w[c][k] -= 1e-3 * up / (down + 1e-8)
    return w


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_trained_probes_against_a_slow_plain_loop(name: str) -> None:
    draw = torch.Generator().manual_seed(1)
    features, labels = torch.randn(9, 4, generator=draw), torch.arange(9) % 3
    slow = torch.tensor(slow_fit(features, labels, 3, name == "cosine"))
    torch.testing.assert_close(fit(name, features, labels, 3), slow, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", PROBES)
def test_each_tells_apart_what_lies_apart(name: str) -> None:
    draw = torch.Generator().manual_seed(2)
    centres = torch.randn(5, 64, generator=draw)  # 460 steps of 0.001: width is needed
    labels = torch.arange(3000) % 5
    features = centres[labels] + torch.randn(3000, 64, generator=draw)
    before = torch.get_rng_state()
    with torch.no_grad():  # as scoring calls it
        found = fit(name, features, labels, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert (logits(name, found, features).argmax(-1) == labels).float().mean() > 0.95
