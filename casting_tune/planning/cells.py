"""What a sweep file expands to: cells, a search, a sweep.

Values only. `expand` makes them from a file and `validate` checks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from casting_tune.config import TrialConfig
from casting_tune.planning.sections import Limits, Range, Schedule, Settings, When


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One labelled configuration of a sweep.

    Attributes:
        row: the row of a table that the cell belongs to: its label without seed and fold.
        label: row, then seed and fold if the sweep varies them.
        config: the whole configuration.
        study: the published figures of the study, by name: accuracy and recall in per cent, f1,
            epoch_s in seconds. "@0.2" is at that threshold on P(ok_front); "mean_" and "sd_" are
            over the ten trainings of the study.
        kind: a cell of the file, a simple baseline, or a short pass that measures time only.
    """

    row: str
    label: str
    config: TrialConfig
    study: Mapping[str, float] = field(default_factory=dict)
    kind: Literal["cell", "baseline", "timing"] = "cell"


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What a search varies and optimizes; see `sections.Search`.

    Attributes:
        fixed, when: the sections of the file with these names.
        set: the settings of --quick and --set; they override all others.
        where: how an error names the file.
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
    """An expanded sweep file; the cells of a search are unknown before it runs.

    Attributes:
        invalid: one reason for each cell with an invalid configuration; these are not in `cells`.
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
        """Return the number of valid cells; of a search, the number of its trials."""
        return len(self.cells) if self.search is None else self.search.n_trials


def resolve(
    cell: Cell,
    *,
    weights_id: str,
    split_id: str,
    validation: Literal["drawn", "official"],
    precision: Literal["fp32", "bf16"],
) -> Cell:
    """Return the cell with the values that depend on machine and images.

    Args:
        cell: as the sweep file describes it.
        weights_id: the exact pretrained weights.
        split_id: the exact groups of a grouped split.
        validation: whether the images have a validation split that the cell uses.
        precision: what `auto` means on this device.
    """
    config = cell.config
    return replace(
        cell,
        config=replace(
            config,
            weights_id=weights_id,
            split_id=split_id if config.split == "grouped" else config.split_id,
            validation=validation,
            precision=precision if config.precision == "auto" else config.precision,
        ),
    )
