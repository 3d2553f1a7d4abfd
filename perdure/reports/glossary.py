"""What the figures are that a run logs, in a sentence each, for the page where they appear.

A method's term `method/NAME` is logged as it is, before any weight, with `method/NAME_weight`
beside it: what it was multiplied by in the loss, 1 where it is added as it is. `loss` is
`task_loss` and all terms times their weights. A name without a weight is measured only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

NATS = "nats a token"


class Said(NamedTuple):
    """What a figure is, and its unit as an axis prints it."""

    what: str
    unit: str = ""


_SHARE, _STATES = "share of states", "distance of states"
TERMS = {
    "method/replay": Said("Term: loss on replayed rows of earlier tasks.", NATS),
    "method/derpp_ce": Said("Term: loss on kept rows of earlier tasks.", NATS),
    "method/derpp_logits": Said(
        "Term: squared distance to the logits kept with these rows.", "squared logits"
    ),
    "method/derpp_new": Said(
        "Term: what turns the new rows' loss into beta times it and the distance of their logits; "
        "added as it is.",
        NATS,
    ),
    "method/lwf": Said("Term: distance to the predictions before this task.", NATS),
    "method/kl": Said(
        "Term: KL from the reference model on the tokens that are learned, a mean over them; an "
        "estimate, which may be below 0 (k1).",
        NATS,
    ),
    "method/eaft": Said(
        "Term: what weighing each token by its entropy adds to the task's loss; added as it is.",
        NATS,
    ),
    "method/overlap": Said(
        "Term: what the new adapter reads in common with earlier ones, the sum of the absolute "
        "products of their rows (or of its squares), over layers.",
        "overlap",
    ),
    "method/adapter_norms": Said("Term: sum of the norms of the new adapter's matrices.", "norm"),
    "method/gere_label": Said("Term: loss on general texts, a mean over their rows.", NATS),
    "method/gere_margin": Said(
        "Term: how far states lie outside the base model's intervals.", _STATES
    ),
    "method/gere_kl": Said("Term: KL from the base model's predictions on general texts.", NATS),
    "method/gere_l1": Said("Term: L1 distance to the base model's states.", _STATES),
    "method/gere_l2": Said("Term: L2 distance to the base model's states.", _STATES),
    "method/gere_scope": Said(
        "Term: the task's part in the loss of GeRe's published code (half its loss, where a "
        "micro-batch has general rows) less task_loss; added as it is.",
        NATS,
    ),
}
EXPLAINED = {
    "loss": Said(
        "What is trained on: the task's own loss and all terms of the methods, each times its "
        "weight.",
        NATS,
    ),
    "task_loss": Said("The task's own loss; comparable between methods.", NATS),
    **TERMS,
    "method/gere_weight": Said("Measured: the weight of the held term, where it is dynamic."),
    "method/gere_elements": Said(
        "Measured: how far states lie outside, a mean over all neurons.", _STATES
    ),
    "method/gere_violating": Said(
        "Measured: share of neurons whose state lies outside its interval.", _SHARE
    ),
    "method/gere_flips": Said(
        "Measured: share of neurons whose state is in another interval (low, middle, high) than "
        "the base model's was. Each such state also lies outside, so it equals gere_violating "
        "unless a noise floor is set.",
        _SHARE,
    ),
    "method/gere_noise_flipped": Said("Measured once: the same share by rounding alone.", _SHARE),
    "method/gere_noise_largest": Said(
        "Measured once: the largest distance by rounding alone.", _STATES
    ),
    "method/ewc_penalty": Said(
        "Measured: the penalty on moved weights, its weight included; it acts on gradients and is "
        "not part of the loss.",
        "penalty",
    ),
    "method/rewind_factor": Said(
        "Measured at a task's end: the share of the update that was kept.", "share kept"
    ),
    "method/group_opened": Said(
        "Measured at a task's end: 1 if its instructions opened a group of adapters, 0 if they "
        "continued one.",
        "opened",
    ),
    "method/group_similarity": Said(
        "Measured at a task's end: similarity of its instructions to the nearest group's.",
        "similarity",
    ),
    "method/budget_share": Said(
        "Measured at a task's end: the share of the update within its budget.", "share kept"
    ),
    "method/averaging_weight": Said(
        "Measured: the weight on the old average, a mean over tensors. Near 0 nothing is averaged, "
        "near 1 the average hardly moves.",
        "weight",
    ),
    "method/averaging_outside": Said(
        "Measured: share of tensors whose weight was out of range.", "share of tensors"
    ),
    "gauge/flip_share": Said(
        "Share of hidden states on general texts that left the interval (low, middle, high) in "
        "which the base model's were.",
        _SHARE,
    ),
    "rl/reward": Said(
        "What a completion earns, all rewards together: a mean over the step’s.", "reward"
    ),
    "rl/reward_std": Said(
        "Standard deviation of the reward among the completions of one prompt, a mean over "
        "prompts. Without a spread there is nothing to learn from.",
        "reward",
    ),
    "rl/dead_groups": Said(
        "Share of prompts whose completions all earned the same, so that GRPO learns nothing from "
        "them.",
        "share of groups",
    ),
    "rl/truncated": Said(
        "Share of completions that were cut at max_new_tokens.", "share of completions"
    ),
    "rl/length": Said("Tokens of a completion, a mean.", "tokens"),
    "rl/entropy": Said(
        "How undecided the model is at each token that it wrote, a mean. Near 0 all completions of "
        "a prompt are alike, and exploring ends.",
        NATS,
    ),
    "rl/clipped": Said(
        "Share of tokens whose ratio to the policy that sampled them was out of range (rl.clip); 0 "
        "with one pass over the completions.",
        "share of tokens",
    ),
    **{
        f"rl/seconds_{phase}": Said(f"Seconds of a step in which {what}.", "seconds a step")
        for phase, what in (
            ("generation", "completions are written"),
            ("rewards", "they are judged"),
            ("reference", "a frozen model reads them, for a method that compares with one"),
            ("update", "the policy is trained on them: all else"),
        )
    },
    "gauge/kl": Said("KL from the base model's predictions on rows of this task.", NATS),
}
PARTS = {
    "rl/reward/": Said(
        "What one reward gives, by its name: a mean over the step’s completions, before "
        "it is weighed.",
        "reward",
    ),
    "until/": Said(
        "What answers sampled at temperature 1 earn by one reward, a mean, at each look.", "reward"
    ),
}
"""What names of the log begin with that end in a reward’s name."""
WEIGHTS = (
    "What the term was multiplied by before it was added to the loss: the method's weight and, of "
    "GeRe, the general rows' share of all rows of the step. A figure without a weight is measured "
    "only and no part of the loss, or a term that is 0."
)
SHARES = (
    "Of a step whose gradient was clipped: the norm of each term's gradient, or of that of the "
    "task's own loss, over the sum of all these norms. Measured once in ten steps at the most."
)
_WEIGHT, _GRADIENT_SHARE = "_weight", "_gradient_share"


def weight_of(key: str) -> str:
    """The name under which a term's weight is logged."""
    return f"{key}{_WEIGHT}"


def is_weight(key: str, keys: Iterable[str]) -> bool:
    """Whether `key` is the weight of a term that is logged too, and no figure of its own."""
    return key.endswith(_WEIGHT) and key.removesuffix(_WEIGHT) in keys


def said_of(key: str) -> Said | None:
    """What a logged figure is; None of a foreign method's."""
    for begin, said in PARTS.items():
        if key.startswith(begin):
            return said
    return EXPLAINED.get(key)


def unit_of(key: str) -> str:
    """The unit of a logged figure; that of a foreign method's is not known."""
    if key.endswith(_GRADIENT_SHARE):
        return "share of gradients"
    return "" if (said := said_of(key)) is None else said.unit


def explained(keys: Iterable[str]) -> list[tuple[str, str]]:
    """(name, sentence) of the logged figures that are known; a foreign method's are not."""
    every = list(keys)
    found = [
        (_printed(k), said.what)
        for k in every
        if (said := said_of(k)) is not None and not k.startswith(tuple(PARTS))
    ]
    for begin, said in PARTS.items():
        if any(key.startswith(begin) for key in every):
            found.append((f"{_printed(begin)}NAME", said.what))
    if any(is_weight(key, every) for key in every):
        found.append(("weight", WEIGHTS))
    if any(key.endswith(_GRADIENT_SHARE) for key in every):
        found.append(("gradient_share", SHARES))
    return found


def _printed(key: str) -> str:
    """A name of the log without its group, where that says nothing more."""
    return key if key.startswith("until/") else key.partition("/")[2] or key
