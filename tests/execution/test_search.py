"""Searches with trials of milliseconds: what Optuna gets, and what the store remembers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search.optuna import optuna_search

from casting_tune.config import TrialConfig, cell_id
from casting_tune.data.pack import Pack
from casting_tune.errors import UsageError
from casting_tune.execution import runner, search, search_space, tasks
from casting_tune.execution.tasks import Event
from casting_tune.planning import expand, sweep_file
from casting_tune.planning.options import Options
from casting_tune.store.attempts import next_attempt
from casting_tune.store.store import Store
from tests.execution.test_runner import Noted

HEAD = """question = "?"
[fixed]
backbone = "timm:test_resnet.r160_in1k"
weights = "none"
image_px = 32
epochs = 1
"""
SEARCH = """
[search]
n_trials = 6
objective = { validation_escape_rate = "min" }
[search.space]
base_lr = { low = 1e-4, high = 1e-2, log = true }
rotation = { choices = [true, false] }
rotation_deg = { low = 5, high = 90, when = { rotation = true } }
dense = { low = 0, high = 64, step = 32 }
"""


@pytest.fixture
def hunt(tmp_path: Path) -> Path:
    """A search of six trials."""
    file = tmp_path / "hunt.toml"
    file.write_text(HEAD + SEARCH)
    return file


def quick_trial(config: TrialConfig, packed: Pack, store: Store, **more: Any) -> dict[str, Any]:
    """Write the row of a trial whose escape rate is known: its learning rate over 1e-2."""
    cell = cell_id(config, packed.dataset_id)
    status = "diverged" if config.dense == 64 else "completed"
    row: dict[str, Any] = {
        "cell_id": cell,
        "attempt": next_attempt(store, cell),
        "sweep": more["context"].sweep,
    }
    row |= {
        "label": more["context"].label,
        "status": status,
        "base_lr": config.base_lr,
        "dense": config.dense,
    }
    if status == "completed":
        row |= {
            "validation_escape_rate": config.base_lr / 1e-2,
            "latency_one_s": 1e-3 * (1 + config.dense),
        }
    store.write("trials", more["context"].sweep, f"{cell}-{row['attempt']}", [row])
    return row


def go(
    hunt: Path,
    drawn: Path,
    monkeypatch: pytest.MonkeyPatch,
    trial: Callable[..., dict[str, Any]] = quick_trial,
    **more: Any,
) -> tuple[runner.Prepared, list[Event]]:
    monkeypatch.setattr(runner, "Work", lambda **given: tasks.Work(**given, trial=trial))
    events: list[Event] = []
    options = Options(
        sweep=str(hunt),
        data=drawn,
        results=hunt.parent / "results",
        baselines=False,
        **{"inline": True, **more},
    )
    prepared = runner.prepare(options, say=lambda _: None)
    runner.execute(prepared, on_event=events.append)
    return prepared, events


def chosen(store: Store) -> list[dict[str, Any]]:
    return [json.loads(row["chosen"]) for row in store.read("cells").to_pylist()]


def ended(events: list[Event]) -> int:
    return sum(event.kind == "ended" for event in events)


def test_a_search_trains_as_many_cells_as_it_says_within_its_space(
    hunt: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, events = go(hunt, drawn, monkeypatch)
    assert ended(events) == 6
    cells = prepared.store.read("cells").to_pandas()
    assert cells["cell_id"].nunique() == len(cells) == 6
    assert set(cells["cell_id"]) == set(prepared.store.read("trials")["cell_id"].to_pylist())
    for settings in chosen(prepared.store):
        assert 1e-4 <= settings["base_lr"] <= 1e-2
        assert settings["dense"] in (0, 32, 64)
        assert ("rotation_deg" in settings) == settings["rotation"]
        assert 5 <= settings.get("rotation_deg", 5) <= 90


def test_the_same_command_again_trains_nothing_and_its_run_names_all_cells(
    hunt: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MOST_REPEATS", 3)
    hunt.write_text(
        hunt.read_text().replace("step = 32", "step = 16")
    )  # 64 diverges, and is tried again
    hunt.write_text(hunt.read_text().replace("high = 64, step = 16", "high = 32, step = 16"))
    go(hunt, drawn, monkeypatch)
    prepared, events = go(hunt, drawn, monkeypatch)
    assert events == []
    cells = prepared.store.read("cells").to_pandas()
    assert list(cells.groupby("run_id")["cell_id"].nunique()) == [6, 6]


def test_a_search_that_was_cut_off_goes_on_and_ends_with_all_its_trials(
    hunt: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def dies_at_the_fourth(
        config: TrialConfig, packed: Pack, store: Store, **more: Any
    ) -> dict[str, Any]:
        begun.append(cell_id(config, packed.dataset_id))
        if len(begun) == 4:
            raise KeyboardInterrupt
        return quick_trial(config, packed, store, **more)

    with pytest.raises(KeyboardInterrupt):
        go(hunt, drawn, monkeypatch, trial=dies_at_the_fourth)
    prepared, _ = go(hunt, drawn, monkeypatch, trial=dies_at_the_fourth)
    assert begun[3] in begun[4:]  # the one that was cut off runs again
    assert len(set(begun)) == 6
    assert (
        prepared.store.read("trials")
        .to_pandas()
        .query("status == 'completed'")["cell_id"]
        .is_unique
    )
    cells = prepared.store.read("cells").to_pandas()
    assert cells[cells["run_id"] == prepared.run_id]["cell_id"].nunique() == 6


def test_ray_starts_ahead_for_a_search_that_has_cells_to_choose_and_for_no_other(
    hunt: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(
        sweep=str(hunt),
        data=drawn,
        results=hunt.parent / "results",
        baselines=False,
        trials_at_once=2,
    )
    for n_slots in (2, None):
        ahead = Noted()
        runner.prepare(options, say=lambda _: None, ahead=ahead)
        assert getattr(ahead, "n_slots", None) == n_slots
        go(hunt, drawn, monkeypatch)


def test_a_size_that_no_cell_of_a_search_could_train_is_refused_in_its_plan_too(
    hunt: Path, drawn: Path
) -> None:
    small = {"backbone=timm:vit_tiny_patch16_224", "image_px=32"}
    for plan in (True, False):
        options = Options(
            sweep=str(hunt),
            data=drawn,
            results=hunt.parent / "results",
            plan=plan,
            overrides=tuple(sorted(small)),
        )
        with pytest.raises(
            UsageError, match="image_px must be at least 224 for 'timm:vit_tiny_patch16_224'"
        ):
            runner.prepare(options, say=lambda _: None)
    assert not (hunt.parent / "results" / "packs").exists()  # and before images are packed


def test_of_a_wide_space_all_sizes_of_batches_are_checked_together(
    hunt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_space, "MOST_CORNERS", 1)
    sizes = 'backbone = { choices = ["vgg16", "resnet50"] }\nimage_px = { choices = [64, 32] }\n'
    hunt.write_text(
        (HEAD + SEARCH)
        .replace('backbone = "timm:test_resnet.r160_in1k"\n', "")
        .replace("image_px = 32\n", "")
        + sizes
        + "batch_size = { low = 1, high = 8 }\n"
    )
    read = expand.read(str(hunt)).search
    assert read is not None
    found = {
        (config.backbone, config.image_px, config.batch_size)
        for config in search_space.corners(read)
    }
    assert found == {
        (name, px, n) for name in ("vgg16", "resnet50") for px in (32, 64) for n in (1, 8)
    }


def test_more_trials_in_the_file_are_more_trials_and_the_old_ones_stay(
    hunt: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hunt.write_text(hunt.read_text().replace("high = 64, step = 32", "high = 32, step = 32"))
    first, _ = go(hunt, drawn, monkeypatch)
    before = set(first.store.read("trials")["cell_id"].to_pylist())
    hunt.write_text(hunt.read_text().replace("n_trials = 6", "n_trials = 9"))
    second, events = go(hunt, drawn, monkeypatch)
    assert ended(events) == 3
    assert before < set(second.store.read("trials")["cell_id"].to_pylist())


def lines_of(hunt: Path, drawn: Path) -> list[str]:
    """What a plan of a search says."""
    lines: list[str] = []
    options = Options(
        sweep=str(hunt), data=drawn, results=hunt.parent / "results", baselines=False, plan=True
    )
    runner.prepare(options, say=lines.append)
    return lines


def test_a_space_that_changed_leaves_out_trials_by_count_and_reason_and_new_rows_have_new_numbers(
    hunt: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = (
        HEAD
        + "[search]\nn_trials = 4\nobjective = { validation_escape_rate = 'min' }\n[search.space]\n"
    )
    hunt.write_text(small + "base_lr = { choices = [1e-3, 2e-3, 3e-3, 4e-3] }\n")
    go(hunt, drawn, monkeypatch)
    assert not [line for line in lines_of(hunt, drawn) if "earlier trial" in line]
    hunt.write_text(small + "base_lr = { choices = [1e-3, 2e-3, 3e-3, 7e-3, 8e-3] }\n")
    (line,) = [line for line in lines_of(hunt, drawn) if "earlier trial" in line]
    assert line == (
        "1 earlier trial of this search is outside the current search space and not used: "
        "1 with base_lr 0.004 (now 0.001 or 0.002 or 0.003 or 0.007 or 0.008)."
    )
    prepared, events = go(hunt, drawn, monkeypatch)
    assert ended(events) == 1
    rows = [
        row for row in prepared.store.read("cells").to_pylist() if row["run_id"] == prepared.run_id
    ]
    assert len({row["row"].split(":")[0] for row in rows}) == 4
    (new,) = [row for row in rows if json.loads(row["chosen"])["base_lr"] > 4e-3]
    assert new["row"].startswith("5: base_lr ")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("base_lr = { low = 5e-3, high = 1e-2 }", "4 with base_lr outside 0.005 to 0.01."),
        (
            "base_lr = { low = 1e-3, high = 1e-2 }\ndropout = { low = 0.0, high = 0.5 }",
            "4 with no dropout.",
        ),
        ("dropout = { low = 0.0, high = 0.5 }", "4 with no dropout."),
        (
            "base_lr = { low = 1.5e-3, high = 3.5e-3, step = 1e-3 }",
            "4 with base_lr outside 0.0015 to 0.0035, step 0.001.",
        ),
    ],
)
def test_each_way_out_of_a_space_is_named(
    space: str, message: str, hunt: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = (
        HEAD
        + "[search]\nn_trials = 4\nobjective = { validation_escape_rate = 'min' }\n[search.space]\n"
    )
    hunt.write_text(small + "base_lr = { choices = [1e-3, 2e-3, 3e-3, 4e-3] }\n")
    go(hunt, drawn, monkeypatch)
    hunt.write_text(small + space + "\n")
    (line,) = [line for line in lines_of(hunt, drawn) if "earlier trial" in line]
    assert line.endswith(f"not used: {message}")


def test_earlier_trials_of_other_fixed_settings_are_counted(
    hunt: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hunt.write_text(hunt.read_text().replace("high = 64, step = 32", "high = 32, step = 32"))
    go(hunt, drawn, monkeypatch)
    hunt.write_text(hunt.read_text().replace("epochs = 1", "epochs = 2"))
    assert (
        "6 earlier trials of this search are of other fixed settings or other images and not used."
        in lines_of(hunt, drawn)
    )


def test_a_search_finds_the_better_half_of_its_range(
    hunt: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = HEAD + SEARCH.replace("n_trials = 6", "n_trials = 40").split("rotation =")[0]
    hunt.write_text(text)
    prepared, _ = go(hunt, drawn, monkeypatch)
    rates = [settings["base_lr"] for settings in chosen(prepared.store)]
    # by chance half of the log range lies below 1e-3; the escape rate falls with the learning rate
    assert sum(rate < 1e-3 for rate in rates[10:]) > 20


def test_two_objectives_and_failed_trials_are_reported_to_optuna(
    hunt: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goal = '{ validation_escape_rate = "min", latency_one_s = "min" }'
    hunt.write_text(
        hunt.read_text()
        .replace('{ validation_escape_rate = "min" }', goal)
        .replace("n_trials = 6", "n_trials = 15")
    )
    # as on a busy machine, where every choice takes longer than Ray expects
    monkeypatch.setattr(optuna_search, "DEFINE_BY_RUN_WARN_THRESHOLD_S", -1)
    studies: list[search.Study] = []
    real = search.Study.__init__

    def kept(self: search.Study, *args: Any, **more: Any) -> None:
        real(self, *args, **more)
        studies.append(self)

    monkeypatch.setattr(search.Study, "__init__", kept)
    prepared, _ = go(hunt, drawn, monkeypatch)
    result = studies[0].optuna.searcher._ot_study.trials
    assert len(result) == 15
    for trial in result:
        if trial.params["dense"] == 64:
            assert trial.state.name == "FAIL"
        else:
            assert trial.values == [
                trial.params["base_lr"] / 1e-2,
                1e-3 * (1 + trial.params["dense"]),
            ]
    assert {trial.state.name for trial in result} == {"FAIL", "COMPLETE"}
    assert prepared.sweep.n_cells == 15


def test_a_cell_that_another_sweep_trained_is_answered_from_the_store(
    hunt: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = (
        HEAD
        + "[search]\nn_trials = 4\nobjective = { validation_escape_rate = 'min' }\n[search.space]\n"
    )
    hunt.write_text(small + "base_lr = { choices = [1e-3, 2e-3, 3e-3, 4e-3] }\n")
    grid = hunt.with_name("grid.toml")
    grid.write_text(HEAD + "[axes]\nbase_lr = [1e-3, 2e-3, 3e-3]\n")
    go(grid, drawn, monkeypatch)
    prepared, events = go(hunt, drawn, monkeypatch)
    assert ended(events) == 1
    assert len([row for row in prepared.store.read("cells").to_pylist() if row["chosen"]]) == 4


def test_a_space_that_is_used_up_ends_the_search(
    hunt: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = (
        HEAD
        + "[search]\nn_trials = 10\nobjective = { validation_escape_rate = 'min' }\n"
        + "[search.space]\n"
    )
    hunt.write_text(small + "base_lr = { choices = [1e-3, 2e-3] }\n")
    _, events = go(hunt, drawn, monkeypatch)
    assert ended(events) == 2


@pytest.mark.slow
def test_under_ray_a_search_ends_with_all_its_trials(
    hunt: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, events = go(hunt, drawn, monkeypatch, inline=False, trials_at_once=2, retries=0)
    assert ended(events) == 6
    assert prepared.store.read("cells").to_pandas()["cell_id"].nunique() == 6


BAD = [
    ('objective = { test_accuracy = "max" }', "uses the test images"),
    ('objective = { validation_acuracy = "max" }', "Did you mean 'validation_accuracy'"),
    ('objective = { validation_f1 = "up" }', "Input should be 'min' or 'max'"),
    ('objective = {}', "one or two columns"),
]  # fmt: skip
RANGES = [
    ("base_lr = { low = 1.0 }", "either `choices`, or both"),
    ("base_lr = { low = 1.0, high = 0.5 }", "`low` must be less than `high`"),
    ("base_lr = { low = 0.0, high = 0.5, log = true }", "`log` requires `low` above 0"),
    ("base_lr = { low = 0.1, high = 0.5, choices = [1.0] }", "either `choices`, or both"),
    ("base_lr = { low = 0.1, high = 0.5, step = 2.0 }", "must be a multiple of `step`"),
    ("base_lr = { low = -0.1, high = 0.5 }", "greater than 0"),
    ("dense = { low = 0.5, high = 8 }", "must be integers"),
    ("rotation = { low = 0, high = 1 }", "is not a number"),
    ("rotation = { choices = [true, true] }", "different values"),
    ("epochs = { low = 1, high = 2 }", "is also in [fixed]"),
    ("base_rl = { low = 0.1, high = 0.5 }", "Did you mean 'base_lr'"),
    ("base_lr = { low = 0.1, high = 0.5, lgo = true }", "Unknown key 'lgo'"),
    (
        "rotation_deg = { low = 1, high = 2, when = { rotation = true } }",
        "neither in [fixed] nor searched",
    ),
    ("", "[search.space] is empty"),
]


@pytest.mark.parametrize(("objective", "message"), BAD)
def test_an_objective_that_is_invalid_is_refused(
    tmp_path: Path, objective: str, message: str
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(
        HEAD + SEARCH.replace('objective = { validation_escape_rate = "min" }', objective)
    )
    with pytest.raises(UsageError) as caught:
        expand.read(str(file))
    assert message in str(caught.value)


@pytest.mark.parametrize(("line", "message"), RANGES)
def test_a_range_that_is_invalid_is_refused(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(HEAD + SEARCH.split("base_lr", maxsplit=1)[0] + line)
    with pytest.raises(UsageError) as caught:
        search_space.corners(expand.read(str(file)).search)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_search_takes_no_axes_no_only_and_no_set_of_what_it_varies(hunt: Path) -> None:
    with pytest.raises(UsageError, match="a search has no axes"):
        expand.read(str(hunt), only=["dense=0"])
    with pytest.raises(UsageError, match="'dense' is searched"):
        expand.read(str(hunt), overrides=["dense=0"])
    hunt.write_text(hunt.read_text() + "[axes]\nseed = [0, 1]\n")
    with pytest.raises(UsageError, match="cannot be combined with"):
        expand.read(str(hunt))


def test_asha_is_refused_in_a_plain_loop(tiny: Path, drawn: Path) -> None:
    tiny.write_text(tiny.read_text() + '[schedule]\nscheduler = "asha"\n')
    options = Options(sweep=str(tiny), data=drawn, results=tiny.parent / "results", inline=True)
    with pytest.raises(UsageError, match="requires Ray Tune"):
        runner.prepare(options, say=lambda _: None)


def test_a_stopped_cell_is_settled_under_asha_and_goes_on_without_it(
    tiny: Path, drawn: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(config: TrialConfig, packed: Pack, store: Store, **more: Any) -> dict[str, Any]:
        cell = cell_id(config, packed.dataset_id)
        row = {
            "cell_id": cell,
            "attempt": next_attempt(store, cell),
            "sweep": more["context"].sweep,
            "status": "stopped",
        }
        store.write("trials", more["context"].sweep, f"{cell}-{row['attempt']}", [row])
        return row

    asha = tiny.with_name("asha.toml")
    asha.write_text(tiny.read_text() + '[schedule]\nscheduler = "asha"\ngrace_epochs = 1\n')
    go(tiny, drawn, monkeypatch, trial=stops)
    options = Options(sweep=str(asha), data=drawn, results=tiny.parent / "results", baselines=False)
    under_asha = runner.prepare(options, say=lambda _: None)
    assert {p.state for p in under_asha.plan.planned} == {"stopped"}
    assert runner.execute(under_asha, on_event=lambda _: None) == 0
    without = runner.prepare(replace(options, sweep=str(tiny), inline=True), say=lambda _: None)
    assert {(p.state, p.status) for p in without.plan.planned} == {("to do", "stopped")}


def test_a_schedule_that_can_stop_nothing_is_reported(tiny: Path, drawn: Path) -> None:
    tiny.write_text(tiny.read_text() + '[schedule]\nscheduler = "asha"\n')
    options = Options(sweep=str(tiny), data=drawn, results=tiny.parent / "results")
    assert (
        "grace_epochs = 3 of 2 epochs: no trial will be stopped."
        in runner.prepare(options, say=lambda _: None).notes
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('scheduler = "ahsa"', "schedule.scheduler"),
        ("grace_epochs = 0", "schedule.grace_epochs"),
        ("reduction_factor = 1", "schedule.reduction_factor"),
        ("objective = 'test_accuracy'", "schedule.objective"),
        ("graceepochs = 1", "Did you mean 'grace_epochs'"),
    ],
)
def test_a_schedule_that_is_invalid_is_refused(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(HEAD + f"[schedule]\n{line}\n")
    with pytest.raises(UsageError, match=message):
        sweep_file.read(file)
