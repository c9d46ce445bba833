"""Check the settings of cells, and the cells of a sweep.

Input: settings by name. Output: a TrialConfig, or a UsageError that names the file and the cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields, replace
from functools import cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from casting_tune.config import TrialConfig
from casting_tune.errors import UsageError
from casting_tune.models import input_size, registry
from casting_tune.planning.cells import Cell, Sweep
from casting_tune.planning.sections import Settings
from casting_tune.planning.sweep_file import check_settings
from casting_tune.toggles import MAGNITUDES, TOGGLES, parse_augmentation


def configure(settings: Settings, where: str) -> TrialConfig:
    """Make the configuration of a cell from its settings.

    Raises:
        UsageError: an unknown setting, a wrong type, or a value out of range.
    """
    check_settings(settings, where)
    if "backbone" not in settings:
        raise UsageError(f"{where}: backbone is missing. Add it to [fixed] or [axes].")
    toggles = _toggles(settings, where)
    plain = {
        name: value
        for name, value in settings.items()
        if name != "augmentation" and name not in TOGGLES
    }
    try:
        checked = _model().model_validate({**plain, "toggles": toggles}).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        setting = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{where}: {setting}: {first['msg']}; got {first['input']!r}.") from error
    # the strength of a toggle that is off has no effect, so it must not make another cell
    unused = [name for name, toggle in MAGNITUDES.items() if toggle not in toggles]
    config = TrialConfig(**{name: value for name, value in checked.items() if name not in unused})
    registry.check_name(config.backbone)
    if config.backbone in registry.BACKBONES:  # other backbones need torch: `check_sizes`
        input_size.check_size(config.backbone, config.image_px)
    _check_weights(config, where)
    _check_fold(config, where)
    return config


def _toggles(settings: Settings, where: str) -> tuple[str, ...]:
    """Return the toggles that are on, in the order of TOGGLES."""
    augmentation = settings.get("augmentation", "default")
    if not isinstance(augmentation, str):
        raise UsageError(
            f'{where}: augmentation must be text such as "default" or "no rotation"; '
            f"got {augmentation!r}."
        )
    on = set(parse_augmentation(augmentation))
    for name, value in settings.items():
        if name in TOGGLES:
            if not isinstance(value, bool):
                raise UsageError(f"{where}: toggle '{name}' must be true or false; got {value!r}.")
            on = on | {name} if value else on - {name}
    return tuple(name for name in TOGGLES if name in on)


@cache
def _model() -> type[BaseModel]:
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
    with_path = kind == "local-dir"
    if kind not in ("imagenet", "none", "local-dir") or with_path != bool(colon and path):
        raise UsageError(
            f"{where}: weights must be 'imagenet', 'none' or 'local-dir:DIR'; "
            f"got '{config.weights}'."
        )


def _check_fold(config: TrialConfig, where: str) -> None:
    if config.split != "grouped" and config.fold:
        raise UsageError(
            f'{where}: fold must be 0 with split = "{config.split}"; got {config.fold}. '
            'Use split = "grouped" for folds.'
        )
    if config.fold >= config.n_folds:
        raise UsageError(
            f"{where}: fold must be less than n_folds = {config.n_folds}; got {config.fold}."
        )


def check(sweep: Sweep) -> None:
    """Raise UsageError if a sweep has invalid cells: the first reason, and how many there are."""
    n = len(sweep.invalid)
    if n:
        total = f" {n} cells are invalid in total: --plan lists them, --only excludes them."
        raise UsageError(f"{sweep.invalid[0]}{total if n > 1 else ''}")


def check_sizes(sweep: Sweep) -> Sweep:
    """Return a sweep in which cells whose image or batch size does not fit the network are invalid.

    For most `timm:` networks and for batches of one image this needs torch and timm, whose import
    takes seconds. `expand.read` has checked the sizes of the other backbones.

    Raises:
        UsageError: no valid cell is left.
    """
    cells, invalid = [], list(sweep.invalid)
    for cell in sweep.cells:
        config = cell.config
        try:
            input_size.check_size(config.backbone, config.image_px)
            input_size.check_batch(config.backbone, config.image_px, config.batch_size)
            cells.append(cell)
        except UsageError as error:
            invalid.append(str(error))
    if sweep.cells and not cells:
        raise UsageError(invalid[0])
    return replace(sweep, cells=tuple(cells), invalid=tuple(invalid))


def check_unique(cells: Iterable[Cell], where: str) -> None:
    """Raise UsageError if two cells have the same label or the same configuration."""
    seen: dict[TrialConfig, str] = {}
    labels: set[str] = set()
    for cell in cells:
        if cell.label in labels:
            raise UsageError(
                f"{where}: two cells have the label '{cell.label}'. Use different labels."
            )
        labels.add(cell.label)
        if cell.config in seen:
            raise UsageError(
                f"{where}: cells '{seen[cell.config]}' and '{cell.label}' have the same "
                "configuration. Remove one."
            )
        seen[cell.config] = cell.label


def check_effect(forced: Settings, cells: Sequence[Cell]) -> None:
    """Raise UsageError for a setting of --set that has no effect in any cell."""
    for name in forced:
        toggle = MAGNITUDES.get(name)
        if toggle and not any(toggle in cell.config.toggles for cell in cells):
            raise UsageError(
                f"--set {name} has no effect: '{toggle}' is off in every cell. "
                f"Turn it on, or remove --set {name}."
            )
        if name == "n_folds" and all(cell.config.split != "grouped" for cell in cells):
            raise UsageError(
                '--set n_folds has no effect: no cell has split = "grouped". '
                "Set split too, or remove --set n_folds."
            )
