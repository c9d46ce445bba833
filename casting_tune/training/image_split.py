"""Which images of a pack a configuration trains on, validates on and tests on.

Input: a configuration, a pack, the groups of its images. Output: image indices, or their counts.
Trains nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

from casting_tune.config import TrialConfig
from casting_tune.data import splits
from casting_tune.data.groups import joined
from casting_tune.data.pack import Pack
from casting_tune.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def split_images(
    config: TrialConfig, pack: Pack, groups: NDArray[np.int64] | None = None
) -> splits.Folds:
    """Return the image indices of train, validation and test.

    Args:
        config: says how to split, and how many images to use.
        pack: the images.
        groups: [n] group number of each image; required by a grouped split.

    Raises:
        UsageError: a grouped split without groups, or too few images.
    """
    parts, kept_together = pack.splits, cast("NDArray[Any]", pack.sha256)
    if pack.groups is not None:
        kept_together = joined(pack.sha256, pack.groups)
    if config.split == "grouped":
        if groups is None:
            raise UsageError(
                'split = "grouped" requires the groups of these images. Run `casting-tune audit`.'
            )
        kept_together = groups
        parts = splits.grouped(
            pack.labels,
            groups,
            n_folds=config.n_folds,
            fold=config.fold,
            seed=config.split_seed,
            kinds=pack.kinds,
        )
    return splits.split(
        pack.labels,
        parts,
        kept_together,
        splits.SplitSettings(
            validation_share=config.validation_share,
            seed=config.split_seed,
            train_images=config.train_images,
            test_images=config.test_images,
            draw_validation=config.validation == "drawn",
        ),
        kinds=pack.kinds,
    )


def validation_of(config: TrialConfig, pack: Pack) -> Literal["drawn", "official"]:
    """Return whether the validation images are those of the pack, or drawn from train.

    A grouped split divides all images again, so its validation images are drawn.
    """
    has_own = config.split == "official" and "validation" in pack.splits
    return "official" if has_own else "drawn"


def count_images(
    config: TrialConfig, pack: Pack, groups: NDArray[np.int64] | None = None
) -> tuple[int, int, int]:
    """Return the numbers of training, validation and test images; trains nothing.

    Raises:
        UsageError: the configuration cannot run on these images.
    """
    if config.in_channels == 1 and pack.images.ndim == 4:
        raise UsageError(
            "in_channels = 1 requires gray images; these are colour. Set in_channels = 3."
        )
    parts = split_images(config, pack, groups)
    return len(parts.train), len(parts.validation), len(parts.test)
