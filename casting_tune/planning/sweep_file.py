"""A sweep file, found and read: its parts and their types.

A sweep file asks one question. Its parts, in the order in which they decide a setting (a later one
wins):

    [fixed]     settings that every cell shares
    [axes]      setting = [values]; the file's `type` says how they combine
    [[cases]]   named rows by hand: a label and settings (type "cases"), each with every combination of the axes
    [[when]]    conditions: `match` some settings, `set` others
    [[study]]   the study's published figures, beside the cells that they belong to
    [quick]     `only` keeps cells, `set` overrides settings, `n_trials` that of a search, for --quick
    [limits]    what one trial may take, and what is done when its memory runs out; no part of a cell's key
    [schedule]  "asha" stops trials that lag behind; "fifo" lets every trial end
    [search]    in place of [axes]: Optuna chooses the cells, from ranges or choices of settings

Settings are the fields of TrialConfig, `augmentation` (see `augment.parse`) and each toggle by its
name. Comes in: a name or a path. Goes out: a File whose names are all settings. Does not know which
cells a file comes to.
"""

from __future__ import annotations

import importlib.resources
import math
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from casting_tune.config import RESOLVED, TrialConfig
from casting_tune.errors import UsageError, unknown, unreadable
from casting_tune.metrics import METRICS, RANKING
from casting_tune.toggles import TOGGLES

NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_NOT_WRITTEN = ("toggles", *RESOLVED)  # derived from other settings, never written in a sweep file
SETTINGS = (
    *(f.name for f in fields(TrialConfig) if f.name not in _NOT_WRITTEN),
    "augmentation",
    *TOGGLES,
)
FIGURE = r"(mean_|sd_)?(accuracy|recall|f1)(@0\.[1-9])?|epoch_s"

OBJECTIVES = (
    *(f"validation_{name}" for name in (*METRICS, *RANKING)),
    "latency_one_s", "latency_batch_s", "peak_memory_bytes", "n_parameters",
)  # fmt: skip
"""What a search may choose by: columns of a trial's row, at threshold 0.5; never one of the test images."""

Settings = dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Case(_Part):
    """A named row by hand."""

    label: str
    set: Settings


class When(_Part):
    """A condition: what it sets where its match holds."""

    match: Settings
    set: Settings


class Study(_Part):
    """Published figures of one part of the study: one row a value of its axis."""

    part: int
    axis: str
    match: Settings = {}
    columns: list[Annotated[str, StringConstraints(pattern=f"^({FIGURE})$")]]
    rows: dict[str, list[float]]


class Schedule(_Part):
    """Which trials may go on.

    `objective` is what they are compared by after an epoch, on the validation images.
    """

    scheduler: Literal["fifo", "asha"] = "fifo"
    objective: Literal["validation_loss", "validation_accuracy"] = "validation_loss"
    grace_epochs: int = Field(default=3, ge=1)
    reduction_factor: int = Field(default=3, ge=2)


class Range(_Part):
    """What a search may choose for one setting: numbers from `low` to `high`, or `choices`; only where `when` holds."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = None
    choices: list[bool | int | float | str] | None = None
    when: Settings = {}


class Search(_Part):
    """What Optuna chooses, how often, and by which one or two columns of a trial's row; `seed` is the sampler's."""

    n_trials: int = Field(ge=1)
    objective: dict[str, Literal["min", "max"]]
    space: dict[str, Range]
    seed: int = Field(default=0, ge=0, lt=2**31)


class Quick(_Part):
    """What --quick keeps and sets."""

    only: dict[str, list[Any]] = {}
    set: Settings = {}
    n_trials: int | None = Field(default=None, ge=1)


class Limits(_Part):
    """What one trial may take.

    Attributes:
        max_seconds: after which it ends with status timeout.
        memory_gib: most memory of its own on the CPU, in GiB, after which it ends with status oom.
        on_oom: `fail`: status oom is its end. `accumulate`: it runs again with half as many images at a time in the
            network and the same step, as often as that helps; the row says how many.
    """

    max_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    memory_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    on_oom: Literal["fail", "accumulate"] = "fail"


class File(_Part):
    """A whole sweep file, as it is written."""

    question: str
    study_part: str = ""
    type: Literal["grid", "cases", "ablation", "one_at_a_time", "repeats"] = "grid"
    fixed: Settings = {}
    axes: dict[str, list[Any]] = {}
    cases: list[Case] = []
    when: list[When] = []
    study: list[Study] = []
    schedule: Schedule = Field(default_factory=Schedule)
    search: Search | None = None
    quick: Quick = Field(default_factory=Quick)
    limits: Limits = Field(default_factory=Limits)


def names() -> list[str]:
    """Return the names of the sweeps that are found by name, in alphabetical order."""
    return sorted(
        {path.stem for folder in _folders() if folder.is_dir() for path in folder.glob("*.toml")}
    )


def find(name: str) -> Path:
    """Return the path of a sweep file, given its name or its path.

    Raises:
        UsageError: there is none, with the nearest name that there is.
    """
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        if not _is_file(path):
            raise UsageError(
                f"There is no sweep file '{name}'. Sweeps found by name: {', '.join(names())}."
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
            f"A sweep's name is 1 to 63 of a-z, 0-9, '_' and '-', a letter first; '{path.stem}' is not."
        )
    return path


def read(path: Path) -> File:
    """Read a sweep file and check its keys, types and names.

    Raises:
        UsageError: it is not TOML, a key or type that cannot be meant, a name that is no setting.
    """
    where = f"Sweep file {path.name}"
    try:
        part = File.model_validate(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{where} is not TOML: {error}.") from error
    except OSError as error:
        raise UsageError(unreadable(path, error)) from error
    except RecursionError as error:
        raise UsageError(f"{where} is nested too deeply to be a sweep file.") from error
    except ValidationError as error:
        raise UsageError(f"{where}: {_first(error, File)}") from error
    _check_names(part, where)
    if part.search is not None:
        _check_search(part, part.search, where)
    return part


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
    except OSError:  # a name that is too long for a file system names no file
        return False


def _folders() -> list[Path]:
    package = Path(str(importlib.resources.files("casting_tune")))
    return [Path("sweeps"), package / "sweeps", package.parent / "sweeps"]


def _check_names(part: File, where: str) -> None:
    """Raise UsageError for a name that is no setting, wherever it stands, and for figures without a column."""
    for case in part.cases:
        check_settings(case.set, f"{where}, case '{case.label}'")
    for condition in part.when:
        check_settings({**condition.match, **condition.set}, f"{where}, [[when]]")
    for block in part.study:
        axis = {} if block.axis == "case" else {block.axis: None}
        check_settings({**axis, **block.match}, f"{where}, [[study]]")
        for row, values in block.rows.items():
            if len(values) != len(block.columns):
                raise UsageError(
                    f"{where}, [[study]]: row '{row}' has {len(values)} figures for {len(block.columns)} columns."
                )
    check_settings({**part.quick.only, **part.quick.set}, f"{where}, [quick]")


def _check_search(part: File, search: Search, where: str) -> None:
    """Raise UsageError for a search that cannot be meant: its parts, its objective, a range."""
    if part.type != "grid" or part.axes or part.cases or part.study or part.quick.only:
        raise UsageError(
            f"{where}: [search] takes the place of type, [axes], [[cases]], [[study]] and [quick] only."
        )
    _check_objective(search, where)
    if not search.space:
        raise UsageError(
            f"{where}: [search.space] is empty. Give at least one setting a range or choices."
        )
    for position, (name, given) in enumerate(search.space.items()):
        here = f"{where}, [search.space] '{name}'"
        check_setting(name, where)
        if name in part.fixed or name in part.quick.set:
            raise UsageError(f"{here} stands in [fixed] or [quick] set too. Keep one.")
        _check_range(name, given, here)
        for other in given.when:
            if other not in [*part.fixed, *list(search.space)[:position]]:
                raise UsageError(
                    f"{here}: `when` names '{other}', which is neither fixed nor searched above it."
                )


def _check_objective(search: Search, where: str) -> None:
    if not 1 <= len(search.objective) <= 2:
        raise UsageError(
            f'{where}: [search] objective takes one or two columns, each with "min" or "max".'
        )
    for name in search.objective:
        if name.startswith("test_"):
            raise UsageError(
                f"{where}: [search] objective '{name}' would choose by the test images, and they would then promise "
                f"nothing. Choose by validation: '{name.replace('test_', 'validation_', 1)}'."
            )
        if name not in OBJECTIVES:
            raise UsageError(f"{where}: [search] {unknown('objective', name, OBJECTIVES)}")


def _check_range(name: str, given: Range, here: str) -> None:
    if (given.choices is None) == (given.low is None or given.high is None):
        raise UsageError(f"{here} takes either `choices` or both `low` and `high`.")
    if given.choices is not None:
        if not given.choices or any(
            value in given.choices[:i] for i, value in enumerate(given.choices)
        ):
            raise UsageError(f"{here}: `choices` are one or more different values.")
        if given.log or given.step is not None or given.low is not None or given.high is not None:
            raise UsageError(f"{here}: `choices` go without `low`, `high`, `log` and `step`.")
        return
    assert given.low is not None
    assert given.high is not None
    kind = number(name)
    if kind is None:
        raise UsageError(f"{here} is no number: it takes `choices`.")
    numbers = [value for value in (given.low, given.high, given.step) if value is not None]
    if kind is int and not all(isinstance(value, int) for value in numbers):
        raise UsageError(f"{here} takes whole numbers: `low`, `high` and `step` are to be whole.")
    if not math.isfinite(given.low) or not math.isfinite(given.high) or not given.low < given.high:
        raise UsageError(f"{here}: `low` is less than `high`, not {given.low} and {given.high}.")
    if given.log and (given.low <= 0 or given.step is not None):
        raise UsageError(f"{here}: `log` needs a `low` above 0 and goes without `step`.")
    if given.step is not None:
        steps = (given.high - given.low) / given.step if given.step > 0 else 0.5
        if abs(steps - round(steps)) > 1e-6:
            raise UsageError(
                f"{here}: `step` goes a whole number of times from `low` to `high`, and {given.step} not."
            )


def number(name: str) -> type[int] | type[float] | None:
    """Return what kind of number a setting is; None: it is none."""
    kind = get_type_hints(TrialConfig).get(name)
    return kind if kind in (int, float) else None


def _first(error: ValidationError, model: type[BaseModel]) -> str:
    """Say the first thing that pydantic found, in the user's spelling."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        owners: dict[str, type[BaseModel]] = {
            "quick": Quick, "cases": Case, "when": When, "study": Study, "schedule": Schedule, "search": Search,
            "limits": Limits,
        }  # fmt: skip
        owner = Range if "space" in first["loc"] else owners.get(str(first["loc"][0]), model)
        return unknown("key", str(first["loc"][-1]), owner.model_fields)
    return f"'{place}': {first['msg']}, not {first['input']!r}."[:300]
