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


def test_two_sweeps_that_audit_the_same_images_at_once_both_go_on(
    packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = audit.audit

    def meanwhile(images: Pack, **more: object) -> audit.Audit:
        found = real(images)
        monkeypatch.setattr(audit, "audit", real)
        audits.kept(images, store)
        return found

    monkeypatch.setattr(audit, "audit", meanwhile)
    assert len(audits.kept(packed, store).group) == len(packed.labels)
    assert store.read("images").num_rows == len(packed.labels)
