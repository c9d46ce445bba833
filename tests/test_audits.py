from __future__ import annotations

import numpy as np
import pytest

from casting_tune import audit, audits
from casting_tune.pack import Pack
from casting_tune.store import Store


def test_a_dataset_is_audited_once_and_read_afterwards(
    packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = audits.kept(packed, store)
    monkeypatch.setattr(audit, "audit", None)  # a second audit would raise
    second = audits.kept(packed, store)
    np.testing.assert_array_equal(first.group, second.group)
    np.testing.assert_array_equal(first.twin_in_train, second.twin_in_train)
    assert first.findings == second.findings
    assert len(first.findings) >= 2
