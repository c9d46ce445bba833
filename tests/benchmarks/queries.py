"""Measures how long a table takes.

Run `python -m tests.benchmarks.queries [--trials 10000] [--images 715] [--repeats 3]`.

Makes a store of 10,000 completed trials with 7.15 million predictions, a file a trial as the store
writes them: a grid of 60 cells as in the study, ten trainings of one model, and a factorial of 330
rows with up to 30 seeds each. Then, in processes of their own, times every table of those sweeps
from nothing to the frame, and the memory it takes; first without the cache, then with it. Beside it
the same number of runs in MLflow (a file store and SQLite, `search_runs`) and in Ray Tune
(`ResultGrid.get_dataframe`): those answer with a row a run, and hold no predictions.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from casting_tune import metrics
from casting_tune.analysis import tables
from casting_tune.config import Predictions, cell_id
from casting_tune.planning import expand
from casting_tune.planning.cells import Cell
from casting_tune.store import schema
from casting_tune.store.table_file import serialised
from casting_tune.toggles import TOGGLES, augmentation_name
from tests.benchmarks import figures

DATASET, RUN = "0123456789abcdef", "made"
BIG = "full_factorial"
SWEEPS = ("backbone_grid", "summary_model", BIG)


def make(root: Path, *, n_trials: int, n_images: int) -> None:
    """Write a store of `n_trials` completed trials; the largest sweep gets the remaining seeds."""
    random = np.random.default_rng(1)
    images = np.arange(n_images)
    defective = (images % 5 < 3).astype(np.uint8)
    same_for_all = {
        "split": pa.array(["test"] * n_images),
        "image": pa.array(images),
        "path": pa.array(
            [
                f"test/{'def' if bad else 'ok'}_front/cast_{i}.jpeg"
                for i, bad in enumerate(defective)
            ]
        ),
        "sha256": pa.array([f"{i:064x}" for i in images]),
        "leaked": pa.array(images % 100 == 0),
        "y_true": pa.array(defective),
    }
    for sweep, cells in _cells(n_trials):
        for table in ("cells", "predictions", "trials"):
            (root / table / sweep).mkdir(parents=True, exist_ok=True)
        keyed = [(cell, cell_id(cell.config, DATASET)) for cell in cells]
        requested = [
            _asked(sweep, cell, key, position) for position, (cell, key) in enumerate(keyed)
        ]
        _write(
            pa.Table.from_pylist(requested, schema=schema.CELLS),
            root / "cells" / sweep / f"{RUN}.parquet",
        )
        for cell, key in keyed:
            # rows differ by a few points, seeds by less
            skill = 2.0 + sum(map(ord, cell.row)) % 7 / 4 + random.normal(0, 0.1)
            score = 1 / (1 + np.exp(-random.normal((2 * defective.astype(float) - 1) * skill, 1.0)))
            predicted = Predictions(
                image=images,
                split=np.repeat("test", n_images),
                y_true=defective,
                score=score.astype(np.float32),
                leaked=images % 100 == 0,
            )
            columns = same_for_all | {"score": pa.array(predicted.score)}
            columns |= {"cell_id": pa.array([key] * n_images), "attempt": pa.array([1] * n_images)}
            ordered = pa.table(
                {name: columns[name] for name in schema.PREDICTIONS.names},
                schema=schema.PREDICTIONS,
            )
            _write(ordered, root / "predictions" / sweep / f"{key}-1.parquet")
            trial = pa.Table.from_pylist(
                [_trial(sweep, cell, key, predicted)], schema=schema.TRIALS
            )
            _write(trial, root / "trials" / sweep / f"{key}-1.parquet")


def _cells(n_trials: int) -> Iterator[tuple[str, list[Cell]]]:
    left = n_trials
    for sweep in SWEEPS:
        cells = list(expand.read(sweep).cells)
        if sweep == BIG:
            repeated = [
                replace(
                    cell, config=replace(cell.config, seed=seed), label=f"{cell.label}, seed {seed}"
                )
                for cell in cells
                for seed in range(100, 100 + left // len(cells) + 1)
            ]
            cells = repeated
        cells = cells[:left]
        left -= len(cells)
        yield sweep, cells


def _asked(sweep: str, cell: Cell, key: str, position: int) -> dict[str, Any]:
    config = cell.config
    return {
        "run_id": RUN, "sweep": sweep, "asked_at": datetime(2026, 1, 1, tzinfo=UTC),
        "position": position, "cell_id": key, "row": cell.row, "label": cell.label,
        "backbone": config.backbone, "augmentation": augmentation_name(config.toggles),
        "batch_size": config.batch_size, "image_px": config.image_px, "weights": config.weights,
        "seed": config.seed, "fold": config.fold, "dataset_id": DATASET, "quick": False,
        "kind": "cell", "study": json.dumps(cell.study) if cell.study else None,
    }  # fmt: skip


def _trial(sweep: str, cell: Cell, key: str, predicted: Predictions) -> dict[str, Any]:
    settings = asdict(cell.config)
    toggles = settings.pop("toggles")
    scored = _scored(predicted)
    return settings | scored | {
        "cell_id": key, "attempt": 1, "sweep": sweep, "label": cell.label, "status": "completed",
        "augmentation": augmentation_name(toggles), **{name: name in toggles for name in TOGGLES},
        "dataset_id": DATASET, "n_train": 5307, "n_validation": 1326,
        "n_test": len(predicted.image), "epoch_s": 30.0, "step_s": 0.02, "image_s": 0.005,
        "n_steps": 1327, "latency_one_s": 0.01, "latency_batch_s": 0.2, "latency_batch_images": 32,
        "device": "cpu", "n_threads": 2, "n_at_once": 1,
        "started_at": datetime(2026, 1, 1, tzinfo=UTC), "duration_s": 300.0, "precision": "fp32",
    }  # fmt: skip


def _scored(predicted: Predictions) -> dict[str, Any]:
    """Return the metric columns that tables read.

    `rows.score` writes the same columns and the rankings, which take 20 ms.
    """
    columns: dict[str, Any] = {"validation_accuracy": 0.98}
    for prefix, part in (("test", slice(None)), ("test_leaked", predicted.leaked)):
        counted = metrics.counts(predicted.y_true[part], predicted.score[part])
        columns |= {f"{prefix}_{name}": n for name, n in asdict(counted).items()}
        if prefix == "test":
            columns |= {
                f"test_{name}": measure(counted) for name, measure in metrics.METRICS.items()
            }
    return columns


def _write(rows: pa.Table, file: Path) -> None:
    """As the store writes, but without waiting for the disk 20,000 times."""
    file.write_bytes(serialised(rows))


ONE = """
import json, resource, sys, time
from pathlib import Path
started = time.perf_counter()
from casting_tune.analysis import tables
from casting_tune.store.store import Store
imported = time.perf_counter()
table = tables.TABLES[sys.argv[3]](Store(Path(sys.argv[1])), sys.argv[2])
ended = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps([ended - imported, imported - started, peak, len(table.frame)]))
"""
MLFLOW = """
import json, os, sys, time
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
import mlflow
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient
address, n = sys.argv[1], int(sys.argv[2])
mlflow.set_tracking_uri(address)
client = MlflowClient()
experiment = client.create_experiment("bench")
for i in range(n):
    run = client.create_run(experiment)
    scores = [
        Metric(name, i / n, 0, 0)
        for name in ("accuracy", "recall", "precision", "f1", "escape_rate")
    ]
    settings = [
        Param(name, str(i))
        for name in ("backbone", "augmentation", "batch_size", "seed", "image_px")
    ]
    client.log_batch(run.info.run_id, metrics=scores, params=settings)
    client.set_terminated(run.info.run_id)
started = time.perf_counter()
found = mlflow.search_runs([experiment], max_results=50000)
assert len(found) == n
print(time.perf_counter() - started)
"""
TUNE = """
import json, sys, time
from pathlib import Path
from ray import tune
from ray.tune import ResultGrid
from ray.tune.analysis import ExperimentAnalysis
folder, n = Path(sys.argv[1]), int(sys.argv[2])
import ray
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
def trainable(config):
    tune.report({"accuracy": config["seed"] / 1000, "recall": 0.5, "precision": 0.5, "f1": 0.5})
tune.Tuner(trainable, param_space={"seed": tune.grid_search(list(range(n)))},
    tune_config=tune.TuneConfig(reuse_actors=True),
    run_config=tune.RunConfig(name="bench", storage_path=str(folder), verbose=0)).fit()
started = time.perf_counter()
frame = tune.Tuner.restore(str(folder / "bench"), trainable).get_results().get_dataframe()
assert len(frame) == n
print(time.perf_counter() - started)
ray.shutdown()
"""


def asked_alone(code: str, *words: object) -> Any:
    """Return the last line of a new process as JSON; if it fails, None and a line on stderr."""
    whole = [sys.executable, "-c", code, *map(str, words)]
    ended = subprocess.run(whole, capture_output=True, text=True, check=False, timeout=1800)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["it ended"])[-1]
        print(f"Left out: {words[-1]}: {last[:200]}", file=sys.stderr)
        return None
    return json.loads(ended.stdout.strip().splitlines()[-1])


def main(words: Sequence[str] | None = None) -> None:
    """Make the store, ask it for every table, and print what each took."""
    parser = figures.parser(__doc__, repeats=3)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=715)
    parser.add_argument(
        "--store", type=Path, help="keep the store here, or use the one that is here"
    )
    parser.add_argument("--sweeps", nargs="+", default=list(SWEEPS))
    parser.add_argument("--tables", nargs="+", default=list(tables.TABLES))
    parser.add_argument(
        "--peer-runs", type=int, default=500, help="runs in MLflow and Tune; 0 leaves them out"
    )
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        root = args.store or Path(folder) / "results"
        if not (root / "trials").is_dir():
            make(root, n_trials=args.trials, n_images=args.images)
        kept = root / ".cache"
        shutil.rmtree(kept, ignore_errors=True)
        first = asked_alone(ONE, root, args.sweeps[-1], "thresholds")  # with no cache: it makes it
        rows: list[Sequence[Any]] = []
        for sweep in args.sweeps:
            for table in args.tables:
                turns = [asked_alone(ONE, root, sweep, table) for _ in range(args.repeats)]
                answered = [turn for turn in turns if turn]
                seconds, _, peak, n_rows = (
                    zip(*answered, strict=True) if answered else ((), (), (), ("",))
                )
                rows.append(
                    (sweep, table, n_rows[0], figures.spread(seconds), figures.spread(peak))
                )
        peers: list[Sequence[Any]] = []
        n = args.peer_runs
        for name, code, words_ in (
            ("MLflow search_runs, SQLite", MLFLOW, (f"sqlite:///{folder}/mlflow.db", n)),
            ("MLflow search_runs, files", MLFLOW, (f"{folder}/mlruns", n)),
            ("Tune ResultGrid.get_dataframe", TUNE, (folder, n)),
        ):
            if n and (took := asked_alone(code, *words_)) is not None:
                peers.append((name, f"{n:,}", f"{took:.2f}", f"{took / n * 1e3:.2f}"))
        if peers:
            alone = [asked_alone(TRIALS, root) for _ in range(args.repeats)]
            each = figures.spread((took / args.trials * 1e3 for took in alone if took), 3)
            peers.insert(
                0,
                (
                    "casting_tune, all trials as a frame",
                    f"{args.trials:,}",
                    figures.spread(alone),
                    each,
                ),
            )
    caption = f"{args.trials:,} trials, {args.trials * args.images:,} predictions; "
    caption += f"{args.repeats} fresh processes each, "
    uncached = first[0] if first else float("nan")
    caption += f"imports not counted. Without the cache the first table took {uncached:.1f} s. "
    caption += "Aimed at: 2 s and 1 GiB each. "
    caption += figures.conditions("pyarrow", "pandas", "mlflow-skinny", "ray")
    text = figures.table(
        ("sweep", "table", "rows", "s: median (min to max)", "peak memory, GiB"), rows
    )
    if peers:
        beside = figures.table(("rows of runs, no predictions", "runs", "s", "ms a run"), peers)
        text += f"\n\n{beside}"
    figures.publish("queries", f"{text}\n\n{caption}", write_docs=args.write_docs)


TRIALS = """
import sys, time
from pathlib import Path
from casting_tune.store.store import Store
started = time.perf_counter()
Store(Path(sys.argv[1])).read("trials").to_pandas()
print(time.perf_counter() - started)
"""

if __name__ == "__main__":
    main()
