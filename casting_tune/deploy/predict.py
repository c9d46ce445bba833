"""Decides images with an exported network: onnxruntime alone, on any computer of a line.

Comes in: a folder that `export` wrote, image files or folders of them. Goes out: a Decision an
image, in order; rows as CSV or Parquet. Images are decoded as the pack decoded them, and everything
behind that is in the graph. Must not import torch, timm, kornia, ray or pandas, nor a room that
does.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from casting_tune.data import decode
from casting_tune.errors import ImagesError, StoreError, UsageError, unreadable
from casting_tune.text import in_csv

VERSION = 1
"""Of the form of an export that this room runs."""

POLL_S = 0.25
"""Seconds between two looks at a watched folder; a file is whole when it is the same in two of them and decodes."""

GIVE_UP_S = 5.0
"""Seconds for which a file that does not decode must stay as it is before it is called bad: its writer may pause."""

LEAST_ONNXRUNTIME = "1.26"
"""The bound of the extra `export` in pyproject.toml. 1.20 to 1.25.1 do not load the graph: their
optimiser makes a FusedMatMul of float64 tensors, which they have no kernel for.
"""

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
    """What was decided of one image; the columns of the rows that are written.

    Attributes:
        path: of the file, as it was given or found.
        sha256: of the file's bytes.
        score: P(defective) in 0..1; None where there is no decision.
        defective: whether the score reached the threshold; None where there is no decision.
        reason: why there is no decision; empty if there is one.
        seconds: to read, decode, score and decide.
    """

    path: str
    sha256: str
    score: float | None
    defective: bool | None
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Network:
    """An opened export: what decision.json says, and onnxruntime's session."""

    told: dict[str, Any]
    session: Any


@dataclass(slots=True)
class Tally:
    """Counts decisions as they are made; of the times only the latest are kept, for a watch may run for months."""

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
        """Return the counts and how fast they were made; a watch waits for images, so it has no rate."""
        n = self.n_defective + self.n_good + self.n_bad
        said = f"{n:,} images: {self.n_defective:,} defective, {self.n_good:,} good, {self.n_bad:,} without a decision"
        if n and not watched:
            said += f"; {n / took_s:.1f} images/s"
        if self.seconds:
            said += f"; median latency {1000 * statistics.median(self.seconds):.1f} ms (read, decode, decide)"
        return f"{said}."


def open_network(folder: Path, *, n_threads: int = 0) -> Network:
    """Open an export after checking every file against SHA256SUMS; n_threads 0 takes every core.

    Raises:
        UsageError: no export, or onnxruntime is not installed or too old.
        StoreError: a file is missing, changed or unreadable, or the export is of a later casting_tune.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise UsageError('predict needs onnxruntime: pip install "casting-tune[export]"')
    check_onnxruntime()
    check_sums(folder)
    told = read_decision(folder)
    return Network(told, open_session(folder / "network.onnx", n_threads=n_threads))


def open_session(file: Path, *, n_threads: int = 0) -> Any:
    """Return onnxruntime's session of a graph, on the CPU, with threads that sleep while they wait; 0: every core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def check_onnxruntime() -> None:
    """Raise UsageError where the installed onnxruntime is older than LEAST_ONNXRUNTIME."""
    import onnxruntime
    from packaging.version import Version

    if Version(onnxruntime.__version__) < Version(LEAST_ONNXRUNTIME):
        raise UsageError(
            f"onnxruntime {onnxruntime.__version__} is too old: an exported network requires {LEAST_ONNXRUNTIME} or "
            f'later. pip install "onnxruntime>={LEAST_ONNXRUNTIME}"'
        )


def check_sums(folder: Path) -> None:
    """Compare every file of an export with SHA256SUMS.

    Raises:
        UsageError: the folder is no export.
        StoreError: a file is missing, changed or unreadable.
    """
    try:
        lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"'{folder}' is no export: it has no SHA256SUMS. casting-tune export writes one."
        ) from error
    except OSError as error:
        raise StoreError(unreadable(folder / "SHA256SUMS", error)) from error
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines) if name}
    missing = {"network.onnx", "decision.json", "model.safetensors", "head.safetensors"} - set(sums)
    if missing:
        raise StoreError(
            f"SHA256SUMS of '{folder}' does not name {', '.join(sorted(missing))}. Export the cell again."
        )
    for name, expected in sums.items():
        try:
            with (folder / Path(name).name).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise StoreError(
                f"'{folder}' lacks {name}, which SHA256SUMS names. Export the cell again."
            ) from error
        except OSError as error:
            raise StoreError(unreadable(folder / name, error)) from error
        if found != expected:
            raise StoreError(
                f"{name} in '{folder}' is not the file that was exported. Export the cell again."
            )


def read_decision(folder: Path) -> dict[str, Any]:
    """Return what decision.json says.

    Raises:
        StoreError: it cannot be read, or is of another version.
    """
    try:
        told: dict[str, Any] = json.loads((folder / "decision.json").read_text(encoding="utf-8"))
        version = told["version"]
    except OSError as error:
        raise StoreError(unreadable(folder / "decision.json", error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"decision.json in '{folder}' cannot be read. Export the cell again."
        ) from error
    if version != VERSION:
        raise StoreError(
            f"'{folder}' is an export of version {version}, and this casting_tune runs {VERSION}."
        )
    return told


def find(paths: Sequence[Path]) -> list[Path]:
    """Return the image files of files and folders: a folder's are those below it, in the order of their names.

    Raises:
        ImagesError: a path is not there or cannot be read, or there is no image at all.
    """
    files: list[Path] = []
    for path in paths:
        try:
            if path.is_dir():
                files += _images_below(path, on_error=_raise)
            elif path.exists():
                files.append(path)
            else:
                raise ImagesError(f"'{path}' is not there. Name image files, or folders of them.")
        except OSError as error:
            raise ImagesError(unreadable(error.filename or path, error)) from error
    if not files:
        raise ImagesError(
            f"No image in {', '.join(repr(str(path)) for path in paths)} ({', '.join(decode.SUFFIXES)})."
        )
    return files


def decide(network: Network, file: Path) -> Decision:
    """Decide one image. A file that cannot be used is a Decision with its reason, and no error."""
    started = time.perf_counter()
    picture = decode.decode(file, box=network.told["letterbox_px"])
    path = os.fsencode(file).decode("utf-8", "replace")
    reason = picture.reason or unfit(picture, network.told)
    if reason or picture.pixels is None:
        return Decision(path, picture.sha256, None, None, reason, time.perf_counter() - started)
    pixels = picture.pixels
    if network.told["colour"] and pixels.ndim == 2:
        pixels = np.broadcast_to(pixels, (3, *pixels.shape))
    scores, decisions = network.session.run(
        ["score", "defective"], {"images": np.ascontiguousarray(pixels[None])}
    )
    return Decision(
        path,
        picture.sha256,
        float(scores[0]),
        bool(decisions[0]),
        "",
        time.perf_counter() - started,
    )


def decide_all(network: Network, files: Iterable[Path]) -> Iterator[Decision]:
    """Decide images one after the other."""
    return (decide(network, file) for file in files)


def watch(
    network: Network,
    folders: Sequence[Path],
    *,
    idle_s: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Decision]:
    """Decide the images that lie in folders and those that come, each once it is whole; one that changes, again.

    Args:
        network: to decide with.
        folders: looked into every `POLL_S` seconds, with what is below them.
        idle_s: ends when nothing has come for so long; None watches until it is interrupted.
        sleep, clock: time, in seconds.
    """
    decided: dict[Path, tuple[int, ...]] = {}
    waiting: dict[Path, tuple[tuple[int, ...], float]] = {}
    last = clock()
    while True:
        there = {
            file: stamp
            for folder in folders
            for file in _images_below(folder)
            if (stamp := _stamp(file))
        }
        decided = {
            file: stamp for file, stamp in decided.items() if file in there
        }  # or it would grow for ever
        waiting = {file: seen for file, seen in waiting.items() if file in there}
        for file, stamp in there.items():
            if decided.get(file) == stamp:
                continue
            if file not in waiting or waiting[file][0] != stamp:
                waiting[file] = (stamp, clock())
                continue
            decision = decide(network, file)
            young = clock() - waiting[file][1] < GIVE_UP_S
            if _stamp(file) != stamp or (decision.reason and young):
                continue
            decided[file] = stamp
            del waiting[file]
            last = clock()
            yield decision
        if idle_s is not None and not waiting and clock() - last >= idle_s:
            return
        sleep(POLL_S)


def line(decision: Decision) -> str:
    """Return a decision as one line: what, score, file."""
    if decision.reason:
        return f"NO DECISION  {decision.path}: {decision.reason}"
    return (
        f"{'DEFECTIVE' if decision.defective else 'good':<9}  {decision.score:.6f}  {decision.path}"
    )


def check_out(out: Path | None, *, watched: bool) -> None:
    """Refuse a file of rows that cannot be written as asked, before anything is decided.

    Raises:
        UsageError: it is there already, is neither CSV nor Parquet, or is Parquet for a watched folder.
    """
    if out is None:
        return
    if out.suffix not in (".csv", ".parquet"):
        raise UsageError(f"--out is a .csv or a .parquet file, not '{out}'.")
    if out.exists():
        raise UsageError(f"--out '{out}' is there already. Name a new file.")
    if watched and out.suffix == ".parquet":
        raise UsageError(
            "--watch writes each row as it comes, and Parquet is written at once: name a .csv file."
        )


@contextmanager
def writer(out: Path | None) -> Iterator[Callable[[Decision], None]]:
    """Give a function that writes a Decision as a row: CSV at once, Parquet when all are there; None writes nothing.

    In CSV, which people open in spreadsheets, a path that begins like a formula gets an apostrophe;
    not so in Parquet.
    """
    if out is None:
        yield lambda _decision: None
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as beside:
            rows = out if out.suffix == ".csv" else Path(beside) / "rows.csv"
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
                _to_parquet(rows, Path(beside) / "rows.parquet")
                (Path(beside) / "rows.parquet").replace(out)
    except OSError as error:
        raise UsageError(
            f"Cannot write '{out}': {error.strerror or error}. Name another file."
        ) from error


def _to_parquet(rows: Path, out: Path) -> None:
    """Write rows as Parquet by DuckDB, since pyarrow loads pandas where it finds it."""
    import duckdb

    with duckdb.connect() as connection:
        relation = connection.read_csv(
            str(rows), header=True, sep=",", quotechar='"', escapechar='"', dtype=_TYPES
        )
        relation.write_parquet(str(out))


def unfit(picture: decode.Picture, told: dict[str, Any]) -> str:
    """Return why a decoded image is not one that the network was trained for; empty if it is."""
    if picture.pixels is None:
        return picture.reason
    if picture.pixels.ndim == 3 and not told["colour"]:
        return "a colour image, and the network was trained on gray ones"
    (height, width), (high, wide) = picture.pixels.shape[-2:], told["packed_px"]
    if (
        abs(height * wide - width * high) > 0.01 * height * wide
    ):  # another size is resized, another shape distorted
        return f"{height} x {width} pixels, and the network was trained on the shape of {high} x {wide}"
    return ""


def _images_below(folder: Path, *, on_error: Callable[[OSError], None] | None = None) -> list[Path]:
    """Return the image files below a folder, sorted; `on_error` is called for a folder that cannot be read."""
    suffixes = {f".{suffix}" for suffix in decode.SUFFIXES}
    found = (
        Path(inside, name)
        for inside, _, names in os.walk(folder, onerror=on_error)
        for name in names
    )
    return sorted(
        file
        for file in found
        if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
    )


def _raise(error: OSError) -> None:
    raise error


def _stamp(file: Path) -> tuple[int, ...] | None:
    """Return what changes when a file does; None where it has gone."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino
