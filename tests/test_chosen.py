from __future__ import annotations

import pytest

from casting_tune import chosen
from casting_tune.errors import UsageError
from casting_tune.store import Store


@pytest.fixture
def scored(store: Store) -> Store:
    """A cell with 30 defects a side; on validation the lowest defect scores 0.4, the highest good one 0.6."""
    rows = []
    for split in ("validation", "test"):
        defects = [0.4, *([0.9] * 29)]
        good = [0.6, *([0.1] * 29)]
        for i, (y, score) in enumerate([*((1, s) for s in defects), *((0, s) for s in good)]):
            rows.append({"cell_id": "abc1", "attempt": 1, "split": split, "image": i, "y_true": y, "score": score})
    store.write("predictions", "s", "abc1-1", rows)
    row = {"cell_id": "abc1", "attempt": 1, "status": "completed", "dataset_id": "d"}
    store.write("trials", "s", "abc1-1", [row])
    return store


def test_no_escape_on_validation_costs_an_overkill_and_some_escape_none(scored: Store) -> None:
    strict = chosen.threshold(scored, "abc", max_escape="0%")
    assert (strict.validation.fn, strict.validation.fp) == (0, 1)
    assert 0.1 < strict.threshold < 0.4
    loose = chosen.threshold(scored, "abc1", max_escape="0.05")
    assert (loose.validation.fn, loose.validation.fp) == (1, 0)
    assert loose.test.fn == 1


def test_costs_choose_as_they_weigh(scored: Store) -> None:
    dear_escape = chosen.threshold(scored, "abc1", cost_escape=100, cost_overkill=1, prevalence=0.5)
    assert dear_escape.validation.fn == 0
    dear_overkill = chosen.threshold(scored, "abc1", cost_escape=1, cost_overkill=100, prevalence=0.5)
    assert dear_overkill.validation.fp == 0


def test_photographs_are_counted_where_the_dataset_was_audited(scored: Store) -> None:
    audited = [{"dataset_id": "d", "image": i, "group_id": i // 10} for i in range(60)]
    scored.write("images", "d", "audit-1", audited)
    assert chosen.threshold(scored, "abc1", max_escape="5%").n_groups_defective == 3


@pytest.mark.parametrize(
    ("cell", "rule", "message"),
    [
        ("xyz", {"max_escape": "1%"}, "Unknown completed cell 'xyz'"),
        ("", {"max_escape": "1%"}, "Write more of it"),
        ("abc1", {}, "--max-escape, or all of"),
        ("abc1", {"max_escape": "1%", "cost_escape": 1.0}, "--max-escape, or all of"),
        ("abc1", {"cost_escape": 1.0}, "--max-escape, or all of"),
        ("abc1", {"max_escape": "one"}, "0.5% or 0.005"),
        ("abc1", {"max_escape": "1%x"}, "0.5% or 0.005"),
    ],
)
def test_what_cannot_be_meant_is_refused(scored: Store, cell: str, rule: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chosen.threshold(scored, cell, **rule)  # type: ignore[arg-type]
