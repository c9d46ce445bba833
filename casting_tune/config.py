"""Input and output of a trial: TrialConfig, Allowance, Epoch, Predictions; and the key of a cell.

Knows no torch, Ray or Parquet. All classes are frozen and contain plain values or numpy arrays.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RECIPE = 1
"""Version of the training. Raise it if the same TrialConfig would train another network, as after a
changed default.
"""

BASELINE = "baseline:"
"""Prefix of the backbone of a cell without a network; a name of `baselines.BASELINES` follows."""

Status = Literal["completed", "stopped", "error", "oom", "timeout", "diverged"]


RESOLVED = ("weights_id", "split_id", "validation")
"""Settings that a sweep derives from `weights`, `split` and the images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialConfig:
    """One cell: everything except the images that can change the result of one training.

    Attributes:
        backbone: a name of `registry.BACKBONES`, or `timm:NAME`.
        weights: `imagenet`, `none`, or `local-dir:PATH`.
        weights_id: identity of the weights (a timm tag or a hash); it is in the key, not the path.
        dense: width of the dense layer before the logit; 0 is none.
        dropout: dropout rate before the logit, in [0, 1).
        toggles: the augmentations that are on, in the order of `toggles.TOGGLES`.
        image_px: side of the square input of the network.
        in_channels: 1 or 3; gray images are expanded to 3 after augmentation.
        batch_size: images per step.
        epochs: passes over all training images.
        seed: of the initial weights, the shuffle, the dropout and every toggle.
        split: `official`: the test images are those of the folder test. `grouped`: all images are
            divided into `n_folds` parts without common photographs; part `fold` is tested.
        split_id: identity of the groups (a hash of the audit's groups); "official" without groups.
        n_folds: parts of a grouped split.
        fold: the test part of a grouped split, from 0.
        validation: `official`: the validation images are those of the folder validation. `drawn`:
            they are drawn from the training images.
        validation_share: stratified share of the training images for validation, in (0, 1).
        split_seed: of the draw of the validation images and of the subsets below.
        train_images: maximum of images for training and validation, stratified; 0 is all.
        test_images: maximum of test images, stratified; 0 is all.
        base_lr: peak learning rate at batch size 32; otherwise base_lr * sqrt(batch_size / 32).
        weight_decay: AdamW's decoupled decay.
        warmup_share: share of all steps in which the learning rate rises from zero, in [0, 1).
        lr_schedule: learning rate after the warm-up.
        precision: arithmetic of forward and backward; weights are float32. A sweep replaces `auto`
            for its device before the key is made, so a running cell never has auto.
        layout: memory order of images and weights.
        hue_turns: maximum change of the toggle hue, in turns of the colour circle, both directions.
        contrast_low, contrast_high: range of the contrast factor; 1 is no change.
        shift_share: maximum shift as a share of the side, per axis, both directions.
        rotation_deg: maximum rotation in degrees, both directions.
        brightness_share: the brightness factor is between 1 - this and 1 + this.
        shear_deg: maximum shear in degrees, both directions.
        zoom_share: the zoom factor of each axis is between 1 - this and 1 + this.
    """

    backbone: str
    weights: str = "none"
    weights_id: str = "none"
    dense: Annotated[int, Ge(0), Lt(2**32)] = 0
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    toggles: tuple[str, ...] = ()
    image_px: Annotated[int, Ge(16), Lt(4097)] = 512
    in_channels: Literal[1, 3] = 3
    batch_size: Annotated[int, Gt(0), Lt(2**32)] = 8
    epochs: Annotated[int, Gt(0), Lt(2**32)] = 10
    seed: Annotated[int, Ge(0), Lt(2**32)] = 0
    split: Literal["official", "grouped"] = "official"
    split_id: str = "official"
    n_folds: Annotated[int, Ge(2), Lt(2**32)] = 5
    fold: Annotated[int, Ge(0), Lt(2**32)] = 0
    validation: Literal["drawn", "official"] = "drawn"
    validation_share: Annotated[float, Gt(0), Lt(1)] = 0.2
    split_seed: Annotated[int, Ge(0), Lt(2**32)] = 0
    train_images: Annotated[int, Ge(0), Lt(2**32)] = 0
    test_images: Annotated[int, Ge(0), Lt(2**32)] = 0
    base_lr: Annotated[float, Gt(0)] = 1e-3
    weight_decay: Annotated[float, Ge(0)] = 0.01
    warmup_share: Annotated[float, Ge(0), Lt(1)] = 0.1
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    layout: Literal["channels_last", "contiguous"] = "channels_last"
    hue_turns: Annotated[float, Ge(0), Le(0.5)] = 0.5
    contrast_low: Annotated[float, Ge(0), Le(1)] = 0.75
    contrast_high: Annotated[float, Ge(1), Le(10)] = 1.5
    shift_share: Annotated[float, Ge(0), Lt(1)] = 0.1
    rotation_deg: Annotated[float, Ge(0), Le(180)] = 45.0
    brightness_share: Annotated[float, Ge(0), Lt(1)] = 0.1
    shear_deg: Annotated[float, Ge(0), Lt(90)] = 5.0
    zoom_share: Annotated[float, Ge(0), Lt(1)] = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """Limits of a trial, what follows a failure, and weights to keep; none is in the cell's key.

    Attributes:
        max_seconds: limit of the whole trial, which then ends with status timeout. None: no limit.
        memory_bytes: limit of its memory on the CPU; it then ends with status oom. None: no limit.
        gpu_share: limit of its share of a GPU's memory, in (0, 1]; it then ends with status oom.
        micro_batch: maximum of images in the network at once during training, for small devices.
            The step is still that of the batch, but batch normalisation sees fewer images. None:
            the batch.
        images_bytes: most bytes of images on the device; more are read batch by batch, with equal
            results. None: half of the free memory; 0: always batch by batch.
        keep: weights to keep after completion: "last", of the last epoch, which made the
            predictions; "best", of the epoch with the lowest validation loss.
        retries: how often a trial that ends in an error runs again.
        on_oom: "accumulate" runs a trial whose memory ran out again, with half as many images per
            forward pass.
    """

    max_seconds: float | None = None
    memory_bytes: int | None = None
    gpu_share: float = 1.0
    micro_batch: int | None = None
    images_bytes: int | None = None
    keep: tuple[Literal["last", "best"], ...] = ()
    retries: int = 0
    on_oom: Literal["fail", "accumulate"] = "fail"


UNLIMITED = Allowance()


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """Results of one epoch. Losses are mean binary cross-entropies in nats."""

    epoch: int
    n_images: int
    n_steps: int
    learning_rate: float
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    train_s: float
    validation_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """The primary result: one score per image of the validation and test sets.

    Attributes:
        image: [n] int64, index in the pack.
        split: [n] "validation" or "test".
        y_true: [n] uint8, 1 is defective.
        score: [n] float32, P(defective) in [0, 1].
        leaked: [n] bool, a test image with a byte-identical copy in training or validation.
    """

    image: NDArray[np.int64]
    split: NDArray[np.str_]
    y_true: NDArray[np.uint8]
    score: NDArray[np.float32]
    leaked: NDArray[np.bool_]


def cell_id(config: TrialConfig, dataset_id: str) -> str:
    """Return the key of a cell: 16 hexadecimal digits over configuration, dataset and recipe.

    Settings with their default are omitted, so that a new setting does not change the keys of older
    cells; a changed default requires a higher RECIPE. The path of `local-dir:` is omitted too:
    `weights_id` identifies the weights.
    """
    defaults = {f.name: f.default for f in fields(TrialConfig)}
    # not asdict: it copies every value and takes 0.1 ms
    given = {name: getattr(config, name) for name in defaults}
    settings = {k: v for k, v in given.items() if k != "weights" and v != defaults[k]}
    canonical = json.dumps([RECIPE, dataset_id, settings], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
