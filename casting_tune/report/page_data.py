"""The contents of the report page: tables, figures, mistakes, failures, reproducibility.

Selects and formats numbers of the analysis package; computes none.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from casting_tune.analysis import curves, importance, run_results, selection, tables
from casting_tune.analysis.operating_point import OperatingPoint
from casting_tune.analysis.result_table import Table, device
from casting_tune.analysis.run_results import RunResults
from casting_tune.errors import UsageError
from casting_tune.report import embedded_images, parallel_axes, plotly_figures, render
from casting_tune.store.store import Store

if TYPE_CHECKING:
    from casting_tune.data.pack import Pack

MOST_CURVES, MOST_TRAININGS, MOST_CONFUSIONS, MOST_MISTAKES, MOST_LINES = 6, 10, 12, 24, 400
"""Maximum numbers on a page: rows with curves, trainings per row, confusion matrices, images per
kind of mistake, lines of parallel coordinates.
"""

_VERSIONS = ("casting_tune", "git_commit", "python", "torch", "timm", "kornia", "ray")

Best = tuple[str, pd.DataFrame, str]
"""The best row on validation: its name, its cells, the id of its best cell."""


def operating_point(
    store: Store, best: Best | None, max_escape: str
) -> tuple[OperatingPoint | None, str]:
    """Choose a threshold for the best training on validation, or return why this is impossible."""
    if best is None:
        return None, "No training has completed yet."
    try:
        return selection.threshold(store, best[2], max_escape=max_escape), ""
    except UsageError as error:
        return None, str(error)


def figures(
    results: RunResults,
    frame: pd.DataFrame,
    best: Best | None,
    point: OperatingPoint | None,
) -> list[plotly_figures.Figure]:
    """Return all figures with data; running trainings have curves, too."""
    drawn: list[plotly_figures.Figure] = []
    by_row = dict(results.rows())
    best_first = _best_first(frame[frame["kind"] == "cell"])
    if best is not None:
        row, cells, _ = best
        by_threshold = curves.over_thresholds(results, cells)
        if len(by_threshold):
            chosen = point.threshold if point else None
            drawn.append(plotly_figures.thresholds(by_threshold, row, chosen=chosen))
        calibration = curves.calibration(results, cells)
        if len(calibration):
            drawn.append(plotly_figures.calibration(calibration, row))
    rows = [(name, by_row[name].head(MOST_TRAININGS)) for name in leading(frame)]
    roc = curves.roc(results, rows)
    if len(roc):
        drawn += [
            plotly_figures.roc(roc),
            plotly_figures.precision_recall(curves.precision_recall(results, rows)),
        ]
    marks = curves.pareto(results, frame)
    if len(marks):
        drawn.append(plotly_figures.pareto(marks))
    trained = curves.epochs(results, [(name, by_row[name]) for name in best_first["row"]])
    if len(trained):
        shown = list(dict.fromkeys(trained["row"]))[:MOST_CURVES]
        drawn.append(plotly_figures.training(trained[trained["row"].isin(shown)]))
    return drawn


def leading(frame: pd.DataFrame) -> list[str]:
    """Return the rows with curves: the best on validation."""
    done = _best_first(frame[(frame["kind"] == "cell") & (frame["n"] > 0)])
    return [str(row) for row in done["row"].head(MOST_CURVES)]


def _best_first(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values(["best", "validation_accuracy"], ascending=False, kind="stable")


def mistakes(results: RunResults, best: Best | None, packed: Pack | None) -> dict[str, Any]:
    """Return the misclassified test images of the best row, worst first.

    Thumbnails are added if `packed` is given.
    """
    if best is None:
        return {"missed": [], "rejected": [], "n_missed": 0, "n_rejected": 0, "thumbnails": {}}
    wrong = curves.mistakes(results, best[1], threshold=0.5)
    missed, rejected = wrong[wrong["y_true"] == 1], wrong[wrong["y_true"] == 0]
    shown = [missed.head(MOST_MISTAKES), rejected.head(MOST_MISTAKES)]
    images = [int(image) for part in shown for image in part["image"]]
    return {
        "missed": run_results.records(shown[0]),
        "rejected": run_results.records(shown[1]),
        "n_missed": len(missed),
        "n_rejected": len(rejected),
        "thumbnails": embedded_images.thumbnails(packed, images) if packed is not None else {},
    }


def settings(results: RunResults) -> dict[str, Any]:
    """Return importance and parallel coordinates of the settings that differ."""
    frame = curves.settings(results)
    n_varied = len(frame.columns) - len(curves.MEASURED)
    lines = frame.dropna().tail(MOST_LINES)
    return {
        "importance": importance.importance(frame, not_settings=curves.MEASURED),
        "parallel": parallel_axes.parallel(lines, measured=curves.MEASURED)
        if n_varied and len(lines) > 1
        else None,
    }


def charts(
    results: RunResults,
    compared: Table,
    timing: Table,
    best: Best | None,
    *,
    positive: str,
    packed: Pack | None,
) -> list[embedded_images.Picture]:
    """Return the charts of the study as pictures."""
    thresholds = tables.thresholds(
        results.store, results.sweep, run_id=results.run_id, positive=positive
    ).frame
    of_best = thresholds[thresholds["row"] == best[0]] if best else thresholds.head(0)
    return embedded_images.chart_pictures(
        compared.frame, timing.frame, of_best, title=compared.title, packed=packed
    )


def grid(table: Table) -> dict[str, Any]:
    """Return a table as text: headings, notes, and rows of cells with values for their style."""
    shown = render.shown(table)
    marks = run_results.records(table.frame)
    return {
        "title": table.title,
        "notes": table.notes,
        "heads": [str(name) for name in shown.columns],
        "rows": [
            {"cells": list(cells), "of": of}
            for cells, of in zip(shown.itertuples(index=False, name=None), marks, strict=True)
        ],
    }


def kinds(table: Table, best: Best | None) -> dict[str, Any]:
    """Return the table of kinds as text, the kinds of the best row, and the end of their axis.

    `n` is the number of kinds of the best row; `grouped` is whether photographs are known.
    """
    of_best = table.frame[table.frame["row"] == best[0]] if best else table.frame.head(0)
    most = of_best["escape_upper"].max() if len(of_best) else 1.0
    return grid(table) | {
        "best": run_results.records(of_best),
        "n": len(of_best),
        "grouped": bool(of_best["n_groups"].notna().all()),
        "end": next(end for end in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if end >= most),
    }


def figure(drawn: plotly_figures.Figure) -> dict[str, Any]:
    """Return a figure with its numbers as text."""
    return {
        "name": drawn.name,
        "title": drawn.title,
        "caption": drawn.caption,
        "spec": drawn.spec,
        "height": drawn.spec["layout"]["height"],
        "heads": [str(name).replace("_", " ") for name in drawn.frame.columns],
        "rows": [
            [_cell(value) for value in row]
            for row in drawn.frame.itertuples(index=False, name=None)
        ],
    }


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value, "{:.4g}") if value is None or isinstance(value, float) else str(value)


def effects(table: Table) -> dict[str, Any]:
    """Return the effects by factor, largest first, and the range of their common axis."""
    frame = table.frame.assign(size=table.frame["effect"].astype(float).abs())
    frame = frame.sort_values(["factor", "effect"], ascending=[False, False], kind="stable")
    ends = frame[["effect", "low", "high"]].astype(float).abs().to_numpy()
    reach = float(pd.Series(ends.ravel()).dropna().quantile(1.0)) if len(frame) else 0.0
    return {"rows": run_results.records(frame), "reach": max(reach, 0.001), "note": table.notes[-1]}


def confusions(results: RunResults) -> list[dict[str, Any]]:
    """Return the confusion matrices of the rows and baselines."""
    frame = curves.confusions(results, results.rows() + results.rows("baseline"))
    return run_results.records(frame.head(MOST_CONFUSIONS))


def interval_range(frame: pd.DataFrame) -> tuple[float, float]:
    """Return the ends of the axis of all intervals of the comparison, in 0..1."""
    least = float(np.min(frame.to_numpy(float), initial=1, where=frame.notna().to_numpy()))
    low = next((end for end in (0.98, 0.95, 0.9, 0.8, 0.6, 0.4) if end <= least), 0.0)
    return low, 1.0


def failures(results: RunResults) -> list[dict[str, Any]]:
    """Return the trials without a result, with the later success of their cells."""
    rows: pd.DataFrame = results.store.read(
        "trials",
        columns=["cell_id", "attempt", "label", "status", "error"],
        cell_ids=results.cells["cell_id"],
    ).to_pandas()
    failed = rows[rows["status"] != "completed"].sort_values(["label", "attempt"], kind="stable")
    return run_results.records(failed.assign(later=failed["cell_id"].isin(results.trials.index)))


def audit(results: RunResults) -> dict[str, Any] | None:
    """Return the findings of the audit and its counts by split and class; None without an audit.

    Defects of several kinds are counted by kind.
    """
    rows: pd.DataFrame = results.store.read("images").to_pandas()
    # rows without an audit, of a list of images, have no group
    audited = rows["group_id"].notna()
    rows = rows[audited & (rows["dataset_id"] == results.cells["dataset_id"].iloc[0])].copy()
    if rows.empty:
        return None
    flags = {
        "photographs": "group_id", "copy_in_train": "copy_in_train",
        "twin_in_train": "twin_in_train", "conflict": "conflict", "constant": "constant",
        "outlier": "outlier",
    }  # fmt: skip
    kinds = rows["kind"].where(rows["y_true"] == 1).fillna("")
    rows["kind"] = kinds if kinds[rows["y_true"] == 1].nunique() > 1 else ""
    counted = []
    for (split, y, kind), part in rows.groupby(["split", "y_true", "kind"], sort=False):
        numbers = {
            name: int(
                part[column].nunique()
                if name == "photographs"
                else part[column].fillna(value=False).sum()
            )
            for name, column in flags.items()
        }
        name = kind or ("defective" if y else "good")
        counted.append({"split": split, "class": name, "n": len(part), **numbers})
    return {"findings": rows["finding"].dropna().tolist(), "counts": counted}


def provenance(results: RunResults, page_command: str) -> dict[str, Any]:
    """Return devices, versions and commands of a run."""
    cells, trials = results.cells, results.trials
    command = run_results.records(cells[["command"]].head(1))[0]["command"]
    versions = {name: _distinct(trials[name]) for name in _VERSIONS}
    return {
        "versions": {name: values for name, values in versions.items() if values},
        "where": device(trials) if len(trials) else "",
        "n_test": _distinct(results.completed(cells[cells["kind"] == "cell"])["n_test"]),
        "asked_at": cells["asked_at"].iloc[0].strftime("%Y-%m-%d %H:%M UTC"),
        "command": command or "",
        "again": f"{page_command} --run {shlex.quote(results.run_id)}" if page_command else "",
    }


def _distinct(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if not pd.isna(value)))


def number(value: Any, form: str = "{:.2f}", scale: float = 1.0) -> str:
    """Return a number as text; a missing one is a dash."""
    return "–" if value is None or pd.isna(value) else form.format(scale * float(value))
