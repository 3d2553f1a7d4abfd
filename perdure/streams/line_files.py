"""Text files that are aligned line by line, a column each, as corpora of translations come.

train: {source: eng.txt, target: fra.txt}
"""

from __future__ import annotations

from collections.abc import Mapping

from perdure.streams.sources import Reader, Reading
from perdure.streams.tables import Record, Table, shown
from perdure.streams.text_files import text_lines


def line_table(reader: Reader, files: Mapping[str, str], how: Reading) -> Table | None:
    """The table of files that belong together; None if a mistake was noted.

    A record's place is its line in the first file. A line with nothing in it is an empty cell, so
    that no line behind it moves.

    Args: files: the file of each column; they may have any ending, and are text.
    """
    texts = {column: reader.text(file, how) for column, file in files.items()}
    lines = {column: text_lines(text) for column, text in texts.items() if text is not None}
    if len(lines) < len(files):
        return None
    names = {column: shown(reader.folder / file) for column, file in files.items()}
    first, *others = files
    if any(len(lines[column]) != len(lines[first]) for column in others):
        what = f"{names[first]}: {len(lines[first])} lines, and "
        what += " and ".join(f"{names[column]} has {len(lines[column])}" for column in others)
        remedy = "line 1 of each file belongs to line 1 of the others; only a line feed ends a line"
        reader.mistakes.add(names[first], what, remedy)
        return None
    if not lines[first]:
        remedy = "one line for each example is needed"
        reader.mistakes.add(names[first], f"{names[first]}: empty: no lines", remedy)
        return None
    records = [
        Record(f"{names[first]}:{number}", dict(zip(files, cells, strict=True)))
        for number, cells in enumerate(zip(*lines.values(), strict=True), start=1)
    ]
    return Table(", ".join(names.values()), tuple(files), records)
