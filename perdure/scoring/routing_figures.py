"""How well requests were routed, from scored items that say which adapter answered them.

An item of a routed row has `adapter` ("base": none), `fits` (whether the request fitted a group, or
the fallback answered it), and `right`, the adapter of the group that its task was learned in, where
there is one. The figures are about requests, and never about how well they were answered.

    accuracy   the share of requests that fit a group, and are answered by the right adapter

A request that fits none is not counted as right, even where the fallback happens to be the right
adapter: how many of them are is said apart. What decides is a request's instruction, and requests
of one instruction are all routed alike, so they count as one draw: the interval is over
instructions, those of requests that were not asked yet included (`intervals.bootstrap_bounds`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from perdure.scoring.intervals import group_numbers
from perdure.scoring.resampling import Interval, mean_interval

NONE = "base"
"""What an item says where the base model answered, without an adapter."""


@dataclass(frozen=True)
class RoutingFigures:
    """See the module. `interval` is None where no request has an adapter that would be right."""

    requests: int
    """That were routed."""
    known: int
    """Of these, those whose right adapter is known."""
    right: int
    """Of the known ones: they fit, and the right adapter answered."""
    none: int
    """Of the known ones: they fit no group."""
    none_right: int
    """Of those that fit none: the fallback was the right adapter all the same."""
    instructions: int
    """Different ones among the known requests."""
    interval: Interval | None

    def words(self) -> str:
        """The same in a sentence, for a terminal."""
        if self.interval is None:
            return (
                f"{self.requests} requests were routed; none is of a task that an adapter of the "
                "pool has learned, so nobody can say which of them went right"
            )
        ends, share = self.interval, self.right / self.known
        said = (
            f"{self.right} of {self.known} requests were routed to the adapter of their task: "
            f"accuracy {share:.3f} ({ends.low:.3f} to {ends.high:.3f}, over {self.instructions} "
            f"different instruction{'' if self.instructions == 1 else 's'})"
        )
        if self.none:
            said += f"; {self.none} fit{'s' if self.none == 1 else ''} no group"
        if self.none_right:
            said += f" (the fallback had the right adapter for {self.none_right} of them)"
        if rest := self.requests - self.known:
            more = "is of a task" if rest == 1 else "are of tasks"
            said += f"; {rest} more {more} that no adapter has learned"
        return said

    def numbers(self) -> dict[str, Any]:
        """The same for `--json`."""
        ends = self.interval
        return {
            "requests": self.requests,
            "known": self.known,
            "right": self.right,
            "fit_none": self.none,
            "fit_none_right": self.none_right,
            "instructions": self.instructions,
            "accuracy": None if ends is None else ends.value,
            "low": None if ends is None else ends.low,
            "high": None if ends is None else ends.high,
        }


def fits(item: Mapping[str, Any]) -> bool:
    """Whether the request fitted a group; of a router that does not say so, whether any adapter
    answered."""
    return bool(item.get("fits", item["adapter"] != NONE))


def is_right(item: Mapping[str, Any]) -> bool:
    return fits(item) and item["adapter"] == item.get("right")


def figures(items: Iterable[Mapping[str, Any]]) -> RoutingFigures | None:
    """How the requests of some scored items were routed; None where none of them was.

    Args: items: of whatever tasks; those that were not routed are passed over.
    """
    routed = [item for item in items if "adapter" in item]
    if not routed:
        return None
    known = [item for item in routed if item.get("right")]
    strange = [item for item in known if not fits(item)]
    texts = [str(item.get("instruction") or item.get("prompt") or "") for item in known]
    interval = None
    if known:
        values = [float(is_right(item)) for item in known]
        interval = mean_interval(values, 0.0, 1.0, group_numbers(texts))
    return RoutingFigures(
        requests=len(routed),
        known=len(known),
        right=sum(map(is_right, known)),
        none=len(strange),
        none_right=sum(item["adapter"] == item["right"] for item in strange),
        instructions=len(set(texts)),
        interval=interval,
    )
