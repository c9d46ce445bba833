"""A hook at every step that stores data or changes the phase: a test can make the n-th step fail.

Input: the name of the step. Output: none. Outside tests a step calls an empty function, which takes
40 ns; the shortest real step is an fsync. Knows no other module.
"""

from __future__ import annotations

from collections.abc import Callable


def _pass(name: str) -> None:
    del name


hook: Callable[[str], None] = _pass
"""The function that a step calls; tests replace it."""


def step(name: str) -> None:
    """Report that a step follows or was done."""
    hook(name)
