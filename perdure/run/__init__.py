"""The run directory, and what it says of the machine that it was made on."""

from perdure.run.directory import Run

__all__ = ["Run"]
