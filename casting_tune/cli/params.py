"""The options that several commands share, and the words that a person may use in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from casting_tune.cli import completion, console
from casting_tune.errors import UsageError, unknown

RESULTS = "results"
Results = Annotated[
    str,
    typer.Option(
        "--results",
        envvar="CASTING_TUNE_RESULTS",
        help="The store: a folder, or s3://BUCKET/PREFIX.",
        is_eager=True,  # what completes a cell or a run must know the store already
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", envvar="CASTING_TUNE_DATA", help="Image folder; left out: castings are drawn."
    ),
]
NeededData = Annotated[
    Path, typer.Option("--data", envvar="CASTING_TUNE_DATA", help="The image folder.")
]
CellData = Annotated[
    Path | None,
    typer.Option(
        "--data",
        envvar="CASTING_TUNE_DATA",
        help="The cell's images; left out: those packed in the store.",
    ),
]
WeightsDir = Annotated[
    Path | None,
    typer.Option(
        "--weights-dir", help="The folder behind local-dir: weights that the cell began from."
    ),
]
MaxEscape = Annotated[
    str | None, typer.Option("--max-escape", help="0.5% or 0.005, on validation.")
]
CostEscape = Annotated[
    float | None, typer.Option("--cost-escape", help="What a missed defect costs.")
]
CostOverkill = Annotated[
    float | None, typer.Option("--cost-overkill", help="What a rejected good one costs.")
]
Prevalence = Annotated[
    float | None, typer.Option("--prevalence", help="Share of defective castings.")
]
DefectClass = Annotated[
    str, typer.Option("--positive", help="The class folder that is the defect.")
]
PackSize = Annotated[
    int | None, typer.Option("--pack-size", help="Longest side of the packed images, in pixels.")
]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Leave out files that cannot be decoded, and record them."),
]
SweepName = Annotated[
    str, typer.Argument(help="The sweep's name.", autocompletion=completion.stored_sweeps)
]
CellId = Annotated[
    str,
    typer.Argument(help="A cell's id, or the beginning of one.", autocompletion=completion.cells),
]
CellOrBest = Annotated[
    str,
    typer.Argument(
        help="A cell's id, the beginning of one, or 'best' with --sweep.",
        autocompletion=completion.cells,
    ),
]
BestOf = Annotated[
    str | None,
    typer.Option(
        "--sweep",
        help="The sweep whose best cell 'best' is.",
        autocompletion=completion.stored_sweeps,
    ),
]
Run = Annotated[
    str | None,
    typer.Option(
        "--run", help="A run's id; left out: the sweep's last run.", autocompletion=completion.runs
    ),
]
ViewClass = Annotated[
    str,
    typer.Option(
        "--positive",
        help="Positive class: def_front (or defective); ok_front (or ok) is the study's view.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout; what is said goes to stderr.")
]
Head = Annotated[
    str, typer.Option("--head", help="dense1024,dropout: what stands before the logit.")
]


def _show_records(context: typer.Context, wanted: bool) -> bool:
    if wanted:
        context.with_resource(console.records())
    return wanted


Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        help="Log the steps and failures on stderr.",
        callback=_show_records,
        is_eager=True,
    ),
]


def typed(context: typer.Context, name: str) -> bool:
    """Say whether an option was typed; its value may come from an environment variable, which is for other commands."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def one_format(context: typer.Context, form: str, as_json: bool) -> str:
    """Return the format that is meant by --format and --json.

    Raises UsageError where they are two.
    """
    if as_json and form != "json" and typed(context, "form"):
        raise UsageError(f"--json and --format {form} are two formats: drop one.")
    return "json" if as_json else form


def make_folder(folder: Path) -> None:
    """Make the folder of --out. Raises UsageError where there can be none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"Cannot write to '{folder}': {error.strerror}. Name another folder with --out."
        ) from error


_VIEWS: dict[str, Literal["defective", "ok"]] = {
    "def_front": "defective", "ok_front": "ok", "defective": "defective", "ok": "ok",
}  # fmt: skip


def view(positive: str) -> Literal["defective", "ok"]:
    """Return which class a table is about, given the class folder or the word that a person wrote.

    Raises:
        UsageError: neither a class folder nor a word for one.
    """
    if positive not in _VIEWS:
        raise UsageError(unknown("positive class", positive, _VIEWS))
    return _VIEWS[positive]
