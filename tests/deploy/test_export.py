from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from casting_tune.analysis import selection
from casting_tune.data import augmentation, batches
from casting_tune.deploy import export, grad_cam, onnx_graph, retrain
from casting_tune.deploy.checks import Checked
from casting_tune.errors import CastingTuneError, StoreError, UsageError
from casting_tune.models import build
from casting_tune.store import artifacts, completed
from casting_tune.store.completed import Cell
from casting_tune.store.store import Store


@pytest.fixture(scope="module")
def cell(trained: Store) -> Cell:
    row = next(
        row for row in trained.read("trials").to_pylist() if row["backbone"].startswith("timm:")
    )
    return completed.load(trained, row["cell_id"])


@pytest.fixture(scope="module")
def exported(
    cell: Cell, trained: Store, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Checked]:
    folder = tmp_path_factory.mktemp("exports") / "line"
    return folder, export.export(
        cell,
        trained,
        folder,
        card=export.CardText(licence="CC0 [x](y)", selection=("Named by hand.",)),
    )


def decider_of(name: str, *, px: int, in_channels: int = 3) -> onnx_graph.Decider:
    """A network whose batch norms have seen images, so that its scores spread."""
    model = build.model(name, weights="none", dense=0, dropout=0, in_channels=in_channels, seed=0)
    decider = onnx_graph.Decider(
        model, px=px, in_channels=in_channels, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    )
    images = torch.from_numpy(some_images(16, (80, 80)))
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(decider.prepare(images))
    decider.eval()
    return decider


def some_images(n: int, shape: tuple[int, ...]) -> np.ndarray:
    """Smooth pictures with an edge: pure noise would be gray after reduction."""
    draw = np.random.default_rng(3)
    coarse = torch.from_numpy(draw.uniform(0, 255, (n, 1, 9, 9))).float()
    fine = torch.nn.functional.interpolate(coarse, shape[-2:], mode="bicubic").clamp(0, 255)[:, 0]
    fine = (fine + torch.from_numpy(draw.normal(0, 6, fine.shape))).clamp(0, 255).byte().numpy()
    return fine if len(shape) == 2 else np.stack([fine, fine // 2, 255 - fine], axis=1)


@pytest.mark.parametrize(
    ("shape", "px"),
    [((80, 80), 32), ((48, 48), 96), ((80, 40), 64), ((64, 64), 64), ((3, 80, 60), 32)],
)
def test_the_graph_sees_images_as_a_trial_does(shape: tuple[int, ...], px: int) -> None:
    images = some_images(4, shape)
    loaded = batches.put(images, np.arange(4), px=px, device=torch.device("cpu"))
    expected = augmentation.resize(loaded, px=px)
    decider = onnx_graph.Decider(
        torch.nn.Identity(), px=px, in_channels=3, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    found = decider.prepare(torch.from_numpy(images))[:, : loaded.shape[1]]
    away = (found - expected).abs()
    assert float(away.max()) <= 1.001 / 255  # one level, where a sum lies on the edge between two
    # 80 to 64 px puts many sums on that edge, and enlarging spreads them: 0.03 there, under 0.005
    # elsewhere
    assert float((away > 1e-5).float().mean()) < 0.05


NETWORKS = [
    "timm:resnet10t",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("mobilenetv2", "nasnet_mobile", "efficientnetb4", "xception")
    ),
]


@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_scores_and_decides_as_torch_at_any_number_and_size(
    name: str, tmp_path: Path
) -> None:
    decider = decider_of(name, px=64)
    rows = np.arange(5)
    images = some_images(5, (80, 80))
    score = onnx_graph.score(decider, images, rows, precision="fp32")
    decider.threshold.fill_(float(np.sort(score)[2]))  # on a score: >= is exercised
    onnx_graph.save_onnx(decider, tmp_path / "n.onnx", shape=(80, 80), metadata={})
    for given in (images, images[:1], images[:, :70, :50].copy()):
        rows = np.arange(len(given))
        expected = onnx_graph.score(decider, given, rows, precision="fp32")
        found, decisions = onnx_graph.score_onnx(tmp_path / "n.onnx", given, rows)
        assert np.abs(found - expected).max() <= 1e-5
        clear = np.abs(expected - float(decider.threshold)) > 1e-5
        assert (decisions == (expected >= float(decider.threshold)))[clear].all()
        if given is images:
            assert 0 < decisions.sum() < 5


def test_an_export_says_what_it_checked_and_sums_every_file(
    exported: tuple[Path, Checked], cell: Cell
) -> None:
    folder, checked = exported
    assert checked.n_images == len(cell.predictions.score)
    assert checked.largest_onnx <= 1e-5
    assert not checked.kept
    lines = dict(
        reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines()
    )
    assert set(lines) == {file.name for file in folder.iterdir()} - {"SHA256SUMS"}
    for name, digest in lines.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    card = (folder / "README.md").read_text()
    for name, value in asdict(cell.config).items():
        assert f"{name} {cell.row['augmentation'] if name == 'toggles' else value}" in card.replace(
            "\\", ""
        )
    for text in (
        "CC0 \\[x\\](y)",
        "Named by hand.",
        "fixed at 0.5",
        cell.row["cell_id"],
        "The bounds for new castings are above",
    ):
        assert text in card


def test_weights_without_read_permission_are_not_called_missing(
    cell: Cell, tmp_path: Path, refuse: Callable[[Path], None]
) -> None:
    store = Store(tmp_path)
    file = artifacts.weights(store, cell.row["cell_id"])
    file.parent.mkdir()
    file.touch()
    refuse(file)
    with pytest.raises(StoreError, match=f"^Cannot read '{file}': permission denied"):
        retrain.trained(cell, store)


def test_every_file_of_an_export_has_the_mode_that_the_umask_gives(
    exported: tuple[Path, Checked], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    given = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "folder")]
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in exported[0].iterdir()}
    assert modes == dict.fromkeys(modes, given[0])
    assert {"model.safetensors", "head.safetensors", "network.onnx"} <= set(modes)
    assert stat.S_IMODE(exported[0].stat().st_mode) == given[1]


def test_the_backbone_opens_as_weights_of_a_folder(
    exported: tuple[Path, Checked], cell: Cell
) -> None:
    folder, _ = exported
    name, weights = cell.config.backbone, f"local-dir:{folder}"
    given = {"dense": 0, "dropout": 0.0, "in_channels": cell.config.in_channels, "seed": 9}
    opened = build.model(name, weights=weights, **given).backbone.state_dict()
    decider, _ = grad_cam.open_export(folder)
    for key, value in decider.model.backbone.state_dict().items():
        assert torch.equal(opened[key], value)
    assert build.normalisation(name, weights) == build.normalisation(name, "none")


def test_weights_of_another_training_are_refused(
    cell: Cell, trained: Store, tmp_path: Path
) -> None:
    other = replace(cell, predictions=replace(cell.predictions, score=1 - cell.predictions.score))
    with pytest.raises(StoreError, match="do not reproduce the stored scores"):
        export.export(other, trained, tmp_path / "line")
    assert list(tmp_path.iterdir()) == []


def test_other_scores_of_onnxruntime_leave_no_folder(
    cell: Cell, trained: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnx_graph.score_onnx

    def off(file: Path, images: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        score, decisions = real(file, images, rows)
        return score + np.float32(2e-5), decisions

    monkeypatch.setattr(onnx_graph, "score_onnx", off)
    with pytest.raises(CastingTuneError, match="nothing was exported"):
        export.export(cell, trained, tmp_path / "line")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_and_a_baseline_are_refused(
    cell: Cell, trained: Store, tmp_path: Path
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(UsageError, match="is in use"):
        export.export(cell, trained, tmp_path / "used")
    baseline = replace(cell, config=replace(cell.config, backbone="baseline:majority"))
    with pytest.raises(UsageError, match="is a baseline"):
        export.export(baseline, trained, tmp_path / "new")


def test_the_best_cell_is_chosen_on_validation_only(store: Store) -> None:
    scores = {
        "a": (0.9, 0.4),
        "b": (0.8, 0.1),
        "c": (0.6, 0.1),
    }  # of a defect and of a good casting, all right
    for position, (name, (defect, good)) in enumerate(scores.items()):
        requested = {
            "run_id": "r",
            "sweep": "s",
            "position": position,
            "cell_id": name,
            "row": name,
            "label": name,
        }
        store.write(
            "cells", "s", f"r-{name}", [requested | {"kind": "cell", "fold": 0, "dataset_id": "d"}]
        )
        row = {
            "cell_id": name,
            "attempt": 1,
            "status": "completed",
            "dataset_id": "d",
            "fold": 0,
            "split_seed": 0,
        }
        counts = {"n_validation": 2, "n_test": 2, "validation_accuracy": 1.0}
        store.write("trials", "s", f"{name}-1", [row | counts | {"seed": 0}])
        rows = [
            {"cell_id": name, "attempt": 1, "split": split, "image": y, "y_true": y, "score": score}
            for split in ("validation", "test")
            for y, score in ((1, defect if split == "validation" else 1 - defect), (0, good))
        ]
        store.write("predictions", "s", f"{name}-1", rows)
    best, text = selection.best(store, "s")
    # mean cross-entropy: a (0.105 + 0.511) / 2, b (0.223 + 0.105) / 2, c (0.511 + 0.105) / 2
    assert best == "b"
    assert "2 other rows have the same validation accuracy" in text[1]
    assert "0.1643" in text[1]


def test_the_letterbox_of_a_pack_is_in_the_settings(cell: Cell) -> None:
    sizes = cell.pack.sizes.copy()
    sizes[0] = (40, 64)
    boxed = replace(cell, pack=replace(cell.pack, sizes=sizes))
    assert export.decision(boxed, threshold=0.5, rule="r")["letterbox_px"] == 64
    assert export.decision(cell, threshold=0.5, rule="r")["letterbox_px"] is None
    json.dumps(export.decision(cell, threshold=0.5, rule="r"))
