from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from casting_tune.analysis import run_results, tables
from casting_tune.data import synthetic
from casting_tune.data.image_folder import Reading
from casting_tune.errors import (
    CastingTuneError,
    ImagesError,
    ResourcesError,
    StoreError,
    UsageError,
    WeightsError,
)
from casting_tune.execution import nodes, ray_cluster, runner
from casting_tune.execution.tasks import Event
from casting_tune.planning import plan
from casting_tune.planning.options import Options
from casting_tune.store import artifacts, verify
from casting_tune.store.locks import sweep_lock
from casting_tune.store.store import Store
from casting_tune.training import trial


def options(tiny: Path, drawn: Path, **more: object) -> Options:
    return Options(
        sweep=str(tiny),
        data=drawn,
        results=tiny.parent / "results",
        inline=True,
        baselines=False,
        **more,
    )  # type: ignore[arg-type]


def go(options: Options) -> tuple[runner.Prepared, int, list[Event], list[str]]:
    events: list[Event] = []
    lines: list[str] = []
    prepared = runner.prepare(options, say=lines.append)
    return prepared, runner.execute(prepared, on_event=events.append), events, lines


def digest(folder: Path) -> dict[str, str]:
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*.parquet")
    }


class Noted(ray_cluster.Ahead):
    """Notes how many workers Ray would start with, and starts none."""

    def start(self, n_slots: int) -> None:
        self.n_slots = n_slots


@pytest.mark.parametrize(
    ("change", "n_slots"),
    [
        ({"trials_at_once": 2}, 2),
        ({"trials_at_once": 2, "plan": True}, None),
        ({"trials_at_once": 1, "inline": True}, None),
        ({"trials_at_once": 2, "address": "auto"}, None),
    ],
)
def test_ray_starts_ahead_with_a_worker_a_trial_at_once_where_trials_go_to_it(
    tiny: Path,
    drawn: Path,
    change: dict[str, Any],
    n_slots: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nodes, "capacity", lambda address, inline: (2, 0))
    chosen_options = replace(options(tiny, drawn), **({"inline": False} | change))
    ahead = Noted()
    runner.prepare(chosen_options, say=lambda _: None, ahead=ahead)
    assert getattr(ahead, "n_slots", None) == n_slots


def test_no_ray_starts_ahead_where_nothing_is_left_to_train(tiny: Path, drawn: Path) -> None:
    go(options(tiny, drawn))
    ahead = Noted()
    runner.prepare(replace(options(tiny, drawn), inline=False), say=lambda _: None, ahead=ahead)
    assert not hasattr(ahead, "n_slots")


def test_a_size_that_a_network_of_timm_does_not_take_is_refused_and_a_plan_lists_it(
    tiny: Path, drawn: Path
) -> None:
    text = (
        tiny.read_text()
        .replace("image_px = 32\n", "")
        .replace("[axes]", "[axes]\nimage_px = [32, 224]")
    )
    tiny.write_text(text.replace("timm:test_resnet.r160_in1k", "timm:vit_tiny_patch16_224"))
    caption = "image_px must be at least 224 for 'timm:vit_tiny_patch16_224'; got 32.*"
    caption += " 4 cells are invalid in total"
    with pytest.raises(UsageError, match=caption):
        runner.prepare(options(tiny, drawn), say=lambda _: None)
    planned = runner.prepare(options(tiny, drawn, plan=True), say=lambda _: None)
    assert [cell.config.image_px for cell in planned.sweep.cells] == [224] * 4
    assert len(planned.sweep.invalid) == 4


def test_a_sweep_trains_every_cell_and_its_table_has_every_row(tiny: Path, drawn: Path) -> None:
    prepared, n_missing, events, _ = go(options(tiny, drawn))
    assert n_missing == 0
    assert sum(event.kind == "ended" for event in events) == 4
    frame = tables.comparison(prepared.store, "tiny").frame
    assert list(zip(frame["row"], frame["n"], strict=True)) == [("default", 2), ("only flip", 2)]


def test_two_sweeps_that_draw_the_castings_of_a_new_store_at_once_both_go_on(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, results = synthetic.draw, tiny.parent / "results"

    def meanwhile(folder: Path, **more: object) -> None:
        real(folder, n_images=40, size_px=32)
        real(results / "synthetic-400x300", n_images=40, size_px=32)

    monkeypatch.setattr(synthetic, "draw", meanwhile)
    prepared = runner.prepare(
        Options(sweep=str(tiny), results=results, inline=True), say=lambda _: None
    )
    assert len(prepared.pack.labels) == 40
    assert not list(results.glob(".drawing-*"))


def test_a_second_run_trains_nothing_and_changes_no_file(tiny: Path, drawn: Path) -> None:
    go(options(tiny, drawn))
    before = digest(tiny.parent / "results")
    _, n_missing, events, _ = go(options(tiny, drawn))
    assert (n_missing, events) == (0, [])
    assert before.items() <= digest(tiny.parent / "results").items()


def test_what_a_killed_process_left_beside_a_checkpoint_is_gone_when_the_sweep_has_completed(
    tiny: Path, drawn: Path
) -> None:
    prepared = runner.prepare(options(tiny, drawn), say=[].append)
    place = artifacts.checkpoint(prepared.store, prepared.plan.planned[0].cell_id)
    place.parent.mkdir(parents=True)
    place.with_name(f".{place.name}.26982").touch()
    assert runner.execute(prepared) == 0
    assert not list(place.parent.iterdir())


def test_a_value_added_to_the_file_trains_the_new_cells_only(tiny: Path, drawn: Path) -> None:
    go(options(tiny, drawn))
    tiny.write_text(tiny.read_text().replace("seed = [0, 1]", "seed = [0, 1, 2]"))
    prepared, _, events, _ = go(options(tiny, drawn))
    assert sum(event.kind == "ended" for event in events) == 2
    assert list(tables.comparison(prepared.store, "tiny").frame["n"]) == [3, 3]


def test_a_cell_that_two_sweeps_share_is_trained_once(tiny: Path, drawn: Path) -> None:
    go(options(tiny, drawn))
    other = tiny.with_name("other.toml")
    other.write_text(tiny.read_text().replace('["default", "only flip"]', '["default"]'))
    prepared, n_missing, events, _ = go(replace(options(tiny, drawn), sweep=str(other)))
    assert (n_missing, events) == (0, [])
    assert list(tables.comparison(prepared.store, "other").frame["n"]) == [2]


def test_quick_rows_are_other_cells_and_stand_in_a_table_of_their_own(
    tiny: Path, drawn: Path
) -> None:
    full, *_ = go(options(tiny, drawn))
    quick, _, events, _ = go(options(tiny, drawn, quick=True))
    assert sum(event.kind == "ended" for event in events) == 2
    assert not {p.cell_id for p in quick.plan.planned} & {p.cell_id for p in full.plan.planned}
    assert list(tables.comparison(full.store, "tiny").frame["row"]) == ["default"]
    assert len(tables.comparison(full.store, "tiny", run_id=full.run_id).frame) == 2


def test_a_failed_trial_ends_nothing_and_is_tried_again_on_request(
    tiny: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trial.fit_network

    def broken(config, pack, context, **more):  # type: ignore[no-untyped-def]
        if config.seed == 1:
            raise RuntimeError("broken kernel")
        return real(config, pack, context, **more)

    monkeypatch.setattr(trial, "fit_network", broken)
    _, n_missing, _, _ = go(options(tiny, drawn, retries=0))
    assert n_missing == 2
    monkeypatch.setattr(trial, "fit_network", real)
    prepared, n_missing, events, _ = go(options(tiny, drawn))
    assert (n_missing, events) == (2, [])
    assert {p.state for p in prepared.plan.planned} == {"done", "failed"}
    _, n_missing, events, _ = go(options(tiny, drawn, retry_failed=True))
    assert n_missing == 0
    assert sum(event.kind == "ended" for event in events) == 2


def test_fresh_trains_every_cell_again_and_the_newest_result_stands_in_the_table(
    tiny: Path, drawn: Path
) -> None:
    prepared, *_ = go(options(tiny, drawn))
    _, n_missing, events, _ = go(options(tiny, drawn, fresh=True))
    assert n_missing == 0
    assert sum(event.kind == "ended" for event in events) == 4
    assert sorted(prepared.store.read("trials")["attempt"].to_pylist()) == [1] * 4 + [2] * 4
    assert set(run_results.load(prepared.store, "tiny").trials["attempt"]) == {2}
    epochs = prepared.store.read("epochs").to_pandas()
    assert not epochs.duplicated(["cell_id", "epoch"]).any()


def test_the_plan_of_a_sweep_that_has_been_says_what_more_of_it_costs(
    tiny: Path, drawn: Path
) -> None:
    go(options(tiny, drawn))
    tiny.write_text(tiny.read_text().replace("seed = [0, 1]", "seed = [0, 1, 2, 3]"))
    prepared = runner.prepare(options(tiny, drawn, plan=True), say=lambda _: None)
    assert prepared.costs.sources == {"rows": 4}
    took = prepared.store.read("trials")["duration_s"].to_pylist()
    assert min(took) <= prepared.costs.trial_s / 4 <= max(took)


def test_a_probe_tells_the_cost_of_networks_that_the_store_does_not_know_and_is_kept(
    tiny: Path, drawn: Path
) -> None:
    before = runner.prepare(options(tiny, drawn, plan=True), say=lambda _: None)
    assert before.costs.sources == {"unknown": 4}
    probed = runner.prepare(options(tiny, drawn, plan=True, probe=True), say=lambda _: None)
    assert probed.costs.sources == {"probe": 4}
    assert probed.costs.trial_s > 0
    assert probed.store.read("probes").num_rows == 1
    assert runner.prepare(options(tiny, drawn, plan=True), say=lambda _: None).costs == probed.costs
    assert not (probed.store.root / "trials").exists()


def test_known_long_cells_start_first(tiny: Path, drawn: Path) -> None:
    go(options(tiny, drawn))
    tiny.write_text(
        tiny.read_text().replace("epochs = 2\n", "").replace("[axes]", "[axes]\nepochs = [4, 6, 3]")
    )
    prepared = runner.prepare(options(tiny, drawn), say=lambda _: None)
    configs = [planned.cell.config for planned in prepared.to_do]
    for toggles in {
        config.toggles for config in configs
    }:  # which of two augmentations is slower is chance
        assert [config.epochs for config in configs if config.toggles == toggles] == [
            6,
            6,
            4,
            4,
            3,
            3,
        ]


def test_a_run_of_more_cells_than_the_limit_asks_for_a_yes(
    tiny: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan.MANY == 10_000
    monkeypatch.setattr(plan, "MANY", 3)
    with pytest.raises(UsageError, match=r"4 cells to train. Add --yes to train so many."):
        runner.prepare(options(tiny, drawn), say=lambda _: None)
    assert len(runner.prepare(options(tiny, drawn, yes=True), say=lambda _: None).to_do) == 4


def test_the_limits_of_a_sweep_file_hold_unless_the_command_line_says_otherwise(
    tiny: Path, drawn: Path
) -> None:
    tiny.write_text(tiny.read_text() + "\n[limits]\nmax_seconds = 60\nmemory_gib = 2\n")
    result = runner.prepare(options(tiny, drawn), say=lambda _: None).allowance
    assert (result.max_seconds, result.memory_bytes) == (60, 2 * 2**30)
    result = runner.prepare(
        options(tiny, drawn, max_seconds=5.0, memory_gib=1.0), say=lambda _: None
    ).allowance
    assert (result.max_seconds, result.memory_bytes) == (5, 2**30)


def test_without_data_castings_are_drawn_once_and_that_is_reported(tiny: Path) -> None:
    options = Options(
        sweep=str(tiny), results=tiny.parent / "results", inline=True, baselines=False
    )
    lines: list[str] = []
    first = runner.prepare(options, say=lines.append)
    assert lines[0] == "No dataset given (--data DIR): training on 400 synthetic castings."
    assert len(first.pack.labels) == 400
    assert runner.prepare(options, say=lines.append).pack.dataset_id == first.pack.dataset_id


def test_that_hue_changes_nothing_on_gray_is_reported_once_before_training(
    tiny: Path, drawn: Path
) -> None:
    tiny.write_text(tiny.read_text().replace("only flip", "additional"))
    lines: list[str] = []
    runner.prepare(options(tiny, drawn), say=lines.append)
    assert sum("the toggle hue has no effect" in line for line in lines) == 1


def test_test_images_that_are_also_in_train_are_reported_before_training(
    tiny: Path, drawn: Path, tmp_path: Path
) -> None:
    import shutil

    leaky = tmp_path / "leaky"
    shutil.copytree(drawn, leaky)
    source = next((leaky / "train" / "ok_front").iterdir())
    shutil.copy(source, leaky / "test" / "ok_front" / f"copy{source.suffix}")
    lines: list[str] = []
    runner.prepare(options(tiny, leaky), say=lines.append)
    assert any(
        "1 of 17 test images are byte-for-byte copies of training images" in line for line in lines
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sweep": "backbone_gird"}, UsageError, "backbone_grid"),
        ({"data": Path("/nowhere")}, ImagesError, "Image folder not found"),
        ({"reading": Reading(positive="def_frnt")}, ImagesError, "def_front"),
        (
            {"trials_at_once": 0, "inline": False},
            UsageError,
            "--trials-at-once must be at least 1; got 0",
        ),
        ({"gpus_per_trial": -1.0}, UsageError, "--gpus-per-trial must be at least 0"),
        ({"retries": -1}, UsageError, "--retries"),
        ({"pack_size": 4}, UsageError, "--pack-size"),
        ({"address": "auto"}, UsageError, "--inline"),
        (
            {"address": "auto", "inline": False, "timing": True},
            UsageError,
            "--timing measures this machine only",
        ),
        ({"results": Path("/proc/nowhere")}, StoreError, "--results"),
    ],
)
def test_what_cannot_run_is_refused_before_the_first_trial(
    tiny: Path, drawn: Path, change: dict[str, object], error: type[CastingTuneError], message: str
) -> None:
    with pytest.raises(error, match=message):
        runner.prepare(
            replace(options(tiny, drawn), **change),  # type: ignore[arg-type]
            say=lambda _: None,
        )
    assert not list((tiny.parent / "results").rglob("*.parquet"))


def test_a_gpu_that_is_not_there_is_refused(
    tiny: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ResourcesError, match="there is no GPU here"):
        runner.prepare(options(tiny, drawn, gpus_per_trial=0.5), say=lambda _: None)


def test_weights_that_are_not_to_be_had_are_refused_before_the_first_trial(
    tiny: Path, drawn: Path
) -> None:
    tiny.write_text(tiny.read_text().replace('"none"', '"local-dir:/nowhere"'))
    with pytest.raises(WeightsError, match="/nowhere"):
        runner.prepare(options(tiny, drawn), say=lambda _: None)


def test_a_plan_asks_nobody_for_weights_and_has_the_keys_of_the_run(
    tiny: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_text(tiny.read_text().replace('"none"', '"imagenet"'))
    requested: list[object] = []
    monkeypatch.setattr("casting_tune.models.pretrained.check_available", requested.append)
    monkeypatch.setattr("casting_tune.models.pretrained.find_cached", lambda source: None)
    plan = runner.prepare(options(tiny, drawn, plan=True), say=lambda _: None).plan
    assert requested == []
    run_plan = runner.prepare(options(tiny, drawn), say=lambda _: None).plan
    assert len(requested) == 1
    assert [p.cell_id for p in plan.planned] == [p.cell_id for p in run_plan.planned]


def test_nothing_of_this_machine_reaches_the_store(
    tiny: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import platform

    monkeypatch.setenv("CASTING_TUNE_CANARY", "canary-5d1f")
    go(options(tiny, drawn, quick=True))
    results = tiny.parent / "results"
    for table in ("cells", "epochs", "predictions", "trials"):
        from casting_tune.store.store import Store

        text = str(Store(results).read(table).to_pylist())
        assert text != "[]"
        for secret in ("canary-5d1f", str(Path.home()), platform.node(), str(drawn)):
            assert secret not in text


def test_baselines_stand_below_the_rows_and_are_scored_on_the_same_images(
    tiny: Path, drawn: Path
) -> None:
    prepared, n_missing, _, _ = go(replace(options(tiny, drawn, quick=True), baselines=True))
    assert n_missing == 0
    frame = tables.comparison(prepared.store, "tiny").frame
    assert list(frame["kind"]) == ["cell"] + ["baseline"] * 4
    majority = frame.set_index("row").loc["majority class"]
    assert majority["accuracy"] == max(
        prepared.pack.labels[prepared.pack.splits == "test"].mean(), 0.5
    )
    assert (majority["escape_rate"], majority["overkill_rate"]) == (0.0, 1.0)
    assert frame["letters"].str.len().gt(0).all()


def test_a_timing_pass_runs_alone_after_the_others_and_fills_the_timing_table(
    tiny: Path, drawn: Path
) -> None:
    prepared, _, events, _ = go(options(tiny, drawn, quick=True, timing=True))
    assert [event.task for event in events if event.kind == "ended"] == [0, 1, 2]
    frame = tables.TABLES["timing"](prepared.store, "tiny").frame
    assert list(frame["n"]) == [3]  # inline trials had their device alone too
    assert frame["n_images"].iloc[0] == int((prepared.pack.splits == "train").sum() * 0.8 + 0.5)
    assert frame["epoch_s"].iloc[0] == pytest.approx(
        frame["image_s"].iloc[0] * frame["n_images"].iloc[0]
    )


def test_folds_of_a_grouped_split_test_every_image_once_and_keep_copies_together(
    tiny: Path, drawn: Path
) -> None:
    tiny.write_text(
        tiny.read_text()
        .replace('augmentation = ["default", "only flip"]', "fold = [0, 1, 2]")
        .replace("seed = [0, 1]", "seed = [0]")
        .replace("epochs = 2", 'epochs = 1\nsplit = "grouped"\nn_folds = 3')
    )
    prepared, n_missing, _, _ = go(options(tiny, drawn))
    assert n_missing == 0
    predictions = prepared.store.read("predictions").to_pandas()
    tested = predictions.loc[predictions["split"] == "test", "image"]
    assert sorted(tested) == list(range(len(prepared.pack.labels)))
    assert not predictions["leaked"].any()
    frame = tables.comparison(prepared.store, "tiny").frame
    assert list(frame["n"]) == [3]
    assert prepared.groups is not None


def test_a_second_driver_of_the_same_sweep_is_refused_with_the_first_ones_number(
    tiny: Path, drawn: Path
) -> None:
    prepared = runner.prepare(options(tiny, drawn), say=lambda _: None)
    with (
        sweep_lock(prepared.store, "tiny"),
        pytest.raises(
            StoreError, match=f"is already running in this store: process {os.getpid()} on"
        ),
    ):
        runner.execute(prepared, on_event=lambda _: None)
    assert runner.execute(prepared, on_event=lambda _: None) == 0  # let go of, it runs
    assert not list(prepared.store.root.glob(".running*"))


def test_a_whole_sweep_lives_in_a_bucket_and_the_same_command_goes_on_there(
    tiny: Path, drawn: Path, bucket: str
) -> None:
    chosen_options = replace(options(tiny, drawn), results=f"{bucket}/results", keep=("last",))
    prepared, n_missing, events, _ = go(chosen_options)
    assert (n_missing, sum(event.kind == "ended" for event in events)) == (0, 4)
    assert go(chosen_options)[1:3] == (0, [])
    here = Store(chosen_options.results)
    assert here.read("predictions").num_rows > 0
    assert sorted(here.read("epochs")["epoch"].to_pylist()) == [1] * 4 + [2] * 4
    assert list(tables.comparison(here, "tiny").frame["n"]) == [2, 2]
    kept = [
        artifacts.fetch(here, artifacts.weights(here, planned.cell_id))
        for planned in prepared.plan.planned
    ]
    assert all(file.is_file() for file in kept)
    assert not verify.verify(here).faults
    assert not [name for name in here.names("") if name.startswith((".leases", "checkpoints"))]


@pytest.mark.slow
def test_ray_workers_write_to_a_bucket_too(tiny: Path, drawn: Path, bucket: str) -> None:
    chosen_options = replace(
        options(tiny, drawn), results=f"{bucket}/results", inline=False, trials_at_once=2
    )
    _, n_missing, events, _ = go(chosen_options)
    assert (n_missing, sum(event.kind == "ended" for event in events)) == (0, 4)
    assert go(chosen_options)[1:3] == (0, [])
