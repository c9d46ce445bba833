"""Checkpoints, with which a trial continues after its process died, and kept weights.

Input: a model and its optimiser, and the path of a file. Output: files of tensors and numbers only,
complete or absent. The checkpoint is deleted when the cell completes. The state of random
generators is not saved: each depends on seed and epoch only.
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
    """Write the state after an epoch; a reader sees the old file or the new one, never a part."""
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
    """Write the model's weights as safetensors, with their Epoch in the file's metadata."""
    from safetensors.torch import save as to_bytes

    weights = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    with _whole(file) as out:
        out.write(to_bytes(weights, {name: str(value) for name, value in asdict(epoch).items()}))


def keep_best(file: Path, model: torch.nn.Module, epoch: Epoch) -> None:
    """Write the model's weights if their validation loss is the lowest so far."""
    kept = kept_epoch(file)
    if kept is None or epoch.epoch <= kept.epoch or epoch.validation_loss < kept.validation_loss:
        keep(file, model, epoch)


def kept_epoch(file: Path) -> Epoch | None:
    """Return the Epoch of kept weights; None: no file."""
    from safetensors import safe_open

    try:
        file.open("rb").close()  # safetensors reports an unreadable file as missing
    except FileNotFoundError:
        return None
    with safe_open(file, framework="np") as held:
        metadata = held.metadata()
    numbers: dict[str, Any] = {
        name: int(value) if name in ("epoch", "n_images", "n_steps") else float(value)
        for name, value in metadata.items()
    }
    return Epoch(**numbers)


def load(file: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> Epoch | None:
    """Load a saved state into model and optimiser and return its Epoch; None: no file.

    Raises:
        RuntimeError, ValueError, UnpicklingError: the file is damaged, or of another model. Only
            tensors and plain values are unpickled.
    """
    import torch

    if not file.exists():
        return None
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return Epoch(**state["epoch"])


def clear(root: Path, cells: Collection[str]) -> None:
    """Delete files that killed processes left of completed cells below the root of a store.

    They are checkpoints, and temporary files of checkpoints and weights.
    """
    for folder in (root / "checkpoints", root / "weights"):
        for file in folder.iterdir() if folder.is_dir() else ():
            cell = re.split(r"[.-]", file.name.removeprefix("."), maxsplit=1)[0]
            if cell in cells and (file.suffix == ".pt" or file.name.startswith(".")):
                file.unlink(missing_ok=True)


@contextlib.contextmanager
def _whole(file: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file, and rename it to `file` when it is complete."""
    step(f"save {file.suffix}: begin")
    with files.replacing(file) as draft:
        with draft.open("wb") as out:
            step(f"save {file.suffix}: opened")
            yield out
            step(f"save {file.suffix}: written")
        step(f"save {file.suffix}: closed")
    step(f"save {file.suffix}: end")
