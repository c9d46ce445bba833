"""A sweep file, found and read: its parts and their types.

A sweep file asks one question. Its parts, in the order in which they decide a setting (a later one wins):

    [fixed]     settings that every cell shares
    [axes]      setting = [values]; the file's `type` says how they combine
    [[cases]]   named rows by hand: a label and settings (type "cases"), each with every combination of the axes
    [[when]]    conditions: `match` some settings, `set` others
    [[study]]   the study's published figures, beside the cells that they belong to
    [quick]     `only` keeps cells, `set` overrides settings, for --quick
    [limits]    what one trial may take, and what is done when its memory runs out; no part of a cell's key

Settings are the fields of TrialConfig, `augmentation` (see `augment.parse`) and each toggle by its name. Comes in: a
name or a path. Goes out: a File whose names are all settings. Does not know which cells a file comes to.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from casting_tune import augment
from casting_tune.errors import UsageError, unknown
from casting_tune.trial import TrialConfig

NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
RESOLVED = ("toggles", "weights_id", "split_id")  # made from other settings, never written in a sweep file
SETTINGS = (*(f.name for f in fields(TrialConfig) if f.name not in RESOLVED), "augmentation", *augment.TOGGLES)
FIGURE = r"(mean_|sd_)?(accuracy|recall|f1)(@0\.[1-9])?|epoch_s"

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


class Quick(_Part):
    """What --quick keeps and sets."""

    only: dict[str, list[Any]] = {}
    set: Settings = {}


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
    quick: Quick = Field(default_factory=Quick)
    limits: Limits = Field(default_factory=Limits)


def names() -> list[str]:
    """Return the names of the sweeps that are found by name, in alphabetical order."""
    return sorted({path.stem for folder in _folders() if folder.is_dir() for path in folder.glob("*.toml")})


def find(name: str) -> Path:
    """Return the path of a sweep file, given its name or its path.

    Raises:
        UsageError: there is none, with the nearest name that there is.
    """
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"There is no sweep file '{name}'. Sweeps found by name: {', '.join(names())}.")
    else:
        found = [folder / f"{name}.toml" for folder in _folders() if (folder / f"{name}.toml").is_file()]
        if not found:
            raise UsageError(unknown("sweep", name, names()))
        path = found[0]
    if not NAME.fullmatch(path.stem):
        raise UsageError(f"A sweep's name is 1 to 63 of a-z, 0-9, '_' and '-', a letter first; '{path.stem}' is not.")
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
    except RecursionError as error:
        raise UsageError(f"{where} is nested too deeply to be a sweep file.") from error
    except ValidationError as error:
        raise UsageError(f"{where}: {_first(error, File)}") from error
    _check_names(part, where)
    return part


def check_setting(name: str, where: str) -> None:
    """Raise UsageError unless `name` is a setting of a sweep file."""
    if name not in SETTINGS:
        raise UsageError(f"{where}: {unknown('setting', name, SETTINGS)}")


def check_settings(settings: Settings, where: str) -> None:
    """Raise UsageError unless every name is a setting of a sweep file."""
    for name in settings:
        check_setting(name, where)


def _folders() -> list[Path]:
    package = Path(__file__).parent
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


def _first(error: ValidationError, model: type[BaseModel]) -> str:
    """Say the first thing that pydantic found, in the user's spelling."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        owners: dict[str, type[BaseModel]] = {
            "quick": Quick,
            "cases": Case,
            "when": When,
            "study": Study,
            "limits": Limits,
        }
        owner = owners.get(str(first["loc"][0]), model)
        return unknown("key", str(first["loc"][-1]), owner.model_fields)
    return f"'{place}': {first['msg']}, not {first['input']!r}."[:300]
