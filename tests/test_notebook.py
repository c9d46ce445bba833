"""What `from casting_tune import ...` offers, and what a bare import costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import casting_tune

HOUSE = Path(__file__).parent.parent


def test_a_bare_import_loads_no_library_and_no_room() -> None:
    code = "import sys; before = {*sys.modules}; import casting_tune; print(*{*sys.modules} - before)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
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
    told = subprocess.run(words, capture_output=True, text=True, check=False, cwd=HOUSE)
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.count("Revealed type") == len(casting_tune.__all__)
    assert '"Any"' not in told.stdout


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Stroe'"):
        _ = casting_tune.Stroe
