"""What each trainer of Perdure's takes care of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from torch.nn.modules.module import _IncompatibleKeys

from perdure.engine.careful import CarefulTrainer

pytestmark = pytest.mark.unit


def test_a_tied_weight_is_not_missing_by_its_other_name(caplog: pytest.LogCaptureFixture) -> None:
    """The Trainer knows no weights that are saved once, and would frighten with its warning."""
    trainer = object.__new__(CarefulTrainer)
    tied = {"head.weight": "embedding.weight"}
    model: Any = SimpleNamespace(all_tied_weights_keys=tied, _keys_to_ignore_on_save=set())
    trainer.model, trainer.session = model, cast("Any", SimpleNamespace(model=model))
    trainer._issue_warnings_after_load(_IncompatibleKeys(["head.weight"], []))
    assert caplog.messages == []
    trainer._issue_warnings_after_load(_IncompatibleKeys(["head.weight", "norm.weight"], []))
    (told,) = caplog.messages
    assert "['norm.weight']" in told
