"""Image sets as people have them, drawn small, through the command line.

The fast test stops at the pack; the slow one goes on to a table, a report, an export and decisions.
docs/data.md states the number of LAYOUTS and of ODD files.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.cli.test_main import call

SIX = ("MT_Blowhole", "MT_Break", "MT_Crack", "MT_Fray", "MT_Free", "MT_Uneven")
STEEL = ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches")


def draw(root: Path, folders: Mapping[str, int], suffix: str = "png") -> None:
    """Draw different gray images of 32 px, `n` in each folder."""
    rng = np.random.default_rng(sum(map(ord, "".join(folders))))
    for folder, n in folders.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = rng.integers(0, 256, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i:02}.{suffix}")


def _masks_beside(root: Path) -> None:
    """A mask as PNG of the same name beside each JPEG of the magnetic tiles."""
    for image in [*root.rglob("*.jpg")]:
        Image.new("L", (32, 32)).save(image.with_suffix(".png"))


def _link(root: Path) -> None:
    (root / "test").rename(root.parent / "elsewhere")
    (root / "test").symlink_to(root.parent / "elsewhere")


def _rows(root: Path) -> list[dict[str, object]]:
    """Rows of a list: label, official split, group and kind from the drawn folders."""
    rows = []
    for i, file in enumerate(sorted(root.rglob("*.png"))):
        label, kind = ("ok", "") if file.parts[-2] == "fine" else ("bad", file.parts[-2])
        rows.append(
            {"path": file.relative_to(root).as_posix(), "label": label, "kind": kind,
             "split": ("train", "val", "test")[i % 3], "group": f"part{i // 3}", "line": i % 2}
        )  # fmt: skip
    return rows


def _csv(root: Path) -> None:
    rows = _rows(root)
    with (root / "images.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)


def _semicolons(root: Path) -> None:
    lines = ["path;label", *(f"../D/{row['path']};{row['label']}" for row in _rows(root))]
    (root.parent / "lists").mkdir()
    (root.parent / "lists" / "images.csv").write_text("\n".join(lines), encoding="utf-8-sig")


def _jsonl(root: Path) -> None:
    lines = (json.dumps(row) + "\n" for row in _rows(root))
    (root / "images.jsonl").write_text("".join(lines))


def _parquet(root: Path) -> None:
    pq.write_table(pa.Table.from_pylist(_rows(root)), root / "images.parquet")


@dataclass(frozen=True, kw_only=True)
class Set:
    """A drawn set: its folders with their numbers of images, and what packing it must give.

    `counts` are the images of each split and class; `splits` gives all classes the same counts.
    """

    folders: Mapping[str, int]
    says: str
    counts: Mapping[str, Mapping[str, int]]
    words: tuple[str, ...] = ()
    suffix: str = "png"
    then: Callable[[Path], object] = field(default=lambda _: None)
    data: str = "D"


def _two(train: str, *others: str, base: str = "") -> dict[str, int]:
    """Folders of a set with splits: 10 images of each class in train and 4 in the other splits."""
    return {
        f"{base}{split}/{name}": 10 if split == train else 4
        for split in (train, *others) for name in ("def_front", "ok_front")
    }  # fmt: skip


PAIR = {"def_front": 4, "ok_front": 4}
OFFICIAL = {"train": {"def_front": 10, "ok_front": 10}, "test": PAIR}
THREE = {**OFFICIAL, "validation": PAIR}
DRAWN = {"train": {"def_front": 18, "ok_front": 18}, "test": {"def_front": 2, "ok_front": 2}}
KINDS = {"dent": 9, "hole": 9, "fine": 18}
LISTED = {
    split: {"dent": 3, "hole": 3, "ok": 6} for split in ("train", "validation", "test")
}  # fmt: skip
OF_NAMES = "2 classes, good = ok_front, defective = def_front (by their names)."

LAYOUTS: dict[str, Set] = {
    "train and test": Set(
        folders=_two("train", "test"), says=f"Read as: train/test, {OF_NAMES}", counts=OFFICIAL
    ),
    "train, valid and test": Set(
        folders=_two("train", "valid", "test"), says="Read as: train/valid/test, ", counts=THREE
    ),
    "capital letters": Set(
        folders=_two("Train", "Test"), says="Read as: Train/Test, ", counts=OFFICIAL
    ),
    "long names of splits": Set(
        folders=_two("training", "Validation", "TESTING"),
        says="Read as: training/Validation/TESTING, ",
        counts=THREE,
    ),
    "train, dev and test": Set(
        folders=_two("train", "dev", "test"), says="Read as: train/dev/test, ", counts=THREE
    ),
    "train and val without test": Set(
        folders=_two("train", "val"),
        says="a stratified 10 % was selected",
        counts={
            "train": {"def_front": 9, "ok_front": 9},
            "validation": PAIR,
            "test": {"def_front": 1, "ok_front": 1},
        },
    ),
    "class folders alone": Set(
        folders={"def_front": 20, "ok_front": 20},
        says=f"Read as: class folders without a split, {OF_NAMES}",
        counts=DRAWN,
    ),
    "train alone": Set(
        folders={"train/def_front": 20, "train/ok_front": 20},
        says="Read as: train, ",
        counts=DRAWN,
    ),
    "splits inside class folders": Set(
        folders={
            f"{name}/{split}": n for name in PAIR for split, n in (("Train", 10), ("Test", 4))
        },
        says="Read as: Train/Test, ",
        counts=OFFICIAL,
    ),
    "one folder too deep": Set(
        folders=_two("train", "test", base="castings/"),
        says="Read as: train/test in 'castings', ",
        counts=OFFICIAL,
    ),
    "two folders too deep": Set(
        folders={f"a/b/{name}": 20 for name in PAIR},
        says="Read as: class folders without a split in 'a/b', ",
        counts=DRAWN,
    ),
    "a linked split": Set(
        folders=_two("train", "test"), then=_link, says="Read as: train/test, ", counts=OFFICIAL
    ),
    "magnetic tiles": Set(
        folders={f"{name}/Imgs": 20 if name == "MT_Free" else 10 for name in SIX},
        suffix="jpg",
        then=_masks_beside,
        says="6 classes, good = MT_Free, defective = 5 classes (by their names).",
        counts={
            split: {name: few * (1 + (name == "MT_Free")) for name in SIX}
            for split, few in (("train", 9), ("test", 1))
        },
    ),
    "steel without a good class": Set(
        folders=dict.fromkeys(STEEL, 10),
        words=("--defect", "crazing,scratches", "--defect", "inclusion"),
        says="good = patches, pitted_surface, rolled-in_scale, defective = crazing, inclusion, "
        "scratches.",
        counts={
            split: {"crazing": n, "inclusion": n, "scratches": n,
                    "patches, pitted_surface, rolled-in_scale": 3 * n}
            for split, n in (("train", 9), ("test", 1))
        },
    ),
    "steel with a good class": Set(
        folders=dict.fromkeys(STEEL, 10),
        words=("--good", "patches"),
        says="good = patches, defective = 5 classes.",
        counts={
            split: dict.fromkeys(STEEL, n) for split, n in (("train", 9), ("test", 1))
        },
    ),
    "MVTec AD": Set(
        folders={
            "train/good": 20, "test/good": 10, "test/crack": 10, "test/hole": 10,
            "ground_truth/crack": 10, "ground_truth/hole": 10,
        },
        says="The train images have no defective ones",
        counts={
            "train": {"crack": 9, "hole": 9, "good": 27}, "test": {"crack": 1, "hole": 1, "good": 3}
        },
    ),
    "MVTec AD with its own split": Set(
        folders={"train/good": 20, "test/good": 10, "test/crack": 10},
        words=("--keep-split",),
        says="Read as: train/test, 2 classes, good = good, defective = crack (by their names).",
        counts={"train": {"crack": 0, "good": 20}, "test": {"crack": 10, "good": 10}},
    ),
    "a test split of one class": Set(
        folders={"train/ok": 10, "train/bad": 10, "test/bad": 4},
        says="The test images have no good ones: they give no overkill rate.",
        counts={"train": {"bad": 10, "ok": 10}, "test": {"bad": 4, "ok": 0}},
    ),
    "a CSV list": Set(
        folders=KINDS,
        then=_csv,
        data="D/images.csv",
        says="Read as: list of 36 images with train/validation/test, 2 classes, good = ok, "
        "defective = bad (by their names).",
        counts=LISTED,
    ),
    "a CSV list in another folder": Set(
        folders=KINDS,
        then=_semicolons,
        data="lists/images.csv",
        says="Read as: list of 36 images with no split, ",
        counts={"train": {"bad": 16, "ok": 16}, "test": {"bad": 2, "ok": 2}},
    ),
    "a JSON-lines list": Set(
        folders=KINDS, then=_jsonl, data="D/images.jsonl", says="Groups: 12 given.", counts=LISTED
    ),
    "a Parquet list": Set(
        folders=KINDS,
        then=_parquet,
        data="D/images.parquet",
        says="Read as: list of 36 images with train/validation/test, ",
        counts=LISTED,
    ),
}  # fmt: skip


@pytest.fixture
def drawn_set(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Set, Path]:
    """A set of LAYOUTS by its name, and its folder or list."""
    chosen = LAYOUTS[request.param]
    draw(tmp_path / "D", chosen.folders, chosen.suffix)
    chosen.then(tmp_path / "D")
    return chosen, tmp_path / chosen.data


every_layout = pytest.mark.parametrize("drawn_set", LAYOUTS, indirect=True)


@every_layout
def test_a_layout_is_understood_and_said(
    drawn_set: tuple[Set, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, data = drawn_set
    code, out, err = call(
        capsys, "pack", data, "--results", tmp_path / "r", "--json", *wanted.words
    )
    assert (code, err) == (0, "")
    packed = json.loads(out)
    assert any(wanted.says in note for note in packed["notes"]), packed["notes"]
    counts: dict[str, dict[str, int]] = {}
    for row in packed["counts"]:
        counts.setdefault(row["split"], {})[row["class"]] = row["images"]
    assert counts == wanted.counts


ODD: dict[str, tuple[str, str]] = {
    "a text file": ("train/ok_front/notes.txt", "1 not an image file (.txt)"),
    "a hidden file": ("train/ok_front/._00.png", "1 hidden"),
    "Thumbs.db": ("train/Thumbs.db", "1 system file"),
    "a thumbnail folder": ("@eaDir/00.png/a.jpg", "1 thumbnail or resource folder"),
    "a resource folder": (".AppleDouble/00.png", "1 thumbnail or resource folder"),
    "a folder of a zip": ("__MACOSX/train/00.png", "1 thumbnail or resource folder"),
    "a hidden folder": (".cache/00.png", "1 hidden"),
    "a folder of masks": ("ground_truth/a/00.png", "1 mask"),
    "a mask beside its image": ("train/ok_front/00_mask.png", "1 mask"),
    "an image outside the classes": ("cover.png", "1 image outside the class folders"),
    "an image in another folder": ("more/a/00.png", "1 image outside the class folders"),
}


@pytest.mark.parametrize("case", ODD)
def test_a_skipped_file_is_counted_and_named(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, says = ODD[case]
    draw(tmp_path / "D", _two("train", "test"))
    (tmp_path / "D" / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "D" / path).write_bytes(b"x")
    code, out, _ = call(capsys, "pack", tmp_path / "D", "--results", tmp_path / "r", "--json")
    assert code == 0
    packed = json.loads(out)
    assert packed["images"] == 28
    assert f"{says} (such as '{path}')" in packed["notes"][1]


def test_the_count_of_layouts_and_odd_files_stands_in_the_docs() -> None:
    text = Path("docs/data.md").read_text(encoding="utf-8")
    match = re.search(r"(\d+) layouts and (\d+)\s+sorts of odd files", text)
    assert match is not None
    assert (int(match[1]), int(match[2])) == (len(LAYOUTS), len(ODD))


def test_a_list_with_several_errors_names_them_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path, {"a": 2})
    (tmp_path / "images.csv").write_text(
        "path,label,split\na/00.png,ok,train\na/00.png,bad,train\na/9.png,bad,test\n"
        "a/01.png,,train\na/01.png,bad,holdout\n"
    )
    code, _, err = call(capsys, "pack", tmp_path / "images.csv", "--results", tmp_path / "r")
    text = " ".join(err.split())
    assert code == 4
    assert "has 5 invalid entries" in text
    for problem in (
        "row 2: 'a/00.png' is also in row 1", "row 3: 'a/9.png' not found",
        "row 4: 'a/01.png' has no label", "row 5: 'a/01.png' is also in row 4",
        "row 5: 'a/01.png' has split 'holdout'",
    ):  # fmt: skip
        assert problem in text


def test_groups_of_the_path_are_found_and_a_leak_of_the_official_split_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {
        f"{split}/{name}/part{part}_a": 2
        for split, parts in (("train", "1234"), ("test", "45"))
        for name in ("ok", "bad")
        for part in parts
    }
    draw(tmp_path / "D", folders)
    words = ("pack", tmp_path / "D", "--results", tmp_path / "r")
    code, out, _ = call(capsys, *words, "--group-pattern", r"part(\d+)_")
    text = " ".join(out.split())
    assert code == 0
    assert "Groups: 5 given." in text
    assert (
        "4 of 8 test images are of a group that is also in training (such as '4'): scores look too "
        'good. Use split = "grouped".' in text
    )
    code, _, err = call(capsys, *words, "--group-pattern", "piece(")
    assert (code, "--group-pattern is not a regular expression: 'piece('" in err) == (2, True)


TINY = """
question = "Does it run?"
type = "grid"
[fixed]
backbone = "timm:test_resnet.r160_in1k"
weights = "none"
image_px = 32
batch_size = 4
epochs = 1
[axes]
seed = [0]
"""


@pytest.mark.slow
@every_layout
def test_a_layout_is_trained_tabled_reported_exported_and_used(
    drawn_set: tuple[Set, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, data = drawn_set
    (tmp_path / "tiny.toml").write_text(TINY)
    results = ("--results", tmp_path / "r")
    sweep = (
        "sweep",
        tmp_path / "tiny.toml",
        "--data",
        data,
        *results,
        "--inline",
        "--no-baselines",
    )
    code, out, err = call(capsys, *sweep, *wanted.words)
    if "--keep-split" in wanted.words:
        assert code == 2
        assert "The train side requires at least 2 defective image(s); got 0" in err
        return
    assert (code, err) == (0, "")
    assert wanted.says in " ".join(out.split())
    for words in (
        ("table", "tiny"),
        ("report", "tiny", "--out", tmp_path / "report.html"),
        ("export", "best", "--sweep", "tiny", "--out", tmp_path / "line", "--data", data),
    ):
        code, out, err = call(capsys, *words, *results)
        assert (code, err) == (0, ""), words
    code, out, err = call(capsys, "predict", tmp_path / "line", tmp_path / "D", "--json")
    assert code == 0, err
