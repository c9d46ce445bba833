from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from casting_tune.config import Allowance, Status, TrialConfig, cell_id
from casting_tune.data.pack import Pack
from casting_tune.errors import StoreError
from casting_tune.execution.inline import run_inline
from casting_tune.execution.tasks import Event, Halt, Task, Work
from casting_tune.store.local import Folder
from casting_tune.store.locks import claim
from casting_tune.store.s3 import LockLost
from casting_tune.store.store import Store
from casting_tune.training import trial
from casting_tune.training.records import Ending, Place, TrialContext

CONFIG = TrialConfig(
    backbone="timm:test_resnet.r160_in1k",
    image_px=32,
    batch_size=16,
    epochs=3,
    precision="fp32",
    test_images=10,
)

ACCUMULATE = Allowance(on_oom="accumulate")


def work(store: Store, *configs: TrialConfig, sweep: str = "s", **more: Any) -> Work:
    tasks = tuple(Task(config=config, label=f"cell {i}") for i, config in enumerate(configs))
    return Work(tasks=tasks, store=store, sweep=sweep, place=Place(), **more)


def endings(events: list[Event]) -> list[tuple[int, str | None, bool]]:
    return [(e.task, e.status, e.retried) for e in events if e.kind == "ended"]


def short_of_memory(config: TrialConfig, packed: Pack, store: Store, **more: Any) -> dict[str, Any]:
    """Train with up to 4 images per forward pass; else run out of memory as a small device."""
    allowed = more["context"].allowance
    if (allowed.micro_batch or config.batch_size) <= 4:
        return trial.run_trial(config, packed, store, **more)
    ending = Ending(status="oom", error="CUDA out of memory")
    row = trial.lost(config, packed, store, context=more["context"], ending=ending)
    return row | {"micro_batch": allowed.micro_batch}


def test_a_trial_out_of_memory_is_its_end_and_not_that_of_the_sweep(
    packed: Pack, store: Store
) -> None:
    events: list[Event] = []
    fits = replace(CONFIG, batch_size=4)
    run_inline(work(store, CONFIG, fits, trial=short_of_memory), packed, on_event=events.append)
    assert endings(events) == [(0, "oom", False), (1, "completed", False)]


def test_with_accumulate_the_same_batch_goes_through_in_halves_until_it_fits_and_the_row_says_so(
    packed: Pack, store: Store
) -> None:
    events: list[Event] = []
    job = work(store, CONFIG, trial=short_of_memory, allowance=ACCUMULATE)
    run_inline(job, packed, on_event=events.append)
    assert endings(events) == [(0, "oom", True), (0, "oom", True), (0, "completed", False)]
    trials = store.read("trials").sort_by("attempt").to_pandas()
    assert list(trials["status"]) == ["oom", "oom", "completed"]
    assert list(trials["batch_size"]) == [16, 16, 16]
    assert trials["micro_batch"].iloc[-1] == 4
    assert trials["cell_id"].nunique() == 1


def never_fits(config: TrialConfig, packed: Pack, store: Store, **more: Any) -> dict[str, Any]:
    ending = Ending(status="oom", error="out of memory")
    return trial.lost(config, packed, store, context=more["context"], ending=ending)


def test_accumulation_gives_up_at_one_image_at_a_time(packed: Pack, store: Store) -> None:
    events: list[Event] = []
    wide = replace(CONFIG, image_px=64)  # 2 x 2 maps: batch normalisation takes one image
    run_inline(
        work(store, wide, trial=never_fits, allowance=ACCUMULATE), packed, on_event=events.append
    )
    assert [status for _, status, _ in endings(events)] == ["oom"] * 5  # 16, 8, 4, 2, 1
    assert endings(events)[-1] == (0, "oom", False)


def test_accumulation_gives_up_at_the_fewest_images_that_can_be_trained_with(
    packed: Pack, store: Store
) -> None:
    events: list[Event] = []
    job = work(store, replace(CONFIG, batch_size=8), trial=never_fits, allowance=ACCUMULATE)
    run_inline(job, packed, on_event=events.append)
    assert endings(events) == [
        (0, "oom", True),
        (0, "oom", True),
        (0, "oom", False),
    ]  # 8, 4, 2: of 1 x 1 maps, one image cannot train


@pytest.mark.parametrize(
    ("backbone", "image_px", "batch_size", "message"),
    [
        (
            "timm:resnet10t",
            32,
            2,
            "Out of memory with 2 images per forward pass, the minimum for 'timm:resnet10t' at",
        ),
        (
            "timm:resnet10t",
            64,
            1,
            "Out of memory with 1 image per forward pass, the minimum for 'timm:resnet10t' at",
        ),
        (
            "timm:resnet10t",
            64,
            2,
            "MemoryError: no more",
        ),  # halves of one image can be trained with
        ("timm:resnet10t", 32, 4, "MemoryError: no more"),
    ],
)
def test_a_batch_that_cannot_be_halved_is_named_in_the_row(
    backbone: str,
    image_px: int,
    batch_size: int,
    message: str,
    packed: Pack,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def shortage(*_: Any, **__: Any) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(trial, "fit_network", shortage)
    config = replace(CONFIG, backbone=backbone, image_px=image_px, batch_size=batch_size)
    row = trial.run_trial(config, packed, store, context=TrialContext(sweep="s", label="l"))
    assert row["status"] == "oom"
    assert row["error"].startswith(message)
    assert "MemoryError: no more" in row["error"]


def completes(config: TrialConfig, packed: Pack, store: Store, **more: Any) -> dict[str, Any]:
    ending = Ending(status="completed")
    return trial.lost(config, packed, store, context=more["context"], ending=ending)


@pytest.mark.parametrize("status", ["error", "diverged", "timeout"])
def test_what_another_sweep_failed_at_meanwhile_is_tried_here_all_the_same(
    status: Status, packed: Pack, store: Store
) -> None:
    job = work(store, CONFIG, trial=completes)  # no retries
    trial.lost(
        CONFIG,
        packed,
        store,
        context=TrialContext(sweep="another", label="l"),
        ending=Ending(status=status, error="it broke"),
    )
    events: list[Event] = []
    run_inline(job, packed, on_event=events.append)
    assert endings(events) == [(0, "completed", False)]
    trials = store.read("trials").sort_by("attempt").to_pylist()
    assert [(row["sweep"], row["attempt"], row["status"]) for row in trials] == [
        ("another", 1, status), ("s", 2, "completed"),
    ]  # fmt: skip


def test_what_this_run_failed_at_before_its_process_was_lost_counts_among_its_tries(
    packed: Pack, store: Store
) -> None:
    job = work(store, CONFIG, trial=completes)
    trial.lost(
        CONFIG,
        packed,
        store,
        context=TrialContext(sweep="s", label="l"),
        ending=Ending(status="error", error="it broke"),
    )
    events: list[Event] = []
    run_inline(job, packed, on_event=events.append)
    assert endings(events) == [(0, "error", False)]


def test_a_halt_ends_the_plain_loop_after_the_epoch_and_the_cell_goes_on_from_there(
    packed: Pack, store: Store
) -> None:
    halt, events = Halt(), list[Event]()

    def wish(event: Event) -> None:
        events.append(event)
        if event.kind == "epoch":
            halt.requested.set()

    run_inline(work(store, CONFIG, replace(CONFIG, seed=1)), packed, on_event=wish, halt=halt)
    assert [(e.task, e.kind) for e in events] == [(0, "started"), (0, "epoch")]
    assert store.read("trials").num_rows == 0
    run_inline(work(store, CONFIG), packed, on_event=lambda _: None)
    assert store.read("trials")["resumed_from"].to_pylist() == [1]
    assert store.read("epochs").sort_by("epoch")["epoch"].to_pylist() == [1, 2, 3]


def test_a_cell_that_another_process_holds_is_waited_for_and_not_trained_twice(
    packed: Pack, store: Store
) -> None:
    other = Store(store.root)
    held = claim(other, cell_id(CONFIG, packed.dataset_id))
    assert held is not None
    assert claim(store, cell_id(CONFIG, packed.dataset_id)) is None

    def train_there() -> None:
        trial.run_trial(CONFIG, packed, other, context=TrialContext(sweep="another", label="l"))
        held()

    elsewhere = threading.Timer(1.0, train_there)
    elsewhere.start()
    events: list[Event] = []
    try:
        run_inline(work(store, CONFIG, replace(CONFIG, seed=1)), packed, on_event=events.append)
    finally:
        elsewhere.join()
    assert [task for task, _, _ in endings(events)] == [1, 0]  # the free one went first
    assert sorted(store.read("trials")["sweep"].to_pylist()) == ["another", "s"]
    assert not list(store.root.glob(".running-*"))


def test_a_claim_can_be_had_again_once_it_is_released(store: Store) -> None:
    for _ in range(3):
        release = claim(store, "cell")
        assert release is not None
        release()


def test_a_run_whose_cell_passed_to_another_process_stops_after_the_epoch_and_says_whose_it_is(
    packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_lost: list[Callable[[], object]] = []

    @contextlib.contextmanager
    def lock(place: Folder, name: str, who: str, message: Callable[[], object]) -> Iterator[None]:
        on_lost.append(message)
        yield
        raise LockLost("process 8 on oven")

    def lose(event: Event) -> None:
        if event.kind == "epoch":
            on_lost[0]()

    monkeypatch.setattr(Folder, "lock", lock)
    with pytest.raises(StoreError, match=r"process 8 on oven now runs cell \w{16}"):
        run_inline(work(store, CONFIG, replace(CONFIG, seed=1)), packed, on_event=lose)
    assert store.read("epochs")["epoch"].to_pylist() == [1]
    assert store.read("trials").num_rows == 0


def test_a_cell_costs_no_listing_of_the_store_however_many_cells_it_holds(
    packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []
    names = Folder.names
    monkeypatch.setattr(
        Folder, "names", lambda place, under: listed.append(under) or names(place, under)
    )
    seeds = (replace(CONFIG, seed=seed, epochs=2) for seed in range(3))
    events: list[Event] = []
    run_inline(work(store, *seeds), packed, on_event=events.append)
    assert endings(events) == [(task, "completed", False) for task in range(3)]
    assert listed == []
