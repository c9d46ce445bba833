from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from casting_tune.config import Epoch, TrialConfig, cell_id
from casting_tune.data.pack import Pack
from casting_tune.store import artifacts, storage
from casting_tune.store.store import Store
from casting_tune.training import checkpoint, trial
from casting_tune.training.network_fit import files_of
from casting_tune.training.records import TrialContext

CONFIG = TrialConfig(
    backbone="timm:test_resnet.r160_in1k",
    image_px=32,
    batch_size=16,
    epochs=4,
    precision="fp32",
    dense=8,
    dropout=0.3,
    toggles=("rotation", "flip"),
)
EPOCH = Epoch(
    epoch=1,
    n_images=1,
    n_steps=1,
    learning_rate=0.1,
    train_loss=0.1,
    validation_loss=0.1,
    validation_accuracy=0.1,
    train_s=0.1,
    validation_s=0.1,
)


def train(packed: Pack, store: Store, **more: object) -> dict[str, object]:
    return trial.run_trial(
        CONFIG, packed, store, context=TrialContext(sweep="s", label="l"), **more
    )  # type: ignore[arg-type]


def scores(store: Store) -> np.ndarray:
    return store.read("predictions")["score"].to_numpy()


@pytest.mark.parametrize("dies_at", [1, 2, 3])
def test_a_trial_that_dies_goes_on_from_its_last_epoch_and_ends_as_if_it_had_not(
    packed: Pack, tmp_path: Path, dies_at: int
) -> None:
    whole, broken = Store(tmp_path / "whole"), Store(tmp_path / "broken")
    train(packed, whole)

    def die(epoch: Epoch) -> None:
        if epoch.epoch == dies_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(packed, broken, on_epoch=die)
    row = train(packed, broken)
    assert (row["status"], row["attempt"], row["resumed_from"]) == ("completed", 2, dies_at)
    np.testing.assert_array_equal(scores(whole), scores(broken))
    epochs = broken.read("epochs").to_pandas().sort_values("epoch")
    assert epochs["epoch"].tolist() == [1, 2, 3, 4]
    assert epochs["attempt"].tolist() == [1] * dies_at + [2] * (4 - dies_at)
    assert not artifacts.checkpoint(broken, cell_id(CONFIG, packed.dataset_id)).exists()


def test_what_killed_processes_left_of_completed_cells_is_cleared_and_nothing_else(
    tmp_path: Path,
) -> None:
    done, under_way = "31a48e95c3269ccc", "0123456789abcdef"
    stay = [
        f"checkpoints/{under_way}.pt",
        f"checkpoints/.{under_way}.pt.7",
        f"weights/.{under_way}.safetensors.7",
        f"weights/{done}.safetensors",
        f"weights/{done}-best.safetensors",
    ]
    go = [
        f"checkpoints/{done}.pt", f"checkpoints/.{done}.pt.26982", f"weights/.{done}.safetensors.8",
        f"weights/.{done}-best.safetensors.9",
    ]  # fmt: skip
    for name in (*stay, *go):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    checkpoint.clear(tmp_path, {done})
    left = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert left == set(stay)
    checkpoint.clear(tmp_path / "an empty store", {done})


def test_an_epoch_whose_row_was_lost_with_the_process_gets_it_on_resuming(
    packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Store.write

    def die(self: Store, table: str, sweep: str, name: str, rows: list[dict[str, object]]) -> Path:
        if table == "epochs" and rows[0]["epoch"] == 2:
            raise KeyboardInterrupt  # after the checkpoint, before the row
        return real(self, table, sweep, name, rows)

    monkeypatch.setattr(Store, "write", die)
    with pytest.raises(KeyboardInterrupt):
        train(packed, store)
    monkeypatch.setattr(Store, "write", real)
    assert train(packed, store)["resumed_from"] == 2
    assert sorted(store.read("epochs")["epoch"].to_pylist()) == [1, 2, 3, 4]


def test_a_checkpoint_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Linear(2, 1)
    optimiser = torch.optim.AdamW(model.parameters())
    checkpoint.save(tmp_path / "c.pt", model, optimiser, EPOCH)
    before = (tmp_path / "c.pt").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path / "c.pt", model, optimiser, replace(EPOCH, epoch=2))
    assert (tmp_path / "c.pt").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


def test_best_weights_that_may_not_be_read_are_not_taken_for_missing(
    tmp_path: Path, refuse: Callable[[Path], None]
) -> None:
    assert checkpoint.kept_epoch(tmp_path / "none") is None
    (tmp_path / "best").touch()
    refuse(tmp_path / "best")
    with pytest.raises(PermissionError):
        checkpoint.kept_epoch(tmp_path / "best")


def test_a_damaged_checkpoint_costs_one_attempt_and_not_the_cell(
    packed: Pack, store: Store
) -> None:
    file = artifacts.checkpoint(store, cell_id(CONFIG, packed.dataset_id))
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half a checkpoint")
    assert train(packed, store)["status"] == "error"
    row = train(packed, store)
    assert (row["status"], row["resumed_from"]) == ("completed", 0)


def test_memory_that_runs_out_at_a_checkpoint_does_not_cost_it(
    packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = artifacts.checkpoint(store, cell_id(CONFIG, packed.dataset_id))

    def short(*_: object) -> None:
        file.parent.mkdir(parents=True)
        file.write_bytes(b"a checkpoint")
        raise MemoryError

    monkeypatch.setattr(checkpoint, "load", short)
    assert train(packed, store)["status"] == "oom"
    assert file.read_bytes() == b"a checkpoint"


def test_a_damaged_checkpoint_in_a_bucket_costs_one_attempt_too(packed: Pack, bucket: str) -> None:
    store = Store(bucket)
    file = artifacts.checkpoint(store, cell_id(CONFIG, packed.dataset_id))
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half a checkpoint")
    artifacts.share(store, file)
    assert train(packed, store)["status"] == "error"
    assert train(packed, store)["status"] == "completed"


def test_the_best_weights_so_far_go_to_the_machine_that_goes_on(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = artifacts.weights(Store(bucket), "a1", best=True)
    checkpoint.keep(best, torch.nn.Linear(2, 1), EPOCH)
    artifacts.share(Store(bucket), best)
    monkeypatch.setenv("XDG_CACHE_HOME", str(best.parent / "elsewhere"))
    storage.at.cache_clear()
    found = files_of(Store(bucket), "a1", keep=("best",)).best
    assert found != best
    assert checkpoint.kept_epoch(found) == EPOCH


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("evil"),))  # type: ignore[return-value]


def test_no_code_in_a_checkpoint_is_ever_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, tmp_path / "c.pt")
    model = torch.nn.Linear(2, 1)
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load(tmp_path / "c.pt", model, torch.optim.AdamW(model.parameters()))
    assert not (tmp_path / "evil").exists()
