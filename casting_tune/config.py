"""The nouns that travel: TrialConfig and Allowance go in, Epoch and Predictions come out; and the key of a cell.

Knows nothing of torch, Ray or Parquet. Everything here is frozen and made of plain values or numpy
arrays.
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
"""Version of what a configuration means. Raise it when the same TrialConfig would train another
network: a changed default does that.
"""

BASELINE = "baseline:"
"""Prefix of the backbone of a cell that trains no network; a name of `baselines.BASELINES` follows."""

Status = Literal["completed", "stopped", "error", "oom", "timeout", "diverged"]


RESOLVED = ("weights_id", "split_id")
"""Settings that no one chooses: a sweep works them out from `weights`, from `split` and from the images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialConfig:
    """One cell: everything that can change the result of one training, beside the images themselves.

    Attributes:
        backbone: a name of `backbones.BACKBONES`, or `timm:NAME`.
        weights: `imagenet`, `none`, or `local-dir:PATH`.
        weights_id: what the weights really are (a timm tag or a hash); it stands in the key, the path does not.
        dense: width of the dense layer before the logit; 0 is none.
        dropout: dropout rate before the logit, in [0, 1).
        toggles: the augmentations that are on, in the order of `augment.TOGGLES`.
        image_px: side of the square input of the network.
        in_channels: 1 or 3; gray images are expanded to 3 after augmentation.
        batch_size: images a step.
        epochs: passes over all training images.
        seed: of the initial weights, the shuffle, the dropout and every toggle.
        split: `official`: the test images are those that the folder names test. `grouped`: all images are divided into
            `n_folds` parts so that no photograph of a casting stands in two of them, and part `fold` is tested.
        split_id: what the groups really are (a hash of the audit's groups); "official" without groups.
        n_folds: parts of a grouped split.
        fold: which part of a grouped split is tested, from 0.
        validation_share: stratified share of the training images that is validated on, in (0, 1).
        split_seed: of the draw of the validation images (and of the subsets below).
        train_images: at most this many images for training and validation together, stratified; 0 is all.
        test_images: at most this many test images, stratified; 0 is all.
        base_lr: peak learning rate at batch size 32; the trial's own is base_lr * sqrt(batch_size / 32).
        weight_decay: AdamW's decoupled decay.
        warmup_share: share of all steps in which the learning rate rises from zero, in [0, 1).
        lr_schedule: what follows the warm-up.
        precision: arithmetic of forward and backward; weights stay float32. A sweep resolves `auto` for its
            device before the key is made, so no cell that runs is called auto.
        layout: memory order of images and weights.
        hue_turns: the toggle hue turns by up to this share of the colour circle either way.
        contrast_low, contrast_high: ends of the contrast factor; 1 leaves the image as it is.
        shift_share: the toggle shift moves by up to this share of the side, along each axis either way.
        rotation_deg: the toggle rotation turns by up to so many degrees either way.
        brightness_share: the brightness factor lies within 1 - this and 1 + this.
        shear_deg: the toggle shear slants by up to so many degrees either way.
        zoom_share: the zoom factor of each axis lies within 1 - this and 1 + this.
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
    """What a trial may take and what it leaves behind; nothing here stands in the cell's key.

    Attributes:
        max_seconds: of the whole trial; after that it ends with status timeout. None: as long as it takes.
        memory_bytes: most memory of its own on the CPU; beyond that it ends with status oom. None: no limit.
        gpu_share: most of a GPU's memory that it may hold, in (0, 1]; beyond that it ends with status oom.
        micro_batch: most images that go through the network at once in training, for a device that cannot hold the
            whole batch; the step stays that of the batch, batch normalisation sees fewer images. None: the batch.
        keep: weights to keep after completion: "last", those that made the predictions, and "best", those of the
            epoch with the lowest validation loss.
    """

    max_seconds: float | None = None
    memory_bytes: int | None = None
    gpu_share: float = 1.0
    micro_batch: int | None = None
    keep: tuple[Literal["last", "best"], ...] = ()


UNLIMITED = Allowance()


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What one pass over the training images gave.

    Losses are mean binary cross-entropies in nats.
    """

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
    """The primary result: one score for every image of the validation and test sets.

    Attributes:
        image: [n] int64, row of the pack.
        split: [n] "validation" or "test".
        y_true: [n] uint8, 1 is defective.
        score: [n] float32, P(defective) in [0, 1].
        leaked: [n] bool, a test image of which a byte-identical copy was trained or validated on.
    """

    image: NDArray[np.int64]
    split: NDArray[np.str_]
    y_true: NDArray[np.uint8]
    score: NDArray[np.float32]
    leaked: NDArray[np.bool_]


def cell_id(config: TrialConfig, dataset_id: str) -> str:
    """Return the key of a cell: 16 hexadecimal digits over configuration, dataset and recipe version.

    Settings at their defaults are left out, so that a setting that a later version adds leaves
    older cells their keys; whoever changes a default raises RECIPE. The path behind `local-dir:` is
    left out too: `weights_id` says what was found there.
    """
    defaults = {f.name: f.default for f in fields(TrialConfig)}
    given = {
        name: getattr(config, name) for name in defaults
    }  # asdict copies every value: a tenth of a millisecond
    settings = {k: v for k, v in given.items() if k != "weights" and v != defaults[k]}
    canonical = json.dumps([RECIPE, dataset_id, settings], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
