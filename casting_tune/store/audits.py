"""Stored audits: a dataset is audited once; later its findings are read from the store.

Input: a pack and a store. Output: a StoredAudit. Reads no pixels.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from casting_tune.data.pack import Pack
from casting_tune.errors import StoreError
from casting_tune.store.schema import IMAGES
from casting_tune.store.store import Store

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

LOG = logging.getLogger(__name__)
LISTED = 0
"""Version of rows without an audit: those of a list with further columns."""

VERSION = 1
"""Version of the audit.

Raise it if the same images get other groups: readers then use the new version only.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAudit:
    """The stored part of an audit; arrays are [n], one entry per image (see `audit.Audit`)."""

    group: NDArray[np.int64]
    copy_in_train: NDArray[np.bool_]
    twin_in_train: NDArray[np.bool_]
    conflict: NDArray[np.bool_]
    findings: tuple[str, ...]


def stored_audit(
    pack: Pack, store: Store, *, on_progress: Callable[[int, int], None] | None = None
) -> StoredAudit:
    """Return the audit of a pack from the store; if missing, make and store it (takes minutes)."""
    rows = _read(store, pack.dataset_id)
    if rows is None:
        from casting_tune.data.audit import audit

        LOG.info("audit of dataset %s started", pack.dataset_id)
        made = audit(pack, on_progress=on_progress)
        findings = [*made.findings, *[None] * (len(pack.labels) - len(made.findings))]
        columns = _of_pack(pack) | {
            "group_id": made.group.tolist(),
            "copy_in_train": made.copy_in_train.tolist(),
            "twin_in_train": made.twin_in_train.tolist(),
            "conflict": made.conflict.tolist(),
            "constant": made.constant.tolist(),
            "outlier": made.outlier.tolist(),
            "finding": findings[: len(pack.labels)],
        }
        try:
            _write(store, pack, VERSION, columns)
        except StoreError:
            if _read(store, pack.dataset_id) is None:
                raise
            # another sweep has audited the same images meanwhile, with the same result
        rows = _read(store, pack.dataset_id)
        assert rows is not None
    flags = {
        name: rows[name].to_numpy(zero_copy_only=False)
        for name in ("copy_in_train", "twin_in_train", "conflict")
    }
    texts = (text for text in rows["finding"].to_pylist() if text is not None)
    return StoredAudit(group=rows["group_id"].to_numpy(), findings=tuple(texts), **flags)


def keep_columns(pack: Pack, store: Store) -> str:
    """Write the further columns of a list into `images`, until an audit writes them too.

    Returns:
        A sentence if the store has other values of this dataset; "" otherwise.
    """
    if pack.columns is None:
        return ""
    written = store.read("images", columns=["dataset_id", "image", "columns"])
    written = written.filter(pc.field("dataset_id") == pack.dataset_id).sort_by("image")
    if not written.num_rows:
        _write(store, pack, LISTED, _of_pack(pack))
    elif [text or "" for text in written["columns"].to_pylist()] != [*pack.columns]:
        return (
            "The further columns of the list differ from those that the store has for these images "
            "(table images), which stay as they are."
        )
    return ""


def _of_pack(pack: Pack) -> dict[str, Any]:
    """Return the columns of `images` that a pack has, by name."""
    columns = pack.columns or [""] * len(pack.labels)
    return {
        "image": range(len(pack.labels)),
        "path": pack.paths.tolist(),
        "sha256": pack.sha256.tolist(),
        "kind": pack.kinds.tolist(),
        "split": pack.splits.tolist(),
        "y_true": pack.labels.tolist(),
        "columns": [text or None for text in columns],
    }


def _write(store: Store, pack: Pack, version: int, columns: dict[str, Any]) -> None:
    rows = [
        {"dataset_id": pack.dataset_id, **dict(zip(columns, values, strict=True))}
        for values in zip(*columns.values(), strict=True)
    ]
    store.write("images", pack.dataset_id, f"audit-{version}", rows)


def split_id(groups: NDArray[np.int64]) -> str:
    """Return the identity of the [n] groups of a grouped split, 12 hexadecimal digits."""
    return hashlib.sha256(groups.astype("<i8").tobytes()).hexdigest()[:12]


def _read(store: Store, dataset_id: str) -> pa.Table | None:
    """Return a dataset's audit of this version in the order of the images, or None."""
    file = f"images/{dataset_id}/audit-{VERSION}.parquet"
    if file not in store.names(f"images/{dataset_id}"):
        return None
    return store.read_file(file, IMAGES).sort_by("image").combine_chunks()
