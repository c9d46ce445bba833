"""Reads a whole store and says what is wrong with it; moves what is wrong aside, and never deletes.

Comes in: a store. Goes out: a Report of Findings. A broken file is moved to
quarantine/<table>/<sweep>/, the row of its trial before it: without that row the cell is not done,
and the next run trains it again. Changes no row.
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
from casting_tune.store.schema import SCHEMA_VERSION, SCHEMAS
from casting_tune.store.store import Store

Kind = Literal["broken", "fault", "later", "spooled", "leftover"]
_STEM = {
    "trials": re.compile(r"(?P<cell>\w+)-(?P<attempt>\d+)"),
    "predictions": re.compile(r"(?P<cell>\w+)-(?P<attempt>\d+)"),
    "epochs": re.compile(r"(?P<cell>\w+)-(?P<attempt>\d+)-(?P<epoch>\d+)"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is wrong with a file.

    Attributes:
        file: relative to the store.
        kind: "broken" cannot be read; "fault" has rows that cannot be; "later" is of a later casting_tune; "spooled"
            waits on this machine for its bucket; "leftover" is in nobody's way: what a killed process left.
        what: in a sentence.
        moves: the files that quarantine moves, in this order.
    """

    file: str
    kind: Kind
    what: str
    moves: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Report:
    """What a store holds, and what is wrong: `files` and `rows` a table, `versions` files a schema version."""

    files: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    versions: Counter[int] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    @property
    def faults(self) -> list[Finding]:
        """All findings but leftovers."""
        return [finding for finding in self.findings if finding.kind != "leftover"]


def verify(store: Store) -> Report:
    """Read every file of a store, checksums of its pages too, and hold its rows against each other.

    Raises:
        StoreError: the store itself cannot be listed.
    """
    report = Report()
    for waiting in store.drain():
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
            _fault(report, file, "is not the one row of the trial that its name says")
        elif key in trials:
            _fault(report, file, f"is a second row of a trial that {trials[key][0]} has")
        else:
            trials[key] = (file, row)
    _epochs(store, report, trials)
    predicted = _predictions(store, report, trials)
    predicted |= {
        _key("predictions", found.file)
        for found in report.findings
        if found.file.startswith("predictions/")
    }
    for key, (file, row) in trials.items():
        if row["status"] == "completed" and key not in predicted:
            _fault(report, file, "says completed, and there are no predictions of it")
    for table in ("cells", "images", "probes"):
        for _ in _tables(store, table, report):
            pass
    return report


def quarantine(store: Store, report: Report) -> list[tuple[str, str]]:
    """Move what a report found aside, if it is found again while no sweep runs; return (file, where it lies now).

    Predictions whose trial was about to write its row are a leftover to the first reading alone.

    Raises:
        StoreError: a sweep is being run in this store, or a file cannot be moved.
    """
    moved: dict[str, str] = {}
    sweeps = {
        PurePosixPath(name).parts[1]
        for table in ("cells", "epochs", "trials")
        for name in store.names(table)
    }
    with contextlib.ExitStack() as held:
        for sweep in sorted(sweeps):
            held.enter_context(store.running(sweep))
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
    """Give each file of a table that can be read, with its rows; report the others."""
    for file in store.names(table):
        if not store.is_table_file(file):
            report.findings.append(
                Finding(
                    file=file,
                    kind="leftover",
                    what="no reader sees it: its writer was killed",
                    moves=(file,),
                )
            )
            continue
        try:
            version = store.version(file)
            if version > SCHEMA_VERSION:
                what = (
                    f"was written by a later casting_tune (schema {version}): update casting_tune"
                )
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
    """Return the cell and attempt that a file's name says, ("", 0) where it says none."""
    told = _STEM[table].fullmatch(PurePosixPath(file).stem)
    return (told["cell"], int(told["attempt"])) if told else ("", 0)


def _with_trial(store: Store, file: str) -> tuple[str, ...]:
    """Return a file that is to be moved behind the row that commits its trial."""
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
        told = _STEM["epochs"].fullmatch(PurePosixPath(file).stem)
        row = rows.to_pylist()[0] if rows.num_rows == 1 else {}
        named = (told["cell"], int(told["attempt"]), int(told["epoch"])) if told else None
        key = (str(row.get("cell_id")), int(row.get("epoch") or 0))
        if (row.get("cell_id"), row.get("attempt"), row.get("epoch")) != named:
            commit = trials.get(_key("epochs", file))
            _fault(
                report,
                file,
                "is not the one epoch that its name says",
                *([commit[0]] if commit else []),
                file,
            )
        elif key in seen:
            _fault(report, file, f"is a second row of an epoch that {seen[key]} has")
        else:
            seen[key] = file


def _predictions(
    store: Store, report: Report, trials: dict[tuple[str, int], tuple[str, dict[str, Any]]]
) -> set[tuple[str, int]]:
    """Check every file of predictions; return which trials have one."""
    found = set()
    for file, rows in _tables(store, "predictions", report):
        key = _key("predictions", file)
        found.add(key)
        commit = trials.get(key)
        if commit is None:
            what = "are predictions of a trial that has no row: its process died before it was done"
            report.findings.append(Finding(file=file, kind="leftover", what=what, moves=(file,)))
            continue
        wrong = _wrong(rows, key, commit[1])
        if wrong:
            _fault(report, file, wrong, commit[0], file)
    return found


def _wrong(rows: pa.Table, key: tuple[str, int], trial: dict[str, Any]) -> str | None:
    """Return what is wrong with the predictions of a trial, None where nothing is."""
    if set(zip(rows["cell_id"].to_pylist(), rows["attempt"].to_pylist(), strict=True)) - {key}:
        return "holds predictions of another trial than its name says"
    if pc.count_distinct(rows["image"]).as_py() != rows.num_rows:
        return "holds two predictions of one image"
    score = rows["score"]
    within = pc.all(pc.and_(pc.greater_equal(score, 0), pc.less_equal(score, 1))).as_py()
    if score.null_count or within is False or set(rows["y_true"].to_pylist()) - {0, 1}:
        return "holds scores or labels outside 0..1"
    splits = Counter(rows["split"].to_pylist())
    # a baseline learns from the validation images too
    baseline = str(trial["backbone"]).startswith(BASELINE)
    expected = {"validation": 0 if baseline else trial["n_validation"], "test": trial["n_test"]}
    for split, n in expected.items():
        if n is not None and splits[split] != n:
            return f"holds {splits[split]} predictions of {split} images, and its trial had {n}"
    counted = [trial[f"test_{name}"] for name in ("tp", "fp", "tn", "fn")]
    if None not in counted and sum(counted) != splits["test"]:
        return f"holds {splits['test']} predictions of test images, and its trial counted {sum(counted)}"
    return None
