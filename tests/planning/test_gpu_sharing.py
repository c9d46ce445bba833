from __future__ import annotations

import random
from typing import Any

import pytest

from casting_tune.config import TrialConfig
from casting_tune.planning import gpu_sharing
from casting_tune.training.memory import CONTEXT_BYTES

GIB = 2**30
CONFIG = TrialConfig(backbone="vgg16", image_px=96, batch_size=8, precision="bf16")


def learn(rows: list[dict[str, Any]], probes: list[dict[str, Any]]) -> tuple[gpu_sharing.Peak, ...]:
    return gpu_sharing.learn(rows, probes, device="cuda")


def trial(**change: Any) -> dict[str, Any]:
    return {
        "backbone": "vgg16",
        "image_px": 96,
        "batch_size": 8,
        "dense": 0,
        "in_channels": 3,
        "precision": "bf16",
        "device": "cuda",
        "status": "completed",
        "micro_batch": None,
        "peak_memory_bytes": 2 * GIB,
        "n_train": 800,
        "n_validation": 100,
        "n_test": 100,
    } | change


def probe(**change: Any) -> dict[str, Any]:
    return trial(n_images=1000) | change


@pytest.mark.parametrize("gpu_gib", [8, 16, 22.5, 24, 40, 79.6, 139])
def test_what_shares_a_gpu_fits_on_it_with_margin_and_context(gpu_gib: float) -> None:
    chance, gpu_bytes = random.Random(3), int(gpu_gib * GIB)
    for _ in range(2000):
        peak = int(gpu_bytes * chance.uniform(0.001, 1.2))
        needed = 1.25 * peak + CONTEXT_BYTES
        share = gpu_sharing.share(peak, gpu_bytes)
        n = gpu_sharing.trials_a_gpu(share)
        if share < 1:
            assert share * gpu_bytes >= needed
            assert n * needed <= gpu_bytes
            assert n * round(share * 10_000) <= 10_000  # as Ray counts
        else:
            assert needed > 0.8999 * gpu_bytes


def test_trials_that_fit_k_times_get_a_kth_rounded_down_to_what_ray_counts() -> None:
    def share(k: float) -> float:
        return gpu_sharing.share(int((24 * GIB / k * 0.999 - CONTEXT_BYTES) / 1.25), 24 * GIB)

    assert [share(k) for k in (1, 2, 3, 4, 5, 6, 7)] == [
        1.0,
        0.5,
        0.3333,
        0.25,
        0.2,
        0.1666,
        0.1428,
    ]
    assert share(1 / 0.55) == 0.6  # not a whole GPU: a third of one is left for others
    assert gpu_sharing.share(None, 24 * GIB) == 1.0
    assert gpu_sharing.share(0, 80 * GIB) == 0.0312  # never more than 32


def test_a_share_that_was_too_small_is_doubled_up_to_a_whole_gpu() -> None:
    assert [gpu_sharing.more(0.1, times=n) for n in range(5)] == [0.1, 0.2, 0.5, 0.8, 1.0]
    assert gpu_sharing.more(0.3333) == 0.7
    assert gpu_sharing.more(1.0) == 1.0
    assert gpu_sharing.more(0.0, times=3) == 0.0
    assert all(
        gpu_sharing.more(step / 10_000, times=0) == step / 10_000 for step in gpu_sharing.STEPS
    )


def test_the_most_that_the_same_network_and_size_took_on_a_gpu_counts() -> None:
    peaks = learn(
        [trial(), trial(peak_memory_bytes=3 * GIB), trial(batch_size=4, peak_memory_bytes=GIB)], []
    )
    assert gpu_sharing.peak_bytes(peaks, CONFIG, 1000) == 3 * GIB
    assert gpu_sharing.peak_bytes(learn([], [probe(peak_memory_bytes=5)]), CONFIG, 1000) == 5


@pytest.mark.parametrize(
    "other",
    [
        {"device": "cpu"},
        {"status": "oom"},
        {"micro_batch": 4},
        {"peak_memory_bytes": None},
        {"image_px": 95},
        {"batch_size": 16},
        {"dense": 1024},
        {"in_channels": 1},
        {"precision": "fp32"},
        {"backbone": "resnet50"},
        {"n_train": 80},
    ],
)
def test_the_memory_of_another_kind_of_trial_is_ignored(other: dict[str, Any]) -> None:
    assert gpu_sharing.peak_bytes(learn([trial(**other)], []), CONFIG, 1000) is None


def test_a_probe_of_fewer_images_or_of_an_older_version_is_ignored() -> None:
    assert learn([], [probe(n_images=None)]) == ()
    assert gpu_sharing.peak_bytes(learn([], [probe(n_images=500)]), CONFIG, 1000) is None


def test_a_cell_between_the_ends_of_a_search_takes_at_most_what_the_next_larger_one_took() -> None:
    peaks = learn(
        [],
        [
            probe(dense=dense, peak_memory_bytes=bytes_)
            for dense, bytes_ in ((0, 1), (512, 5), (1024, 7))
        ],
    )
    between = TrialConfig(backbone="vgg16", image_px=96, batch_size=8, precision="bf16", dense=256)
    assert gpu_sharing.peak_bytes(peaks, between, 1000) is None
    assert gpu_sharing.bound_bytes(peaks, between, 1000) == 5
    beyond = TrialConfig(backbone="vgg16", image_px=96, batch_size=8, precision="bf16", dense=2048)
    assert gpu_sharing.bound_bytes(peaks, beyond, 1000) is None
    assert (
        gpu_sharing.bound_bytes(
            peaks, TrialConfig(backbone="resnet50", image_px=96, precision="bf16"), 1000
        )
        is None
    )


def test_the_last_of_trials_that_share_gpus_ends_when_counted_by_hand() -> None:
    def ends(
        seconds: list[float], shares: list[float], n_gpus: int = 1, n_at_once: int = 99
    ) -> float:
        return gpu_sharing.makespan(seconds, shares, n_gpus=n_gpus, n_at_once=n_at_once)

    assert ends([], []) == 0
    assert ends([10, 10], [0.5, 0.5]) == 10
    assert ends([10, 10, 10], [0.3333] * 3) == 10
    assert ends([10, 10, 10], [0.5] * 3) == 20
    assert ends([10, 10, 10], [0.5] * 3, n_gpus=2) == 10
    assert ends([10, 10, 10], [0.3333] * 3, n_at_once=2) == 20
    assert (
        ends([10, 5, 5], [0.6, 0.6, 0.3333]) == 15
    )  # the second waits for the first, and the third for it
    assert ends([10, 4, 6, 3], [0.5, 0.5, 1.0, 0.0]) == 16
    assert ends([10, 4], [0.0, 0.0], n_at_once=1) == 14
