"""Distillation from a frozen model, shared by the methods that compare predictions."""

from __future__ import annotations

from torch import Tensor


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
