"""Print the plan of a sweep: its cells, their state and the expected cost."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from casting_tune import text
from casting_tune.cli import console

if TYPE_CHECKING:
    from rich.console import Console

    from casting_tune.execution.runner import Prepared

_ADDED = {"baseline": "baselines", "timing": "timing passes"}


def print_outline(out: Console, prepared: Prepared) -> None:
    """Print the question of a sweep and the number of its cells by state."""
    plan, sweep, place = prepared.plan, prepared.sweep, prepared.place
    console.say(out, f"{sweep.name}: {sweep.question}")
    counts = {
        kind: sum(p.cell.kind == kind for p in plan.planned)
        for kind in ("cell", "baseline", "timing")
    }
    added = [f" and {n} {name}" for kind, name in _ADDED.items() if (n := counts[kind])]
    cells = f"{counts['cell']} cells"
    if sweep.search is not None:
        from casting_tune.execution import search_space

        for line in search_space.sentences(sweep.search):
            console.say(out, line)
        cells = f"{counts['cell']} of {sweep.search.n_trials} cells chosen"
    states = [f"{plan.count('done')} done", f"{len(plan.to_do) + prepared.n_to_choose} to do"]
    stopped = plan.count("stopped")
    states += [f"{stopped} stopped by the scheduler"] if stopped else []
    failed = sum(not planned.runs for planned in plan.planned if planned.state == "failed")
    states += [f"{failed} failed earlier (--retry-failed runs them again)"] if failed else []
    states += [f"{len(sweep.invalid)} invalid"] if sweep.invalid else []
    where = f"{place.device}, {place.n_at_once} at once, {threads(place.n_threads)} each"
    console.say(out, f"{cells}{''.join(added)}: {', '.join(states)} ({where}).")


def write_plan(out: Console, prepared: Prepared, *, as_json: bool) -> None:
    """Write the expected cost, all cells, and the reasons for invalid ones."""
    from casting_tune.planning import plan

    if as_json:
        _write_json(prepared)
        return
    price = prepared.options.price_per_gpu_hour
    for sentence in plan.cost_sentences(prepared.costs, price_per_gpu_hour=price):
        console.say(out, sentence)
    for p in prepared.plan.planned:
        state = p.state if p.status is None else f"{p.state}: {p.status}"
        console.write(text.plain(f"{p.cell_id}  {state:<16}  {p.cell.label}") + "\n")
    for reason in prepared.sweep.invalid:
        console.say(out, f"invalid: {reason}")


def _write_json(prepared: Prepared) -> None:
    costs, price = prepared.costs, prepared.options.price_per_gpu_hour
    cells = [
        {
            "cell_id": p.cell_id,
            "state": p.state,
            "status": p.status,
            "kind": p.cell.kind,
            "label": p.cell.label,
        }
        for p in prepared.plan.planned
    ]
    summed = {key: value for key, value in asdict(costs).items() if key != "estimates"}
    console.write_json(
        {
            "sweep": prepared.sweep.name,
            "dataset_id": prepared.pack.dataset_id,
            "notes": prepared.notes,
            "costs": summed | {"money": costs.gpu_hours * price if price is not None else None},
            "cells": cells,
            "invalid": prepared.sweep.invalid,
        }
    )


def threads(n: int) -> str:
    """Return a number of threads with its unit."""
    return f"{n} thread" if n == 1 else f"{n} threads"
