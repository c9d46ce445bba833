from __future__ import annotations

import io
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import optuna
import pytest

from casting_tune.analysis import optuna_export
from casting_tune.config import TrialConfig
from casting_tune.errors import UsageError
from casting_tune.store.store import Store
from casting_tune.toggles import TOGGLES
from tests.test_config import OTHER

ONE: dict[str, optuna_export.Direction] = {"validation_accuracy": "max"}


def opened(file: Path) -> optuna.storages.JournalStorage:
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))


def test_optuna_finds_every_trial_with_its_settings_values_epochs_and_cell(
    trained: Store, tmp_path: Path
) -> None:
    n = optuna_export.write(trained, "tiny", tmp_path / "s.log", wanted=ONE)
    study = optuna.load_study(study_name="tiny", storage=opened(tmp_path / "s.log"))
    trials = trained.read("trials").to_pandas().set_index("cell_id")
    cells = [row["cell_id"] for row in trained.read("cells").to_pylist() if row["kind"] == "cell"]
    assert n == len(study.trials) == len(cells) == 4
    assert {trial.user_attrs["cell_id"] for trial in study.trials} == set(cells)
    for trial in study.trials:
        row = trials.loc[trial.user_attrs["cell_id"]]
        assert trial.value == row["validation_accuracy"]
        assert trial.params == {
            "flip": row["flip"],
            "seed": row["seed"],
        }  # all that the tiny sweep varies
        assert sorted(trial.intermediate_values) == [1, 2]
    assert study.best_value == trials.loc[cells]["validation_accuracy"].max()


def test_two_objectives_make_a_pareto_study_and_incomplete_trials_are_marked(
    store: Store, tmp_path: Path
) -> None:
    record = {"completed": 0.9, "stopped": None, "oom": None}
    cells = [
        {"run_id": "r", "sweep": "s", "position": i, "cell_id": f"c{i}", "kind": "cell"}
        for i in range(3)
    ]
    store.write("cells", "s", "r", cells)
    for i, (status, accuracy) in enumerate(record.items()):
        row = {
            "cell_id": f"c{i}",
            "attempt": 1,
            "status": status,
            "base_lr": 10.0**-i,
            "latency_one_s": 0.1,
        }
        store.write("trials", "s", f"c{i}-1", [row | {"validation_accuracy": accuracy}])
    wanted = ONE | {"latency_one_s": "min"}
    optuna_export.write(store, "s", tmp_path / "s.log", wanted=wanted)  # type: ignore[arg-type]
    study = optuna.load_study(study_name="s", storage=opened(tmp_path / "s.log"))
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    states = {
        trial.user_attrs["status"]: (trial.state.name, trial.values) for trial in study.trials
    }
    assert states == {
        "completed": ("COMPLETE", [0.9, 0.1]),
        "stopped": ("PRUNED", None),
        "oom": ("FAIL", None),
    }
    assert sorted(trial.params["base_lr"] for trial in study.trials) == [0.01, 0.1, 1.0]


def test_every_setting_that_differs_is_a_parameter(store: Store, tmp_path: Path) -> None:
    requested = [
        {"run_id": "r", "sweep": "s", "position": i, "cell_id": f"c{i}", "kind": "cell"}
        for i in range(2)
    ]
    store.write("cells", "s", "r", requested)
    config = TrialConfig(backbone="vgg16")
    for i, changed in enumerate((OTHER | {"weights": "imagenet"}, {})):
        settings = {f.name: changed.get(f.name, getattr(config, f.name)) for f in fields(config)}
        toggles = settings.pop("toggles")
        row = (
            settings
            | {toggle: toggle in toggles for toggle in TOGGLES}
            | {"cell_id": f"c{i}", "attempt": 1}
        )
        store.write(
            "trials", "s", f"c{i}-1", [row | {"status": "completed", "validation_accuracy": 0.9}]
        )
    optuna_export.write(store, "s", tmp_path / "s.log", wanted=ONE)
    trials = optuna.load_study(study_name="s", storage=opened(tmp_path / "s.log")).trials
    derived = {"toggles", "weights_id", "split_id", "validation"}
    chosen = {f.name for f in fields(config)} - derived | {"flip"}
    assert set(trials[0].params) == set(trials[1].params) == chosen


def test_every_attempt_has_the_losses_of_its_own_epochs_and_of_those_that_it_went_on_from(
    store: Store, tmp_path: Path
) -> None:
    store.write(
        "cells",
        "s",
        "r",
        [{"run_id": "r", "sweep": "s", "position": 0, "cell_id": "c", "kind": "cell"}],
    )
    # attempt 1 fails in epoch 3; 2 continues from epoch 2, fails in 4; 3 begins anew and fails; 4
    # begins anew
    written = {(1, 1): 0.9, (1, 2): 0.8, (2, 3): 0.7, (4, 4): 0.6}
    for (attempt, number), loss in written.items():
        epoch = {"cell_id": "c", "attempt": attempt, "epoch": number, "validation_loss": loss}
        store.write("epochs", "s", f"c-{attempt}-{number}", [epoch])
    ended = {1: ("error", None), 2: ("error", 2), 3: ("error", None), 4: ("completed", None)}
    for attempt, (status, resumed_from) in ended.items():
        row = {
            "cell_id": "c",
            "attempt": attempt,
            "status": status,
            "epochs": 4,
            "resumed_from": resumed_from,
        }
        store.write("trials", "s", f"c-{attempt}", [row | {"validation_accuracy": 0.5}])
    optuna_export.write(store, "s", tmp_path / "s.log", wanted=ONE)
    trials = optuna.load_study(study_name="s", storage=opened(tmp_path / "s.log")).trials
    assert {trial.user_attrs["attempt"]: trial.intermediate_values for trial in trials} == {
        1: {1: 0.9, 2: 0.8},
        2: {1: 0.9, 2: 0.8, 3: 0.7},
        3: {},
        4: {1: 0.9, 2: 0.8, 3: 0.7, 4: 0.6},
    }


def test_an_objective_stands_once() -> None:
    requested = ["latency_one_s=min", "validation_accuracy=max"]
    assert list(optuna_export.parse_all(requested).items()) == [
        ("latency_one_s", "min"),
        ("validation_accuracy", "max"),
    ]
    with pytest.raises(UsageError, match="--objective latency_one_s is given twice"):
        optuna_export.parse_all([*requested, "latency_one_s=max"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_optuna_dashboard_opens_it(trained: Store, tmp_path: Path) -> None:
    from optuna_dashboard import wsgi

    optuna_export.write(trained, "tiny", tmp_path / "s.log", wanted=ONE)
    app, responses = wsgi(opened(tmp_path / "s.log")), list[str]()

    def start(status: str, headers: Any, exc_info: Any = None) -> None:
        responses.append(status)

    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/api/studies",
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "0",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
    }
    report = json.loads(b"".join(app(environ, start)))
    assert responses[0].startswith("200")
    assert [study["study_name"] for study in report["study_summaries"]] == ["tiny"]


def test_objectives_are_measured_on_validation_and_never_on_test() -> None:
    assert optuna_export.parse("validation_escape_rate=min") == ("validation_escape_rate", "min")
    assert not [name for name in optuna_export.objectives() if name.startswith("test_")]
    with pytest.raises(UsageError, match="Unknown objective 'test_accuracy'"):
        optuna_export.parse("test_accuracy=max")
    with pytest.raises(UsageError, match="use latency_one_s=min or latency_one_s=max"):
        optuna_export.parse("latency_one_s")


def test_a_sweep_without_trials_and_a_file_that_is_there_are_refused(
    trained: Store, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="Sweep 'other' has no trials"):
        optuna_export.write(trained, "other", tmp_path / "s.log", wanted=ONE)
    (tmp_path / "s.log").write_text("")
    with pytest.raises(UsageError, match="already exists"):
        optuna_export.write(trained, "tiny", tmp_path / "s.log", wanted=ONE)
