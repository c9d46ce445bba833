"""casting_tune: sweeps over networks, augmentations and batch sizes for the visual inspection of castings.

For a notebook: `Options`, `prepare` and `execute` run a sweep; `Store` opens its results, `runs`, `predictions`,
`compare`, `tables` and `query` ask them; `open_pack` opens the images. Each loads its module when it is first named.
Every error that casting_tune reports is a `CastingTuneError`; `errors` shows the tree. `__version__` is the version.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casting_tune import query, tables
    from casting_tune.asked import Options
    from casting_tune.errors import (
        CastingTuneError,
        Diverged,
        ImagesError,
        ResourcesError,
        StoreError,
        TimeUp,
        UsageError,
        WeightsError,
    )
    from casting_tune.inventory import predictions, runs
    from casting_tune.pack import open_pack
    from casting_tune.store import Store
    from casting_tune.sweep import execute, prepare
    from casting_tune.versus import cells as compare

    __version__: str

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent unless a program or --verbose asks for records

__all__ = [
    "CastingTuneError", "Diverged", "ImagesError", "Options", "ResourcesError", "Store", "StoreError", "TimeUp",
    "UsageError", "WeightsError", "__version__", "compare", "execute", "open_pack", "predictions", "prepare", "query",
    "runs", "tables",
]  # fmt: skip

_FROM = {
    "CastingTuneError": "errors.CastingTuneError",
    "Diverged": "errors.Diverged",
    "ImagesError": "errors.ImagesError",
    "Options": "asked.Options",
    "ResourcesError": "errors.ResourcesError",
    "Store": "store.Store",
    "StoreError": "errors.StoreError",
    "TimeUp": "errors.TimeUp",
    "UsageError": "errors.UsageError",
    "WeightsError": "errors.WeightsError",
    "compare": "versus.cells",
    "execute": "sweep.execute",
    "open_pack": "pack.open_pack",
    "predictions": "inventory.predictions",
    "prepare": "sweep.prepare",
    "query": "query",
    "runs": "inventory.runs",
    "tables": "tables",
}
"""A public name -> its module, and its name there; a module alone is public as a whole."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # slower to load than all else here

        return version("casting-tune")
    if name not in _FROM:
        raise AttributeError(f"module 'casting_tune' has no attribute '{name}'")
    room, _, found = _FROM[name].partition(".")
    module = importlib.import_module(f"casting_tune.{room}")
    return getattr(module, found) if found else module


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
