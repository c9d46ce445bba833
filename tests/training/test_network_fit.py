"""A trial whose images are not all on its device: the same results, bit for bit, and no thread."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from casting_tune.config import Allowance, Epoch, TrialConfig
from casting_tune.data import pack, synthetic
from casting_tune.data.pack import Pack
from casting_tune.store.store import Store
from casting_tune.toggles import TOGGLES
from casting_tune.training import loop, trial
from casting_tune.training.records import TrialContext

CONFIG = TrialConfig(
    backbone="timm:test_resnet.r160_in1k",
    image_px=24,
    batch_size=7,
    epochs=2,
    precision="fp32",
    toggles=tuple(TOGGLES),
    dropout=0.3,
    dense=8,
)
NOTHING = Allowance(images_bytes=0)
"""No image may stay on the device."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """30 drawn castings of 32 px."""
    folder = tmp_path_factory.mktemp("small")
    synthetic.draw(folder / "castings", n_images=30, size_px=32, seed=2)
    return pack.pack(folder / "castings", folder / "packs")


def train(config: TrialConfig, packed: Pack, store: Store, **more: Any) -> dict[str, Any]:
    allowance = more.pop("allowance", NOTHING)
    context = TrialContext(sweep="s", label="l", allowance=allowance)
    return trial.run_trial(config, packed, store, context=context, **more)


def results(store: Store) -> list[list[Any]]:
    """Every score, loss and metric of a store."""
    losses = store.read("epochs", columns=["train_loss", "validation_loss", "validation_accuracy"])
    scores = store.read("predictions", columns=["split", "image", "score"])
    return [*losses.to_pydict().values(), *scores.to_pydict().values()]


def reading() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("casting-tune-images")]


@pytest.mark.parametrize(("px", "micro_batch"), [(24, None), (40, 4)])
def test_images_from_disk_memory_or_the_device_give_the_same_results_bit_for_bit(
    small: Pack, tmp_path: Path, px: int, micro_batch: int | None
) -> None:
    config = replace(CONFIG, image_px=px)
    ways = {
        "device": (small, Allowance(micro_batch=micro_batch)),
        "disk": (small, replace(NOTHING, micro_batch=micro_batch)),
        "memory": (
            replace(small, images=np.array(small.images)),
            replace(NOTHING, micro_batch=micro_batch),
        ),
    }
    found = {}
    for way, (images, allowance) in ways.items():
        store = Store(tmp_path / way)
        row = train(config, images, store, allowance=allowance)
        assert (row["status"], row["images_from"]) == ("completed", way), row["error"]
        assert store.read("trials")["images_from"].to_pylist() == [way]
        found[way] = results(store)
    assert found["disk"] == found["memory"] == found["device"]


def test_colour_images_from_disk_give_the_same_results_bit_for_bit(
    small: Pack, tmp_path: Path
) -> None:
    folder = tmp_path / "colour"
    folder.mkdir()
    levels = np.stack([np.roll(small.images, k, axis=1) for k in range(3)], axis=1)
    np.save(folder / "castings.npy", levels)
    colour = replace(small, images=np.load(folder / "castings.npy", mmap_mode="r"))
    stores = Store(tmp_path / "device"), Store(tmp_path / "disk")
    ways = [
        train(CONFIG, colour, store, allowance=allowance)["images_from"]
        for store, allowance in zip(stores, (Allowance(), NOTHING), strict=True)
    ]
    assert ways == ["device", "disk"]
    assert results(stores[0]) == results(stores[1])


def test_a_trial_goes_on_from_its_checkpoint_as_the_images_lie_elsewhere(
    small: Pack, tmp_path: Path
) -> None:
    class Gone(BaseException):
        pass

    def leave(epoch: Epoch) -> None:
        if epoch.epoch == 1:
            raise Gone

    through, resumed = Store(tmp_path / "through"), Store(tmp_path / "resumed")
    train(CONFIG, small, through, allowance=Allowance())
    with pytest.raises(Gone):
        train(CONFIG, small, resumed, on_epoch=leave)
    assert reading() == []
    assert train(CONFIG, small, resumed)["resumed_from"] == 1
    assert results(resumed)[-1] == results(through)[-1]  # the scores


@pytest.mark.parametrize("where", ["a step", "an epoch", "the predictions", "the disk"])
def test_no_thread_is_left_however_a_trial_ends(
    small: Pack, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def fail(*_: object, **__: object) -> Any:
        seen.append(len(reading()))
        raise RuntimeError("broken kernel")

    images = small
    if where == "a step":
        monkeypatch.setattr(loop, "learning_rate", fail)
    elif where == "the predictions":
        monkeypatch.setattr(loop, "predict", fail)
    elif where == "the disk":
        np.save(tmp_path / "castings.npy", small.images)
        images = replace(small, images=np.load(tmp_path / "castings.npy", mmap_mode="r"))
        with (tmp_path / "castings.npy").open("r+b") as file:
            file.truncate(10_000)
    store = Store(tmp_path / "results")
    row = train(CONFIG, images, store, on_epoch=fail if where == "an epoch" else lambda _: None)
    assert row["status"] == "error"
    wanted = "The pack '" if where == "the disk" else "RuntimeError: broken kernel"
    assert wanted in row["error"]
    assert seen == [] if where == "the disk" else seen == [1]
    assert reading() == []


def test_images_of_all_three_parts_count_for_the_limit_of_the_device(
    small: Pack, tmp_path: Path
) -> None:
    needed = 30 * 24 * 24  # one byte for each pixel at the size of the network's input
    ways = [
        train(
            replace(CONFIG, epochs=1),
            small,
            Store(tmp_path / str(n_bytes)),
            allowance=Allowance(images_bytes=n_bytes),
        )["images_from"]
        for n_bytes in (needed, needed - 1)
    ]
    assert ways == ["device", "disk"]


def test_a_baseline_has_no_images_on_a_device(small: Pack, store: Store) -> None:
    train(TrialConfig(backbone="baseline:majority"), small, store)
    assert store.read("trials")["images_from"].to_pylist() == [None]
