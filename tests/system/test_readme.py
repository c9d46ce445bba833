"""Commands, queries, tables and links of README and docs are true."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from casting_tune.cli import main
from casting_tune.execution import runner
from casting_tune.planning import expand, sweep_file
from casting_tune.planning.options import Options
from casting_tune.store.store import Store

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
}
TEXT = "\n".join(PAGES.values())
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


TUTORIAL = block_commands(PAGES["docs/tutorial.md"])
"""The commands of the tutorial; test_readme_commands.py runs them together, in one folder."""

BLOCKS = list(
    dict.fromkeys(
        command
        for name, text in PAGES.items()
        if name != "docs/tutorial.md"
        for command in block_commands(text)
    )
)
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
    "python -m casting_tune.sweep backbone_grid --data DIR --gpus-per-trial auto": (
        "needs a GPU",
        "test_sharing.py",
    ),
    "casting-tune pack images.csv": ("needs a list", "test_layouts.py"),
    'casting-tune sweep backbone_grid --quick --data DIR --group-pattern "part([0-9]+)_"': (
        "needs parts in the file names", "test_layouts.py",
    ),
    "export RAY_AUTH_MODE=token": ("is for a cluster", "test_namespaces.py"),
    "ray get-auth-token --generate": ("is for a cluster", "test_namespaces.py"),
    "chmod 600 ~/.ray/auth_token": ("is for a cluster", "test_namespaces.py"),
    "aws cloudformation deploy --stack-name casting-tune --template-file clusters/account.yaml "
    "--capabilities CAPABILITY_NAMED_IAM "
    "--parameter-overrides SshFrom=$(curl -s https://checkip.amazonaws.com)/32": (
        "needs AWS",
        "test_aws.py",
    ),
    "aws cloudformation describe-stacks --stack-name casting-tune --query 'Stacks[0].Outputs'": (
        "needs AWS", "test_aws.py",
    ),
    "ray up cluster.yaml": ("needs a cluster", "test_namespaces.py"),
    "ray rsync-up cluster.yaml castings/ /home/ubuntu/castings/": (
        "needs a cluster",
        "test_namespaces.py",
    ),
    "ray exec --tmux cluster.yaml "
    "'python -m casting_tune.sweep backbone_grid --data /home/ubuntu/castings --address auto'": (
        "needs a cluster", "test_namespaces.py",
    ),
    "ray exec cluster.yaml 'casting-tune table backbone_grid'": (
        "needs a cluster",
        "test_namespaces.py",
    ),
    "ray down -y cluster.yaml": ("needs a cluster", "test_namespaces.py"),
}  # fmt: skip
"""A command that no test runs as written -> why, and the test that covers what it does."""

OURS = ("casting-tune ", "python -m casting_tune.sweep ")
RUN_AS_WRITTEN = [
    command for command in BLOCKS if command.startswith(OURS) and command not in ELSEWHERE
]
"""What tests/system/test_readme_commands.py runs."""


def test_every_command_of_a_block_is_run_as_written_or_named_with_the_reason_why_not() -> None:
    assert [
        command for command in BLOCKS if command not in RUN_AS_WRITTEN and command not in ELSEWHERE
    ] == []
    assert [command for command in ELSEWHERE if command not in BLOCKS] == []
    assert len(RUN_AS_WRITTEN) > 30
    assert [command for command in TUTORIAL if not command.startswith(OURS)] == []
    tests = {path.name for path in Path(__file__).parent.parent.rglob("test_*.py")}
    assert {test for _, test in ELSEWHERE.values() if test} <= tests


def test_a_command_that_is_neither_run_nor_named_is_found() -> None:
    page = "Words.\n\n    casting-tune list  # runs\n"
    page += '    ray up x.yaml && casting-tune query "select 1 && 2"\n'
    page += "\n    results/cells/  a file\n\n```toml\n    a = 1\n```\n"
    page += "\n    aws s3 ls \\\n      s3://b\n"
    assert block_commands(page) == [
        "casting-tune list",
        "ray up x.yaml",
        'casting-tune query "select 1 && 2"',
        "aws s3 ls s3://b",
    ]


ASKED = ("docs/store.md", "docs/notebook.md")
"""The pages that have Python blocks, in the order in which a reader of both runs them."""

QUERIES = [
    query for page in ASKED for query in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)
]


def test_the_pages_have_commands_and_five_queries_and_no_other_page_has_python() -> None:
    assert len(COMMANDS) >= 60
    assert len(QUERIES) == 5
    assert [name for name, text in PAGES.items() if "```python" in text] == sorted(ASKED)


@pytest.mark.parametrize("command", dict.fromkeys(command.strip() for command in COMMANDS))
def test_every_command_of_the_pages_is_one_that_exists_with_these_options(
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
    options = Options(sweep=str(tiny), data=drawn, results=tmp_path / "results", inline=True)
    prepared = runner.prepare(options, say=lambda _: None)
    runner.execute(prepared, on_event=lambda _: None)
    monkeypatch.chdir(tmp_path)
    tiny.rename(tmp_path / "my_sweep.toml")
    (tmp_path / "castings").symlink_to(drawn)
    printed: list[str] = []
    notebook: dict[str, object] = {}  # cells of one notebook see each other's names
    for query in QUERIES:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(query, "docs", "exec"), notebook)
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


def test_the_pages_name_every_sweep_with_its_cells() -> None:
    for name in sweep_file.names():
        if (ROOT / "sweeps" / f"{name}.toml").is_file():
            assert f"| `{name}` | {expand.read(name).n_cells} |" in PAGES["docs/sweep-files.md"]


def test_every_complete_sweep_file_of_the_pages_can_be_read(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    complete = [block for block in blocks if block.startswith("question")]
    assert len(complete) >= 2
    for block in complete:
        file = tmp_path / "read.toml"
        file.write_text(block, encoding="utf-8")
        assert expand.read(str(file)).n_cells >= 2


def test_the_packages_of_the_architecture_are_those_of_the_folder() -> None:
    table = PAGES["docs/architecture.md"].partition("\n## Packages\n")[2].partition("\n##")[0]
    first = [
        line.replace("\\|", ",").split("|")[1]
        for line in table.splitlines()
        if line.startswith("| ")
    ][2:]
    named = {name.strip() for names in first for name in names.split(",")}
    package = ROOT / "casting_tune"
    modules = {path.stem for path in package.glob("*.py")} - {"__init__", "sweep"}
    assert named == modules | {path.parent.name for path in package.glob("*/__init__.py")}


def test_readme_has_at_most_150_lines_and_names_every_page() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150
    index = PAGES["docs/index.md"]
    for name in PAGES:
        page = name.removeprefix("docs/")
        assert page in ("README.md", "index.md") or f"(docs/{page})" in PAGES["README.md"]
        assert page in ("README.md", "index.md") or f"({page})" in index


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ (.+)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken(text: str, page: Path) -> list[str]:
    """Return the relative links of a page that lead to no file or to no heading."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = unquote(link).partition("#")
        target = page.parent / place
        there = target.is_file() if place else True
        heads = anchors(target.read_text("utf-8") if place else text) if there and anchor else set()
        if not there or (anchor and anchor not in heads):
            found.append(link)
    return found


@pytest.mark.parametrize("name", [*PAGES, "CONTRIBUTING.md"])
def test_every_relative_link_leads_to_a_file_and_a_heading(name: str) -> None:
    assert broken((ROOT / name).read_text(encoding="utf-8"), ROOT / name) == []


def test_a_link_to_nowhere_is_found() -> None:
    page = "# One (1)\n[a](#one-1) [b](#two) [c](nowhere.md) ![d](x.svg) [e](https://example.org)"
    assert broken(page, ROOT / "page.md") == ["#two", "nowhere.md", "x.svg"]


def test_the_terminal_picture_is_made_from_what_the_program_prints_and_loads_nothing(
    trained: Store, tmp_path: Path
) -> None:
    file = tmp_path / "terminal.svg"
    words = ["terminal", "--sweep", "tiny", "--results", str(trained.root), "--out", str(file)]
    make = [sys.executable, str(DOCS / "images" / "make.py"), *words]
    ended = subprocess.run(make, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    for svg in (file.read_text("utf-8"), (DOCS / "images" / "terminal.svg").read_text("utf-8")):
        assert "casting-tune&#160;table&#160;" in svg
        assert "acc&#160;%" in svg
        assert set(re.findall(r"https?://[^\"\s]+", svg)) <= {
            "http://www.w3.org/2000/svg",
            "https://www.textualize.io",
        }
    assert "only&#160;flip" in file.read_text("utf-8")
