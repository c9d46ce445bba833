"""Named questions over a store, answered as data frames; and their rendering as text, Markdown, CSV, JSON, HTML, LaTeX.

Comes in: a store, a sweep's name, and which class is the positive one. Goes out: a Table. A table shows the cells that
one run of the sweep asked for (the last, unless another is named), in the sweep's order; a cell is found by its id,
wherever it was trained. Trains nothing and reads no images.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from casting_tune import metrics
from casting_tune.backbones import BACKBONES
from casting_tune.errors import UsageError, unknown
from casting_tune.metrics import Counts
from casting_tune.store import Store

if TYPE_CHECKING:
    from rich.console import Console

Positive = Literal["defective", "ok"]
FORMATS = ("text", "markdown", "csv", "json", "html", "latex")
SHOWN = ("accuracy", "recall", "precision", "f1", "escape_rate", "overkill_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A data frame with what a reader needs beside it.

    Attributes:
        title: what the rows are.
        notes: one sentence each; they stand above the rows.
        frame: a row a row, a column a column; shares in 0..1, seconds, counts; missing is NaN or None.
    """

    title: str
    notes: tuple[str, ...]
    frame: pd.DataFrame


def comparison(store: Store, sweep: str, *, run_id: str | None = None, positive: Positive = "defective") -> Table:
    """Compare the rows of a sweep on the test images, threshold 0.5, the study's figures beside.

    Columns: row, backbone, augmentation, batch, weights, n (completed trainings), each of SHOWN (mean over the
    trainings), accuracy_sd (None for one training), epoch_s, status, study_accuracy, study_recall, study_f1.

    Raises:
        UsageError: the store holds no run of the sweep, or not that run.
    """
    asked = _asked(store, sweep, run_id)
    trials = _completed(store, asked)
    rows = [_row(row, cells, trials, positive) for row, cells in asked.groupby("row", sort=False)]
    return Table(
        title=f"{sweep}: test images, threshold 0.5",
        notes=_notes(asked, trials, store, positive),
        frame=pd.DataFrame(rows),
    )


TABLES: dict[str, Callable[..., Table]] = {
    "comparison": comparison,
}


def last_run(store: Store, sweep: str) -> str:
    """Return the id of the last run of a sweep.

    Raises:
        UsageError: the store holds none.
    """
    return str(_asked(store, sweep, None)["run_id"].iloc[0])


def _asked(store: Store, sweep: str, run_id: str | None) -> pd.DataFrame:
    runs: pd.DataFrame = store.read("cells").to_pandas()
    of_sweep = runs[runs["sweep"] == sweep]
    if of_sweep.empty:
        known = sorted(set(runs["sweep"]))
        if not known:
            raise UsageError(f"There is no run in '{store.root}'. Start one: python -m casting_tune.sweep {sweep}")
        raise UsageError(unknown("sweep in this store", sweep, known))
    if run_id is None:
        run_id = str(of_sweep.sort_values("asked_at", kind="stable")["run_id"].iloc[-1])
    chosen = of_sweep[of_sweep["run_id"] == run_id]
    if chosen.empty:
        raise UsageError(unknown("run", run_id, sorted(set(of_sweep["run_id"]))))
    return chosen.sort_values("position").reset_index(drop=True)


def _completed(store: Store, asked: pd.DataFrame) -> pd.DataFrame:
    """Return the one completed trial of each cell that has one (the first, should there be more)."""
    trials: pd.DataFrame = store.read("trials", cell_ids=asked["cell_id"]).to_pandas()
    done = trials[trials["status"] == "completed"].sort_values(["started_at", "attempt"])
    return done.drop_duplicates("cell_id").set_index("cell_id")


def _row(row: Any, cells: pd.DataFrame, trials: pd.DataFrame, positive: Positive) -> dict[str, Any]:
    first = cells.iloc[0]
    done = trials.loc[[cell for cell in cells["cell_id"] if cell in trials.index]]
    measured = pd.DataFrame([_metrics(trial, positive) for _, trial in done.iterrows()], columns=list(SHOWN))
    accuracy = measured["accuracy"]
    backbone = BACKBONES.get(first["backbone"])
    return {
        "row": row,
        "backbone": backbone.study_name if backbone else first["backbone"],
        "augmentation": first["augmentation"],
        "batch": first["batch_size"],
        "px": first["image_px"],
        "weights": first["weights"],
        "n": len(done),
        **{name: measured[name].astype(float).mean() for name in SHOWN},
        "accuracy_sd": accuracy.astype(float).std(ddof=1) if len(accuracy) > 1 else np.nan,
        "epoch_s": done["epoch_s"].median() if len(done) else np.nan,
        **{name: first[name] for name in ("study_accuracy", "study_recall", "study_f1", "study_epoch_s")},
    }


def _metrics(trial: pd.Series, positive: Positive) -> dict[str, float | None]:
    """Work the shown metrics out from a trial's counts, so that both views come from the same decisions."""
    counts = Counts(*(int(trial[f"test_{name}"]) for name in ("tp", "fp", "tn", "fn")))
    viewed = counts if positive == "defective" else counts.swapped()
    return {name: metrics.METRICS[name](counts if name.endswith("_rate") else viewed) for name in SHOWN}


def _notes(asked: pd.DataFrame, trials: pd.DataFrame, store: Store, positive: Positive) -> tuple[str, ...]:
    first = asked.iloc[0]
    notes = [
        "Positive class: the defect."
        if positive == "defective"
        else "Positive class: ok_front, the study's view; escape and overkill stay those of the defect."
    ]
    if first["quick"]:
        notes.append("Quick run: small images, few epochs, few images. It shows that all works, not which row is best.")
    if len(trials):
        n_test = sorted(set(trials["n_test"]))
        notes.append(f"Dataset {first['dataset_id']}, {', '.join(str(n) for n in n_test)} test images.")
        devices = trials[["device", "n_threads", "n_at_once"]].drop_duplicates()
        each = [f"{d} with {t} threads, {n} at once" for d, t, n in devices.itertuples(index=False)]
        notes.append(f"Seconds an epoch measured on: {'; '.join(each)}.")
    weights = asked["weights"].unique()
    if len(weights) == 1:
        notes.append(f"Weights: {weights[0]}.")
    left = int((~asked["cell_id"].isin(trials.index)).sum())
    if left:
        failed = store.failed()
        statuses = [failed.get(cell, "not run") for cell in asked["cell_id"] if cell not in trials.index]
        counted = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
        notes.append(f"{left} of {len(asked)} cells have no result: {counted}.")
    notes.append(f"Run {first['run_id']}.")
    return tuple(notes)


HEADINGS = {
    "row": "row", "backbone": "backbone", "augmentation": "augmentation", "batch": "batch", "px": "px",
    "weights": "weights", "n": "n", "accuracy": "acc %", "accuracy_sd": "sd", "recall": "rec %", "precision": "prec %",
    "f1": "F1", "escape_rate": "esc %", "overkill_rate": "over %", "epoch_s": "s/ep",
    "study_accuracy": "study acc", "study_recall": "study rec", "study_f1": "study F1", "study_epoch_s": "study s/ep",
}  # fmt: skip
_PERCENT = ("accuracy", "accuracy_sd", "recall", "precision", "escape_rate", "overkill_rate")


def shown(table: Table) -> pd.DataFrame:
    """Return a table's frame as a person reads it: text cells, per cent, columns that say nothing left out."""
    frame = table.frame
    same = [name for name in ("weights", "px") if name in frame and frame[name].nunique() == 1]
    empty = [name for name in frame if frame[name].isna().all() and name != "accuracy"]
    parts = [name for name in ("augmentation", "batch") if name in frame and frame[name].nunique() == 1]
    named = [name for name in ("backbone", "augmentation", "batch") if name not in parts]
    by_setting = not frame.duplicated(named).any() and "study_accuracy" in frame
    drop = {*same, *empty, *(["row", *parts] if by_setting else ["backbone", "augmentation", "batch"])}
    kept = [str(name) for name in frame.columns if name not in drop]
    text = pd.DataFrame({name: [_cell(name, value) for value in frame[name]] for name in kept})
    return text.rename(columns=HEADINGS)


def _cell(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NA:
        return "-"
    if name in _PERCENT:
        return f"{100 * value:.2f}"
    if name in ("study_accuracy", "study_recall", "epoch_s", "study_epoch_s"):
        return f"{value:.3g}" if name.endswith("_s") and value < 100 else f"{value:.2f}".removesuffix(".00")
    if name in ("f1", "study_f1"):
        return f"{value:.3f}" if name == "f1" else f"{value:g}"
    return str(value)


def render(table: Table, form: str, *, width: int = 120, color: bool = False) -> str:
    """Return a table as text of one of FORMATS.

    CSV and JSON carry the frame's own values; the others carry what a person reads. `width` is for `text`.

    Raises:
        UsageError: an unknown format.
    """
    if form not in FORMATS:
        raise UsageError(unknown("format", form, FORMATS))
    if form == "csv":
        return table.frame.to_csv(index=False)
    if form == "json":
        return str(table.frame.to_json(orient="records", indent=2)) + "\n"
    frame = shown(table)
    if form == "text":
        return _text(table, frame, width=width, color=color)
    if form == "markdown":
        head = f"**{table.title}**\n\n{' '.join(table.notes)}\n\n"
        return head + _markdown(frame)
    if form == "html":
        return frame.to_html(index=False, border=0, escape=True) + "\n"
    return _latex(frame)


def _text(table: Table, frame: pd.DataFrame, *, width: int, color: bool) -> str:
    """Lay a table out for a terminal: rules that a plain terminal shows, notes wrapped above."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as Grid

    console = _console(width, color)
    console.print(f"[bold]{escape(table.title)}[/bold]")
    for note in table.notes:
        console.print(escape(note), style="dim")
    blocks = _blocks(frame, width)
    for columns in blocks:
        grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
        for name in columns:
            words = name in ("row", "backbone", "augmentation", "weights")
            grid.add_column(name, justify="left" if words else "right", no_wrap=not words, overflow="fold")
        for values in frame[columns].itertuples(index=False):
            grid.add_row(*(escape(_plain(value)) for value in values))
        console.print()
        console.print(grid)
    out = console.file
    assert isinstance(out, io.StringIO)
    return out.getvalue()


def _console(width: int, color: bool) -> Console:
    from rich.console import Console

    return Console(
        file=io.StringIO(), width=width, force_terminal=color, no_color=not color, highlight=False, soft_wrap=False
    )


def _blocks(frame: pd.DataFrame, width: int) -> list[list[str]]:
    """Cut the columns into blocks that fit `width`; each begins with the columns that name a row."""
    names = [str(name) for name in frame.columns]
    words = [name for name in names if name in ("row", "backbone", "augmentation", "batch")]
    sizes = {name: max(len(name), *(len(value) for value in frame[name])) + 3 for name in names}
    blocks: list[list[str]] = [[]]
    room = width - sum(sizes[name] for name in words)
    used = 0
    for name in (name for name in names if name not in words):
        if blocks[-1] and used + sizes[name] > room:
            blocks.append([])
            used = 0
        blocks[-1].append(name)
        used += sizes[name]
    return [[*words, *block] for block in blocks]


def _plain(value: str) -> str:
    """Return text without control characters: names come from files and may try to steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in value)


def _markdown(frame: pd.DataFrame) -> str:
    def line(values: list[str]) -> str:
        return "| " + " | ".join(_plain(value).replace("|", "\\|") for value in values) + " |\n"

    rule = "| " + " | ".join("---" for _ in frame) + " |\n"
    return (
        line([str(name) for name in frame.columns])
        + rule
        + "".join(line(list(row)) for row in frame.itertuples(index=False))
    )


def _latex(frame: pd.DataFrame) -> str:
    """Return a booktabs table; TeX's special characters are escaped."""
    special = str.maketrans(
        {c: f"\\{c}" for c in "&%$#_{}"}
        | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    )

    def line(values: list[str]) -> str:
        return " & ".join(_plain(value).translate(special) for value in values) + r" \\" + "\n"

    body = "".join(line(list(row)) for row in frame.itertuples(index=False))
    heads = line([str(name) for name in frame.columns])
    head = f"\\begin{{tabular}}{{{'l' * len(frame.columns)}}}\n\\toprule\n{heads}\\midrule\n"
    return head + body + "\\bottomrule\n\\end{tabular}\n"
