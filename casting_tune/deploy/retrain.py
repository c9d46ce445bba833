"""Trains a cell again from its row alone, and compares what the two trainings say of every image.

Comes in: a Cell. Goes out: the second training, in a store of its own that is gone afterwards, and
how the predictions differ. On a CPU with the same libraries and as many threads they are the same,
bit for bit. Writes nothing into the store that the cell came from.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from casting_tune.config import Allowance, Epoch
from casting_tune.errors import CastingTuneError, ResourcesError, StoreError, unreadable
from casting_tune.models import registry
from casting_tune.store import completed
from casting_tune.store.completed import Cell
from casting_tune.store.store import Store
from casting_tune.training import trial
from casting_tune.training.records import Place, TrialContext

if TYPE_CHECKING:
    from torch import nn

_LIBRARIES = ("torch", "timm", "kornia", "casting-tune")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How the predictions of two trainings of one cell differ.

    Attributes:
        n: images that both scored.
        n_identical: of them, those with the same score, bit for bit.
        largest: difference between two scores of one image.
        n_decisions: images that the two decide differently at threshold 0.5.
        notes: what was not as in the first training.
    """

    n: int
    n_identical: int
    largest: float
    n_decisions: int
    notes: tuple[str, ...]


def reproduce(cell: Cell, *, on_epoch: Callable[[Epoch], None] = lambda _epoch: None) -> Comparison:
    """Train a cell again and compare every prediction of validation and test with the stored one.

    Raises:
        CastingTuneError: the second training did not complete, or scored other images.
    """
    with again(cell, on_epoch=on_epoch) as (store, row):
        rows = completed.predictions(store, row)
        first, second = (
            {(split, image): score for split, image, score in zip(*columns, strict=True)}
            for columns in (
                (
                    cell.predictions.split.tolist(),
                    cell.predictions.image.tolist(),
                    cell.predictions.score.tolist(),
                ),
                (rows[name].to_pylist() for name in ("split", "image", "score")),
            )
        )
    if first.keys() != second.keys():
        raise CastingTuneError(
            f"The second training of cell {cell.row['cell_id']} scored other images than the first: "
            f"{len(first.keys() ^ second.keys())} differ. Another version of the splits made one of them."
        )
    old, new = (
        np.array([scores[key] for key in first], dtype=np.float32) for scores in (first, second)
    )
    return Comparison(
        n=len(old),
        n_identical=int((old == new).sum()),
        largest=float(np.abs(old - new).max()),
        n_decisions=int(((old >= 0.5) != (new >= 0.5)).sum()),
        notes=tuple(_notes(cell.row, row)),
    )


@contextlib.contextmanager
def again(
    cell: Cell, *, on_epoch: Callable[[Epoch], None] = lambda _epoch: None
) -> Iterator[tuple[Store, dict[str, Any]]]:
    """Train a cell once more in this process and give a temporary store, which keeps its last weights, and its row.

    Raises:
        ResourcesError: it ran out of memory.
        CastingTuneError: it did not complete.
    """
    first = cell.row
    with tempfile.TemporaryDirectory(prefix="casting-tune-") as folder:
        store = Store(Path(folder))
        row = trial.run_trial(
            cell.config,
            cell.pack,
            store,
            context=TrialContext(
                sweep=first["sweep"],
                label=first["label"],
                place=Place(device=_device(first["device"]), n_threads=first["n_threads"]),
                groups=cell.groups,
                allowance=Allowance(micro_batch=first.get("micro_batch"), keep=("last",)),
            ),
            on_epoch=on_epoch,
        )
        if row["status"] != "completed":
            kind = ResourcesError if row["status"] == "oom" else CastingTuneError
            raise kind(
                f"The second training of cell {first['cell_id']} ended as {row['status']}: {row['error']}"
            )
        yield store, row


def trained(
    cell: Cell, store: Store, *, on_epoch: Callable[[Epoch], None] = lambda _epoch: None
) -> tuple[nn.Module, bool]:
    """Return a cell's model with its last weights, and whether the store kept them; else it is trained again for them.

    Raises:
        StoreError: kept weights that cannot be read, or are of another network.
        CastingTuneError: the second training did not complete.
    """
    if store.fetch(store.weights(cell.row["cell_id"])).exists():
        return _opened(cell, store), True
    with again(cell, on_epoch=on_epoch) as (temporary, _):
        return _opened(cell, temporary), False


def _opened(cell: Cell, store: Store) -> nn.Module:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, file = cell.config, store.weights(cell.row["cell_id"])
    model = registry.build(
        config.backbone,
        weights="none",  # the file has them all
        dense=config.dense,
        dropout=config.dropout,
        in_channels=config.in_channels,
        seed=config.seed,
    )
    try:
        file.open("rb").close()  # safetensors reports an unreadable file as missing
        model.load_state_dict(load_file(file))
    except OSError as error:
        raise StoreError(unreadable(file, error)) from error
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        named = store.shown(file.relative_to(store.root).as_posix())
        raise StoreError(
            f"{named} cannot be read as weights of '{config.backbone}' ({reason}). Move it away."
        ) from error
    return model.eval()


def _device(first: str) -> Any:
    """Return the device of the first training where this machine has it, else the CPU."""
    import torch

    return first if first == "cpu" or torch.cuda.is_available() else "cpu"


def _notes(first: dict[str, Any], second: dict[str, Any]) -> Iterator[str]:
    """Say what was not as in the first training: devices, threads, versions."""
    here = {"python": platform.python_version()}
    here |= {name.replace("-", "_"): importlib.metadata.version(name) for name in _LIBRARIES}
    here |= {name: second[name] for name in ("device", "n_threads")}
    for name, value in here.items():
        if first[name] != value:
            yield f"{name} was {first[name]} and is {value}."
    if (first.get("resumed_from") or 0) > 0:
        yield f"The first training went on from epoch {first['resumed_from']} after it was cut off."
