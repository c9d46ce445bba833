"""What `from casting_tune import ...` offers, and what a bare import costs."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import casting_tune

HOUSE = Path(__file__).parent.parent.parent


def test_a_bare_import_loads_no_library_and_no_room() -> None:
    code = (
        "import sys; before = {*sys.modules}; import casting_tune; print(*{*sys.modules} - before)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "casting_tune" in loaded
    assert {name for name in loaded if name.startswith("casting_tune.")} == set()
    assert not {"torch", "pandas", "pyarrow", "ray", "numpy"} & set(loaded)


@pytest.mark.parametrize("name", casting_tune.__all__)
def test_every_public_name_is_there_documented_and_seen_by_dir(name: str) -> None:
    assert getattr(casting_tune, name).__doc__
    assert name in dir(casting_tune)


@pytest.mark.slow
def test_every_public_name_has_its_type_for_a_checker(tmp_path: Path) -> None:
    code = "\n".join(f"reveal_type({name})" for name in casting_tune.__all__)
    notebook = tmp_path / "notebook.py"
    notebook.write_text(f"from casting_tune import {', '.join(casting_tune.__all__)}\n{code}")
    words = [sys.executable, "-m", "mypy", str(notebook)]
    result = subprocess.run(words, capture_output=True, text=True, check=False, cwd=HOUSE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("Revealed type") == len(casting_tune.__all__)
    assert '"Any"' not in result.stdout


def test_every_error_of_the_tree_is_public() -> None:
    from casting_tune import errors

    tree = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert len(tree) == 8
    assert tree <= set(casting_tune.__all__)
    assert casting_tune.StoreError is errors.StoreError


def test_the_version_is_that_of_the_package_and_of_the_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from typer.main import get_command

    from casting_tune.cli import main

    assert casting_tune.__version__ == importlib.metadata.version("casting-tune")
    get_command(main.app)(["--version"], standalone_mode=False)
    assert capsys.readouterr().out == f"casting_tune {casting_tune.__version__}\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Stroe'"):
        _ = casting_tune.Stroe
