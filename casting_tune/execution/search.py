"""A search: Optuna chooses the cells of a sweep, one after the other, by what validation said of those before.

Comes in: a Search of a sweep file, a store, and how a choice becomes a finished cell. Goes out:
tasks for the scheduler, and to Optuna what became of them. The store is the memory: what an earlier
run chose is told to Optuna again, a choice that the store has trained already is answered from it.
Knows no images; the test images have no say.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casting_tune.config import TrialConfig, cell_id
from casting_tune.execution.tasks import Task
from casting_tune.planning import expand
from casting_tune.planning.cells import Cell, Search
from casting_tune.planning.sweep_file import Range, Settings, number
from casting_tune.store.store import Store

if TYPE_CHECKING:
    import optuna

MOST_CORNERS = 4096
MOST_REPEATS = 100
"""So many choices in a row that were made before, and the space is taken to hold no more cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A choice and the cell that it comes to."""

    settings: Settings
    cell: Cell
    cell_id: str


def corners(search: Search) -> tuple[TrialConfig, ...]:
    """Return configurations at the ends of every range and at every choice: all that a check up front has to look at.

    All combinations where these are few; else those of what decides whether a batch goes through a
    network, and each other value once, with the first values of the others.

    Raises:
        UsageError: a combination that no network can be trained with.
    """
    ends: dict[str, list[Any]] = {
        name: given.choices or [given.low, given.high] for name, given in search.space.items()
    }
    if math.prod(map(len, ends.values())) <= MOST_CORNERS:
        settings = [
            dict(zip(ends, values, strict=True)) for values in itertools.product(*ends.values())
        ]
    else:
        first = {name: values[0] for name, values in ends.items()}
        sizes = [name for name in ("backbone", "image_px", "batch_size") if name in ends]
        settings = [
            {**first, **dict(zip(sizes, values, strict=True))}
            for values in itertools.product(*(ends[name] for name in sizes))
        ]
        settings += [
            {**first, name: value}
            for name, values in ends.items()
            if name not in sizes
            for value in values
        ]
    return tuple(
        dict.fromkeys(expand.search_config(search, _active(search, values)) for values in settings)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What earlier runs of a search chose.

    Attributes:
        chosen: the choices that are still in the space and mean the same cell, in their order.
        notes: how many other choices there are, and why they are not used.
        n_labelled: the highest number of a row so far; new rows are numbered from the next one on.
    """

    chosen: tuple[Chosen, ...] = ()
    notes: tuple[str, ...] = ()
    n_labelled: int = 0


NO_PAST = Past()


def past(
    search: Search, store: Store, *, sweep: str, dataset_id: str, finish: Callable[[Cell], Cell]
) -> Past:
    """Return what earlier runs of a sweep chose, and what of it the search of today does not use."""
    columns = ["sweep", "asked_at", "position", "cell_id", "label", "chosen"]
    asked = store.read("cells", columns=columns).sort_by(
        [("asked_at", "ascending"), ("position", "ascending")]
    )
    found: dict[str, Chosen] = {}
    outside: dict[str, str] = {}  # a cell -> why it is outside the space
    other: set[str] = set()
    n_labelled = 0
    for row in asked.to_pylist():
        cell_key = row["cell_id"]
        if row["sweep"] != sweep or row["chosen"] is None or cell_key in found:
            continue
        settings: Settings = json.loads(row["chosen"])
        number = re.match(r"(\d+): ", row["label"])
        reason = _outside(search, settings)
        if reason is None:
            cell = finish(
                Cell(
                    row=row["label"],
                    label=row["label"],
                    config=expand.search_config(search, settings),
                )
            )
            if cell_id(cell.config, dataset_id) != cell_key:
                other.add(cell_key)
                continue
            found[cell_key] = Chosen(settings=settings, cell=cell, cell_id=cell_key)
        else:
            outside[cell_key] = reason
        n_labelled = max(n_labelled, int(number.group(1)) if number else 0)
    notes = []
    outside = {cell: reason for cell, reason in outside.items() if cell not in found}
    if outside:
        counted = "; ".join(
            f"{n} with {reason}" for reason, n in Counter(outside.values()).most_common()
        )
        notes.append(
            f"{_trials(len(outside))} outside the search space of today and not used: {counted}."
        )
    if other - found.keys():
        notes.append(
            f"{_trials(len(other - found.keys()))} of other fixed settings or other images and not used."
        )
    return Past(chosen=tuple(found.values()), notes=tuple(notes), n_labelled=n_labelled)


def _trials(n: int) -> str:
    return (
        f"{n} earlier trials of this search are" if n > 1 else "1 earlier trial of this search is"
    )


class Study:
    """The source of a search's tasks; see `tasks.Source`.

    Args:
        search: what to vary and by what to choose.
        store: holds the rows of what was trained.
        dataset_id: of the images.
        finish: makes a choice's cell ready to run.
        earlier: what earlier runs chose; the settled ones are told to Optuna, the others run first.
        n_labelled: the highest number of an earlier row.
        settled: cell -> its status, of cells that are not trained again.
        first: tasks beside the search, which run before it.
        n_at_once: how many trials may run at the same time.
        on_choice: told of each new choice, before its task is handed out.
    """

    def __init__(
        self,
        search: Search,
        store: Store,
        *,
        dataset_id: str,
        finish: Callable[[Cell], Cell],
        earlier: tuple[Chosen, ...],
        n_labelled: int,
        settled: Mapping[str, str],
        first: tuple[Task, ...],
        n_at_once: int,
        on_choice: Callable[[Chosen, Task | None], None],
    ) -> None:
        self.search, self.store, self.dataset_id, self.finish = search, store, dataset_id, finish
        self.settled, self.on_choice = settled, on_choice
        self.tasks: list[Task] = list(first)
        self.attempts = store.last_attempts()
        self.n_handed_out, self.n_asked, self.n_labelled = 0, 0, n_labelled
        self.chosen: dict[str, str | None] = {}  # a cell -> how it ended; None while it runs
        self.running: dict[str, list[str]] = {}  # a cell -> the choices of Optuna that wait for it
        self.known = {choice.cell_id: choice for choice in earlier}
        done = [choice for choice in earlier if choice.cell_id in settled][: search.n_trials]
        left = [choice for choice in earlier if choice.cell_id not in settled][
            : search.n_trials - len(done)
        ]
        self.optuna = _searcher(
            search, [choice.settings for choice in done + left], n_at_once, seed=len(earlier)
        )
        for choice in done:
            key, _ = self._ask()
            self.chosen[choice.cell_id] = settled[choice.cell_id]
            self._tell(
                key, choice.cell_id, settled[choice.cell_id], epochs=choice.cell.config.epochs
            )

    def next_task(self) -> int | None:
        """Return the position of the next task; None: none now, or none any more."""
        if self.n_handed_out < len(self.tasks):
            self.n_handed_out += 1
            return self.n_handed_out - 1
        for _ in range(MOST_REPEATS):
            if len(self.chosen) >= self.search.n_trials:
                return None
            key, settings = self._ask()
            if settings is None:  # as many are running as may
                return None
            choice = self._choice(settings)
            if choice.cell_id in self.running:
                self.running[choice.cell_id].append(key)
            elif choice.cell_id in self.chosen:
                self._tell(
                    key,
                    choice.cell_id,
                    self.chosen[choice.cell_id],
                    epochs=choice.cell.config.epochs,
                )
            elif choice.cell_id in self.settled:  # by another sweep
                self.chosen[choice.cell_id] = self.settled[choice.cell_id]
                self._number(choice)
                self.on_choice(choice, None)
                self._tell(
                    key,
                    choice.cell_id,
                    self.settled[choice.cell_id],
                    epochs=choice.cell.config.epochs,
                )
            else:
                return self._hand_out(choice, key)
        return None

    def told(self, task: int, status: str) -> None:
        """Tell Optuna how a choice ended, from its row in the store."""
        cell = cell_id(self.tasks[task].config, self.dataset_id)
        for key in self.running.pop(cell, []):
            self.chosen[cell] = status
            self._tell(key, cell, status, epochs=self.tasks[task].config.epochs)

    def _last(self, cell: str, epochs: int) -> int:
        return self.store.attempts_since(cell, self.attempts.get(cell, 0), epochs=epochs).stop - 1

    def _hand_out(self, choice: Chosen, key: str) -> int:
        attempts = self._last(choice.cell_id, choice.cell.config.epochs)
        self._number(choice)
        task = Task(config=choice.cell.config, label=choice.cell.label, attempts=attempts)
        self.on_choice(choice, task)
        self.tasks.append(task)
        self.n_handed_out += 1
        self.chosen[choice.cell_id], self.running[choice.cell_id] = None, [key]
        return len(self.tasks) - 1

    def _choice(self, settings: Settings) -> Chosen:
        config = expand.search_config(self.search, settings)
        label = f"{self.n_labelled + 1}: {_label(settings)}"
        cell = self.finish(Cell(row=label, label=label, config=config))
        key = cell_id(cell.config, self.dataset_id)
        return self.known.get(key) or Chosen(settings=settings, cell=cell, cell_id=key)

    def _number(self, choice: Chosen) -> None:
        """Count a choice that was not made before: its label has the next number."""
        self.n_labelled += choice.cell_id not in self.known

    def _ask(self) -> tuple[str, Settings | None]:
        self.n_asked += 1
        key = str(self.n_asked)
        return key, self.optuna.suggest(key)

    def _tell(self, key: str, cell: str, status: str | None, *, epochs: int) -> None:
        """Tell Optuna the objective of a completed trial; a stopped one was pruned, any other failed."""
        if status == "stopped":
            self.optuna.on_trial_complete(key)
            return
        columns = ["status", *self.search.objective]
        attempts = range(1, self._last(cell, epochs) + 1)
        rows = self.store.read_cell(
            "trials", cell, attempts, epochs=epochs, columns=columns
        ).to_pylist()
        values = [
            row for row in rows if row.pop("status") == "completed" and None not in row.values()
        ]
        if values:
            self.optuna.on_trial_complete(key, result=values[-1])
        else:
            self.optuna.on_trial_complete(key, error=True)


def sampler(search: Search, *, seed: int = 0) -> optuna.samplers.BaseSampler:
    """Return the sampler: multivariate TPE, with the running trials taken for bad ones so that no two are alike.

    `seed` is added to the search's: a run that goes on draws other choices than those that it was
    told of.
    """
    import optuna

    return optuna.samplers.TPESampler(
        multivariate=True, constant_liar=True, seed=search.seed + seed
    )


def suggest(search: Search, trial: optuna.Trial) -> Settings:
    """Choose a value for every setting whose condition holds, in the order of the file."""
    settings: Settings = {}
    for name, given in search.space.items():
        if not _holds(search, given, settings):
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
    """Return Ray's OptunaSearch behind a limiter; it chooses `points` first."""
    import optuna
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    several = (
        len(search.objective) > 1
    )  # OptunaSearch reads a list as several objectives, even a list of one
    names, modes = list(search.objective), list(search.objective.values())
    searcher = OptunaSearch(
        lambda trial: suggest(search, trial),
        metric=names if several else names[0],
        mode=modes if several else modes[0],
        points_to_evaluate=points,
        sampler=sampler(search, seed=seed),
    )
    return ConcurrencyLimiter(searcher, max_concurrent=n_at_once)


def _holds(search: Search, given: Range, settings: Settings) -> bool:
    whole = {**search.fixed, **settings}
    return all(whole.get(name) == value for name, value in given.when.items())


def _active(search: Search, settings: Settings) -> Settings:
    """Return the settings whose condition holds."""
    active: Settings = {}
    for name, given in search.space.items():
        if _holds(search, given, active):
            active[name] = settings[name]
    return active


def _outside(search: Search, settings: Settings) -> str | None:
    """Return why a choice is not one of the space, by its first setting that is not; None: it is one."""

    def offers(given: Range, value: Any) -> bool:
        if given.choices is not None:
            return any(value == choice and type(value) is type(choice) for choice in given.choices)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = given.low or 0, given.high or 0
        steps = (value - low) / given.step if given.step else 0.0
        return low <= value <= high and abs(steps - round(steps)) < 1e-6

    active: Settings = {}
    for name, given in search.space.items():
        if not _holds(search, given, active):
            continue
        if name not in settings:
            return f"no {name}"
        active[name] = settings[name]
        if not offers(given, settings[name]):
            offered = _offered(given)
            return (
                f"{name} {_text(settings[name])} (now {offered})"
                if given.choices
                else f"{name} outside {offered}"
            )
    beside = [name for name in settings if name not in active]
    return (
        f"{beside[0]}, which is not searched {'there' if beside[0] in search.space else 'now'}"
        if beside
        else None
    )


def _label(settings: Settings) -> str:
    return ", ".join(f"{name} {_text(value)}" for name, value in settings.items())


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _offered(given: Range) -> str:
    if given.choices is not None:
        return " or ".join(map(_text, given.choices))
    step = "" if given.step is None else f", step {_text(given.step)}"
    return f"{_text(given.low)} to {_text(given.high)}{step}"


def sentences(search: Search) -> tuple[str, ...]:
    """Say what a search varies, a line a setting, and by what it chooses."""
    goals = " and ".join(f"{goal} {name}" for name, goal in search.objective.items())
    lines = [f"A search of {search.n_trials} trials by {goals}, seed {search.seed}, over:"]
    for name, given in search.space.items():
        what = _offered(given) + (", log" if given.log else "")
        when = "".join(f", where {other} is {_text(value)}" for other, value in given.when.items())
        lines.append(f"    {name}: {what}{when}")
    return tuple(lines)
