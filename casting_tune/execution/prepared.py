"""A run that is ready to start.

Input: the results of all checks, from `preparation`. Output: what `runner` trains, in its order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casting_tune.config import Allowance
from casting_tune.data.pack import Pack
from casting_tune.execution.nodes import Resources
from casting_tune.execution.ray_cluster import Ahead
from casting_tune.execution.search_space import NO_PAST, Past
from casting_tune.execution.tasks import Asha
from casting_tune.planning import estimate
from casting_tune.planning.cells import Cell, Sweep
from casting_tune.planning.options import Options
from casting_tune.planning.plan import Costs, Plan, Planned
from casting_tune.store.store import Store
from casting_tune.training.records import Place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A run that has passed every check and is ready to start."""

    options: Options
    run_id: str
    sweep: Sweep
    pack: Pack
    store: Store
    plan: Plan
    costs: Costs
    allowance: Allowance
    resources: Resources
    place: Place
    groups: NDArray[np.int64] | None
    notes: tuple[str, ...]
    finish: Callable[[Cell], Cell]
    asha: Asha | None = None
    past: Past = NO_PAST  # what earlier runs of a search chose
    ahead: Ahead | None = None

    @property
    def n_to_choose(self) -> int:
        """How many cells a search still has to choose."""
        if self.sweep.search is None:
            return 0
        return max(0, self.sweep.search.n_trials - len(self.past.chosen))

    @property
    def to_do(self) -> tuple[Planned, ...]:
        """The known cells to train, in the order in which they start.

        The longest come first and timing passes last. Cells of a search are not among them: its
        study hands them out again.
        """
        order = estimate.longest_first([cost.seconds for cost in self.costs.estimates])
        ordered = [self.plan.to_do[i] for i in order]
        if self.sweep.search is not None:
            ordered = [planned for planned in ordered if planned.cell.kind != "cell"]
        return tuple(sorted(ordered, key=lambda planned: planned.cell.kind == "timing"))
