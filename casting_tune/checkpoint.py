"""What a trial needs to go on after its process died: weights, optimiser, and the epoch that they stand at.

Comes in: a model and its optimiser, and a file's place. Goes out: one file a cell, of tensors and numbers alone, put in
place whole; it is gone when the cell completes. Randomness needs no saving: every stream depends on seed and epoch.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casting_tune.trial import Epoch

if TYPE_CHECKING:
    import torch


def save(file: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, epoch: Epoch) -> None:
    """Write the state after an epoch; a reader sees the file before this one or this one, never a part."""
    import torch

    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with beside.open("wb") as out:
            torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "epoch": asdict(epoch)}, out)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


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
