from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from PIL import Image

from casting_tune.cli import main
from casting_tune.deploy import decisions, export, image_files, onnx_graph, predict
from casting_tune.errors import ImagesError, StoreError, UsageError
from casting_tune.store import completed
from casting_tune.store.store import Store


@pytest.fixture(scope="module")
def line(trained: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of one of the tiny cells."""
    folder = tmp_path_factory.mktemp("exports") / "line"
    row = next(
        row for row in trained.read("trials").to_pylist() if row["backbone"].startswith("timm:")
    )
    export.export(completed.load(trained, row["cell_id"]), trained, folder)
    return folder


def call(*words: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["casting-tune", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main.main()
    return int(ended.value.code or 0)


def a_test_image(drawn: Path) -> Path:
    return image_files.find([drawn / "test"])[0]


def test_every_test_image_is_scored_as_the_store_has_it(
    line: Path, drawn: Path, trained: Store
) -> None:
    cell = json.loads((line / "decision.json").read_text())["cell_id"]
    stored = trained.read("predictions", cell_ids=[cell]).to_pandas()
    stored = stored[stored["split"] == "test"].set_index("sha256")["score"]
    network = predict.open_network(line, n_threads=1)
    made = list(predict.decide_all(network, image_files.find([drawn / "test"])))
    assert {decision.sha256 for decision in made} == set(stored.index)
    for decision in made:
        assert decision.score == pytest.approx(stored[decision.sha256], abs=1e-3)
        assert decision.defective == (np.float32(decision.score) >= np.float32(0.5))


def test_predict_loads_no_torch_and_no_pandas_and_writes_parquet(
    line: Path, drawn: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.parquet"
    code = (
        "import sys; from casting_tune.cli import main\n"
        f"sys.argv = ['casting-tune', 'predict', {str(line)!r}, {str(drawn / 'test')!r}]\n"
        f"sys.argv += ['--out', {str(out)!r}]\n"
        "try:\n    main.main()\n"
        "except SystemExit as ended:\n    assert not ended.code, ended.code\n"
        "print('LOADED', *sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    loaded = set(ended.stdout.rpartition("LOADED")[2].split())
    assert "onnxruntime" in loaded
    assert not {"torch", "timm", "kornia", "ray", "pandas"} & loaded
    rows = pd.read_parquet(out)
    assert list(rows.columns) == ["path", "sha256", "score", "defective", "reason", "seconds"]
    assert len(rows) == len(image_files.find([drawn / "test"]))
    assert rows["score"].between(0, 1).all()
    assert rows["reason"].isna().all()


def test_one_bad_image_is_one_row_and_the_others_are_decided(
    line: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "rows.csv"
    folder.mkdir()
    shutil.copy(a_test_image(drawn), folder / "a.png")
    (folder / "b.png").write_bytes(a_test_image(drawn).read_bytes()[:200])
    Image.new("L", (64, 32)).save(folder / "c.png")
    Image.new("RGB", (64, 64), (200, 10, 10)).save(folder / "d.png")
    Image.new("L", (128, 128), 90).save(folder / "e, f.png")
    assert call("predict", line, folder, "--out", out) == ImagesError.exit_code
    output = capsys.readouterr().out
    assert output.count("NO DECISION") == 3
    assert "5 images:" in output
    assert "3 without a decision" in output
    with out.open(newline="") as stream:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(stream)}
    names = ("a.png", "b.png", "c.png", "d.png", "e, f.png")
    scored = [bool(rows[name]["score"]) for name in names]
    assert scored == [True, False, False, False, True]
    assert "trained on the aspect ratio of 64 x 64" in rows["c.png"]["reason"]
    assert "colour" in rows["d.png"]["reason"]


def test_a_defect_ends_with_20_only_on_request(
    line: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = a_test_image(drawn)
    found = predict.decide(predict.open_network(line, n_threads=1), image)

    def open_strict(
        folder: Path, *, n_threads: int = 0, max_megapixels: int | None = None
    ) -> predict.Network:
        return strict

    class Session:
        def __init__(self, defective: bool) -> None:
            self.defective = defective

        def run(self, names: list[str], fed: dict[str, object]) -> list[np.ndarray]:
            return [np.array([0.25], np.float32), np.array([self.defective])]

    assert found.reason == ""
    monkeypatch.setattr(predict, "open_network", open_strict)
    report = json.loads((line / "decision.json").read_text())
    for defective, words, code in (
        (True, [], 0),
        (True, ["--fail-on-defect"], 20),
        (False, ["--fail-on-defect"], 0),
    ):
        strict = predict.Network(report, Session(defective))
        assert call("predict", line, image, *words) == code


def test_a_changed_file_is_not_run(line: Path, drawn: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(line, copy)
    text = (copy / "decision.json").read_text()
    (copy / "decision.json").write_text(text.replace('"threshold": 0.5', '"threshold": 0.9'))
    with pytest.raises(StoreError, match=r"decision\.json in .* was changed after the export"):
        predict.open_network(copy)
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(UsageError, match="is not an export"):
        predict.open_network(copy)


class Time:
    """A clock that moves during sleep, and runs the actions planned for that time."""

    def __init__(self, plan: dict[float, object]) -> None:
        self.now, self.plan = 0.0, dict(plan)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for at in sorted(self.plan):
            if at <= self.now:
                self.plan.pop(at)()  # type: ignore[operator]

    def clock(self) -> float:
        return self.now


def test_a_watch_classifies_files_once_complete_and_again_when_they_change(
    line: Path, drawn: Path, tmp_path: Path
) -> None:
    folder, (first, second) = tmp_path / "in", image_files.find([drawn / "test"])[:2]
    whole = first.read_bytes()
    folder.mkdir()
    (folder / ".hidden.png").write_bytes(whole)

    def move() -> None:
        shutil.copy(second, tmp_path / "beside")
        (tmp_path / "beside").replace(folder / "moved.png")

    time = Time(
        {
            1.0: lambda: (folder / "slow.png").write_bytes(whole[:300]),
            3.0: lambda: (folder / "slow.png").write_bytes(whole),
            4.0: move,
            5.0: lambda: (folder / "broken.png").write_bytes(b"no image"),
            12.0: lambda: (folder / "moved.png").write_bytes(whole),
        }
    )
    network = predict.open_network(line, n_threads=1)
    found, at = [], []
    for decision in predict.watch(network, [folder], idle_s=8, sleep=time.sleep, clock=time.clock):
        found.append((Path(decision.path).name, bool(decision.reason)))
        at.append(time.now)
    assert found == [
        ("slow.png", False),
        ("moved.png", False),
        ("broken.png", True),
        ("moved.png", False),
    ]
    assert 3.0 < at[0] <= 3.5
    assert 10.0 <= at[2] <= 10.5
    assert time.now >= 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "rows.xlsx"], ".csv or a .parquet"),
        (["--idle", "3"], "use it together with --watch"),
        (["--watch"], "--watch takes folders"),
    ],
)
def test_an_invalid_option_is_refused_in_one_line(
    line: Path, drawn: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("predict", line, a_test_image(drawn), *words) == UsageError.exit_code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_without_onnxruntime_predict_and_export_name_the_extra(
    line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    for words in (["predict", line, line], ["export", "abc", "--out", tmp_path / "x"]):
        assert call(*words) == UsageError.exit_code
        assert 'pip install "casting-tune[export]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["SHA256SUMS", "decision.json", "network.onnx", "model.safetensors"]
)
def test_a_file_of_an_export_without_read_permission_is_not_called_missing(
    line: Path,
    drawn: Path,
    name: str,
    refuse: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    refuse(line / name)
    assert call("predict", line, a_test_image(drawn)) == StoreError.exit_code
    err = capsys.readouterr().err
    assert (
        f"Cannot read '{line / name}': permission denied. Give this account read permission."
        in " ".join(err.split())
    )


def test_a_folder_without_read_permission_is_not_called_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(folder: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("os.scandir", refused)
    with pytest.raises(ImagesError, match=f"Cannot read '{tmp_path}': permission denied"):
        image_files.find([tmp_path])


def test_threads_of_onnxruntime_sleep_while_they_wait(
    line: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[onnxruntime.SessionOptions] = []
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda _file, options, **_: made.append(options)
    )
    predict.open_network(line, n_threads=2)
    predict.open_session(line / "network.onnx")  # as an export checks its graph
    assert [options.intra_op_num_threads for options in made] == [2, 0]
    assert [
        options.get_session_config_entry("session.intra_op.allow_spinning") for options in made
    ] == ["0", "0"]


@pytest.mark.parametrize(
    ("installed", "refused"), [("1.25.1", True), ("1.9", True), ("1.26.0", False)]
)
def test_an_onnxruntime_that_cannot_load_the_graph_is_refused_in_one_line(
    installed: str,
    refused: bool,
    line: Path,
    drawn: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("onnxruntime.__version__", installed)
    assert call("predict", line, a_test_image(drawn)) == (UsageError.exit_code if refused else 0)
    if refused:
        message = f"onnxruntime {installed} is too old: an exported network requires 1.26 or later."
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
        with pytest.raises(UsageError, match=r"requires 1\.26"):
            onnx_graph.check_libraries()


def test_the_extra_requires_the_onnxruntime_that_predict_requires() -> None:
    project = tomllib.loads((Path(__file__).parent.parent.parent / "pyproject.toml").read_text())[
        "project"
    ]
    assert f"onnxruntime>={predict.LEAST_ONNXRUNTIME}" in project["optional-dependencies"]["export"]


def test_a_path_is_no_formula_in_csv_and_is_itself_in_parquet(tmp_path: Path) -> None:
    paths = ["=1+1.png", "+1.png", "-1.png", "@a.png", "\t=1.png", "a=1.png", "b\n=1.png"]
    made = [decisions.Decision(path, "00", 0.25, False, "", 0.5) for path in paths]
    for name in ("rows.csv", "rows.parquet"):
        with decisions.writer(tmp_path / name) as write:
            for decision in made:
                write(decision)
    with (tmp_path / "rows.csv").open(newline="") as stream:
        read = [row["path"] for row in csv.DictReader(stream)]
    assert read == ["'=1+1.png", "'+1.png", "'-1.png", "'@a.png", "'?=1.png", "a=1.png", "b?=1.png"]
    assert pd.read_parquet(tmp_path / "rows.parquet")["path"].to_list() == paths
