"""What a command does, said before anything slow is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def say_what(recipe: Path, check: bool, as_json: bool) -> None:
    """Print a line to stderr at once; of several processes only the first one does."""
    if not as_json and os.environ.get("RANK", "0") == "0":
        verb = "checking" if check else "reading"
        print(
            f"{verb} {recipe}, its data and its model's configuration", file=sys.stderr, flush=True
        )
