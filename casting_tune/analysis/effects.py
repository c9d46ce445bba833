"""What differs: every two rows of a sweep, each toggle, each backbone.

Comes in: the answers of a run. Goes out: tables of differences of test accuracy with intervals.
Lays out no text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from casting_tune.analysis import paired_tests, run_results, statistics
from casting_tune.analysis.run_results import Positive, Table
from casting_tune.store.schema import SETTINGS
from casting_tune.store.store import Store
from casting_tune.toggles import TOGGLES


def all_pairs(
    store: Store, sweep: str, *, run_id: str | None = None, positive: Positive = "defective"
) -> Table:
    """Compare every two rows of a sweep: difference of accuracy, interval, p, and p after Holm's correction."""
    found = run_results.load(store, sweep, run_id)
    rows = found.rows() + found.rows("baseline")
    compared, lost = found.compared([cells for _, cells in rows])
    parts = []
    for alike in compared:
        if len(alike.indices) < 2:
            continue
        labels = [rows[i][0] for i in alike.indices]
        table = paired_tests.all_pairs(alike.right, alike.groups)
        columns = {
            "row": [labels[i] for i in table.first],
            "other": [labels[i] for i in table.second],
            "difference": table.difference,
            "low": table.low,
            "high": table.high,
            "p": table.p,
            "p_holm": table.p_holm,
            "about": table.about,
        }
        parts.append(pd.DataFrame(columns))
    return Table(
        title=f"{sweep}: all pairs, difference of accuracy on the test images",
        notes=(
            *run_results.notes(found, positive),
            "p is for a pair alone, p Holm for all pairs together. 'trainings': one seed each, so nothing is known of "
            "what another seed would give.",
            *lost,
        ),
        frame=pd.concat(parts, ignore_index=True)
        if parts
        else pd.DataFrame({"row": [], "other": [], "difference": []}),
    )


def effects(
    store: Store, sweep: str, *, run_id: str | None = None, positive: Positive = "defective"
) -> Table:
    """What each toggle and each backbone changes: the mean difference over cells that differ in nothing else.

    A toggle: accuracy with it minus without it; its strength is a part of it. A backbone: its
    accuracy minus the mean of all backbones at the same settings; image size, weights and precision
    are a part of it if each backbone has only one (`auto` precision depends on the backbone, for
    example). The interval is Student's t over the matched cells (`stats.paired_effect`).
    """
    found = run_results.load(store, sweep, run_id)
    trials = found.completed(found.asked[found.asked["kind"] == "cell"])
    rows = [_toggle_effect(trials, toggle) for toggle in TOGGLES] + _backbone_effects(trials)
    return Table(
        title=f"{sweep}: paired effects on test accuracy",
        notes=(
            *run_results.notes(found, positive),
            "A toggle's effect is with it minus without it, a backbone's is against the mean of all backbones, over "
            "cells that differ in nothing else; 95 % intervals.",
        ),
        frame=pd.DataFrame(
            [row for row in rows if row["n"]],
            columns=["factor", "level", "effect", "low", "high", "n"],
        ),
    )


def _toggle_effect(trials: pd.DataFrame, toggle: str) -> dict[str, Any]:
    block = _matched(trials, free=(toggle, *TOGGLES[toggle].magnitudes))
    on, off = (
        _means(trials[trials[toggle].eq(value)], block) for value in (True, False)
    )  # NULL is neither
    both = on.index.intersection(off.index)
    return _effect("toggle", toggle, on[both].tolist(), off[both].tolist())


def _backbone_effects(trials: pd.DataFrame) -> list[dict[str, Any]]:
    follows = {"image_px": ["backbone"], "weights": ["backbone"], "weights_id": ["backbone", "weights"],
               "precision": ["backbone"]}  # fmt: skip
    follow = [name for name, by in follows.items() if trials.groupby(by)[name].nunique().max() <= 1]
    block = _matched(trials, free=("backbone", *follow))
    varied = trials[trials["backbone"].groupby(block).transform("nunique") > 1]
    of_all, effects = _means(varied, block), []
    for backbone in dict.fromkeys(trials["backbone"]):
        own = _means(varied[varied["backbone"] == backbone], block)
        effects.append(_effect("backbone", str(backbone), own.tolist(), of_all[own.index].tolist()))
    return effects


def _matched(trials: pd.DataFrame, *, free: tuple[str, ...]) -> pd.Series:
    """Number the blocks of trials that differ in nothing but the `free` settings: a number a trial."""
    return trials.groupby(
        [name for name in SETTINGS if name not in free], sort=False, dropna=False
    ).ngroup()


def _means(trials: pd.DataFrame, block: pd.Series) -> pd.Series:
    """Return the mean test accuracy of some trials in each of their blocks."""
    return trials["test_accuracy"].groupby(block[trials.index]).mean()


def _effect(factor: str, level: str, on: list[float], off: list[float]) -> dict[str, Any]:
    effect, low, high, n = statistics.paired_effect(on, off) if on else (np.nan, None, None, 0)
    return {"factor": factor, "level": level, "effect": effect, "low": low, "high": high, "n": n}
