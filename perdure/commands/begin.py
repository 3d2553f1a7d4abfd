"""What a command does, said before anything slow is imported."""

from __future__ import annotations

import os
import sys


def say(text: str) -> None:
    """Print a line to stderr at once, of several processes by the first one only."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)
