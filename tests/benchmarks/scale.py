"""Ten thousand cells: `python -m tests.benchmarks.scale [--cells 1000 10000] [--workers 16]`.

Runs sweeps of so many cells of a trial of one millisecond that writes all its rows (an epoch, 715
predictions, the trial), each in a process and a store of its own, the whole way from sweep file to
rows. Ray gets this number of CPUs, however many exist: its workers are real processes that share
what the machine has. The clock runs from the first trial's end to the last's, without the workers'
start; the driver's CPU time is reported separately, since a loaded machine hardly changes it. Then
the table of five thresholds over each store, in fresh processes: without the cache, which it makes,
and with it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
from PIL import Image

from casting_tune import machine, metrics
from casting_tune.config import Epoch, Predictions, TrialConfig, cell_id
from casting_tune.data.pack import Pack
from casting_tune.data.splits import Folds
from casting_tune.execution import runner
from casting_tune.execution.tasks import Event, Work
from casting_tune.planning.options import Options
from casting_tune.store import schema
from casting_tune.store.attempts import attempts_since
from casting_tune.store.store import Store
from casting_tune.training import records
from casting_tune.training.records import TrialContext
from tests.benchmarks import figures, queries

N_TRAIN, N_TEST, TRIAL_S = 20, 715, 0.001
BACKBONES = (
    "xception", "vgg16", "resnet50", "resnet101v2", "inceptionv3", "inception_resnet_v2",
    "mobilenetv2", "densenet169", "nasnet_mobile", "efficientnetb4",
)  # fmt: skip


def millisecond_trial(
    config: TrialConfig,
    packed: Pack,
    store: Store,
    *,
    context: TrialContext,
    on_epoch: Callable[[Epoch], None],
) -> dict[str, Any]:
    """Sleep a millisecond; find the attempt and write the rows of a trial as `run_trial` does."""
    sweep = context.sweep
    started = datetime.now(UTC)
    cell = cell_id(config, packed.dataset_id)
    attempt = attempts_since(store, cell, context.after or 0, epochs=config.epochs).stop
    time.sleep(TRIAL_S)
    epoch = Epoch(
        epoch=1, n_images=16, n_steps=2, learning_rate=1e-3, train_loss=0.5, validation_loss=0.5,
        validation_accuracy=0.75, train_s=TRIAL_S, validation_s=0.0,
    )  # fmt: skip
    store.write(
        "epochs", sweep, f"{cell}-{attempt}-1", [{"cell_id": cell, "attempt": attempt, "epoch": 1}]
    )
    on_epoch(epoch)
    parts = _parts()
    defective = packed.labels[parts.test]
    random = np.random.default_rng(int(cell, 16))
    skill = 2.0 + BACKBONES.index(config.backbone) / 8  # rows differ by a few points
    score = 1 / (1 + np.exp(-random.normal((2 * defective.astype(float) - 1) * skill, 1.0)))
    predicted = Predictions(
        image=parts.test,
        split=np.repeat("test", N_TEST),
        y_true=defective,
        score=score.astype(np.float32),
        leaked=np.zeros(N_TEST, dtype=bool),
    )
    columns: dict[str, pa.Array] = {
        "split": pa.array(predicted.split),
        "image": pa.array(predicted.image),
        "leaked": pa.array(predicted.leaked),
        "path": pa.array(packed.paths[parts.test]),
        "sha256": pa.array(packed.sha256[parts.test]),
        "y_true": pa.array(defective),
        "score": pa.array(predicted.score),
        "cell_id": pa.array([cell] * N_TEST),
        "attempt": pa.array([attempt] * N_TEST),
    }
    table = pa.table({name: columns[name] for name in schema.PREDICTIONS.names}).cast(
        schema.PREDICTIONS
    )
    store.write_table(f"predictions/{sweep}/{cell}-{attempt}.parquet", table)
    row = records.TrialRecord(
        cell_id=cell,
        attempt=attempt,
        context=context,
        description=records.describe(config, packed, parts),
        started_at=started,
        ending=records.Ending(status="completed"),
        duration_s=(datetime.now(UTC) - started).total_seconds(),
        scores=_scored(predicted),
    ).row()
    store.write("trials", sweep, f"{cell}-{attempt}", [row])
    return row


def _parts() -> Folds:
    """Return the images of the splits: paths are sorted, and "train" stands behind "test"."""
    train, end = N_TEST + 16, N_TEST + N_TRAIN
    return Folds(
        train=np.arange(N_TEST, train), validation=np.arange(train, end), test=np.arange(N_TEST)
    )


def _scored(predicted: Predictions) -> dict[str, Any]:
    """Return the counts and metrics of a trial's row.

    The rankings are left out: they take longer than the trial.
    """
    counted = metrics.counts(predicted.y_true, predicted.score)
    none = metrics.counts(predicted.y_true[:0], predicted.score[:0])
    columns: dict[str, Any] = {"validation_accuracy": 0.75}
    for prefix, counts in (("test", counted), ("test_leaked", none)):
        columns |= {f"{prefix}_{name}": getattr(counts, name) for name in ("tp", "fp", "tn", "fn")}
    return columns | {f"test_{name}": measure(counted) for name, measure in metrics.METRICS.items()}


def draw(folder: Path) -> None:
    """Write 20 images to train on and 715 to test on, of noise: no trial looks at them."""
    random = np.random.default_rng(0)
    for part, n in (("train", N_TRAIN), ("test", N_TEST)):
        for i in range(n):
            place = folder / part / ("def_front" if i % 5 < 3 else "ok_front")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (16, 16), dtype=np.uint8)).save(
                place / f"{i:03}.png"
            )


def run(folder: Path, n_cells: int, n_workers: int) -> dict[str, float]:
    """Run a sweep of so many cells, ten rows of repeats, in this process; return what it took."""
    seeds = ", ".join(str(seed) for seed in range(-(-n_cells // len(BACKBONES))))
    axes = f"backbone = {json.dumps(BACKBONES)}\nseed = [{seeds}]"
    fixed = "weights = 'none'\nimage_px = 96\nepochs = 1"
    file = folder / "many.toml"
    file.write_text(f'question = "How many?"\ntype = "grid"\n[fixed]\n{fixed}\n[axes]\n{axes}\n')
    draw(folder / "images")
    options = Options(
        sweep=str(file),
        data=folder / "images",
        results=folder / "results",
        baselines=False,
        yes=True,
        retries=0,
    )
    ends: list[tuple[float, float]] = []

    def on_event(event: Event) -> None:
        if event.kind == "ended":
            ends.append((time.perf_counter(), time.process_time()))

    with (
        mock.patch.object(machine, "cpus", return_value=n_workers),
        mock.patch.object(runner, "Work", partial(Work, trial=millisecond_trial)),
    ):
        before = time.process_time()
        prepared = runner.prepare(options, say=lambda _: None)
        prepared_s = time.process_time() - before
        lacking = runner.execute(prepared, on_event=on_event)
    n = len(ends)
    assert not lacking, f"{lacking} cells lack a result: see the error in {folder / 'results'}"
    assert n == len(prepared.plan.planned)
    wall, cpu = (last - first for first, last in zip(ends[0], ends[-1], strict=True))
    return {
        "n": n,
        "trial_s": wall / (n - 1),
        "driver_s": cpu / (n - 1),
        "prepare_s": prepared_s,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def _alone(folder: Path, n_cells: int, n_workers: int) -> dict[str, float]:
    """Return what `run` tells in a process of its own, and the seconds of the table, twice."""
    words = ["-m", "tests.benchmarks.scale", "--cells", str(n_cells), "--workers", str(n_workers)]
    ended = subprocess.run(
        [sys.executable, *words, "--in", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=figures.ROOT,
    )
    report: dict[str, float] = json.loads(ended.stdout.strip().splitlines()[-1])
    for name in ("first_s", "again_s"):
        answered = queries.asked_alone(queries.ONE, folder / "results", "many", "thresholds")
        report[name] = answered[0]
    return report


def main(words: Sequence[str] | None = None) -> None:
    """Run the sweeps in turn and print a table."""
    parser = figures.parser(__doc__, repeats=1)
    parser.add_argument(
        "--cells", type=int, nargs="+", default=[1_000, 10_000], help="of a sweep, in tens"
    )
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument(
        "--in",
        dest="folder",
        type=Path,
        help="run one sweep there, in this process, and tell as JSON",
    )
    args = parser.parse_args(words)
    if args.folder:
        print(json.dumps(run(args.folder, args.cells[0], args.workers)))
        return
    measured: dict[int, list[dict[str, float]]] = {n: [] for n in args.cells}
    for _ in range(args.repeats):
        for n_cells in args.cells:
            with tempfile.TemporaryDirectory() as folder:
                measured[n_cells].append(_alone(Path(folder), n_cells, args.workers))
    columns = ("trial_s", "driver_s", "prepare_s", "peak_mib", "first_s", "again_s")
    table = []
    for text in measured.values():
        spreads = [
            figures.spread((one[name] for one in text), 0 if name == "peak_mib" else 3)
            for name in columns
        ]
        table.append((f"{text[0]['n']:,} x {args.repeats}", *spreads))
    header = (
        "cells x repeats", "s a trial", "s of the driver's CPU a trial", "s of CPU to prepare",
        "driver's peak memory, MiB", "five thresholds, s: without the cache", "with it",
    )  # fmt: skip
    few, many = measured[min(args.cells)], measured[max(args.cells)]
    by_clock, by_cpu = (
        figures.ratios([one[name] for one in many], [one[name] for one in few], 2)
        for name in ("trial_s", "driver_s")
    )
    text = (
        f"A trial of {max(args.cells):,} costs {by_clock} times one of {min(args.cells):,} "
        f"by the clock, {by_cpu} times by the driver's CPU. "
        f"{args.workers} workers on what there is, trials of {TRIAL_S} s that write all "
        f"their rows, {N_TEST} predictions each. Aimed at: 1 time, 1,536 MiB. "
        f"{figures.conditions('ray', 'pyarrow')}"
    )
    figures.publish(
        "scale", f"{figures.table(header, table)}\n\n{text}", write_docs=args.write_docs
    )


if __name__ == "__main__":
    main()
