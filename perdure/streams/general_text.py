"""General text: a part that methods may replay, and a part that only measures.

It comes from Python's reference, a file, or a hub data set, which is streamed and not downloaded.
The part to measure on may have a source of its own, so that a method that replays some source
is not praised for having learned that source.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.recipe.general import TEXT_FILES
from perdure.streams.cells import CellError, as_text, is_empty, one_spaced
from perdure.streams.named.demo import pydoc_texts
from perdure.streams.rows import shuffle_key
from perdure.streams.sources import Reader, Reading
from perdure.streams.tables import choices, shown
from perdure.streams.task import GeneralText

if TYPE_CHECKING:
    from perdure.recipe.general import GeneralConfig

logger = logging.getLogger("perdure")


def general_text(config: GeneralConfig, reader: Reader, seed: int) -> GeneralText:
    """Read general text; what is wrong with it becomes a mistake of `reader`."""
    apart, before = config.held_out_source, len(reader.mistakes)
    replay, held_out, name = _sides(config, config.source, reader, seed)
    names = {"replay_rows": name, "held_out_rows": name}
    if apart:
        every = [*held_out, *replay]
        _, held_out, names["held_out_rows"] = _sides(config, apart, reader, seed)
        seen = {one_spaced(text) for text in held_out[: config.held_out_rows]}
        replay = [text for text in every if one_spaced(text) not in seen]
    if len(reader.mistakes) > before:
        return GeneralText()
    for key, there in (("held_out_rows", held_out), ("replay_rows", replay)):
        count = getattr(config, key) if names[key] else 0
        if len(there) < count:
            what = f"general.{key}: {count} texts wanted, but {names[key]} has {len(there)} for it"
            reader.mistakes.add("general", what, "ask for fewer, or give more text")
    source = "; measured on ".join(filter(None, dict.fromkeys(names.values())))
    return GeneralText(
        tuple(replay[: config.replay_rows]), tuple(held_out[: config.held_out_rows]), source
    )


def _sides(
    config: GeneralConfig, source: str, reader: Reader, seed: int
) -> tuple[list[str], list[str], str]:
    """A source's texts to replay and to hold out, and its name.

    The same texts are held out, however many are replayed.
    """
    if source == "none":
        return [], [], ""
    if source == "pydoc":
        text = pydoc_texts(seed)
        return list(text.replay), list(text.held_out), text.source
    if source.lower().endswith(TEXT_FILES):
        name, how = shown(reader.folder / source), Reading(None, config.encoding, whose="general's")
        texts = file_texts(reader, source, config.column, how=how)
        once = {one_spaced(text): text for text in texts or ()}
        order = [once[text] for text in sorted(once, key=lambda text: shuffle_key(seed, text))]
    else:
        name, wanted = source, config.replay_rows + config.held_out_rows
        drawn = reader.hub_texts(source, config.subset, config.split, config.column, wanted, seed)
        order = drawn or []
    return order[config.held_out_rows :], order[: config.held_out_rows], name


def file_texts(
    reader: Reader,
    source: str,
    column: str,
    key: str = " (general.column)",
    how: Reading = Reading(whose=""),
) -> list[str] | None:
    """The texts of a file: paragraphs of .txt, else cells of one column.

    Args:
        key: where the user names the column, for a message.
        how: its encoding, as far as the user names one.
    Returns: None if a mistake was noted.
    """
    name = shown(reader.folder / source)
    if Path(source).suffix.lower() == ".txt":
        content = reader.text(source, how)
        if content is None:
            return None
        texts = [block.strip() for block in re.split(r"\n\s*\n", content)]
    else:
        table = reader.file(source, how._replace(needed=(column,)))
        if table is None:
            return None
        if column not in table.columns:
            what = f'{name}: no column "{column}"{key}'
            reader.mistakes.add(name, what, choices(column, table.columns, "columns there are"))
            return None
        before, texts = len(reader.mistakes), []
        for record in table.records:
            value = record.values.get(column)
            try:
                texts.append("" if is_empty(value) else as_text(value, column).strip())
            except CellError as error:
                reader.mistakes.add(name, f"{record.place}: {error.what}", error.remedy)
        if len(reader.mistakes) > before:
            return None
        if any(texts) and not all(texts):
            told = "%s: %d of %d rows are left out, as there is nothing in them"
            logger.warning(told, name, texts.count(""), len(texts))
    if not any(texts):
        reader.mistakes.add(name, f"{name}: empty: no text")
        return None
    return [text for text in texts if text]
