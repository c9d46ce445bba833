"""Differences of test accuracy: between all pairs of rows, of each toggle and of each backbone.

Input: the results of a run. Output: tables of differences with intervals.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from casting_tune.analysis import decisions, paired_tests, result_table, run_results, statistics
from casting_tune.analysis.result_table import Positive, Table
from casting_tune.store.schema import SETTINGS
from casting_tune.store.store import Store
from casting_tune.toggles import TOGGLES


def all_pairs(
    store: Store, sweep: str, *, run_id: str | None = None, positive: Positive = "defective"
) -> Table:
    """Compare all pairs of rows: difference of accuracy, interval, p, and Holm-corrected p."""
    run = run_results.load(store, sweep, run_id)
    rows = run.rows() + run.rows("baseline")
    sets, lost = decisions.comparable(run, [cells for _, cells in rows])
    parts = []
    for one in sets:
        if len(one.indices) < 2:
            continue
        labels = [rows[i][0] for i in one.indices]
        pairs = paired_tests.all_pairs(one.correct, one.groups)
        columns = {
            "row": [labels[i] for i in pairs.first],
            "other": [labels[i] for i in pairs.second],
            "difference": pairs.difference,
            "low": pairs.low,
            "high": pairs.high,
            "p": pairs.p,
            "p_holm": pairs.p_holm,
            "about": pairs.about,
        }
        parts.append(pd.DataFrame(columns))
    return Table(
        title=f"{sweep}: all pairs, difference of accuracy on the test images",
        notes=(
            *result_table.notes(run, positive),
            "p is for one pair, p Holm is corrected for all pairs. 'trainings': one seed each, so "
            "the result may differ with another seed.",
            *lost,
        ),
        frame=pd.concat(parts, ignore_index=True)
        if parts
        else pd.DataFrame({"row": [], "other": [], "difference": []}),
    )


def effects(
    store: Store, sweep: str, *, run_id: str | None = None, positive: Positive = "defective"
) -> Table:
    """Return the effect of each toggle and backbone: the mean difference over matched cells.

    Matched cells differ in nothing else. A toggle: accuracy with it minus without it; its strength
    counts as part of it. A backbone: its accuracy minus the mean of all backbones at the same
    settings; image size, weights and precision count as part of it if each backbone has only one
    value. The interval is Student's t over the matched cells (`statistics.paired_effect`).
    """
    run = run_results.load(store, sweep, run_id)
    trials = run.completed(run.cells[run.cells["kind"] == "cell"])
    rows = [_toggle_effect(trials, toggle) for toggle in TOGGLES] + _backbone_effects(trials)
    return Table(
        title=f"{sweep}: paired effects on test accuracy",
        notes=(
            *result_table.notes(run, positive),
            "Effect of a toggle = accuracy with minus accuracy without. Effect of a backbone = its "
            "accuracy minus the mean of all backbones. Over cells that differ in nothing else; "
            "95 % intervals.",
        ),
        frame=pd.DataFrame(
            [row for row in rows if row["n"]],
            columns=["factor", "level", "effect", "low", "high", "n"],
        ),
    )


def _toggle_effect(trials: pd.DataFrame, toggle: str) -> dict[str, Any]:
    block = _matched(trials, free=(toggle, *TOGGLES[toggle].magnitudes))
    # NULL is neither
    on, off = (_means(trials[trials[toggle].eq(value)], block) for value in (True, False))
    both = on.index.intersection(off.index)
    return _effect("toggle", toggle, on[both].tolist(), off[both].tolist())


def _backbone_effects(trials: pd.DataFrame) -> list[dict[str, Any]]:
    follows = {
        "image_px": ["backbone"],
        "weights": ["backbone"],
        "weights_id": ["backbone", "weights"],
        "precision": ["backbone"],
    }
    follow = [name for name, by in follows.items() if trials.groupby(by)[name].nunique().max() <= 1]
    block = _matched(trials, free=("backbone", *follow))
    varied = trials[trials["backbone"].groupby(block).transform("nunique") > 1]
    of_all, effects = _means(varied, block), []
    for backbone in dict.fromkeys(trials["backbone"]):
        own = _means(varied[varied["backbone"] == backbone], block)
        effects.append(_effect("backbone", str(backbone), own.tolist(), of_all[own.index].tolist()))
    return effects


def _matched(trials: pd.DataFrame, *, free: tuple[str, ...]) -> pd.Series:
    """Return the block of each trial; trials of a block differ only in the `free` settings."""
    return trials.groupby(
        [name for name in SETTINGS if name not in free], sort=False, dropna=False
    ).ngroup()


def _means(trials: pd.DataFrame, block: pd.Series) -> pd.Series:
    """Return the mean test accuracy of trials in each of their blocks."""
    return trials["test_accuracy"].groupby(block[trials.index]).mean()


def _effect(factor: str, level: str, on: list[float], off: list[float]) -> dict[str, Any]:
    effect, low, high, n = statistics.paired_effect(on, off) if on else (np.nan, None, None, 0)
    return {"factor": factor, "level": level, "effect": effect, "low": low, "high": high, "n": n}
