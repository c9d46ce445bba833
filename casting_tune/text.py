"""One way to make text from files and names safe for a terminal, a table or a spreadsheet.

Input: text. Output: text in one line. Two policies: `plain` for terminals and pages, and `in_csv`,
which also prevents formulas in a spreadsheet.
"""

from __future__ import annotations


def plain(text: str, *, substitute: str = "?") -> str:
    """Return text in one line without control characters, which could control a terminal."""
    return "".join(char if char.isprintable() else substitute for char in text)


def in_csv(text: str) -> str:
    """Return `plain` text with an apostrophe before the first character of a formula."""
    return f"'{plain(text)}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else plain(text)
