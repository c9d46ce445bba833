"""`casting-tune ...`: every command by its name, and what becomes of an error.

Exit codes are those of `errors`. Heavy libraries load inside the commands, so that --help answers
at once.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Any, cast

import typer
from rich.markup import escape

import casting_tune
from casting_tune.cli import cells, cluster, console, images, models, results, store, sweep
from casting_tune.cli.params import Verbose
from casting_tune.errors import CastingTuneError, StoreError, UsageError, unknown
from casting_tune.execution import ray_cluster

COMMANDS = (
    sweep.sweep, sweep.study, sweep.sweeps,
    results.table, results.threshold, results.plot, results.report,
    results.export_optuna,
    cells.list_runs, cells.show, cells.compare, cells.query,
    images.fetch, images.synthetic, images.pack, images.audit,
    images.preview,
    models.backbones, models.summary,
    models.export, models.predict, models.explain, models.reproduce,
    store.doctor,
)  # fmt: skip
"""In the order in which --help lists them."""

app = typer.Typer(
    help="Sweeps over networks, augmentations and batch sizes for the visual inspection of castings.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
for _command in COMMANDS:
    app.command("list" if _command is cells.list_runs else None)(_command)
app.add_typer(cluster.app, name="cluster")
app.add_typer(store.app, name="store")


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
    verbose: Verbose = False,
) -> None:
    del verbose  # its callback has acted
    if version:
        console.write(f"casting_tune {casting_tune.__version__}\n")
        raise typer.Exit


def main() -> None:
    """Run a command; an error of ours is one line on stderr and its documented exit code."""
    _run(app, "casting-tune")


def sweep_alone() -> None:
    """Run `python -m casting_tune.sweep`, which is `casting-tune sweep`."""
    alone = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    alone.command()(sweep.sweep)
    _run(alone, "python -m casting_tune.sweep")


_Refused = cast("type[Exception]", typer.BadParameter.__mro__[2])
"""What typer raises for a command line that cannot be meant: click's ClickException, or typer's own copy of it."""


def _run(app: typer.Typer, name: str) -> None:
    for (
        variable,
        value,
    ) in ray_cluster.SPARING.items():  # numpy and torch read them when they are imported
        os.environ.setdefault(variable, value)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # where LANG=C knows no ü, it comes out as \\xfc
            stream.reconfigure(errors="backslashreplace")
    try:
        code = literal(typer.main.get_command(app))(prog_name=name, standalone_mode=False)
    except CastingTuneError as error:
        console.complain(str(error))
        sys.exit(error.exit_code)
    except _Refused as refused:
        if type(refused).__name__ == "NoArgsIsHelpError":
            cast("Any", refused).show()  # the help: already written, at its best width
        else:
            console.complain(_refusal(refused))
        sys.exit(UsageError.exit_code)
    except typer.Abort:
        sys.exit(130)
    except BrokenPipeError:  # `| head` has seen enough
        _let_go_of_stdout()
        sys.exit(0)
    except OSError as error:  # a file that was named, or stdout where `>` leads to a full disk
        if error.filename is None:
            _let_go_of_stdout()
        what = "the output" if error.filename is None else f"'{error.filename}'"
        way_out = (
            "make room there"
            if not isinstance(error, PermissionError)
            else "give this account permission"
        )
        console.complain(
            f"Cannot use {what}: {error.strerror or error}. Name another place, or {way_out}."
        )
        sys.exit(StoreError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def literal(command: Any) -> Any:
    """Escape the help texts of a command and of those below it, and return it: rich would read `[quick]` as a style."""
    for part in (command, *command.params):
        if part.help:
            part.help = escape(part.help)
    for below in getattr(command, "commands", {}).values():
        literal(below)
    return command


def _let_go_of_stdout() -> None:
    """Send what is still to be written nowhere, or Python would fail again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refusal(refused: Any) -> str:
    """Return one line for a command line that cannot be meant, with the nearest spelling or where to look."""
    context = getattr(refused, "ctx", None)
    if hasattr(refused, "possibilities") and context is not None:
        names = [
            name
            for param in context.command.params
            for name in (*param.opts, *param.secondary_opts)
        ]
        return unknown(
            "option", refused.option_name, [name for name in names if name.startswith("--")]
        )
    message = refused.format_message().rstrip(".")
    if "Did you mean" in message or context is None:
        return message if message.endswith("?") else f"{message}."
    return f"{message}. See '{context.command_path} --help'."


if __name__ == "__main__":
    main()
