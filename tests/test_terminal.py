from __future__ import annotations

import pytest

from casting_tune import terminal


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say(terminal.console(), "a\x1b[31mb[/foo]")
    terminal.grid(["name\x07"[:4]], [["x\x1b[2Jy"]])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "a?[31mb[/foo]" in out
    assert "x?[2Jy" in out


def test_values_read_as_a_person_writes_them() -> None:
    assert [terminal.cell(value) for value in (True, 1234567, "x")] == ["yes", "1,234,567", "x"]
