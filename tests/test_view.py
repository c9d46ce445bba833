from __future__ import annotations

import io

from rich.console import Console

from casting_tune import view
from casting_tune.scheduling import Event
from casting_tune.trial import Epoch

EPOCH = Epoch(
    epoch=1, n_images=10, n_steps=2, learning_rate=0.1, train_loss=0.5, validation_loss=0.4, validation_accuracy=0.75,
    train_s=2.0, validation_s=0.5,
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


def shown(*, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=terminal, highlight=False, color_system=None)
    with view.follow(console, ["first [/foo]", "second"], [1, 1]) as on_event:
        for event in EVENTS:
            on_event(event)
    return out.getvalue()


def test_without_a_terminal_every_epoch_and_every_ending_is_a_plain_line() -> None:
    lines = shown(terminal=False).splitlines()
    assert lines == [
        "         first [/foo]: epoch 1/1, loss 0.500, validation 75.0%, 2.0 s",
        "  1/2  first [/foo]: test accuracy 90.00%, 3.0 s",
        "  retry  second: RuntimeError: [/foo] broke",
        "  2/2  second: error: RuntimeError: [/foo] broke",
    ]


def test_on_a_terminal_endings_stay_and_the_running_cells_are_live() -> None:
    text = shown(terminal=True)
    assert "1/2  first [/foo]: test accuracy 90.00%" in text
    assert "2/2  second: error" in text
