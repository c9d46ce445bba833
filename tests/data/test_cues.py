from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from casting_tune.data.audit import audit
from casting_tune.data.cues import auc_interval
from casting_tune.data.pack import Pack, pack
from casting_tune.data.pixel_rules import PixelRules

RNG = np.random.default_rng(0)


def test_the_auc_of_six_values_is_counted_by_hand() -> None:
    labels = np.array([1, 1, 1, 0, 0, 0], dtype=np.uint8)
    values = np.array([3.0, 5.0, 4.0, 1.0, 4.0, 2.0])
    # of the 9 pairs the defect is larger in 7, smaller in 1 and equal in 1
    auc, low, high = auc_interval(values, labels, np.arange(6))
    assert auc == pytest.approx(7.5 / 9)
    assert low <= auc <= high
    assert auc_interval(-values, labels, np.arange(6))[0] == pytest.approx(7.5 / 9)


def test_the_interval_is_that_of_a_bootstrap() -> None:
    from sklearn.metrics import roc_auc_score

    labels = np.repeat(np.array([1, 0], dtype=np.uint8), [80, 120])
    values = RNG.normal(size=200) + labels
    auc, low, high = auc_interval(values, labels, np.arange(200))
    assert auc == pytest.approx(roc_auc_score(labels, values))
    drawn = []
    for _ in range(500):
        rows = np.concatenate([RNG.choice(80, 80), 80 + RNG.choice(120, 120)])
        drawn.append(roc_auc_score(labels[rows], values[rows]))
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.02)


def test_copies_of_one_image_do_not_narrow_the_interval() -> None:
    labels = np.repeat(np.array([1, 0], dtype=np.uint8), [30, 30])
    values = RNG.normal(size=60) + labels
    alone = auc_interval(values, labels, np.arange(60))
    copied = auc_interval(np.tile(values, 5), np.tile(labels, 5), np.tile(np.arange(60), 5))
    assert copied == pytest.approx(alone, abs=1e-9)


def test_a_perfect_separation_has_an_interval() -> None:
    labels = np.repeat(np.array([1, 0], dtype=np.uint8), [10, 10])
    assert auc_interval(labels.astype(float), labels, np.arange(20)) == (1.0, 0.7, 1.0)


def _set(root: Path, cue: str) -> Pack:
    """40 images of noise in which one property differs between the classes."""
    for label, name in enumerate(("ok", "bad")):
        (root / "D" / name).mkdir(parents=True)
        for i in range(20):
            shape = (32, 40) if cue == "aspect ratio" and label else (32, 32)
            pixels = RNG.integers(100, 156, shape).astype(np.uint8)
            if cue == "border brightness" and label:
                pixels[:1] = pixels[:, :1] = 255
            if cue == "horizontal position":
                pixels[8:24, 16 + 6 * label : 26 + 6 * label] = 255
            quality = 40 if cue == "JPEG quality" and label else 95
            stem = f"cam{'b' if cue == 'folder or name pattern' and label else 'a'}_{i}"
            Image.fromarray(pixels).save(root / "D" / name / f"{stem}.jpg", quality=quality)
    return pack(root / "D", root / "packs", pixels=PixelRules(size_px=32))


@pytest.mark.parametrize(
    "cue",
    [
        "aspect ratio", "border brightness", "horizontal position", "JPEG quality",
        "folder or name pattern",
    ],
)  # fmt: skip
def test_a_cue_beside_the_defect_is_found(cue: str, tmp_path: Path) -> None:
    strong = [text for text in audit(_set(tmp_path, cue)).findings if "sessions" in text or (
        "Cues other than the defect" in text
    )]  # fmt: skip
    assert any(f"{cue} 1.00 (" in text for text in strong), strong


def test_a_set_without_a_cue_has_none_and_the_audit_says_what_it_cannot_see(
    tmp_path: Path,
) -> None:
    found = audit(_set(tmp_path, ""))
    text = " ".join(found.findings)
    assert "Cues other than the defect" not in text
    assert "cannot see overlapping patches of one photograph, other views of one part" in text
