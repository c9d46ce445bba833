"""The options --only and --set: select cells and override settings of a sweep file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from casting_tune.errors import UsageError, unknown
from casting_tune.planning.sections import File, Settings
from casting_tune.planning.sweep_file import as_text, check_setting

Selection = Mapping[str, list[Any]]
"""The values to keep, by axis."""


def parse_only(only: Sequence[str], settings_of_cells: Sequence[Settings]) -> Selection:
    """Return the values that --only keeps of each axis.

    Raises:
        UsageError: not `axis=value[,value]`, or an axis or value that no cell has.
    """
    selection: dict[str, list[Any]] = {}
    for text in only:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise UsageError(f"--only requires axis=value[,value]; got '{text}'.")
        check_setting(name, "--only")
        present = [settings[name] for settings in settings_of_cells if name in settings]
        by_text = {as_text(value): value for value in present}
        if not present:
            raise UsageError(
                f"--only: '{name}' is the same for every cell of this sweep. Remove it."
            )
        missing = [value for value in values.split(",") if value not in by_text]
        if missing:
            raise UsageError(f"--only: {unknown(f'value of {name}', missing[0], by_text)}")
        selection.setdefault(name, []).extend(by_text[value] for value in values.split(","))
    return selection


def parse_set(overrides: Sequence[str], file: File) -> Settings:
    """Return the settings that --set overrides.

    Raises:
        UsageError: not `setting=value`, an unknown setting, or one that the sweep varies.
    """
    settings: Settings = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set requires setting=value; got '{text}'.")
        check_setting(name, "--set")
        if name in settings:
            raise UsageError(f"--set: '{name}' is set twice. Keep one.")
        if file.search is not None and name in file.search.space:
            raise UsageError(f"--set: '{name}' is searched. Narrow [search.space] instead.")
        if name in file.axes:
            raise UsageError(
                f"--set: '{name}' is an axis of this sweep. Select values with --only {name}=..."
            )
        try:
            settings[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[name] = value  # a bare word is a string
    return settings


def is_selected(settings: Settings, selection: Selection) -> bool:
    """Say whether a cell with these settings has a selected value on every selected axis."""
    return all(settings.get(name) in values for name, values in selection.items())


def selection_text(selection: Selection) -> str:
    """Return a selection as a person writes it: batch_size=4,8."""
    parts = (f"{name}={','.join(map(as_text, values))}" for name, values in selection.items())
    return ", ".join(parts)
