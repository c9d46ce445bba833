"""Decisions about images: one line, one row, and their counts. Imports no torch and no pandas."""

from __future__ import annotations

import csv
import statistics
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

from casting_tune import files
from casting_tune.errors import UsageError
from casting_tune.text import in_csv

_TYPES = {
    "path": "VARCHAR",
    "sha256": "VARCHAR",
    "score": "FLOAT",
    "defective": "BOOLEAN",
    "reason": "VARCHAR",
    "seconds": "DOUBLE",
}


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision about one image; the fields are the columns of the output file.

    Attributes:
        path: path of the image as given or found.
        sha256: hash of the file.
        score: P(defective) in 0..1; None without a decision.
        defective: whether the score reaches the threshold; None without a decision.
        reason: why there is no decision; empty if there is one.
        seconds: time to read, decode, score and decide.
    """

    path: str
    sha256: str
    score: float | None
    defective: bool | None
    reason: str
    seconds: float


@dataclass(slots=True)
class Tally:
    """Counts of decisions. Only the latest times are kept, because a watch may run for months."""

    n_defective: int = 0
    n_good: int = 0
    n_bad: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=10_000))

    def add(self, decision: Decision) -> None:
        """Count one decision."""
        if decision.reason:
            self.n_bad += 1
            return
        self.n_defective += decision.defective is True
        self.n_good += decision.defective is False
        self.seconds.append(decision.seconds)

    def sentence(self, *, took_s: float, watched: bool) -> str:
        """Return the counts and the speed; a watch waits for images, so it has no rate."""
        n = self.n_defective + self.n_good + self.n_bad
        parts = [
            f"{n:,} images: {self.n_defective:,} defective, {self.n_good:,} good, "
            f"{self.n_bad:,} without a decision"
        ]
        if n and not watched:
            parts.append(f"{n / took_s:.1f} images/s")
        if self.seconds:
            latency_ms = 1000 * statistics.median(self.seconds)
            parts.append(f"median latency {latency_ms:.1f} ms (read, decode, decide)")
        return f"{'; '.join(parts)}."


def line(decision: Decision) -> str:
    """Return a decision as one line: class, score, file."""
    if decision.reason:
        return f"NO DECISION  {decision.path}: {decision.reason}"
    name = "DEFECTIVE" if decision.defective else "good"
    return f"{name:<9}  {decision.score:.6f}  {decision.path}"


def check_out(out: Path | None, *, watched: bool) -> None:
    """Check the name of the output file before the first decision.

    Raises:
        UsageError: the file exists, is neither CSV nor Parquet, or is Parquet for a watch.
    """
    if out is None:
        return
    if out.suffix not in (".csv", ".parquet"):
        raise UsageError(f"--out requires a .csv or a .parquet file; got '{out}'.")
    if out.exists():
        raise UsageError(f"--out '{out}' already exists. Use a new file name.")
    if watched and out.suffix == ".parquet":
        raise UsageError("--watch cannot write Parquet row by row: use a .csv file with --out.")


@contextmanager
def writer(out: Path | None) -> Iterator[Callable[[Decision], None]]:
    """Yield a function that writes a Decision as a row: CSV at once, Parquet at the end.

    In CSV, which spreadsheets open, a path that begins like a formula gets an apostrophe; in
    Parquet it is unchanged.

    Args:
        out: the file; None writes nothing.
    """
    if out is None:
        yield lambda _decision: None
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            rows = out if out.suffix == ".csv" else Path(scratch) / "rows.csv"
            with rows.open("w", newline="", encoding="utf-8") as stream:
                lines = csv.writer(stream)
                lines.writerow(column.name for column in fields(Decision))

                def write(decision: Decision) -> None:
                    values = ("" if value is None else value for value in astuple(decision))
                    lines.writerow(
                        in_csv(v) if rows == out and isinstance(v, str) else v for v in values
                    )
                    stream.flush()

                yield write
            if rows != out:
                with files.replacing(out) as draft:
                    _to_parquet(rows, draft)
    except OSError as error:
        raise UsageError(
            f"Cannot write '{out}': {error.strerror or error}. Use another file with --out."
        ) from error


def _to_parquet(rows: Path, out: Path) -> None:
    """Write rows as Parquet with DuckDB, because pyarrow imports pandas if it is installed."""
    import duckdb

    with duckdb.connect() as connection:
        relation = connection.read_csv(
            str(rows), header=True, sep=",", quotechar='"', escapechar='"', dtype=_TYPES
        )
        relation.write_parquet(str(out))
