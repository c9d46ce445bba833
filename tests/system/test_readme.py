"""README's commands, queries and tables are true."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from casting_tune.cli import main
from casting_tune.execution import runner
from casting_tune.planning import space, sweep_file
from casting_tune.planning.options import Options

README = Path(__file__).parent.parent.parent / "README.md"
TEXT = README.read_text()
COMMANDS = re.findall(
    r"(?:^|&& )\s*((?:casting-tune|python -m casting_tune\.sweep) [^#&|`\n]+)", TEXT, re.MULTILINE
)
COMMANDS += re.findall(
    r"(?:ray exec .*'|-- )((?:casting-tune|python -m casting_tune\.sweep) [^'`\n]+)", TEXT
)
COMMANDS += [  # in a sentence; --install-completion would change this user's shell
    " ".join(span.split())
    for span in re.findall(r"`((?:casting-tune|python -m casting_tune\.sweep) [a-z][^`]*)`", TEXT)
]


def block_commands(text: str) -> list[str]:
    """Return every command of a page's indented blocks as written, each once.

    Fenced blocks are in other languages: sweep files, queries, a Dockerfile. The listing of a store
    is no command.
    """
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE).replace("\\\n", " ")
    found: list[str] = []
    for line in re.findall(r"^    (?!results/)(.+)$", plain, re.MULTILINE):
        words = shlex.shlex(line, posix=False, punctuation_chars="&")  # not posix: quotes stay
        words.whitespace_split, words.commenters = True, "#"
        commands: list[list[str]] = [[]]
        for word in words:
            commands.append([]) if word == "&&" else commands[-1].append(word)
        found += map(" ".join, commands)
    return list(dict.fromkeys(found))


BLOCKS = block_commands(TEXT)
ELSEWHERE = {
    "pip install -e .": ("installs what this suite runs on", ""),
    'pip install -e ".[test]"': ("installs what this suite runs on", ""),
    "pytest -n 2 --dist worksteal": ("is this suite", ""),
    'pip install "casting-tune[fetch]"': ("installs an extra", ""),
    'pip install -e ".[cluster]"': ("installs an extra", ""),
    "casting-tune fetch --accept-licence --out castings": ("needs a network", "test_kaggle.py"),
    "python -m casting_tune.sweep backbone_grid --data DIR --gpus-per-trial auto --plan --probe": (
        "needs a GPU", "test_sharing.py",
    ),
    "python -m casting_tune.sweep backbone_grid --data DIR --gpus-per-trial auto": ("needs a GPU", "test_sharing.py"),
    "export RAY_AUTH_MODE=token": ("is for a cluster", "test_namespaces.py"),
    "ray get-auth-token --generate": ("is for a cluster", "test_namespaces.py"),
    "chmod 600 ~/.ray/auth_token": ("is for a cluster", "test_namespaces.py"),
    "aws cloudformation deploy --stack-name casting-tune --template-file clusters/account.yaml "
    "--capabilities CAPABILITY_NAMED_IAM "
    "--parameter-overrides SshFrom=$(curl -s https://checkip.amazonaws.com)/32": ("needs AWS", "test_aws.py"),
    "aws cloudformation describe-stacks --stack-name casting-tune --query 'Stacks[0].Outputs'": (
        "needs AWS", "test_aws.py",
    ),
    "ray up cluster.yaml": ("needs a cluster", "test_namespaces.py"),
    "ray rsync-up cluster.yaml castings/ /home/ubuntu/castings/": ("needs a cluster", "test_namespaces.py"),
    "ray exec --tmux cluster.yaml "
    "'python -m casting_tune.sweep backbone_grid --data /home/ubuntu/castings --address auto'": (
        "needs a cluster", "test_namespaces.py",
    ),
    "ray exec cluster.yaml 'casting-tune table backbone_grid'": ("needs a cluster", "test_namespaces.py"),
    "ray down -y cluster.yaml": ("needs a cluster", "test_namespaces.py"),
}  # fmt: skip
"""A command of README's blocks that no test runs as written -> why, and the test that covers what it does."""

OURS = ("casting-tune ", "python -m casting_tune.sweep ")
RUN_AS_WRITTEN = [
    command for command in BLOCKS if command.startswith(OURS) and command not in ELSEWHERE
]
"""What tests/system/test_readme_commands.py runs."""


def test_every_command_of_readmes_blocks_is_run_as_written_or_named_with_the_reason_why_not() -> (
    None
):
    assert [
        command for command in BLOCKS if command not in RUN_AS_WRITTEN and command not in ELSEWHERE
    ] == []
    assert [command for command in ELSEWHERE if command not in BLOCKS] == []
    assert len(RUN_AS_WRITTEN) > 30
    tests = {path.name for path in Path(__file__).parent.parent.rglob("test_*.py")}
    assert {test for _, test in ELSEWHERE.values() if test} <= tests


def test_a_command_that_is_neither_run_nor_named_is_found() -> None:
    page = 'Words.\n\n    casting-tune list  # runs\n    ray up x.yaml && casting-tune query "select 1 && 2"\n'
    page += "\n    results/cells/  a file\n\n```toml\n    a = 1\n```\n\n    aws s3 ls \\\n      s3://b\n"
    assert block_commands(page) == [
        "casting-tune list",
        "ray up x.yaml",
        'casting-tune query "select 1 && 2"',
        "aws s3 ls s3://b",
    ]


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
        main.sweep_alone() if alone else main.main()
    assert ended.value.code in (0, None), capsys.readouterr().err


def test_the_queries_run_on_a_store_and_agree_on_the_accuracy(
    tiny: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Options(sweep=str(tiny), data=drawn, results=tmp_path / "results", inline=True)
    prepared = runner.prepare(asked, say=lambda _: None)
    runner.execute(prepared, on_event=lambda _: None)
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
    assert len(prepared.store.read("trials")) == len(
        trained
    )  # every cell was there under the other sweep's name
    assert "both right" in printed[4]
    assert "missed defects: (" in printed[4]


def test_readme_names_every_sweep_with_its_cells() -> None:
    for name in sweep_file.names():
        if (README.parent / "sweeps" / f"{name}.toml").is_file():
            assert f"| `{name}` | {space.read(name).n_cells} |" in TEXT


def test_readmes_packages_are_those_of_the_folder() -> None:
    table = TEXT.partition("\n## Packages\n")[2].partition("\n## ")[0]
    first = [
        line.replace("\\|", ",").split("|")[1]
        for line in table.splitlines()
        if line.startswith("| ")
    ][2:]
    named = {name.strip() for names in first for name in names.split(",")}
    package = README.parent / "casting_tune"
    modules = {path.stem for path in package.glob("*.py")} - {"__init__", "sweep"}
    assert named == modules | {path.parent.name for path in package.glob("*/__init__.py")}
