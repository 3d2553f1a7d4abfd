"""Train on each task in turn and do nothing against forgetting: the lower bound.

Every other method must beat it on earlier tasks and on general ability.

    L = CE(task)
Cost: none.
"""

from __future__ import annotations

from typing import ClassVar

from perdure.protocol.method import Method


class Sequential(Method):
    """Plain fine-tuning, one task after another."""

    noop_options: ClassVar = {}
