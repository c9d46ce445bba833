"""Expand a sweep file into labelled cells.

Input: a sweep's name or path, and the values of --quick, --only and --set. Output: a Sweep of
complete configurations. Types: `grid` (every combination), `cases` (named rows, each with every
combination of the axes), `ablation` (axes with two values: all first, all second, and one second
at a time), `one_at_a_time` (all first values, then one changed at a time), `repeats` (only the
axes seed and fold). Needs no images, torch or Ray.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from casting_tune.config import TrialConfig
from casting_tune.errors import UsageError
from casting_tune.planning import sweep_file, validate
from casting_tune.planning.cells import Cell, Search, Sweep
from casting_tune.planning.overrides import is_selected, parse_only, parse_set, selection_text
from casting_tune.planning.sections import Case, File, Settings, Study, When
from casting_tune.planning.sweep_file import as_text, check_setting
from casting_tune.toggles import TOGGLES

REPEATED = ("seed", "fold")  # the axes over which a row of a table is repeated
MAX_CELLS = 1_000_000

Labelled = tuple[list[str], Settings]
"""The values that label a cell, and its settings."""


def read(
    name: str,
    *,
    quick: bool = False,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Sweep:
    """Read a sweep by name or by path and expand it.

    Args:
        name: the name of a sweep of casting_tune or of ./sweeps, or the path of a TOML file.
        quick: apply the [quick] section of the file.
        only: `axis=value[,value]`: keep the cells with these values. Values of the same axis add
            up; conditions on different axes must all hold.
        overrides: `setting=value`: replace a setting that is not an axis.

    Raises:
        UsageError: sweep not found; an invalid key, name, type or value; an empty axis; two equal
            cells; no valid cell.
    """
    path = sweep_file.find(name)
    where = f"Sweep file {path.name}"
    file = sweep_file.read(path)
    if quick and "quick" not in file.model_fields_set:
        raise UsageError(f"{where} has no [quick] section. Add one, or remove --quick.")
    forced = parse_set(overrides, file)
    if file.search is not None:
        search = _search(file, forced, quick=quick, only=only, where=where)
        cells, invalid = list[Cell](), list[str]()
    else:
        search = None
        labelled = _select(file, quick=quick, only=only, where=where)
        cells, invalid = _cells(file, labelled, forced, quick=quick, where=where)
    return Sweep(
        name=path.stem,
        question=file.question,
        study_part=file.study_part,
        cells=tuple(cells),
        invalid=tuple(invalid),
        limits=file.limits,
        schedule=file.schedule,
        search=search,
    )


def search_config(search: Search, settings: Settings) -> TrialConfig:
    """Return the configuration of the settings that a search chose.

    Raises:
        UsageError: no network can be trained with these settings.
    """
    whole = _with_conditions({**search.fixed, **settings}, search.when)
    choice = ", ".join(f"{name} = {as_text(value)}" for name, value in settings.items())
    return validate.configure({**whole, **search.set}, f"{search.where}, {choice}")


def _search(
    file: File, forced: Settings, *, quick: bool, only: Sequence[str], where: str
) -> Search:
    assert file.search is not None
    if only:
        raise UsageError(
            f"--only {only[0]}: a search has no axes. Narrow [search.space] in {where}."
        )
    n_quick = file.quick.n_trials if quick else None
    return Search(
        n_trials=file.search.n_trials if n_quick is None else n_quick,
        seed=file.search.seed,
        objective=file.search.objective,
        space=file.search.space,
        fixed=file.fixed,
        when=tuple(file.when),
        set={**(file.quick.set if quick else {}), **forced},
        where=where,
    )


def _select(file: File, *, quick: bool, only: Sequence[str], where: str) -> list[Labelled]:
    """Return the cells of a file that --quick and --only keep."""
    labelled = [
        (labels, _with_conditions({**file.fixed, **varied}, file.when))
        for labels, varied in _expand(file, where)
    ]
    of_quick = file.quick.only if quick else {}
    selections = [parse_only(only, [settings for _, settings in labelled]), of_quick]
    kept = [cell for cell in labelled if all(is_selected(cell[1], one) for one in selections)]
    if not kept:
        options = [f"--quick ({selection_text(of_quick)})"] if of_quick else []
        options += [f"--only {text}" for text in only]
        raise UsageError(
            f"{where}: no cell matches {' and '.join(options)}. Use values that occur together."
        )
    return kept


def _cells(
    file: File, labelled: list[Labelled], forced: Settings, *, quick: bool, where: str
) -> tuple[list[Cell], list[str]]:
    """Return the valid cells, and one reason for each invalid one."""
    last = {**(file.quick.set if quick else {}), **forced}
    cells, errors = [], []
    for labels, settings in labelled:
        study = {} if forced else _figures(labels, settings, file.study, with_time=not quick)
        try:
            cells.append(_cell(labels, {**settings, **last}, study=study, where=where))
        except UsageError as error:
            errors.append(error)
    if not cells:
        raise errors[0]
    validate.check_unique(cells, where)
    validate.check_effect(forced, cells)
    return cells, [str(error) for error in errors]


def _cell(labels: list[str], settings: Settings, *, study: Mapping[str, float], where: str) -> Cell:
    row = ", ".join(labels) or str(settings.get("backbone"))
    repeats = [f"{name} {settings[name]}" for name in REPEATED if name in settings]
    config = validate.configure(settings, f"{where}, cell '{row}'")
    return Cell(row=row, label=", ".join([row, *repeats]), config=config, study=study)


def _figures(
    labels: list[str], settings: Settings, study: list[Study], *, with_time: bool
) -> dict[str, float]:
    """Return the study's figures of a row; its times are valid for its own image sizes only."""
    figures: dict[str, float] = {}
    for block in study:
        key = labels[0] if block.axis == "case" else as_text(settings.get(block.axis))
        values = block.rows.get(key)
        if values is not None and _matches(settings, block.match):
            figures |= dict(zip(block.columns, values, strict=True))
    return {name: value for name, value in figures.items() if with_time or name != "epoch_s"}


def _with_conditions(settings: Settings, conditions: Sequence[When]) -> Settings:
    """Return settings after each [[when]] that matches, in the order of the file."""
    settings = dict(settings)
    for condition in conditions:
        if _matches(settings, condition.match):
            settings.update(condition.set)
    return settings


def _matches(settings: Settings, match: Settings) -> bool:
    return all(settings.get(name) == value for name, value in match.items())


def _expand(file: File, where: str) -> Iterator[Labelled]:
    """Yield for every cell its labels and the settings that its axes and cases give it."""
    axes = {name: _values(name, values, where) for name, values in file.axes.items()}
    overlap = set(axes) & set(file.fixed)
    if overlap:
        raise UsageError(f"{where}: '{min(overlap)}' is in both [fixed] and [axes]. Keep one.")
    if file.cases and file.type != "cases":
        raise UsageError(f'{where}: [[cases]] requires type = "cases"; got "{file.type}".')
    count = math.prod(len(values) for values in axes.values()) * max(1, len(file.cases))
    if count > MAX_CELLS:
        raise UsageError(
            f"{where}: {count:,} cells exceed the limit of {MAX_CELLS:,}. "
            "Remove values from an axis."
        )
    repeated = {name: axes.pop(name) for name in list(axes) if name in REPEATED}
    for labels, settings in _COMBINATIONS[file.type](axes, file.cases, where):
        for values in itertools.product(*repeated.values()):
            yield labels, settings | dict(zip(repeated, values, strict=True))


def _values(name: str, values: list[Any], where: str) -> list[Any]:
    check_setting(name, where)
    if not values:
        raise UsageError(f"{where}: axis '{name}' is empty. Add a value, or remove the axis.")
    if name == "augmentation" and values == ["leave_one_out"]:
        return ["default", "additional", *(f"no {toggle}" for toggle in TOGGLES)]
    repeated = _repeated(values)
    if repeated:
        raise UsageError(f"{where}: axis '{name}' contains {repeated[0]!r} twice. Remove one.")
    return values


def _repeated(values: list[Any]) -> list[Any]:
    with contextlib.suppress(TypeError):  # a list among them has no hash
        if len(set(values)) == len(values):  # fast: an axis may have ten thousand seeds
            return []
    return [value for i, value in enumerate(values) if value in values[:i]]


def _grid(axes: dict[str, list[Any]], cases: list[Case], where: str) -> Iterator[Labelled]:
    del cases, where
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        yield _labels(settings), settings


def _cases(axes: dict[str, list[Any]], cases: list[Case], where: str) -> Iterator[Labelled]:
    if not cases:
        raise UsageError(f'{where}: type = "cases" requires at least one [[cases]].')
    for case in cases:
        for labels, settings in _grid(axes, [], where):
            yield [case.label, *labels], settings | case.set


def _ablation(axes: dict[str, list[Any]], cases: list[Case], where: str) -> Iterator[Labelled]:
    del cases
    if len(axes) < 2 or any(len(values) != 2 for values in axes.values()):
        raise UsageError(
            f'{where}: type = "ablation" requires at least two axes with two values each: '
            "[whole, ablated]."
        )
    whole = {name: values[0] for name, values in axes.items()}
    yield ["all"], whole
    yield ["none"], {name: values[1] for name, values in axes.items()}
    for name, values in axes.items():
        yield [f"no {name}"], {**whole, name: values[1]}


def _one_at_a_time(axes: dict[str, list[Any]], cases: list[Case], where: str) -> Iterator[Labelled]:
    del cases, where
    base = {name: values[0] for name, values in axes.items()}
    yield ["base"], base
    for name, values in axes.items():
        for value in values[1:]:
            yield _labels({name: value}), {**base, name: value}


def _repeats(axes: dict[str, list[Any]], cases: list[Case], where: str) -> Iterator[Labelled]:
    del cases
    if axes:
        raise UsageError(
            f"{where}: type = \"repeats\" supports only the axes seed and fold; got '{min(axes)}'."
        )
    yield [], {}


_COMBINATIONS = {
    "grid": _grid,
    "cases": _cases,
    "ablation": _ablation,
    "one_at_a_time": _one_at_a_time,
    "repeats": _repeats,
}


def _labels(settings: Settings) -> list[str]:
    return [
        _label(value) if isinstance(value, str) else f"{name.replace('_size', '')} {as_text(value)}"
        for name, value in settings.items()
    ]


def _label(value: str) -> str:
    """Return a text value for a label; of a weights folder only its name, since labels are stored.

    A full path would show private details of the machine to readers of the results.
    """
    kind, colon, path = value.partition(":")
    return f"{kind}:{PurePath(path).name}" if colon and kind == "local-dir" else value
