"""Which settings matter most in a run, by optuna's functional ANOVA over the completed trainings.

Comes in: a frame of settings and the accuracy they reached. Goes out: shares that add up to 1, or
why there are none. Looks at validation only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_LUCK = ("seed", "fold")

FEWEST, FEWEST_A_SETTING = 10, 3
"""Trainings, in all and for each setting, below which a share of importance would be read from noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Shares of the variance by setting, the largest first; `reason` says why there are none, or how many speak."""

    shares: tuple[tuple[str, float], ...]
    reason: str


def importance(
    frame: pd.DataFrame, *, objective: str = "validation_accuracy", not_settings: tuple[str, ...]
) -> Importance:
    """Return how much of the spread of the objective each setting explains (Hutter, Hoos & Leyton-Brown 2014).

    Args:
        frame: a row a training: settings that differ, and what was measured.
        objective: the measured column that is explained.
        not_settings: the measured columns.
    """
    import optuna

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
        reason = f"{len(done)} trainings are too few to weigh {len(names)} settings: it takes {needed} at least."
        return Importance(shares=(), reason=reason)
    if done[objective].nunique() < 2:
        return Importance(shares=(), reason="All trainings reach the same validation accuracy.")
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
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(level)
    shares = tuple(
        sorted(((name, float(share)) for name, share in found.items()), key=lambda pair: -pair[1])
    )
    return Importance(shares=shares, reason=f"From {len(done)} trainings, on validation accuracy.")


def _range(name: str, column: pd.Series) -> BaseDistribution:
    """Return what a setting could be: numbers are a scale; words, switches, seeds and folds are kinds."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if (
        pd.api.types.is_numeric_dtype(column)
        and not pd.api.types.is_bool_dtype(column)
        and name not in _LUCK
    ):
        return FloatDistribution(float(column.min()), float(column.max()))
    return CategoricalDistribution(sorted({str(value) for value in column}))


def _value(value: Any, within: BaseDistribution) -> float | str:
    from optuna.distributions import FloatDistribution

    return float(value) if isinstance(within, FloatDistribution) else str(value)
