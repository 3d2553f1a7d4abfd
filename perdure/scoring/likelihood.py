"""Log-likelihood of continuations, computing what sequences have in common only once.

Scoring ten labels for each of many prompts reads mostly the same tokens: the labels' prompt, and
the instruction that all prompts begin with. `TokenTree` merges sequences into one tree, in which
a node is a token after all the tokens above it. The tree runs through the model as one row with
a 4-D mask: each node attends to its ancestors only and has its depth as position, so its output
is what it would be in a row of its own. Nothing is padded, and nothing is computed twice.

    The answer is [yes|no], after two prompts:    A ─ B ─┬─ C ─┬─ yes        9 + 5 tokens in rows
                                                         │     └─ no         of their own,
                                                         └─ D ─┬─ yes        4 nodes here: leaves
                                                               └─ no         are only predicted

Not every model can do this. `tree_limit` decides: by the model's configuration (attention
windows), and by a trial with a few tokens, once a model. The others get plain padded rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from perdure.errors import TrainingError
from perdure.models.anatomy import unwrapped, window
from perdure.processes import over_ranks

Pair = tuple[Sequence[int], Sequence[int]]  # token ids: what is given, what is scored after it

# More nodes make attention (all nodes with all) dear, fewer repeat the common prefix more often.
TREE_TOKENS_CPU = 512
TREE_TOKENS_GPU = 2048


class TokenTree:
    """Sequences merged by common prefixes, in the order of insertion; parents come first."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, pair: Pair) -> list[int]:
        """Insert a sequence but its last token, which is only predicted.

        Returns: for each continuation token the node whose output predicts it.
        """
        given, scored = pair
        node, path = -1, []
        for token in (*given, *scored[:-1]):
            child = self._children.get((node, token))
            if child is None:
                child = self._children[node, token] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(node)
            node = child
            path.append(node)
        return path[len(given) - 1 :]

    def missing(self, pair: Pair) -> int:
        """Count the nodes that `add` would make."""
        given, scored = pair
        node, length = -1, len(given) + len(scored) - 1
        for depth, token in enumerate((*given, *scored[:-1])):
            child = self._children.get((node, token))
            if child is None:
                return length - depth
            node = child
        return 0

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return token ids (1, nodes), positions (1, nodes), and who sees whom (nodes, nodes)."""
        sees = torch.zeros(len(self), len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                sees[node, : parent + 1] = sees[parent, : parent + 1]
            sees[node, node] = True
        positions = sees.sum(1) - 1  # depth: the number of ancestors
        ids = torch.tensor([self.tokens], device=device)
        return ids, positions[None].to(device), sees.to(device)


@dataclass
class Batch:
    """One forward pass: which pairs, by index, and as a tree or as padded rows."""

    indices: list[int] = field(default_factory=list)
    as_tree: bool = True


def plan(pairs: Sequence[Pair], *, limit: int, batch_size: int, tokens: int) -> list[Batch]:
    """Divide pairs into forward passes, the same on every process.

    Args:
        limit: nodes that a tree may have for this model (`tree_limit`); longer sequences get rows.
        batch_size: different prompts in a tree, sequences in a batch of rows.
        tokens: nodes a tree should not exceed; a longer sequence gets a tree of its own.
    """
    trees: list[Batch] = []
    rows: list[int] = []
    tree, prompts = TokenTree(), set[Any]()
    for i, pair in enumerate(pairs):
        length = len(pair[0]) + len(pair[1]) - 1
        if length > limit:
            rows.append(i)
            continue
        full = len(tree) + tree.missing(pair) > min(limit, tokens)
        if not trees or full or (len(prompts) == batch_size and tuple(pair[0]) not in prompts):
            trees.append(Batch())
            tree, prompts = TokenTree(), set()
        tree.add(pair)
        prompts.add(tuple(pair[0]))
        trees[-1].indices.append(i)
    rows.sort(key=lambda i: -(len(pairs[i][0]) + len(pairs[i][1])))
    return trees + [
        Batch(rows[k : k + batch_size], as_tree=False) for k in range(0, len(rows), batch_size)
    ]


def log_likelihoods(model: nn.Module, pairs: Sequence[Pair], *, as_tree: bool) -> list[Tensor]:
    """Return for each pair the log-probability of every continuation token, (tokens,) fp32 on CPU.

    One forward pass, without gradients. `pairs` have at least one given and one scored token.

    Raises:
        TrainingError: a log-probability is NaN: the model's weights are broken.
    """
    with torch.no_grad():
        found = (_tree if as_tree else _rows)(model, pairs)
    lengths = [len(scored) for _, scored in pairs]
    if found.isnan().any():
        raise TrainingError(
            "scoring: the model gives NaN as log-probability",
            "its weights are broken; a lower train.learning_rate may help",
        )
    return list(found.cpu().split(lengths))


def score_pairs(
    model: nn.Module,
    pairs: Sequence[Pair],
    *,
    batch_size: int,
    accelerator: Any = None,
    on_progress: Callable[[float], None] | None = None,
) -> list[Tensor]:
    """Return `log_likelihoods` of all pairs, in order, with as few forward passes as fit.

    Args:
        batch_size: different prompts in a forward pass.
        accelerator: under several processes each takes its share, and all return the same.
        on_progress: told the share that is done, up to 1.
    """
    device = unwrapped(model).device
    tokens = TREE_TOKENS_CPU if device.type == "cpu" else TREE_TOKENS_GPU
    batches = plan(pairs, limit=tree_limit(model), batch_size=batch_size, tokens=tokens)

    def work(batch: Batch) -> list[Tensor]:
        return log_likelihoods(model, [pairs[i] for i in batch.indices], as_tree=batch.as_tree)

    def done(count: int) -> None:
        if on_progress is not None:
            on_progress(count / len(batches))

    found = over_ranks(batches, work, accelerator=accelerator, on_progress=done)
    by_index = {
        i: one
        for batch, part in zip(batches, found, strict=True)
        for i, one in zip(batch.indices, part, strict=True)
    }
    return [by_index[i] for i in range(len(pairs))]


def tree_limit(model: nn.Module) -> int:
    """Return how many nodes a `TokenTree` may have for this model; 0 if it takes none.

    A model takes trees if its attention follows a 4-D mask and given positions: found by
    comparing a small tree with full rows, once for each model and attention implementation.
    Layers that see only a window are right as long as the whole tree fits in the window,
    whether they count positions or places in the row.
    """
    base = unwrapped(model)
    key = (str(getattr(base.config, "_attn_implementation", "")), model is base)
    known = _LIMITS.setdefault(base, {})
    if key not in known:
        known[key] = window(base.config) if _follows_mask(model) else 0
    return known[key]


_LIMITS: WeakKeyDictionary[nn.Module, dict[tuple[str, bool], int]] = WeakKeyDictionary()


def _tree(model: nn.Module, pairs: Sequence[Pair], causal: bool = False) -> Tensor:
    """Log-probabilities of all continuation tokens in order, (tokens,).

    `causal` is the mask that is wrong here, as a measure of what a wrong mask does.
    """
    tree = TokenTree()
    places = [node for pair in pairs for node in tree.add(pair)]
    base = unwrapped(model)
    ids, positions, sees = tree.tensors(base.device)
    mask = (torch.ones_like(sees).tril() if causal else sees)[None, None]
    if base.config._attn_implementation != "sdpa":  # the others add the mask to their scores
        low = torch.finfo(base.dtype).min
        mask = torch.zeros_like(mask, dtype=base.dtype).masked_fill(~mask, low)
    inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
    return _predicted(model, inputs, [0] * len(places), places, pairs)


def _rows(model: nn.Module, pairs: Sequence[Pair]) -> Tensor:
    """As `_tree`, with a row for each pair. Padding is on the right: causal models ignore it."""
    device = unwrapped(model).device
    ids = [torch.tensor([*given, *scored[:-1]], device=device) for given, scored in pairs]
    inputs = {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
    }
    where = [
        (row, len(given) - 1 + k)
        for row, (given, scored) in enumerate(pairs)
        for k in range(len(scored))
    ]
    return _predicted(model, inputs, [row for row, _ in where], [k for _, k in where], pairs)


def _predicted(
    model: nn.Module,
    inputs: dict[str, Tensor],
    rows: Sequence[int],
    places: Sequence[int],
    pairs: Sequence[Pair],
) -> Tensor:
    """Run the model; return log-probabilities of the scored tokens at (row, place), fp32."""
    device = inputs["input_ids"].device
    target = torch.tensor([t for _, scored in pairs for t in scored], device=device)
    keep, kept = torch.tensor(places, device=device).unique(return_inverse=True)
    # The head is a fifth of a small model: it runs where something is predicted, if it can.
    head_takes = inspect.signature(type(unwrapped(model)).forward).parameters
    some = {"logits_to_keep": keep} if "logits_to_keep" in head_takes else {}
    logits = model(**inputs, use_cache=False, **some).logits  # (rows, kept, vocab)
    if logits.shape[1] != len(keep):
        logits = logits[:, keep]
    at = torch.tensor(rows, device=device) * len(keep) + kept
    logits = logits.flatten(0, 1)
    used, of_used = at.unique(return_inverse=True)  # labels of a prompt share its last place
    totals = torch.cat([logits[part].float().logsumexp(-1) for part in used.split(256)])
    return logits[at, target].float() - totals[of_used]


def _follows_mask(model: nn.Module) -> bool:
    """Try a small tree. It must come much nearer to full rows than a wrong mask does."""
    vocab = unwrapped(model).config.get_text_config().vocab_size
    token = [(7919 * i + 13) % vocab for i in range(24)]
    one, two = token[:6], [*token[:3], *token[6:9]]
    pairs: list[Pair] = [(one, token[k : k + 3]) for k in (9, 12, 15)]
    pairs += [(two, token[k : k + 3]) for k in (18, 21)]
    exact = torch.autocast(unwrapped(model).device.type, enabled=False)
    with torch.no_grad(), exact:
        rows = _rows(model, pairs)
        try:
            trees, wrong = _tree(model, pairs), _tree(model, pairs, causal=True)
        except Exception:  # a mask or positions that the model has no place for, in its own words
            return False
    share = 0.05 if rows.dtype == unwrapped(model).dtype else 0.25  # half precision is noisy
    return bool((trees - rows).abs().max() <= share * (wrong - rows).abs().max())
