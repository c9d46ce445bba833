"""The language of messages, help texts and docstrings: plain technical English (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MODULES = sorted((ROOT / "casting_tune").rglob("*.py"))
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "sweeps").glob("*.toml")])
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
)
"""Phrases that readers stumbled over, as regular expressions without case."""
LONGEST = 30
"""Words in a sentence of a message."""


def text_of(node: ast.expr) -> str:
    """Return the text that an expression builds, `X` for every value in it."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else "X"
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
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
            yield node.lineno, text_of(node.exc.args[0])


def sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.?!:;])\s+", text) if part]


def is_banned(text: str) -> str | None:
    found = re.search("|".join(BANNED), text, re.IGNORECASE)
    return found.group() if found else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_of_a_module_has_a_phrase_that_readers_stumbled_over(path: Path) -> None:
    assert [(line, is_banned(text)) for line, text in strings(path) if is_banned(text)] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_has_a_phrase_that_readers_stumbled_over(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [(n, is_banned(text)) for n, text in enumerate(lines, 1) if is_banned(text)] == []


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
    assert is_banned("a value that cannot be meant") == "cannot be meant"
    assert is_banned("Rooms") == "Rooms"
    assert is_banned("an invalid value in the bathroom") is None
    assert sentences("One: two. Three") == ["One:", "two.", "Three"]
