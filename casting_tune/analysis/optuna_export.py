"""Export a sweep as an Optuna study, for optuna-dashboard and other users of Optuna.

Input: a store, a sweep's name, objectives. Output: a file of Optuna's journal storage. The store
remains the primary data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from casting_tune.config import RESOLVED
from casting_tune.errors import UsageError, unknown
from casting_tune.store.schema import SETTINGS, TRIALS
from casting_tune.store.store import Store

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

Direction = Literal["min", "max"]

PARAMETERS = tuple(name for name in SETTINGS if name not in RESOLVED)
"""The columns of trials that a sweep can vary; those that differ become parameters."""


def objectives() -> list[str]:
    """Return the columns that a study can optimize: numbers, none of the test images."""
    numbers = (field.name for field in TRIALS if str(field.type) in ("double", "int64"))
    measured = (
        "validation_",
        "latency_",
        "epoch_s",
        "image_s",
        "step_s",
        "duration_s",
        "peak_memory",
        "n_parameters",
    )
    return [name for name in numbers if name.startswith(measured) and name != "validation_share"]


def parse_all(texts: Sequence[str]) -> dict[str, Direction]:
    """Return the columns and directions of several objectives, in their order.

    Raises:
        UsageError: as `parse`, or a repeated column.
    """
    wanted: dict[str, Direction] = {}
    for name, direction in map(parse, texts):
        if name in wanted:
            raise UsageError(f"--objective {name} is given twice. Keep one.")
        wanted[name] = direction
    return wanted


def parse(text: str) -> tuple[str, Direction]:
    """Return column and direction of an objective such as validation_accuracy=max.

    Raises:
        UsageError: an unknown column or direction.
    """
    name, _, direction = text.partition("=")
    if name not in objectives():
        raise UsageError(f"--objective: {unknown('objective', name, objectives())}")
    if direction not in ("min", "max"):
        raise UsageError(f"--objective {text}: use {name}=min or {name}=max.")
    return name, "min" if direction == "min" else "max"


def write(store: Store, sweep: str, file: Path, *, wanted: dict[str, Direction]) -> int:
    """Write the trials of a sweep as an Optuna study with its name; return their number.

    Completed trials are COMPLETE with their values, stopped ones PRUNED, all others FAIL. With one
    objective, the validation losses of the epochs are intermediate values (Optuna supports these
    only with one objective).

    Raises:
        UsageError: no trial of the sweep in the store, or the file exists.
    """
    if file.exists():
        raise UsageError(f"'{file}' already exists. Set another file with --out.")
    chosen = {
        row["cell_id"]: row["chosen"]
        for row in store.read("cells").to_pylist()
        if row["sweep"] == sweep and row["kind"] == "cell"
    }
    rows = store.read("trials", cell_ids=chosen).to_pylist()
    rows = [row for row in rows if row["cell_id"] in chosen]
    if not rows:
        raise UsageError(f"Sweep '{sweep}' has no trials in '{store.address}'.")
    epochs: dict[str, list[dict[str, Any]]] = {}
    for epoch in store.read("epochs", cell_ids=chosen).sort_by("attempt").to_pylist():
        epochs.setdefault(epoch["cell_id"], []).append(epoch)
    parameters = [_parameters(row, chosen[row["cell_id"]]) for row in rows]
    ranges = _ranges(parameters)
    trials = [
        _trial(
            row,
            {name: value for name, value in given.items() if name in ranges},
            ranges,
            list(wanted),
            _losses(row, epochs.get(row["cell_id"], [])),
        )
        for row, given in zip(rows, parameters, strict=True)
    ]
    _write_study(trials, sweep, file, list(wanted.values()))
    return len(rows)


def _write_study(
    trials: list[FrozenTrial], name: str, file: Path, directions: list[Direction]
) -> None:
    import optuna

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=["minimize" if one == "min" else "maximize" for one in directions],
        )
        study.add_trials(trials)
    finally:
        optuna.logging.set_verbosity(level)


def _parameters(row: dict[str, Any], chosen: str | None) -> dict[str, Any]:
    """Return the settings of a trial: those that a search chose, else all that a sweep can vary."""
    if chosen is not None:
        return dict(json.loads(chosen))
    return {name: row[name] for name in PARAMETERS if row[name] is not None}


def _ranges(parameters: list[dict[str, Any]]) -> dict[str, BaseDistribution]:
    """Return the distribution of every setting that differs between trials."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    ranges: dict[str, BaseDistribution] = {}
    for name in dict.fromkeys(name for given in parameters for name in given):
        values = list(dict.fromkeys(given[name] for given in parameters if name in given))
        if len(values) < 2 and all(name in given for given in parameters):
            continue
        kinds = {type(value) for value in values}
        if kinds == {int}:
            ranges[name] = IntDistribution(min(values), max(values))
        elif kinds <= {int, float}:
            ranges[name] = FloatDistribution(float(min(values)), float(max(values)))
        else:
            ranges[name] = CategoricalDistribution(values)
    return ranges


def _losses(row: dict[str, Any], epochs: list[dict[str, Any]]) -> dict[int, float]:
    """Return the validation losses of an attempt by epoch.

    An epoch that an earlier attempt wrote is not written again. It belongs to this attempt too if
    the attempt resumed after it, or completed.

    Args:
        row: the attempt.
        epochs: of its cell, in the order of attempts.
    """
    shared = (row["epochs"] if row["status"] == "completed" else row["resumed_from"]) or 0
    return {
        epoch["epoch"]: epoch["validation_loss"]
        for epoch in epochs
        if epoch["attempt"] == row["attempt"]
        or (epoch["attempt"] < row["attempt"] and epoch["epoch"] <= shared)
    }


def _trial(
    row: dict[str, Any],
    given: dict[str, Any],
    ranges: dict[str, BaseDistribution],
    wanted: list[str],
    losses: dict[int, float],
) -> FrozenTrial:
    import optuna

    states = {
        "completed": optuna.trial.TrialState.COMPLETE,
        "stopped": optuna.trial.TrialState.PRUNED,
    }
    values = [row[name] for name in wanted]
    known = row["status"] == "completed" and all(
        value is not None and math.isfinite(value) for value in values
    )
    state = states.get(row["status"], optuna.trial.TrialState.FAIL)
    if state == optuna.trial.TrialState.COMPLETE and not known:
        state = optuna.trial.TrialState.FAIL
    return optuna.trial.create_trial(
        state=state,
        values=[float(value) for value in values] if known else None,
        params=given,
        distributions={name: ranges[name] for name in given},
        intermediate_values=losses if len(wanted) == 1 else None,
        user_attrs={
            "cell_id": row["cell_id"],
            "attempt": row["attempt"],
            "label": row["label"],
            "status": row["status"],
        },
    )
