"""The importance of settings in a run, by Optuna's functional ANOVA over the completed trainings.

Input: a frame of settings and results. Output: shares that add up to 1, or the reason why there are
none. Uses only validation results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_RANDOM = ("seed", "fold")

FEWEST, FEWEST_A_SETTING = 10, 3
"""Fewest trainings, in total and per setting; with fewer, importance is mostly noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Shares of the variance by setting, largest first; `reason` is their basis or why none."""

    shares: tuple[tuple[str, float], ...]
    reason: str


def importance(
    frame: pd.DataFrame, *, objective: str = "validation_accuracy", not_settings: tuple[str, ...]
) -> Importance:
    """Return the share of the variance of the objective that each setting explains.

    Method: Hutter, Hoos & Leyton-Brown 2014.

    Args:
        frame: one row per training: settings that differ, and results.
        objective: the result to explain.
        not_settings: the columns that are results.
    """
    done = frame[frame[objective].notna()]
    names = [
        str(name) for name in done.columns if name not in not_settings and done[name].nunique() > 1
    ]
    if len(names) < 2:
        return Importance(
            shares=(), reason="Fewer than two settings differ between the completed trainings."
        )
    needed = max(FEWEST, FEWEST_A_SETTING * len(names))
    if len(done) < needed:
        reason = (
            f"At least {needed} trainings are needed to rank {len(names)} settings; "
            f"there are {len(done)}."
        )
        return Importance(shares=(), reason=reason)
    if done[objective].nunique() < 2:
        return Importance(shares=(), reason="All trainings reach the same validation accuracy.")
    shares = tuple(sorted(_shares(done, names, objective).items(), key=lambda pair: -pair[1]))
    return Importance(shares=shares, reason=f"From {len(done)} trainings, on validation accuracy.")


def _shares(done: pd.DataFrame, names: list[str], objective: str) -> dict[str, float]:
    """Return the share of each setting by Optuna's evaluator."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize")
        ranges = {name: _range(name, done[name]) for name in names}
        study.add_trials(
            [
                optuna.trial.create_trial(
                    params={name: _value(row[name], ranges[name]) for name in names},
                    distributions=ranges,
                    value=float(row[objective]),
                )
                for row in done.to_dict("records")
            ]
        )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        importances = optuna.importance.get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(level)
    return {name: float(share) for name, share in importances.items()}


def _range(name: str, column: pd.Series) -> BaseDistribution:
    """Return the distribution of a setting: only numbers, without seed and fold, are ordered."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if (
        pd.api.types.is_numeric_dtype(column)
        and not pd.api.types.is_bool_dtype(column)
        and name not in _RANDOM
    ):
        return FloatDistribution(float(column.min()), float(column.max()))
    return CategoricalDistribution(sorted({str(value) for value in column}))


def _value(value: Any, within: BaseDistribution) -> float | str:
    from optuna.distributions import FloatDistribution

    return float(value) if isinstance(within, FloatDistribution) else str(value)
