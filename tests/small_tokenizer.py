"""A tokenizer of a few hundred tokens with a chat template, made from Python's own reference."""

from perdure.testing import CHAT_TEMPLATE, make_tokenizer

__all__ = ["CHAT_TEMPLATE", "make_tokenizer"]
