"""The options that several commands share, and checks of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from casting_tune.cli import completion, console
from casting_tune.errors import UsageError

RESULTS = "results"
Results = Annotated[
    str,
    typer.Option(
        "--results",
        metavar="STORE",
        envvar="CASTING_TUNE_RESULTS",
        help="Results store: a folder, or s3://BUCKET/PREFIX.",
        is_eager=True,  # completion of cells and runs reads the store
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        envvar="CASTING_TUNE_DATA",
        help="Image folder. Default: generate synthetic castings.",
    ),
]
NeededData = Annotated[
    Path,
    typer.Option("--data", metavar="DIR", envvar="CASTING_TUNE_DATA", help="Image folder."),
]
CellData = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        envvar="CASTING_TUNE_DATA",
        help="Image folder of the cell. Default: the images packed in the store.",
    ),
]
WeightsDir = Annotated[
    Path | None,
    typer.Option("--weights-dir", help="Folder of the cell's initial local-dir: weights."),
]
MaxEscape = Annotated[
    str | None,
    typer.Option("--max-escape", help="Largest escape rate on validation: 0.5% or 0.005."),
]
CostEscape = Annotated[float | None, typer.Option("--cost-escape", help="Cost of a missed defect.")]
CostOverkill = Annotated[
    float | None, typer.Option("--cost-overkill", help="Cost of a rejected good casting.")
]
Prevalence = Annotated[
    float | None, typer.Option("--prevalence", help="Share of defective castings, 0 to 1.")
]
DefectClass = Annotated[
    str, typer.Option("--positive", help="Name of the class folder with the defects.")
]
PackSize = Annotated[
    int | None, typer.Option("--pack-size", help="Longest side of the packed images in pixels.")
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Skip and record files that cannot be decoded.")
]
SweepName = Annotated[
    str, typer.Argument(help="Sweep name.", autocompletion=completion.stored_sweeps)
]
CellId = Annotated[
    str, typer.Argument(help="Cell id, or its first characters.", autocompletion=completion.cells)
]
CellOrBest = Annotated[
    str,
    typer.Argument(
        help="Cell id, its first characters, or 'best' with --sweep.",
        autocompletion=completion.cells,
    ),
]
BestOf = Annotated[
    str | None,
    typer.Option(
        "--sweep",
        help="Sweep to take the best cell from.",
        autocompletion=completion.stored_sweeps,
    ),
]
Run = Annotated[
    str | None,
    typer.Option(
        "--run", help="Run id. Default: the last run of the sweep.", autocompletion=completion.runs
    ),
]
ViewClass = Annotated[
    str,
    typer.Option(
        "--positive",
        help="Positive class: defective, ok, or the name of a class or kind of defect.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document; messages go to stderr.")
]
Head = Annotated[
    str, typer.Option("--head", help="Layers before the logit, for example dense1024,dropout.")
]


def _show_records(context: typer.Context, wanted: bool) -> bool:
    if wanted:
        context.with_resource(console.records())
    return wanted


Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        help="Write log messages to stderr.",
        callback=_show_records,
        is_eager=True,
    ),
]


def on_command_line(context: typer.Context, name: str) -> bool:
    """Return whether an option is on the command line, not only in an environment variable."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def one_format(context: typer.Context, form: str, as_json: bool) -> str:
    """Return the format that --format and --json select.

    Raises:
        UsageError: the two options select different formats.
    """
    if as_json and form != "json" and on_command_line(context, "form"):
        raise UsageError(f"--json and --format {form} are different formats: drop one.")
    return "json" if as_json else form


def make_folder(folder: Path) -> None:
    """Create the folder of --out.

    Raises:
        UsageError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"Cannot write to '{folder}': {error.strerror}. Use another folder with --out."
        ) from error
