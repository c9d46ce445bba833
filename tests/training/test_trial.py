from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, recall_score
from threadpoolctl import threadpool_info, threadpool_limits

from casting_tune.config import Allowance, Epoch, TrialConfig, cell_id
from casting_tune.data import augmentation, batches, splits
from casting_tune.data.pack import Pack
from casting_tune.errors import StoreError
from casting_tune.models import build
from casting_tune.store import artifacts
from casting_tune.store.store import Store
from casting_tune.training import baselines, checkpoint, inputs, memory, records, trial
from casting_tune.training.records import TrialContext

CONFIG = TrialConfig(
    backbone="timm:test_resnet.r160_in1k",
    image_px=32,
    batch_size=16,
    epochs=2,
    precision="fp32",
    toggles=("flip",),
)


class _Scored:
    def __init__(self, score: np.ndarray) -> None:
        self.score = score


def train(
    config: TrialConfig,
    packed: Pack,
    store: Store,
    *,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    **more: Any,
) -> dict[str, Any]:
    context = TrialContext(sweep="s", label="l", **more)
    return trial.run_trial(config, packed, store, context=context, on_epoch=on_epoch)


def scores(store: Store, cell: str) -> np.ndarray:
    return store.read("predictions", cell_ids=[cell])["score"].to_numpy()


def test_a_trial_leaves_its_epochs_its_predictions_and_one_row(packed: Pack, store: Store) -> None:
    row = train(CONFIG, packed, store)
    assert row["status"] == "completed", row
    assert store.read("trials")["traceback"].to_pylist() == [None]
    assert store.read("epochs")["epoch"].to_pylist() == [1, 2]
    assert store.read("trials").to_pylist()[0]["cell_id"] == cell_id(CONFIG, packed.dataset_id)
    predictions = store.read("predictions").to_pandas()
    n_test = int((packed.splits == "test").sum())
    assert (predictions["split"] == "test").sum() == n_test == row["n_test"]
    assert (predictions["split"] == "validation").sum() == row["n_validation"]
    assert list(predictions["sha256"]) == [packed.sha256[image] for image in predictions["image"]]
    assert list(predictions["y_true"]) == [packed.labels[image] for image in predictions["image"]]


def test_the_metrics_of_a_row_are_those_of_its_predictions(packed: Pack, store: Store) -> None:
    row = train(CONFIG, packed, store)
    predictions = store.read("predictions").to_pandas()
    for split, of_split in predictions.groupby("split"):
        decided = of_split["score"] >= 0.5
        assert row[f"{split}_accuracy"] == accuracy_score(of_split["y_true"], decided)
        assert row[f"{split}_recall"] == recall_score(of_split["y_true"], decided)
    tested = predictions[predictions["split"] == "test"]
    assert row["test_recall_ok"] == recall_score(1 - tested["y_true"], tested["score"] < 0.5)


@pytest.mark.parametrize("backbone", [CONFIG.backbone, "baseline:majority"])
def test_the_split_of_a_trial_is_computed_once(
    backbone: str, packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = splits.split, []

    def counted(*given: object, **more: object) -> splits.Folds:
        calls.append(given)
        return real(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(splits, "split", counted)
    assert (
        train(replace(CONFIG, backbone=backbone, epochs=1), packed, store)["status"] == "completed"
    )
    assert len(calls) == 1


def test_a_baseline_computes_with_the_threads_of_its_trial(
    packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    majority = baselines.majority

    def watched(labels: np.ndarray, n_test: int) -> baselines.Baseline:
        seen.extend(
            library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
        )
        return majority(labels, n_test)

    monkeypatch.setattr(baselines, "majority", watched)
    with threadpool_limits(2, user_api="blas"):
        row = train(TrialConfig(backbone="baseline:majority"), packed, store)
    assert row["status"] == "completed", row
    assert row["n_threads"] == 1
    assert set(seen) == {1}


def test_an_epochs_row_is_safe_before_it_is_reported(packed: Pack, store: Store) -> None:
    seen: list[tuple[int, int]] = []

    def on_epoch(epoch: Epoch) -> None:
        seen.append((epoch.epoch, len(store.files("epochs"))))

    train(CONFIG, packed, store, on_epoch=on_epoch)
    assert seen == [(1, 1), (2, 2)]


def test_the_same_seed_gives_the_same_scores_bit_for_bit_and_another_seed_others(
    packed: Pack, tmp_path: Path
) -> None:
    first, second, third = (Store(tmp_path / name) for name in "abc")
    config = replace(CONFIG, dropout=0.3, dense=8, toggles=("contrast", "rotation", "flip"))
    train(config, packed, first)
    torch.manual_seed(99)  # whatever ran in this process before must not matter
    train(config, packed, second)
    other = replace(config, seed=1)
    train(other, packed, third)
    cell = cell_id(config, packed.dataset_id)
    np.testing.assert_array_equal(scores(first, cell), scores(second, cell))
    assert not np.array_equal(scores(first, cell), scores(third, cell_id(other, packed.dataset_id)))


def test_hue_on_gray_images_changes_no_score(packed: Pack, tmp_path: Path) -> None:
    with_hue, without = Store(tmp_path / "a"), Store(tmp_path / "b")
    hue = replace(CONFIG, toggles=("hue", "contrast", "flip"))
    no_hue = replace(CONFIG, toggles=("contrast", "flip"))
    train(hue, packed, with_hue)
    train(no_hue, packed, without)
    np.testing.assert_array_equal(
        scores(with_hue, cell_id(hue, packed.dataset_id)),
        scores(without, cell_id(no_hue, packed.dataset_id)),
    )


def test_a_trial_that_raises_is_a_row_with_its_error_and_without_this_persons_home(
    packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise RuntimeError(f"no file {Path.home()}/secret") from error

    monkeypatch.setattr(build, "model", broken)
    train(CONFIG, packed, store)
    (row,) = store.read("trials").to_pylist()
    assert (row["status"], row["error"]) == ("error", "RuntimeError: no file ~/secret")
    assert row["traceback"].startswith("Traceback (most recent call last):")
    assert "KeyError: 'first'" in row["traceback"]
    assert ", in run_trial\n" in row["traceback"]
    assert row["traceback"].endswith(
        ", in broken\n" + row["traceback"].splitlines()[-2] + "\nRuntimeError: no file ~/secret\n"
    )
    assert str(Path.home()) not in row["traceback"]
    assert store.read("trials")["status"].to_pylist() == ["error"]
    assert store.read("predictions").num_rows == 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (MemoryError(), "oom"),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            "oom",
        ),
    ],
)
def test_memory_that_runs_out_ends_the_trial_as_oom(
    packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception, status: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(build, "model", full)
    assert train(CONFIG, packed, store)["status"] == status


def test_a_loss_that_is_not_finite_ends_the_trial_as_diverged(packed: Pack, store: Store) -> None:
    row = train(
        replace(CONFIG, base_lr=1e30, warmup_share=0.0, lr_schedule="constant"), packed, store
    )
    assert row["status"] == "diverged"
    assert "base_lr" in str(row["error"])


def test_scores_that_are_no_numbers_end_the_trial_as_diverged(
    packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "casting_tune.training.loop.predict", lambda *_, **__: np.full(16, np.nan, np.float32)
    )
    monkeypatch.setattr(
        records, "predictions", lambda parts, pack, scores: _Scored(np.full(3, np.nan))
    )
    row = train(CONFIG, packed, store)
    assert row["status"] == "diverged"
    assert "not a number" in str(row["error"])


def test_a_store_that_fails_is_no_trials_fault(
    packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> Iterator[None]:
        raise StoreError("full")

    monkeypatch.setattr(Store, "write", full)
    with pytest.raises(StoreError, match="full"):
        train(CONFIG, packed, store)


def test_a_second_attempt_stands_beside_the_first(packed: Pack, store: Store) -> None:
    assert train(CONFIG, packed, store)["attempt"] == 1
    assert train(CONFIG, packed, store)["attempt"] == 2
    assert len(store.files("trials")) == 2


def test_one_channel_and_three_and_both_layouts_and_precisions_train(
    packed: Pack, store: Store
) -> None:
    for change in (
        {"in_channels": 1},
        {"layout": "contiguous"},
        {"precision": "bf16"},
        {"dense": 8, "dropout": 0.2},
    ):
        assert train(replace(CONFIG, epochs=1, **change), packed, store)["status"] == "completed"


def test_a_subset_is_as_large_as_requested(packed: Pack, store: Store) -> None:
    row = train(replace(CONFIG, train_images=30, test_images=10), packed, store)
    n_learned = row["n_train"] + row["n_validation"]  # type: ignore[operator]
    assert (n_learned, row["n_test"]) == (30, 10)


def test_a_trial_measures_its_own_peak_memory_and_times(packed: Pack, store: Store) -> None:
    row = train(CONFIG, packed, store)
    assert row["step_s"] == row["epoch_s"] / row["n_steps"]  # type: ignore[operator]
    assert row["image_s"] == row["epoch_s"] / row["n_train"]  # type: ignore[operator]
    assert 0 < row["latency_one_s"] < row["duration_s"]  # type: ignore[operator]
    peak = row["peak_memory_bytes"]
    assert peak is None or peak > 50_000_000  # type: ignore[operator]


def test_a_trial_that_takes_too_long_ends_as_a_timeout_and_can_go_on(
    packed: Pack, store: Store
) -> None:
    row = train(CONFIG, packed, store, allowance=Allowance(max_seconds=1e-9))
    assert (row["status"], row["error"]) == (
        "timeout",
        "TimeUp: Time limit reached in epoch 1 of 2.",
    )
    assert train(CONFIG, packed, store)["status"] == "completed"


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is limited on Linux alone"
)
def test_a_trial_that_asks_for_more_memory_than_it_may_ends_as_oom(
    packed: Pack, store: Store
) -> None:
    held = memory.peak(torch.device("cpu"))
    assert held is not None
    big = replace(
        CONFIG, backbone="vgg16", image_px=128, epochs=1
    )  # 134 MB of weights, gradients and moments each
    memory.reset_peak(torch.device("cpu"))
    now = memory.peak(torch.device("cpu")) or held
    row = train(big, packed, store, allowance=Allowance(memory_bytes=now + 100 * 2**20))
    assert row["status"] == "oom", row
    assert train(CONFIG, packed, store)["status"] == "completed"


def test_micro_batches_train_the_same_network_without_batch_normalisation(
    packed: Pack, tmp_path: Path
) -> None:
    config = replace(CONFIG, backbone="timm:test_vit.r160_in1k", image_px=160, toggles=())
    whole, parts = Store(tmp_path / "whole"), Store(tmp_path / "parts")
    assert train(config, packed, whole)["micro_batch"] is None
    assert train(config, packed, parts, allowance=Allowance(micro_batch=4))["micro_batch"] == 4
    cell = cell_id(config, packed.dataset_id)
    assert np.abs(scores(whole, cell) - scores(parts, cell)).max() < 1e-4
    steps = [store.read("epochs")["n_steps"].to_pylist() for store in (whole, parts)]
    assert steps[0] == steps[1]


def test_kept_weights_are_those_that_made_the_predictions(packed: Pack, store: Store) -> None:
    row = train(CONFIG, packed, store, allowance=Allowance(keep=("last", "best")))
    cell = str(row["cell_id"])
    model = build.model(
        CONFIG.backbone, weights="none", dense=0, dropout=0, in_channels=3, seed=9
    ).eval()
    model.load_state_dict(load_file(artifacts.weights(store, cell)))
    prepare = inputs.normaliser(CONFIG, torch.device("cpu"))
    predictions = store.read("predictions").to_pandas()
    images = batches.put(
        packed.images, predictions["image"].to_numpy(), px=32, device=torch.device("cpu")
    )
    with torch.inference_mode():
        found = model(prepare(augmentation.resize(images, px=32))).sigmoid().numpy()
    np.testing.assert_allclose(found, predictions["score"], atol=1e-5)
    losses = store.read("epochs").to_pandas().set_index("epoch")["validation_loss"]
    best = checkpoint.kept_epoch(artifacts.weights(store, cell, best=True))
    assert best is not None
    assert (best.epoch, best.validation_loss) == (losses.idxmin(), losses.min())


def test_no_weights_are_kept_without_a_request(packed: Pack, store: Store) -> None:
    train(CONFIG, packed, store)
    assert not (store.root / "weights").exists()


def test_how_strong_a_toggle_is_reaches_the_training_and_its_row(
    packed: Pack, store: Store
) -> None:
    config = replace(CONFIG, toggles=("rotation",), epochs=1)
    rows = [
        train(replace(config, rotation_deg=degrees), packed, store) for degrees in (45.0, 5.0, 5.0)
    ]
    assert [row["rotation_deg"] for row in rows] == [45.0, 5.0, 5.0]
    losses = (
        store.read("epochs")
        .sort_by([("cell_id", "ascending"), ("attempt", "ascending")])
        .to_pandas()
    )
    by_cell = losses.groupby("cell_id")["train_loss"].agg(["nunique", "first"])
    assert list(by_cell["nunique"]) == [1, 1]  # the same cell trained again gives the same loss
    assert by_cell["first"].nunique() == 2
