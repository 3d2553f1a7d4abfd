"""Take back a part of a fine-tuning: less of the update, general ability regained, the task kept.

    found = repair("base", "tuned", tasks, texts, out="tuned-repaired")
    print(found.chosen, found.report)

    candidates   weights between base and tuned: rewinding, a factor by layer group, pruning
    rows         texts and test rows, halved: one half searches, the other reports
    line         the two models loaded, and one model that takes any weights between them
    meter        the score of a candidate
    choice       which candidates are tried, and which is taken
    search       all of it, in order
    polish       a few steps of `gere` afterwards, if asked for
    result       what was found: tables and JSON
    curve        the trade-off as a picture
    output       the folder that is written

Importing this package loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.lazy import lazily

if TYPE_CHECKING:
    from perdure.repair.choice import Grid as Grid
    from perdure.repair.meter import Sizes as Sizes
    from perdure.repair.result import Repair as Repair
    from perdure.repair.search import repair as repair

_HOME = {"Grid": "choice", "Sizes": "meter", "Repair": "result", "repair": "search"}

__all__ = sorted(_HOME)


__getattr__ = lazily(__name__, _HOME)
