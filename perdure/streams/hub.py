"""The hub, asked once: where it cannot be reached, nothing is tried again.

The hub's library tries five times and waits half a minute in between, for each file. So before it
is used one request is made, and if that gets no answer, the library works as under
HF_HUB_OFFLINE: with what is in its cache.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 2.0
"""Seconds that the one request may take; HF_HUB_ETAG_TIMEOUT, where it is set, instead."""
_REMEMBERED = 60.0  # seconds for which an answer holds
_answers: dict[str, tuple[float, bool]] = {}


@contextmanager
def asked_once() -> Iterator[None]:
    """Use the hub inside the block: offline, where one request finds that it does not answer."""
    from huggingface_hub import constants

    if constants.is_offline_mode() or _answers_now(constants.ENDPOINT):
        yield
        return
    known = "datasets" in sys.modules  # half a second to import, and it may not be needed
    data = sys.modules["datasets"].config if known else None
    before = data.HF_HUB_OFFLINE if data is not None else False
    constants.HF_HUB_OFFLINE = True
    if data is not None:
        data.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False
        if "datasets" in sys.modules:  # also where it was imported inside the block
            sys.modules["datasets"].config.HF_HUB_OFFLINE = before


def _answers_now(endpoint: str) -> bool:
    """Whether a server is there; whatever it answers, its own library reads."""
    when, there = _answers.get(endpoint, (-_REMEMBERED, False))
    if time.monotonic() - when < _REMEMBERED:
        return there
    patience = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or PATIENCE)
    heard: list[int] = []

    def ask() -> None:
        from huggingface_hub import get_session

        try:
            heard.append(get_session().head(endpoint, timeout=patience).status_code)
        except Exception:  # no name, no route, no certificate, no time: nothing was heard
            return

    # A name that no server resolves can take longer than any timeout of the request itself.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience)
    _answers[endpoint] = (time.monotonic(), bool(heard))
    return bool(heard)
