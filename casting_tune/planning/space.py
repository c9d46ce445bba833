"""Expands a sweep file into labelled cells.

Comes in: a sweep's name or path, and what the command line picks and sets. Goes out: a Sweep of
finished cells. Types: `grid` (every combination), `cases` (named rows, each with every combination
of the axes), `ablation` (axes of two values: all first, all second, and one second at a time),
`one_at_a_time` (all first values, then one changed at a time), `repeats` (an axis `seed`, nothing
else). Knows no images, torch or Ray.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from pathlib import PurePath
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from casting_tune.config import TrialConfig
from casting_tune.errors import UsageError, unknown
from casting_tune.models import input_size, registry
from casting_tune.planning import sweep_file
from casting_tune.planning.sweep_file import (
    Case,
    File,
    Limits,
    Range,
    Schedule,
    Settings,
    Study,
    When,
    check_setting,
    check_settings,
)
from casting_tune.toggles import MAGNITUDES, TOGGLES, parse_augmentation

REPEATED = ("seed", "fold")  # the axes over which a row of a table is repeated


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One labelled configuration of a sweep.

    Attributes:
        row: the cell's label without seed and fold: the row of a table that it belongs to.
        label: row, then seed and fold where the sweep varies them.
        config: the whole configuration.
        study: the study's published figures for it, by name: accuracy and recall in per cent, f1, epoch_s in seconds;
            "@0.2" is at that threshold on P(ok_front), "mean_" and "sd_" are over the study's ten trainings.
        kind: a cell of the file, a baseline that learns nothing, or a short pass that only times.
    """

    row: str
    label: str
    config: TrialConfig
    study: Mapping[str, float] = field(default_factory=dict)
    kind: Literal["cell", "baseline", "timing"] = "cell"


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What a search varies and by what it chooses; see `sweepfile.Search`.

    `fixed`, `when` and `set` are the rest.
    """

    n_trials: int
    seed: int
    objective: Mapping[str, Literal["min", "max"]]
    space: Mapping[str, Range]
    fixed: Settings
    when: tuple[When, ...]
    set: Settings
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A sweep file, read and expanded; the cells of a search are not known before.

    Attributes:
        invalid: the cells whose settings do not go together, each with the reason; none of them is in `cells`.
    """

    name: str
    question: str
    study_part: str
    cells: tuple[Cell, ...]
    invalid: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    schedule: Schedule = field(default_factory=Schedule)
    search: Search | None = None

    @property
    def n_cells(self) -> int:
        """How many cells it comes to; a search says so itself."""
        return len(self.cells) if self.search is None else self.search.n_trials


def read(
    name: str,
    *,
    quick: bool = False,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Sweep:
    """Read a sweep by name or by path and expand it.

    Args:
        name: the name of a sweep that comes with casting_tune or lies in ./sweeps, or the path of a TOML file.
        quick: apply the file's [quick] section.
        only: `axis=value[,value]`: keep the cells with these values. Several of one axis add up; those of different
            axes must all hold.
        overrides: `setting=value`: replace a setting that is not an axis.

    Raises:
        UsageError: no such sweep, a key, name, type or value that cannot be meant, an empty axis, a doubled cell, no
            valid cell.
    """
    path = sweep_file.find(name)
    where = f"Sweep file {path.name}"
    part = sweep_file.read(path)
    if quick and "quick" not in part.model_fields_set:
        raise UsageError(
            f"{where} has no [quick] section, so --quick would change nothing. Add one, or drop --quick."
        )
    forced = _overrides(overrides, part)
    if part.search is not None:
        return _searching(path.stem, part, forced, quick=quick, only=only, where=where)
    rows: list[tuple[list[str], Settings]] = []
    for labels, varied in _expand(part, where):
        settings = {**part.fixed, **varied}
        for condition in part.when:
            if _matches(settings, condition.match):
                settings.update(condition.set)
        rows.append((labels, settings))
    picks = [_only(only, rows), part.quick.only if quick else {}]
    rows = [row for row in rows if all(_picked(row[1], pick) for pick in picks)]
    if not rows:
        quick_only = (
            [f"--quick (which keeps {_listed(part.quick.only)})"]
            if quick and part.quick.only
            else []
        )
        raise UsageError(
            f"{where}: no cell is left after {' '.join([*quick_only, *(f'--only {text}' for text in only)])}. "
            "Name values that occur together."
        )
    changed = {**(part.quick.set if quick else {}), **forced}
    cells, invalid = [], []
    for labels, settings in rows:
        study = {} if forced else _figures(labels, settings, part.study, timed=not quick)
        try:
            cells.append(_cell(labels, {**settings, **changed}, study=study, where=where))
        except UsageError as error:
            invalid.append(error)
    if not cells:
        raise invalid[0]
    _check_doubled(cells, where)
    _check_heeded(forced, cells)
    return Sweep(
        name=path.stem,
        question=part.question,
        study_part=part.study_part,
        cells=tuple(cells),
        invalid=tuple(map(str, invalid)),
        limits=part.limits,
        schedule=part.schedule,
    )


def check(sweep: Sweep) -> None:
    """Raise UsageError where a sweep has invalid cells: the first reason, and how many more there are."""
    n = len(sweep.invalid)
    if n:
        others = (
            f" {n} cells are invalid in all: --plan lists them, --only leaves them out."
            if n > 1
            else ""
        )
        raise UsageError(f"{sweep.invalid[0]}{others}")


def sized(sweep: Sweep) -> Sweep:
    """Return a sweep with those cells among the invalid whose batches do not go through their network in training.

    For most `timm:` networks and for batches of one image that needs torch and timm, whose import
    takes seconds; the sizes of the other backbones `read` has checked.

    Raises:
        UsageError: no cell is left.
    """
    cells, invalid = [], list(sweep.invalid)
    for cell in sweep.cells:
        try:
            input_size.check_size(cell.config.backbone, cell.config.image_px)
            input_size.check_batch(
                cell.config.backbone, cell.config.image_px, cell.config.batch_size
            )
            cells.append(cell)
        except UsageError as error:
            invalid.append(str(error))
    if sweep.cells and not cells:
        raise UsageError(invalid[0])
    return replace(sweep, cells=tuple(cells), invalid=tuple(invalid))


def _searching(
    name: str, part: File, forced: Settings, *, quick: bool, only: Sequence[str], where: str
) -> Sweep:
    assert part.search is not None
    if only:
        raise UsageError(
            f"--only {only[0]}: a search has no axes. Narrow [search.space] in {where}."
        )
    n_trials = (
        part.quick.n_trials if quick and part.quick.n_trials is not None else part.search.n_trials
    )
    search = Search(
        n_trials=n_trials,
        seed=part.search.seed,
        objective=part.search.objective,
        space=part.search.space,
        fixed=part.fixed,
        when=tuple(part.when),
        set={**(part.quick.set if quick else {}), **forced},
        where=where,
    )
    return Sweep(
        name=name,
        question=part.question,
        study_part=part.study_part,
        cells=(),
        limits=part.limits,
        schedule=part.schedule,
        search=search,
    )


def chosen(search: Search, settings: Settings) -> TrialConfig:
    """Return the configuration that a search's choice of settings comes to.

    Raises:
        UsageError: a choice that no network can be trained with.
    """
    whole = {**search.fixed, **settings}
    for condition in search.when:
        if _matches(whole, condition.match):
            whole.update(condition.set)
    told = ", ".join(f"{name} = {_text(value)}" for name, value in settings.items())
    return configure({**whole, **search.set}, f"{search.where}, {told}")


def _expand(part: File, where: str) -> Iterator[tuple[list[str], Settings]]:
    """Yield for every cell the values that label it and the settings that the axes and cases give it."""
    axes = {name: _values(name, values, where) for name, values in part.axes.items()}
    overlap = set(axes) & set(part.fixed)
    if overlap:
        raise UsageError(f"{where}: '{min(overlap)}' stands in [fixed] and in [axes]. Keep one.")
    if part.cases and part.type != "cases":
        raise UsageError(f'{where}: [[cases]] needs type = "cases", not "{part.type}".')
    count = math.prod(len(values) for values in axes.values()) * max(1, len(part.cases))
    if count > 1_000_000:
        raise UsageError(
            f"{where}: {count:,} cells are more than a million. Take values from an axis."
        )
    repeated = {name: axes.pop(name) for name in list(axes) if name in REPEATED}
    for labels, settings in _COMBINATIONS[part.type](axes, part.cases, where):
        for values in itertools.product(*repeated.values()):
            yield labels, settings | dict(zip(repeated, values, strict=True))


def _values(name: str, values: list[Any], where: str) -> list[Any]:
    check_setting(name, where)
    if not values:
        raise UsageError(
            f"{where}: axis '{name}' is empty. Give it at least one value, or take it out."
        )
    if name == "augmentation" and values == ["leave_one_out"]:
        return ["default", "additional", *(f"no {toggle}" for toggle in TOGGLES)]
    doubled = _doubled(values)
    if doubled:
        raise UsageError(f"{where}: axis '{name}' holds {doubled[0]!r} twice.")
    return values


def _doubled(values: list[Any]) -> list[Any]:
    with contextlib.suppress(TypeError):  # a list among them has no hash
        if len(set(values)) == len(values):  # ten thousand seeds are no rarity
            return []
    return [value for i, value in enumerate(values) if value in values[:i]]


def _grid(
    axes: dict[str, list[Any]], cases: list[Case], where: str
) -> Iterator[tuple[list[str], Settings]]:
    del cases, where
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        yield _labels(settings), settings


def _cases(
    axes: dict[str, list[Any]], cases: list[Case], where: str
) -> Iterator[tuple[list[str], Settings]]:
    if not cases:
        raise UsageError(f'{where}: type = "cases" needs at least one [[cases]].')
    for case in cases:
        for labels, settings in _grid(axes, [], where):
            yield [case.label, *labels], settings | case.set


def _ablation(
    axes: dict[str, list[Any]], cases: list[Case], where: str
) -> Iterator[tuple[list[str], Settings]]:
    del cases
    wrong = [name for name, values in axes.items() if len(values) != 2]
    if wrong or len(axes) < 2:
        raise UsageError(
            f"{where}: an ablation takes two or more axes of two values each, [whole, ablated]."
        )
    whole = {name: values[0] for name, values in axes.items()}
    yield ["all"], whole
    yield ["none"], {name: values[1] for name, values in axes.items()}
    for name, values in axes.items():
        yield [f"no {name}"], {**whole, name: values[1]}


def _one_at_a_time(
    axes: dict[str, list[Any]], cases: list[Case], where: str
) -> Iterator[tuple[list[str], Settings]]:
    del cases, where
    base = {name: values[0] for name, values in axes.items()}
    yield ["base"], base
    for name, values in axes.items():
        for value in values[1:]:
            yield _labels({name: value}), {**base, name: value}


def _repeats(
    axes: dict[str, list[Any]], cases: list[Case], where: str
) -> Iterator[tuple[list[str], Settings]]:
    del cases
    if axes:
        raise UsageError(
            f"{where}: type = \"repeats\" takes the axes seed and fold alone, not '{min(axes)}'."
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
        _word(value) if isinstance(value, str) else f"{name.replace('_size', '')} {_text(value)}"
        for name, value in settings.items()
    ]


def _word(value: str) -> str:
    """Return a value as a label has it: of a folder of weights the name alone, since labels go into the store."""
    kind, colon, path = value.partition(":")
    return f"{kind}:{PurePath(path).name}" if colon and kind == "local-dir" else value


def _matches(settings: Settings, match: Settings) -> bool:
    return all(settings.get(name) == value for name, value in match.items())


def _picked(settings: Settings, pick: Mapping[str, list[Any]]) -> bool:
    return all(settings.get(name) in values for name, values in pick.items())


def _only(only: Sequence[str], rows: list[tuple[list[str], Settings]]) -> dict[str, list[Any]]:
    """Return the values that are kept of each axis that --only names."""
    picks: dict[str, list[Any]] = {}
    for text in only:
        name, equals, listed = text.partition("=")
        if not equals or not listed:
            raise UsageError(f"--only takes axis=value[,value], not '{text}'.")
        check_setting(name, "--only")
        present = [settings[name] for _, settings in rows if name in settings]
        known = list(dict.fromkeys(present))
        by_text = {_text(value): value for value in known}
        if not known:
            raise UsageError(f"--only: '{name}' is the same for every cell of this sweep.")
        missing = [value for value in listed.split(",") if value not in by_text]
        if missing:
            raise UsageError(f"--only: {unknown(f'value of {name}', missing[0], by_text)}")
        picks.setdefault(name, []).extend(by_text[value] for value in listed.split(","))
    return picks


def _listed(picks: Mapping[str, list[Any]]) -> str:
    return ", ".join(f"{name}={','.join(map(_text, values))}" for name, values in picks.items())


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _overrides(overrides: Sequence[str], part: File) -> Settings:
    forced: Settings = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set takes setting=value, not '{text}'.")
        check_setting(name, "--set")
        if name in forced:
            raise UsageError(f"--set: '{name}' is set twice.")
        if part.search is not None and name in part.search.space:
            raise UsageError(
                f"--set: '{name}' is searched by this sweep. Narrow [search.space] instead."
            )
        if name in part.axes:
            raise UsageError(
                f"--set: '{name}' is an axis of this sweep. Pick its values with --only {name}=..."
            )
        try:
            forced[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            forced[name] = value  # a bare word is a string
    return forced


def _cell(labels: list[str], settings: Settings, *, study: Mapping[str, float], where: str) -> Cell:
    row = ", ".join(labels) or str(settings.get("backbone"))
    repeats = [f"{name} {settings[name]}" for name in REPEATED if name in settings]
    config = configure(settings, f"{where}, cell '{row}'")
    return Cell(row=row, label=", ".join([row, *repeats]), config=config, study=study)


def _figures(
    labels: list[str], settings: Settings, study: list[Study], *, timed: bool
) -> dict[str, float]:
    """Return the study's figures of a row; its times belong to its own image sizes alone."""
    figures: dict[str, float] = {}
    for block in study:
        values = block.rows.get(
            labels[0] if block.axis == "case" else _text(settings.get(block.axis))
        )
        if values is not None and _matches(settings, block.match):
            figures |= dict(zip(block.columns, values, strict=True))
    return {name: value for name, value in figures.items() if timed or name != "epoch_s"}


def configure(settings: Settings, where: str) -> TrialConfig:
    """Make the configuration of a cell from its settings.

    Raises:
        UsageError: an unknown setting, a wrong type, a value out of range.
    """
    check_settings(settings, where)
    augmentation = settings.get("augmentation", "default")
    if not isinstance(augmentation, str):
        raise UsageError(
            f'{where}: augmentation is text such as "default" or "no rotation", not {augmentation!r}.'
        )
    toggles = set(parse_augmentation(augmentation))
    plain: Settings = {}
    for name, value in settings.items():
        if name in TOGGLES:
            if not isinstance(value, bool):
                raise UsageError(f"{where}: toggle '{name}' is true or false, not {value!r}.")
            toggles = toggles | {name} if value else toggles - {name}
        elif name != "augmentation":
            plain[name] = value
    if "backbone" not in plain:
        raise UsageError(f"{where}: no backbone is set. Add it to [fixed] or [axes].")
    plain["toggles"] = tuple(name for name in TOGGLES if name in toggles)
    try:
        checked = _checked().model_validate(plain).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        setting = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{where}: {setting}: {first['msg']}, not {first['input']!r}.") from error
    # how strong a toggle is that is off changes nothing, and so must not make another cell
    without_effect = [name for name, toggle in MAGNITUDES.items() if toggle not in toggles]
    config = TrialConfig(
        **{name: value for name, value in checked.items() if name not in without_effect}
    )
    registry.check_name(config.backbone)
    if config.backbone in registry.BACKBONES:  # the others need torch: see `sized`
        input_size.check_size(config.backbone, config.image_px)
    _check_weights(config, where)
    if config.fold and (config.split != "grouped" or config.fold >= config.n_folds):
        raise UsageError(
            f'{where}: fold {config.fold} is not there: split = "official" has fold 0 alone, '
            f'split = "grouped" has 0 to n_folds - 1 (n_folds = {config.n_folds}).'
        )
    return config


@cache
def _checked() -> type[BaseModel]:
    """Return a pydantic model with the fields, types and ranges of TrialConfig."""
    types = get_type_hints(TrialConfig, include_extras=True)
    given: dict[str, Any] = {
        f.name: (types[f.name], ... if f.default is MISSING else f.default)
        for f in fields(TrialConfig)
    }
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return create_model("Settings", __config__=config, **given)


def _check_weights(config: TrialConfig, where: str) -> None:
    kind, colon, path = config.weights.partition(":")
    if kind not in ("imagenet", "none", "local-dir") or (kind == "local-dir") != bool(
        colon and path
    ):
        raise UsageError(
            f"{where}: weights are 'imagenet', 'none' or 'local-dir:DIR', not '{config.weights}'."
        )


def _check_doubled(cells: Iterable[Cell], where: str) -> None:
    seen: dict[TrialConfig, str] = {}
    labels: set[str] = set()
    for cell in cells:
        if cell.label in labels:
            raise UsageError(f"{where}: two cells are called '{cell.label}'. Name each row once.")
        labels.add(cell.label)
        if cell.config in seen:
            raise UsageError(
                f"{where}: cells '{seen[cell.config]}' and '{cell.label}' are the same training. Take one out."
            )
        seen[cell.config] = cell.label


def _check_heeded(forced: Settings, cells: Sequence[Cell]) -> None:
    """Raise UsageError for a setting of --set that changes nothing in any cell."""
    for name in forced:
        toggle = MAGNITUDES.get(name)
        if toggle and not any(toggle in cell.config.toggles for cell in cells):
            raise UsageError(
                f"--set {name} has no effect: '{toggle}' is off in every cell. Turn it on, or drop it."
            )
        if name == "n_folds" and all(cell.config.split != "grouped" for cell in cells):
            raise UsageError(
                '--set n_folds has no effect: no cell has split = "grouped". Set that too, or drop it.'
            )


def resolve(
    cell: Cell, *, weights_id: str, split_id: str, precision: Literal["fp32", "bf16"]
) -> Cell:
    """Return the cell with what only machine and images can tell: weights, groups, what `auto` precision means."""
    config = cell.config
    return replace(
        cell,
        config=replace(
            config,
            weights_id=weights_id,
            split_id=split_id if config.split == "grouped" else config.split_id,
            precision=precision if config.precision == "auto" else config.precision,
        ),
    )
