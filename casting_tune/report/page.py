"""One offline HTML page of a run: what it showed, how sure that is, and what everything was made of.

Comes in: a store and a sweep's name. Goes out: one page that asks for nothing from anywhere, that a
strict content security policy holds to that, and that is whole without scripts: every figure has
its table. Layout only: the numbers are those of tables, curves, chosen and importance.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import shlex
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from casting_tune.analysis import curves, importance, run_results, selection, tables, verdict
from casting_tune.analysis.operating_point import OperatingPoint
from casting_tune.analysis.run_results import RunResults
from casting_tune.analysis.table import Positive, Table, device
from casting_tune.errors import UsageError
from casting_tune.report import embedded_images, plotly_figures, render
from casting_tune.store.store import Store

if TYPE_CHECKING:
    from casting_tune.data.pack import Pack

MOST_CURVES, MOST_TRAININGS, MOST_CONFUSIONS, MOST_MISTAKES, MOST_LINES = 6, 10, 12, 24, 400
"""Rows with curves, confusion matrices, pictures a kind of mistake, and lines of parallel coordinates on a page."""

_FILES = importlib.resources.files("casting_tune.report")
_VERSIONS = ("casting_tune", "git_commit", "python", "torch", "timm", "kornia", "ray")


def page(
    store: Store,
    sweep: str,
    *,
    run_id: str | None = None,
    positive: Positive = "defective",
    max_escape: str = "0.5%",
    packed: Pack | None = None,
    with_images: bool = False,
    question: str = "",
    again: str = "",
) -> str:
    """Return the page of a run of a sweep, of its last run unless one is named; the run may still go on.

    Args:
        store: the results folder.
        sweep: the sweep's name.
        run_id: a run's id.
        positive: the class that the comparison's recall, precision and F1 are about.
        max_escape: what the threshold is chosen for, on validation: "0.5%" or "0.005".
        packed: the images of the run, where they are here.
        with_images: show thumbnails of the mistakes; they come from `packed`.
        question: what the sweep asks.
        again: the command that makes this page again, but for the run.

    Raises:
        UsageError: the store holds no run of the sweep, or not that run.
    """
    found = run_results.load(store, sweep, run_id)
    compared = tables.comparison(store, sweep, run_id=run_id, positive=positive)
    best = curves.best_row(found)
    point, why_not = _operating_point(store, best, max_escape)
    timing = tables.TABLES["timing"](store, sweep, run_id=run_id)
    context = {
        "sweep": sweep,
        "question": question,
        "run": found.run_id,
        "first": run_results.records(found.cells.head(1))[0],
        "made_at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "verdict": verdict.verdict(found, compared.frame),
        "best": run_results.records(compared.frame[compared.frame["best"]]),
        "n_cells": int((found.cells["kind"] == "cell").sum()),
        "compared": _grid(compared),
        "range": _range(compared.frame[["low", "high", "accuracy"]]),
        "point": point,
        "why_not": why_not,
        "effects": _forest(tables.TABLES["effects"](store, sweep, run_id=run_id)),
        "timing": _grid(timing) if timing.frame["n"].sum() else None,
        "timing_notes": timing.notes,
        "failures": _failures(found),
        "audit": _audit(found),
        "provenance": _provenance(found, again),
        "policy": "",
        "figures": {
            figure.name: _figure(figure) for figure in _figures(found, compared.frame, best, point)
        },
        "legend": plotly_figures.legend(_leading(compared.frame)),
        "confusions": _confusions(found),
        **_mistakes(found, best, packed if with_images else None),
        **_settings(found),
        "charts": _charts(found, compared, timing, best, positive=positive, packed=packed),
        "augmentation": embedded_images.augmentation(),
    }
    return _rendered(context)


def _rendered(context: dict[str, Any]) -> str:
    """Fill the template; the policy lets in the scripts of this page, by their hashes, and pictures inside it."""
    import jinja2
    from markupsafe import Markup

    own = (_FILES / "page.js").read_text(encoding="utf-8")
    scripts = [plotly_figures.script(), own] if context["figures"] else [own]
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in scripts)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = _number
    template = environment.from_string((_FILES / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        context
        | {
            "policy": f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
            "base-uri 'none'; form-action 'none'",
            "style": Markup((_FILES / "page.css").read_text(encoding="utf-8")),
            "scripts": [Markup(script) for script in scripts],
        }
    )


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _operating_point(
    store: Store, best: tuple[str, pd.DataFrame, str] | None, max_escape: str
) -> tuple[OperatingPoint | None, str]:
    """Choose the threshold of the best training on validation, or say why none can be chosen."""
    if best is None:
        return None, "No training has completed yet."
    try:
        return selection.threshold(store, best[2], max_escape=max_escape), ""
    except UsageError as error:
        return None, str(error)


def _figures(
    found: RunResults,
    frame: pd.DataFrame,
    best: tuple[str, pd.DataFrame, str] | None,
    point: OperatingPoint | None,
) -> list[plotly_figures.Figure]:
    """Return the figures for which there is anything to draw; trainings that still run have curves too."""
    drawn: list[plotly_figures.Figure] = []
    by_row = dict(found.rows())
    leading = _best_first(frame[frame["kind"] == "cell"])
    if best is not None:
        row, cells, _ = best
        over = curves.over_thresholds(found, cells)
        if len(over):
            drawn.append(
                plotly_figures.thresholds(over, row, chosen=point.threshold if point else None)
            )
        worth = curves.calibration(found, cells)
        if len(worth):
            drawn.append(plotly_figures.calibration(worth, row))
    rows = [(name, by_row[name].head(MOST_TRAININGS)) for name in _leading(frame)]
    roc = curves.roc(found, rows)
    if len(roc):
        drawn += [
            plotly_figures.roc(roc),
            plotly_figures.precision_recall(curves.precision_recall(found, rows)),
        ]
    marks = curves.pareto(found, frame)
    if len(marks):
        drawn.append(plotly_figures.pareto(marks))
    trained = curves.epochs(found, [(name, by_row[name]) for name in leading["row"]])
    if len(trained):
        shown = list(dict.fromkeys(trained["row"]))[:MOST_CURVES]
        drawn.append(plotly_figures.training(trained[trained["row"].isin(shown)]))
    return drawn


def _leading(frame: pd.DataFrame) -> list[str]:
    """Return the rows whose curves are drawn: the best on validation."""
    done = _best_first(frame[(frame["kind"] == "cell") & (frame["n"] > 0)])
    return [str(row) for row in done["row"].head(MOST_CURVES)]


def _best_first(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values(["best", "validation_accuracy"], ascending=False, kind="stable")


def _mistakes(
    found: RunResults, best: tuple[str, pd.DataFrame, str] | None, packed: Pack | None
) -> dict[str, Any]:
    """Return the test images that the best row decides wrongly, the worst first; thumbnails where asked for."""
    if best is None:
        return {"missed": [], "rejected": [], "n_missed": 0, "n_rejected": 0, "thumbnails": {}}
    wrong = curves.mistakes(found, best[1], threshold=0.5)
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


def _settings(found: RunResults) -> dict[str, Any]:
    """Return what the page shows of the settings that differ."""
    settings = curves.settings(found)
    n_varied = len(settings.columns) - len(curves.MEASURED)
    lines = settings.dropna().tail(MOST_LINES)
    return {
        "importance": importance.importance(settings, not_settings=curves.MEASURED),
        "parallel": plotly_figures.parallel(lines, measured=curves.MEASURED)
        if n_varied and len(lines) > 1
        else None,
    }


def _charts(
    found: RunResults,
    compared: Table,
    timing: Table,
    best: tuple[str, pd.DataFrame, str] | None,
    *,
    positive: Positive,
    packed: Pack | None,
) -> list[embedded_images.Picture]:
    thresholds = tables.thresholds(
        found.store, found.sweep, run_id=found.run_id, positive=positive
    ).frame
    of_best = thresholds[thresholds["row"] == best[0]] if best else thresholds.head(0)
    return embedded_images.chart_pictures(
        compared.frame, timing.frame, of_best, title=compared.title, packed=packed
    )


def _grid(table: Table) -> dict[str, Any]:
    """Return a table as a person reads it: heads, notes, and rows of cells with what the page marks them by."""
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


def _figure(figure: plotly_figures.Figure) -> dict[str, Any]:
    return {
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "spec": figure.spec,
        "height": figure.spec["layout"]["height"],
        "heads": [str(name).replace("_", " ") for name in figure.frame.columns],
        "rows": [
            [_cell(value) for value in row]
            for row in figure.frame.itertuples(index=False, name=None)
        ],
    }


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _number(value, "{:.4g}") if value is None or isinstance(value, float) else str(value)


def _forest(table: Table) -> dict[str, Any]:
    """Return the effects, strongest first within toggles and backbones, and the reach of their common axis."""
    frame = table.frame.assign(size=table.frame["effect"].astype(float).abs())
    frame = frame.sort_values(["factor", "effect"], ascending=[False, False], kind="stable")
    ends = frame[["effect", "low", "high"]].astype(float).abs().to_numpy()
    reach = float(pd.Series(ends.ravel()).dropna().quantile(1.0)) if len(frame) else 0.0
    return {"rows": run_results.records(frame), "reach": max(reach, 0.001), "note": table.notes[-1]}


def _confusions(found: RunResults) -> list[dict[str, Any]]:
    frame = curves.confusions(found, found.rows() + found.rows("baseline"))
    return run_results.records(frame.head(MOST_CONFUSIONS))


def _range(frame: pd.DataFrame) -> tuple[float, float]:
    """Return the ends of the axis on which every interval of the comparison lies, shares in 0..1."""
    least = float(np.min(frame.to_numpy(float), initial=1, where=frame.notna().to_numpy()))
    low = next((end for end in (0.98, 0.95, 0.9, 0.8, 0.6, 0.4) if end <= least), 0.0)
    return low, 1.0


def _failures(found: RunResults) -> list[dict[str, Any]]:
    rows: pd.DataFrame = found.store.read(
        "trials",
        columns=["cell_id", "attempt", "label", "status", "error"],
        cell_ids=found.cells["cell_id"],
    ).to_pandas()
    failed = rows[rows["status"] != "completed"].sort_values(["label", "attempt"], kind="stable")
    return run_results.records(failed.assign(later=failed["cell_id"].isin(found.trials.index)))


def _audit(found: RunResults) -> dict[str, Any] | None:
    rows: pd.DataFrame = found.store.read("images").to_pandas()
    rows = rows[rows["dataset_id"] == found.cells["dataset_id"].iloc[0]]
    if rows.empty:
        return None
    flags = {
        "photographs": "group_id", "copy_in_train": "copy_in_train", "twin_in_train": "twin_in_train",
        "conflict": "conflict", "constant": "constant", "outlier": "outlier",
    }  # fmt: skip
    counted = []
    for (split, y), part in rows.groupby(["split", "y_true"], sort=False):
        numbers = {
            name: int(
                part[column].nunique()
                if name == "photographs"
                else part[column].fillna(value=False).sum()
            )
            for name, column in flags.items()
        }
        counted.append({"split": split, "defective": bool(y), "n": len(part), **numbers})
    return {"findings": rows["finding"].dropna().tolist(), "counts": counted}


def _provenance(found: RunResults, again: str) -> dict[str, Any]:
    asked, trials = found.cells, found.trials
    command = run_results.records(asked[["command"]].head(1))[0]["command"]
    versions = {name: _distinct(trials[name]) for name in _VERSIONS}
    return {
        "versions": {name: values for name, values in versions.items() if values},
        "where": device(trials) if len(trials) else "",
        "n_test": _distinct(found.completed(asked[asked["kind"] == "cell"])["n_test"]),
        "asked_at": asked["asked_at"].iloc[0].strftime("%Y-%m-%d %H:%M UTC"),
        "command": command or "",
        "again": f"{again} --run {shlex.quote(found.run_id)}" if again else "",
    }


def _distinct(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if not pd.isna(value)))


def _number(value: Any, form: str = "{:.2f}", scale: float = 1.0) -> str:
    """Return a number for the page; what is missing is a dash."""
    return "–" if value is None or pd.isna(value) else form.format(scale * float(value))
