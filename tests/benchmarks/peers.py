"""Runs one side of the input-pipeline benchmark, alone in a process.

Run `python tests/benchmarks/peers.py SIDE --data DIR`.

Reads lines of JSON, {"px": 224, "batch": 4, "seconds": 2}, and answers each with {"images_s": ...}:
the images a second that a training loop would be handed, all nine augmentations on, after a
warm-up. Runs in the environment that has the side's library, so it imports nothing of casting_tune.
Each side is written as its own documentation has it: files from class folders, two workers, RGB,
batches of normalised floats.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from casting_tune.toggles import TOGGLES

WORKERS = 2
SHIFT, ROTATION, SHEAR, ZOOM, BRIGHTNESS = 0.1, 45, 5, (0.9, 1.1), (0.9, 1.1)
CONTRAST, HUE = (0.75, 1.5), 0.5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def keras(data: Path, px: int, batch: int) -> Iterator[int]:
    """The study's generator: ImageDataGenerator, TensorFlow's hue and contrast, two workers."""
    import threading
    from queue import Queue

    import numpy as np
    import tensorflow as tf
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    def colours(image: Any) -> Any:
        turned = tf.image.random_hue(image / 255.0, HUE)
        return tf.image.random_contrast(turned, *CONTRAST).numpy() * 255.0

    made = ImageDataGenerator(
        rotation_range=ROTATION, width_shift_range=SHIFT, height_shift_range=SHIFT,
        shear_range=SHEAR, zoom_range=ZOOM, brightness_range=BRIGHTNESS, horizontal_flip=True,
        vertical_flip=True, fill_mode="constant", rescale=1 / 255, preprocessing_function=colours,
    )  # fmt: skip
    flow = made.flow_from_directory(
        data / "train", target_size=(px, px), batch_size=batch, class_mode="binary"
    )
    queue: Queue[int] = Queue(maxsize=10)
    stopped = threading.Event()

    def work() -> None:  # what model.fit(workers=2) did for a Sequence: threads and a queue
        while not stopped.is_set():
            queue.put(len(np.asarray(next(flow)[0])))

    for _ in range(WORKERS):
        threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            yield queue.get()
    finally:
        stopped.set()
        while not queue.empty():
            queue.get()


def torchvision(data: Path, px: int, batch: int) -> Iterator[int]:
    """torchvision's v2 transforms behind an ImageFolder and a DataLoader."""
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    steps = v2.Compose([
        v2.ToImage(), v2.Resize((px, px)),
        v2.RandomAffine(ROTATION, translate=(SHIFT, SHIFT), scale=ZOOM, shear=(-SHEAR, SHEAR),
                        interpolation=v2.InterpolationMode.BILINEAR),
        v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(),
        v2.ColorJitter(brightness=BRIGHTNESS, contrast=CONTRAST, hue=HUE),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
    ])  # fmt: skip
    yield from _loaded(ImageFolder(str(data / "train"), transform=steps), batch)


def _albumented(data: Path, px: int, batch: int, *, gray: bool) -> Iterator[int]:
    import albumentations as A  # noqa: N812
    import cv2
    import numpy as np
    import torch
    from torchvision.datasets import ImageFolder

    cv2.setNumThreads(1)
    colours = [A.RandomBrightnessContrast(0.1, (-0.25, 0.5), p=1)] if gray else [
        A.ColorJitter(
            brightness=BRIGHTNESS, contrast=CONTRAST, saturation=(1, 1), hue=(-HUE, HUE), p=1
        )
    ]  # fmt: skip
    steps = A.Compose([
        A.Resize(px, px),
        A.Affine(
            rotate=(-ROTATION, ROTATION), translate_percent=(-SHIFT, SHIFT), scale=ZOOM,
            shear=(-SHEAR, SHEAR), p=1,
        ),
        A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), *colours,
        A.Normalize((0.449,), (0.226,)) if gray else A.Normalize(MEAN, STD),
    ])  # fmt: skip

    def load(file: str) -> Any:
        if gray:
            return cv2.imread(file, cv2.IMREAD_GRAYSCALE)[..., None]
        return cv2.cvtColor(cv2.imread(file), cv2.COLOR_BGR2RGB)

    def transform(image: Any) -> Any:
        return torch.from_numpy(
            np.ascontiguousarray(steps(image=image)["image"].transpose(2, 0, 1))
        )

    yield from _loaded(ImageFolder(str(data / "train"), loader=load, transform=transform), batch)


def albumentations(data: Path, px: int, batch: int) -> Iterator[int]:
    """Albumentations on cv2's RGB images, behind a DataLoader."""
    yield from _albumented(data, px, batch, gray=False)


def albumentations_gray(data: Path, px: int, batch: int) -> Iterator[int]:
    """The same, given two of our ideas: one gray channel, and no hue."""
    yield from _albumented(data, px, batch, gray=True)


def kornia(data: Path, px: int, batch: int) -> Iterator[int]:
    """One kornia module a toggle, on RGB batches, as its documentation shows; decoded by PIL."""
    import kornia.augmentation as K  # noqa: N812
    import numpy as np
    import torch
    from PIL import Image

    files = sorted((data / "train").rglob("*.*"))
    steps = torch.nn.Sequential(
        K.RandomAffine(0, translate=(SHIFT, SHIFT), p=1), K.RandomRotation(ROTATION, p=1),
        K.RandomShear((-SHEAR, SHEAR), p=1), K.RandomAffine(0, scale=ZOOM, p=1),
        K.RandomHorizontalFlip(), K.RandomVerticalFlip(),
        K.ColorJitter(brightness=BRIGHTNESS, p=1), K.RandomHue((-HUE, HUE), p=1),
        K.ColorJitter(contrast=CONTRAST, p=1), K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )  # fmt: skip
    random = np.random.default_rng(0)
    while True:
        chosen = [files[i] for i in random.integers(0, len(files), batch)]
        read = [np.asarray(Image.open(file).convert("RGB").resize((px, px))) for file in chosen]
        yield len(steps(torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2).float() / 255))


def ours(data: Path, px: int, batch: int) -> Iterator[int]:
    """casting_tune: a pack (`data` is its folder), loader, augmentation, and network inputs."""
    import torch

    from casting_tune.config import TrialConfig
    from casting_tune.data import augmentation, batches, pack
    from casting_tune.training import inputs

    device, toggles = torch.device("cpu"), tuple(TOGGLES)
    packed = pack.open_pack(data)
    rows = (packed.splits == "train").nonzero()[0]
    prepare = inputs.normaliser(
        TrialConfig(backbone="resnet50", image_px=px, toggles=toggles), device
    )
    pixels = batches.put(packed.images, rows, px=px, device=device)
    epoch = 0
    while True:
        epoch += 1
        order = torch.from_numpy(batches.shuffle(len(rows), seed=0, epoch=epoch))
        draws = augmentation.draw(toggles, len(rows), seed=0, epoch=epoch, device=device)
        for part in batches.slices(len(rows), batch):
            yield len(prepare(augmentation.apply(pixels[order[part]], draws[part], px=px)))


def _loaded(dataset: Any, batch: int) -> Iterator[int]:
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    loader = DataLoader(dataset, batch, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    while True:
        for images, _ in loader:
            yield len(images)


SIDES: dict[str, Callable[[Path, int, int], Iterator[int]]] = {
    "ours": ours,
    "keras": keras,
    "torchvision": torchvision,
    "albumentations": albumentations,
    "albumentations_gray": albumentations_gray,
    "kornia": kornia,
}


def measure(batches: Iterator[int], *, seconds: float) -> float:
    """Return images a second over at least `seconds`, after half of that as a warm-up."""
    begun, n, started = time.perf_counter(), 0, 0.0
    for n_images in batches:
        now = time.perf_counter()
        if started:
            n += n_images
            if now - started >= seconds:
                return n / (now - started)
        elif now - begun >= seconds / 2:
            started = now
    raise RuntimeError("The batches ended before the measurement.")


def main() -> None:
    """Answer every line of stdin with a line on stdout; output of libraries goes to stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    responses, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        wish = json.loads(line)
        batches = SIDES[args.side](args.data, wish["px"], wish["batch"])
        try:
            record: dict[str, Any] = {"images_s": measure(batches, seconds=wish["seconds"])}
        except (
            Exception
        ) as error:  # of whatever library: the benchmark says why this side is missing
            record = {"error": f"{type(error).__name__}: {error}"[:200]}
        finally:
            batches.close()  # type: ignore[attr-defined]
        print(json.dumps(record), file=responses, flush=True)


if __name__ == "__main__":
    main()
