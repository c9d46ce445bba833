"""Commands for the store and the machine: `store verify`, `store migrate`, `doctor`.

Heavy libraries are imported inside the commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from casting_tune.cli import console
from casting_tune.cli.params import RESULTS, Json, Results
from casting_tune.errors import ResourcesError, StoreError

if TYPE_CHECKING:
    from casting_tune.store.verify import Report


def verify(
    results: Results = RESULTS,
    quarantine: Annotated[
        bool,
        typer.Option(
            "--quarantine",
            help="Move damaged files to quarantine/. Their cells are trained again.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Read every file of the store and check all rows for consistency.

    Exit code 6: there are faults.
    """
    from casting_tune.store import verify as checks
    from casting_tune.store.schema import SCHEMA_VERSION
    from casting_tune.store.store import Store

    store, out = Store(results), console.console(as_json)
    report = checks.verify(store)
    moved = checks.quarantine(store, report) if quarantine else []
    left = [finding for finding in report.faults if not (quarantine and finding.moves)]
    if as_json:
        counts = {"files": report.files, "rows": report.rows}
        console.write_json(counts | {"findings": report.findings, "moved": dict(moved)})
    else:
        _print_report(report)
    for file, to in moved:
        console.say(out, f"{file} was moved to {to}.")
    older = sum(n for version, n in report.versions.items() if version < SCHEMA_VERSION)
    if older:
        console.say(
            out,
            f"{older} files have an older schema. They can be read; "
            "to rewrite them in the current schema, use casting-tune store migrate.",
        )
    if left:
        console.say(out, f"{len(left)} faults: exit code {StoreError.exit_code}.")
        raise typer.Exit(StoreError.exit_code)
    console.say(out, "All files can be read, and no rows contradict each other.")


def _print_report(report: Report) -> None:
    tables = [
        [table, str(report.files[table]), str(report.rows[table])] for table in sorted(report.files)
    ]
    console.grid(["table", "files", "rows"], tables)
    if report.findings:
        rows = [[finding.kind, finding.file, finding.what] for finding in report.findings]
        console.grid(["kind", "file", "finding"], rows)


def migrate(
    folder: Annotated[
        str, typer.Option("--out", help="New store: a new folder, or s3://BUCKET/PREFIX.")
    ],
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Copy the store to a new one in the schema of this version."""
    from casting_tune.store import migrate as migration
    from casting_tune.store.store import Store

    written = migration.migrate(Store(results), Store(folder))
    if as_json:
        console.write_json({"files": written})
        return
    console.grid(["table", "files"], [[table, str(n)] for table, n in written.items()])
    console.say(
        console.console(),
        f"All rows are now in {folder}. "
        "Packs are created there when needed; weights and checkpoints were not copied.",
    )


def doctor(results: Results = RESULTS, as_json: Json = False) -> None:
    """Check this machine for a sweep: libraries, CPUs, GPU, memory, results, weights.

    Exit code 7: a check failed.
    """
    from casting_tune.execution import doctor as checks

    out = console.console(as_json)
    findings = checks.examine(results)
    failed = sum(finding.state == "fail" for finding in findings)
    if as_json:
        console.write_json({"findings": findings, "failed": failed})
    else:
        texts = {f: f"{f.seen}. {f.way_out}" if f.way_out else f.seen for f in findings}
        console.grid(["state", "check", "result"], [[f.state, f.about, texts[f]] for f in findings])
    if failed:
        console.say(
            out,
            f"{failed} of {len(findings)} checks failed: exit code {ResourcesError.exit_code}.",
        )
        raise typer.Exit(ResourcesError.exit_code)


app = typer.Typer(help="Check or migrate a results store.", no_args_is_help=True)
for _command in (verify, migrate):
    app.command()(_command)
