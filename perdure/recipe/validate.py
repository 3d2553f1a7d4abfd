"""Validate a recipe's data and find every mistake at once.

Sections are validated independently of each other, so one wrong key hides no other section's
mistakes; rules between sections are looked at when all sections are right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from perdure.recipe.mistakes import Mistake, mistakes_in
from perdure.recipe.schema import Recipe
from perdure.recipe.section import Judge


def validate(
    data: Mapping[str, Any], judge: Judge | None = None
) -> tuple[Recipe | None, list[Mistake]]:
    """Validate plain data; returns the recipe if nothing is wrong, and all that is.

    Args: judge: knows what the recipe alone cannot; None: that is not looked at.
    """
    try:
        return Recipe.model_validate(dict(data), context=judge), []
    except ValidationError as error:
        once = {(m.key, m.what): m for m in mistakes_in(error, data, Recipe)}
        return None, list(once.values())
