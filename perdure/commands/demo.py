"""`perdure demo`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def run(
    methods: Sequence[str],
    quick: bool,
    base: str | None,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    from perdure.demo import demo

    demo([name.strip() for name in methods if name.strip()], quick, base, seed, out, as_json)
