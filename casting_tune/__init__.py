"""casting_tune: sweeps over networks, augmentations and batch sizes for inspection of castings.

For a notebook: `Options`, `prepare` and `execute` run a sweep; `Store` opens its results; `runs`,
`predictions`, `compare`, `tables` and `query` read them; `open_pack` opens the images. Each name
loads its module when it is first used. Every error that casting_tune reports is a
`CastingTuneError`; `errors` shows the tree. `__version__` is the version.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casting_tune.analysis import tables
    from casting_tune.analysis.compare import cells as compare
    from casting_tune.analysis.lookup import predictions, runs
    from casting_tune.data.pack import open_pack
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
    from casting_tune.execution.runner import execute, prepare
    from casting_tune.planning.options import Options
    from casting_tune.store import sql as query
    from casting_tune.store.store import Store

    __version__: str

# silent unless a program or --verbose adds a handler
logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "CastingTuneError", "Diverged", "ImagesError", "Options", "ResourcesError", "Store",
    "StoreError", "TimeUp", "UsageError", "WeightsError", "__version__", "compare", "execute",
    "open_pack", "predictions", "prepare", "query", "runs", "tables",
]  # fmt: skip

_FROM = {
    "CastingTuneError": "errors.CastingTuneError",
    "Diverged": "errors.Diverged",
    "ImagesError": "errors.ImagesError",
    "Options": "planning.options.Options",
    "ResourcesError": "errors.ResourcesError",
    "Store": "store.store.Store",
    "StoreError": "errors.StoreError",
    "TimeUp": "errors.TimeUp",
    "UsageError": "errors.UsageError",
    "WeightsError": "errors.WeightsError",
    "compare": "analysis.compare.cells",
    "execute": "execution.runner.execute",
    "open_pack": "data.pack.open_pack",
    "predictions": "analysis.lookup.predictions",
    "prepare": "execution.runner.prepare",
    "query": "store.sql",
    "runs": "analysis.lookup.runs",
    "tables": "analysis.tables",
}
"""A public name -> its module and name there."""

_MODULES = ("query", "tables")
"""Public names of whole modules."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # slow to import

        return version("casting-tune")
    if name not in _FROM:
        raise AttributeError(f"module 'casting_tune' has no attribute '{name}'")
    whole = f"casting_tune.{_FROM[name]}"
    if name in _MODULES:
        return importlib.import_module(whole)
    module, _, attribute = whole.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
