from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from casting_tune.deploy import grad_cam, onnx_graph
from casting_tune.errors import UsageError
from casting_tune.models.heads import Model

TOLD = {"letterbox_px": None, "colour": False, "packed_px": [32, 32]}


class Maps(nn.Module):
    """Two maps: the image itself, and its negative."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([inputs, -inputs], dim=1)


def decider_of(weights: list[float], backbone: nn.Module | None = None) -> onnx_graph.Decider:
    head = nn.Sequential(nn.Linear(2, 1))
    with torch.no_grad():
        head[0].weight.copy_(torch.tensor([weights]))
        head[0].bias.zero_()
    model = Model(backbone=backbone or Maps(), head=head)
    return onnx_graph.Decider(model, px=32, in_channels=1, mean=(0.0,) * 3, std=(1.0,) * 3)


def spot() -> np.ndarray:
    image = np.zeros((32, 32), dtype=np.uint8)
    image[4:8, 20:24] = 255
    return image


def test_heat_is_the_gradient_weighted_sum_of_the_maps() -> None:
    score, heat = grad_cam.grad_cam(decider_of([3.0, 1.0]), spot())
    # d logit / d A_k is w_k / (32 * 32) everywhere, so the heat is (3 - 1) / 1024 * image
    assert heat == pytest.approx(2 / 1024 * (spot() / 255), abs=1e-7)
    assert score == pytest.approx(1 / (1 + np.exp(-2 * 16 / 1024)), abs=1e-6)


def test_evidence_against_a_defect_has_no_heat() -> None:
    _, heat = grad_cam.grad_cam(decider_of([-3.0, 1.0]), spot())
    assert heat.max() == 0


def test_a_network_without_maps_is_refused() -> None:
    class Tokens(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs.mean((2, 3)).repeat(1, 2)

        def forward_features(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs.flatten(2)

    with pytest.raises(UsageError, match="has none"):
        grad_cam.grad_cam(decider_of([1.0, 1.0], Tokens()), spot())


def test_each_image_gives_a_picture_or_a_reason(tmp_path: Path) -> None:
    Image.fromarray(spot()).save(tmp_path / "a$x$_<b>.png")
    (tmp_path / "broken.png").write_bytes(b"no")
    files = [tmp_path / "a$x$_<b>.png", tmp_path / "broken.png"]
    good, bad = grad_cam.explain(decider_of([3.0, 1.0]), TOLD, files, tmp_path / "out")
    assert good.file is not None
    with Image.open(good.file) as drawn:
        assert (
            np.ptp(np.asarray(drawn.convert("RGB")).astype(int), axis=2).max() > 100
        )  # heat has a colour
    assert (bad.file, bad.score) == (None, None)
    assert "not one of" in bad.reason
