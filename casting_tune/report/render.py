"""Format a table as text for a terminal, Markdown, LaTeX, HTML, CSV or JSON.

Computes nothing and prints nothing.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from casting_tune.analysis.result_table import Table
from casting_tune.errors import UsageError, unknown
from casting_tune.metrics import METRICS
from casting_tune.text import in_csv, plain

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = ("text", "markdown", "csv", "json", "html", "latex")

HEADINGS = {
    "accuracy": "acc %", "accuracy_sd": "sd", "interval": "95 %", "recall": "rec %",
    "recall_sd": "sd rec", "precision": "prec %", "precision_sd": "sd prec", "f1": "F1",
    "f1_sd": "sd F1", "escape_rate": "esc %", "escape_rate_sd": "sd esc", "escape_upper": "esc <=",
    "overkill_rate": "over %", "overkill_rate_sd": "sd over", "clean_accuracy": "clean %",
    "leaked_accuracy": "leaked %", "epoch_s": "s/ep", "step_s": "s/step", "image_s": "s/image",
    "n_images": "images", "n_steps": "steps", "latency_one_s": "s/one",
    "latency_image_s": "s/image of 32", "difference": "diff %", "effect": "effect %",
    "p_holm": "p Holm", "study_accuracy": "study acc", "study_accuracy_sd": "study sd",
    "study_recall": "study rec", "study_f1": "study F1", "study_f1_sd": "study sd F1",
    "study_epoch_s": "study s/ep", "study_step_s": "study s/step", "n_at_once": "at once",
    "n_threads": "threads", "n_groups": "photographs", "escapes": "escaped",
}  # fmt: skip
NAMES = (
    "row", "other", "backbone", "augmentation", "batch", "n_at_once", "factor", "level",
    "threshold", "seed", "fold", "kind",
)  # fmt: skip
WORDS = (
    "row",
    "other",
    "backbone",
    "augmentation",
    "weights",
    "factor",
    "level",
    "about",
    "device",
    "kind",
)
HIDDEN = (
    "named",
    "best",
    "escape_basis",
    "n_leaked",
    "validation_accuracy",
    "low",
    "high",
)
IF_SEVERAL = ("weights", "px", "fold", "device", "n_threads")
PERCENT = (
    "accuracy", "recall", "precision", "rate", "accuracy_sd", "recall_sd", "precision_sd",
    "rate_sd", "upper", "difference", "effect",
)  # fmt: skip


def shown(table: Table) -> pd.DataFrame:
    """Return the frame of a table as text cells, in per cent, without uninformative columns."""
    frame = table.frame.copy()
    if "low" in frame:
        after = (
            "accuracy_sd"
            if "accuracy_sd" in frame
            else "difference"
            if "difference" in frame
            else "effect"
        )
        both = zip(frame["low"], frame["high"], strict=True)
        interval = [
            None if pd.isna(low) else f"{100 * low:.1f} to {100 * high:.1f}" for low, high in both
        ]
        frame.insert(list(frame.columns).index(after) + 1, "interval", interval)
    drop = {name for name in HIDDEN if name in frame} | _redundant(frame)
    kept = [str(name) for name in frame.columns if name not in drop]
    text = pd.DataFrame({name: [_cell(name, value) for value in frame[name]] for name in kept})
    if "best" in frame and kept:
        text[kept[0]] = [
            f"{name} *" if best else name
            for name, best in zip(text[kept[0]], frame["best"], strict=True)
        ]
    return text.rename(columns=HEADINGS | _with_basis(frame))


def _with_basis(frame: pd.DataFrame) -> dict[str, str]:
    """Return the heading of the bound of the escape rate: of which seed, and what it counts."""
    if "escape_basis" not in frame:
        return {}
    basis = frame["escape_basis"].dropna().unique()
    which = "worst esc <=" if frame["n"].max() > 1 else "esc <="
    return {
        "escape_upper": f"{which} ({basis[0].replace('different ', '')})"
        if len(basis) == 1
        else which
    }


def _redundant(frame: pd.DataFrame) -> set[str]:
    """Return the columns that are empty or add nothing to the names of the rows."""
    empty = {str(name) for name in frame.columns if frame[name].isna().all() and name != "accuracy"}
    if "leaked_accuracy" in empty:
        empty.add("clean_accuracy")  # no leaked images: it equals the accuracy
    same = {name for name in IF_SEVERAL if name in frame and frame[name].nunique() <= 1}
    if "named" not in frame:
        return empty | same
    same.add("kind")  # of a comparison: cell or baseline
    parts = [name for name in ("backbone", "augmentation", "batch") if frame[name].nunique() > 1]
    if not parts or frame["named"].any() or frame.duplicated(parts).any():
        # the names of the rows are sufficient
        return empty | same | {"backbone", "augmentation", "batch"}
    return empty | same | ({"row", "backbone", "augmentation", "batch"} - set(parts))


def _cell(name: str, value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return "-"
    if name.startswith("study_"):
        return f"{value:.4g}"
    if name in ("f1", "f1_sd"):
        return f"{value:.3f}"
    if name.endswith(PERCENT) or name.removesuffix("_sd") in METRICS:
        return f"{100 * value:.2f}"
    if name.endswith("_s") or name in ("p", "p_holm"):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def render(table: Table, form: str, *, width: int = 120, color: bool = False) -> str:
    """Return a table as text.

    Args:
        table: the table.
        form: one of FORMATS. CSV and JSON have the values of the frame, the others rounded text.
        width: terminal width for `text`.
        color: whether `text` may use colours.

    Raises:
        UsageError: an unknown format.
    """
    if form not in FORMATS:
        raise UsageError(unknown("format", form, FORMATS))
    if form == "csv":
        return table.frame.map(
            lambda value: in_csv(value) if isinstance(value, str) else value
        ).to_csv(index=False)
    if form == "json":
        return str(table.frame.to_json(orient="records", indent=2)) + "\n"
    frame = shown(table)
    if form == "text":
        return _text(table, frame, width=width, color=color)
    if form == "markdown":
        head = f"**{plain(table.title)}**\n\n{plain(' '.join(table.notes))}\n\n"
        return head + _markdown(frame) + (f"\n{plain(table.verdict)}\n" if table.verdict else "")
    if form == "html":
        return frame.map(plain).to_html(index=False, border=0, escape=True) + "\n"
    return _latex(frame)


def _text(table: Table, frame: pd.DataFrame, *, width: int, color: bool) -> str:
    """Return a table for a terminal, with its notes above and its verdict below."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as Grid

    console = _console(width, color)
    console.print(f"[bold]{escape(plain(table.title))}[/bold]")
    for note in table.notes:
        console.print(escape(plain(note)), style="dim")
    blocks = _blocks(frame, width)
    for columns in blocks:
        grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
        for name in columns:
            is_text = name in WORDS
            grid.add_column(
                name.replace(" (", "\n("),
                justify="left" if is_text else "right",
                no_wrap=not is_text,
                overflow="fold",
                max_width=width // 3 - 3 if is_text else None,
            )
        texts = frame[columns].copy()
        if "kind" in columns:  # several lines per row: the name of the row once, then a line
            again = texts["row"].duplicated()
            ends = ~texts["row"].duplicated(keep="last")
            texts.loc[again, "row"] = ""
        else:
            ends = pd.Series(data=False, index=texts.index)
        for values, is_last in zip(texts.itertuples(index=False), ends, strict=True):
            grid.add_row(*(escape(plain(value)) for value in values), end_section=is_last)
        console.print()
        console.print(grid)
    if table.verdict:
        console.print()
        console.print(escape(plain(table.verdict)))
    out = console.file
    assert isinstance(out, io.StringIO)
    return out.getvalue()


def _console(width: int, color: bool) -> Console:
    from rich.console import Console

    return Console(
        file=io.StringIO(),
        width=width,
        force_terminal=color,
        no_color=not color,
        highlight=False,
        soft_wrap=False,
    )


def _blocks(frame: pd.DataFrame, width: int) -> list[list[str]]:
    """Split the columns into blocks that fit `width`; each begins with the names of the rows."""
    names = [str(name) for name in frame.columns]
    row_names = [name for name in names if name in NAMES]
    sizes = {
        name: max(len(text) for text in (*name.split(" ("), *frame[name])) + 3 for name in names
    }
    sizes |= {
        name: min(sizes[name], width // 3) for name in names if name in WORDS
    }  # long names wrap
    blocks: list[list[str]] = [[]]
    left = width + 3 - sum(sizes[name] for name in row_names)  # nothing follows the last column
    used = 0
    for name in (name for name in names if name not in row_names):
        if blocks[-1] and used + sizes[name] > left:
            blocks.append([])
            used = 0
        blocks[-1].append(name)
        used += sizes[name]
    return [[*row_names, *block] for block in blocks]


def _markdown(frame: pd.DataFrame) -> str:
    def line(values: list[str]) -> str:
        return "| " + " | ".join(plain(value).replace("|", "\\|") for value in values) + " |\n"

    rule = "| " + " | ".join("---" for _ in frame) + " |\n"
    return (
        line([str(name) for name in frame.columns])
        + rule
        + "".join(line(list(row)) for row in frame.itertuples(index=False))
    )


def _latex(frame: pd.DataFrame) -> str:
    """Return a booktabs table with the special characters of TeX escaped."""
    special = str.maketrans(
        {c: f"\\{c}" for c in "&%$#_{}"}
        | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    )

    def line(values: list[str]) -> str:
        return " & ".join(plain(value).translate(special) for value in values) + r" \\" + "\n"

    body = "".join(line(list(row)) for row in frame.itertuples(index=False))
    heads = line([str(name) for name in frame.columns])
    head = f"\\begin{{tabular}}{{{'l' * len(frame.columns)}}}\n\\toprule\n{heads}\\midrule\n"
    return head + body + "\\bottomrule\n\\end{tabular}\n"
