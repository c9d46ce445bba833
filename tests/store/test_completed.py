from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from casting_tune.config import TrialConfig, cell_id
from casting_tune.data.pack import Pack
from casting_tune.errors import ImagesError, StoreError, UsageError
from casting_tune.store import completed
from casting_tune.store.store import Store
from casting_tune.training.image_split import split_images
from casting_tune.training.records import Ending, TrialContext, TrialRecord, describe

OTHERS = {
    float: lambda value: value / 2,
    int: lambda value: value + 3,
}


def write_row(store: Store, config: TrialConfig, pack: Pack, **changes: object) -> str:
    from datetime import UTC, datetime

    cell = cell_id(config, pack.dataset_id)
    record = TrialRecord(
        cell_id=cell,
        attempt=1,
        context=TrialContext(sweep="s", label="l"),
        description=describe(config, pack, split_images(config, pack)),
        started_at=datetime.now(UTC),
        ending=Ending(status="completed"),
    )
    store.write("trials", "s", f"{cell}-1", [record.row() | changes])
    return cell


def test_every_completed_row_gives_the_key_of_its_cell_again(trained: Store) -> None:
    rows = trained.read("trials").to_pylist()
    assert len(rows) >= 4
    for row in rows:
        assert cell_id(completed.config_of(row), row["dataset_id"]) == row["cell_id"]


def test_a_configuration_without_one_default_comes_back_whole_from_its_row(
    packed: Pack, store: Store
) -> None:
    plain = TrialConfig(backbone="timm:test_resnet.r160_in1k", precision="fp32")
    changed = {
        f.name: OTHERS[type(f.default)](f.default)
        for f in fields(TrialConfig)
        if type(f.default) in OTHERS
        and f.name not in ("in_channels", "fold", "train_images", "test_images", "dropout")
    }
    config = replace(
        plain,
        **changed,
        toggles=("hue", "flip"),
        in_channels=1,
        dropout=0.3,
        lr_schedule="constant",
        layout="contiguous",
    )
    assert len(changed) > 15
    cell = write_row(store, config, packed)
    assert completed.config_of(completed.find(store, cell)) == config


def test_weights_of_a_folder_need_that_folder_again(
    packed: Pack, store: Store, tmp_path: Path
) -> None:
    config = TrialConfig(
        backbone="vgg16",
        weights="local-dir:/somewhere",
        weights_id="local-dir:abc",
        precision="fp32",
    )
    cell = write_row(store, config, packed)
    row = completed.find(store, cell)
    with pytest.raises(UsageError, match="Give it with --weights-dir"):
        completed.config_of(row)
    assert completed.config_of(row, weights_dir=tmp_path).weights == f"local-dir:{tmp_path}"


def test_a_row_that_was_changed_or_is_of_another_recipe_is_refused(
    packed: Pack, store: Store
) -> None:
    cell = write_row(store, TrialConfig(backbone="vgg16", precision="fp32"), packed, seed=77)
    row = completed.find(store, cell)
    with pytest.raises(StoreError, match="does not match its id"):
        completed.config_of(row)
    with pytest.raises(StoreError, match="has recipe 99"):
        completed.config_of(row | {"recipe": 99})


def test_a_cell_is_refused_without_its_images_or_with_others(
    trained: Store, packed: Pack, tmp_path: Path
) -> None:
    from casting_tune.data import synthetic

    row = next(
        row for row in trained.read("trials").to_pylist() if row["backbone"].startswith("timm:")
    )
    alone = Store(tmp_path / "alone")
    alone.write("trials", "s", f"{row['cell_id']}-1", [row])
    with pytest.raises(ImagesError, match="Give their folder with --data"):
        completed.load(alone, row["cell_id"])
    synthetic.draw(tmp_path / "others", n_images=40, size_px=64, seed=9)
    with pytest.raises(ImagesError, match="was trained on"):
        completed.load(
            alone, row["cell_id"], images=completed.ImageSource(folder=tmp_path / "others")
        )
