"""Trials share GPUs by memory: two invented GPUs, real Ray Tune, trials that state their use."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from casting_tune.config import Allowance, TrialConfig, cell_id
from casting_tune.data.pack import Pack
from casting_tune.errors import ResourcesError, UsageError
from casting_tune.execution import nodes, preparation, ray_cluster, ray_tune, runner, tasks
from casting_tune.execution.nodes import Resources
from casting_tune.execution.tasks import Event, Task, Work
from casting_tune.models import build
from casting_tune.planning import gpu_sharing
from casting_tune.planning.options import Options
from casting_tune.store.store import Store
from casting_tune.training import trial
from casting_tune.training.records import Place
from tests.benchmarks import packed as packed_bench

CONFIG = TrialConfig(
    backbone="timm:test_resnet.r160_in1k",
    image_px=32,
    batch_size=16,
    epochs=1,
    precision="fp32",
    test_images=10,
)
NEEDS = {1: 1.0, 2: 0.5, 3: 0.3333, 4: 0.25, 5: 0.2, 6: 0.6}
"""Share of a GPU by number of folds: a setting that changes nothing else here."""


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray that counts two GPUs and eight CPUs, on a machine that has fewer."""
    import ray

    def start(ray_: Any, n_slots: int, scratch: str, *, over: object) -> None:
        del ray_, n_slots, over
        ray.init(
            "local", num_cpus=8, num_gpus=2, include_dashboard=False, _node_ip_address="127.0.0.1",
            _temp_dir=scratch, logging_level="ERROR", log_to_driver=False,
        )  # fmt: skip

    monkeypatch.setattr(ray_cluster, "_start", start)
    monkeypatch.setattr(nodes, "capacity", lambda *_, **__: (8, 2.0))
    yield
    assert not ray.is_initialized()


def share(config: TrialConfig) -> float:
    return NEEDS[config.n_folds]


def work(store: Store, configs: list[TrialConfig], **more: Any) -> Work:
    requested = tuple(Task(config=config, label=f"cell {i}") for i, config in enumerate(configs))
    return Work(tasks=requested, store=store, sweep="s", place=Place(n_at_once=8), **more)


def holds(config: TrialConfig, packed: Pack, store: Store, **more: Any) -> dict[str, Any]:
    """Hold what the configuration needs of its GPU for a while, and leave a mark of it."""
    marks = store.root / "marks"
    marks.mkdir(parents=True, exist_ok=True)
    began = time.time()
    time.sleep(8)  # until others have started beside it
    mark = {
        "gpu": os.environ["CUDA_VISIBLE_DEVICES"],
        "needs": NEEDS[config.n_folds],
        "pid": os.getpid(),
    }
    mark |= {"from": began, "to": time.time()}
    cell = cell_id(config, packed.dataset_id)
    (marks / cell).write_text(json.dumps(mark))
    row = {
        "cell_id": cell,
        "attempt": 1,
        "sweep": "s",
        "status": "completed",
        "gpus": more["context"].place.gpus,
    }
    store.write("trials", "s", f"{cell}-1", [row])
    return row


@pytest.mark.slow
def test_trials_of_unlike_shares_run_at_once_and_never_hold_more_than_a_gpu(
    packed: Pack, store: Store, two_gpus: None
) -> None:
    events: list[Event] = []
    folds = [1, 4, 2, 3, 6, 4]
    configs = [replace(CONFIG, seed=seed, n_folds=n) for seed, n in enumerate(folds)]
    resources = Resources(cpus=1, gpus=1, share=share)
    ray_tune.run_ray(
        work(store, configs, trial=holds),
        packed,
        resources=resources,
        on_event=events.append,
    )
    assert sorted(e.task for e in events if e.status == "completed") == list(range(len(folds)))
    marks = [json.loads(file.read_text()) for file in (store.root / "marks").iterdir()]
    assert {mark["gpu"] for mark in marks} == {"0", "1"}
    most = 0
    for gpu in "01":
        here = [mark for mark in marks if mark["gpu"] == gpu]
        for moment in (mark["from"] for mark in here):
            now = [mark["needs"] for mark in here if mark["from"] <= moment < mark["to"]]
            assert sum(now) <= 1
            most = max(most, len(now))
    assert most >= 2
    trials = store.read("trials").to_pandas()
    assert sorted(trials["gpus"]) == sorted(NEEDS[n] for n in folds)


def needs_half(config: TrialConfig, packed: Pack, store: Store, **more: Any) -> dict[str, Any]:
    """Train, but run out of memory on less than half a GPU, and on any where the seed is 9."""
    real, allowed = build.model, more["context"].allowance

    def build_model(name: str, **settings: Any) -> torch.nn.Module:
        if (allowed.gpu_share < 0.5 and config.seed) or (
            config.seed == 9 and not allowed.micro_batch
        ):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(name, **settings)

    build.model = build_model
    try:
        return trial.run_trial(config, packed, store, **more)
    finally:
        build.model = real


@pytest.mark.slow
def test_memory_that_runs_out_on_a_share_doubles_it_and_only_on_a_whole_gpu_does_on_oom_decide(
    packed: Pack, store: Store, two_gpus: None
) -> None:
    events: list[Event] = []
    configs = [replace(CONFIG, seed=seed, n_folds=4) for seed in (0, 1, 9)]
    ray_tune.run_ray(
        work(store, configs, trial=needs_half),
        packed,
        resources=Resources(cpus=1, gpus=1, share=share),
        on_event=events.append,
    )
    ends: dict[int, list[tuple[str | None, bool]]] = {}
    for event in events:
        if event.kind == "ended":
            ends.setdefault(event.task, []).append((event.status, event.retried))
    assert ends == {
        0: [("completed", False)],
        1: [("oom", True), ("completed", False)],
        2: [("oom", True), ("oom", True), ("oom", False)],
    }
    record = {e.error for e in events if e.retried}
    assert "out of memory with 0.25 of a GPU: it runs again with more" in record
    trials = store.read("trials").to_pandas().sort_values(["seed", "attempt"])
    assert list(zip(trials["seed"], trials["status"], trials["gpus"], strict=True)) == [
        (0, "completed", 0.25), (1, "oom", 0.25), (1, "completed", 0.5), (9, "oom", 0.25),
        (9, "oom", 0.5), (9, "oom", 1.0),
    ]  # fmt: skip
    assert (
        trials["error"].iloc[1]
        == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    )
    assert not list(store.root.glob(".running-*"))


def test_a_batch_is_halved_only_once_a_trial_has_a_whole_gpu(packed: Pack, store: Store) -> None:
    accumulate = Allowance(on_oom="accumulate")
    job = work(store, [replace(CONFIG, seed=9)], trial=needs_half, allowance=accumulate)
    events: list[Event] = []
    (task,) = job.tasks
    for gpus in (0.5, 1.0):
        event = tasks.run_task(job, packed, 0, replace(task, gpus=gpus), events.append)
        assert (event.status, event.retried) == (
            ("oom", True) if gpus < 1 else ("completed", False)
        )
    trials = store.read("trials").sort_by("attempt").to_pydict()
    assert trials["status"] == ["oom", "oom", "completed"]
    assert trials["gpus"] == [0.5, 1.0, 1.0]
    assert trials["micro_batch"] == [None, None, 8]


@pytest.mark.slow
def test_fixed_fractions_are_the_same_for_all_and_an_oom_is_the_end(
    packed: Pack, store: Store, two_gpus: None
) -> None:
    events: list[Event] = []
    place = Place(n_at_once=4, gpus=0.5)
    job = replace(
        work(store, [replace(CONFIG, seed=seed) for seed in (1, 9)], trial=needs_half), place=place
    )
    ray_tune.run_ray(job, packed, resources=Resources(cpus=1, gpus=0.5), on_event=events.append)
    ends = {event.task: (event.status, event.retried) for event in events if event.kind == "ended"}
    assert ends == {0: ("completed", False), 1: ("oom", False)}
    assert store.read("trials")["gpus"].to_pylist() == [0.5, 0.5]


@pytest.fixture
def on_the_cpu(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a sweep that is given GPUs train on the CPU: shares are then of the machine's memory."""
    real = preparation.decide

    def resources(options: Options, n_cells: int) -> tuple[Resources, Place]:
        found, place = real(options, n_cells)
        return found, replace(place, device="cpu")

    monkeypatch.setattr(preparation, "decide", resources)


@pytest.mark.slow
def test_auto_probes_each_network_once_in_a_worker_and_gives_every_trial_its_share(
    tiny: Path, drawn: Path, on_the_cpu: None
) -> None:
    lines: list[str] = []
    options = Options(
        sweep=str(tiny),
        data=drawn,
        results=tiny.parent / "results",
        gpus_per_trial="auto",
        quick=True,
    )
    prepared = runner.prepare(options, say=lines.append)
    (probe,) = prepared.store.read("probes").to_pylist()
    share = gpu_sharing.share(probe["peak_memory_bytes"], probe["device_memory_bytes"])
    assert share < 0.5
    (line,) = [line for line in lines if line.startswith("Trials per GPU")]
    n = gpu_sharing.trials_a_gpu(share)
    assert (
        line == f"Trials per GPU: {n}, limited by memory. "
        "The estimate assumes that sharing does not slow a trial."
    )
    assert prepared.place.n_at_once == min(8, 2 * n)
    assert runner.execute(prepared) == 0
    trials = prepared.store.read("trials").to_pandas()
    trained = ~trials["backbone"].str.startswith("baseline:")
    assert set(trials.loc[trained, "gpus"]) == {share}
    assert set(trials.loc[~trained, "gpus"]) == {0.0}
    assert trained.sum() == 2
    again = runner.prepare(replace(options, fresh=True, baselines=False), say=lines.append)
    assert again.store.read("probes").num_rows == 1
    assert again.costs.gpu_hours == pytest.approx(again.costs.trial_s * share / 3600, rel=0.5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_benchmark_of_packing_runs_its_cells_both_ways(
    on_the_cpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--px", "32", "--epochs", "1", "--train-images", "32", "--test-images", "16")
    packed_bench.main([*few, "--backbones", "timm:resnet10t", "--batches", "4", "8"])
    message = capsys.readouterr().out
    assert "| packed by memory | 2 |" in message
    assert "| one at a time | 2 |" in message
    assert "1 networks x 2 batch sizes" in message


def test_auto_is_refused_where_it_means_nothing(
    tiny: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(
        sweep=str(tiny), data=drawn, results=tiny.parent / "results", gpus_per_trial="auto"
    )
    with pytest.raises(
        UsageError,
        match="--inline runs one trial at a time and cannot be combined with --gpus-per-trial auto",
    ):
        runner.prepare(replace(options, inline=True), say=lambda _: None)
    monkeypatch.setattr(nodes, "capacity", lambda *_, **__: (2, 0))
    with pytest.raises(ResourcesError, match="--gpus-per-trial auto: there is no GPU here"):
        runner.prepare(options, say=lambda _: None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.timeout(1200)
def test_twelve_unlike_cells_share_one_gpu_and_none_runs_out_of_memory(
    tmp_path: Path, drawn: Path
) -> None:
    file = tmp_path / "mixed.toml"
    file.write_text(
        'question = "Do they fit?"\ntype = "grid"\n\n'
        '[fixed]\nweights = "none"\nimage_px = 224\nepochs = 1\n\n[axes]\n'
        'backbone = ["resnet50", "mobilenetv2", "efficientnetb4"]\nbatch_size = [4, 8, 16, 32]\n'
    )
    options = Options(
        sweep=str(file),
        data=drawn,
        results=tmp_path / "results",
        gpus_per_trial="auto",
        baselines=False,
    )
    prepared = runner.prepare(options, say=lambda _: None)
    assert runner.execute(prepared) == 0
    trials = prepared.store.read("trials").to_pandas()
    assert list(trials["status"]) == ["completed"] * 12
    assert (trials["gpus"] < 1).all()
    began = trials["started_at"]
    ends = began + pd.to_timedelta(trials["duration_s"], unit="s")
    assert max(((began <= moment) & (moment < ends)).sum() for moment in began) > 1
