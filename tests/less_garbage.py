"""What is imported is no garbage: Python's collector need not go over it again and again.

A trainer collects garbage four times in a small run, and each time Python goes over the million
objects that the imports of torch, transformers and all test modules have made. That was half of
such a run's CPU time.
"""

from __future__ import annotations

import gc
import sys

import pytest

MANY = 200
"""So many new modules are a library of the large ones, which tests import late."""
_seen = 0


def settle() -> None:
    """Collect what is garbage now, and take all that is left out of later collections."""
    global _seen
    _seen = len(sys.modules)
    gc.collect()
    gc.freeze()


def pytest_configure() -> None:
    gc.disable()  # while tests are collected: what their imports make stays


def pytest_collection_finish() -> None:
    settle()
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before the fixtures, whose objects may become garbage
def pytest_runtest_setup() -> None:
    if len(sys.modules) > _seen + MANY:
        settle()
