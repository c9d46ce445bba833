"""The toggles: names, study ranges and magnitudes of the augmentations, without torch.

The toggles, their ranges and their order are those of the study, which used Keras'
ImageDataGenerator. `casting_tune.data.augmentation` applies them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from casting_tune.errors import UsageError, unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Toggle:
    """One augmentation that a trial switches on or off.

    Attributes:
        acts_on: where pixels come from (geometry), what fills the area outside the image, or the
            pixel values.
        parameters: names of the random numbers per image; each is drawn separately from the range.
        low: lower end of the study's range.
        high: upper end of the study's range.
        unit: unit of the parameters.
        magnitudes: settings that replace the range. One setting is the distance from the middle to
            each end; two settings are the two ends.
        distribution: uniform in [low, high], or a coin: 0 or 1 with equal probability.
    """

    acts_on: Literal["geometry", "outside", "values"]
    unit: str
    parameters: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    magnitudes: tuple[str, ...] = ()
    distribution: Literal["uniform", "coin"] = "uniform"


TOGGLES: dict[str, Toggle] = {
    "hue": Toggle(
        acts_on="values",
        parameters=("hue",),
        low=-0.5,
        high=0.5,
        unit="turns of the colour circle",
        magnitudes=("hue_turns",),
    ),
    "contrast": Toggle(
        acts_on="values",
        parameters=("contrast",),
        low=0.75,
        high=1.5,
        unit="factor about the mean of a channel",
        magnitudes=("contrast_low", "contrast_high"),
    ),
    "shift": Toggle(
        acts_on="geometry",
        parameters=("tx", "ty"),
        low=-0.1,
        high=0.1,
        unit="shares of the side",
        magnitudes=("shift_share",),
    ),
    "rotation": Toggle(
        acts_on="geometry",
        parameters=("theta",),
        low=-45.0,
        high=45.0,
        unit="degrees",
        magnitudes=("rotation_deg",),
    ),
    "brightness": Toggle(
        acts_on="values",
        parameters=("brightness",),
        low=0.9,
        high=1.1,
        unit="factor",
        magnitudes=("brightness_share",),
    ),
    "shear": Toggle(
        acts_on="geometry",
        parameters=("shear",),
        low=-5.0,
        high=5.0,
        unit="degrees",
        magnitudes=("shear_deg",),
    ),
    "zoom": Toggle(
        acts_on="geometry",
        parameters=("zx", "zy"),
        low=0.9,
        high=1.1,
        unit="factors; above 1 shows more",
        magnitudes=("zoom_share",),
    ),
    "fill_mode": Toggle(acts_on="outside", unit="black outside; off: the nearest edge pixel"),
    "flip": Toggle(
        acts_on="geometry",
        parameters=("flip_h", "flip_v"),
        low=0.0,
        high=1.0,
        unit="0 or 1, equally likely",
        distribution="coin",
    ),
}
"""All toggles by name, in the order in which names are written."""

MAGNITUDES = {
    magnitude: name for name, toggle in TOGGLES.items() for magnitude in toggle.magnitudes
}
"""A setting that sets the range of a toggle -> the toggle."""

STUDY: Mapping[str, float] = MappingProxyType({})
"""No magnitude is set: each toggle has the study's range."""


def parse_augmentation(augmentation: str) -> tuple[str, ...]:
    """Return the toggles that are on, in the order of `TOGGLES`.

    Args:
        augmentation: "default" (none), "additional" (all), "no rotation" (all except rotation), or
            "only hue contrast".

    Raises:
        UsageError: any other text; the message gives the nearest known name.
    """
    if augmentation in ("default", "additional"):
        return tuple(TOGGLES) if augmentation == "additional" else ()
    head, *names = augmentation.split() or [""]
    if head not in ("no", "only") or not names:
        known = ("default", "additional", "no TOGGLE", "only TOGGLE")
        raise UsageError(unknown("augmentation", augmentation, known))
    named = ordered(names)
    return tuple(toggle for toggle in TOGGLES if (toggle in named) == (head == "only"))


def augmentation_name(toggles: Iterable[str]) -> str:
    """Return the canonical text of a set of toggles: the shorter of "no ..." and "only ...".

    `parse_augmentation` reads it back.

    Raises:
        UsageError: a name that is not in `TOGGLES`.
    """
    on = ordered(toggles)
    off = [toggle for toggle in TOGGLES if toggle not in on]
    if not on or not off:
        return "default" if off else "additional"
    return " ".join(["no", *off] if len(off) < len(on) else ["only", *on])


def ordered(names: Iterable[str]) -> list[str]:
    """Return toggle names in the order of `TOGGLES`.

    Raises:
        UsageError: a name that is not in `TOGGLES`.
    """
    given = list(names)
    for toggle in given:
        if toggle not in TOGGLES:
            raise UsageError(unknown("toggle", toggle, TOGGLES))
    return [toggle for toggle in TOGGLES if toggle in given]


def with_range(toggle: Toggle, magnitudes: Mapping[str, float]) -> Toggle:
    """Return the toggle with the range that its magnitudes set; without magnitudes, unchanged."""
    given = [magnitudes[name] for name in toggle.magnitudes if name in magnitudes]
    if not given:
        return toggle
    if len(given) == 2:
        return replace(toggle, low=given[0], high=given[1])
    middle = (toggle.low + toggle.high) / 2
    return replace(toggle, low=middle - given[0], high=middle + given[0])
