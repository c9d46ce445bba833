"""Augmentation: applies the toggles to images on the trial's device.

Input: uint8 images, [b, 1, h, w] or [b, 3, h, w], and `Draws`, the parameters of one epoch. Output:
float32 inputs in 0..1, [b, c, px, px]. Toggles, ranges and order are those of the study, which used
Keras' ImageDataGenerator: resize, affine, flips, brightness, then hue and contrast on the filled
image. Differences:

- Resize, affine and flips are one warp with one bilinear interpolation. Keras first resizes
  (nearest), then warps.
- Brightness is not rounded. Keras rounds down to whole levels before and after it, because it
  converts through PIL. That darkens training images, but not evaluated ones, by up to 2 of 255
  levels.
- Contrast is clipped to 0..1. The study's generator did not clip: 7 % of its pixels were outside
  0..255.
- Hue is skipped on gray images, where it has no effect.

Each toggle has its own random generator: switching one off does not change the draws of the others.
Nothing waits for the device between two batches. Knows no trials, packs or networks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casting_tune import seeds
from casting_tune.toggles import STUDY, TOGGLES, ordered, with_range

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_CPU_PIXELS = 2**19
"""Output pixels per warp on a CPU. Small temporaries are faster: 2.1 times at 224 px, 2.7 times at
512 px (batch 64, 1 thread).
"""


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """Augmentation parameters of n images, on the device. None: that augmentation is off.

    Attributes:
        geometry: [n, 2, 3] float32, output to input position, (x, y) from -1 to 1 over the image.
        brightness: [n] float32 factor.
        hue: [n] float32, turns of the colour circle.
        contrast: [n] float32 factor.
        constant_fill: fill the area outside the image with black, else with the nearest edge pixel.
    """

    geometry: Tensor | None = None
    brightness: Tensor | None = None
    hue: Tensor | None = None
    contrast: Tensor | None = None
    constant_fill: bool = False

    def __getitem__(self, index: slice | Tensor) -> Draws:
        """Return the draws of some images; a slice makes no copy."""

        def part(column: Tensor | None) -> Tensor | None:
            return None if column is None else column[index]

        return Draws(
            geometry=part(self.geometry),
            brightness=part(self.brightness),
            hue=part(self.hue),
            contrast=part(self.contrast),
            constant_fill=self.constant_fill,
        )

    def copy_from(self, other: Draws) -> None:
        """Copy the numbers of other draws of as many images into these tensors."""
        for name in ("geometry", "brightness", "hue", "contrast"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is not None:
                mine.copy_(theirs)


def apply(images: Tensor, draws: Draws, *, px: int) -> Tensor:
    """Return the augmented inputs, [b, c, px, px] float32 in 0..1, on the device of the images.

    Args:
        images: [b, c, h, w] uint8, c 1 or 3; larger ones are first reduced with antialiasing.
        draws: of these b images. With all toggles off, the result equals that of `resize`.
        px: side of the square output.
    """
    import torch

    at_once = max(1, _CPU_PIXELS // px**2)
    if images.device.type != "cpu" or len(images) <= at_once:
        return _apply(images, draws, px)
    inputs = torch.empty(*images.shape[:2], px, px)
    for start in range(0, len(images), at_once):
        rows = slice(start, start + at_once)
        inputs[rows] = _apply(images[rows], draws[rows], px)
    return inputs


def resize(images: Tensor, *, px: int) -> Tensor:
    """Return inputs without augmentation, as for evaluation.

    [b, c, h, w] uint8 becomes [b, c, px, px] float32 in 0..1. Half-pixel centres, bilinear, with
    antialiasing if it reduces; exactly images / 255 if h = w = px.
    """
    return apply(images, Draws(), px=px)


def draw(
    toggles: tuple[str, ...],
    n: int,
    *,
    seed: int,
    epoch: int,
    device: torch.device,
    magnitudes: Mapping[str, float] = STUDY,
) -> Draws:
    """Return the draws of n images for one epoch; made on the CPU, so equal on every device."""
    drawn = parameters(toggles, n, seed=seed, epoch=epoch, magnitudes=magnitudes)
    return prepare(drawn, constant_fill="fill_mode" in toggles, device=device)


def parameters(
    toggles: tuple[str, ...],
    n: int,
    *,
    seed: int,
    epoch: int,
    magnitudes: Mapping[str, float] = STUDY,
) -> dict[str, Tensor]:
    """Return random parameters of the toggles on the CPU: parameter name to [n] float64 tensor.

    `magnitudes` replaces the study's ranges, see `Toggle`; without a magnitude, a toggle has the
    study's range.

    Raises:
        UsageError: a name that is not in `TOGGLES`.
    """
    import torch

    drawn: dict[str, Tensor] = {}
    for name in ordered(toggles):
        toggle = with_range(TOGGLES[name], magnitudes)
        generator = torch.Generator().manual_seed(seeds.toggle(seed, epoch, name))
        shape = (len(toggle.parameters), n)
        share = torch.rand(*shape, generator=generator, dtype=torch.float64)
        if toggle.distribution == "coin":
            values = (share < 0.5).double()
        else:
            values = toggle.low + (toggle.high - toggle.low) * share
        drawn.update(zip(toggle.parameters, values, strict=True))
    return drawn


def prepare(drawn: Mapping[str, Tensor], *, constant_fill: bool, device: torch.device) -> Draws:
    """Return parameters, [n] float64 each, as draws on the device; missing ones are off."""

    def moved(column: Tensor | None) -> Tensor | None:
        return None if column is None else column.float().to(device)

    return Draws(
        geometry=moved(_geometry(drawn)),
        brightness=moved(drawn.get("brightness")),
        hue=moved(drawn.get("hue")),
        contrast=moved(drawn.get("contrast")),
        constant_fill=constant_fill,
    )


def _geometry(drawn: Mapping[str, Tensor]) -> Tensor | None:
    """Return [n, 2, 3] float64, or None without a geometric parameter.

    Keras maps an output pixel (x, y) to an input pixel by centre . R(theta) . T(tx, ty) . H(shear)
    . Z(zx, zy) . centre^-1, with H = [[1, -sin s], [0, cos s]] (apply_affine_transform), and flips
    the result. Here the product is expanded, with positions from -1 to 1, so that the centre is 0
    and the size of the image cancels. tx shifts along x; Keras draws it from height_shift_range,
    which makes no difference because both ranges are equal.
    """
    import torch

    geometric = [
        name
        for toggle in TOGGLES.values()
        if toggle.acts_on == "geometry"
        for name in toggle.parameters
    ]
    given = next((drawn[name] for name in geometric if name in drawn), None)
    if given is None:
        return None
    zero = torch.zeros_like(given)
    theta, shear = (drawn.get(name, zero) * (math.pi / 180) for name in ("theta", "shear"))
    x, y = (drawn.get(name, zero) * 2 for name in ("tx", "ty"))  # the side is 2 long
    zoom_x, zoom_y = (drawn.get(name, zero + 1) for name in ("zx", "zy"))
    flip_x, flip_y = (1 - 2 * drawn.get(name, zero) for name in ("flip_h", "flip_v"))
    cos, sin, both = theta.cos(), theta.sin(), theta + shear
    along_x = [flip_x * zoom_x * cos, -flip_y * zoom_y * both.sin(), x * cos - y * sin]
    along_y = [flip_x * zoom_x * sin, flip_y * zoom_y * both.cos(), x * sin + y * cos]
    return torch.stack(along_x + along_y, dim=1).reshape(-1, 2, 3)


def _apply(images: Tensor, draws: Draws, px: int) -> Tensor:
    """Augment some images in Keras' order.

    Brightness and contrast are inlined from kornia, which saves passes over the images.
    """
    if draws.geometry is None:
        inputs = _scale(images, px, px)
    else:
        inputs = _warp(images, draws.geometry, draws.constant_fill, px)
    if draws.brightness is not None:
        inputs.mul_(draws.brightness[:, None, None, None])
    inputs.clamp_(max=1)  # brightness, or rounding of the interpolation
    if draws.hue is not None and inputs.shape[1] == 3:
        from kornia.enhance import adjust_hue

        inputs = adjust_hue(inputs, draws.hue * (2 * math.pi))
    if draws.contrast is not None:
        factor = draws.contrast[:, None, None, None]
        mean = inputs.mean((-2, -1), keepdim=True)
        inputs.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)
    return inputs


def _warp(images: Tensor, geometry: Tensor, constant_fill: bool, px: int) -> Tensor:
    """Resize, move and flip with one bilinear interpolation.

    In positions from -1 to 1 from edge to edge, half-pixel resizing is the identity, so the native
    size cancels: (x + 0.5) * w / px - 0.5 is the same position in both images. This is kornia's
    remap without its copy of x and y into pairs, a quarter of the time at 512 px: a sum of complex
    numbers already contains pairs.
    """
    import torch
    from torch.nn.functional import grid_sample

    height, width = images.shape[-2:]
    inputs = _scale(images, min(height, px), min(width, px))
    centres = torch.linspace(1 / px - 1, 1 - 1 / px, px, device=images.device)[:, None]  # [px, 1]
    matrix = geometry[:, None]  # [b, 1, 2, 3]
    along_x = torch.view_as_complex(matrix[..., 0] * centres)  # [b, px], x and y as one number
    along_y = torch.view_as_complex(matrix[..., 1] * centres + matrix[..., 2])
    grid = torch.view_as_real(along_x[:, None] + along_y[:, :, None])  # [b, px, px, 2]
    warped = grid_sample(inputs, grid, padding_mode="border", align_corners=False)
    if constant_fill:
        # A hard edge at the outermost pixel centres, as in scipy; padding_mode="zeros" would blend
        # them with black. The tolerance, under 0.001 pixels, avoids a black edge by rounding after
        # a shift by whole pixels.
        outside = grid.abs_().gt_(1 - 1 / px + 1e-6)  # 1 or 0
        # a pair of zeros, which is inside, is also zero as one integer
        warped.mul_(outside.view(torch.int64).logical_not().movedim(-1, 1))
    return warped


def _scale(images: Tensor, height: int, width: int) -> Tensor:
    """Return images as float32 in 0..1, resized if necessary; always a new tensor."""
    from torch.nn.functional import interpolate

    inputs = images / 255
    if images.shape[-2:] == (height, width):
        return inputs
    reduces = images.shape[-2] > height or images.shape[-1] > width
    return interpolate(
        inputs, (height, width), mode="bilinear", align_corners=False, antialias=reduces
    )
