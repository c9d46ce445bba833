"""Score the test images of a pack by a baseline, which trains no network.

Input: a configuration whose backbone is `baseline:NAME`, a pack and its split. Output: predictions
of the test images. Does not know stores or schedulers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from casting_tune.config import Predictions, TrialConfig
from casting_tune.data import augmentation, batches
from casting_tune.data.pack import Pack
from casting_tune.data.splits import Folds
from casting_tune.models import build
from casting_tune.training import baselines, inputs, records

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

BASELINE = "baseline:"
"""Prefix of the backbone of a cell that trains no network, before a name of `BASELINES`."""
PROBED, PROBED_PX = "timm:resnet10t", 96
"""The network with random weights that extracts the features of the linear probe."""


def is_baseline(config: TrialConfig) -> bool:
    """Return whether a cell is a baseline."""
    return config.backbone.startswith(BASELINE)


def fit_baseline(config: TrialConfig, pack: Pack, *, parts: Folds, n_threads: int) -> Predictions:
    """Return the scores of the test images; baselines learn from train and validation."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(n_threads)
    known = np.sort(np.concatenate([parts.train, parts.validation]))
    name = config.backbone.removeprefix(BASELINE)
    with threadpool_limits(n_threads, user_api="blas"):  # numpy's, which would use every core
        if name == "linear_probe":
            learned = _probed(pack.labels, known)
            features = _random_features(pack, np.concatenate([learned, parts.test]))
            n_learned = len(learned)
            result = baselines.linear_probe(
                features[:n_learned], pack.labels[learned], features[n_learned:]
            )
        elif name == "majority":
            result = baselines.majority(pack.labels[known], len(parts.test))
        else:
            descriptor = cast(Literal["small", "polar"], name.removeprefix("nearest_"))
            result = baselines.nearest(
                pack.images, pack.labels, known, parts.test, descriptor=descriptor
            )
    parts = replace(parts, train=known, validation=known[:0])
    return records.predictions(parts, pack, [result.score[:0], result.score])


def _probed(labels: NDArray[np.uint8], known: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the images that the linear probe learns from: all, or a stratified subset."""
    if len(known) <= baselines.MOST_PROBED:
        return known
    from sklearn.model_selection import train_test_split

    chosen, _ = train_test_split(
        known, train_size=baselines.MOST_PROBED, stratify=labels[known], random_state=0
    )
    return np.sort(chosen)


def _random_features(pack: Pack, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return features [n, d] of some images from a network with random weights, fixed seed."""
    import torch

    channels: Literal[1, 3] = 1 if pack.images.ndim == 3 else 3
    config = TrialConfig(backbone=PROBED, image_px=PROBED_PX, in_channels=channels)
    device = torch.device("cpu")
    model = build.model(
        PROBED, weights="none", dense=0, dropout=0, in_channels=channels, seed=0
    ).eval()
    backbone = cast("torch.nn.Module", model.backbone)
    prepare = inputs.normaliser(config, device)
    features = []
    with torch.inference_mode():
        for part in batches.slices(len(indices), inputs.EVALUATION_BATCH):
            pixels = batches.put(pack.images, indices[part], px=PROBED_PX, device=device)
            features.append(backbone(prepare(augmentation.resize(pixels, px=PROBED_PX))))
    return torch.cat(features).numpy()
