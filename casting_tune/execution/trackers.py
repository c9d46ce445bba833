"""What happens in a sweep, told to TensorBoard, MLflow or W&B as well; the store stays the only truth.

Comes in: what a person asked for, the trials by their number, Events. Goes out: these tools' own
files. Runs in the driver, asks no network unless an address is given, and is never in the way: an
error ends that logger, not the sweep.
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
    """Return a trial as a logger names it: which folder's weights it has is told by `weights_id`, not by a path."""
    settings = asdict(config) | {"weights": config.weights.partition(":")[0]}
    return Logged(cell_id=cell_id, label=label, settings=settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A kind of KINDS, and where it writes: a folder, or mlflow's server by its address; None: beside the results."""

    kind: str
    place: str | None


class Logger(Protocol):
    """One tool. What `begin` returns stands for the trial in the other calls."""

    def begin(self, trial: Logged) -> Any:
        """Open a trial."""

    def log(self, run: Any, figures: dict[str, float], step: int) -> None:
        """Take in figures after an epoch."""

    def end(self, run: Any, status: str) -> None:
        """Close a trial that completed, was stopped or failed."""

    def close(self) -> None:
        """Let go of everything; trials that are open stay as they are."""


def read(words: Sequence[str]) -> tuple[Wanted, ...]:
    """Return the loggers that a person asked for, as KIND or KIND:DIR.

    Raises:
        UsageError: no such kind, the same twice, an address for a folder, or its library is not installed.
    """
    found: list[Wanted] = []
    for word in words:
        kind, _, place = word.partition(":")
        if kind not in KINDS:
            raise UsageError(f"--log: {unknown('logger', kind, KINDS)}")
        spec = importlib.util.find_spec(kind)
        if spec is None or spec.origin is None:  # a folder of that name beside us is no library
            raise UsageError(f'--log {kind} needs an extra: pip install "casting-tune[{kind}]"')
        if "://" in place and kind != "mlflow":
            raise UsageError(
                f"--log {word}: only mlflow takes a server by its address. Name a folder."
            )
        if kind in {wanted.kind for wanted in found}:
            raise UsageError(f"--log {kind} stands twice: one is enough.")
        found.append(Wanted(kind=kind, place=place or None))
    return tuple(found)


@contextmanager
def follow(
    wanted: Sequence[Wanted],
    trials: Sequence[Logged],
    *,
    beside: Path,
    sweep: str,
    run_id: str,
    warn: Callable[[str], None],
) -> Iterator[Callable[[Event], None]]:
    """Give a function that tells Events to every logger.

    Args:
        wanted: as `read` gives them.
        trials: by the number of their task; they may grow.
        beside: the folder for loggers without one; each gets a folder of its kind.
        sweep, run_id: what the tools call a project or experiment, and what tells its runs apart.
        warn: told one line when a logger fails; it is then left alone.

    Raises:
        UsageError: a folder cannot be made.
    """
    switches = []
    for one in wanted:
        place = one.place or str(beside / one.kind)
        if "://" not in place:
            try:
                Path(place).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(
                    f"--log {one.kind}: '{place}' cannot be made: {error.strerror}."
                ) from error
            place = str(Path(place).absolute())
        switches.append(_Switch(one.kind, partial(KINDS[one.kind], place, sweep, run_id), warn))

    def tell(event: Event) -> None:
        for switch in switches:
            switch.guarded(partial(switch.tell, event, trials[event.task]))

    try:
        yield tell
    finally:
        for switch in switches:
            switch.guarded(switch.close)


class _Switch:
    """A logger that goes off with its first error."""

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
        # a full disk, a server that is gone, another version: whatever, the sweep goes on
        except Exception as error:
            self.is_on = False
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self.warn(
                f"Logging to {self.kind} has ended ({why}). The sweep goes on; the store has every row."
            )
            with suppress(Exception):  # its files, its service: it has failed once, and may again
                self.close()

    def tell(self, event: Event, trial: Logged) -> None:
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
    """A folder a trial: <sweep>/<run>/<cell> <label>."""

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
    """An experiment a sweep, a run a trial, in DIR/mlflow.db or on a server; no global state of MLflow's is touched."""

    def __init__(self, place: str, sweep: str, run_id: str) -> None:
        os.environ.setdefault(
            "MLFLOW_DISABLE_TELEMETRY", "true"
        )  # it tells its makers how it is used
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(
            logging.WARNING
        )  # it tells of every table that it makes
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
    """An offline run a trial, in the project of the sweep; `wandb sync` sends them, if a person wants it."""

    def __init__(self, place: str, sweep: str, run_id: str) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it tells its makers of errors
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
        wandb.teardown()  # its service would outlive the sweep


KINDS: dict[str, Callable[[str, str, str], Logger]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "wandb": _WandB,
}
"""What --log knows -> its logger, made of a place, a sweep and a run."""
