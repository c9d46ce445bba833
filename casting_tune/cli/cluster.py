"""Commands for Ray clusters: `cluster check` and `cluster new`.

Heavy libraries are imported inside the commands.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from casting_tune.cli import console
from casting_tune.cli.params import Json
from casting_tune.errors import UsageError

app = typer.Typer(help="Check or create a Ray cluster file.", no_args_is_help=True)


@app.command()
def check(
    file: Annotated[
        Path, typer.Argument(help="Cluster file of `ray up`, for AWS or for your own machines.")
    ],
    gpus_per_trial: Annotated[
        float,
        typer.Option("--gpus-per-trial", min=0, help="GPUs that each trial requires (AWS only)."),
    ] = 0,
    as_json: Json = False,
) -> None:
    """List all problems of a cluster file, without a connection.

    Exit code 2: there are problems.
    """
    from casting_tune.execution import cluster_check

    findings = cluster_check.check(file, gpus_per_trial=gpus_per_trial)
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
        Literal["aws", "local", "kubernetes", "account"],
        typer.Argument(help="Kind of cluster; account: the resources that AWS needs."),
    ],
    file: Annotated[
        Path, typer.Argument(help="New file to write; an existing file is not changed.")
    ],
    as_json: Json = False,
) -> None:
    """Write a cluster file to complete, for AWS, your own machines or Kubernetes."""
    from casting_tune.execution import cluster_file

    text = cluster_file.source(purpose)
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise UsageError(
            f"Cannot write '{file}': {error.strerror}. Use another file name."
        ) from error
    if as_json:
        console.write_json({"file": file})
        return
    console.say(console.console(), f"{file} was written. Replace all values that say FILL_IN.")
