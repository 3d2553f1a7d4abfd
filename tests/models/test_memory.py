"""What is kept, and what Python's search for unreachable objects passes over."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from perdure.models.memory import left_uncollected

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """The tests freeze what stands themselves (`less_garbage`)."""
    gc.unfreeze()
    yield
    gc.freeze()


class Ring:
    """An object that only a search finds unreachable."""

    def __init__(self) -> None:
        self.own = self


def test_what_stood_before_is_passed_over_and_what_came_after_is_not() -> None:
    before = Ring()
    seen = weakref.ref(before)
    with left_uncollected():
        assert gc.get_freeze_count() > 0
        del before
        came = Ring()
        after = weakref.ref(came)
        del came
        gc.collect()
        assert seen() is not None
        assert after() is None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert seen() is None


def test_an_error_ends_it_and_a_callers_own_freeze_stays() -> None:
    with pytest.raises(RuntimeError, match="stop"), left_uncollected():
        raise RuntimeError("stop")
    assert gc.get_freeze_count() == 0
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        with left_uncollected():
            assert gc.get_freeze_count() == count
        assert gc.get_freeze_count() == count
    finally:
        gc.unfreeze()
