"""Train a cell again from its stored settings, and compare the predictions of both trainings.

The second training uses a temporary store; the store of the cell is not changed. On a CPU with the
same libraries and number of threads, the predictions are identical, bit for bit.
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
from casting_tune.models import build
from casting_tune.store import artifacts, completed
from casting_tune.store.completed import Cell
from casting_tune.store.store import Store
from casting_tune.training import trial
from casting_tune.training.records import Place, TrialContext

if TYPE_CHECKING:
    from torch import nn

_LIBRARIES = ("torch", "timm", "kornia", "casting-tune")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The differences between the predictions of two trainings of a cell.

    Attributes:
        n: number of images that both scored.
        n_identical: number of images with the same score, bit for bit.
        largest: largest difference between two scores of an image.
        n_decisions: number of images with different decisions at threshold 0.5.
        notes: differences in device, threads and versions.
    """

    n: int
    n_identical: int
    largest: float
    n_decisions: int
    notes: tuple[str, ...]


def reproduce(cell: Cell, *, on_epoch: Callable[[Epoch], None] = lambda _epoch: None) -> Comparison:
    """Train a cell again and compare all predictions on validation and test.

    Raises:
        CastingTuneError: the second training did not complete, or has other images.
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
            f"The second training of cell {cell.row['cell_id']} has other validation or test "
            f"images than the first: {len(first.keys() ^ second.keys())} differ. "
            "The versions of casting_tune split the images differently."
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
    """Train a cell again in this process; yield a temporary store with its weights, and its row.

    Raises:
        ResourcesError: the training ran out of memory.
        CastingTuneError: the training did not complete.
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
                f"The second training of cell {first['cell_id']} did not complete: "
                f"{row['status']}: {row['error']}"
            )
        yield store, row


def trained(
    cell: Cell, store: Store, *, on_epoch: Callable[[Epoch], None] = lambda _epoch: None
) -> tuple[nn.Module, bool]:
    """Return the model of a cell with its last weights, and whether the store had them.

    Without stored weights, the cell is trained again.

    Raises:
        StoreError: the stored weights cannot be read, or belong to another network.
        CastingTuneError: the second training did not complete.
    """
    if artifacts.fetch(store, artifacts.weights(store, cell.row["cell_id"])).exists():
        return _opened(cell, store), True
    with again(cell, on_epoch=on_epoch) as (temporary, _):
        return _opened(cell, temporary), False


def _opened(cell: Cell, store: Store) -> nn.Module:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, file = cell.config, artifacts.weights(store, cell.row["cell_id"])
    model = build.model(
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
            f"Invalid weights of '{config.backbone}' in {named} ({reason}). "
            "Delete or move the file; the cell is then trained again."
        ) from error
    return model.eval()


def _device(first: str) -> Any:
    """Return the device of the first training if this machine has it, otherwise the CPU."""
    import torch

    return first if first == "cpu" or torch.cuda.is_available() else "cpu"


def _notes(first: dict[str, Any], second: dict[str, Any]) -> Iterator[str]:
    """Yield the differences to the first training: device, threads, versions."""
    here = {"python": platform.python_version()}
    here |= {name.replace("-", "_"): importlib.metadata.version(name) for name in _LIBRARIES}
    here |= {name: second[name] for name in ("device", "n_threads")}
    for name, value in here.items():
        if first[name] != value:
            yield f"{name} was {first[name]}, now it is {value}."
    if (first.get("resumed_from") or 0) > 0:
        yield (
            f"The first training was interrupted and continued from epoch {first['resumed_from']}."
        )
