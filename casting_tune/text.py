"""Text from files and names, made harmless for who reads it: a terminal, a spreadsheet.

Comes in: text. Goes out: text of one line. Knows no other room.
"""

from __future__ import annotations


def plain(text: str) -> str:
    """Return text as one line without control characters: names come from files and may try to steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def in_csv(text: str) -> str:
    """Return text that no spreadsheet takes for a formula: one that begins like one gets an apostrophe."""
    return f"'{plain(text)}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else plain(text)
