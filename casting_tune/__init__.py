"""casting_tune: sweeps over networks, augmentations and batch sizes for the visual inspection of castings.

For a notebook: `Options`, `prepare` and `execute` run a sweep; `Store` opens its results, `runs`, `predictions`,
`compare`, `tables` and `query` ask them; `open_pack` opens the images. Each loads its room when it is first named.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casting_tune import query, tables
    from casting_tune.asked import Options
    from casting_tune.inventory import predictions, runs
    from casting_tune.pack import open_pack
    from casting_tune.store import Store
    from casting_tune.sweep import execute, prepare
    from casting_tune.versus import cells as compare

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent unless a program or --verbose asks for records

__all__ = [
    "Options", "Store", "compare", "execute", "open_pack", "predictions", "prepare", "query", "runs", "tables",
]  # fmt: skip

_FROM = {
    "Options": "asked.Options",
    "Store": "store.Store",
    "compare": "versus.cells",
    "execute": "sweep.execute",
    "open_pack": "pack.open_pack",
    "predictions": "inventory.predictions",
    "prepare": "sweep.prepare",
    "query": "query",
    "runs": "inventory.runs",
    "tables": "tables",
}
"""A public name -> its room, and what it is called there; a room alone is public as a whole."""


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module 'casting_tune' has no attribute '{name}'")
    room, _, found = _FROM[name].partition(".")
    module = importlib.import_module(f"casting_tune.{room}")
    return getattr(module, found) if found else module


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
