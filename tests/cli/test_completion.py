from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from casting_tune.cli import main


def offered(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Return what bash completes at the end of a line, with the variables that it sets."""
    monkeypatch.setenv("_CASTING_TUNE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"casting-tune {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(f"casting-tune {words}".split(" ")) - 1))
    monkeypatch.setattr(sys, "argv", ["casting-tune"])
    with pytest.raises(SystemExit):
        main.main()
    return capsys.readouterr().out.split()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A store's files by name; none of them can be read as Parquet."""
    for file in (
        "cells/tiny/20260102T030405-a1.parquet",
        "cells/tiny/20260102T030405-a1-7.parquet",  # what a search chose later in that run
        "cells/other/r2.parquet",
        "trials/tiny/abc-1.parquet",
        "trials/x/abd-1.parquet",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("swe", ["sweep", "sweeps"]),
        ("sweep backbone", ["backbone_grid"]),
        ("sweep x --qu", ["--quick"]),
        ("table --results {} t", ["tiny"]),
        ("table tiny --results {} --run ", ["20260102T030405-a1", "r2"]),
        ("table tiny --kind comp", ["comparison"]),
        ("table tiny --format j", ["json"]),
        ("threshold --results {} ab", ["abc", "abd"]),
        ("show --results {} abd", ["abd"]),
        ("compare --results {} abc ab", ["abc", "abd"]),
        ("summary vgg", ["vgg16"]),
    ],
)
def test_tab_offers_names(
    words: str,
    expected: list[str],
    results: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert offered(words.format(results), capsys, monkeypatch) == expected


def test_tab_loads_no_heavy_library(results: Path) -> None:
    code = (
        "import sys\ntry:\n from casting_tune.cli import main; main.main()\n"
        "finally:\n print({'torch', 'timm', 'ray', 'pyarrow'} & set(sys.modules), file=sys.stderr)"
    )
    requested = {
        "_CASTING_TUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": f"casting-tune show --results {results} a",
        "COMP_CWORD": "4",
    }
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | requested,
        check=False,
    )
    assert ended.stdout.split() == ["abc", "abd"]
    assert ended.stderr.strip() == "set()"
