"""README's commands, queries and tables are true."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from casting_tune import cli, space, sweep, sweepfile
from casting_tune.asked import Options

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text()
COMMANDS = re.findall(r"(?:^|&& )\s*((?:casting-tune|python -m casting_tune\.sweep) [^#&|`\n]+)", TEXT, re.MULTILINE)
COMMANDS += re.findall(r"(?:ray exec .*'|-- )((?:casting-tune|python -m casting_tune\.sweep) [^'`\n]+)", TEXT)
QUERIES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_readme_has_commands_and_three_queries() -> None:
    assert len(COMMANDS) >= 6
    assert len(QUERIES) >= 3


@pytest.mark.parametrize("command", dict.fromkeys(command.strip() for command in COMMANDS))
def test_every_command_of_readme_is_one_that_exists_with_these_options(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command)
    alone = words[0] == "python"
    monkeypatch.setattr(sys, "argv", ["casting-tune", *words[3 if alone else 1 :], "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.sweep_alone() if alone else cli.main()
    assert ended.value.code in (0, None), capsys.readouterr().err


def test_the_queries_run_on_a_store_and_agree_on_the_accuracy(
    tiny: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Options(sweep=str(tiny), data=drawn, results=tmp_path / "results", inline=True)
    prepared = sweep.prepare(asked, say=lambda _: None)
    sweep.execute(prepared, on_event=lambda _: None)
    monkeypatch.chdir(tmp_path)
    tiny.rename(tmp_path / "my_sweep.toml")
    (tmp_path / "castings").symlink_to(drawn)
    printed: list[str] = []
    notebook: dict[str, object] = {}  # cells of one notebook see each other's names
    for query in QUERIES:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(query, "README.md", "exec"), notebook)
        printed.append(out.getvalue())
    assert "test_accuracy" in printed[0]
    trained = prepared.store.read("trials").to_pylist()
    assert len(trained) >= 4
    for trial in trained:
        (line,) = [line for line in printed[1].splitlines() if trial["cell_id"] in line]
        assert float(line.split("│")[2]) == pytest.approx(trial["test_accuracy"], abs=1e-12)
    assert "validation_loss" in printed[2]
    assert printed[3].endswith("0 cells have no result\n")
    assert len(prepared.store.read("trials")) == len(trained)  # every cell was there under the other sweep's name
    assert "both right" in printed[4]
    assert "missed defects: (" in printed[4]


def test_readme_names_every_sweep_with_its_cells() -> None:
    for name in sweepfile.names():
        if (README.parent / "sweeps" / f"{name}.toml").is_file():
            assert f"| `{name}` | {space.read(name).n_cells} |" in TEXT


def test_readmes_rooms_are_those_of_the_package() -> None:
    named = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"^\| ([a-z_, ]+) \|", TEXT, re.MULTILINE))))
    rooms = {path.stem for path in (README.parent / "casting_tune").glob("*.py")} - {"__init__"}
    assert rooms <= named
