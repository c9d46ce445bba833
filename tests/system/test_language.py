"""Messages, help, docstrings and pages are in plain technical English (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MODULES = sorted((ROOT / "casting_tune").rglob("*.py"))
PAGES = sorted(
    [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "sweeps").glob("*.toml"),
        *(ROOT / "casting_tune" / "report").glob("page.*.j2"),
        *(ROOT / "casting_tune" / "report").glob("page.js"),
    ]
)
BANNED = (
    r"cannot be meant",
    r"can be meant",
    r"to be had",
    r"told apart",
    r"rightly",
    r"wrongly",
    r"\brooms?\b",
    r"\bmend(ed|s|ing)?\b",
    r"of (its|their) own accord",
    r"a thing of its own",
    r"(is|are|was|were|be) told\b",
    r"\btells of\b",
    r"goes? on\b",
    r"went on\b",
    r"stands? (beside|below|above|in the way)\b",
    r"where it comes from",
    r"of nobody",
    r"whoever",
    r"\blets us in\b",
    r"speaks? (for|of)\b",
    r"name the bad",
    r"\blearns? nothing\b",
    r"flatter",
    r"\btells?\b",
    r"in the way\b",
    r"of today\b",
    r"against each other",
    r"without being asked",
    r"lags? behind",
    r"for ever\b",
    r"\bbeside\b",
    r"got no decision",
    r"(on|in) both sides",
    r"begins? the ids?",
    r"a whole number of times",
    r"cannot be told",
    r"\bawaited\b",
    r"every .{1,20} of its own\b",
)
"""Phrases that readers stumbled over, as regular expressions without case."""
LONGEST = 30
"""Words in a sentence of a message."""


def expression_text(node: ast.expr) -> str:
    """Return the text that an expression builds, `X` for every value in it."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else "X"
    if isinstance(node, ast.JoinedStr):
        return "".join(expression_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return expression_text(node.left) + expression_text(node.right)
    return "X"


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every text of a module with its line: docstrings, messages, help."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the text of every exception that a module raises, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            yield node.lineno, expression_text(node.exc.args[0])


def sentences(text: str) -> list[str]:
    """Return the parts of a text that end with a full stop, a colon or a similar mark."""
    return [part for part in re.split(r"(?<=[.?!:;])\s+", text) if part]


def banned_phrase(text: str) -> str | None:
    """Return the first banned phrase of a text, None without one."""
    match = re.search("|".join(BANNED), text, re.IGNORECASE)
    return match.group() if match else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_expression_text_a_module_has_a_phrase_that_readers_stumbled_over(path: Path) -> None:
    found = [(line, banned_phrase(text)) for line, text in strings(path)]
    assert [hit for hit in found if hit[1]] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_has_a_phrase_that_readers_stumbled_over(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [(line, banned_phrase(text)) for line, text in enumerate(lines, 1)]
    assert [hit for hit in found if hit[1]] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_sentence_of_a_message_is_long(path: Path) -> None:
    long = [
        (line, sentence)
        for line, text in messages(path)
        for sentence in sentences(text)
        if len(sentence.split()) > LONGEST
    ]
    assert long == []


def test_a_banned_phrase_and_a_long_sentence_are_found() -> None:
    assert banned_phrase("a value that cannot be meant") == "cannot be meant"
    assert banned_phrase("Rooms") == "Rooms"
    assert banned_phrase("an invalid value in the bathroom") is None
    assert sentences("One: two. Three") == ["One:", "two.", "Three"]
