"""Distances to a frozen model, for methods that compare predictions or states, and their weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

BEYOND = 2.0
"""How many times the largest measured difference counts as none: few texts are measured."""


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of each token's softened prediction, in nats.

    Args:
        student, teacher: logits, (tokens, vocab); no gradient reaches the teacher.
        temperature: both are divided by it. Multiply by its square to keep the gradient's size
            (Hinton et al. 2015, section 2).
    Returns: (tokens,)
    """
    old = (teacher.detach().float() / temperature).log_softmax(-1)
    new = (student.float() / temperature).log_softmax(-1)
    return (old.exp() * (old - new)).sum(-1)


def kl_of_largest(
    student: Tensor, values: Tensor, ids: Tensor, lse: Tensor, temperature: float = 1.0
) -> Tensor:
    """`kl` where of the teacher only its largest logits are known; all others are one outcome.

    Equal to `kl` if all are known, else at most as large (it is the KL of coarser outcomes).

    Args:
        student: logits, (tokens, vocab).
        values, ids: the teacher's largest logits over `temperature` and where they are,
            (tokens, kept); lse: log of the sum of all its exponentials, (tokens,).
    Returns: (tokens,)
    """
    old = values - lse.unsqueeze(-1)
    new = (student.float() / temperature).log_softmax(-1).gather(-1, ids)
    known = (old.exp() * (old - new)).sum(-1)
    if values.shape[-1] == student.shape[-1]:
        return known
    tiny = torch.finfo(torch.float32).tiny
    rest_old = (1 - old.exp().sum(-1)).clamp(min=0)
    rest_new = (1 - new.exp().sum(-1)).clamp(min=tiny)
    rest = rest_old * (rest_old.clamp(min=tiny).log() - rest_new.log())
    return known + rest


def distance(x: Tensor, h: Tensor, mask: Tensor, power: int, floor: float = 0.0) -> Tensor:
    """Mean over real positions and neurons of |x - h|^power, of each row; (batch, seq, hidden).

    Args: floor: a difference up to this counts as none.
    """
    gap = (x.float() - h).abs()
    if floor > 0:  # so that a state that is no number stays one
        gap = torch.where(gap <= floor, 0.0, gap)
    gap = gap.pow(power) * mask.unsqueeze(-1)
    return gap.sum((1, 2)) / (mask.sum(1).clamp(min=1) * x.shape[-1])


def pooled(states: Tensor) -> Tensor:
    """All rows of (rows, seq, ...) as one, (1, rows * seq, ...): a mean is then over them all."""
    return states.flatten(0, 1).unsqueeze(0)


def floors(
    given: float | str,
    noise: Mapping[str, Mapping[str, float]],
    layers: Sequence[int],
    times: float = BEYOND,
) -> dict[int, float]:
    """What counts as no difference of states, by layer: as given, or as rounding was measured.

    Args:
        given: a number, or "measured".
        noise: `Context.base_states(...).noise`; times: so many times its largest is the floor.
    """
    if given != "measured":
        return dict.fromkeys(layers, float(given))
    return {layer: times * noise[str(layer)]["largest"] for layer in layers}


WEIGHTS = {"sft": 100.0, "rl": 1.0}
"""GeRe's weight by how a task is learned. A policy's gradient is small beside a cross-entropy's,
and all terms share one clip: on Velan the reward rises at 1 as without it, and far less at 100."""
USUAL = "{sft:g}, and {rl:g} under learn: rl".format(**WEIGHTS)


def loud(weight: float | str | None, ways: Iterable[str]) -> Iterator[str]:
    """A line where a weight that was fixed for a cross-entropy meets a policy's gradient.

    Args: ways: how each task is learned.
    """
    usual = WEIGHTS["rl"]
    if isinstance(weight, int | float) and weight > 10 * usual and "rl" in ways:
        yield (
            f"weight {weight:g}: with learn: rl the term may swallow the policy's gradient, as all "
            f"terms share one clip; {usual:g} is what gere has there: set it, or watch the shares "
            "of the gradient in the log"
        )


def state_weight(
    weight: float | str | None,
    ce: Tensor,
    term: Tensor,
    limit: float | None = None,
    learn: str = "sft",
) -> Tensor | float:
    """The fixed weight, or the one that makes weight * term as large as ce; no gradient.

    Args: weight: None is the usual one of a task that is learned by `learn`.
    """
    if weight != "dynamic":
        # Of another kind's ways to learn nothing is known: what supervised learning has.
        return WEIGHTS.get(learn, WEIGHTS["sft"]) if weight is None else float(weight)
    found = ce.detach() / (term.detach() + 1e-8)
    return found if limit is None else found.clamp(max=limit)
