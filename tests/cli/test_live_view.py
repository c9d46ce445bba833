from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from casting_tune.cli import live_view
from casting_tune.config import Epoch
from casting_tune.execution.ray_tune import Event

EPOCH = Epoch(
    epoch=1, n_images=10, n_steps=2, learning_rate=0.1, train_loss=0.5, validation_loss=0.4,
    validation_accuracy=0.75, train_s=2.0, validation_s=0.5,
)  # fmt: skip
EVENTS = [
    Event(task=0, kind="started"),
    Event(task=1, kind="started"),
    Event(task=0, kind="epoch", epoch=EPOCH),
    Event(task=0, kind="ended", status="completed", test_accuracy=0.9, duration_s=3.0),
    Event(task=1, kind="ended", status="error", error="RuntimeError: [/foo] broke", retried=True),
    Event(task=1, kind="started"),
    Event(task=1, kind="ended", status="error", error="RuntimeError: [/foo] broke"),
]


LONG = "a very long label of a cell, " * 6
ABOUT = live_view.About(
    sweep="grid", n_done=3, images="80 images, dataset abc", known={"old": [0.7]}, warning="copies!"
)


def shown(
    *, terminal: bool, width: int = 80, labels: tuple[str, str] = ("first [/foo]", "second")
) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=terminal, highlight=False, color_system=None
    )
    tasks = [live_view.Shown(label=label, row=label, epochs=1) for label in labels]
    with live_view.follow(console, ABOUT, tasks) as on_event:
        for event in EVENTS:
            on_event(event)
    return out.getvalue()


def test_without_a_terminal_every_epoch_and_every_ending_is_a_plain_line() -> None:
    lines = shown(terminal=False).splitlines()
    assert lines == [
        "         first [/foo]: epoch 1/1, loss 0.500, validation 75.0%, 2.0 s",
        "  1/2  first [/foo]: test accuracy 90.00%, 3.0 s",
        "  retry  second: RuntimeError: [/foo] broke",
        "  2/2  second: failed: RuntimeError: [/foo] broke",
    ]


def test_on_a_terminal_endings_stay_and_the_running_cells_are_live() -> None:
    text = shown(terminal=True)
    assert "1/2  first [/foo]: test accuracy 90.00%" in text
    assert "2/2  second: failed" in text


@pytest.mark.parametrize("width", [40, 80, 140])
def test_no_line_is_wider_than_the_terminal_and_what_matters_stays(width: int) -> None:
    text = re.sub(
        r"\x1b\[[?0-9;]*[A-Za-z]", "\n", shown(terminal=True, width=width, labels=(LONG, "second"))
    )
    lines = text.replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= width
    assert width < 80 or any(
        line.startswith("  1/2  a very") and line.endswith("test accuracy 90.00%, 3.0 s")
        for line in lines
    )


def screen(events: list[Event], *, width: int = 80, encoding: str = "utf-8") -> list[str]:
    """The lines of the live view after some events."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    state = live_view._State(
        about=ABOUT,
        tasks=[
            live_view.Shown(label=f"row {n} {LONG}", row=f"row {n}", epochs=4) for n in range(3)
        ],
        rows={"old": [0.7]},
    )
    for event in events:
        live_view._note(state, event)
    console.print(live_view._screen(state, console))
    out.flush()
    assert isinstance(out.buffer, io.BytesIO)
    return out.buffer.getvalue().decode(encoding).splitlines()


def test_the_live_view_has_a_header_running_cells_leading_rows_and_the_time_left() -> None:
    epoch = Event(task=1, kind="epoch", epoch=EPOCH)
    ended = Event(task=0, kind="ended", status="completed", test_accuracy=0.9)
    started = [Event(task=n, kind="started") for n in (0, 1)]
    lines = screen([*started, Event(task=0, kind="epoch", epoch=EPOCH), epoch, ended], width=100)
    assert lines[0] == "grid: 4 of 6 cells | 80 images, dataset abc"
    assert lines[1] == "copies!"
    assert lines[2].startswith("row 1 a very")
    assert lines[2].endswith(
        "  epoch 2/4  5 images/s  best 75.0%  8 s left"
    )  # three epochs of 2.5 s
    assert lines[3:5] == [
        "best on validation: row 0 75.0%, n = 1",
        "best on validation: old 70.0%, n = 1",
    ]
    assert lines[-1].endswith(" 1/3, about 18 s left")  # seven epochs of 2.5 s
    assert max(map(len, lines)) <= 100


def test_an_ascii_locale_gets_ascii_characters() -> None:
    assert screen([Event(task=0, kind="started")], encoding="ascii")[2].isascii()


@pytest.mark.parametrize(
    ("status", "words"),
    [("stopped", "stopped early"), ("timeout", "ran out of time"), ("oom", "ran out of memory")],
)
def test_every_status_has_a_text(status: str, words: str) -> None:
    state = live_view._State(about=ABOUT, tasks=[live_view.Shown(label="x", row="x", epochs=1)])
    line = live_view._note(state, Event(task=0, kind="ended", status=status))
    assert line is not None
    assert line.after == f": {words}"
    assert state.n_failed == (status != "stopped")


def test_a_label_is_shortened_in_its_middle() -> None:
    assert live_view.shorten("abcdefghij", 7) == "abc…hij"
    assert live_view.shorten("abcdefghij", 7, dots="..") == "abc..ij"
    assert live_view.shorten("abc", 3) == "abc"
    assert len(live_view.shorten("abcdef", 1)) == 1
