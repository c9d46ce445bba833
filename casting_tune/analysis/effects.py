"""Differences of test accuracy: between all pairs of rows, of each toggle and of each backbone.

Input: the results of a run. Output: tables of differences with intervals.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from casting_tune.analysis import decisions, group_sums, paired_tests, result_table, run_results
from casting_tune.analysis.result_table import Positive, Table
from casting_tune.analysis.run_results import RunResults
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
            "p is for one pair, p Holm is corrected for all pairs. The interval is for one pair: "
            "it contains 0 exactly if p is at least .05. 'trainings': one seed each, so the result "
            "may differ with another seed.",
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
    value. The interval is for new castings and new trainings: it contains the variance over matched
    cells and the variance over groups of test images (`paired_tests.gaps`).
    """
    run = run_results.load(store, sweep, run_id)
    trials = run.completed(run.cells[run.cells["kind"] == "cell"])
    contrasts = [
        ("toggle", toggle, *_toggle_contrast(trials, toggle)) for toggle in TOGGLES
    ] + _backbone_contrasts(trials)
    return Table(
        title=f"{sweep}: paired effects on test accuracy",
        notes=(
            *result_table.notes(run, positive),
            "Effect of a toggle = accuracy with minus accuracy without. Effect of a backbone = its "
            "accuracy minus the mean of all backbones. Over cells that differ in nothing else; "
            "95 % intervals for new castings and new trainings.",
        ),
        frame=pd.DataFrame(
            [
                _effect(run, factor, level, each, weights)
                for factor, level, each, weights in contrasts
                if len(each)
            ],
            columns=["factor", "level", "effect", "low", "high", "n"],
        ),
    )


Weights = dict[str, float]
"""The weight of the accuracy of each cell_id in an effect."""


def _toggle_contrast(trials: pd.DataFrame, toggle: str) -> tuple[list[float], Weights]:
    """Return the differences over matched cells, and the weights of the cells in their mean."""
    block = _matched(trials, free=(toggle, *TOGGLES[toggle].magnitudes))
    # NULL is neither
    on, off = (trials[trials[toggle].eq(value)] for value in (True, False))
    both = sorted(set(block[on.index]) & set(block[off.index]))
    weights = _weights(on, block, both) | {
        cell: -weight for cell, weight in _weights(off, block, both).items()
    }
    each = _means(on, block)[both] - _means(off, block)[both]
    return each.tolist(), weights


def _backbone_contrasts(trials: pd.DataFrame) -> list[tuple[str, str, list[float], Weights]]:
    follows = {
        "image_px": ["backbone"],
        "weights": ["backbone"],
        "weights_id": ["backbone", "weights"],
        "precision": ["backbone"],
    }
    follow = [name for name, by in follows.items() if trials.groupby(by)[name].nunique().max() <= 1]
    block = _matched(trials, free=("backbone", *follow))
    varied = trials[trials["backbone"].groupby(block).transform("nunique") > 1]
    of_all, contrasts = _means(varied, block), []
    for backbone in dict.fromkeys(trials["backbone"]):
        own = varied[varied["backbone"] == backbone]
        blocks = sorted(set(block[own.index]))
        weights = _weights(own, block, blocks)
        for cell, weight in _weights(varied, block, blocks).items():
            weights[cell] = weights.get(cell, 0.0) - weight
        each = (_means(own, block) - of_all)[blocks]
        contrasts.append(("backbone", str(backbone), each.tolist(), weights))
    return contrasts


def _weights(trials: pd.DataFrame, block: pd.Series, blocks: list[int]) -> Weights:
    """Return the weight of each trial in the mean over some blocks of the means in the blocks."""
    own = block[trials.index]
    own = own[own.isin(blocks)]
    n_in_block = own.map(own.value_counts())
    return dict(zip(own.index, (1 / n_in_block / len(blocks)).tolist(), strict=True))


def _matched(trials: pd.DataFrame, *, free: tuple[str, ...]) -> pd.Series:
    """Return the block of each trial; trials of a block differ only in the `free` settings."""
    return trials.groupby(
        [name for name in SETTINGS if name not in free], sort=False, dropna=False
    ).ngroup()


def _means(trials: pd.DataFrame, block: pd.Series) -> pd.Series:
    """Return the mean test accuracy of trials in each of their blocks."""
    return trials["test_accuracy"].groupby(block[trials.index]).mean()


def _effect(
    run: RunResults, factor: str, level: str, each: list[float], weights: Weights
) -> dict[str, Any]:
    """Return an effect with its interval, which needs two matched cells and the predictions.

    Args:
        run: holds the predictions.
        factor, level: names.
        each: the difference in each pair of matched cells.
        weights: of the accuracy of each cell.
    """
    low = high = np.nan
    n, images, parts = len(each), [], []
    for cell, weight in weights.items():
        tested = run.tested(cell)
        right = (tested["score"] >= np.float32(0.5)) == (tested["y_true"] == 1)
        images.append(tested["image"])
        # influence on the effect: folds have other images, so each cell has its own mean
        parts.append(weight * (right - right.mean()) / len(right) if len(right) else right * 0.0)
    if n > 1 and all(len(part) for part in parts):
        shown, position = np.unique(np.concatenate(images), return_inverse=True)
        influence = np.bincount(position, weights=np.concatenate(parts)) * len(shown)
        codes, sizes = group_sums.group(run.groups(shown))
        found = paired_tests.gaps(
            np.bincount(codes, weights=influence + np.mean(each))[None].astype(np.float64),
            sizes,
            extra=np.array([np.var(each, ddof=1) / n]),
            extra_freedom=n - 1,
        )
        low, high = float(found.low[0]), float(found.high[0])
    return {
        "factor": factor, "level": level, "effect": float(np.mean(each)), "low": low, "high": high,
        "n": n,
    }  # fmt: skip
