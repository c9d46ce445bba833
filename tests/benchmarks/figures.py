"""Writes the figures of a benchmark: median and range, conditions, and their place in docs.

Input: the measurements of a script. Output: a Markdown table on the terminal and, with
--write-docs, between the script's two markers in docs/benchmarks.md: nobody types a figure there
by hand. Measures nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from casting_tune import machine

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"


def parser(doc: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """Return a parser with what all benchmarks share: --repeats and --write-docs."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--repeats", type=int, default=repeats, help="how often each side is measured, in turn"
    )
    made.add_argument(
        "--write-docs", action="store_true", help="write the table to docs/benchmarks.md"
    )
    return made


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Return "median (min to max)", or the one value there is; "" for none."""
    known = sorted(values)
    if not known:
        return ""
    if len(known) == 1:
        return f"{known[0]:,.{digits}f}"
    median = statistics.median(known)
    return f"{median:,.{digits}f} ({known[0]:,.{digits}f} to {known[-1]:,.{digits}f})"


def ratios(ours: Sequence[float], theirs: Sequence[float], digits: int = 1) -> str:
    """Return the spread of ours / theirs, pair by pair.

    Both were measured in turn: a slow minute affects both of a pair.
    """
    return spread((a / b for a, b in zip(ours, theirs, strict=True)), digits)


def conditions(*packages: str) -> str:
    """Return the hardware, the load before the run, and the versions of the packages."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    beside = (
        f"; load of the machine {os.getloadavg()[0]:.1f} at the end"
        if hasattr(os, "getloadavg")
        else ""
    )
    here = f"{machine.cpus()} cores, {_processor()}, Python {platform.python_version()}"
    return f"{here}, {versions}{beside}."


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def publish(name: str, text: str, *, write_docs: bool) -> None:
    """Print a text; `write_docs` also puts it between its markers in docs/benchmarks.md."""
    print(text)
    if write_docs:
        PAGE.write_text(placed(PAGE.read_text(encoding="utf-8"), name, text), encoding="utf-8")
        print(f"\n{PAGE.name}: '{name}' written.", file=sys.stderr)


def placed(page: str, name: str, text: str) -> str:
    """Return a page with the text between the markers of that name.

    Raises:
        ValueError: the page has no such markers.
    """
    begin, end = f"<!-- measured: {name} -->\n", f"<!-- end: {name} -->"
    if begin not in page or end not in page:
        raise ValueError(
            f"{PAGE.name} has no place for '{name}': it needs the lines {begin.strip()} and {end}."
        )
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{text.strip()}\n{end}{after}"


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    texts = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    has = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bf16", "amx_bf16": "bf16 in tiles"}
    flags = [word for flag, word in has.items() if flag in texts.get("flags", "").split()]
    return " with ".join(
        part for part in (texts.get("model name") or platform.machine(), ", ".join(flags)) if part
    )
