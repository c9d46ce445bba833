"""The sections of a sweep file as types; `sweep_file` explains them and reads a file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

FIGURE = r"(mean_|sd_)?(accuracy|recall|f1)(@0\.[1-9])?|epoch_s"

Settings = dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Case(_Part):
    """A named row of a table and its settings."""

    label: str
    set: Settings


class When(_Part):
    """A condition: settings to set for the cells that match."""

    match: Settings
    set: Settings


class Study(_Part):
    """Published figures of one part of the study: one row per value of its axis."""

    part: int
    axis: str
    match: Settings = {}
    columns: list[Annotated[str, StringConstraints(pattern=f"^({FIGURE})$")]]
    rows: dict[str, list[float]]


class Schedule(_Part):
    """Which trials continue.

    `objective` compares them on the validation images after each epoch.
    """

    scheduler: Literal["fifo", "asha"] = "fifo"
    objective: Literal["validation_loss", "validation_accuracy"] = "validation_loss"
    grace_epochs: int = Field(default=3, ge=1)
    reduction_factor: int = Field(default=3, ge=2)


class Range(_Part):
    """The values of one setting in a search: from `low` to `high`, or `choices`.

    Searched only in trials that match `when`.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = None
    choices: list[bool | int | float | str] | None = None
    when: Settings = {}


class Search(_Part):
    """What Optuna varies, how many trials it runs, and the one or two columns that it optimizes.

    `seed` is the seed of Optuna's sampler.
    """

    n_trials: int = Field(ge=1)
    objective: dict[str, Literal["min", "max"]]
    space: dict[str, Range]
    seed: int = Field(default=0, ge=0, lt=2**31)


class Quick(_Part):
    """The cells that --quick keeps and the settings that it overrides."""

    only: dict[str, list[Any]] = {}
    set: Settings = {}
    n_trials: int | None = Field(default=None, ge=1)


class Limits(_Part):
    """Limits of one trial.

    Attributes:
        max_seconds: a longer trial ends with status timeout.
        memory_gib: maximum CPU memory of the trial in GiB; above it the trial ends with status oom.
        on_oom: `fail`: the trial ends with status oom. `accumulate`: the trial runs again with half
            as many images at a time in the network and the same optimizer step, repeatedly if
            needed; column `micro_batch` of trials holds the final number.
    """

    max_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    memory_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    on_oom: Literal["fail", "accumulate"] = "fail"


class File(_Part):
    """A whole sweep file."""

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
