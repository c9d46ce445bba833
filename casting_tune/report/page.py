"""The HTML report of a run: results, their uncertainty, and how to reproduce them.

The page loads nothing from anywhere, which a strict content security policy enforces. It is
complete without scripts: every figure has its table. Layout only; `page_data` selects the numbers.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from casting_tune.analysis import class_view, curves, kinds, run_results, tables, verdict
from casting_tune.report import embedded_images, page_data, plotly_style
from casting_tune.store.store import Store

if TYPE_CHECKING:
    from casting_tune.data.pack import Pack

_FILES = importlib.resources.files("casting_tune.report")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The content of a page.

    Attributes:
        sweep: name of the sweep.
        run_id: the run; None: the last run of the sweep.
        positive: positive class of the comparison; see `class_view.view`.
        max_escape: largest escape rate on validation for the threshold: "0.5%" or "0.005".
        question: the question of the sweep.
        command: the command that writes this page, without the run.
    """

    sweep: str
    run_id: str | None = None
    positive: str = "defective"
    max_escape: str = "0.5%"
    question: str = ""
    command: str = ""


def page(
    store: Store, request: Request, *, packed: Pack | None = None, with_images: bool = False
) -> str:
    """Return the page of a run as HTML. The run may still be in progress.

    Args:
        store: the results.
        request: the content of the page.
        packed: the images of the run, if available.
        with_images: show thumbnails of misclassified images from `packed`.

    Raises:
        UsageError: the store has no such run, or the run no such class.
    """
    sweep, run_id = request.sweep, request.run_id
    results = run_results.load(store, sweep, run_id)
    viewed, _ = class_view.view(results, request.positive)
    compared = tables.comparison(store, sweep, run_id=run_id, positive=request.positive)
    best = curves.best_row(results)
    point, why_not = page_data.operating_point(store, best, request.max_escape)
    timing = tables.TABLES["timing"](store, sweep, run_id=run_id)
    figures = page_data.figures(results, compared.frame, best, point)
    charts = page_data.charts(
        results, compared, timing, best, positive=request.positive, packed=packed
    )
    context = {
        "sweep": sweep,
        "question": request.question,
        "run": results.run_id,
        "first": run_results.records(results.cells.head(1))[0],
        "made_at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "verdict": verdict.verdict(viewed, compared.frame),
        "best": run_results.records(compared.frame[compared.frame["best"]]),
        "n_cells": int((results.cells["kind"] == "cell").sum()),
        "compared": page_data.grid(compared),
        "range": page_data.interval_range(compared.frame[["low", "high", "accuracy"]]),
        "kinds": page_data.kinds(kinds.table(store, sweep, run_id=run_id), best),
        "point": point,
        "why_not": why_not,
        "effects": page_data.effects(tables.TABLES["effects"](store, sweep, run_id=run_id)),
        "timing": page_data.grid(timing) if timing.frame["n"].sum() else None,
        "timing_notes": timing.notes,
        "failures": page_data.failures(results),
        "audit": page_data.audit(results),
        "provenance": page_data.provenance(results, request.command),
        "policy": "",
        "figures": {figure.name: page_data.figure(figure) for figure in figures},
        "legend": plotly_style.legend(page_data.leading(compared.frame)),
        "confusions": page_data.confusions(results),
        **page_data.mistakes(results, best, packed if with_images else None),
        **page_data.settings(results),
        "charts": charts,
        "augmentation": embedded_images.augmentation(),
    }
    return _rendered(context)


def _rendered(context: dict[str, Any]) -> str:
    """Fill the template. The policy allows only the scripts of this page and its pictures."""
    import jinja2
    from markupsafe import Markup

    own = (_FILES / "page.js").read_text(encoding="utf-8")
    scripts = [plotly_style.script(), own] if context["figures"] else [own]
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in scripts)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = page_data.number
    template = environment.from_string((_FILES / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        context
        | {
            "policy": f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
            "img-src data:; base-uri 'none'; form-action 'none'",
            "style": Markup((_FILES / "page.css").read_text(encoding="utf-8")),
            "scripts": [Markup(script) for script in scripts],
        }
    )


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
