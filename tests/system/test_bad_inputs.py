"""170 bad or odd inputs on the command line: one line on stderr, an exit code, nothing lost.

Where an odd input is a fair one (a turned photograph, a palette), the case says what is right
instead. The tests of each package cover its functions; here every case goes through
`casting-tune` itself.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import html
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from casting_tune.data import synthetic
from casting_tune.data.pack import open_pack
from casting_tune.store import storage
from casting_tune.store.schema import VERSION_KEY
from casting_tune.store.store import Store
from tests.cli.test_main import call, python

Say = pytest.CaptureFixture[str]


def digests(folder: Path) -> dict[str, str]:
    """Return path -> SHA-256 of the files below a folder, without locks; {} if it is missing."""
    files = (
        file
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".running-")
    )
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def refused(capsys: Say, *words: object, code: int, tells: tuple[str, ...], keeps: Path) -> None:
    """Assert a command's exit code, its one line on stderr, and that no file of `keeps` changed."""
    before = digests(keeps)
    ended, _, err = call(capsys, *words)
    assert (ended, err.count("\n")) == (code, 1), err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for words_told in tells:
        assert words_told in err
    assert digests(keeps) == before


# Sweep files

HEAD = 'question = "?"\n'
FIXED = HEAD + "[fixed]\nbackbone = 'timm:test_resnet.r160_in1k'\nweights = 'none'\nimage_px = 32\n"
LIMITS = FIXED + "[limits]\n"

SWEEP_FILES: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "batches of one image that batch normalisation cannot take": (
        FIXED + "batch_size = 1\n",
        (
            "batch_size must be at least 2 for 'timm:test_resnet.r160_in1k' at image_px 32",
            "Use batch_size = 2",
        ),
    ),
    "empty": ("", ("'question'", "Field required")),
    "no TOML": ("question: ?", ("bad.toml is not valid TOML",)),
    "not UTF-8": (b"question = '\xff'", ("bad.toml is not valid TOML",)),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(64), ("bad.toml is not valid TOML",)),
    "3,000 lists deep": (HEAD + "x = " + "[" * 3000 + "]" * 3000, ("nested too deeply",)),
    "3,000 tables deep": (HEAD + "x = " + "{a=" * 3000 + "1" + "}" * 3000, ("nested too deeply",)),
    "3,000 dots deep": (HEAD + "x" + ".a" * 3000 + " = 1", ("Unknown key 'x'",)),
    "an unknown key": (FIXED + "[elsewhere]\nx = 1", ("Unknown key 'elsewhere'. Known: axes",)),
    "a misspelt key": (HEAD + "[fixd]\nbackbone = 'vgg16'", ("Did you mean 'fixed'?",)),
    "a misspelt setting": (FIXED + "bacth_size = 4", ("Did you mean 'batch_size'?",)),
    "a doubled key": (FIXED + "seed = 1\nseed = 2", ("not valid TOML", "overwrite")),
    "a doubled value": (FIXED + "[axes]\nseed = [0, 1, 0]", ("axis 'seed' contains 0 twice",)),
    "a doubled cell": (
        FIXED.replace("question", "type = 'cases'\nquestion")
        + "[[cases]]\nlabel = 'a'\nset = {}\n[[cases]]\nlabel = 'b'\nset = {}",
        ("'a' and 'b' have the same configuration",),
    ),
    "a setting both fixed and an axis": (
        FIXED + "seed = 1\n[axes]\nseed = [0]",
        ("in both [fixed] and [axes]",),
    ),
    "text for a number": (FIXED + "epochs = '3'", ("epochs", "valid integer; got '3'")),
    "a fraction for a count": (FIXED + "batch_size = 4.5", ("batch_size", "got 4.5")),
    "true for a number": (FIXED + "epochs = true", ("epochs", "got True")),
    "a number for text": ("question = 1", ("'question'", "valid string; got 1")),
    "a list for a section": (HEAD + "fixed = []", ("'fixed'", "dictionary")),
    "one value for an axis": (FIXED + "[axes]\nseed = 1", ("'axes.seed'", "list; got 1")),
    "a list in an axis": (FIXED + "[axes]\nseed = [[1]]", ("seed", "integer; got [1]")),
    "a date for a number": (FIXED + "epochs = 2026-01-01", ("epochs", "2026")),
    "NaN": (FIXED + "base_lr = nan", ("base_lr", "finite", "nan")),
    "infinity": (FIXED + "base_lr = inf", ("base_lr", "finite", "inf")),
    "NaN in an axis": (FIXED + "[axes]\ndropout = [0.1, nan]", ("dropout", "finite", "nan")),
    "a negative number": (FIXED + "batch_size = -4", ("batch_size", "greater than", "got -4")),
    "zero epochs": (FIXED + "epochs = 0", ("epochs", "greater than", "got 0")),
    "a number beyond 64 bits": (FIXED + "seed = 123456789012345678901234567890", ("seed",)),
    "an empty axis": (FIXED + "[axes]\nseed = []", ("axis 'seed' is empty",)),
    "no cases": (
        FIXED.replace("question", "type = 'cases'\nquestion"),
        ("requires at least one [[cases]]",),
    ),
    "a million cells and more": (
        FIXED + "[axes]\n"
        + "".join(f"{name} = {[*range(1, 102)]}\n" for name in ("seed", "epochs", "batch_size")),
        ("1,030,301 cells", "limit of 1,000,000"),
    ),
    "an unknown backbone": (
        FIXED.replace("timm:test_resnet.r160_in1k", "resnet5"),
        ("Did you mean 'resnet50'?",),
    ),
    "an unknown backbone of timm": (
        FIXED.replace("test_resnet", "test_resnt"),
        ("test_resnt", "Did you mean"),
    ),
    "no backbone": (HEAD + "[fixed]\nepochs = 1", ("backbone is missing",)),
    "an image too small for its backbone": (
        HEAD + "[fixed]\nbackbone = 'inceptionv3'\nweights = 'none'\nimage_px = 32",
        ("inceptionv3", "32", "75"),
    ),
    "an unknown toggle": (FIXED + "augmentation = 'no rotatoin'", ("Did you mean 'rotation'?",)),
    "unknown weights": (
        FIXED.replace("'none'", "'imagnet'"),
        ("'imagenet', 'none' or 'local-dir:DIR'", "imagnet"),
    ),
    "a fold that is not there": (FIXED + "split = 'grouped'\nfold = 9", ("n_folds = 5", "got 9")),
    "a negative limit": (
        LIMITS + "max_seconds = -1",
        ("'limits.max_seconds'", "greater than 0; got -1"),
    ),
    "a limit of NaN": (LIMITS + "memory_gib = nan", ("'limits.memory_gib'", "finite", "nan")),
    "a limit in words": (LIMITS + "max_seconds = '1 h'", ("'limits.max_seconds'", "got '1 h'")),
    "an unknown answer to lost memory": (
        LIMITS + "on_oom = 'retry'",
        ("'limits.on_oom'", "'fail' or 'accumulate'"),
    ),
    "a misspelt limit": (LIMITS + "max_second = 1", ("Did you mean 'max_seconds'?",)),
}  # fmt: skip


@pytest.mark.parametrize("case", SWEEP_FILES)
def test_a_sweep_file_is_refused_before_a_results_folder_is_made(
    case: str, tmp_path: Path, drawn: Path, capsys: Say
) -> None:
    content, tells = SWEEP_FILES[case]
    file = tmp_path / "bad.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    words = ("sweep", file, "--data", drawn, "--results", tmp_path / "r", "--inline")
    refused(capsys, *words, code=2, tells=tells, keeps=tmp_path)


@pytest.mark.parametrize(
    ("name", "tells"),
    [
        ("nowhere.toml", "not found"),
        ("line\nbreak.toml", "start with a letter"),
        ("[/foo].toml", "[/foo]"),
        ("\x1b[31mred.toml", "?[31mred"),
        ("<script>.toml", "<script>"),
        ("=cmd.toml", "=cmd"),
        ("grün.toml", "grün"),
        (f"{'x' * 300}.toml", "xxx"),
    ],
)
def test_a_sweep_files_name_is_refused_and_inert(
    name: str, tells: str, tmp_path: Path, drawn: Path, capsys: Say
) -> None:
    if not {"nowhere.toml", "[/foo].toml", f"{'x' * 300}.toml"} & {name}:
        (tmp_path / name).write_text(FIXED)
    words = ("sweep", tmp_path / name, "--data", drawn, "--results", tmp_path / "r", "--inline")
    refused(capsys, *words, code=2, tells=(tells,), keeps=tmp_path)


# Options

OPTIONS: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "an unknown setting": (("--set", "epoch=3"), 2, ("--set", "Did you mean 'epochs'?")),
    "a setting twice": (("--set", "epochs=3", "--set", "epochs=4"), 2, ("'epochs' is set twice",)),
    "a setting without a value": (("--set", "epochs"), 2, ("--set requires setting=value",)),
    "a setting of a wrong type": (("--set", "epochs=many"), 2, ("epochs", "got 'many'")),
    "an axis that is set": (("--set", "seed=3"), 2, ("'seed' is an axis", "--only seed=")),
    "a value that no cell has": (
        ("--only", "seed=7"),
        2,
        ("Unknown value of seed '7'. Known: 0, 1",),
    ),
    "a kept word that is none": (("--keep", "bset"), 2, ("--keep", "Did you mean 'best'?")),
    "no seconds": (("--max-seconds", "0"), 2, ("--max-seconds must be greater than 0; got 0",)),
    "seconds of NaN": (
        ("--max-seconds", "nan"),
        2,
        ("--max-seconds must be greater than 0; got nan",),
    ),
    "negative memory": (
        ("--max-memory", "-1"),
        2,
        ("--max-memory must be greater than 0; got -1",),
    ),
    "an unknown answer to lost memory": (("--on-oom", "retry"), 2, ("--on-oom", "fail")),
    "no trials at once": (
        ("--trials-at-once", "0"),
        2,
        ("--trials-at-once must be at least 1; got 0",),
    ),
    "negative retries": (("--retries", "-1"), 2, ("--retries must be at least 0; got -1",)),
    "text for a number": (("--retries", "often"), 2, ("--retries", "valid integer")),
    "a tiny pack": (("--pack-size", "4"), 2, ("--pack-size must be at least 16; got 4",)),
    "a vast pack": (("--pack-size", "1000000"), 2, ("16 to 4096", "1000000")),
    "a price of NaN": (
        ("--price-per-gpu-hour", "nan"),
        2,
        ("--price-per-gpu-hour must be at least 0; got nan",),
    ),
    "a price without a plan": (
        ("--price-per-gpu-hour", "2"),
        2,
        ("--price-per-gpu-hour requires --plan",),
    ),
    "a probe without a plan": (("--probe",), 2, ("--probe requires --plan",)),
    "a loop on a cluster": (("--address", "auto"), 2, ("--inline", "Remove --address")),
    "a GPU where there is none": (
        ("--gpus-per-trial", "1"),
        7,
        ("--gpus-per-trial 1", "there is no GPU"),
    ),
    "a class that is none": (
        ("--positive", "def_fornt"),
        4,
        ("Unknown class 'def_fornt'", "Did you mean --positive def_front?"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_of_a_sweep_is_refused_and_the_store_stays(
    case: str, tiny: Path, drawn: Path, trained: Store, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casting_tune.execution.nodes.capacity", lambda *_, **__: (2, 0))
    words, code, tells = OPTIONS[case]
    requested = ("sweep", tiny, "--data", drawn, "--results", trained.root, "--inline", *words)
    refused(capsys, *requested, code=code, tells=tells, keeps=trained.root)


UNHEEDED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "a run of no sweep": (
        ("compare", "CELL", "CELL", "--run", "r"),
        ("--run", "together with --sweep"),
    ),
    "an export of a cell of a run": (
        ("export", "CELL", "--out", "OUT", "--run", "r"),
        ("--run", "together with --sweep"),
    ),
    "two formats of a query": (
        ("query", "select 1", "--json", "--format", "csv"),
        ("--json and --format csv",),
    ),
    "two formats of a table": (
        ("table", "tiny", "--json", "--format", "latex"),
        ("--json and --format latex",),
    ),
    "a size of no images": (
        ("reproduce", "CELL", "--pack-size", "64"),
        ("--pack-size", "requires --data"),
    ),
    "bad ones of no images": (
        ("reproduce", "CELL", "--skip-bad"),
        ("--skip-bad", "--skip-bad requires --data"),
    ),
    "weights of no use": (
        ("reproduce", "CELL", "--weights-dir", "OUT"),
        ("none weights", "Remove --weights-dir"),
    ),
    "images of a report without": (
        ("report", "tiny", "--data", "OUT"),
        ("--data", "--with-images"),
    ),
    "a store of an export": (
        ("explain", "OUT", "IMAGE", "--out", "OUT"),
        ("is an export", "drop --results"),
    ),
    "a format beside JSON": (
        ("table", "tiny", "--json", "--format", "text"),
        ("--json and --format text",),
    ),
    "a format of a query beside JSON": (
        ("query", "select 1", "--json", "--format", "text"),
        ("--format text",),
    ),
    "a class of times": (
        ("table", "tiny", "--kind", "timing", "--positive", "ok"),
        ("--positive", "'timing'"),
    ),
    "a class of pairs": (
        ("table", "tiny", "--kind", "pairs", "--positive", "ok"),
        ("--positive", "'pairs'"),
    ),
    "a class of effects": (
        ("table", "tiny", "--kind", "effects", "--positive", "ok"),
        ("--positive", "'effects'"),
    ),
    "a size of an export's images": (
        ("export", "CELL", "--out", "OUT/x", "--pack-size", "64"),
        ("requires --data",),
    ),
    "the end of no watch": (
        ("predict", "OUT", "OUT", "--idle", "1"),
        ("--idle", "together with --watch"),
    ),
    "the exit code of a watch": (
        ("predict", "OUT", "OUT", "--watch", "--fail-on-defect"),
        ("add --idle",),
    ),
    "GPUs of machines of one's own": (
        ("cluster", "check", "LOCAL", "--gpus-per-trial", "1"),
        ("aws only",),
    ),
    "a folder of a check": (("fetch", "--check", "OUT", "--out", "OUT"), ("no use for --out",)),
    "all cells and the failed ones": (
        ("sweep", "TINY", "--fresh", "--retry-failed"),
        ("Remove --retry-failed",),
    ),
    "bad ones of drawn castings": (
        ("sweep", "TINY", "--skip-bad"),
        ("--skip-bad requires --data",),
    ),
    "a price of a run": (("sweep", "TINY", "--price-per-gpu-hour", "2"), ("requires --plan",)),
    "a probe of a run": (("sweep", "TINY", "--probe"), ("requires --plan",)),
    "a quick run of a sweep without": (("sweep", "BARE", "--quick"), ("no [quick] section",)),
    "how far nothing turns": (
        ("sweep", "BARE", "--set", "rotation_deg=9"),
        ("'rotation' is off in every cell",),
    ),
    "folds of an official split": (
        ("sweep", "TINY", "--set", "n_folds=3"),
        ("--set n_folds", "grouped"),
    ),
    "cells of a search": (
        ("sweep", "augmentation_search", "--only", "seed=1"),
        ("a search has no axes",),
    ),
    "times of a search": (
        ("sweep", "augmentation_search", "--timing"),
        ("--timing", "a search has none"),
    ),
    "times on a cluster": (
        ("sweep", "TINY", "--timing", "--address", "auto"),
        ("--timing", "Remove one"),
    ),
    "several in a loop": (
        ("sweep", "TINY", "--inline", "--trials-at-once", "2"),
        ("--inline", "--trials-at-once"),
    ),
    "packed GPUs in a loop": (
        ("sweep", "TINY", "--inline", "--gpus-per-trial", "auto"),
        ("--inline", "Remove one"),
    ),
    "a cost without its likes": (
        ("threshold", "CELL", "--cost-escape", "2"),
        ("all of --cost-escape",),
    ),
    "two rules": (
        ("threshold", "CELL", "--max-escape", "1%", "--prevalence", ".1"),
        ("Give --max-escape, or all",),
    ),
    "a licence of a check": (
        ("fetch", "--check", "OUT", "--accept-licence"),
        ("no use for --accept-licence",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNHEEDED)
def test_an_option_that_nothing_would_heed_is_refused(
    case: str,
    tiny: Path,
    drawn: Path,
    trained: Store,
    tmp_path: Path,
    capsys: Say,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CASTING_TUNE_DATA", raising=False)  # it is as good as --data
    monkeypatch.setattr("casting_tune.execution.nodes.capacity", lambda *_, **__: (2, 0))
    words, tells = UNHEEDED[case]
    cell = next(
        row["cell_id"]
        for row in trained.read("trials").to_pylist()
        if row["backbone"].startswith("timm:")
    )
    bare, out = tmp_path / "bare.toml", tmp_path / "out"
    bare.write_text(FIXED + "augmentation = 'only flip'\n")
    out.mkdir()
    given = {
        "CELL": cell,
        "OUT": out,
        "OUT/x": out / "x",
        "IMAGE": min((drawn / "test").rglob("*.*g")),
    }
    given |= {
        "TINY": tiny,
        "BARE": bare,
        "LOCAL": Path(__file__).parent.parent.parent / "clusters" / "local.yaml",
    }
    requested = [given.get(word, word) for word in words]
    store = () if words[0] in ("fetch", "predict", "cluster") else ("--results", trained.root)
    refused(capsys, *requested, *store, code=2, tells=tells, keeps=trained.root)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("results", "tells"),
    [
        ("s3://", "s3://BUCKET/PREFIX"),
        ("s3:///prefix", "s3://BUCKET/PREFIX"),
        ("s3://bucket/../other", "s3://BUCKET/PREFIX"),
        ("gs://bucket/prefix", "s3://BUCKET/PREFIX"),
        ("", "--results"),
        ("/proc/results", "cannot be written"),
        ("/dev/full", "cannot be written"),
        ("x" * 300, "cannot be written"),
    ],
)
def test_a_results_folder_that_cannot_be_one_is_refused(
    results: str,
    tells: str,
    tiny: Path,
    drawn: Path,
    tmp_path: Path,
    capsys: Say,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("sweep", tiny, "--data", drawn, "--results", results, "--inline")
    refused(capsys, *words, code=6, tells=(tells,), keeps=tmp_path)


INSIDE = {
    "a sweep": ("--results", "sweep {tiny} --data {data} --inline --results {data}/results"),
    "a sweep into the image folder itself": (
        "--results",
        "sweep {tiny} --data {data} --results {data} --inline",
    ),
    "the plan of a sweep": (
        "--results",
        "sweep {tiny} --data {data} --results {data}/train/ok_front --plan",
    ),
    "the study": ("--results", "study --data {data} --results {data}/results --out {out}"),
    "the study's tables": ("--out", "study --data {data} --results {out} --out {data}/tables"),
    "a pack": ("--results", "pack {data} --results {data}/results"),
    "an audit": ("--results", "audit --data {data} --results {data}/results"),
    "a preview of a pack": (
        "--results",
        "preview --data {data} --results {data}/results --out {out}",
    ),
    "a preview": ("--out", "preview --data {data} --results {out} --out {data}/preview"),
    "an export": ("--out", "export 0 --data {data} --results {out} --out {data}/line"),
    "pictures of decisions": (
        "--out",
        "explain 0 {data} --data {data} --results {out} --out {data}/heat",
    ),
}


@pytest.mark.parametrize("case", INSIDE)
def test_a_folder_inside_the_image_folder_is_refused_and_nothing_is_made(
    case: str, tiny: Path, few: Path, tmp_path: Path, capsys: Say
) -> None:
    option, words = INSIDE[case]
    before = sorted(few.rglob("*"))
    text = f"{option} is inside the image folder '{few}'"
    requested = words.format(tiny=tiny, data=few, out=tmp_path / "out").split()
    refused(capsys, *requested, code=2, tells=(text,), keeps=few)
    assert sorted(few.rglob("*")) == before
    assert list(tmp_path.iterdir()) == [tiny]


# Image files


def _saved(image: Image.Image, form: str = "PNG", **how: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **how)
    return out.getvalue()


def _turned() -> bytes:
    """Return a picture with a bright left half; its EXIF turns it clockwise: left becomes top."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return _saved(
        Image.fromarray(np.where(np.arange(32) < 16, 200, 0).astype(np.uint8)[None].repeat(32, 0)),
        exif=exif,
    )


GRAY = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8))
COLOUR = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))

BAD_IMAGES: dict[str, tuple[bytes, str]] = {
    "truncated": (_saved(GRAY)[:-200], "truncated"),
    "a truncated JPEG": (_saved(COLOUR, "JPEG")[:-200], "truncated"),
    "empty": (b"", "empty file"),
    "text": (b"not an image", "not one of JPEG, PNG, BMP, TIFF, WEBP"),
    "a wrong magic": (
        b"\x00\x00\x00\x00" + _saved(GRAY)[4:],
        "not one of JPEG, PNG, BMP, TIFF, WEBP",
    ),
    "a format that is not taken": (_saved(GRAY, "PCX"), "not one of JPEG, PNG, BMP, TIFF, WEBP"),
    "a web page": (
        b"<html><script>alert(1)</script></html>",
        "not one of JPEG, PNG, BMP, TIFF, WEBP",
    ),
    "12,000 x 12,000 px": (_saved(Image.new("1", (12_000, 12_000))), "more than 25 megapixels"),
    "several pages": (
        _saved(GRAY, "TIFF", save_all=True, append_images=[GRAY]),
        "2 pictures in one file",
    ),
    "floating-point gray levels": (_saved(GRAY.convert("F"), "TIFF"), "floating-point"),
    "levels over 16 bits": (_saved(Image.new("I", (32, 32), 70_000), "TIFF"), "outside 16 bits"),
}

FAIR_IMAGES: dict[str, tuple[bytes, Callable[[], object]]] = {
    "16 bits": (_saved(Image.new("I;16", (32, 32), 32_896)), lambda: np.full((32, 32), 128)),
    "CMYK": (
        _saved(Image.new("CMYK", (32, 32), (0, 0, 0, 155)), "TIFF"),
        lambda: np.full((32, 32), 100),
    ),
    "a palette": (_saved(Image.new("L", (32, 32), 90).convert("P")), lambda: np.full((32, 32), 90)),
    "alpha": (_saved(Image.new("LA", (32, 32), (200, 0))), lambda: np.zeros((32, 32))),
    "turned by its EXIF": (
        _turned(),
        lambda: np.where(np.arange(32) < 16, 200, 0)[:, None].repeat(32, 1),
    ),
    "1 x 1 px": (_saved(Image.new("L", (1, 1), 77)), lambda: np.full((32, 32), 77)),
    "1 bit": (_saved(Image.new("1", (32, 32), 1)), lambda: np.full((32, 32), 255)),
    "colour that is gray": (_saved(GRAY.convert("RGB")), lambda: np.asarray(GRAY)),
}
"""Odd, and none of them bad: the pixels that a pack of 32 px must hold."""


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 drawn castings of 32 px."""
    folder = tmp_path_factory.mktemp("few") / "castings"
    synthetic.draw(folder, n_images=20, size_px=32)
    return folder


@pytest.fixture
def castings(few: Path, tmp_path: Path) -> Path:
    """A copy of `few` to spoil."""
    return Path(shutil.copytree(few, tmp_path / "castings"))


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_a_file_that_is_no_fair_image_stops_the_pack_with_its_name_and_reason(
    case: str, castings: Path, tmp_path: Path, capsys: Say
) -> None:
    content, reason = BAD_IMAGES[case]
    (castings / "train" / "ok_front" / "odd.png").write_bytes(content)
    tells = ("1 of 21 files", "--skip-bad", "train/ok_front/odd.png: ", reason)
    refused(
        capsys, "pack", castings, "--results", tmp_path / "r", code=4, tells=tells, keeps=tmp_path
    )


@pytest.mark.parametrize("case", FAIR_IMAGES)
def test_an_odd_image_is_packed_as_a_person_would_see_it(
    case: str, castings: Path, tmp_path: Path, capsys: Say
) -> None:
    content, expected = FAIR_IMAGES[case]
    (castings / "train" / "ok_front" / "odd.png").write_bytes(content)
    words = ("pack", castings, "--results", tmp_path / "r", "--pack-size", "32", "--json")
    code, out, err = call(capsys, *words)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["images"], found["kind"], found["skipped"]) == (21, "gray", [])
    packed = open_pack(tmp_path / "r" / "packs" / found["dataset_id"])
    pixels = packed.images[list(packed.paths).index("train/ok_front/odd.png")]
    assert np.abs(pixels.astype(int) - expected()).max() <= 1


def test_one_coloured_image_among_gray_ones_is_asked_about_and_keeps_its_colour_on_request(
    castings: Path, tmp_path: Path, capsys: Say
) -> None:
    (castings / "train" / "ok_front" / "odd.png").write_bytes(_saved(COLOUR))
    words = ("pack", castings, "--results", tmp_path / "r", "--json")
    tells = ("1 of 21 images", "'train/ok_front/odd.png'. Convert them with --gray")
    refused(capsys, *words, code=4, tells=tells, keeps=castings)
    found = json.loads(call(capsys, *words, "--colour")[1])
    packed = open_pack(tmp_path / "r" / "packs" / found["dataset_id"])
    place = list(packed.paths).index("train/ok_front/odd.png")
    assert found["kind"] == "colour"
    assert np.array_equal(packed.images[place], np.asarray(COLOUR).transpose(2, 0, 1))
    assert (packed.images[place - 1] == packed.images[place - 1][:1]).all()


# Image folders


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing folder": (_remove, "Image folder not found"),
    "a file for a folder": (
        lambda root: (_remove(root), root.write_bytes(b"x")),
        "Image folder not found",
    ),
    "an empty folder": (_empty, "has no images"),
    "train/ missing": (lambda root: _remove(root / "train"), "has no train/ next to 'test'"),
    "doubtful classes": (
        lambda root: [
            shutil.copytree(root / s / "ok_front", root / s / "[foo]\x1b\n unsure")
            for s in ("train", "test")
        ],
        "Which of these 3 classes are good? '[foo]?? unsure' (",
    ),
    "a single class": (
        lambda root: [_remove(root / s / "ok_front") for s in ("train", "test")],
        "Two classes are required, a good and a defective one; found 'def_front' (",
    ),
    "two places for train/": (
        lambda root: [shutil.copytree(root / "train", root / "more" / s / "train") for s in "ab"]
        + [_remove(root / s) for s in ("train", "test")],
        "train/ and test/ lie in ",
    ),
    "a file that points nowhere": (
        lambda root: (root / "test" / "ok_front" / "gone.png").symlink_to(root / "nowhere"),
        "gone.png: cannot be read: No such file",
    ),
    "a name that is not UTF-8": (
        lambda root: Path(
            os.fsdecode(bytes(root / "test" / "ok_front") + b"/gu\xdf.png")
        ).write_bytes(b"x"),
        "gu?.png' is not valid UTF-8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_an_image_folder_is_refused_by_a_sweep_and_its_store_stays(
    case: str, castings: Path, tiny: Path, trained: Store, capsys: Say
) -> None:
    spoil, tells = FOLDERS[case]
    spoil(castings)
    words = ("sweep", tiny, "--data", castings, "--results", trained.root, "--inline")
    refused(capsys, *words, code=4, tells=(tells,), keeps=trained.root)


def test_a_folders_name_that_is_too_long_is_refused(tmp_path: Path, capsys: Say) -> None:
    refused(
        capsys,
        "pack",
        tmp_path / ("x" * 300),
        code=4,
        tells=("File name too long",),
        keeps=tmp_path,
    )


@pytest.mark.parametrize(
    "change", ["an image differs", "an image is gone", "an image is new", "a label differs"]
)
def test_images_that_changed_since_the_run_are_other_cells_and_the_old_rows_stay(
    change: str, drawn: Path, trained: Store, tiny: Path, tmp_path: Path, capsys: Say
) -> None:
    castings = Path(shutil.copytree(drawn, tmp_path / "castings"))
    image = min((castings / "train" / "ok_front").iterdir())
    if change == "an image differs":
        Image.fromarray(np.asarray(Image.open(image)) ^ 1).save(image)
    elif change == "an image is gone":
        image.unlink()
    elif change == "an image is new":
        shutil.copy(image, image.with_name(f"new{image.suffix}"))
    else:
        image.rename(castings / "train" / "def_front" / f"moved{image.suffix}")
    results = Path(shutil.copytree(trained.root, tmp_path / "results"))
    before = {
        file: digest for file, digest in digests(results).items() if file.endswith(".parquet")
    }
    words = ("sweep", tiny, "--results", results, "--no-baselines", "--inline", "--plan")
    assert "4 cells: 4 done, 0 to do" in call(capsys, *words, "--data", drawn)[1]
    code, out, err = call(capsys, *words, "--data", castings)
    assert (code, err) == (0, "")
    assert "4 cells: 0 done, 4 to do" in out
    assert {
        file: digest for file, digest in digests(results).items() if file.endswith(".parquet")
    } == before


# Names: each is the name of an image and the label of a row

NAMES = {
    "a newline": "line\nbreak",
    "markup of a terminal": "[/foo]",
    "ANSI": "\x1b[31mred\x1b[0m",
    "a script": "<script>alert(1)<script>",
    "a formula": "=cmd|' !A0",
    "letters beyond ASCII": "Gußteil 鋳物",
    "a turn of direction": "abc\u202egnp",
    "a bell and a backspace": "x\x07\x08y",
}


@pytest.fixture(scope="module")
def named(few: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store of a sweep whose every name is one of NAMES, and what its run printed."""
    folder = tmp_path_factory.mktemp("named")
    castings = Path(shutil.copytree(few, folder / "castings"))
    image = min((castings / "test" / "ok_front").iterdir())
    for name in NAMES.values():
        shutil.copy(image, image.with_name(f"{name.replace('/', '')}{image.suffix}"))
    for split in ("train", "test"):
        (castings / split / "ok_front").rename(castings / split / "=1\n[foo]\x1b<b>")
    cases = "".join(
        f"[[cases]]\nlabel = {json.dumps(name)}\nset = {{ seed = {i} }}\n"
        for i, name in enumerate(NAMES.values())
    )
    file = folder / "named.toml"
    file.write_text(
        FIXED.replace("question", "type = 'cases'\nquestion")
        + "epochs = 1\nbatch_size = 8\n"
        + cases
    )
    words = [
        sys.executable,
        "-m",
        "casting_tune.sweep",
        file,
        "--data",
        castings,
        "--results",
        folder / "r",
    ]
    ended = subprocess.run(
        [*map(str, words), "--inline", "--no-baselines"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return folder / "r", ended.stdout


def _harmless(text: str) -> str:
    """Return a name as it may stand on a terminal: one line, nothing that steers."""
    return "".join(c if c.isprintable() else "?" for c in text)


@pytest.mark.parametrize(
    "case",
    [name if name == "ANSI" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_a_name_is_inert_on_the_terminal_in_csv_and_in_html(
    case: str, named: tuple[Path, str], tmp_path: Path, capsys: Say
) -> None:
    results, printed = named
    name = NAMES[case]
    shown = call(capsys, "table", "named", "--results", results)[1]
    listed = call(
        capsys, "query", "select distinct label from trials order by label", "--results", results
    )[1]
    paths = call(
        capsys,
        "query",
        "select distinct path from predictions",
        "--results",
        results,
        "--format",
        "csv",
    )[1]
    for text in (printed, shown, listed, paths):
        assert all(char.isprintable() or char == "\n" for char in text)
        assert name not in text or name.isprintable()
    assert _harmless(name) in listed
    rows = list(
        csv.reader(
            io.StringIO(call(capsys, "table", "named", "--results", results, "--format", "csv")[1])
        )
    )
    assert ("'" if name.startswith("=") else "") + _harmless(name) in {
        value for row in rows for value in row
    }
    assert any(_harmless(name.replace("/", "")) in row[0] for row in csv.reader(io.StringIO(paths)))
    page = tmp_path / "report.html"
    code, _, err = call(capsys, "report", "named", "--results", results, "--out", page)
    assert (code, err) == (0, "")
    source = page.read_text(encoding="utf-8")
    assert "<script>alert(1)" not in source
    assert html.escape(name, quote=False).split("'")[0] in source


# Stores


def _file(results: Path, table: str = "trials") -> Path:
    return min((results / table).rglob("*.parquet"))


def _flip(results: Path) -> None:
    """Change one bit in the middle of the pages of a file's first column, cell_id."""
    file = _file(results)
    column = pq.read_metadata(file).row_group(0).column(0)
    content = bytearray(file.read_bytes())
    content[
        (column.dictionary_page_offset or column.data_page_offset)
        + column.total_compressed_size // 2
    ] ^= 0x10
    file.write_bytes(content)


def _later(results: Path) -> None:
    rows = pq.read_table(_file(results))
    pq.write_table(rows.replace_schema_metadata({VERSION_KEY: b"99"}), _file(results))


def _cut(results: Path) -> None:
    file = _file(results)
    file.write_bytes(file.read_bytes()[:-100])


STORES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "0 bytes": (
        lambda results: _file(results).write_bytes(b""),
        ("cannot be read", "store verify --quarantine"),
    ),
    "cut": (_cut, ("cannot be read", "store verify --quarantine")),
    "a bit flipped": (_flip, ("cannot be read", "store verify --quarantine")),
    "text": (
        lambda results: _file(results).write_text("x" * 500),
        ("cannot be read", "store verify --quarantine"),
    ),
    "a later schema": (
        _later,
        ("written by a newer casting_tune (schema 99)", "Update casting_tune."),
    ),
}


@pytest.mark.parametrize("case", STORES)
def test_a_store_with_a_broken_file_is_reported_with_the_file_and_a_solution(
    case: str, trained: Store, tmp_path: Path, capsys: Say
) -> None:
    spoil, tells = STORES[case]
    results = Path(shutil.copytree(trained.root, tmp_path / "results"))
    spoil(results)
    refused(
        capsys,
        "table",
        "tiny",
        "--results",
        results,
        code=6,
        tells=(*tells, ".parquet"),
        keeps=results,
    )
    if case != "a later schema":  # a query reads what it knows of that
        query = ("query", "select * from trials", "--results", results)
        refused(capsys, *query, code=6, tells=tells, keeps=results)
    assert call(capsys, "store", "verify", "--results", results)[0] == 6


@pytest.mark.parametrize(
    "words",
    [
        ("table", "tiny"), ("report", "tiny"), ("plot", "tiny"), ("show", "abcd"),
        ("compare", "a", "b"), ("threshold", "abcd", "--max-escape", "1%"),
    ],
)  # fmt: skip
def test_what_reads_a_store_says_that_there_is_none(
    words: tuple[str, ...], tmp_path: Path, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(capsys, *words, "--results", tmp_path / "gone", code=2, tells=("gone",), keeps=tmp_path)


def test_a_file_in_the_place_of_the_results_folder_is_reported(
    tiny: Path, drawn: Path, capsys: Say
) -> None:
    results = tiny.parent / "results"
    results.write_text("mine")
    words = ("sweep", tiny, "--data", drawn, "--results", results, "--inline")
    refused(capsys, *words, code=6, tells=("cannot be written", "--results"), keeps=tiny.parent)


@pytest.mark.parametrize(
    ("number", "tells"),
    [
        (errno.ENOSPC, "No space left on device"),
        (errno.EROFS, "Read-only"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_disk_that_fails_during_a_sweep_ends_it_in_one_line_and_the_rows_before_stay(
    number: int, tells: str, tiny: Path, drawn: Path, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tiny.parent / "results"
    put, kept = storage.Folder.put, dict[str, str]()

    def fail(place: storage.Folder, name: str, content: object) -> None:
        if name.startswith("predictions/"):
            kept.update(digests(results))
            raise OSError(number, os.strerror(number))
        put(place, name, content)

    monkeypatch.setattr(storage.Folder, "put", fail)
    words = ("sweep", tiny, "--data", drawn, "--results", results, "--inline", "--no-baselines")
    code, _, err = call(capsys, *words)
    assert (code, err.count("\n")) == (6, 1), err
    assert err.startswith("error: Cannot write ")
    assert tells in err
    assert kept.items() <= digests(results).items()
    monkeypatch.setattr(storage.Folder, "put", put)
    assert "4 to do" in call(capsys, *words, "--plan")[1]


def test_a_results_folder_that_vanishes_during_a_sweep_is_reported(
    tiny: Path, drawn: Path, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tiny.parent / "results"
    put = storage.Folder.put

    def vanish(place: storage.Folder, name: str, content: object) -> None:
        if name.startswith("epochs/") and results.is_dir():
            shutil.rmtree(results)
            results.write_text("another's file")
        put(place, name, content)

    monkeypatch.setattr(storage.Folder, "put", vanish)
    code, _, err = call(
        capsys, "sweep", tiny, "--data", drawn, "--results", results, "--inline", "--no-baselines"
    )
    assert (code, err.count("\n")) == (6, 1), err
    assert err.startswith("error: Cannot write ")
    assert results.read_text() == "another's file"


# What is not here


@pytest.mark.parametrize("backbone", ["resnet50", "nasnet_mobile"])
def test_weights_that_are_not_to_be_had_end_a_sweep_before_it_starts(
    backbone: str,
    tiny: Path,
    drawn: Path,
    tmp_path: Path,
    capsys: Say,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    tiny.write_text(
        tiny.read_text()
        .replace("timm:test_resnet.r160_in1k", backbone)
        .replace('"none"', '"imagenet"')
    )
    words = ("sweep", tiny, "--data", drawn, "--results", tmp_path / "r", "--inline")
    refused(
        capsys, *words, code=5, tells=(backbone, "local-dir:DIR"), keeps=tmp_path / "r" / "trials"
    )


def test_a_folder_of_weights_that_holds_none_is_reported(
    tiny: Path, drawn: Path, tmp_path: Path, capsys: Say
) -> None:
    tiny.write_text(tiny.read_text().replace('"none"', f'"local-dir:{tmp_path}"'))
    words = ("sweep", tiny, "--data", drawn, "--results", tmp_path / "r", "--inline")
    tells = ("config.json and model.safetensors not found",)
    refused(capsys, *words, code=5, tells=tells, keeps=tmp_path / "r" / "trials")


@pytest.mark.parametrize("library", ["boto3", "ray.autoscaler"])
def test_an_extra_that_is_not_installed_is_named(
    library: str, tmp_path: Path, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    cluster = Path(__file__).parent.parent.parent / "cluster.yaml"
    tells = ("pip install 'casting-tune[cluster]'",)
    refused(capsys, "cluster", "check", cluster, code=7, tells=tells, keeps=tmp_path)


# Where the output goes


@pytest.mark.parametrize(
    "words",
    [
        ("query", "select 1", "--format", "csv", "--out", "{}/nowhere/x.csv"),
        ("query", "drop table trials"),
        ("query", "select * from read_csv('/etc/passwd')"),
        ("query", "copy trials to '{}/x.csv'"),
    ],
)
def test_a_query_that_is_invalid_is_refused(
    words: tuple[str, ...], trained: Store, tmp_path: Path, capsys: Say
) -> None:
    requested = [word.format(tmp_path) for word in words]
    refused(capsys, *requested, "--results", trained.root, code=2, tells=(), keeps=trained.root)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["report", "plot", "preview"])
def test_an_output_that_cannot_be_written_is_reported(
    command: str, trained: Store, drawn: Path, tmp_path: Path, capsys: Say
) -> None:
    (tmp_path / "file").write_text("mine")
    of = ("--data", drawn) if command == "preview" else ("tiny",)
    words = (command, *of, "--results", trained.root, "--out", tmp_path / "file" / "below")
    refused(capsys, *words, code=2, tells=(str(tmp_path / "file"),), keeps=tmp_path)


def test_a_full_disk_behind_stdout_is_one_line(trained: Store) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "casting_tune.cli.main",
                "table",
                "tiny",
                "--results",
                str(trained.root),
            ],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert (ended.returncode, ended.stderr.count("\n")) == (6, 1), ended.stderr
    assert ended.stderr.startswith("error: Cannot use the output: No space left on device.")


def test_a_pipe_that_closes_at_once_ends_quietly(trained: Store) -> None:
    requested = f"query 'select * from predictions' --results {trained.root}"
    code = f"{sys.executable} -m casting_tune.cli.main {requested} | head -1"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    "environment",
    [
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"NO_COLOR": "1"},
        {"TERM": "dumb"},
    ],
)
def test_without_a_terminal_utf_8_or_colours_names_come_out_plain(
    environment: dict[str, str], named: tuple[Path, str]
) -> None:
    ended = python(
        "-m", "casting_tune.cli.main", "table", "named", "--results", named[0], **environment
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\x1b" not in ended.stdout
    assert "[/foo]" in ended.stdout


def test_an_error_under_lang_c_is_one_line_even_with_letters_beyond_ascii() -> None:
    plain = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = python("-m", "casting_tune.cli.main", "sweep", "grün_鋳物", **plain)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert ended.stderr.startswith("error: Unknown sweep 'gr")
