from __future__ import annotations

from datetime import UTC, datetime

import pytest

from casting_tune.analysis import cell_names, selection
from casting_tune.analysis.cell_names import Scope
from casting_tune.errors import UsageError
from casting_tune.store.store import Store
from tests.cli.test_main import call

CELLS = {
    "aaaa1111aaaa1111": ("vgg16, default", "vgg16, default, seed 0"),
    "aaaa2222aaaa2222": ("vgg16, default", "vgg16, default, seed 1"),
    "bbbb1111bbbb1111": ("resnet50, default", "resnet50, default, seed 0"),
    "cccc1111cccc1111": ("vgg16, additional", "vgg16, additional, seed 0"),
}


@pytest.fixture
def named(store: Store) -> Store:
    """A sweep of four cells; the last is not trained."""
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    requested = []
    for position, (cell, (row, label)) in enumerate(CELLS.items()):
        requested.append(
            {
                "run_id": "r", "sweep": "s", "asked_at": noon, "position": position,
                "cell_id": cell, "row": row, "label": label, "kind": "cell", "quick": False,
                "backbone": row.split(",")[0], "dataset_id": "d", "seed": 0, "fold": 0,
            }
        )  # fmt: skip
        if position < 3:
            trial = {
                "cell_id": cell,
                "attempt": 1,
                "status": "completed",
                "started_at": noon,
                "n_validation": 10,
            }
            store.write(
                "trials", "s", f"{cell}-1",
                [trial | {"label": label, "validation_accuracy": 0.5 + position / 10}],
            )  # fmt: skip
    store.write("cells", "s", "r-0", requested)
    return store


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("bbbb1111bbbb1111", "bbbb1111bbbb1111"),
        ("bbbb", "bbbb1111bbbb1111"),
        ("b", "bbbb1111bbbb1111"),
        ("aaaa2", "aaaa2222aaaa2222"),
        ("resnet50, default, seed 0", "bbbb1111bbbb1111"),
        ("resnet50, default", "bbbb1111bbbb1111"),
        ("ResNet50", "bbbb1111bbbb1111"),
        ("seed 1, vgg16", "aaaa2222aaaa2222"),
        ("additional", "cccc1111cccc1111"),
    ],
)
def test_a_cell_is_found_by_its_id_or_by_a_part_of_its_label(
    named: Store, name: str, cell: str
) -> None:
    assert cell_names.find(named, name) == cell


def test_an_ambiguous_name_lists_the_cells_one_a_line(
    named: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, "show", "vgg16", "--results", named.root)
    assert code == 2
    assert err.splitlines() == [
        "error: 'vgg16' matches 3 cells. Give an id, or a longer part of a label.",
        "  aaaa1111aaaa1111  vgg16, default, seed 0",
        "  aaaa2222aaaa2222  vgg16, default, seed 1",
        "  cccc1111cccc1111  vgg16, additional, seed 0",
    ]


def test_a_name_is_of_completed_cells_only_where_a_result_is_needed(named: Store) -> None:
    completed = Scope(completed=True)
    assert cell_names.find(named, "seed 1", completed) == "aaaa2222aaaa2222"
    with pytest.raises(UsageError, match="Unknown completed cell 'additional'"):
        cell_names.find(named, "additional", completed)


def test_unknown_and_empty_names_are_errors_with_a_way_out(named: Store) -> None:
    with pytest.raises(UsageError, match="Did you mean 'bbbb1111bbbb1111'"):
        cell_names.find(named, "bbbb1111bbbb1112")
    with pytest.raises(UsageError, match="casting-tune list SWEEP --cells shows"):
        cell_names.find(named, "zz")
    with pytest.raises(UsageError, match="matches 4 cells"):
        cell_names.find(named, "")


def test_best_without_a_sweep_is_of_the_only_sweep(named: Store) -> None:
    assert selection.named(named, "best")[0] == "bbbb1111bbbb1111"
    other = {"run_id": "q", "sweep": "t", "cell_id": "dddd", "row": "x", "label": "x"}
    named.write("cells", "t", "q-0", [other])
    with pytest.raises(UsageError, match=r"of which sweep.*s, t"):
        selection.named(named, "best")
    assert selection.named(named, "best", Scope(sweep="s"))[0] == "bbbb1111bbbb1111"


def test_the_cells_of_a_sweep_are_listed_with_their_ids(
    named: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, "list", "s", "--cells", "--results", named.root)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines if line and len(line[0]) == 16] == [*CELLS]
    assert "not run" in out
    code, _, err = call(capsys, "list", "--cells", "--results", named.root)
    assert (code, "--cells lists the cells of one sweep" in err) == (2, True)
