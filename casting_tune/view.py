"""What a person sees while a sweep works: one live view on a terminal, plain lines everywhere else.

Comes in: the plan's labels and scheduling's Events. Goes out: lines on a rich console that cli made. Decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid
from rich.text import Text

from casting_tune.scheduling import Event


@dataclass(slots=True)
class _State:
    """What is going on: the running cells, and the counts of what has ended."""

    labels: Sequence[str]
    epochs: Sequence[int]
    started: dict[int, float] = field(default_factory=dict)
    last: dict[int, Event] = field(default_factory=dict)
    n_ended: int = 0
    n_failed: int = 0


@contextmanager
def follow(console: Console, labels: Sequence[str], epochs: Sequence[int]) -> Iterator[Callable[[Event], None]]:
    """Give a function that shows Events: a live view on a terminal, else a line an epoch and a line a trial.

    Args:
        console: where to write.
        labels: a label a task.
        epochs: how many epochs each task trains.
    """
    state = _State(labels=labels, epochs=epochs)
    if not console.is_terminal:
        yield lambda event: _plain_line(console, state, event)
        return
    bar = Progress(
        TextColumn("[bold]trials[/bold]"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, expand=True,
    )  # fmt: skip
    total = bar.add_task("trials", total=len(labels))
    with Live(console=console, refresh_per_second=4, transient=True, get_renderable=lambda: _screen(state, bar)):

        def show(event: Event) -> None:
            line = _note(state, event)
            if line is not None and event.kind == "ended":
                console.print(line)
            bar.update(total, completed=state.n_ended)

        yield show


def _screen(state: _State, bar: Progress) -> Group:
    grid = Grid.grid(padding=(0, 2))
    for task in sorted(state.started):
        grid.add_row(*_running(state, task))
    return Group(grid, bar)


def _running(state: _State, task: int) -> tuple[str, str, str, str]:
    event, n_epochs = state.last.get(task), state.epochs[task]
    seconds = time.monotonic() - state.started[task]
    label = escape(state.labels[task])
    if event is None or event.epoch is None:
        return label, f"epoch 1/{n_epochs}", "", f"{seconds:.0f} s"
    epoch = event.epoch
    speed = f"{epoch.n_images / epoch.train_s:.0f} images/s"
    left = (epoch.train_s + epoch.validation_s) * (n_epochs - epoch.epoch)
    now = f"epoch {min(epoch.epoch + 1, n_epochs)}/{n_epochs}"
    return label, now, f"val {epoch.validation_accuracy:.1%}  {speed}", f"{left:.0f} s left"


def _plain_line(console: Console, state: _State, event: Event) -> None:
    line = _note(state, event)
    if line is not None:
        console.print(line, soft_wrap=True)


def _note(state: _State, event: Event) -> Text | None:
    """Take an event into account and return the line that tells of it, None where there is nothing to tell."""
    label = state.labels[event.task]
    if event.kind == "started":
        state.started[event.task] = time.monotonic()
        state.last.pop(event.task, None)
        return None
    if event.kind == "epoch" and event.epoch is not None:
        state.last[event.task] = event
        epoch = event.epoch
        return Text(
            f"         {label}: epoch {epoch.epoch}/{state.epochs[event.task]}, loss {epoch.train_loss:.3f}, "
            f"validation {epoch.validation_accuracy:.1%}, {epoch.train_s:.1f} s",
            style="dim",
        )
    state.started.pop(event.task, None)
    return _ended(state, event, label)


def _ended(state: _State, event: Event, label: str) -> Text:
    if event.retried:
        return Text(f"  retry  {label}: {event.error}", style="yellow")
    state.n_ended += 1
    count = f"{state.n_ended:>3}/{len(state.labels)}"
    if event.status == "completed":
        accuracy = "-" if event.test_accuracy is None else f"{event.test_accuracy:.2%}"
        return Text(f"{count}  {label}: test accuracy {accuracy}, {event.duration_s or 0:.1f} s")
    state.n_failed += 1
    return Text(f"{count}  {label}: {event.status}: {event.error}", style="red")
