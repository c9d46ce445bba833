from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from casting_tune.config import Epoch, TrialConfig
from casting_tune.data.pack import Pack
from casting_tune.store.store import Store
from casting_tune.toggles import TOGGLES
from casting_tune.training import cuda_graph, loop
from casting_tune.training.loop import Feed, Recipe
from casting_tune.training.records import Place, TrialContext
from casting_tune.training.trial import run_trial

CONFIG = TrialConfig(
    backbone="timm:test_resnet.r160_in1k",
    image_px=32,
    batch_size=8,
    epochs=3,
    precision="fp32",
    dropout=0.3,
    dense=8,
    toggles=tuple(TOGGLES),
)
RECIPE = Recipe(
    base_lr=0.01,
    batch_size=8,
    weight_decay=0.01,
    warmup_share=0.25,
    lr_schedule="cosine",
    epochs=3,
    n_steps=6,
    precision="fp32",
)

CONTEXT = TrialContext(sweep="s", label="l", place=Place(device="cuda"))
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def network(device: str) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 1),
        nn.Flatten(0),
    )
    return made.to(device)


def batches(n: int, device: str, *, tail: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    stream = torch.Generator().manual_seed(1)
    sizes = [8] * (n - 1) + [tail]
    inputs = [torch.randn(size, 1, 8, 8, generator=stream) for size in sizes]
    return [(part.to(device), (part.mean((1, 2, 3)) > 0).float().to(device)) for part in inputs]


def losses(
    given: list[tuple[torch.Tensor, torch.Tensor]], **more: Any
) -> tuple[list[float], nn.Module]:
    device = given[0][0].device.type
    model = network(device)
    recipe = replace(RECIPE, n_steps=len(given))
    feed = Feed(batches=lambda _: given, validation=lambda: given, **more)
    epochs = loop.fit(model, loop.make_optimiser(model, recipe), recipe, feed)
    return [epoch.train_loss for epoch in epochs], model


def trial(config: TrialConfig, packed: Pack, store: Store, **more: Any) -> dict[str, Any]:
    return run_trial(config, packed, store, context=CONTEXT, **more)


def scores(store: Store) -> np.ndarray:
    return store.read("predictions")["score"].to_numpy()


def reads_of(n_steps: int) -> int:
    """Return how often a value was read on the host in three epochs of so many steps."""
    model, given, recipe = network("cpu"), batches(n_steps, "cpu"), replace(RECIPE, n_steps=n_steps)
    # AdamW's count of steps lies on the host for a CPU, and is read there; SGD has none
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        feed = Feed(batches=lambda _: given, validation=lambda: given)
        list(loop.fit(model, optimiser, recipe, feed))
    return sum(
        event.count for event in seen.key_averages() if event.key == "aten::_local_scalar_dense"
    )


def test_the_loop_reads_as_many_values_in_an_epoch_of_twelve_steps_as_in_one_of_four() -> None:
    assert (
        reads_of(4) == reads_of(12) == 3 * 3
    )  # the training's loss, validation's loss and accuracy


def test_the_given_launcher_runs_the_step_with_every_batch_as_tensors() -> None:
    shapes: list[torch.Size] = []

    def launch(step: loop.Step) -> loop.Step:
        def spy(*batch: torch.Tensor) -> torch.Tensor:
            shapes.append(batch[0].shape)
            return step(*batch)

        return spy

    message, _ = losses(batches(3, "cpu", tail=5), launch=launch)
    assert shapes == [(8, 1, 8, 8), (8, 1, 8, 8), (5, 1, 8, 8)] * 3
    assert message == losses(batches(3, "cpu", tail=5))[0]


@needs_cuda
def test_a_recorded_training_is_the_one_that_is_launched_kernel_by_kernel() -> None:
    given = batches(6, "cuda", tail=5)
    recorder = cuda_graph.Recorder()
    recorded, model = losses(given, launch=recorder)
    written, other = losses(given)
    assert recorder.records is True
    np.testing.assert_allclose(recorded, written, rtol=1e-5)
    for mine, theirs in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@needs_cuda
def test_a_step_that_waits_for_the_device_is_not_recorded_and_still_right() -> None:
    recorder = cuda_graph.Recorder()
    counted = torch.zeros((), device="cuda")

    def step(values: torch.Tensor) -> torch.Tensor:
        counted.add_(float(values.sum()))  # reads the sum on the host
        return counted.clone()

    waiting = recorder(step)
    result = [float(waiting(torch.full((2,), 1.0, device="cuda"))) for _ in range(6)]
    assert recorder.records is False
    assert result == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]


@needs_cuda
def test_a_recorded_step_takes_each_batch_and_what_is_filled_in_place() -> None:
    factor = torch.ones((), device="cuda")
    step = cuda_graph.Recorder()(lambda values: values.sum() * factor)
    messages = []
    for batch in range(8):
        factor.fill_(batch)
        messages.append(float(step(torch.full((3,), 2.0, device="cuda"))))
    assert messages == [6.0 * batch for batch in range(8)]


@needs_cuda
def test_no_step_of_a_trial_waits_for_the_device(
    packed: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def n_waits(train_images: int) -> int:
        config = replace(CONFIG, train_images=train_images, test_images=8)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                row = run_trial(
                    config,
                    packed,
                    Store(tmp_path / str(train_images)),
                    context=CONTEXT,
                )
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert (row["status"], row["cuda_graph"]) == ("completed", True), row["error"]
        return sum(cuda_graph.WAITS in str(warning.message) for warning in seen)

    # the validation images are as many: evaluation reads its scores once a part, latency once a
    # pass
    monkeypatch.setattr(loop, "latency", lambda *_, **__: 0.001)
    assert n_waits(24) == n_waits(48)


@needs_cuda
@pytest.mark.parametrize("toggles", [(), tuple(TOGGLES)])
def test_a_trial_on_a_gpu_is_the_same_recorded_or_not(
    packed: Pack, tmp_path: Path, toggles: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, toggles=toggles)
    recorded, written = Store(tmp_path / "recorded"), Store(tmp_path / "written")
    rows = [trial(config, packed, recorded)]
    monkeypatch.setattr(cuda_graph, "WARM_STEPS", 10**9)
    rows.append(trial(config, packed, written))
    assert [(row["status"], row["cuda_graph"]) for row in rows] == [
        ("completed", True),
        ("completed", None),
    ], rows
    np.testing.assert_allclose(scores(recorded), scores(written), atol=2e-3)


@needs_cuda
def test_a_trial_that_ended_on_a_gpu_goes_on_there_from_its_checkpoint(
    packed: Pack, tmp_path: Path
) -> None:
    class Gone(BaseException):
        pass

    def leave(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise Gone

    through, resumed = Store(tmp_path / "through"), Store(tmp_path / "resumed")
    rows = [trial(CONFIG, packed, through)]
    with pytest.raises(Gone):
        trial(CONFIG, packed, resumed, on_epoch=leave)
    rows.append(trial(CONFIG, packed, resumed))
    assert [(row["status"], row["resumed_from"]) for row in rows] == [
        ("completed", 0),
        ("completed", 2),
    ], rows
    np.testing.assert_allclose(scores(through), scores(resumed), atol=2e-3)
