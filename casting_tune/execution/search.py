"""A search: Optuna chooses the cells of a sweep by the validation results of earlier ones.

Input: a Search of a sweep file, a store, and a function that completes a cell. Output: tasks for
the scheduler; Optuna gets the result of each. The store is the memory: choices of earlier runs are
reported to Optuna again, and a cell that the store holds is not trained again. Test images are
never used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casting_tune.config import cell_id
from casting_tune.execution.search_space import Chosen, Past, holds, label_of
from casting_tune.execution.tasks import Task
from casting_tune.planning import expand
from casting_tune.planning.cells import Cell, Search
from casting_tune.planning.sections import Settings
from casting_tune.planning.sweep_file import number
from casting_tune.store.attempts import attempts_since, last_attempts, read_cell
from casting_tune.store.store import Store

if TYPE_CHECKING:
    import optuna

MOST_REPEATS = 100
"""After so many repeated choices in a row, the space is considered exhausted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What is known before a search continues.

    Attributes:
        dataset_id: of the images.
        past: what earlier runs chose; settled choices are reported to Optuna, the others run first.
        settled: cell -> its status, of cells that are not trained again.
        first: tasks that are not part of the search, which run before it.
        n_at_once: how many trials may run at the same time.
    """

    dataset_id: str
    past: Past
    settled: Mapping[str, str]
    first: Sequence[Task]
    n_at_once: int


class Study:
    """The source of a search's tasks; see `tasks.Source`.

    Args:
        search: what to vary, and the objectives.
        store: holds the rows of trained cells.
        start: what is known before the search continues.
        finish: completes the cell of a choice.
        on_choice: called with each new choice before its task is handed out, and with its task
            unless the store holds the cell.
    """

    def __init__(
        self,
        search: Search,
        store: Store,
        start: Start,
        *,
        finish: Callable[[Cell], Cell],
        on_choice: Callable[[Chosen, Task | None], None],
    ) -> None:
        self.search, self.store, self.dataset_id = search, store, start.dataset_id
        self.finish, self.on_choice, self.settled = finish, on_choice, start.settled
        self.tasks: list[Task] = list(start.first)
        self.attempts = last_attempts(store)
        self.n_handed_out, self.n_suggested, self.n_labelled = 0, 0, start.past.n_labelled
        self.chosen: dict[str, str | None] = {}  # a cell -> how it ended; None while it runs
        self.running: dict[str, list[str]] = {}  # a cell -> the choices of Optuna that wait for it
        earlier = start.past.chosen
        self.known = {choice.cell_id: choice for choice in earlier}
        done = [choice for choice in earlier if choice.cell_id in self.settled]
        done = done[: search.n_trials]
        left = [choice for choice in earlier if choice.cell_id not in self.settled]
        left = left[: search.n_trials - len(done)]
        points = [choice.settings for choice in done + left]
        self.optuna = _searcher(search, points, start.n_at_once, seed=len(earlier))
        for choice in done:
            key, _ = self._suggest()
            status = self.settled[choice.cell_id]
            self.chosen[choice.cell_id] = status
            self._report(key, choice.cell_id, status, epochs=choice.cell.config.epochs)

    def next_task(self) -> int | None:
        """Return the position of the next task; None: not now, or no more."""
        if self.n_handed_out < len(self.tasks):
            self.n_handed_out += 1
            return self.n_handed_out - 1
        for _ in range(MOST_REPEATS):
            if len(self.chosen) >= self.search.n_trials:
                return None
            key, settings = self._suggest()
            if settings is None:  # the maximum number is running
                return None
            choice = self._choice(settings)
            if choice.cell_id in self.running:
                self.running[choice.cell_id].append(key)
            elif choice.cell_id in self.chosen or choice.cell_id in self.settled:
                self._take_result(choice, key)
            else:
                return self._hand_out(choice, key)
        return None

    def on_ended(self, task: int, status: str) -> None:
        """Report to Optuna how a choice ended, from its row in the store."""
        config = self.tasks[task].config
        cell = cell_id(config, self.dataset_id)
        for key in self.running.pop(cell, []):
            self.chosen[cell] = status
            self._report(key, cell, status, epochs=config.epochs)

    def _take_result(self, choice: Chosen, key: str) -> None:
        """Report a choice that was trained before, in this search or by another sweep."""
        cell = choice.cell_id
        if cell not in self.chosen:  # by another sweep
            self.chosen[cell] = self.settled[cell]
            self._count_label(choice)
            self.on_choice(choice, None)
        self._report(key, cell, self.chosen[cell], epochs=choice.cell.config.epochs)

    def _last_attempt(self, cell: str, epochs: int) -> int:
        return attempts_since(self.store, cell, self.attempts.get(cell, 0), epochs=epochs).stop - 1

    def _hand_out(self, choice: Chosen, key: str) -> int:
        attempts = self._last_attempt(choice.cell_id, choice.cell.config.epochs)
        self._count_label(choice)
        task = Task(config=choice.cell.config, label=choice.cell.label, attempts=attempts)
        self.on_choice(choice, task)
        self.tasks.append(task)
        self.n_handed_out += 1
        self.chosen[choice.cell_id], self.running[choice.cell_id] = None, [key]
        return len(self.tasks) - 1

    def _choice(self, settings: Settings) -> Chosen:
        config = expand.search_config(self.search, settings)
        label = f"{self.n_labelled + 1}: {label_of(settings)}"
        cell = self.finish(Cell(row=label, label=label, config=config))
        key = cell_id(cell.config, self.dataset_id)
        return self.known.get(key) or Chosen(settings=settings, cell=cell, cell_id=key)

    def _count_label(self, choice: Chosen) -> None:
        """Count a new choice: its label has the next number."""
        self.n_labelled += choice.cell_id not in self.known

    def _suggest(self) -> tuple[str, Settings | None]:
        self.n_suggested += 1
        key = str(self.n_suggested)
        with warnings.catch_warnings():
            # Ray warns of a choice that takes over a second, which any does on a busy machine
            warnings.filterwarnings(
                "ignore", message="Define-by-run function", category=UserWarning
            )
            return key, self.optuna.suggest(key)

    def _report(self, key: str, cell: str, status: str | None, *, epochs: int) -> None:
        """Report the objectives of a completed trial, else that it was pruned or failed."""
        if status == "stopped":
            self.optuna.on_trial_complete(key)
            return
        columns = ["status", *self.search.objective]
        attempts = range(1, self._last_attempt(cell, epochs) + 1)
        rows = read_cell(
            self.store, "trials", cell, attempts, epochs=epochs, columns=columns
        ).to_pylist()
        values = [
            row for row in rows if row.pop("status") == "completed" and None not in row.values()
        ]
        if values:
            self.optuna.on_trial_complete(key, result=values[-1])
        else:
            self.optuna.on_trial_complete(key, error=True)


def sampler(search: Search, *, seed: int = 0) -> optuna.samplers.BaseSampler:
    """Return the sampler: multivariate TPE; running trials count as bad, so that choices differ.

    `seed` is added to the seed of the search, so that a run that continues makes new choices.
    """
    import optuna

    return optuna.samplers.TPESampler(
        multivariate=True, constant_liar=True, seed=search.seed + seed
    )


def suggest(search: Search, trial: optuna.Trial) -> Settings:
    """Choose a value for every setting whose condition holds, in the order of the file."""
    settings: Settings = {}
    for name, given in search.space.items():
        if not holds(search, given, settings):
            continue
        if given.choices is not None:
            settings[name] = trial.suggest_categorical(name, given.choices)
        elif number(name) is int:
            settings[name] = trial.suggest_int(
                name,
                int(given.low or 0),
                int(given.high or 0),
                step=int(given.step or 1),
                log=given.log,
            )
        else:
            settings[name] = trial.suggest_float(
                name, float(given.low or 0), float(given.high or 0), step=given.step, log=given.log
            )
    return settings


def _searcher(search: Search, points: list[Settings], n_at_once: int, *, seed: int) -> Any:
    """Return Ray's OptunaSearch with a limit of running trials; it chooses `points` first."""
    import optuna
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # OptunaSearch reads a list as several objectives, even a list of one
    several = len(search.objective) > 1
    names, modes = list(search.objective), list(search.objective.values())
    searcher = OptunaSearch(
        lambda trial: suggest(search, trial),
        metric=names if several else names[0],
        mode=modes if several else modes[0],
        points_to_evaluate=points,
        sampler=sampler(search, seed=seed),
    )
    return ConcurrencyLimiter(searcher, max_concurrent=n_at_once)
