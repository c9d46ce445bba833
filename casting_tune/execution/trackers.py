"""Reports the events of a sweep to TensorBoard, MLflow or W&B; results come from the store only.

Input: the --log options, the trials by their number, Events. Output: files of these tools. Runs in
the driver and uses no network unless an address is given. An error ends that logger, not the sweep.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from casting_tune.errors import UsageError, unknown

if TYPE_CHECKING:
    from casting_tune.config import TrialConfig
    from casting_tune.execution.tasks import Event

EPOCH = ("train_loss", "validation_loss", "validation_accuracy", "learning_rate", "train_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """A trial as a logger names it: its cell, its label, its settings."""

    cell_id: str
    label: str
    settings: dict[str, Any]


def logged(cell_id: str, label: str, config: TrialConfig) -> Logged:
    """Return a trial as a logger names it; `weights_id` identifies its weights, not a path."""
    settings = asdict(config) | {"weights": config.weights.partition(":")[0]}
    return Logged(cell_id=cell_id, label=label, settings=settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A kind of KINDS, and its place: a folder, or an MLflow server's address; None: default."""

    kind: str
    place: str | None


class Logger(Protocol):
    """One tool. The result of `begin` identifies the trial in the other calls."""

    def begin(self, trial: Logged) -> Any:
        """Open a trial."""

    def log(self, run: Any, figures: dict[str, float], step: int) -> None:
        """Record numbers after an epoch."""

    def end(self, run: Any, status: str) -> None:
        """Close a trial that completed, was stopped or failed."""

    def close(self) -> None:
        """Release everything; open trials stay as they are."""


def read(words: Sequence[str]) -> tuple[Wanted, ...]:
    """Return the loggers of the --log options, each KIND or KIND:DIR.

    Raises:
        UsageError: unknown kind, the same kind twice, an address for a folder, or no library.
    """
    loggers: list[Wanted] = []
    for word in words:
        kind, _, place = word.partition(":")
        if kind not in KINDS:
            raise UsageError(f"--log: {unknown('logger', kind, KINDS)}")
        spec = importlib.util.find_spec(kind)
        if spec is None or spec.origin is None:  # a folder of that name is no library
            raise UsageError(f'--log {kind} requires an extra: pip install "casting-tune[{kind}]"')
        if "://" in place and kind != "mlflow":
            raise UsageError(f"--log {word}: only mlflow accepts an address. Use a folder.")
        if kind in {wanted.kind for wanted in loggers}:
            raise UsageError(f"--log {kind} is given twice. Give it once.")
        loggers.append(Wanted(kind=kind, place=place or None))
    return tuple(loggers)


@contextmanager
def follow(
    wanted: Sequence[Wanted],
    trials: Sequence[Logged],
    *,
    folder: Path,
    sweep: str,
    run_id: str,
    warn: Callable[[str], None],
) -> Iterator[Callable[[Event], None]]:
    """Give a function that reports Events to every logger.

    Args:
        wanted: as `read` gives them.
        trials: by the number of their task; they may grow.
        folder: default folder of the loggers; each gets a subfolder of its kind.
        sweep, run_id: names of the project or experiment, and of its run.
        warn: called with one line when a logger fails; it is then switched off.

    Raises:
        UsageError: a folder cannot be made.
    """
    switches = []
    for one in wanted:
        place = one.place or str(folder / one.kind)
        if "://" not in place:
            try:
                Path(place).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(
                    f"--log {one.kind}: '{place}' cannot be made: {error.strerror}."
                ) from error
            place = str(Path(place).absolute())
        switches.append(_Switch(one.kind, partial(KINDS[one.kind], place, sweep, run_id), warn))

    def report(event: Event) -> None:
        for switch in switches:
            switch.guarded(partial(switch.report, event, trials[event.task]))

    try:
        yield report
    finally:
        for switch in switches:
            switch.guarded(switch.close)


class _Switch:
    """A logger that is switched off at its first error."""

    def __init__(self, kind: str, make: Callable[[], Logger], warn: Callable[[str], None]) -> None:
        self.kind, self.make, self.warn = kind, make, warn
        self.logger: Logger | None = None
        self.is_on = True
        self.runs: dict[int, Any] = {}
        self.steps: dict[int, int] = {}

    def guarded(self, do: Callable[[], None]) -> None:
        if not self.is_on:
            return
        try:
            do()
        # a full disk, a lost server, another version: the sweep continues
        except Exception as error:
            self.is_on = False
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self.warn(
                f"Logging to {self.kind} has ended ({why}). "
                "The sweep continues; the store has all rows."
            )
            with suppress(Exception):  # it may fail again
                self.close()

    def report(self, event: Event, trial: Logged) -> None:
        if self.logger is None:
            self.logger = self.make()
        if event.task not in self.runs:
            self.runs[event.task] = self.logger.begin(trial)
        run = self.runs[event.task]
        if event.epoch is not None:
            self.steps[event.task] = event.epoch.epoch
            self._log(run, {name: getattr(event.epoch, name) for name in EPOCH}, event.epoch.epoch)
        if event.kind == "ended" and not event.retried:
            figures = {"test_accuracy": event.test_accuracy, "duration_s": event.duration_s}
            self._log(run, figures, self.steps.pop(event.task, 0))
            self.logger.end(self.runs.pop(event.task), str(event.status))

    def close(self) -> None:
        if self.logger is not None:
            self.logger.close()

    def _log(self, run: Any, figures: dict[str, float | None], step: int) -> None:
        assert self.logger is not None
        finite = {
            name: value
            for name, value in figures.items()
            if value is not None and math.isfinite(value)
        }
        if finite:
            self.logger.log(run, finite, step)


class _TensorBoard:
    """One folder per trial: <sweep>/<run>/<cell> <label>."""

    def __init__(self, place: str, sweep: str, run_id: str) -> None:
        self.folder = Path(place) / sweep / run_id
        self.open: list[Any] = []

    def begin(self, trial: Logged) -> Any:
        from tensorboard.summary import Writer

        label = re.sub(r"[^\w., =+-]", "_", trial.label)[:80]
        self.open.append(Writer(str(self.folder / f"{trial.cell_id} {label}")))
        return self.open[-1]

    def log(self, run: Any, figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            run.add_scalar(name, value, step)
        run.flush()

    def end(self, run: Any, status: str) -> None:
        del status
        self.open.remove(run)
        run.close()

    def close(self) -> None:
        for run in self.open:
            run.close()


class _MLflow:
    """One experiment per sweep, one run per trial, in DIR/mlflow.db or on a server.

    Does not change the global state of MLflow.
    """

    def __init__(self, place: str, sweep: str, run_id: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else it sends usage data
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(
            logging.WARNING
        )  # else it logs every table that it creates
        # MLflow refuses file: stores since 3.17
        self.client = MlflowClient(place if "://" in place else f"sqlite:///{place}/mlflow.db")
        known = self.client.get_experiment_by_name(sweep)
        self.experiment = known.experiment_id if known else self.client.create_experiment(sweep)
        self.run_id = run_id

    def begin(self, trial: Logged) -> Any:
        tags = {"cell_id": trial.cell_id, "casting_tune_run": self.run_id}
        run = self.client.create_run(self.experiment, run_name=trial.label, tags=tags).info.run_id
        for name, value in trial.settings.items():
            self.client.log_param(run, name, value)
        return run

    def log(self, run: Any, figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            self.client.log_metric(run, name, value, step=step)

    def end(self, run: Any, status: str) -> None:
        self.client.set_terminated(
            run, {"completed": "FINISHED", "stopped": "KILLED"}.get(status, "FAILED")
        )

    def close(self) -> None:
        pass  # the client holds nothing


class _WandB:
    """One offline run per trial, in the project of the sweep; `wandb sync` uploads them."""

    def __init__(self, place: str, sweep: str, run_id: str) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else it sends errors
        self.place, self.sweep, self.group = place, sweep, run_id
        self.open: list[Any] = []

    def begin(self, trial: Logged) -> Any:
        import wandb

        run = wandb.init(
            project=self.sweep,
            group=self.group,
            name=trial.label,
            config=trial.settings | {"cell_id": trial.cell_id},
            dir=self.place,
            mode="offline",
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
        self.open.append(run)
        return run

    def log(self, run: Any, figures: dict[str, float], step: int) -> None:
        run.log(figures, step=step)

    def end(self, run: Any, status: str) -> None:
        self.open.remove(run)
        run.summary["status"] = status
        run.finish(exit_code=int(status not in ("completed", "stopped")))

    def close(self) -> None:
        import wandb

        for run in self.open:
            run.finish(exit_code=1)
        wandb.teardown()  # else its service outlives the sweep


KINDS: dict[str, Callable[[str, str, str], Logger]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "wandb": _WandB,
}
"""Kind of --log -> its logger, from a place, a sweep and a run."""
