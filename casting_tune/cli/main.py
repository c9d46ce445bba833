"""The `casting-tune` program: all commands, error messages and exit codes (see `errors`).

Heavy libraries are imported inside the commands, so that --help is fast.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Any, cast

import typer
from rich.markup import escape

import casting_tune
from casting_tune.cli import (
    cells,
    cluster,
    console,
    deploy,
    images,
    models,
    results,
    store,
    sweep,
)
from casting_tune.cli.params import Verbose
from casting_tune.errors import CastingTuneError, StoreError, UsageError, unknown
from casting_tune.execution import ray_cluster

GROUPS = {
    "Train": (sweep.sweep, sweep.study, sweep.sweeps),
    "Results": (
        cells.list_runs, results.table, results.report, results.threshold, cells.show,
        cells.compare, cells.query, results.plot, results.export_optuna,
    ),
    "Images": (images.audit, images.pack, images.preview, images.synthetic, images.fetch),
    "Deploy": (deploy.export, deploy.predict, deploy.explain, deploy.reproduce),
    "Networks and machine": (models.backbones, models.summary, store.doctor),
}  # fmt: skip
"""All commands, by their panel of --help and in its order."""

COMMANDS = tuple(command for commands in GROUPS.values() for command in commands)

START = """\
casting_tune {version}: which network, which augmentations and which threshold find the defects.

  python -m casting_tune.sweep backbone_grid --quick      train on generated castings, in minutes
  casting-tune audit --data DIR                           check your own images for data leaks
  python -m casting_tune.sweep backbone_grid --data DIR   train on your own images
  casting-tune list                                       what the results store holds

All commands: casting-tune --help. Options of one: casting-tune COMMAND --help.
"""

app = typer.Typer(
    help="Compare networks, augmentations and batch sizes for the visual inspection of castings.",
    pretty_exceptions_enable=False,
    add_completion=True,
)
for _panel, _commands in GROUPS.items():
    for _command in _commands:
        _name = "list" if _command is cells.list_runs else None
        app.command(_name, rich_help_panel=_panel)(_command)
app.add_typer(cluster.app, name="cluster", rich_help_panel="Store and cluster")
app.add_typer(store.app, name="store", rich_help_panel="Store and cluster")


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Verbose = False,
) -> None:
    del verbose  # its callback has set up the log
    if version:
        console.write(f"casting_tune {casting_tune.__version__}\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        console.write(START.format(version=casting_tune.__version__))


def main() -> None:
    """Run a command. An error is one line on stderr and a documented exit code."""
    _run(app, "casting-tune")


def sweep_alone() -> None:
    """Run `python -m casting_tune.sweep`: the same as `casting-tune sweep`."""
    alone = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    alone.command()(sweep.sweep)
    _run(alone, "python -m casting_tune.sweep")


_InvalidUsage = cast("type[Exception]", typer.BadParameter.__mro__[2])
"""The exception of typer for an invalid command line: ClickException of click, or a copy of it."""


def _run(app: typer.Typer, name: str) -> None:
    _prepare_process()
    try:
        code = escape_help(typer.main.get_command(app))(prog_name=name, standalone_mode=False)
    except CastingTuneError as error:
        console.complain(str(error), error.details)
        sys.exit(error.exit_code)
    except _InvalidUsage as usage:
        if type(usage).__name__ == "NoArgsIsHelpError":
            cast("Any", usage).show()  # the help text
        else:
            console.complain(_usage_error(usage))
        sys.exit(UsageError.exit_code)
    except typer.Abort:
        sys.exit(130)
    except BrokenPipeError:  # the reader, for example `| head`, has closed the pipe
        _discard_stdout()
        sys.exit(0)
    except OSError as error:  # a named file, or stdout redirected to a full disk
        console.complain(_os_error(error))
        sys.exit(StoreError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _prepare_process() -> None:
    """Set thread variables and the error mode of the output streams."""
    # numpy and torch read the variables on import
    for variable, value in ray_cluster.SPARING.items():
        os.environ.setdefault(variable, value)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # with LANG=C, ü is written as \xfc
            stream.reconfigure(errors="backslashreplace")


def _os_error(error: OSError) -> str:
    """Return one line for an error of a file or of stdout."""
    if error.filename is None:
        _discard_stdout()
    name = "the output" if error.filename is None else f"'{error.filename}'"
    remedy = (
        "give this account permission"
        if isinstance(error, PermissionError)
        else "free some disk space"
    )
    return f"Cannot use {name}: {error.strerror or error}. Use another path, or {remedy}."


def escape_help(command: Any) -> Any:
    """Escape the help texts of all commands: rich would read `[quick]` as a style."""
    for part in (command, *command.params):
        if part.help:
            part.help = escape(part.help)
    for below in getattr(command, "commands", {}).values():
        escape_help(below)
    return command


def _discard_stdout() -> None:
    """Discard buffered output, or Python would fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage_error(usage: Any) -> str:
    """Return one line for an invalid command line, with the nearest spelling or a hint."""
    context = getattr(usage, "ctx", None)
    if hasattr(usage, "possibilities") and context is not None:
        names = [
            name
            for param in context.command.params
            for name in (*param.opts, *param.secondary_opts)
        ]
        return unknown(
            "option", usage.option_name, [name for name in names if name.startswith("--")]
        )
    message = usage.format_message().rstrip(".")
    if "Did you mean" in message or context is None:
        return message if message.endswith("?") else f"{message}."
    return f"{message}. See '{context.command_path} --help'."


if __name__ == "__main__":
    main()
