"""Which image sizes and batch sizes a network accepts.

Input: the name of a backbone, a side, a batch size. Output: nothing, or a UsageError. A network
that is not in `registry.BACKBONES` is tried on torch's meta device, where nothing is computed.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

from casting_tune.errors import UsageError
from casting_tune.models import build
from casting_tune.models.registry import BACKBONES, check_name

SIDES_PX = (32, 48, 64, 75, 96, 112, 128, 160, 192, 224, 256, 299, 320, 384, 448, 512)
"""Sides that are tried to find one that a `timm:` network accepts."""

SMALL = "timm:resnet10t"
"""The small network of our own sweep files: it accepts every side from the first of `SIDES_PX`."""


@cache
def check_size(name: str, image_px: int) -> None:
    """Raise UsageError if a network cannot be trained with images of this side.

    The smallest sides of `BACKBONES` are known. A `timm:` network is tried; some accept one size
    only.
    """
    check_name(name)
    if name in BACKBONES:
        smallest = BACKBONES[name].min_px
        if image_px < smallest:
            raise UsageError(f"image_px must be at least {smallest} for '{name}'; got {image_px}.")
        return
    if (name == SMALL and image_px >= SIDES_PX[0]) or _accepts(name, image_px):
        return
    others = [px for px in SIDES_PX if _accepts(name, px)]
    if not others:
        raise UsageError(
            f"'{name}' accepts no square images of {SIDES_PX[0]} to {SIDES_PX[-1]} px. "
            "Use another network."
        )
    if image_px < others[0]:
        raise UsageError(f"image_px must be at least {others[0]} for '{name}'; got {image_px}.")
    raise UsageError(
        f"image_px {image_px} is not supported by '{name}'. Use {', '.join(map(str, others))} "
        "(tested sizes)."
    )


def fewest_images(name: str, image_px: int) -> int:
    """Return the smallest number of images of a training step: 1 or 2.

    Batch normalisation needs two values per channel in training: two images if its maps have one
    pixel. The head has no batch normalisation.
    """
    return 1 if _accepts(name, image_px, n_images=1) else 2


@cache
def check_batch(name: str, image_px: int, batch_size: int) -> None:
    """Raise UsageError if a network cannot be trained with this batch size.

    Two images are always enough if the side is valid (`check_size`). A last batch of one image is
    merged with the batch before it (`batches.slices`), so only batch_size 1 gives such batches.
    """
    if batch_size >= 2 or fewest_images(name, image_px) == 1:
        return
    larger = next((px for px in SIDES_PX if px > image_px and _accepts(name, px, n_images=1)), None)
    way_out = f", or image_px = {larger}" if larger else ""
    raise UsageError(
        f"batch_size must be at least 2 for '{name}' at image_px {image_px}, where its batch "
        f"normalisation gets one value per channel and image; got {batch_size}. "
        f"Use batch_size = 2{way_out}."
    )


@lru_cache(maxsize=4)
def _on_meta(name: str) -> Any:
    """Return a network without weights on torch's meta device, ready to train."""
    import torch

    check_name(name)
    with torch.device("meta"), build.random_stream(0, "size"):
        return build.timm_network(name, "none", in_channels=3)


def _accepts(name: str, image_px: int, *, n_images: int = 2) -> bool:
    """Return whether a training batch of this shape passes through a network."""
    import torch

    network = _on_meta(name)
    try:
        features = network(torch.empty(n_images, 3, image_px, image_px, device="meta"))
    # torch: too small for a layer; timm: not its one size
    except (RuntimeError, ValueError, AssertionError):
        return False
    return bool(features.ndim == (4 if name in BACKBONES else 2) and features.numel() > 0)
