"""The photograph that each image of a dataset shows, from its audit.

The only place of analysis that reads the groups, so that all tables count the same photographs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.compute as pc

if TYPE_CHECKING:
    import pyarrow as pa

    from casting_tune.store.store import Store


def photo_groups(store: Store, dataset_id: str) -> dict[int, int] | None:
    """Return the group of each image of a dataset, None if the dataset was not audited."""
    rows = _rows(store, dataset_id, "group_id")
    if not rows.num_rows:
        return None
    return dict(zip(rows["image"].to_pylist(), rows["group_id"].to_pylist(), strict=True))


def twins(store: Store, dataset_id: str) -> frozenset[int]:
    """Return the images that show a photograph of the train folder too; empty without an audit."""
    rows = _rows(store, dataset_id, "twin_in_train")
    return frozenset(rows.filter(pc.field("twin_in_train"))["image"].to_pylist())


def train_folder(store: Store, dataset_id: str) -> frozenset[int]:
    """Return the images of the train folder of an audited dataset."""
    rows = _rows(store, dataset_id, "split")
    return frozenset(rows.filter(pc.field("split") == "train")["image"].to_pylist())


def _rows(store: Store, dataset_id: str, column: str) -> pa.Table:
    rows = store.read("images", columns=["dataset_id", "image", column])
    # rows without an audit, of a list of images, have no values
    return rows.filter((pc.field("dataset_id") == dataset_id) & pc.field(column).is_valid())
