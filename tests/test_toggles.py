"""Names of toggles and of their combinations."""

from __future__ import annotations

import subprocess
import sys

import pytest

from casting_tune.errors import UsageError
from casting_tune.toggles import TOGGLES, augmentation_name, parse_augmentation

ALL = tuple(TOGGLES)


@pytest.mark.parametrize(
    ("augmentation", "toggles"),
    [
        ("default", ()),
        ("additional", ALL),
        (
            "no rotation",
            ("hue", "contrast", "shift", "brightness", "shear", "zoom", "fill_mode", "flip"),
        ),
        (
            "no hue contrast",
            ("shift", "rotation", "brightness", "shear", "zoom", "fill_mode", "flip"),
        ),
        ("only hue contrast", ("hue", "contrast")),
        ("only flip", ("flip",)),
    ],
)
def test_a_canonical_name_reads_as_its_toggles_and_is_written_back(
    augmentation: str, toggles: tuple[str, ...]
) -> None:
    assert parse_augmentation(augmentation) == toggles
    assert augmentation_name(toggles) == augmentation


def test_every_choice_of_toggles_survives_its_name() -> None:
    for bits in range(2**9):
        toggles = tuple(toggle for i, toggle in enumerate(ALL) if bits >> i & 1)
        assert parse_augmentation(augmentation_name(toggles)) == toggles


def test_the_order_and_the_longer_spelling_do_not_matter() -> None:
    assert parse_augmentation("only contrast hue") == ("hue", "contrast")
    assert parse_augmentation("no shift rotation brightness shear zoom fill_mode flip") == (
        "hue",
        "contrast",
    )
    assert augmentation_name(("contrast", "hue")) == "only hue contrast"


@pytest.mark.parametrize(
    ("augmentation", "says"),
    [
        ("no rotatoin", "Unknown toggle 'rotatoin'. Did you mean 'rotation'?"),
        (
            "only blur",
            "Unknown toggle 'blur'. Known: brightness, contrast, fill_mode, flip, hue, rotation",
        ),
        ("defualt", "Unknown augmentation 'defualt'. Did you mean 'default'?"),
        ("no", "Unknown augmentation 'no'."),
        ("", "Unknown augmentation ''."),
        ("rotation", "Unknown augmentation 'rotation'."),
    ],
)
def test_a_wrong_name_is_reported_with_a_solution(augmentation: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_augmentation(augmentation)
    assert str(caught.value).startswith(says)


def test_names_are_read_without_importing_torch_or_kornia() -> None:
    code = (
        "import sys; from casting_tune.toggles import augmentation_name, parse_augmentation; "
        "augmentation_name(parse_augmentation('no flip')); "
        "sys.exit(bool({'torch', 'kornia', 'numpy'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
