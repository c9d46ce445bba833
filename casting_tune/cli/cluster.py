"""Commands about clusters: `casting-tune cluster check` and `casting-tune cluster new`.

Comes in: what a person typed. Goes out: one line a finding, or a file. Heavy libraries load inside
the commands.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from casting_tune.cli import console
from casting_tune.cli.params import Json
from casting_tune.errors import UsageError

app = typer.Typer(
    help="Ray clusters: check a file before money is spent, or start from one.",
    no_args_is_help=True,
)


@app.command()
def check(
    file: Annotated[
        Path,
        typer.Argument(help="A cluster file of `ray up`, for AWS or for machines of your own."),
    ],
    gpus_per_trial: Annotated[
        float, typer.Option("--gpus-per-trial", min=0, help="What a trial will ask for; on AWS.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Name everything that is to mend in a cluster file, offline; exit code 2 where there is anything."""
    from casting_tune.execution import cluster_check as room

    findings = room.check(file, gpus_per_trial=gpus_per_trial)
    out = console.console(as_json)
    for finding in findings:
        console.say(out, f"{file}:{finding.line}: {finding.text}")
    if not findings:
        console.say(out, f"{file}: no findings.")
    if as_json:
        console.write_json([asdict(finding) for finding in findings])
    if findings:
        raise typer.Exit(UsageError.exit_code)


@app.command()
def new(
    purpose: Annotated[
        Literal["aws", "local", "kubernetes", "account"], typer.Argument(help="What it is for.")
    ],
    file: Annotated[Path, typer.Argument(help="Where it goes; nothing is overwritten.")],
    as_json: Json = False,
) -> None:
    """Write a cluster file to fill in: for AWS, machines of your own, Kubernetes, or what AWS needs in the account."""
    from casting_tune.execution import cluster_file

    text = cluster_file.source(purpose)
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise UsageError(
            f"'{file}' cannot be written ({error.strerror}). Name another file."
        ) from error
    if as_json:
        console.write_json({"file": file})
        return
    console.say(console.console(), f"{file} is written; fill in what says FILL_IN.")
