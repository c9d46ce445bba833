"""The space of a search: its corners, choices of earlier runs, and text about them.

Input: a Search of a sweep file, and the store's record of earlier choices. Output: configurations,
Choices, sentences. Does not know Optuna.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from casting_tune.config import TrialConfig, cell_id
from casting_tune.planning import expand
from casting_tune.planning.cells import Cell, Search
from casting_tune.planning.sections import Range, Settings
from casting_tune.store.store import Store

MOST_CORNERS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A choice of settings, and its cell."""

    settings: Settings
    cell: Cell
    cell_id: str


def corners(search: Search) -> tuple[TrialConfig, ...]:
    """Return the configurations that a check before the search has to look at.

    They are all combinations of every choice and of the ends of every range. If there are more than
    `MOST_CORNERS`, they are all combinations of backbone, image size and batch size, and every
    other value once with the first values of the others.

    Raises:
        UsageError: a combination that no network can be trained with.
    """
    ends: dict[str, list[Any]] = {
        name: given.choices or [given.low, given.high] for name, given in search.space.items()
    }
    if math.prod(map(len, ends.values())) <= MOST_CORNERS:
        settings = _combinations(ends)
    else:
        first = {name: values[0] for name, values in ends.items()}
        sizes: dict[str, list[Any]] = {
            name: ends[name] for name in ("backbone", "image_px", "batch_size") if name in ends
        }
        settings = [first | values for values in _combinations(sizes)]
        settings += [
            first | {name: value}
            for name, values in ends.items()
            if name not in sizes
            for value in values
        ]
    return tuple(
        dict.fromkeys(expand.search_config(search, _active(search, values)) for values in settings)
    )


def _combinations(values: dict[str, list[Any]]) -> list[Settings]:
    return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What earlier runs of a search chose.

    Attributes:
        chosen: choices that are still in the space and give the same cell, in their order.
        notes: how many other choices there are, and why they are not used.
        n_labelled: the highest number of a row so far; new rows continue from it.
    """

    chosen: tuple[Chosen, ...] = ()
    notes: tuple[str, ...] = ()
    n_labelled: int = 0


NO_PAST = Past()


def past(
    search: Search, store: Store, *, sweep: str, dataset_id: str, finish: Callable[[Cell], Cell]
) -> Past:
    """Return what earlier runs of a sweep chose, and which of it today's search does not use."""
    chosen: dict[str, Chosen] = {}
    outside: dict[str, str] = {}  # a cell -> why it is outside the space
    changed: set[str] = set()
    n_labelled = 0
    for row in _recorded(store, sweep):
        key, label = row["cell_id"], row["label"]
        if key in chosen:
            continue
        settings: Settings = json.loads(row["chosen"])
        reason = _outside(search, settings)
        if reason is None:
            cell = finish(
                Cell(row=label, label=label, config=expand.search_config(search, settings))
            )
            if cell_id(cell.config, dataset_id) != key:
                changed.add(key)
                continue
            chosen[key] = Chosen(settings=settings, cell=cell, cell_id=key)
        else:
            outside[key] = reason
        number = re.match(r"(\d+): ", label)
        n_labelled = max(n_labelled, int(number.group(1)) if number else 0)
    reasons = Counter(reason for key, reason in outside.items() if key not in chosen)
    notes = _notes(reasons, len(changed - chosen.keys()))
    return Past(chosen=tuple(chosen.values()), notes=notes, n_labelled=n_labelled)


def _recorded(store: Store, sweep: str) -> list[dict[str, Any]]:
    """Return the choices that the store holds of a sweep, in their order."""
    columns = ["sweep", "asked_at", "position", "cell_id", "label", "chosen"]
    rows = store.read("cells", columns=columns).sort_by(
        [("asked_at", "ascending"), ("position", "ascending")]
    )
    return [row for row in rows.to_pylist() if row["sweep"] == sweep and row["chosen"] is not None]


def _notes(reasons: Counter[str], n_changed: int) -> tuple[str, ...]:
    """Return a sentence about choices outside the space, and one about other changes."""
    notes = []
    if reasons:
        counted = "; ".join(f"{n} with {reason}" for reason, n in reasons.most_common())
        notes.append(
            f"{_trials(reasons.total())} outside the current search space and not used: {counted}."
        )
    if n_changed:
        notes.append(f"{_trials(n_changed)} of other fixed settings or other images and not used.")
    return tuple(notes)


def _trials(n: int) -> str:
    return (
        f"{n} earlier trials of this search are" if n > 1 else "1 earlier trial of this search is"
    )


def holds(search: Search, given: Range, settings: Settings) -> bool:
    """Return whether the condition of a range holds for some settings."""
    whole = {**search.fixed, **settings}
    return all(whole.get(name) == value for name, value in given.when.items())


def _active(search: Search, settings: Settings) -> Settings:
    """Return the settings whose condition holds."""
    active: Settings = {}
    for name, given in search.space.items():
        if holds(search, given, active):
            active[name] = settings[name]
    return active


def _outside(search: Search, settings: Settings) -> str | None:
    """Return why a choice is outside the space, by its first such setting; None: it is inside."""
    active: Settings = {}
    for name, given in search.space.items():
        if not holds(search, given, active):
            continue
        if name not in settings:
            return f"no {name}"
        active[name] = settings[name]
        if not _offers(given, settings[name]):
            offered = _offered(given)
            return (
                f"{name} {_text(settings[name])} (now {offered})"
                if given.choices
                else f"{name} outside {offered}"
            )
    other = [name for name in settings if name not in active]
    if not other:
        return None
    return f"{other[0]}, which is not searched {'there' if other[0] in search.space else 'now'}"


def _offers(given: Range, value: Any) -> bool:
    """Return whether a range contains a value."""
    if given.choices is not None:
        return any(value == choice and type(value) is type(choice) for choice in given.choices)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    low, high = given.low or 0, given.high or 0
    steps = (value - low) / given.step if given.step else 0.0
    return low <= value <= high and abs(steps - round(steps)) < 1e-6


def label_of(settings: Settings) -> str:
    """Return settings as the label of a cell."""
    return ", ".join(f"{name} {_text(value)}" for name, value in settings.items())


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _offered(given: Range) -> str:
    if given.choices is not None:
        return " or ".join(map(_text, given.choices))
    step = "" if given.step is None else f", step {_text(given.step)}"
    return f"{_text(given.low)} to {_text(given.high)}{step}"


def sentences(search: Search) -> tuple[str, ...]:
    """Return what a search varies, one line per setting, and its objectives."""
    goals = " and ".join(f"{goal} {name}" for name, goal in search.objective.items())
    lines = [f"A search of {search.n_trials} trials by {goals}, seed {search.seed}, over:"]
    for name, given in search.space.items():
        scale = _offered(given) + (", log" if given.log else "")
        when = "".join(f", if {other} is {_text(value)}" for other, value in given.when.items())
        lines.append(f"    {name}: {scale}{when}")
    return tuple(lines)
