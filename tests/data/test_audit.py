from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from threadpoolctl import threadpool_info, threadpool_limits

from casting_tune.data import pack, synthetic
from casting_tune.data.audit import Audit, audit
from casting_tune.data.pack import Pack
from casting_tune.data.pixel_rules import PixelRules


def _save(file: Path, image: Image.Image) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


def _casting(i: int, *, size_px: int = 96, defect: str | None = None) -> Image.Image:
    return Image.fromarray(
        synthetic.casting(np.random.default_rng([11, i]), size_px=size_px, defect=defect)
    )


def _turned(image: Image.Image, degrees: float) -> Image.Image:
    fill = int(np.median(np.asarray(image)[:3]))
    turned = image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=fill)
    return turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@pytest.fixture(scope="module")
def flawed(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Ten castings of each class in train, four of each in test, one of each flaw (`flaw_*`)."""
    folder = tmp_path_factory.mktemp("flawed") / "images"
    for i in range(28):
        split, label = ("train" if i < 20 else "test"), ("def_front", "ok_front")[i % 2]
        defect = synthetic.DEFECTS[i % 4] if i % 2 == 0 else None
        _save(folder / split / label / f"casting_{i:02d}.png", _casting(i, defect=defect))
    shutil.copy(folder / "train/ok_front/casting_01.png", folder / "test/ok_front/flaw_copy.png")
    shutil.copy(folder / "train/ok_front/casting_05.png", folder / "train/ok_front/flaw_double.png")
    _save(folder / "test/ok_front/flaw_turned.png", _turned(_casting(3), 133))
    _save(folder / "train/def_front/flaw_conflict.png", _turned(_casting(7), 71))
    _save(folder / "train/def_front/flaw_constant.png", Image.new("L", (96, 96), 128))
    checks = (np.indices((96, 96)).sum(axis=0) % 2 * 255).astype(np.uint8)
    _save(folder / "train/def_front/flaw_outlier.png", Image.fromarray(checks))
    return pack.pack(folder, tmp_path_factory.mktemp("packs"))


@pytest.fixture(scope="module")
def report(flawed: Pack) -> Audit:
    return audit(flawed)


def _named(packed: Pack, mark: np.ndarray) -> set[str]:
    return {f"{Path(path).parts[0]}/{Path(path).stem}" for path in packed.paths[mark]}


def test_a_byte_copy_of_a_train_image_is_found_on_both_sides_of_the_split(
    flawed: Pack, report: Audit
) -> None:
    assert _named(flawed, report.copy_in_train) == {
        "test/flaw_copy",
        "train/casting_05",
        "train/flaw_double",
    }


def test_a_turned_and_mirrored_copy_has_a_twin_in_train(flawed: Pack, report: Audit) -> None:
    test = flawed.splits == "test"
    assert _named(flawed, report.twin_in_train & test) == {"test/flaw_copy", "test/flaw_turned"}


def test_a_train_image_is_not_its_own_twin(flawed: Pack, report: Audit) -> None:
    train = flawed.splits == "train"
    assert _named(flawed, report.twin_in_train & train) == {
        "train/casting_05", "train/flaw_double", "train/casting_07", "train/flaw_conflict",
    }  # fmt: skip


def test_a_photograph_of_both_labels_is_a_conflict(flawed: Pack, report: Audit) -> None:
    assert _named(flawed, report.conflict) == {"train/casting_07", "train/flaw_conflict"}


def blas_threads() -> set[int]:
    return {
        library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    }


def test_blas_has_one_thread_while_images_are_compared_and_its_own_number_afterwards(
    packed: Pack,
) -> None:
    seen: list[set[int]] = []
    with threadpool_limits(2, user_api="blas"):
        audit(packed, on_progress=lambda *_: seen.append(blas_threads()))
        assert 2 in blas_threads()
    assert seen
    assert all(1 in threads for threads in seen)
    assert all(2 not in threads for threads in seen)


def test_thirty_four_files_are_thirty_photographs(report: Audit) -> None:
    assert len(report.group) == 34
    assert len(np.unique(report.group)) == 30


def test_an_image_of_one_gray_level_is_constant(flawed: Pack, report: Audit) -> None:
    assert _named(flawed, report.constant) == {"train/flaw_constant"}


def test_an_image_of_something_else_is_an_outlier(flawed: Pack, report: Audit) -> None:
    assert "train/flaw_outlier" in _named(flawed, report.outlier)
    assert not {name for name in _named(flawed, report.outlier) if "casting" in name}


def test_the_first_finding_says_what_it_means_for_a_score(report: Audit) -> None:
    first = report.findings[0]
    assert first.startswith(
        "2 of the 10 test images show a photograph that is also in train (1 byte for byte)"
    )
    assert "split by group" in first


def test_the_findings_name_photographs_conflict_and_constant_image(report: Audit) -> None:
    everything = "\n".join(report.findings)
    assert "34 images come from 30 photographs" in everything
    assert "1 photograph has both labels: 1 files as ok_front and 1 as def_front" in everything
    assert "1 image has only one gray level" in everything


def test_the_audit_carries_the_dataset_it_speaks_of(flawed: Pack, report: Audit) -> None:
    assert report.dataset_id == flawed.dataset_id


def test_castings_drawn_each_for_itself_flatter_nothing(packed: Pack) -> None:
    clean = audit(packed)
    assert not clean.copy_in_train.any()
    assert np.bincount(clean.group).max() <= 2
    assert len(np.unique(clean.group)) >= 78
    assert not clean.conflict.any()
    assert not clean.constant.any()


def test_no_twin_in_train_is_reported_as_such(tmp_path: Path) -> None:
    synthetic.draw(tmp_path / "castings", n_images=40, size_px=128, seed=5)
    clean = audit(pack.pack(tmp_path / "castings", tmp_path / "packs"))
    assert clean.findings[0] == (
        "None of the 8 test images shows a photograph that is also in train: no leak found."
    )


def _stripes(folder: Path, *, good: list[int], bad: list[int]) -> None:
    """Images of one mean gray level each, with brighter and darker stripes in random order."""
    for label, levels in (("ok_front", good), ("def_front", bad)):
        for i, level in enumerate(levels):
            rng = np.random.default_rng([level, i])
            stripes = np.repeat(rng.permutation([-20] * 8 + [20] * 8), 4)
            image = (level + np.tile(stripes, (64, 1))).astype(np.uint8)
            _save(
                folder / ("test" if i == 0 else "train") / label / f"{i}.png",
                Image.fromarray(image),
            )


@pytest.mark.parametrize(
    ("good", "bad", "auc"),
    [
        ([101, 102, 103], [111, 112, 113], 1.0),
        ([111, 112, 113], [101, 102, 103], 1.0),
        ([101, 104, 105], [102, 103, 106], 5 / 9),  # of nine pairs, bad is the brighter of five
        ([100, 100, 100], [100, 100, 100], 0.5),
    ],
)
def test_brightness_separates_the_classes_as_counted_by_hand(
    tmp_path: Path, good: list[int], bad: list[int], auc: float
) -> None:
    _stripes(tmp_path / "images", good=good, bad=bad)
    report = audit(pack.pack(tmp_path / "images", tmp_path / "packs"))
    assert report.brightness_auc == pytest.approx(auc)
    assert report.brightness_mean == pytest.approx(
        {"def_front": np.mean(bad), "ok_front": np.mean(good)}, abs=1e-6
    )


def test_a_black_frame_around_the_content_is_not_measured(tmp_path: Path) -> None:
    for i in range(8):
        split, label = ("train" if i < 4 else "test"), ("def_front", "ok_front")[i % 2]
        rng = np.random.default_rng(i)
        image = np.tile(100 + rng.permutation([-20] * 32 + [20] * 32)[:, None], (1, 32)).astype(
            np.uint8
        )  # [64, 32]
        _save(tmp_path / "images" / split / label / f"{i}.png", Image.fromarray(image))
    packed = pack.pack(tmp_path / "images", tmp_path / "packs", pixels=PixelRules(size_px=64))
    assert packed.images[0].mean() == pytest.approx(50)  # half of the square is frame
    assert audit(packed).brightness_mean == pytest.approx({"def_front": 100, "ok_front": 100})


def test_a_colour_set_is_audited_by_its_luminance(tmp_path: Path) -> None:
    for i in range(24):
        split, label = ("train" if i < 18 else "test"), ("def_front", "ok_front")[i % 2]
        gray = np.asarray(_casting(i))
        colour = np.stack([gray, gray // 2, gray // 3], axis=-1)
        _save(tmp_path / "images" / split / label / f"{i:02d}.png", Image.fromarray(colour))
    twin = Image.open(tmp_path / "images/train/ok_front/01.png").transpose(
        Image.Transpose.ROTATE_90
    )
    _save(tmp_path / "images/test/ok_front/twin.png", twin)
    packed = pack.pack(tmp_path / "images", tmp_path / "packs")
    assert packed.images.ndim == 4
    report = audit(packed)
    assert _named(packed, report.twin_in_train) == {"test/twin"}
    assert not any("gray" in finding for finding in report.findings)


@pytest.mark.slow
def test_sixty_four_real_test_images_are_byte_copies_and_all_are_good(
    real: Pack, real_audit: Audit
) -> None:
    copied = real_audit.copy_in_train & (real.splits == "test")
    assert copied.sum() == 64
    assert not real.labels[copied].any()


@pytest.mark.slow
def test_all_real_test_images_but_eight_have_a_twin_in_train(real: Pack, real_audit: Audit) -> None:
    alone = ~real_audit.twin_in_train & (real.splits == "test")
    assert alone.sum() == 8
    assert all(Path(path).name.startswith("new__0_") for path in real.paths[alone])


@pytest.mark.slow
def test_the_real_images_are_about_131_photographs_and_one_carries_both_labels(
    real: Pack, real_audit: Audit
) -> None:
    assert 120 <= len(np.unique(real_audit.group)) <= 145
    assert len(np.unique(real_audit.group[real_audit.conflict])) == 1
    assert np.bincount(real.labels[real_audit.conflict]).tolist() == [127, 16]


@pytest.mark.slow
def test_real_brightness_is_as_measured_elsewhere(real: Pack, real_audit: Audit) -> None:
    # casting_data/README.md: AUC .88, ok 149.9, def 139.3
    assert real_audit.brightness_auc == pytest.approx(0.88, abs=0.01)
    assert real_audit.brightness_mean == pytest.approx(
        {"ok_front": 149.9, "def_front": 139.3}, abs=0.3
    )
    assert not real_audit.constant.any()
