"""Measures what scheduling costs a trial.

Run `python -m tests.benchmarks.orchestration [--trials 200] [--repeats 3]`.

Every trial sleeps for a known time and writes all its rows (an epoch, 715 predictions, the trial),
so that wall minus ideal is what orchestration takes. Ours against Ray Tune as it comes (a new
process a trial, its own loggers), plain Ray tasks and a plain loop, in turn, in one run. Workers'
start and imports are measured separately: the clock runs from the start of the first trial to the
end of the last.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray

from casting_tune.config import TrialConfig, cell_id
from casting_tune.data import pack, synthetic
from casting_tune.execution import ray_tune
from casting_tune.execution.nodes import Resources
from casting_tune.execution.tasks import Event, Task, Work
from casting_tune.store.store import Store
from casting_tune.training.records import Place, TrialContext
from tests.benchmarks import figures

SLEEP_S, WORKERS = 0.1, 2
CONTEXT = TrialContext(sweep="bench", label="bench")


def sleeping_trial(
    config: TrialConfig,
    packed: pack.Pack,
    store: Store,
    *,
    context: TrialContext = CONTEXT,
    **more: Any,
) -> dict[str, Any]:
    """Sleep, and write the rows of a trial."""
    started = datetime.now(UTC)
    time.sleep(SLEEP_S)
    cell, sweep = cell_id(config, packed.dataset_id), context.sweep
    store.write("epochs", sweep, f"{cell}-1-1", [{"cell_id": cell, "attempt": 1, "epoch": 1}])
    images = [
        {"cell_id": cell, "attempt": 1, "split": "test", "image": i, "score": 0.5}
        for i in range(715)
    ]
    store.write("predictions", sweep, f"{cell}-1", images)
    row = {
        "cell_id": cell,
        "attempt": 1,
        "status": "completed",
        "started_at": started,
        "duration_s": SLEEP_S,
    }
    store.write("trials", sweep, f"{cell}-1", [row])
    return row


def ours(packed: pack.Pack, n_trials: int) -> tuple[float, float]:
    """Return (seconds a trial beyond the ideal, seconds before the first trial started)."""
    configs = [TrialConfig(backbone="vgg16", seed=seed) for seed in range(n_trials)]
    with tempfile.TemporaryDirectory() as folder:
        work = Work(
            tasks=tuple(Task(config=config, label=str(config.seed)) for config in configs),
            store=Store(Path(folder)),
            sweep="bench",
            place=Place(n_at_once=WORKERS),
            trial=sleeping_trial,
        )
        called = time.time()
        clock: list[tuple[str, float]] = []

        def on_event(event: Event) -> None:
            clock.append((event.kind, time.time()))

        ray_tune.run_ray(
            work,
            packed,
            resources=Resources(cpus=1, n_at_once=WORKERS),
            on_event=on_event,
        )
        rows = work.store.read("trials").to_pylist()
        assert len(rows) == n_trials
    first = min(row["started_at"].timestamp() for row in rows)
    last = max(at for kind, at in clock if kind == "ended")
    return (last - first - n_trials * SLEEP_S / WORKERS) / n_trials, first - called


def tune_as_it_comes(packed: pack.Pack, n_trials: int) -> tuple[float, float]:
    """The same trials by `tune.Tuner(...).fit()` with Ray Tune's defaults, silent."""
    from ray import tune

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")

        def trainable(config: dict[str, int]) -> None:
            sleeping_trial(TrialConfig(backbone="vgg16", seed=config["seed"]), packed, store)
            tune.report({"done_at": time.time()})

        ray.init(
            "local",
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        called = time.time()
        try:
            results = tune.Tuner(
                trainable,
                param_space={"seed": tune.grid_search(list(range(n_trials)))},
                run_config=tune.RunConfig(storage_path=folder, verbose=0),
            ).fit()
            last = max(result.metrics["done_at"] for result in results)
        finally:
            ray.shutdown()
        first = min(row["started_at"].timestamp() for row in store.read("trials").to_pylist())
    return (last - first - n_trials * SLEEP_S / WORKERS) / n_trials, first - called


def ray_tasks(packed: pack.Pack, n_trials: int) -> tuple[float, float]:
    """The same trials as plain Ray tasks: no events, no retries, nothing that stops a trial."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        called = time.time()
        ray.init(
            "local",
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        try:
            images = ray.put(packed)
            task = ray.remote(lambda seed, packed: sleeping_trial(_config(seed), packed, store))
            ray.get([task.remote(seed, images) for seed in range(n_trials)])
            last = time.time()
        finally:
            ray.shutdown()
        first = min(row["started_at"].timestamp() for row in store.read("trials").to_pylist())
    return (last - first - n_trials * SLEEP_S / WORKERS) / n_trials, first - called


def plain_loop(packed: pack.Pack, n_trials: int) -> tuple[float, float]:
    """The same trials one after the other in this process; its ideal has one worker."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        first = time.time()
        for seed in range(n_trials):
            sleeping_trial(_config(seed), packed, store)
        last = time.time()
    return (last - first - n_trials * SLEEP_S) / n_trials, 0.0


def _config(seed: int) -> TrialConfig:
    return TrialConfig(backbone="vgg16", seed=seed)


def main() -> None:
    """Measure in turn and print a table."""
    parser = figures.parser(__doc__, repeats=3)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument(
        "--peer-trials",
        type=int,
        default=20,
        help="of Ray Tune's defaults, which take a second each",
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        synthetic.draw(Path(folder) / "castings", n_images=40, size_px=64)
        packed = pack.pack(Path(folder) / "castings", Path(folder) / "packs")
        sides: dict[str, tuple[Callable[[pack.Pack, int], tuple[float, float]], int]] = {
            "casting_tune": (ours, args.trials),
            "Ray Tune's defaults": (tune_as_it_comes, args.peer_trials),
            "plain Ray tasks": (ray_tasks, args.trials),
            "a plain loop, one worker": (plain_loop, args.trials),
        }
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(args.repeats):
            for name, (run, n_trials) in sides.items():
                measured[name].append(run(packed, n_trials))
    rows = []
    for name, (_, n_trials) in sides.items():
        beyond, start = (list(values) for values in zip(*measured[name], strict=True))
        rows.append(
            (
                name,
                f"{n_trials} x {args.repeats}",
                figures.spread(beyond, 3),
                figures.spread(start, 1),
            )
        )
    header = (
        "scheduler",
        "trials x repeats",
        "s a trial beyond the ideal: median (min to max)",
        "s to the first trial",
    )
    caption = f"{WORKERS} workers, trials of {SLEEP_S} s that write all their rows. "
    caption += figures.conditions("ray")
    text = f"{figures.table(header, rows)}\n\n{caption} Aimed at: 0.05 s."
    figures.publish("orchestration", text, write_docs=args.write_docs)


if __name__ == "__main__":
    main()
