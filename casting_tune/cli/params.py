"""The options that several commands share, and checks of their values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from casting_tune.cli import completion, console
from casting_tune.data.pixel_rules import PixelRules
from casting_tune.errors import UsageError

if TYPE_CHECKING:
    from casting_tune.data.image_folder import Reading

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
        help="Image folder, or a list of images. Default: generate synthetic castings.",
    ),
]
NeededData = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="DIR",
        envvar="CASTING_TUNE_DATA",
        help="Image folder, or a list of images.",
    ),
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
    str | None, typer.Option("--positive", help="Name of the class with the defects.")
]
GoodClasses = Annotated[
    list[str] | None,
    typer.Option(
        "--good",
        metavar="NAME[,NAME]",
        help="Good classes; all others are kinds of defects. Default: by the names.",
    ),
]
DefectClasses = Annotated[
    list[str] | None,
    typer.Option(
        "--defect", metavar="NAME[,NAME]", help="Kinds of defects; all other classes are good."
    ),
]
GroupPattern = Annotated[
    str | None,
    typer.Option(
        "--group-pattern",
        metavar="REGEX",
        help="Finds the part, lot or camera in a path, as 'part([0-9]+)_': it stays on one side.",
    ),
]
KeepSplit = Annotated[
    bool,
    typer.Option("--keep-split", help="Keep the split although train has one class only."),
]
PackSize = Annotated[
    int | None, typer.Option("--pack-size", help="Longest side of the packed images in pixels.")
]
Bits = Annotated[
    int | None,
    typer.Option(
        "--bits", help="Bits in 16-bit files: 8, 10, 12, 14, 16. Default: found over all images."
    ),
]
Resize = Annotated[
    Literal["letterbox", "squash", "crop"],
    typer.Option(
        "--resize", metavar="HOW", help="letterbox, squash or crop: how images become square."
    ),
]
MaxMegapixels = Annotated[
    int, typer.Option("--max-megapixels", help="Larger images are refused before decoding.")
]
Gray = Annotated[
    bool | None,
    typer.Option(
        "--gray/--colour",
        show_default=False,
        help="Convert coloured images to gray, or keep all colours. Default: ask if few have any.",
    ),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Skip and record files that cannot be decoded.")
]
SweepName = Annotated[
    str, typer.Argument(help="Sweep name.", autocompletion=completion.stored_sweeps)
]
CellName = Annotated[
    str,
    typer.Argument(
        help="A cell: its id, row label or a part of one; or 'best', the best of a sweep.",
        autocompletion=completion.cells,
    ),
]
OfSweep = Annotated[
    str | None,
    typer.Option(
        "--sweep",
        help="Sweep of the cell. Default: every sweep in the store.",
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


def pixel_rules(
    bits: int | None, resize: Resize, max_megapixels: int, gray: bool | None
) -> PixelRules:
    """Return the rules of --bits, --resize, --max-megapixels and --gray/--colour."""
    return PixelRules(
        bits=bits,
        resize=resize,
        max_megapixels=max_megapixels,
        colour="ask" if gray is None else "gray" if gray else "colour",
    )


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


def reading(
    positive: str | None,
    good: list[str] | None,
    defect: list[str] | None,
    *,
    group_pattern: str | None,
    keep_split: bool,
) -> Reading:
    """Return how the options say that the images are read."""
    from casting_tune.data.image_folder import Reading

    return Reading(
        positive=positive,
        good=_names(good),
        defect=_names(defect),
        group_pattern=group_pattern,
        keep_split=keep_split,
    )


def _names(given: list[str] | None) -> tuple[str, ...]:
    """Return the names of an option that is repeated or has several names with commas."""
    names = (name.strip() for text in given or [] for name in text.split(","))
    return tuple(dict.fromkeys(name for name in names if name))


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
