"""`casting-tune ...`: every command by its name, and what becomes of an error.

Exit codes are those of `errors`. Heavy libraries load inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from casting_tune import commands_images, commands_models, commands_results, commands_sweep, terminal
from casting_tune.errors import CastingTuneError

COMMANDS = (
    commands_sweep.sweep, commands_sweep.study, commands_sweep.sweeps,
    commands_results.table, commands_results.threshold, commands_results.plot,
    commands_images.synthetic, commands_images.pack, commands_images.audit, commands_images.preview,
    commands_models.backbones, commands_models.summary,
)  # fmt: skip
"""In the order in which --help lists them."""

app = typer.Typer(
    help="Sweeps over networks, augmentations and batch sizes for the visual inspection of castings.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
for _command in COMMANDS:
    app.command()(_command)


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False) -> None:
    if version:
        import importlib.metadata

        terminal.write(f"casting_tune {importlib.metadata.version('casting-tune')}\n")
        raise typer.Exit


def main() -> None:
    """Run a command; an error of ours is one line on stderr and its documented exit code."""
    _run(app)


def sweep_alone() -> None:
    """Run `python -m casting_tune.sweep`, which is `casting-tune sweep`."""
    alone = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    alone.command()(commands_sweep.sweep)
    _run(alone)


def _run(command: typer.Typer) -> None:
    try:
        command()
    except CastingTuneError as error:
        terminal.complain(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
