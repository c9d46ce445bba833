"""Commands that run sweeps: `sweep` (also `python -m casting_tune.sweep`), `sweeps`, `study`.

Heavy libraries are imported inside the commands.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from casting_tune.cli import completion, console, images, params, signals, sweep_plan, sweep_run
from casting_tune.cli.params import (
    RESULTS,
    Bits,
    Data,
    DefectClass,
    DefectClasses,
    GoodClasses,
    Gray,
    GroupPattern,
    Json,
    KeepSplit,
    MaxMegapixels,
    PackSize,
    Resize,
    Results,
    SkipBad,
    Verbose,
    make_folder,
    pixel_rules,
)
from casting_tune.errors import CastingTuneError, UsageError, unknown

if TYPE_CHECKING:
    from casting_tune.store.store import Store


def sweep(
    name: Annotated[
        str,
        typer.Argument(
            help="Sweep name, or path of a sweep file.", autocompletion=completion.sweeps
        ),
    ],
    *,
    data: Data = None,
    results: Results = RESULTS,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Use the [quick] section: minutes instead of days."),
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the cells and their cost; start no trial.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="A=V",
            help="axis=value[,value]: run only matching cells. Repeat for more values or axes.",
        ),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="S=V", help="setting=value: replace a fixed setting of the sweep."
        ),
    ] = None,
    positive: DefectClass = None,
    good: GoodClasses = None,
    defect: DefectClasses = None,
    group_pattern: GroupPattern = None,
    keep_split: KeepSplit = False,
    pack_size: PackSize = None,
    bits: Bits = None,
    resize: Resize = "letterbox",
    max_megapixels: MaxMegapixels = 25,
    gray: Gray = None,
    skip_bad: SkipBad = False,
    inline: Annotated[
        bool,
        typer.Option("--inline", help="Run one trial after another in this process, without Ray."),
    ] = False,
    address: Annotated[
        str | None, typer.Option("--address", help="Running Ray cluster: auto, or host:port.")
    ] = None,
    trials_at_once: Annotated[
        int | None,
        typer.Option(
            "--trials-at-once", help="Number of parallel trials. Default: as many as fit."
        ),
    ] = None,
    gpus_per_trial: Annotated[
        str | None,
        typer.Option(
            "--gpus-per-trial",
            help="A number (fractions share a GPU), or auto (by memory). Default: 1 if available.",
        ),
    ] = None,
    retries: Annotated[int, typer.Option("--retries", help="Repeats of a failed trial.")] = 1,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run cells again that failed in earlier runs.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train all cells again; the newest result counts.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Allow more than 10,000 cells.")] = False,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="With --plan: time networks whose speed is unknown."),
    ] = False,
    price: Annotated[
        float | None,
        typer.Option("--price-per-gpu-hour", help="With --plan: also print the price."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            metavar="EPOCH",
            help="last or best: keep the weights of that epoch. Repeat for both.",
        ),
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option("--max-seconds", help="Time limit per trial in seconds.")
    ] = None,
    max_memory: Annotated[
        float | None,
        typer.Option(
            "--max-memory", help="Memory limit per CPU trial in GiB. Default: an equal share."
        ),
    ] = None,
    on_oom: Annotated[
        Literal["fail", "accumulate"] | None,
        typer.Option(
            "--on-oom",
            metavar="MODE",
            help="If out of memory: fail, or accumulate (train a batch in smaller parts).",
        ),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Add simple baseline rows.")
    ] = True,
    timing: Annotated[
        bool,
        typer.Option("--timing", help="Time each network in a short run, alone on its device."),
    ] = False,
    log: Annotated[
        list[str] | None,
        typer.Option(
            "--log",
            metavar="NAME",
            help="tensorboard, mlflow or wandb; add :DIR to set the folder.",
        ),
    ] = None,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Train all missing cells of a sweep, then print the table."""
    del verbose  # its callback has set up the log
    from casting_tune.execution import trackers
    from casting_tune.planning.options import Options

    logged = trackers.read(log or [])
    options = Options(
        sweep=name,
        data=data,
        results=results,
        quick=quick,
        only=tuple(only or ()),
        overrides=tuple(override or ()),
        reading=params.reading(
            positive, good, defect, group_pattern=group_pattern, keep_split=keep_split
        ),
        pack_size=pack_size,
        pixels=pixel_rules(bits, resize, max_megapixels, gray),
        skip_bad=skip_bad,
        inline=inline,
        address=address,
        trials_at_once=trials_at_once,
        gpus_per_trial=_gpus(gpus_per_trial),
        retries=retries,
        timing=timing,
        baselines=baselines,
        plan=plan,
        probe=probe,
        price_per_gpu_hour=price,
        fresh=fresh,
        retry_failed=retry_failed,
        yes=yes,
        keep=_kept(keep or []),
        max_seconds=max_seconds,
        memory_gib=max_memory,
        on_oom=on_oom,
        command=_command(name, quick, only or [], override or []),
    )
    out = console.console(as_json)
    with signals.ray_ahead() as ahead:
        prepared = sweep_run.prepare(out, options, ahead)
        sweep_plan.print_outline(out, prepared)
        if plan:
            sweep_plan.write_plan(out, prepared, as_json=as_json)
            return
        outcome = sweep_run.execute(out, prepared, logged)
    if as_json:
        console.write_json(outcome)
    if outcome["n_missing"]:
        raise typer.Exit(CastingTuneError.exit_code)


def sweeps(as_json: Json = False) -> None:
    """List the available sweeps with their questions."""
    from casting_tune.planning import expand, sweep_file

    available = [expand.read(name) for name in sweep_file.names()]
    if as_json:
        records = [
            {
                "sweep": s.name,
                "cells": s.n_cells,
                "study_part": s.study_part,
                "question": s.question,
            }
            for s in available
        ]
        console.write_json(records)
        return
    rows = [[s.name, str(s.n_cells), s.study_part or "-", s.question] for s in available]
    console.grid(["sweep", "cells", "study part", "question"], rows)


def study(
    data: Data = None,
    *,
    results: Results = RESULTS,
    quick: Annotated[
        bool, typer.Option("--quick", help="Use the [quick] section of each sweep.")
    ] = False,
    folder: Annotated[
        Path, typer.Option("--out", help="Folder for the tables in Markdown.")
    ] = Path("tables"),
    as_json: Json = False,
) -> None:
    """Reproduce the study: audit, its five sweeps, those with grouped splits, and all tables."""
    from casting_tune.data import image_folder
    from casting_tune.planning import expand, sweep_file
    from casting_tune.planning.options import Options
    from casting_tune.store.store import Store

    out, missing, files = console.console(as_json), [], []
    for option, place in (("--results", Store(results).root), ("--out", folder)):
        image_folder.check_outside(data, place, option)
    names = [name for name in sweep_file.names() if expand.read(name).study_part]
    for name in names:
        expand.read(name, quick=quick)
    make_folder(folder)  # fail before days of training
    if data is not None:
        images.print_audit(out, images.ImageFolder(data=data, results=results))
    for name in names:
        options = Options(
            sweep=name,
            data=data,
            results=results,
            quick=quick,
            command=_command(name, quick, [], []),
        )
        with signals.ray_ahead() as ahead:
            prepared = sweep_run.prepare(out, options, ahead)
            sweep_plan.print_outline(out, prepared)
            if sweep_run.execute(out, prepared)["n_missing"]:
                missing.append(name)
        files += _write_tables(Store(results), name, folder)
    if as_json:
        console.write_json({"tables": files, "sweeps_with_missing_cells": missing})
    console.say(out, f"The tables of all sweeps are in {folder}/.")
    if missing:
        console.say(out, f"Cells without a result in: {', '.join(missing)}.")
        raise typer.Exit(CastingTuneError.exit_code)


def _write_tables(store: Store, sweep: str, folder: Path) -> list[Path]:
    """Write all tables of a sweep as Markdown, for both positive classes; return the files."""
    from casting_tune.analysis import tables
    from casting_tune.report import render

    files = []
    views: tuple[tuple[str, Literal["defective", "ok"]], ...]
    views = (("", "defective"), ("-ok_front", "ok"))
    for kind, make in tables.TABLES.items():
        for suffix, positive in views:
            text = render.render(make(store, sweep, positive=positive), "markdown")
            files.append(folder / f"{sweep}-{kind}{suffix}.md")
            files[-1].write_text(text, encoding="utf-8")
    return files


def _gpus(text: str | None) -> float | Literal["auto"] | None:
    if text is None:
        return None
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise UsageError(
            f"--gpus-per-trial must be auto, or a number such as 0.5; got '{text}'."
        ) from None


def _kept(names: list[str]) -> tuple[Literal["last", "best"], ...]:
    known: tuple[Literal["last", "best"], ...] = ("last", "best")
    for name in names:
        if name not in known:
            raise UsageError(f"--keep: {unknown('weights', name, known)}")
    return tuple(name for name in known if name in names)


def _command(name: str, quick: bool, only: list[str], override: list[str]) -> str:
    """Return the command for the store that continues a sweep, without folders of this machine."""
    words = [name if "/" not in name else Path(name).name, *(["--quick"] if quick else [])]
    words += [word for text in only for word in ("--only", text)]
    words += [word for text in override for word in ("--set", text)]
    return f"python -m casting_tune.sweep {shlex.join(words)}"
