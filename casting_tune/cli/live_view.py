"""Progress of a sweep: a live view on a terminal, plain lines elsewhere.

On a terminal a line is never wrapped: labels are shortened in the middle, where they differ least.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table as Grid
from rich.text import Text

from casting_tune.execution.tasks import Event
from casting_tune.planning.plan import duration
from casting_tune.text import plain

STATUS = {
    "stopped": "stopped early", "timeout": "ran out of time", "oom": "ran out of memory",
    "diverged": "diverged", "error": "failed",
}  # fmt: skip
"""Text for each status of a trial; completed trials show their accuracy instead."""

LEADING = 3
"""Number of best rows in the live view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Label, row and epochs of a task; `epochs` is 0 for a task without training."""

    label: str
    row: str
    epochs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The header of the live view.

    Attributes:
        sweep: name of the sweep.
        n_done: number of cells with earlier results in the store.
        place: device, workers, threads.
        images: number of images and dataset.
        warning: data leaks that make the scores too good; "" if there are none.
        n_at_once: number of parallel trials, for the remaining time.
        known: validation accuracies in the store, by row.
        n_tasks: number of tasks, with those that a search has yet to choose.
    """

    sweep: str
    n_done: int = 0
    place: str = ""
    images: str = ""
    warning: str = ""
    n_at_once: int = 1
    known: dict[str, list[float]] = field(default_factory=dict)
    n_tasks: int = 0


@dataclass(frozen=True, slots=True)
class _Line:
    """A line about a task: the text before its label, the label, and the text after it."""

    before: str
    label: str
    after: str
    style: str = ""


@dataclass(slots=True)
class _State:
    """Running and ended tasks, their results, and the durations of epochs."""

    about: About
    tasks: Sequence[Shown]
    started: dict[int, float] = field(default_factory=dict)
    last: dict[int, Event] = field(default_factory=dict)
    best: dict[int, float] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    rows: dict[str, list[float]] = field(default_factory=dict)
    n_failed: int = 0
    epoch_s: list[float] = field(default_factory=list)


@contextmanager
def follow(
    console: Console, about: About, tasks: Sequence[Shown]
) -> Iterator[Callable[[Event], None]]:
    """Yield a function that shows events: in a live view, or one line per epoch and trial.

    Args:
        console: the terminal or file.
        about: the header.
        tasks: the tasks in the order of their numbers; may grow while the view is open.
    """
    rows = {row: list(values) for row, values in about.known.items()}
    state = _State(about=about, tasks=tasks, rows=rows)
    if not console.is_terminal:
        yield lambda event: _say(console, _note(state, event))
        return
    screen = Live(
        console=console,
        refresh_per_second=4,
        transient=True,
        get_renderable=lambda: _screen(state, console),
    )
    with screen:

        def show(event: Event) -> None:
            line = _note(state, event)
            if line is not None and event.kind == "ended":
                console.print(_fitted(line, console), no_wrap=True, crop=True)

        yield show


def shorten(text: str, width: int, *, dots: str = "…") -> str:
    """Return text of at most `width` characters, shortened in the middle."""
    if len(text) <= width:
        return text
    kept = max(width - len(dots), 0)
    return (
        text[: kept - kept // 2]
        + dots[:width]
        + (text[len(text) - kept // 2 :] if kept // 2 else "")
    )


def _say(console: Console, line: _Line | None) -> None:
    if line is not None:
        console.print(
            Text(_plain(f"{line.before}{line.label}{line.after}"), style=line.style), soft_wrap=True
        )


def _fitted(line: _Line, console: Console) -> Text:
    """Return a line that fits the terminal: first the label is shortened by half, then the end."""
    width, dots, after = console.width, _dots(console), _plain(line.after)
    rest = width - len(line.before)
    label = shorten(_plain(line.label), max(rest - len(after), rest // 2), dots=dots)
    text = f"{line.before}{label}{after}"
    return Text(text if len(text) <= width else text[: width - len(dots)] + dots, style=line.style)


def _dots(console: Console) -> str:
    return "…" if console.encoding.lower().startswith("utf") else ".."


def _plain(text: str) -> str:
    return plain(text, substitute=" ")


def _screen(state: _State, console: Console) -> Group:
    width, dots = console.width, _dots(console)
    n_ended, n_tasks = len(state.ended), max(len(state.tasks), state.about.n_tasks)
    done, total = state.about.n_done + n_ended, state.about.n_done + n_tasks
    failed = f", {state.n_failed} without a result" if state.n_failed else ""
    head = f"{state.about.sweep}: {done} of {total} cells{failed}"
    details = " | ".join(filter(None, (state.about.place, state.about.images)))
    heads = [f"{head} | {details}"] if len(head) + len(details) + 3 <= width else [head, details]
    lines = [
        Text(shorten(_plain(text), width, dots=dots), style="bold")
        for text in heads
        if text.strip(" |")
    ]
    if state.about.warning:
        lines.append(Text(shorten(_plain(state.about.warning), width, dots=dots), style="yellow"))
    running = sorted(state.started)
    n_lines = max(3, console.height - 4 - LEADING - len(lines))
    lines += [_running(state, task, width, dots) for task in running[:n_lines]]
    if len(running) > n_lines:
        lines.append(Text(f"and {len(running) - n_lines} more running"))
    lines += [
        Text(
            shorten(f"best on validation: {_plain(row)} {accuracy:.1%}, n = {n}", width, dots=dots),
            style="dim",
        )
        for row, accuracy, n in _leading(state)
    ]
    left = _left(state)
    tail = f" {n_ended}/{n_tasks}" + (f", about {duration(left)} left" if left is not None else "")
    bar = Grid.grid()
    bar.add_row(
        ProgressBar(total=max(n_tasks, 1), completed=n_ended, width=max(10, width - len(tail) - 1)),
        Text(tail),
    )
    return Group(*lines, bar)


def _running(state: _State, task: int, width: int, dots: str) -> Text:
    event, shown = state.last.get(task), state.tasks[task]
    if event is None or event.epoch is None:
        seconds = time.monotonic() - state.started.get(task, time.monotonic())
        now = f"epoch 1/{shown.epochs}, " if shown.epochs else ""
        tail = f"  {now}{duration(seconds)} elapsed"
    else:
        epoch = event.epoch
        left = (epoch.train_s + epoch.validation_s) * (shown.epochs - epoch.epoch)
        speed = f"{epoch.n_images / epoch.train_s:.0f} images/s" if epoch.train_s else ""
        now = f"epoch {min(epoch.epoch + 1, shown.epochs)}/{shown.epochs}"
        until = f"{duration(left)} left" if epoch.epoch < shown.epochs else "predicting"
        tail = f"  {now}  {speed}  best {state.best[task]:.1%}  {until}"
    label = shorten(_plain(shown.label), max(width - len(tail), 8), dots=dots)
    return Text((label + tail)[:width])


def _leading(state: _State) -> list[tuple[str, float, int]]:
    """Return the rows with the highest mean validation accuracy: name, mean, trainings."""
    means = [
        (row, sum(values) / len(values), len(values))
        for row, values in tuple(state.rows.items())
        if values
    ]
    return sorted(means, key=lambda mean: -mean[1])[:LEADING]


def _left(state: _State) -> float | None:
    """Return the remaining seconds: open epochs times mean epoch time, by the parallel trials."""
    if not state.epoch_s:
        return None
    n_epochs = 0
    for task, shown in enumerate(tuple(state.tasks)):
        if task not in state.ended:
            event = state.last.get(task)
            n_epochs += max(shown.epochs - (event.epoch.epoch if event and event.epoch else 0), 0)
    return n_epochs * sum(state.epoch_s) / len(state.epoch_s) / max(1, state.about.n_at_once)


def _note(state: _State, event: Event) -> _Line | None:
    """Update the state with an event, and return the line about it; None if there is no line."""
    shown = state.tasks[event.task]
    if event.kind == "started":
        state.started[event.task] = time.monotonic()
        state.last.pop(event.task, None)
        return None
    if event.kind == "epoch" and event.epoch is not None:
        state.last[event.task] = event
        epoch = event.epoch
        state.best[event.task] = max(epoch.validation_accuracy, state.best.get(event.task, 0.0))
        state.epoch_s.append(epoch.train_s + epoch.validation_s)
        return _Line(
            " " * 9,
            shown.label,
            f": epoch {epoch.epoch}/{shown.epochs}, loss {epoch.train_loss:.3f}, "
            f"validation {epoch.validation_accuracy:.1%}, {epoch.train_s:.1f} s",
            style="dim",
        )
    return _ended(state, event, shown) if event.kind == "ended" else None


def _ended(state: _State, event: Event, shown: Shown) -> _Line:
    state.started.pop(event.task, None)
    last = state.last.get(event.task)
    if event.retried:
        state.last.pop(event.task, None)
        return _Line("  retry  ", shown.label, f": {event.error}", style="yellow")
    state.ended.add(event.task)
    count = f"{len(state.ended):>3}/{max(len(state.tasks), state.about.n_tasks)}  "
    if event.status == "completed":
        if last is not None and last.epoch is not None:
            state.rows.setdefault(shown.row, []).append(last.epoch.validation_accuracy)
        accuracy = "-" if event.test_accuracy is None else f"{event.test_accuracy:.2%}"
        way = "" if event.images_from in (None, "device") else f", images from {event.images_from}"
        return _Line(
            count, shown.label, f": test accuracy {accuracy}, {event.duration_s or 0:.1f} s{way}"
        )
    status = STATUS.get(str(event.status), str(event.status))
    error = f": {event.error}" if event.error else ""
    if event.status == "stopped":
        return _Line(count, shown.label, f": {status}{error}", style="dim")
    state.n_failed += 1
    return _Line(count, shown.label, f": {status}{error}", style="red")
