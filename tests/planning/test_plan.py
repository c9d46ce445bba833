from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from casting_tune.config import TrialConfig
from casting_tune.planning import plan
from casting_tune.planning.cells import Cell
from casting_tune.planning.estimate import Work
from casting_tune.store.store import Store

CELLS = [
    Cell(row=row, label=row, config=TrialConfig(backbone="vgg16", seed=i))
    for i, row in enumerate("abc")
]


def test_done_failed_and_to_do_are_distinguished_whatever_sweep_trained_a_cell(
    store: Store,
) -> None:
    row = {"attempt": 1, "started_at": datetime(2026, 1, 1, tzinfo=UTC)}
    store.write("trials", "another", "k0-1", [row | {"cell_id": "k0", "status": "completed"}])
    store.write("trials", "this", "k1-1", [row | {"cell_id": "k1", "status": "oom"}])
    made = plan.make(CELLS, ["k0", "k1", "k2"], store)
    assert [(planned.state, planned.status) for planned in made.planned] == [
        ("done", None),
        ("failed", "oom"),
        ("to do", None),
    ]
    assert [planned.cell_id for planned in made.to_do] == ["k2"]
    assert [
        planned.cell_id
        for planned in plan.make(CELLS, ["k0", "k1", "k2"], store, retry_failed=True).to_do
    ] == [
        "k1",
        "k2",
    ]
    assert len(plan.make(CELLS, ["k0", "k1", "k2"], store, fresh=True).to_do) == 3


def test_costs_are_summed_over_the_cells_with_an_estimate(store: Store) -> None:
    trial = {
        "cell_id": "k0",
        "attempt": 1,
        "status": "completed",
        "device": "cuda",
        "precision": "bf16",
        "n_threads": 1,
        "backbone": "vgg16",
        "image_px": 512,
        "batch_size": 8,
        "dense": 0,
        "in_channels": 3,
        "augmentation": "default",
        "epochs": 10,
        "n_train": 100,
        "n_validation": 0,
        "n_test": 0,
        "image_s": 3.5,
        "duration_s": 3600.0,
        "resumed_from": 0,
        "peak_memory_bytes": 2**31,
    }
    store.write("trials", "s", "k0-1", [trial])
    configs = [
        TrialConfig(backbone=name, precision="bf16")
        for name in ("vgg16", "vgg16", "vgg16", "resnet50")
    ]
    works = [Work(config=config, n_train=100, n_validation=0, n_test=0) for config in configs]
    found = plan.costs(
        works, store, place={"device": "cuda", "n_threads": 1}, gpus=0.5, n_at_once=2
    )
    assert found.trial_s == 3 * 3600
    assert found.wall_s == 2 * 3600 + plan.START_S
    assert found.gpu_hours == 1.5
    assert found.memory_bytes == 2**31
    assert found.sources == {"rows": 3, "unknown": 1}
    result = plan.cost_sentences(found, price_per_gpu_hour=4.0)
    assert result[0] == (
        "Time: at least 2 h 0 min; the sum over all trials is 3 h 0 min (3 from similar trials, "
        "1 unknown: add --probe to time a few steps of their networks)."
    )
    assert result[1] == "GPU time: at least 1.50 hours, cost 6.00."
    assert plan.unmeasured(works, store, place={"device": "cuda", "n_threads": 1}) == (configs[3],)


def test_cells_that_share_gpus_cost_their_share_and_the_plan_says_how_many_fit(
    store: Store,
) -> None:
    works = [
        Work(config=TrialConfig(backbone="vgg16", seed=i), n_train=1, n_validation=1, n_test=1)
        for i in range(4)
    ]
    alone = plan.costs(works, store, place={"device": "cuda", "n_threads": 1}, gpus=1, n_at_once=1)
    known = tuple(
        replace(found, seconds=s)
        for found, s in zip(alone.estimates, (900, 3600, 3600, 600), strict=True)
    )
    alone = replace(alone, estimates=known, trial_s=8700, sources={"probe": 4})
    found = plan.on_shared_gpus(
        alone, [1.0, 0.5, 0.3333, 0.0], n_unmeasured=1, n_gpus=1, n_at_once=8
    )
    assert found.wall_s == plan.START_S + 3600 + 900
    assert found.gpu_hours == pytest.approx((900 + 1800 + 1199.88) / 3600)
    assert found.trials_a_gpu == (1, 3)
    line = (
        "Trials per GPU: 1 to 3, limited by memory; trials with unknown memory (1) get a whole GPU "
        "until they are probed. The estimate assumes that sharing does not slow a trial."
    )
    assert plan.cost_sentences(found, price_per_gpu_hour=None)[2] == line
    assert plan.sharing_sentences(alone) == ()


def test_a_plan_without_estimates_recommends_a_probe(store: Store) -> None:
    works = [Work(config=TrialConfig(backbone="vgg16"), n_train=1, n_validation=1, n_test=1)]
    result = plan.cost_sentences(
        plan.costs(works, store, place={"device": "cpu", "n_threads": 1}, gpus=0, n_at_once=2),
        price_per_gpu_hour=None,
    )
    assert result == (
        "No time estimate yet for these 1 trials; add --probe to time a few steps of each network.",
    )
    assert plan.cost_sentences(
        plan.costs([], store, place={}, gpus=0, n_at_once=1), price_per_gpu_hour=None
    ) == ("No trials to run.",)


def test_durations_have_two_units_at_most() -> None:
    text = [plan.duration(seconds) for seconds in (0.4, 99, 150, 3600, 12_000, 190_000)]
    assert text == ["0 s", "99 s", "2 min", "1 h 0 min", "3 h 20 min", "2 d 4 h"]
