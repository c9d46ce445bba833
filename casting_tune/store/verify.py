"""Checks a whole store and reports faults; moves bad files to quarantine, and never deletes any.

Input: a store. Output: a Report of Findings. A bad file is moved to quarantine/<table>/<sweep>/,
after the row of its trial: without that row the cell is not done, and the next run trains it again.
Changes no row.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from casting_tune.config import BASELINE, Status
from casting_tune.errors import StoreError
from casting_tune.store.locks import sweep_lock
from casting_tune.store.schema import SCHEMA_VERSION, SCHEMAS
from casting_tune.store.spool import drain
from casting_tune.store.store import Store
from casting_tune.store.table_file import is_table_file

Kind = Literal["broken", "fault", "later", "spooled", "leftover"]
_STEM = {
    "trials": re.compile(r"(?P<cell>\w+)-(?P<attempt>\d+)"),
    "predictions": re.compile(r"(?P<cell>\w+)-(?P<attempt>\d+)"),
    "epochs": re.compile(r"(?P<cell>\w+)-(?P<attempt>\d+)-(?P<epoch>\d+)"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A problem of a file.

    Attributes:
        file: relative to the store.
        kind: "broken" cannot be read; "fault" has invalid rows; "later" was written by a newer
            casting_tune; "spooled" waits on this machine for its bucket; "leftover" does no harm
            and comes from a killed process.
        what: one sentence, which continues the name of the file.
        moves: the files that quarantine moves, in this order.
    """

    file: str
    kind: Kind
    what: str
    moves: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Report:
    """Contents and problems of a store: `files` and `rows` per table, `versions` counts files."""

    files: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    versions: Counter[int] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    @property
    def faults(self) -> list[Finding]:
        """All findings except leftovers."""
        return [finding for finding in self.findings if finding.kind != "leftover"]


def verify(store: Store) -> Report:
    """Read every file of a store, with page checksums, and check all rows for consistency.

    Raises:
        StoreError: the store itself cannot be listed.
    """
    report = Report()
    for waiting in drain(store):
        report.findings.append(
            Finding(file=waiting, kind="spooled", what="waits on this machine for its bucket")
        )
    trials: dict[tuple[str, int], tuple[str, dict[str, Any]]] = {}
    for file, rows in _tables(store, "trials", report):
        row = rows.to_pylist()[0] if rows.num_rows == 1 else {}
        key = _key("trials", file)
        if (row.get("cell_id"), row.get("attempt")) != key or row.get("status") not in get_args(
            Status
        ):
            _fault(report, file, "does not contain the one row of the trial in its name")
        elif key in trials:
            _fault(report, file, f"is a second row of a trial; the first is {trials[key][0]}")
        else:
            trials[key] = (file, row)
    _epochs(store, report, trials)
    predicted = _predictions(store, report, trials)
    predicted |= {
        _key("predictions", finding.file)
        for finding in report.findings
        if finding.file.startswith("predictions/")
    }
    for key, (file, row) in trials.items():
        if row["status"] == "completed" and key not in predicted:
            _fault(report, file, "has status completed, but its predictions are missing")
    for table in ("cells", "images", "probes"):
        for _ in _tables(store, table, report):
            pass
    return report


def quarantine(store: Store, report: Report) -> list[tuple[str, str]]:
    """Check again while no sweep runs, and move files with the same findings to quarantine.

    A second check is necessary: predictions of a running trial look like a leftover.

    Returns:
        (file, new name) of each moved file.

    Raises:
        StoreError: a sweep is running in this store, or a file cannot be moved.
    """
    moved: dict[str, str] = {}
    sweeps = {
        PurePosixPath(name).parts[1]
        for table in ("cells", "epochs", "trials")
        for name in store.names(table)
    }
    with contextlib.ExitStack() as locks:
        for sweep in sorted(sweeps):
            locks.enter_context(sweep_lock(store, sweep))
        taken = set(store.names("quarantine"))
        suspects = {finding.file for finding in report.findings if finding.moves}
        for finding in verify(store).findings if suspects else ():
            for file in finding.moves if finding.file in suspects else ():
                if file not in moved:
                    to = next(name for name in _free(f"quarantine/{file}") if name not in taken)
                    store.move(file, to)
                    taken.add(to)
                    moved[file] = to
    return list(moved.items())


def _free(name: str) -> Iterator[str]:
    yield name
    n = 2
    while True:
        yield f"{name}~{n}"
        n += 1


def _tables(store: Store, table: str, report: Report) -> Iterator[tuple[str, pa.Table]]:
    """Yield each readable file of a table with its rows; report the others."""
    for file in store.names(table):
        if not is_table_file(file):
            report.findings.append(
                Finding(
                    file=file,
                    kind="leftover",
                    what="is ignored by all readers; its writer was killed",
                    moves=(file,),
                )
            )
            continue
        try:
            version = store.version(file)
            if version > SCHEMA_VERSION:
                what = f"was written by a newer casting_tune (schema {version}): update it"
                report.findings.append(Finding(file=file, kind="later", what=what))
                continue
            rows = store.read_file(file, SCHEMAS[table])
        except StoreError as error:
            what = str(error).partition("cannot be read as a store file (")[2].partition("). Move")[
                0
            ] or str(error)
            report.findings.append(
                Finding(file=file, kind="broken", what=what, moves=_with_trial(store, file))
            )
            continue
        report.files[table] += 1
        report.rows[table] += rows.num_rows
        report.versions[version] += 1
        yield file, rows


def _key(table: str, file: str) -> tuple[str, int]:
    """Return the cell and attempt in a file's name, or ("", 0)."""
    match = _STEM[table].fullmatch(PurePosixPath(file).stem)
    return (match["cell"], int(match["attempt"])) if match else ("", 0)


def _with_trial(store: Store, file: str) -> tuple[str, ...]:
    """Return a file after the row that commits its trial, in the order of moving."""
    table = file.partition("/")[0]
    if table not in ("predictions", "epochs"):
        return (file,)
    cell, attempt = _key(table, file)
    rows = [name for name in store.names("trials") if name.endswith(f"/{cell}-{attempt}.parquet")]
    return (*rows, file)


def _fault(report: Report, file: str, what: str, *moves: str) -> None:
    report.findings.append(Finding(file=file, kind="fault", what=what, moves=moves or (file,)))


def _epochs(
    store: Store, report: Report, trials: dict[tuple[str, int], tuple[str, dict[str, Any]]]
) -> None:
    seen: dict[tuple[str, int], str] = {}
    for file, rows in _tables(store, "epochs", report):
        match = _STEM["epochs"].fullmatch(PurePosixPath(file).stem)
        row = rows.to_pylist()[0] if rows.num_rows == 1 else {}
        named = (match["cell"], int(match["attempt"]), int(match["epoch"])) if match else None
        key = (str(row.get("cell_id")), int(row.get("epoch") or 0))
        if (row.get("cell_id"), row.get("attempt"), row.get("epoch")) != named:
            commit = trials.get(_key("epochs", file))
            _fault(
                report,
                file,
                "does not contain the one epoch in its name",
                *([commit[0]] if commit else []),
                file,
            )
        elif key in seen:
            _fault(report, file, f"is a second row of an epoch; the first is {seen[key]}")
        else:
            seen[key] = file


def _predictions(
    store: Store, report: Report, trials: dict[tuple[str, int], tuple[str, dict[str, Any]]]
) -> set[tuple[str, int]]:
    """Check every file of predictions; return the trials that have one."""
    predicted = set()
    for file, rows in _tables(store, "predictions", report):
        key = _key("predictions", file)
        predicted.add(key)
        commit = trials.get(key)
        if commit is None:
            what = "has predictions of a trial without row: its process died before the end"
            report.findings.append(Finding(file=file, kind="leftover", what=what, moves=(file,)))
            continue
        fault = _fault_of(rows, key, commit[1])
        if fault:
            _fault(report, file, fault, commit[0], file)
    return predicted


def _fault_of(rows: pa.Table, key: tuple[str, int], trial: dict[str, Any]) -> str | None:
    """Return the fault of the predictions of a trial, or None."""
    if set(zip(rows["cell_id"].to_pylist(), rows["attempt"].to_pylist(), strict=True)) - {key}:
        return "has predictions of another trial than the one in its name"
    if pc.count_distinct(rows["image"]).as_py() != rows.num_rows:
        return "has two predictions of one image"
    score = rows["score"]
    within = pc.all(pc.and_(pc.greater_equal(score, 0), pc.less_equal(score, 1))).as_py()
    if score.null_count or within is False or set(rows["y_true"].to_pylist()) - {0, 1}:
        return "has scores or labels outside 0..1"
    splits = Counter(rows["split"].to_pylist())
    # a baseline learns from the validation images too
    baseline = str(trial["backbone"]).startswith(BASELINE)
    expected = {"validation": 0 if baseline else trial["n_validation"], "test": trial["n_test"]}
    for split, n in expected.items():
        if n is not None and splits[split] != n:
            return f"has {splits[split]} predictions of {split} images, but its trial had {n}"
    counted = [trial[f"test_{name}"] for name in ("tp", "fp", "tn", "fn")]
    if None not in counted and sum(counted) != splits["test"]:
        return (
            f"has {splits['test']} predictions of test images, but its trial counted {sum(counted)}"
        )
    return None
