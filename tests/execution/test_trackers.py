from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from casting_tune.config import Epoch, TrialConfig
from casting_tune.errors import UsageError
from casting_tune.execution import trackers
from casting_tune.execution.tasks import Event
from casting_tune.execution.trackers import Logged
from tests.cli.test_main import call

TRIALS = [
    Logged(cell_id="a" * 16, label="one ../[x]", settings={"seed": 0, "toggles": ("flip",)}),
    Logged(cell_id="b" * 16, label="two", settings={"seed": 1, "toggles": ()}),
]


def epoch(task: int, number: int, loss: float) -> Event:
    message = Epoch(
        epoch=number,
        n_images=8,
        n_steps=2,
        learning_rate=1e-3,
        train_loss=loss,
        validation_loss=2 * loss,
        validation_accuracy=0.75,
        train_s=1.5,
        validation_s=0.5,
    )
    return Event(task=task, kind="epoch", epoch=message)


EVENTS = [
    Event(task=0, kind="started"),
    Event(task=1, kind="started"),
    epoch(0, 1, 0.5),
    epoch(1, 1, float("nan")),
    Event(task=1, kind="ended", status="error", error="it broke", retried=True),
    Event(task=1, kind="started"),
    epoch(0, 2, 0.25),
    Event(task=0, kind="ended", status="completed", test_accuracy=0.875, duration_s=4.0),
    Event(task=1, kind="ended", status="diverged", error="not a number", duration_s=2.0),
]
"""Trial 0 trains two epochs and completes; trial 1 is tried twice and diverges."""


def tell(words: Sequence[str], beside: Path, events: Sequence[Event] = EVENTS) -> list[str]:
    """Tell events to the loggers that the words name; return the warnings."""
    warnings: list[str] = []
    wanted = trackers.read(words)
    with trackers.follow(
        wanted, TRIALS, folder=beside, sweep="s", run_id="r", warn=warnings.append
    ) as on_event:
        for event in events:
            on_event(event)
    return warnings


def test_tensorboard_reads_back_every_epoch_and_the_end(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert tell(["tensorboard"], tmp_path) == []
    (first,) = (tmp_path / "tensorboard" / "s" / "r").glob("aaaa*")
    assert first.name == f"{'a' * 16} one .._[x]".replace("[", "_").replace("]", "_")
    read = EventAccumulator(str(first))
    read.Reload()
    losses = [(row.step, row.tensor_proto.float_val[0]) for row in read.Tensors("train_loss")]
    assert losses == [(1, 0.5), (2, 0.25)]
    assert [(row.step, row.tensor_proto.float_val[0]) for row in read.Tensors("test_accuracy")] == [
        (2, 0.875)
    ]
    assert (
        len(list((tmp_path / "tensorboard" / "s" / "r").iterdir())) == 2
    )  # a trial that is tried again is one run


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("address", [False, True])
def test_mlflow_has_a_run_a_trial_with_settings_figures_and_status(
    address: bool, tmp_path: Path
) -> None:
    word = f"mlflow:sqlite:///{tmp_path}/mlflow/mlflow.db" if address else "mlflow"
    (tmp_path / "mlflow").mkdir()
    assert tell([word], tmp_path) == []
    with sqlite3.connect(tmp_path / "mlflow" / "mlflow.db") as rows:
        runs = rows.execute("select name, status from runs order by name").fetchall()
        losses = rows.execute(
            "select step, value from metrics where key = 'train_loss' order by step"
        ).fetchall()
        seeds = rows.execute(
            "select value from params where key = 'seed' order by value"
        ).fetchall()
        cells = rows.execute(
            "select value from tags where key = 'cell_id' order by value"
        ).fetchall()
    rows.close()
    assert runs == [("one ../[x]", "FINISHED"), ("two", "FAILED")]
    assert losses == [(1, 0.5), (2, 0.25)]
    assert (seeds, cells) == ([("0",), ("1",)], [("a" * 16,), ("b" * 16,)])


def test_no_tracker_gets_the_folder_of_the_weights() -> None:
    config = TrialConfig(
        backbone="vgg16", weights="local-dir:/home/ada/secret", weights_id="local-dir:0a1b2c"
    )
    result = trackers.logged("a" * 16, "one", config)
    assert "ada" not in repr(result)
    assert (result.settings["weights"], result.settings["weights_id"]) == (
        "local-dir",
        "local-dir:0a1b2c",
    )
    assert result.settings["backbone"] == "vgg16"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_wandb_writes_an_offline_run_a_trial(tmp_path: Path) -> None:
    assert tell(["wandb"], tmp_path) == []
    files = sorted((tmp_path / "wandb" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    content = [file.read_bytes() for file in files]
    (first,) = [one for one in content if b"one ../[x]" in one]
    assert b"train_loss" in first
    assert b"test_accuracy" in first
    assert b"test_accuracy" not in next(one for one in content if one is not first)


class Broken:
    """A logger that fails with its second epoch."""

    n_told, n_closed = 0, 0

    def __init__(self, place: str, sweep: str, run_id: str) -> None:
        self.n_epochs = 0

    def begin(self, trial: Logged) -> str:
        return trial.label

    def log(self, run: str, figures: dict[str, float], step: int) -> None:
        Broken.n_told += 1
        if Broken.n_told == 2:
            raise ConnectionError("the server\nis gone")

    def end(self, run: str, status: str) -> None:
        raise AssertionError("it was told more after it failed")

    def close(self) -> None:
        Broken.n_closed += 1
        raise ConnectionError("still gone")


def test_a_logger_that_fails_is_one_warning_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers.KINDS, "mlflow", Broken)
    monkeypatch.setattr(Broken, "n_told", 0)
    monkeypatch.setattr(Broken, "n_closed", 0)
    (warning,) = tell(["mlflow", "tensorboard"], tmp_path)
    assert "Logging to mlflow has ended (ConnectionError: the server is gone)." in warning
    assert (Broken.n_told, Broken.n_closed) == (2, 1)  # it lets go of what it holds
    assert len(list((tmp_path / "tensorboard" / "s" / "r").iterdir())) == 2


def test_a_missing_extra_an_unknown_kind_and_a_bad_folder_are_one_line_up_front(
    tmp_path: Path,
    tiny: Path,
    drawn: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, err = call(capsys, "sweep", tiny, "--log", "tensorbord")
    assert (code, "Did you mean 'tensorboard'?" in err) == (2, True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        tell([f"tensorboard:{tmp_path}/file/logs"], tmp_path)
    with pytest.raises(UsageError, match="given twice"):
        trackers.read(["tensorboard", "tensorboard:x"])
    with pytest.raises(UsageError, match="only mlflow accepts an address"):
        trackers.read(["tensorboard:s3://bucket/logs"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = call(capsys, "sweep", tiny, "--log", "mlflow:x")
    assert (code, err.count("\n")) == (2, 1)
    assert 'pip install "casting-tune[mlflow]"' in err


def test_a_sweep_tells_a_logger_each_trial_once(
    tiny: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "sweep",
        tiny,
        "--data",
        drawn,
        "--results",
        tmp_path / "r",
        "--inline",
        "--no-baselines",
        "--quick",
    )
    code, _, err = call(capsys, *words, "--log", "tensorboard")
    assert (code, err) == (0, "")
    folders = sorted((tmp_path / "r" / "logs" / "tensorboard" / "tiny").glob("*/*"))
    assert len(folders) == 2
    assert all(list(folder.glob("events.*")) for folder in folders)
    cells = {
        row.split("-")[0]
        for row in (path.stem for path in (tmp_path / "r" / "trials").glob("*/*.parquet"))
    }
    assert {folder.name.split()[0] for folder in folders} == cells
