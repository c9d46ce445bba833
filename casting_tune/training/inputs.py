"""From packed images to the inputs of a network, on the device that trains.

Input: a configuration, a pack and its split. Output: normalised float tensors, and the batches
of an epoch. Does not know networks, stores or schedulers.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from casting_tune import seeds
from casting_tune.config import TrialConfig
from casting_tune.data import augmentation, batches
from casting_tune.data.pack import Pack
from casting_tune.data.pixel_source import file_of
from casting_tune.data.read_ahead import ReadAhead
from casting_tune.data.splits import Folds
from casting_tune.models import build
from casting_tune.toggles import MAGNITUDES
from casting_tune.training import memory
from casting_tune.training.memory import ImagesFrom
from casting_tune.training.records import TrialContext

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Prepare = Callable[[torch.Tensor], torch.Tensor]

LOG = logging.getLogger(__name__)
EVALUATION_BATCH = 32
"""Most images per forward pass of validation, test and latency."""


def normaliser(config: TrialConfig, device: torch.device) -> Prepare:
    """Return a function from images [b, c, px, px] in 0..1 to inputs [b, in_channels, px, px].

    Mean and standard deviation are those of the backbone's weights.
    """
    import torch

    mean, std = build.normalisation(config.backbone, config.weights)
    scale, offset = build.scale_and_offset(mean, std, in_channels=config.in_channels, device=device)

    def prepare(images: torch.Tensor) -> torch.Tensor:
        n, _, height, width = images.shape
        shape = (n, config.in_channels, height, width)
        inputs = torch.empty(shape, device=device, memory_format=memory_format(config))
        # a gray image broadcasts against three means: this is the expansion to three channels
        if device.type != "cpu":
            return torch.addcmul(offset, images, scale, out=inputs)
        # one channel at a time is 1.6 to 1.8 times as fast, with the same bits
        for channel in range(config.in_channels):
            source = images[:, min(channel, images.shape[1] - 1)]
            torch.addcmul(offset[:, channel], source, scale[:, channel], out=inputs[:, channel])
        return inputs

    return prepare


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images of one part of a split.

    Attributes:
        y_true: [n] float, 0 or 1, on the device.
        pixels: [n, c, h, w] uint8, on the device; None: they are read batch by batch.
        rows: [n] indices in the pack.
        reader: reads the batches if `pixels` is None.
    """

    y_true: torch.Tensor
    pixels: torch.Tensor | None
    rows: NDArray[np.int64]
    reader: ReadAhead | None = None

    @contextlib.contextmanager
    def batches(
        self, parts: Sequence[slice | NDArray[np.int64]]
    ) -> Iterator[Iterator[torch.Tensor]]:
        """Give the pixels of each part of the images; each is valid until the next one is taken."""
        if self.pixels is not None:
            yield (self.pixels[part] for part in parts)
            return
        assert self.reader is not None
        with contextlib.closing(self.reader.batches(self.rows[part] for part in parts)) as read:
            yield read


def evaluation_batches(
    images: Images, prepare: Prepare, *, px: int, most_images: int | None = None
) -> Generator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (inputs, y_true) of all images in their order, without augmentation.

    Args:
        images: from `put`.
        prepare: from `normaliser`.
        px: side of the square input.
        most_images: most images per batch, if that is below `EVALUATION_BATCH`.
    """
    n_images = min(EVALUATION_BATCH, most_images or EVALUATION_BATCH)
    parts = batches.slices(len(images.y_true), n_images)
    with images.batches(parts) as all_pixels:
        for batch, pixels in zip(parts, all_pixels, strict=True):
            yield prepare(augmentation.resize(pixels, px=px)), images.y_true[batch]


def training_batches(
    config: TrialConfig, images: Images, prepare: Prepare
) -> tuple[
    Callable[[int], Iterator[tuple[torch.Tensor, ...]]],
    Callable[..., tuple[torch.Tensor, torch.Tensor]],
]:
    """Return (epoch -> its batches, batch -> augmented inputs and labels).

    A batch is a tensor of positions in the epoch's order, and the pixels unless they all are on the
    device. The order and the random parameters of every epoch use the same tensors, because a
    recorded step reads the same addresses again.
    """
    import torch

    y_true = images.y_true
    n, device = len(y_true), y_true.device
    magnitudes = {name: getattr(config, name) for name in MAGNITUDES}

    def draw(epoch: int) -> augmentation.Draws:
        return augmentation.draw(
            config.toggles, n, seed=config.seed, epoch=epoch, device=device, magnitudes=magnitudes
        )

    positions, order = torch.arange(n, device=device), torch.arange(n, device=device)
    draws = draw(1)

    def epoch_batches(epoch: int) -> Iterator[tuple[torch.Tensor, ...]]:
        torch.manual_seed(seeds.dropout(config.seed, epoch))
        shuffled = batches.shuffle(n, seed=config.seed, epoch=epoch)
        order.copy_(torch.from_numpy(shuffled))
        draws.copy_from(draw(epoch))
        parts = batches.slices(n, config.batch_size)
        if images.pixels is not None:  # the step itself selects them
            yield from ((positions[part],) for part in parts)
            return
        with images.batches([shuffled[part] for part in parts]) as all_pixels:
            for part, pixels in zip(parts, all_pixels, strict=True):
                yield positions[part], pixels

    def make(
        batch: torch.Tensor, pixels: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = order[batch]
        if images.pixels is not None:
            pixels = images.pixels[chosen]
        assert pixels is not None
        augmented = augmentation.apply(pixels, draws[batch], px=config.image_px)
        return prepare(augmented), y_true[chosen]

    return epoch_batches, make


@contextlib.contextmanager
def placed(
    pack: Pack, parts: Folds, config: TrialConfig, context: TrialContext
) -> Iterator[tuple[dict[str, Images], ImagesFrom]]:
    """Give the images of train, validation and test, and where they are.

    They are on the device if they fit there; else they are read batch by batch until the context
    ends.
    """
    import torch

    device = torch.device(context.place.device)
    rows: dict[str, NDArray[np.int64]] = asdict(parts)
    n_images = sum(map(len, rows.values()))
    where = images_from(n_images, config, pack, context)
    with contextlib.ExitStack() as stack:
        reader = None
        if where != "device":
            batch_size = max(EVALUATION_BATCH, config.batch_size + 1)  # see `slices`
            reader = stack.enter_context(
                ReadAhead(pack.images, batch_size=batch_size, px=config.image_px, device=device)
            )
            LOG.info("%d images are too many for the device: read from %s", n_images, where)
        images = {
            name: put(pack, part, config, device, reader=reader) for name, part in rows.items()
        }
        yield images, where


def images_from(
    n_images: int, config: TrialConfig, pack: Pack, context: TrialContext
) -> ImagesFrom:
    """Return from where a trial reads so many images of a pack; its network is on the device."""
    import torch

    return memory.images_from(
        n_images * image_bytes(config, pack),
        device=torch.device(context.place.device),
        allowance=context.allowance,
        n_at_once=context.place.n_at_once,
        on_disk=file_of(pack.images) is not None,
    )


def put(
    pack: Pack,
    indices: NDArray[np.int64],
    config: TrialConfig,
    device: torch.device,
    *,
    reader: ReadAhead | None = None,
) -> Images:
    """Return some images on the device; with a reader, only their labels."""
    import torch

    y_true = torch.from_numpy(pack.labels[indices].astype(np.float32)).to(device)
    pixels = None
    if reader is None:
        pixels = batches.put(pack.images, indices, px=config.image_px, device=device)
    return Images(y_true=y_true, pixels=pixels, rows=indices, reader=reader)


def image_bytes(config: TrialConfig, pack: Pack) -> int:
    """Return the bytes of one image on the device; see `put`."""
    channels = 1 if pack.images.ndim == 3 else pack.images.shape[1]
    height, width = (min(side, config.image_px) for side in pack.images.shape[-2:])
    return int(channels * height * width)


def memory_format(config: TrialConfig) -> torch.memory_format:
    """Return the memory order of images and weights."""
    import torch

    return torch.channels_last if config.layout == "channels_last" else torch.contiguous_format
