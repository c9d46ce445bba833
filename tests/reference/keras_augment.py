"""Makes keras_augment.npz: drawn pictures, changed by Keras' ImageDataGenerator.

Run by hand where tensorflow is installed (`pip install tensorflow-cpu scipy pillow`); the tests
read the arrays only:

    python tests/reference/keras_augment.py
"""

from __future__ import annotations

from pathlib import Path

import keras  # type: ignore[import-not-found]
import numpy as np
import tensorflow as tf  # type: ignore[import-untyped]
from keras.src.legacy.preprocessing.image import (  # type: ignore[import-not-found]
    ImageDataGenerator,
)
from numpy.typing import NDArray

PX = 44
NOTHING = {"theta": 0.0, "tx": 0.0, "ty": 0.0, "shear": 0.0, "zx": 1.0, "zy": 1.0}
NOTHING |= {"flip_h": 0.0, "flip_v": 0.0, "brightness": 1.0, "contrast": 1.0}

ALONE: dict[str, dict[str, float]] = {
    "rotation": {"theta": 31.0},
    "rotation back": {"theta": -45.0},
    "shift": {"tx": 0.083, "ty": -0.047},
    "shear": {"shear": 4.6},
    "zoom": {"zx": 1.09, "zy": 0.92},
    "flip": {"flip_h": 1.0},
    "flip vertical": {"flip_v": 1.0},
    "brightness": {"brightness": 1.087},
    "brightness dark": {"brightness": 0.913},
    "contrast": {"contrast": 1.47},
    "contrast low": {"contrast": 0.77},
}


def main() -> None:
    """Draw the pictures, let Keras change them, and write the arrays beside this file."""
    random = np.random.default_rng(20)
    pictures = draw_pictures(random)  # [3, PX, PX] uint8
    cases = [
        (case, {**NOTHING, **given}, fill)
        for case, given in ALONE.items()
        for fill in (False, True)
    ]
    cases += [(f"together {i}", draw_together(random), i % 2 == 0) for i in range(12)]
    chosen = [i % len(pictures) for i in range(len(cases))]
    kept = [i for i, (_, given, fill) in enumerate(cases) if moves(given) or not fill]
    outputs = [change(pictures[chosen[i]], cases[i][1], constant_fill=cases[i][2]) for i in kept]
    colour = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    turns = np.array([-0.43, 0.07, 0.31])
    hues = [
        np.asarray(tf.image.adjust_hue(colour.astype(np.float32) / 255, turn)) for turn in turns
    ]
    np.savez_compressed(
        Path(__file__).with_suffix(".npz"),
        pictures=pictures,
        case=np.array([cases[i][0] for i in kept]),
        picture=np.array([chosen[i] for i in kept]),
        names=np.array(list(NOTHING)),
        parameters=np.array([[cases[i][1][name] for name in NOTHING] for i in kept]),
        constant_fill=np.array([cases[i][2] for i in kept]),
        outputs=np.stack(outputs),
        colour=colour,
        turns=turns,
        hues=np.stack(hues),
        versions=np.array([f"keras {keras.__version__}", f"tensorflow {tf.__version__}"]),
    )


def moves(given: dict[str, float]) -> bool:
    """Say whether a case has an outside that can be filled."""
    return any(given[name] != NOTHING[name] for name in ("theta", "tx", "ty", "shear", "zx", "zy"))


def draw_pictures(random: np.random.Generator) -> NDArray[np.uint8]:
    """Return a ramp with a ring, a board of squares, and noise; no edge is black."""
    y, x = np.mgrid[:PX, :PX] / (PX - 1)
    ring = np.abs(np.hypot(x - 0.5, y - 0.45) - 0.3) < 0.06
    ramp = 60 + 90 * x + 60 * y + 40 * ring
    board = np.where((x * 7 % 2 < 1) ^ (y * 5 % 2 < 1), 240, 120) - 50 * (x > y)
    noise = random.integers(30, 256, (PX, PX))
    return np.stack([ramp, board, noise]).astype(np.uint8)


def draw_together(random: np.random.Generator) -> dict[str, float]:
    """Return all toggles at once, within the study's ranges."""
    return {
        "theta": random.uniform(-45, 45),
        "tx": random.uniform(-0.1, 0.1),
        "ty": random.uniform(-0.1, 0.1),
        "shear": random.uniform(-5, 5),
        "zx": random.uniform(0.9, 1.1),
        "zy": random.uniform(0.9, 1.1),
        "flip_h": float(random.random() < 0.5),
        "flip_v": float(random.random() < 0.5),
        "brightness": random.uniform(0.9, 1.1) if random.random() < 0.5 else 1.0,
        "contrast": random.uniform(0.75, 1.5),
    }


def change(
    picture: NDArray[np.uint8], given: dict[str, float], *, constant_fill: bool
) -> NDArray[np.float32]:
    """Return [PX, PX] grey levels, clipped.

    Keras does the affine, flips and brightness, then TensorFlow the contrast.
    """
    generator = ImageDataGenerator(fill_mode="constant" if constant_fill else "nearest", cval=0.0)
    keras_names = {name: given[name] for name in ("theta", "shear", "zx", "zy")}
    keras_names |= {"tx": given["tx"] * PX, "ty": given["ty"] * PX}
    keras_names |= {
        "flip_horizontal": bool(given["flip_h"]),
        "flip_vertical": bool(given["flip_v"]),
    }
    if given["brightness"] != 1:
        keras_names["brightness"] = given["brightness"]
    changed = generator.apply_transform(picture[..., None].astype(np.float32), keras_names)
    if given["contrast"] != 1:
        changed = np.clip(np.asarray(tf.image.adjust_contrast(changed, given["contrast"])), 0, 255)
    return np.asarray(changed[..., 0], dtype=np.float32)


if __name__ == "__main__":
    main()
