"""What a shell may offer where a person presses Tab: names, and never an error.

Comes in: what was typed so far, and the options before it. Goes out: names that begin so. Reads
names of files at most: no torch, no Parquet, no network.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer


def sweeps(incomplete: str) -> list[str]:
    """Return the sweeps that are found by name."""
    from casting_tune.planning import sweep_file

    return _beginning(sweep_file.names(), incomplete)


def stored_sweeps(context: typer.Context, incomplete: str) -> list[str]:
    """Return the sweeps that the store holds runs of; before the first run, those that are found by name."""
    stored = [folder.name for folder in _folder(context, "cells").glob("*") if folder.is_dir()]
    return _beginning(stored, incomplete) if stored else sweeps(incomplete)


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """Return the runs in the store, of any sweep: the one that was named is not known yet while an option is typed."""
    files = _folder(context, "cells").glob("*/*.parquet")
    # a search adds files <run>-<n> to its run, and a run's own name has one dash
    return _beginning(("-".join(file.stem.split("-")[:2]) for file in files), incomplete)


def cells(context: typer.Context, incomplete: str) -> list[str]:
    """Return the cells that the store holds a trial of."""
    names = (file.name.partition("-")[0] for file in _folder(context, "trials").glob("*/*.parquet"))
    return _beginning(names, incomplete)


def tables(incomplete: str) -> list[str]:
    """Return the kinds of tables."""
    from casting_tune.analysis import tables as room

    return _beginning(room.TABLES, incomplete)


def formats(incomplete: str) -> list[str]:
    """Return the forms that a table comes in."""
    from casting_tune.report import render

    return _beginning(render.FORMATS, incomplete)


def backbones(incomplete: str) -> list[str]:
    """Return the backbones that have a name here."""
    from casting_tune.models import registry as room

    return _beginning(room.BACKBONES, incomplete)


def _folder(context: typer.Context, table: str) -> Path:
    """Return where a table of the store lies; a bucket is asked for nothing, since Tab must not wait."""
    return Path(str(context.params.get("results") or "results")) / table


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(
        {name for name in names if name.startswith(incomplete) and not name.startswith(".")}
    )
