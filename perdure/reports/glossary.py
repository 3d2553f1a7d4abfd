"""What the figures are that a run logs, in a sentence each, for the page where they appear.

A method's term `method/NAME` is logged as it is added to the loss, weight and share included, so
that `loss` is `task_loss` and all terms. What stands under another kind of name is measured only.
"""

from __future__ import annotations

from collections.abc import Iterable

EXPLAINED = {
    "loss": "What is trained on: the task's own loss and all terms of the methods.",
    "task_loss": "The task's own loss in nats a token; comparable between methods.",
    "method/replay": "Term: loss on replayed rows of earlier tasks, times the method's weight.",
    "method/lwf": "Term: distance to the predictions before this task, times the weight.",
    "method/eaft": "Term: what weighing each token by its entropy adds to the task's loss.",
    "method/gere_label": "Term: loss on general texts, times label_weight and times the general "
    "rows' share of all rows of the step.",
    "method/gere_margin": "Term: how far states lie outside the base model's intervals, times "
    "weight and the general rows' share.",
    "method/gere_kl": "Term: KL from the base model's predictions on general texts, times weight "
    "and the general rows' share.",
    "method/gere_l1": "Term: L1 distance to the base model's states, times weight and share.",
    "method/gere_l2": "Term: L2 distance to the base model's states, times weight and share.",
    "method/gere_scope": "Term: what turns the loss into that of GeRe's published code.",
    "method/gere_term": "Measured: the held term of a general row before any weight.",
    "method/gere_weight": "Measured: the weight of that term, where it is dynamic.",
    "method/gere_elements": "Measured: how far states lie outside, a mean over all neurons.",
    "method/gere_violating": "Measured: share of neurons whose state lies outside its interval.",
    "method/gere_flips": "Measured: share of neurons whose state is in another interval (low, "
    "middle, high) than the base model's was. Each such state also lies outside, so it equals "
    "gere_violating unless a noise floor is set.",
    "method/gere_noise_flipped": "Measured once: the same share by rounding alone.",
    "method/gere_noise_largest": "Measured once: the largest distance by rounding alone.",
    "method/ewc_penalty": "Measured: the penalty on moved weights, its weight included; it acts on "
    "gradients and is not part of the loss.",
    "method/rewind_factor": "Measured at a task's end: the share of the update that was kept.",
    "method/budget_share": "Measured at a task's end: the share of the update within its budget.",
    "gauge/flip_share": "Share of hidden states on general texts that left the interval (low, "
    "middle, high) in which the base model's were.",
    "gauge/kl": "KL from the base model's predictions on rows of this task, in nats a token.",
}


def explained(keys: Iterable[str]) -> list[tuple[str, str]]:
    """(name, sentence) of the logged figures that are known; a foreign method's are not."""
    return [(key.partition("/")[2] or key, EXPLAINED[key]) for key in keys if key in EXPLAINED]
