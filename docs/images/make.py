"""Make the pictures of README and docs again, from the program's own output on synthetic castings.

    python docs/images/make.py terminal    # docs/images/terminal.svg
    python docs/images/make.py report      # docs/images/report.png; needs playwright and Chromium

Without `--results`, the quick run of `backbone_grid` is made first, in a temporary folder: two to
fifteen minutes on two cores. With it, an existing store of that run is shown.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).parent
COLUMNS = 128
CHROMIUM = "/usr/bin/chromium"


def main() -> None:
    """Make one picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", choices=("terminal", "report"))
    parser.add_argument("--sweep", default="backbone_grid", help="name of the sweep")
    parser.add_argument("--results", type=Path, help="store of an earlier run of the sweep")
    parser.add_argument("--out", type=Path, help="file to write; default: in docs/images")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if words.results is None:
            command = [sys.executable, "-m", "casting_tune.sweep", words.sweep, "--quick"]
            environment = {k: v for k, v in os.environ.items() if k != "CASTING_TUNE_DATA"}
            subprocess.run(command, cwd=folder, env=environment, check=True)
        results = (words.results or folder / "results").absolute()
        if words.picture == "terminal":
            command_line = f"casting-tune table {words.sweep}"
            image = terminal(command_line, output(command_line, results))
            (words.out or IMAGES / "terminal.svg").write_text(image, encoding="utf-8")
        else:
            page = folder / "report.html"
            output(f"casting-tune report {words.sweep} --out {page}", results)
            screenshot(page, words.out or IMAGES / "report.png")


def output(command: str, results: Path) -> str:
    """Return what a command prints on a terminal, with its colours as ANSI codes."""
    code = (
        "import sys; from casting_tune.cli.main import main; sys.argv[0] = 'casting-tune'; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *command.split()[1:]],
        env={
            **os.environ,
            "CASTING_TUNE_RESULTS": str(results),
            "COLUMNS": str(COLUMNS),
            "FORCE_COLOR": "1",
            "TERM": "xterm-256color",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout


def terminal(command: str, printed: str) -> str:
    """Return an SVG of a terminal with a command and its output; the SVG loads no font."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        console.print(Text(f"$ {command}", style="bold"))
        console.print(Text.from_ansi(printed.rstrip("\n")))
        svg = console.export_svg(title="casting_tune", unique_id="casting-tune")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def screenshot(page: Path, file: Path) -> None:
    """Write the first screen of an HTML page, 1200 x 760 pixels, taken without a network."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(offline=True, viewport={"width": 1200, "height": 760})
        opened = context.new_page()
        opened.goto(page.as_uri())
        opened.screenshot(path=file)
        browser.close()


if __name__ == "__main__":
    main()
