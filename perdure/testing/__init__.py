"""Put a method of your own through the checks that every method of Perdure meets.

    from perdure.testing import check_method

    def test_my_method():
        check_method(MyMethod)

The model is a tiny random one made on the spot, so this says that the mechanics are right (it acts,
it can be switched off, the split of a batch and a resume change nothing), not that it helps.
"""

from perdure.testing.checks import (
    check_in_runs,
    check_method,
    check_saved_state,
    check_split,
    check_switched_off,
)
from perdure.testing.learn import apart, chooses_rows, learned, make, train
from perdure.testing.tiny import (
    CHAT_TEMPLATE,
    FIRST,
    GENERAL,
    SECOND,
    make_tokenizer,
    save_tiny_model,
    task_of,
)

__all__ = [
    "CHAT_TEMPLATE", "FIRST", "GENERAL", "SECOND", "apart", "check_in_runs", "check_method",
    "check_saved_state", "check_split", "check_switched_off", "chooses_rows", "learned", "make",
    "make_tokenizer", "save_tiny_model", "task_of", "train",
]  # fmt: skip
