"""Statistics of the audit: is the mean change of paired items above, below or around a margin?

Everything here is about one number an item: the change from base to tuned, turned so that more is
better. The question is one of non-inferiority: with margin > 0,

    kept       the interval of the mean change lies above -margin
    lost       it lies below -margin
    undecided  it holds -margin

**Interval.** A Bayesian bootstrap over the pairs (Rubin 1981: resampling weights are Dirichlet
instead of multinomial) with one imagined item more, the worst that an unseen item could be:

    low  = alpha quantile of      w_1 d_1 + ... + w_n d_n + w_0 * worst,   w ~ Dirichlet(1, ..., 1)
    high = (1 - alpha) quantile of the same with `best` for `worst`

For right or wrong answers of one model it is exactly Clopper and Pearson's bound, for items that
all changed by the same it is the "rule of three" (n items without a drop leave room for a share of
3/n that drops), and for many items it is the ordinary bootstrap. The bound is due to Gaffke (2005);
Learned-Miller and Thomas (2019, arXiv 1905.06208) conjecture, and no one has found an exception,
that the chance of a wrong bound is at most alpha for every distribution between `worst` and `best`,
at every n. A percentile bootstrap without the imagined item has no such property: five equal items
give it an interval of width 0.

**Items that belong together.** Five questions on one passage say less than five passages do, so
the weights are then those of groups, and the mean over items is a ratio of weighted sums:

    low  = alpha quantile of      (w_1 S_1 + ... + w_G S_G + w_0 M worst)
                                / (w_1 m_1 + ... + w_G m_G + w_0 M),       w ~ Dirichlet(1, ..., 1)

S_g is the sum of the changes of a group, m_g its number of items, and the imagined group has the
size M of the largest group seen, each of its items as bad as an item can be. The promise is the
same, as the question is: "is the mean change at most -margin?" is "is the mean of
X_g = S_g + margin m_g at most 0?", the groups are independent draws, no X_g lies below
M (worst + margin), and a draw's ratio is above -margin exactly if its weighted mean of X is above
0. So the bound is Gaffke's for X, at every margin, whatever the correlation within a group, and
also where large groups change more than small ones. What is assumed is that no group of the
population is larger than the largest one seen. With groups of one item it is the interval above.

**Several measures.** Bonferroni: each bound is taken at alpha / measures. Unless its true change is
exactly -margin, a measure can be given only one false verdict (`kept` if the change is below,
`lost` if it is above), with probability at most alpha / measures. So the probability of any false
verdict among all is at most alpha, however the measures depend on one another; and with true
changes of exactly -margin, that of any false `kept`, and of any false `lost`. Holm's step-down
would gain nothing: of the two claims about a measure one is always wrong, so as many claims as
there are measures stay to be guarded after each step.

No torch here; numpy and scipy only.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["kept", "lost", "undecided"]
Array = NDArray[np.float64]

DRAWS = 20_000
"""Bootstrap draws: at alpha 0.01 the tail holds 200 of them."""
UNSEEN_MARGINS, UNSEEN_SPREAD = 5.0, 1.5
"""Without natural limits (nats), an unseen item is imagined at the larger of 5 margins and 1.5
times the largest change seen."""
MOST_ITEMS = 10_000_000
_BLOCK = 4_000_000  # random numbers at once: 32 MB


def shared_alpha(alpha: float, measures: int) -> float:
    """Bonferroni's share of `alpha` for each bound of each measure."""
    return alpha / max(measures, 1)


def imagined_limit(change: Array, margin: float) -> Array:
    """How far an unseen item may lie from 0 where the unit has no limits.

    An assumption, not a theorem: a larger change that hides in texts unlike all those seen is
    missed. No bound of a mean without limits holds at every distribution, at any number of items
    (Bahadur and Savage 1956), so a verdict in nats is one about texts like those measured.

    Args:
        change: (..., items), any unit.
    Returns: (...), at least 5 margins.
    """
    return np.maximum(UNSEEN_SPREAD * np.abs(change).max(axis=-1), UNSEEN_MARGINS * margin)


def bootstrap_bounds(
    change: Array,
    alpha: float,
    worst: float | Array,
    best: float | Array,
    *,
    groups: NDArray[np.int_] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[Array, Array]:
    """One-sided lower and upper bounds of the mean change, each wrong with probability <= alpha.

    Args:
        change: (..., items); leading dimensions are separate samples, which share the weights.
        alpha: of each bound; together they are a (1 - 2 alpha) interval.
        worst, best: what one imagined item more is, (...) or a number.
        groups: (items,), the number of each item's group, as `group_numbers` gives them; None: each
            item is its own. The imagined group is as large as the largest.
        draws: bootstrap draws; the order statistics are rounded outwards.
    Returns: low and high, each (...), in the unit of `change`.
    Raises:
        ValueError: no item, or too few draws for this alpha.
    Source: see the module's docstring.
    """
    change = np.asarray(change, dtype=np.float64)
    sums, sizes = group_sums(change, groups)
    return ratio_bounds(sums, sizes, alpha, worst, best, draws=draws, seed=seed)


def ratio_bounds(
    sums: Array,
    sizes: Array,
    alpha: float,
    worst: float | Array,
    best: float | Array,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[Array, Array]:
    """`bootstrap_bounds` of groups that are summed already.

    Args:
        sums: (..., groups), the sum of the changes of each group's items.
        sizes: (..., groups), the number of items of each, or its leading dimensions left out.
    """
    n = sums.shape[-1]
    rank = math.floor(alpha * (draws + 1))  # of the order statistic, counted from 1
    if n == 0 or rank < 1:
        raise ValueError(f"{n} items and {draws} draws at alpha {alpha}")
    shape = sums.shape[:-1]
    flat = sums.reshape(-1, n)
    largest = sizes.max(axis=-1, keepdims=True)
    # Equal sizes are taken out of numerator and denominator; the weights then sum to 1.
    equal = bool((sizes == largest).all())
    counts = np.broadcast_to(sizes, sums.shape).reshape(-1, n)
    most = np.broadcast_to(largest, (*shape, 1)).reshape(-1, 1)
    if equal:
        flat = flat / most
    totals = np.empty((len(flat), draws))
    weighed = np.empty((0 if equal else len(flat), draws))
    extra = np.empty(draws)
    at = 0
    for weights in _weights(n, draws, seed):
        step, seen = len(weights), weights[:, :n].T
        totals[:, at : at + step] = flat @ seen
        if not equal:
            weighed[:, at : at + step] = counts @ seen
        extra[at : at + step] = weights[:, n]
        at += step
    lowest = np.broadcast_to(np.asarray(worst, dtype=np.float64), shape).reshape(-1, 1)
    highest = np.broadcast_to(np.asarray(best, dtype=np.float64), shape).reshape(-1, 1)

    def means(imagined: Array) -> Array:
        if equal:
            return np.asarray(totals + imagined * extra)
        return np.asarray((totals + imagined * most * extra) / (weighed + most * extra))

    low = np.partition(means(lowest), rank - 1, axis=1)[:, rank - 1]
    high = np.partition(means(highest), draws - rank, axis=1)[:, draws - rank]
    return low.reshape(shape), high.reshape(shape)


def _weights(n: int, draws: int, seed: int) -> Iterable[Array]:
    """Blocks of draws, (step, n + 1), from Dirichlet(1, ..., 1), `draws` in all."""
    step = max(1, _BLOCK // (n + 1))
    if step >= draws:  # a report asks for those of the same few numbers of rows again and again
        return [_drawn(n, draws, seed)]
    rng = np.random.default_rng(seed)
    return (_dirichlet(rng, min(step, draws - at), n) for at in range(0, draws, step))


@lru_cache(maxsize=2)
def _drawn(n: int, draws: int, seed: int) -> Array:
    found = _dirichlet(np.random.default_rng(seed), draws, n)
    found.flags.writeable = False
    return found


def _dirichlet(rng: np.random.Generator, count: int, n: int) -> Array:
    # Exponentials over their sum are a draw from Dirichlet(1, ..., 1).
    weights = rng.standard_exponential((count, n + 1))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def group_sums(change: Array, groups: NDArray[np.int_] | None) -> tuple[Array, Array]:
    """Sums, (..., groups), and sizes, (groups,), of the groups of the last dimension's items."""
    n = change.shape[-1]
    if groups is None or n == 0:
        return change, np.ones(n, dtype=np.float64)
    sizes: Array = np.bincount(groups).astype(np.float64)
    flat = change.reshape(-1, n)
    sums: Array = np.stack([np.bincount(groups, one, minlength=len(sizes)) for one in flat])
    return sums.reshape(*change.shape[:-1], len(sizes)), sizes


def group_numbers(*labels: Sequence[Hashable | None]) -> NDArray[np.int_] | None:
    """Number the groups of items that share a label, in the order in which they come.

    Args:
        labels: one or more lists, (items,) each, such as the declared group and the prompt. Items
            that are alike in any of them are in one group, and so are those that a third one
            joins; None is like nothing else.
    Returns: (items,) numbers from 0 without gaps; None if every item is alone.
    """
    count = len(labels[0])
    root = list(range(count))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for one in labels:
        first: dict[Hashable, int] = {}
        for i, label in enumerate(one):
            if label is not None:
                ours, theirs = find(i), find(first.setdefault(label, i))
                root[max(ours, theirs)] = min(ours, theirs)
    numbers: dict[int, int] = {}
    found = [numbers.setdefault(find(i), len(numbers)) for i in range(count)]
    return None if len(numbers) == count else np.array(found)


def verdict_of(low: float, high: float, margin: float) -> Verdict:
    """Say on which side of -margin the interval [low, high] lies."""
    if low > -margin:
        return "kept"
    return "lost" if high < -margin else "undecided"


def items_needed(
    change: Array,
    margin: float,
    alpha: float,
    worst: float,
    best: float,
    groups: NDArray[np.int_] | None = None,
) -> int | None:
    """Items in all that would decide, if further ones were like those seen.

    "Like" is: the same mean, spread and skewness. The bound at N items is that of
    `bootstrap_bounds` with every item's weight scaled by N / n, its quantile taken from the Pearson
    III distribution with the same first three moments (exact for a single gamma, within a few
    percent elsewhere). Half of all repetitions with that many items do decide: it is the observed
    change, not the true one, that enters.

    Args:
        change: (items,).
        groups: as in `bootstrap_bounds`; further items then come in groups like those seen.
    Returns: the smallest such number, or None if it is above ten million, as it always is where
        the observed change is the margin itself.
    """
    sums, sizes = group_sums(change, groups)
    towards_kept = bool(np.mean(change) > -margin)
    imagined = float(sizes.max()) * ((worst if towards_kept else best) + margin)
    above = sums + margin * sizes  # the groups' shares of what is asked: is their mean above 0?

    def decided(count: int) -> bool:
        bound = _bound_at(above, count, alpha if towards_kept else 1 - alpha, imagined)
        return bound > 0 if towards_kept else bound < 0

    most = 1
    while not decided(most):
        if most >= MOST_ITEMS:
            return None
        most *= 2
    least = most // 2  # not decided
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if decided(middle) else (middle, most)
    return math.ceil(most * len(change) / len(sizes))


def _bound_at(change: Array, items: int, quantile: float, imagined: float) -> float:
    """Quantile of the Dirichlet mean of `items` items like `change` and an imagined one."""
    points = np.append(change, imagined)
    share = np.append(np.full(len(change), items / len(change)), 1.0)
    total = items + 1.0
    centre = float(share @ points) / total
    away = points - centre
    variance = float(share @ away**2) / (total * (total + 1))
    if variance == 0.0:
        return centre
    third = 2 * float(share @ away**3) / (total * (total + 1) * (total + 2))
    skew = third / variance**1.5
    return centre + math.sqrt(variance) * pearson3(quantile, skew)


def pearson3(quantile: float, skew: float) -> float:
    """Quantile of the Pearson III distribution of mean 0, variance 1 and this skewness: a gamma
    distribution, shifted and turned; what `scipy.stats.pearson3.ppf` gives, without its checks of
    arguments, which take a hundred times as long."""
    from scipy import special

    if abs(skew) < 1.6e-5:  # where scipy takes the normal distribution too
        return float(special.ndtri(quantile))
    shape = (2 / skew) ** 2
    share = quantile if skew > 0 else 1 - quantile
    return float(skew / 2 * special.gammaincinv(shape, share) - 2 / skew)


def mcnemar_exact(base: Array, tuned: Array) -> float:
    """Two-sided p-value of "right to wrong is as frequent as wrong to right".

    Of the items on which the two models differ, each is a coin toss under that hypothesis, so this
    is the exact binomial test of their split. It asks whether anything changed, not whether the
    change is below the margin: the verdict does not use it.

    Args:
        base, tuned: (items,) of 0 and 1.
    Source: McNemar 1947, in its exact form.
    """
    from scipy import stats

    broken = int(np.sum((base == 1) & (tuned == 0)))
    mended = int(np.sum((base == 0) & (tuned == 1)))
    if broken + mended == 0:
        return 1.0

    found: Any = stats.binomtest(broken, broken + mended, 0.5)
    return float(found.pvalue)


def is_binary(*scores: Array) -> bool:
    """Whether every score is 0 or 1."""
    return all(bool(np.isin(one, (0.0, 1.0)).all()) for one in scores)


def noise(first: float, second: float, rows: int) -> float:
    """How far apart two scores of one true value may lie by chance, 19 times in 20.

    1.96 standard errors of the difference of two means over `rows` items each, scores in [0, 1].
    Both are first shrunk towards one half by two items right and two wrong (Agresti and Caffo
    2000), or a score of 0 or 1 on a small test set would pass for certain; the bound is scaled
    back to the scores as they are. 0 if the number of rows is not known.
    """
    if rows <= 0:
        return 0.0
    errors = standard_error(np.array([first, second]), rows)
    return 1.96 * math.hypot(*errors)


def standard_error(shares: Array, rows: int) -> Array:
    """The largest standard error that a mean of `rows` shares of 0 to 1 can have; (...) both.

    As `noise` shrinks each mean and scales its error back.
    """
    shrunk = (shares * rows + 2) / (rows + 4)
    found: Array = np.sqrt(shrunk * (1 - shrunk) / (rows + 4)) * (rows + 4) / rows
    return found
