"""One hook at every step that stores something or changes phase: a test may make the n-th of them fail.

Comes in: the step's name, in the room's own words. Goes out: nothing; outside tests a step is one
call of an empty function (40 ns, where the smallest step beside it is an fsync). Knows no other
room.
"""

from __future__ import annotations

from collections.abc import Callable


def _pass(name: str) -> None:
    del name


hook: Callable[[str], None] = _pass
"""What a step calls; tests put their own here."""


def step(name: str) -> None:
    """Say that a step is about to be taken, or was taken."""
    hook(name)
