from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from casting_tune.cli import console


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.say(console.console(), "a\x1b[31mb[/foo]")
    console.grid(["name\x07"[:4]], [["x\x1b[2Jy"]])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "a?[31mb[/foo]" in out
    assert "x?[2Jy" in out


@dataclass(frozen=True)
class Found:
    rate: float
    when: datetime


def test_json_knows_frames_times_paths_and_numbers_and_never_says_nan(
    capsys: pytest.CaptureFixture[str],
) -> None:
    frame = pd.DataFrame(
        {"a": [1.5, float("nan")], "t": [pd.Timestamp("2026-01-02", tz="UTC"), pd.NaT]}
    )
    value = {
        "frame": frame,
        "found": Found(rate=float("inf"), when=datetime(2026, 1, 2, tzinfo=UTC)),
        "numbers": [np.float32(0.5), np.int64(3), np.array([True])],
        "path": Path("a/b"),
        "text": "\x1b[31m",
    }
    console.write_json(value)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert json.loads(out) == {
        "frame": [{"a": 1.5, "t": "2026-01-02T00:00:00+00:00"}, {"a": None, "t": None}],
        "found": {"rate": None, "when": "2026-01-02T00:00:00+00:00"},
        "numbers": [0.5, 3, [True]],
        "path": "a/b",
        "text": "\x1b[31m",
    }


def test_values_read_as_a_person_writes_them() -> None:
    assert [console.cell(value) for value in (True, 1234567, "x")] == ["yes", "1,234,567", "x"]


def test_records_are_shown_once_line_by_line_and_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("casting_tune.somewhere")
    with console.records(), console.records():
        logger.info("first\n\x1b[31msecond")
        logger.debug("too fine")
    logger.warning("nobody asked")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" INFO ")[2] or line for line in lines] == [
        "casting_tune.somewhere: first",
        "?[31msecond",
    ]
    assert logging.getLogger("casting_tune").level == logging.NOTSET
