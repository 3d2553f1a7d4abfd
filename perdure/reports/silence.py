"""Nothing on the terminal while a caller of the Python API works without a display."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silent() -> Iterator[None]:
    """No bar, no log line and no warning of the libraries inside the block; afterwards as before.

    Log lines of "perdure" still reach handlers that the program has set up itself.
    """
    import datasets
    from huggingface_hub import utils as hub
    from transformers.utils import logging as transformers

    ours, nowhere = logging.getLogger("perdure"), logging.NullHandler()
    shown = [of for of in (datasets, hub) if not of.are_progress_bars_disabled()]
    bars, level = transformers.is_progress_bar_enabled(), transformers.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for of in shown:
            of.disable_progress_bars()
        transformers.disable_progress_bar()
        transformers.set_verbosity_error()
        ours.addHandler(nowhere)  # without any, Python prints warnings to stderr
        try:
            yield
        finally:
            ours.removeHandler(nowhere)
            transformers.set_verbosity(level)
            if bars:
                transformers.enable_progress_bar()
            for of in shown:
                of.enable_progress_bars()
