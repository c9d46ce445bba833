"""Commands that look after a store and the machine: a few lines into a room each.

Comes in: what a person typed. Goes out: lines, grids and exit codes. Heavy libraries load inside
the commands.
"""

from __future__ import annotations

from typing import Annotated

import typer

from casting_tune.cli import console
from casting_tune.cli.params import RESULTS, Json, Results
from casting_tune.errors import ResourcesError, StoreError


def verify(
    results: Results = RESULTS,
    quarantine: Annotated[
        bool,
        typer.Option(
            "--quarantine", help="Move what is broken to quarantine/; its cells will run again."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Read every file of the store and hold its rows against each other.

    Exit 6: something is wrong.
    """
    from casting_tune.store import verify as room
    from casting_tune.store.schema import SCHEMA_VERSION
    from casting_tune.store.store import Store

    store, out = Store(results), console.console(as_json)
    report = room.verify(store)
    moved = room.quarantine(store, report) if quarantine else []
    left = [finding for finding in report.faults if not (quarantine and finding.moves)]
    if as_json:
        console.write_json(
            {
                "files": report.files,
                "rows": report.rows,
                "findings": report.findings,
                "moved": dict(moved),
            }
        )
    else:
        tables = [
            [table, str(report.files[table]), str(report.rows[table])]
            for table in sorted(report.files)
        ]
        console.grid(["table", "files", "rows"], tables)
        if report.findings:
            found = [[finding.kind, finding.file, finding.what] for finding in report.findings]
            console.grid(["found", "file", "what"], found)
    for file, to in moved:
        console.say(out, f"{file} lies in {to} now.")
    older = sum(n for version, n in report.versions.items() if version < SCHEMA_VERSION)
    if older:
        console.say(
            out,
            f"{older} files have an older schema: read as they are, written anew by store migrate.",
        )
    if left:
        console.say(out, f"{len(left)} faults: exit code {StoreError.exit_code}.")
        raise typer.Exit(StoreError.exit_code)
    console.say(out, "Every file that is there can be read, and no rows contradict each other.")


def migrate(
    folder: Annotated[
        str,
        typer.Option("--out", help="The new store: a folder that is not there yet, or s3://..."),
    ],
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Write the store anew under the schema of this version; the old one stays as it is."""
    from casting_tune.store import migrate as room
    from casting_tune.store.store import Store

    written = room.migrate(Store(results), Store(folder))
    if as_json:
        console.write_json({"files": written})
        return
    console.grid(["table", "files"], [[table, str(n)] for table, n in written.items()])
    console.say(
        console.console(),
        f"The same rows are in {folder}. Packs are made anew there; weights and checkpoints stay where they are.",
    )


def doctor(results: Results = RESULTS, as_json: Json = False) -> None:
    """Look at what this machine has for a sweep: libraries, CPUs, GPU, memory, results, extras.

    Exit 7: a lack.
    """
    from casting_tune.execution import doctor as room

    out = console.console(as_json)
    found = room.examine(results)
    failed = sum(finding.state == "fail" for finding in found)
    if as_json:
        console.write_json({"findings": found, "failed": failed})
    else:
        seen = {f: f"{f.seen}. {f.way_out}" if f.way_out else f.seen for f in found}
        console.grid(["", "about", "seen"], [[f.state, f.about, seen[f]] for f in found])
    if failed:
        console.say(
            out, f"{failed} of {len(found)} need mending: exit code {ResourcesError.exit_code}."
        )
        raise typer.Exit(ResourcesError.exit_code)


app = typer.Typer(help="Look after a store: verify, migrate.", no_args_is_help=True)
for _command in (verify, migrate):
    app.command()(_command)
