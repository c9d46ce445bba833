"""Checks what import-linter and ruff cannot: what an import loads, frames to records, length."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent.parent / "casting_tune"
MODULES = sorted(str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.py"))


def text_of(module: str) -> str:
    return (PACKAGE / f"{module}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("module", [m for m in MODULES if m != "cli/console"])
def test_only_the_console_writes_to_the_terminal(module: str) -> None:
    """ruff forbids `print` (T20)."""
    assert ".stdout.write" not in text_of(module)


@pytest.mark.parametrize(
    "module",
    [m for m in MODULES if m not in ("analysis/run_results", "analysis/importance", "cli/console")],
)
def test_rows_of_a_frame_become_records_in_one_place(module: str) -> None:
    """A missing text is NaN in a frame, which is true: `run_results.records` makes it None."""
    assert ".to_dict(" not in text_of(module)


@pytest.mark.parametrize("module", [m for m in MODULES if m != "execution/ray_private"])
def test_private_parts_of_ray_are_used_in_one_module_only(module: str) -> None:
    """ruff forbids the modules (TID251); these are attributes."""
    assert not [name for name in ("run_metadata", "pickled_error") if name in text_of(module)]


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_are_short(module: str) -> None:
    """At most 350 lines in a module, and 50 in a function below its signature and docstring."""
    assert len(text_of(module).splitlines()) <= 350
    long = {}
    for node in ast.walk(ast.parse(text_of(module))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            long[node.name] = (body[-1].end_lineno or 0) - body[0].lineno + 1
    assert {name: n_lines for name, n_lines in long.items() if n_lines > 50} == {}


def test_the_command_line_loads_no_heavy_library() -> None:
    heavy = {
        "torch",
        "timm",
        "kornia",
        "ray",
        "pandas",
        "sklearn",
        "scipy",
        "pyarrow",
        "duckdb",
        "matplotlib",
    }
    code = "import casting_tune.cli.main, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not heavy & set(loaded)
