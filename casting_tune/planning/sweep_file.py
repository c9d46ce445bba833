"""Find and read a sweep file.

A sweep file asks one question. Its sections, in order of priority (a later one overrides):

    [fixed]     settings that all cells share
    [axes]      setting = [values]; the `type` of the file says how they are combined
    [[cases]]   named rows (type "cases"): a label and settings, each with every combination of axes
    [[when]]    conditions: `match` some settings, `set` others
    [[study]]   published figures of the study, shown next to their cells
    [quick]     for --quick: `only` keeps cells, `set` overrides settings, `n_trials` of a search
    [limits]    time and memory limits of one trial; not part of a cell's key
    [schedule]  "asha" stops weak trials early; "fifo" runs every trial to its end
    [search]    instead of [axes]: Optuna chooses the cells from ranges or choices of settings

Settings are the fields of TrialConfig, `augmentation` (see `augmentation.parse`) and each toggle by
its name. Input: a name or a path. Output: a `sections.File` in which every name is a setting.
`expand` makes the cells.
"""

from __future__ import annotations

import importlib.resources
import math
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

from pydantic import BaseModel, ValidationError

from casting_tune.config import RESOLVED, TrialConfig
from casting_tune.errors import UsageError, unknown, unreadable
from casting_tune.metrics import METRICS, RANKING
from casting_tune.planning.sections import (
    Case,
    File,
    Limits,
    Quick,
    Range,
    Schedule,
    Search,
    Settings,
    Study,
    When,
)
from casting_tune.toggles import TOGGLES

NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_NOT_WRITTEN = ("toggles", *RESOLVED)  # derived from other settings, never written in a sweep file
SETTINGS = (
    *(f.name for f in fields(TrialConfig) if f.name not in _NOT_WRITTEN),
    "augmentation",
    *TOGGLES,
)

OBJECTIVES = (
    *(f"validation_{name}" for name in (*METRICS, *RANKING)),
    "latency_one_s",
    "latency_batch_s",
    "peak_memory_bytes",
    "n_parameters",
)
"""Columns of trials that a search can optimize, at threshold 0.5; none uses the test images."""


def names() -> list[str]:
    """Return the names of all sweeps that have a name, in alphabetical order."""
    return sorted(
        {path.stem for folder in _folders() if folder.is_dir() for path in folder.glob("*.toml")}
    )


def find(name: str) -> Path:
    """Return the path of a sweep file, given its name or its path.

    Raises:
        UsageError: not found, with the nearest known name; or an invalid name.
    """
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        if not _is_file(path):
            raise UsageError(
                f"Sweep file '{name}' not found. Available sweeps: {', '.join(names())}."
            )
    else:
        found = [
            folder / f"{name}.toml" for folder in _folders() if _is_file(folder / f"{name}.toml")
        ]
        if not found:
            raise UsageError(unknown("sweep", name, names()))
        path = found[0]
    if not NAME.fullmatch(path.stem):
        raise UsageError(
            f"Invalid sweep name '{path.stem}'. Use up to 63 lower-case letters, digits, "
            "'_' or '-'; start with a letter."
        )
    return path


def read(path: Path) -> File:
    """Read a sweep file and check its keys, types and names.

    Raises:
        UsageError: invalid TOML, an unknown key, a wrong type, or a name that is not a setting.
    """
    where = f"Sweep file {path.name}"
    try:
        file = File.model_validate(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{where} is not valid TOML: {error}.") from error
    except OSError as error:
        raise UsageError(unreadable(path, error)) from error
    except RecursionError as error:
        raise UsageError(f"{where} is nested too deeply. Check its brackets.") from error
    except ValidationError as error:
        raise UsageError(f"{where}: {_first(error, File)}") from error
    _check_names(file, where)
    if file.search is not None:
        _check_search(file, file.search, where)
    return file


def check_setting(name: str, where: str) -> None:
    """Raise UsageError unless `name` is a setting of a sweep file."""
    if name not in SETTINGS:
        raise UsageError(f"{where}: {unknown('setting', name, SETTINGS)}")


def check_settings(settings: Settings, where: str) -> None:
    """Raise UsageError unless every name is a setting of a sweep file."""
    for name in settings:
        check_setting(name, where)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except PermissionError as error:
        raise UsageError(unreadable(path, error)) from error
    except OSError:  # the name is too long for the file system
        return False


def _folders() -> list[Path]:
    package = Path(str(importlib.resources.files("casting_tune")))
    return [Path("sweeps"), package / "sweeps", package.parent / "sweeps"]


def _check_names(file: File, where: str) -> None:
    """Raise UsageError for a name that is not a setting, and for figures without a column."""
    for case in file.cases:
        check_settings(case.set, f"{where}, case '{case.label}'")
    for condition in file.when:
        check_settings({**condition.match, **condition.set}, f"{where}, [[when]]")
    for block in file.study:
        axis = {} if block.axis == "case" else {block.axis: None}
        check_settings({**axis, **block.match}, f"{where}, [[study]]")
        for row, values in block.rows.items():
            if len(values) != len(block.columns):
                raise UsageError(
                    f"{where}, [[study]]: row '{row}' has {len(values)} figures for "
                    f"{len(block.columns)} columns. Give one figure per column."
                )
    check_settings({**file.quick.only, **file.quick.set}, f"{where}, [quick]")


def _check_search(file: File, search: Search, where: str) -> None:
    """Raise UsageError for an invalid search: its sections, its objective, or a range."""
    if file.type != "grid" or file.axes or file.cases or file.study or file.quick.only:
        raise UsageError(
            f"{where}: [search] cannot be combined with type, [axes], [[cases]], [[study]] or "
            "[quick] only. Remove them."
        )
    _check_objective(search, where)
    if not search.space:
        raise UsageError(
            f"{where}: [search.space] is empty. Add a range or choices for at least one setting."
        )
    for position, (name, given) in enumerate(search.space.items()):
        here = f"{where}, [search.space] '{name}'"
        check_setting(name, where)
        if name in file.fixed or name in file.quick.set:
            raise UsageError(f"{here} is also in [fixed] or [quick] set. Keep one.")
        _check_range(name, given, here)
        for other in given.when:
            if other not in [*file.fixed, *list(search.space)[:position]]:
                raise UsageError(
                    f"{here}: `when` uses '{other}', which is neither in [fixed] nor searched "
                    "before it. Move it up."
                )


def _check_objective(search: Search, where: str) -> None:
    if not 1 <= len(search.objective) <= 2:
        raise UsageError(
            f'{where}: [search] objective must be one or two columns, each "min" or "max".'
        )
    for name in search.objective:
        if name.startswith("test_"):
            raise UsageError(
                f"{where}: [search] objective '{name}' uses the test images, which must not "
                f"influence a choice. Use '{name.replace('test_', 'validation_', 1)}'."
            )
        if name not in OBJECTIVES:
            raise UsageError(f"{where}: [search] {unknown('objective', name, OBJECTIVES)}")


def _check_range(name: str, given: Range, here: str) -> None:
    if (given.choices is None) == (given.low is None or given.high is None):
        raise UsageError(f"{here} requires either `choices`, or both `low` and `high`.")
    if given.choices is not None:
        if not given.choices or any(
            value in given.choices[:i] for i, value in enumerate(given.choices)
        ):
            raise UsageError(f"{here}: `choices` must be one or more different values.")
        if given.log or given.step is not None or given.low is not None or given.high is not None:
            raise UsageError(
                f"{here}: `choices` cannot be combined with `low`, `high`, `log` or `step`."
            )
        return
    assert given.low is not None
    assert given.high is not None
    _check_bounds(number(name), given, low=given.low, high=given.high, here=here)


def _check_bounds(
    kind: type[int] | type[float] | None, given: Range, *, low: float, high: float, here: str
) -> None:
    """Raise UsageError unless a setting of this type can go from low to high."""
    if kind is None:
        raise UsageError(f"{here} is not a number. Use `choices`.")
    numbers = [value for value in (low, high, given.step) if value is not None]
    if kind is int and not all(isinstance(value, int) for value in numbers):
        raise UsageError(f"{here}: `low`, `high` and `step` must be integers.")
    if not math.isfinite(low) or not math.isfinite(high) or not low < high:
        raise UsageError(f"{here}: `low` must be less than `high`; got {low} and {high}.")
    if given.log and (low <= 0 or given.step is not None):
        raise UsageError(f"{here}: `log` requires `low` above 0 and no `step`.")
    if given.step is not None:
        steps = (high - low) / given.step if given.step > 0 else 0.5
        if abs(steps - round(steps)) > 1e-6:
            raise UsageError(
                f"{here}: `high` minus `low` must be a multiple of `step`; got {given.step}."
            )


def number(name: str) -> type[int] | type[float] | None:
    """Return the type of a numeric setting, None for another setting."""
    kind = get_type_hints(TrialConfig).get(name)
    return kind if kind in (int, float) else None


def _first(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first error of pydantic as one sentence in the user's spelling."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        owners: dict[str, type[BaseModel]] = {
            "quick": Quick,
            "cases": Case,
            "when": When,
            "study": Study,
            "schedule": Schedule,
            "search": Search,
            "limits": Limits,
        }
        owner = Range if "space" in first["loc"] else owners.get(str(first["loc"][0]), model)
        return unknown("key", str(first["loc"][-1]), owner.model_fields)
    return f"'{place}': {first['msg']}; got {first['input']!r}."[:300]


def as_text(value: object) -> str:
    """Return a value as it is written in a sweep file, text without quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)
