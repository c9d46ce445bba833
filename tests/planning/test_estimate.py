from __future__ import annotations

import itertools

import pytest

from casting_tune.config import TrialConfig
from casting_tune.planning import estimate, expand
from casting_tune.planning.estimate import Work

CONFIG = TrialConfig(backbone="vgg16", image_px=100, batch_size=8, epochs=2, precision="fp32")
PLACE = {"device": "cpu", "n_threads": 1}
# 2 epochs of 100 images at 0.3 s, 3 * 20 + 40 images scored at 0.1 s, 7 s fixed: 77 s
ROW = {
    "device": "cpu",
    "precision": "fp32",
    "n_threads": 1,
    "backbone": "vgg16",
    "image_px": 100,
    "batch_size": 8,
    "dense": 0,
    "in_channels": 3,
    "augmentation": "additional",
    "epochs": 2,
    "n_train": 100,
    "n_validation": 20,
    "n_test": 40,
    "image_s": 0.3,
    "duration_s": 77.0,
    "resumed_from": 0,
    "peak_memory_bytes": 1000,
}
PROBE = {
    **{
        name: ROW[name]
        for name in ("device", "precision", "n_threads", "backbone", "image_px", "dense")
    },
    "batch_size": 4,
    "in_channels": 3,
    "step_s": 2.0,
    "score_s": 0.2,
    "fixed_s": 5.0,
    "peak_memory_bytes": 500,
}


def work(**more: object) -> Work:
    sizes = {
        name: int(str(more.pop(name, ROW[name]))) for name in ("n_train", "n_validation", "n_test")
    }
    settings = {
        name: getattr(CONFIG, name)
        for name in ("backbone", "image_px", "batch_size", "epochs", "precision")
    }
    return Work(config=TrialConfig(**{**settings, **more}), **sizes)  # type: ignore[arg-type]


def found(
    cell: Work,
    rows: list[dict[str, object]] | None = None,
    probes: list[dict[str, object]] | None = None,
) -> estimate.Estimate:
    return estimate.estimate(cell, PLACE, *estimate.learn(rows or [], probes or []))


def test_a_cell_like_a_completed_one_takes_as_long() -> None:
    one = found(work(), [ROW])
    assert (one.seconds, one.peak_memory_bytes, one.source) == (
        pytest.approx(77.0),
        1000,
        "rows",
    )


def test_more_epochs_and_images_take_their_share_and_the_rest_stays() -> None:
    # 4 * 200 * 0.3 + (5 * 20 + 40) * 0.1 + 7
    assert found(work(epochs=4, n_train=200), [ROW]).seconds == pytest.approx(261.0)


def test_rows_with_the_same_augmentation_go_first() -> None:
    slow = ROW | {"augmentation": "default", "image_s": 0.6, "duration_s": 157.0}
    assert found(work(), [ROW, slow]).seconds == pytest.approx(157.0)  # no toggle is on: "default"
    assert found(work(toggles=("flip",)), [ROW, slow]).seconds == pytest.approx((77.0 + 157.0) / 2)


def test_a_probe_is_used_where_there_is_no_trial() -> None:
    one = found(work(batch_size=4), [ROW], [PROBE])
    # 2 * 100 * 2.0 / 4 + (3 * 20 + 40) * 0.2 + 5
    assert (one.seconds, one.peak_memory_bytes, one.source) == (
        pytest.approx(125.0),
        500,
        "probe",
    )


def test_another_size_of_the_same_network_is_scaled_with_its_pixels() -> None:
    one = found(work(image_px=200), [ROW])
    assert (one.seconds, one.source) == (pytest.approx(7 + 4 * 70), "similar rows")


@pytest.mark.parametrize(
    "other", [{"device": "cuda"}, {"n_threads": 2}, {"precision": "bf16"}, {"backbone": "resnet50"}]
)
def test_another_device_precision_or_network_gives_no_estimate(other: dict[str, object]) -> None:
    assert found(work(), [ROW | other]).source == "unknown"


def test_a_resumed_trial_gives_no_estimate() -> None:
    assert found(work(), [ROW | {"resumed_from": 1}]).seconds is None


def test_a_baseline_takes_as_long_as_it_took() -> None:
    row = ROW | {"backbone": "baseline:majority", "image_s": None, "duration_s": 5.0}
    assert found(work(backbone="baseline:majority"), [row]).seconds == pytest.approx(5.0)


def test_cells_that_differ_in_their_seed_are_estimated_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    works = [work(seed=seed, batch_size=size) for seed in range(50) for size in (8, 4)]
    learnt = estimate.learn([ROW] * 50, [PROBE])
    one_by_one = tuple(estimate.estimate(work, PLACE, *learnt) for work in works)
    requested = []
    ask = estimate.estimate
    monkeypatch.setattr(estimate, "estimate", lambda *given: requested.append(given) or ask(*given))
    assert estimate.estimates(works, PLACE, *learnt) == one_by_one
    assert len(requested) == 2


def test_the_last_trial_ends_when_the_last_place_is_free() -> None:
    assert estimate.makespan([], 4) == 0
    assert estimate.makespan([3, 2, 2, 1], 2) == 4
    assert estimate.makespan([1, 1, 1, 3], 2) == 4
    assert estimate.makespan([5, 1], 8) == 5


def test_long_cells_start_first_and_unknown_ones_before_them() -> None:
    assert estimate.longest_first([1.0, None, 3.0, 2.0, None]) == [1, 4, 2, 3, 0]


def test_330_cells_longest_first_on_8_gpus_take_at_most_1_1_times_the_lower_bound() -> None:
    """Uses the study's seconds per epoch for ten backbones and three batch sizes, ten epochs."""
    grid = expand.read("backbone_grid")
    an_epoch = {
        (cell.config.backbone, cell.config.batch_size): cell.study["epoch_s"]
        for cell in grid.cells
        if "epoch_s" in cell.study
    }
    cells = expand.read("full_factorial").cells
    assert len(cells) == 330
    seconds = [10 * an_epoch[cell.config.backbone, cell.config.batch_size] for cell in cells]
    bound = max(*seconds, sum(seconds) / 8)
    ordered = [seconds[i] for i in estimate.longest_first(seconds)]
    assert estimate.makespan(ordered, 8) <= 1.1 * bound
    worst = max(
        estimate.makespan(list(order), 8)
        for order in itertools.islice(_rotations(sorted(seconds)), 0, 330, 30)
    )
    assert estimate.makespan(ordered, 8) < worst


def _rotations(seconds: list[float]) -> list[list[float]]:
    return [seconds[i:] + seconds[:i] for i in range(len(seconds))]
