"""What a run of a sweep would do: which cells the store holds already, which are to be trained, which failed before.

Comes in: keyed cells and a store. Goes out: a Plan. Starts nothing, prints nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from casting_tune.space import Cell
from casting_tune.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A cell and what the store knows of it; `status` is the last ending of a cell that failed."""

    cell: Cell
    cell_id: str
    state: Literal["done", "to do", "failed"]
    status: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The cells of a sweep in the sweep's order."""

    planned: tuple[Planned, ...]

    @property
    def to_do(self) -> tuple[Planned, ...]:
        """The cells that a run would train: all that are not done; failed ones are tried again."""
        return tuple(planned for planned in self.planned if planned.state != "done")


def make(cells: Sequence[Cell], cell_ids: Sequence[str], store: Store) -> Plan:
    """Return what is done and what is to do; a cell that another sweep trained is done."""
    done, failed = store.completed(), store.failed()
    return Plan(
        planned=tuple(
            Planned(
                cell=cell,
                cell_id=cell_id,
                state="done" if cell_id in done else "failed" if cell_id in failed else "to do",
                status=failed.get(cell_id),
            )
            for cell, cell_id in zip(cells, cell_ids, strict=True)
        )
    )
