"""How much a YAML text may ask of its reader: depth, aliases, size and tags.

A few hundred brackets exhaust Python's stack, and ten aliases of ten aliases ten times over stand
for more values than any memory holds. Each is refused where it is read, with its line.
"""

from __future__ import annotations

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.constructor import ConstructorError, RoundTripConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent

from perdure.errors import brief

BYTES = 2_000_000
"""Of a whole text: reading it takes some seconds a megabyte."""
DEPTH = 40
"""Sections within sections; a recipe has seven."""
VALUES = 100_000
"""Values that a text stands for once every alias is replaced."""
_TAGS = {f"tag:yaml.org,2002:{name}" for name in
         ("str", "int", "float", "bool", "null", "seq", "map", "merge", "timestamp")}  # fmt: skip


class _Composer(Composer):
    """Builds no tree that is too deep or too large."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader=loader)
        self._inside: list[int] = []
        """Values found so far in each node that is being composed."""
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.parser.peek_event()
        if len(self._inside) >= DEPTH:
            what = f"more than {DEPTH} brackets or sections lie inside each other"
            raise ComposerError(None, None, what, event.start_mark)
        tag = getattr(event, "tag", None)
        if tag is not None and str(tag) not in _TAGS | {"!"}:
            what = f"the tag {brief(tag)} is not read: write the plain value"
            raise ComposerError(None, None, what, event.start_mark)
        self._inside.append(1)
        node = super().compose_node(parent, index)
        size = self._inside.pop()
        if isinstance(event, AliasEvent):
            if id(node) not in self._sizes:
                what = f"*{brief(event.anchor)} contains itself"
                raise ComposerError(None, None, what, event.start_mark)
            size = self._sizes[id(node)]
        self._sizes[id(node)] = size
        if self._inside:
            self._inside[-1] += size
        if sum(self._inside) > VALUES:
            what = f"stands for more than {VALUES:,} values, with all that its aliases repeat"
            raise ComposerError(None, None, what, event.start_mark)
        return node


class _Constructor(RoundTripConstructor):
    """Says at which line a value stands that cannot be made of its text."""

    def construct_non_recursive_object(self, node: Any, tag: str | None = None) -> Any:
        try:
            return super().construct_non_recursive_object(node, tag)
        except YAMLError:
            raise
        except Exception as error:  # whatever the reader's conversions raise
            value = node.value if isinstance(node.value, str) else ""
            shown = f": {brief(value)}" if value else ""
            what = f"cannot be read{shown}: {brief(error) or type(error).__name__}"
            raise ConstructorError(None, None, what, node.start_mark) from error


def load_yaml(text: str) -> Any:
    """The tree of a YAML text, as ruamel's round-trip reader makes it.

    Raises: ruamel.yaml.error.YAMLError: broken, or beyond the limits above.
    """
    if len(text) > BYTES:
        raise YAMLError(f"{len(text):,} characters are more than the {BYTES:,} that are read")
    yaml = YAML(typ="rt")
    yaml.Composer, yaml.Constructor = _Composer, _Constructor
    return yaml.load(text)
