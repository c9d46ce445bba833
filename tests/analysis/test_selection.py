from __future__ import annotations

from datetime import UTC, datetime

import pytest

from casting_tune.analysis import curves, lookup, run_results, selection, tables
from casting_tune.errors import UsageError
from casting_tune.store.store import Store
from tests.cli.test_main import call


@pytest.fixture
def scored(store: Store) -> Store:
    """30 defects and 30 good castings per split; defects score 0.4 or more, others at most 0.6."""
    rows = []
    for split in ("validation", "test"):
        defects = [0.4, *([0.9] * 29)]
        good = [0.6, *([0.1] * 29)]
        for i, (y, score) in enumerate([*((1, s) for s in defects), *((0, s) for s in good)]):
            rows.append(
                {
                    "cell_id": "abc1",
                    "attempt": 1,
                    "split": split,
                    "image": i,
                    "y_true": y,
                    "score": score,
                }
            )
    store.write("predictions", "s", "abc1-1", rows)
    row = {"cell_id": "abc1", "attempt": 1, "status": "completed", "dataset_id": "d"}
    store.write("trials", "s", "abc1-1", [row])
    return store


def test_no_escape_on_validation_costs_an_overkill_and_some_escape_none(scored: Store) -> None:
    strict = selection.threshold(scored, "abc", max_escape="0%")
    assert (strict.validation.fn, strict.validation.fp) == (0, 1)
    assert 0.1 < strict.threshold < 0.4
    loose = selection.threshold(scored, "abc1", max_escape="0.05")
    assert (loose.validation.fn, loose.validation.fp) == (1, 0)
    assert loose.test.fn == 1


def test_costs_choose_as_they_weigh(scored: Store) -> None:
    dear_escape = selection.threshold(
        scored, "abc1", cost_escape=100, cost_overkill=1, prevalence=0.5
    )
    assert dear_escape.validation.fn == 0
    dear_overkill = selection.threshold(
        scored, "abc1", cost_escape=1, cost_overkill=100, prevalence=0.5
    )
    assert dear_overkill.validation.fp == 0


def test_photographs_are_counted_where_the_dataset_was_audited(scored: Store) -> None:
    audited = [{"dataset_id": "d", "image": i, "group_id": i // 10} for i in range(60)]
    scored.write("images", "d", "audit-1", audited)
    assert selection.threshold(scored, "abc1", max_escape="5%").n_groups_defective == 3


@pytest.mark.parametrize(
    ("cell", "rule", "message"),
    [
        ("xyz", {"max_escape": "1%"}, "Unknown completed cell 'xyz'"),
        ("", {"max_escape": "1%"}, "Give more characters"),
        ("abc1", {}, "--max-escape, or all of"),
        ("abc1", {"max_escape": "1%", "cost_escape": 1.0}, "--max-escape, or all of"),
        ("abc1", {"cost_escape": 1.0}, "--max-escape, or all of"),
        ("abc1", {"max_escape": "one"}, "0.5% or 0.005"),
        ("abc1", {"max_escape": "1%x"}, "0.5% or 0.005"),
    ],
)
def test_an_invalid_cell_or_rule_is_an_error(
    scored: Store, cell: str, rule: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        selection.threshold(scored, cell, **rule)  # type: ignore[arg-type]


def run_of(store: Store, trainings: list[tuple[str, str, float, float]]) -> None:
    """Write a run of trainings: cell, row, score of a defect, score of a good casting; 30 each."""
    noon, requested = datetime(2026, 1, 1, 12, tzinfo=UTC), []
    for position, (cell, row, defect, good) in enumerate(trainings):
        common = {"cell_id": cell, "dataset_id": "d", "seed": position, "fold": 0}
        names = {
            "run_id": "r",
            "sweep": "s",
            "asked_at": noon,
            "position": position,
            "row": row,
            "label": row,
        }
        requested.append(common | names | {"kind": "cell", "quick": False, "backbone": "vgg16"})
        right = ((defect >= 0.5) + (good < 0.5)) / 2
        trial = {
            "attempt": 1,
            "status": "completed",
            "started_at": noon,
            "n_validation": 60,
            "n_test": 60,
        }
        store.write("trials", "s", f"{cell}-1", [common | trial | {"validation_accuracy": right}])
        images = [
            {
                "cell_id": cell,
                "attempt": 1,
                "split": split,
                "image": i,
                "sha256": str(i),
                "y_true": i % 2,
            }
            | {"score": defect if i % 2 else good, "leaked": False}
            for split in ("validation", "test")
            for i in range(60)
        ]
        store.write("predictions", "s", f"{cell}-1", images)
    store.write("cells", "s", "r", requested)


TIES = {
    # accuracies 1, 1, 0.5; mean cross-entropies of z and b: -ln 0.8 and -ln 0.9
    "the lowest cross-entropy": (
        [("c1", "z", 0.8, 0.2), ("c2", "b", 0.9, 0.1), ("c3", "a", 0.4, 0.1)],
        "b",
        "c2",
    ),
    "the first of the sweep, not of the alphabet": (
        [("c3", "z", 0.9, 0.1), ("c2", "b", 0.9, 0.1), ("c1", "a", 0.9, 0.1)],
        "z",
        "c3",
    ),
    # a has the mean 1, b 0.75, though b's second training has the lowest cross-entropy of all
    "no single lucky training": (
        [
            ("c1", "b", 0.4, 0.1),
            ("c2", "b", 0.99, 0.01),
            ("c3", "a", 0.8, 0.2),
            ("c4", "a", 0.9, 0.1),
        ],
        "a",
        "c4",
    ),
}


@pytest.mark.parametrize("rule", TIES)
def test_every_table_report_and_command_names_the_same_best_row_and_cell(
    store: Store, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings, row, cell = TIES[rule]
    run_of(store, trainings)
    frame = tables.comparison(store, "s").frame
    found = curves.best_row(run_results.load(store, "s"))
    assert found is not None
    assert frame.loc[frame["best"], "row"].tolist() == [row]
    assert lookup.runs(store)["best"].tolist() == [row]
    assert (found[0], found[2]) == (row, cell)
    assert selection.best(store, "s")[0] == cell
    code, out, err = call(
        capsys, "threshold", "best", "--sweep", "s", "--max-escape", "1%", "--results", store.root
    )
    assert (code, err) == (0, "")
    assert f"cell {cell} ({row})" in out


def test_a_tie_is_reported_with_how_it_was_decided(store: Store) -> None:
    run_of(store, TIES["the lowest cross-entropy"][0])
    text = selection.best(store, "s")[1]
    assert text[0] == (
        "Row 'b' has the highest mean validation accuracy of 3 rows of sweep s: 100.00 %. Its best "
        "training is cell c2 (b): 60 of 60 validation images are classified "
        "correctly at threshold 0.5."
    )
    assert text[1] == (
        "1 other row has the same validation accuracy; "
        "this one has the lowest validation cross-entropy (0.1054)."
    )
    assert text[1] in " ".join(tables.comparison(store, "s").notes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("best",), "No cells in"),
        (("abc1", "--sweep", "s"), "No runs in"),
        (("abc1", "--run", "r"), "use it together with --sweep"),
    ],
)
def test_a_run_needs_a_sweep_and_a_sweep_must_be_in_the_store(
    scored: Store, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    code, _, err = call(capsys, "threshold", *words, "--max-escape", "1%", "--results", scored.root)
    assert code == 2
    assert message in err
