"""Shell completion: names for the Tab key, without error messages.

Reads file names at most: no torch, no Parquet, no network.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer


def sweeps(incomplete: str) -> list[str]:
    """Return the names of the available sweeps."""
    from casting_tune.planning import sweep_file

    return _matching(sweep_file.names(), incomplete)


def stored_sweeps(context: typer.Context, incomplete: str) -> list[str]:
    """Return the sweeps with runs in the store, or all available sweeps if there are none."""
    stored = [folder.name for folder in _folder(context, "cells").glob("*") if folder.is_dir()]
    return _matching(stored, incomplete) if stored else sweeps(incomplete)


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """Return the runs in the store, of all sweeps: typer does not give the sweep name here."""
    files = _folder(context, "cells").glob("*/*.parquet")
    # a search adds files <run>-<n> to its run; the run id itself has one dash
    return _matching(("-".join(file.stem.split("-")[:2]) for file in files), incomplete)


def cells(context: typer.Context, incomplete: str) -> list[str]:
    """Return the cells with trials in the store."""
    names = (file.name.partition("-")[0] for file in _folder(context, "trials").glob("*/*.parquet"))
    return _matching(names, incomplete)


def tables(incomplete: str) -> list[str]:
    """Return the kinds of tables."""
    from casting_tune.analysis.tables import TABLES

    return _matching(TABLES, incomplete)


def formats(incomplete: str) -> list[str]:
    """Return the output formats of tables."""
    from casting_tune.report import render

    return _matching(render.FORMATS, incomplete)


def backbones(incomplete: str) -> list[str]:
    """Return the names of the registered backbones."""
    from casting_tune.models import registry

    return _matching(registry.BACKBONES, incomplete)


def _folder(context: typer.Context, table: str) -> Path:
    """Return the folder of a table. A bucket gives no names: completion must not wait."""
    return Path(str(context.params.get("results") or "results")) / table


def _matching(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(
        {name for name in names if name.startswith(incomplete) and not name.startswith(".")}
    )
