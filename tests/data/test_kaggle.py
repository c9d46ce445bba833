from __future__ import annotations

import hashlib
import importlib.machinery
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from casting_tune.data import kaggle
from casting_tune.errors import ImagesError, UsageError
from tests.cli.test_main import call


@pytest.fixture
def published(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Drawn castings as if they were what Kaggle publishes: coreutils say what they are."""
    command = "find train test -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
    result = subprocess.run(
        command, shell=True, cwd=drawn, capture_output=True, text=True, check=True
    ).stdout
    folders = [folder for split in ("train", "test") for folder in (drawn / split).iterdir()]
    counts = {
        folder.relative_to(drawn).as_posix(): len(list(folder.iterdir())) for folder in folders
    }
    monkeypatch.setattr(kaggle, "DIGEST", result.split()[0])
    monkeypatch.setattr(kaggle, "COUNTS", counts)
    return drawn


class Kaggle(ModuleType):
    """kagglehub, whose server is a folder; it prints nothing."""

    def __init__(self, given: Path | Exception, cache: Path) -> None:
        super().__init__("kagglehub")
        self.__spec__ = importlib.machinery.ModuleSpec("kagglehub", None)
        self.given, self.cache, self.n_requests = given, cache, 0

    def dataset_download(self, handle: str, *, output_dir: str | None = None) -> str:
        assert handle == "ravirajsinh45/real-life-industrial-dataset-of-casting-product"
        self.n_requests += 1
        if isinstance(self.given, Exception):
            raise self.given
        to = Path(output_dir) if output_dir else self.cache
        shutil.copytree(self.given, to / "casting_data" / "casting_data")
        (to / "casting_512x512" / "def_front").mkdir(parents=True)
        return str(to)


@pytest.fixture
def site(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kaggle:
    module = Kaggle(published, tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    return module


def test_what_kaggle_gives_is_checked_and_its_folder_named(
    site: Kaggle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "fetch", "--accept-licence", "--out", tmp_path / "out", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["folder"] == str(tmp_path / "out" / "casting_data" / "casting_data")
    assert (found["licence"], sum(found["counts"].values())) == ("CC BY-NC-ND 4.0", 80)
    assert "Ravirajsinh Dabhi" in err
    assert kaggle.fetch(None, licence_accepted=True).folder.is_relative_to(tmp_path / "cache")


def test_nothing_is_requested_from_kaggle_before_the_licence_is_accepted(
    site: Kaggle, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "fetch")
    assert (code, out, site.n_requests) == (2, "", 0)
    assert "CC BY-NC-ND 4.0" in err
    assert "--accept-licence" in err
    assert err.count("\n") == 1


def test_a_folder_that_holds_something_is_never_written_to(site: Kaggle, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    for place in (tmp_path, tmp_path / "mine"):
        with pytest.raises(UsageError, match="already exists"):
            kaggle.fetch(place, licence_accepted=True)
    assert site.n_requests == 0


def test_without_a_network_one_line_says_what_to_do_by_hand(
    site: Kaggle, capsys: pytest.CaptureFixture[str]
) -> None:
    site.given = ConnectionError("Max retries\nexceeded")
    code, _, err = call(capsys, "fetch", "--accept-licence")
    assert (code, err.count("\n")) == (4, 1)
    assert "ConnectionError: Max retries exceeded" in err
    assert kaggle.PAGE in err
    assert "casting-tune fetch --check DIR" in err


def test_without_kagglehub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "casting-tune\[fetch\]"'):
        kaggle.fetch(None, licence_accepted=True)


def test_one_changed_byte_one_file_less_and_one_more_are_each_found(
    published: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "castings"
    shutil.copytree(published, folder)
    assert kaggle.check(tmp_path).folder == folder
    image = next((folder / "train" / "ok_front").iterdir())
    whole = image.read_bytes()
    image.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ImagesError, match="not the same"):
        kaggle.check(folder)
    image.unlink()
    n = kaggle.COUNTS["train/ok_front"]
    with pytest.raises(ImagesError, match=f"train/ok_front has {n - 1} files instead of {n}"):
        kaggle.check(folder)
    image.write_bytes(whole)
    (folder / "test" / "other").mkdir()
    (folder / "test" / "other" / "one.png").write_bytes(b"")
    with pytest.raises(ImagesError, match="test/other has 1 files instead of 0"):
        kaggle.check(folder)


def test_a_folder_without_castings_is_reported_as_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, "fetch", "--check", tmp_path)
    assert (code, "No castings in" in err) == (4, True)


def test_the_real_castings_are_those_that_were_published(
    real_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "fetch", "--check", real_images)
    assert (code, err) == (0, "")
    assert "7,348 images" in out
    names = sorted(
        path.relative_to(real_images).as_posix()
        for split in ("train", "test")
        for path in (real_images / split).glob("*/*")
    )
    assert len(names) == sum(kaggle.COUNTS.values()) == 7348
    lines = [
        f"{hashlib.sha256((real_images / name).read_bytes()).hexdigest()}  {name}\n"
        for name in names
    ]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == kaggle.DIGEST


def test_a_folder_that_may_not_be_read_is_not_reported_as_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ImagesError, match=f"^Cannot read '{tmp_path}': permission denied"):
        kaggle.check(tmp_path)
