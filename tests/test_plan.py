from __future__ import annotations

from datetime import UTC, datetime

from casting_tune import plan
from casting_tune.space import Cell
from casting_tune.store import Store
from casting_tune.trial import TrialConfig

CELLS = [Cell(row=row, label=row, config=TrialConfig(backbone="vgg16", seed=i)) for i, row in enumerate("abc")]


def test_what_is_done_failed_and_to_do_is_told_apart_whatever_sweep_trained_it(store: Store) -> None:
    row = {"attempt": 1, "started_at": datetime(2026, 1, 1, tzinfo=UTC)}
    store.write("trials", "another", "k0-1", [row | {"cell_id": "k0", "status": "completed"}])
    store.write("trials", "this", "k1-1", [row | {"cell_id": "k1", "status": "oom"}])
    made = plan.make(CELLS, ["k0", "k1", "k2"], store)
    assert [(planned.state, planned.status) for planned in made.planned] == [
        ("done", None),
        ("failed", "oom"),
        ("to do", None),
    ]
    assert [planned.cell_id for planned in made.to_do] == ["k1", "k2"]
