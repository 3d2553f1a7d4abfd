"""Special tokens of a tokenizer, and where text that is no template's holds them."""

from __future__ import annotations

import re
from typing import Any


def special_tokens(tokenizer: Any) -> set[str]:
    """All of them: those with a role, such as the end, and those that are only marked as such."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {str(token) for token in added if token.special}
    return found | {str(token) for token in tokenizer.all_special_tokens}


def special_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """What finds a special token in a text, the longest that begins there; None: it has none."""
    tokens = [token for token in special_tokens(tokenizer) if token.strip()]
    longest = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest))) if tokens else None
