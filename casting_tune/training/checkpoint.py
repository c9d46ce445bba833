"""What a trial needs to go on after its process died: weights, optimiser, and their epoch; and weights that are kept.

Comes in: a model and its optimiser, and a file's place. Goes out: files of tensors and numbers
alone, put in place whole. The checkpoint is gone when the cell completes. Randomness needs no
saving: its streams depend on seed and epoch.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from casting_tune import files
from casting_tune.config import Epoch
from casting_tune.failpoints import step

if TYPE_CHECKING:
    import torch


def save(
    file: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, epoch: Epoch
) -> None:
    """Write the state after an epoch; a reader sees the file before this one or this one, never a part."""
    import torch

    with _whole(file) as out:
        torch.save(
            {
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "epoch": asdict(epoch),
            },
            out,
        )


def keep(file: Path, model: torch.nn.Module, epoch: Epoch) -> None:
    """Write the model's weights as safetensors, with the epoch that they are of in the file's metadata."""
    from safetensors.torch import save as to_bytes

    weights = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    with _whole(file) as out:
        out.write(to_bytes(weights, {name: str(value) for name, value in asdict(epoch).items()}))


def keep_best(file: Path, model: torch.nn.Module, epoch: Epoch) -> None:
    """Write the model's weights unless the file holds those of an earlier epoch with as low a validation loss."""
    kept = kept_epoch(file)
    if kept is None or epoch.epoch <= kept.epoch or epoch.validation_loss < kept.validation_loss:
        keep(file, model, epoch)


def kept_epoch(file: Path) -> Epoch | None:
    """Return the epoch that kept weights are of; None where there is no file."""
    from safetensors import safe_open

    try:
        file.open("rb").close()  # safetensors reports an unreadable file as missing
    except FileNotFoundError:
        return None
    with safe_open(file, framework="np") as held:
        told = held.metadata()
    numbers: dict[str, Any] = {
        name: int(value) if name in ("epoch", "n_images", "n_steps") else float(value)
        for name, value in told.items()
    }
    return Epoch(**numbers)


def load(file: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> Epoch | None:
    """Put a saved state into model and optimiser and return its epoch; None where there is no file.

    Raises:
        RuntimeError, ValueError, UnpicklingError: the file is damaged, or of another model. Nothing but tensors and
            plain values is ever unpickled.
    """
    import torch

    if not file.exists():
        return None
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return Epoch(**state["epoch"])


def clear(root: Path, cells: Collection[str]) -> None:
    """Remove what processes that were killed left of completed cells below a store's root.

    That is a cell's checkpoint, and files that were being written beside a checkpoint or beside
    weights.
    """
    for folder in (root / "checkpoints", root / "weights"):
        for file in folder.iterdir() if folder.is_dir() else ():
            cell = re.split(r"[.-]", file.name.removeprefix("."), maxsplit=1)[0]
            if cell in cells and (file.suffix == ".pt" or file.name.startswith(".")):
                file.unlink(missing_ok=True)


@contextlib.contextmanager
def _whole(file: Path) -> Iterator[IO[bytes]]:
    """Open a file beside its place, and put it there once all is written."""
    step(f"save {file.suffix}: begin")
    with files.replacing(file) as draft:
        with draft.open("wb") as out:
            step(f"save {file.suffix}: opened")
            yield out
            step(f"save {file.suffix}: written")
        step(f"save {file.suffix}: closed")
    step(f"save {file.suffix}: end")
