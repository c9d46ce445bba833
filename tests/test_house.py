"""The walls of the house: which room may import which, who may print, what a bare import may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent / "casting_tune"

MAY_IMPORT = {
    "errors": set(),
    "trial": set(),
    "inert": set(),
    "augment": set(),
    "head": set(),
    "precision": {"backbones", "trial"},
    "nasnet": set(),
    "weights": set(),
    "lean": set(),
    "backbones": {"head", "lean", "nasnet", "weights"},
    "sweepfile": {"trial", "augment", "metrics"},
    "space": {"trial", "augment", "backbones", "sweepfile"},
    "decode": {"inert"},
    "layout": {"decode"},
    "pack": {"decode", "layout"},
    "synthetic": set(),
    "fetch": set(),
    "folds": set(),
    "loader": set(),
    "capture": set(),
    "checkpoint": {"steps", "trial"},
    "memory": set(),
    "train": {"trial", "loader"},
    "metrics": set(),
    "stats": set(),
    "pairs": {"stats"},
    "steps": set(),
    "storage": {"steps"},
    "schema": {"augment", "metrics", "trial"},
    "gathered": set(),
    "scrub": set(),
    "store": {"gathered", "schema", "scrub", "storage"},
    "verify": {"schema", "store", "trial"},
    "migrate": {"schema", "store"},
    "rows": {"trial", "pack", "folds", "augment", "metrics", "scrub"},
    "run": {
        "trial",
        "pack",
        "folds",
        "loader",
        "memory",
        "augment",
        "backbones",
        "baselines",
        "capture",
        "checkpoint",
        "train",
        "rows",
        "steps",
        "store",
    },
    "tasks": {"trial", "rows", "run", "pack", "store"},
    "estimate": {"trial", "augment"},
    "packing": {"estimate", "memory", "trial"},
    "ray_private": set(),
    "ray_failures": set(),
    "startup": {"ray_failures", "ray_private"},
    "warm": {"backbones", "tasks"},
    "nodes": {"memory", "pack", "rows", "run", "startup", "trial"},
    "scheduling": {"nodes", "pack", "packing", "ray_private", "startup", "tasks", "trial"},
    "probes": {"nodes", "pack", "packing", "rows", "run", "store", "trial"},
    "plan": {"estimate", "packing", "space", "store", "trial"},
    "search": {"tasks", "space", "store", "sweepfile", "trial"},
    "answers": {"store"},
    "contrasts": {"answers", "pairs", "stats", "augment", "schema", "store"},
    "timings": {"answers", "backbones", "store"},
    "tables": {"answers", "contrasts", "timings", "metrics", "stats", "pairs", "backbones", "store", "verdict"},
    "render": {"answers", "inert", "metrics"},
    "query": {"schema", "store"},
    "inventory": {"answers", "augment", "pairs", "schema", "stats", "store"},
    "versus": {"answers", "inventory", "pairs", "stats", "store"},
    "operating": {"metrics", "stats"},
    "curves": {"answers", "augment", "metrics", "schema", "trial"},
    "optuna_export": {"schema", "store", "trial"},
    "importance": set(),
    "verdict": {"answers"},
    "figures": {"inert"},
    "gallery": {"charts", "pack", "pictures", "synthetic"},
    "report": {
        "answers",
        "chosen",
        "curves",
        "figures",
        "gallery",
        "importance",
        "operating",
        "pack",
        "render",
        "store",
        "tables",
        "verdict",
    },
    "canvas": set(),
    "charts": {"canvas", "pack"},
    "pictures": {"augment", "canvas", "pack"},
    "photographs": set(),
    "audit": {"pack", "photographs", "store"},
    "baselines": {"pack", "metrics", "photographs"},
    "view": {"tasks"},
    "loggers": {"tasks", "trial"},
    "audits": {"audit", "pack", "schema", "store"},
    "cells": {"audits", "augment", "pack", "store", "trial"},
    "chosen": {"answers", "cells", "operating", "store"},
    "reproduce": {"backbones", "cells", "rows", "run", "store", "trial"},
    "graph": {"predict"},
    "card": {"cells", "export", "inert", "metrics", "stats"},  # of export only the name of a type
    "export": {"backbones", "card", "cells", "chosen", "graph", "operating", "reproduce", "store", "trial"},
    "predict": {"decode", "inert"},
    "explain": {"backbones", "canvas", "cells", "decode", "export", "graph", "predict", "reproduce", "store"},
    "extras": {"space", "trial"},
    "summary": {"backbones"},
    "doctor": {"backbones", "precision", "startup", "store"},
    "clusterfile": {"ray_private"},
    "cluster": {"clusterfile"},
    "terminal": {"inert"},
    "completion": {"backbones", "render", "sweepfile", "tables"},
    "options": {"completion", "terminal"},
    "asked": {"space"},
    "resources": {"asked", "nodes", "packing", "probes", "rows", "space", "startup", "trial"},
    "inputs": {"asked", "audits", "estimate", "pack", "precision", "run", "space", "store", "synthetic", "trial"},
    "sweep": None,
    "commands_cells": None,
    "commands_cluster": None,
    "commands_images": None,
    "commands_models": None,
    "commands_results": None,
    "commands_store": None,
    "commands_sweep": None,
    "cli": None,
}
"""A room -> the rooms that it may import beside errors; None is any."""

OWNERS = {
    "ray": {"ray_private", "startup", "nodes", "warm", "scheduling", "search", "clusterfile"},
    "optuna": {"search", "importance", "optuna_export"},
    "timm": {"backbones", "nasnet", "weights", "head"},
    "kornia": {"augment"},
    "botocore": {"cluster"},
    "kagglehub": {"fetch"},
    "tensorboard": {"loggers"},
    "mlflow": {"loggers"},
    "wandb": {"loggers"},
    "PIL": {"decode", "gallery", "synthetic"},
    "pyarrow": {"gathered", "schema", "storage", "store", "verify", "audits", "cells", "chosen", "query", "inventory"},
    "duckdb": {"predict", "query"},
    "onnxruntime": {"predict"},
    "threadpoolctl": {"audit", "run"},
    "pandas": {
        "inventory",
        "versus",
        "answers",
        "contrasts",
        "timings",
        "tables",
        "render",
        "charts",
        "curves",
        "figures",
        "gallery",
        "importance",
        "report",
        "verdict",
    },
    "scipy": {"stats", "pairs", "photographs", "audit"},
    "sklearn": {"metrics", "folds", "baselines", "curves"},
    "plotly": {"figures"},
    "jinja2": {"report"},
    "matplotlib": {"canvas", "charts", "explain", "pictures"},
    "typer": {
        "cli",
        "completion",
        "options",
        "commands_cells",
        "commands_cluster",
        "commands_images",
        "commands_models",
        "commands_results",
        "commands_store",
        "commands_sweep",
    },
}


def imports_of(room: str) -> set[str]:
    tree = ast.parse((HOUSE / f"{room}.py").read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = node.module == "casting_tune"
            found |= {f"casting_tune.{alias.name}" for alias in node.names} if whole else {node.module}
    return found


def rooms() -> list[str]:
    return sorted(path.stem for path in HOUSE.glob("*.py") if path.stem != "__init__")


def test_every_room_stands_in_the_table() -> None:
    assert set(rooms()) == set(MAY_IMPORT)


def test_readme_says_of_every_room_once_what_it_is() -> None:
    readme = (HOUSE.parent / "README.md").read_text().partition("\n## Rooms\n")[2].partition("\n## ")[0]
    said = [line.split("|")[1].split(",") for line in readme.splitlines() if line.startswith("| ")][2:]
    assert sorted(name.strip() for names in said for name in names) == rooms()


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_only_the_rooms_that_it_may(room: str) -> None:
    allowed = MAY_IMPORT[room]
    ours = {name.split(".")[1] for name in imports_of(room) if name.startswith("casting_tune.")}
    assert allowed is None or ours - {"errors"} <= allowed


@pytest.mark.parametrize("room", rooms())
def test_a_library_is_imported_only_by_the_rooms_that_own_it(room: str) -> None:
    used = {name.split(".")[0] for name in imports_of(room)}
    assert not {library for library, owners in OWNERS.items() if library in used and room not in owners}


@pytest.mark.parametrize("room", rooms())
def test_no_room_but_terminal_writes_to_the_terminal(room: str) -> None:
    tree = ast.parse((HOUSE / f"{room}.py").read_text())
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert "print" not in called
    assert room == "terminal" or ".stdout.write" not in (HOUSE / f"{room}.py").read_text()


@pytest.mark.parametrize("room", sorted(set(rooms()) - {"answers", "importance", "terminal"}))
def test_rows_of_a_frame_become_records_in_one_place(room: str) -> None:
    """A missing text is NaN in a frame, and NaN is true: `answers.records` makes it None, `terminal` null."""
    assert ".to_dict(" not in (HOUSE / f"{room}.py").read_text()


def test_the_command_line_loads_no_heavy_library() -> None:
    heavy = {"torch", "timm", "kornia", "ray", "pandas", "sklearn", "scipy", "pyarrow", "duckdb", "matplotlib"}
    code = "import casting_tune.cli, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not heavy & set(loaded)


@pytest.mark.parametrize("room", [room for room in rooms() if room != "ray_private"])
def test_private_parts_of_ray_are_used_in_one_module_only(room: str) -> None:
    private = {name for name in imports_of(room) if name.startswith("ray.") and "._" in name}
    text = (HOUSE / f"{room}.py").read_text()
    assert not private
    assert not [name for name in ("ray._", "class_cache", "run_metadata", "pickled_error") if name in text]
