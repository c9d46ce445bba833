"""One trial from images to rows: the only place where a TrialConfig is taken apart.

Comes in: a configuration, a pack, a store, and where it runs. Goes out: rows of epochs, then
predictions, then the one row in trials that commits them; and each Epoch to `on_epoch`, after its
row is safe. A trial that fails is a row too. Knows no sweep files and no Ray: whoever schedules
calls `run_trial` in a process of their choice.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, astuple, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from casting_tune import seeds
from casting_tune.config import (
    BASELINE,
    UNLIMITED,
    Allowance,
    Epoch,
    Predictions,
    Status,
    TrialConfig,
    cell_id,
)
from casting_tune.data import augmentation
from casting_tune.data import batches as loader
from casting_tune.data import splits as folds
from casting_tune.data.pack import Pack
from casting_tune.errors import Diverged, StoreError, TimeUp, UsageError
from casting_tune.failpoints import step
from casting_tune.models import build, input_size
from casting_tune.store.store import Store
from casting_tune.toggles import MAGNITUDES
from casting_tune.training import baselines, checkpoint, cuda_graph, loop, memory
from casting_tune.training import records as rows
from casting_tune.training.records import Place

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

EVALUATION_BATCH = 32
PROBED_STEPS = 3
PROBED_EPOCHS = {
    "cpu": 2,
    "cuda": 3,
}  # the last one is timed: on a GPU the first warms up, the second is recorded
PROBED, PROBED_PX = "timm:resnet10t", 96  # the frozen random network behind the linear probe

Precision = Literal["fp32", "bf16"]


def run_trial(
    config: TrialConfig,
    pack: Pack,
    store: Store,
    *,
    sweep: str,
    label: str,
    place: Place,
    groups: NDArray[np.int64] | None = None,
    allowance: Allowance = UNLIMITED,
    on_epoch: Callable[[Epoch], None] = lambda _epoch: None,
    after: int | None = None,
) -> dict[str, Any]:
    """Train one cell once, write its rows, and return its row of trials.

    `groups` [n] numbers the photographs of the pack's images; a grouped split needs it. `after` is
    the cell's last attempt before the sweep began, or 0; without it the whole store is listed for
    it.

    A loss that is not finite, memory or time that runs out, or any other error of the trial ends it
    with that status and its message in the row: one trial never ends a sweep. Errors of the store
    itself are raised.
    """
    step("trial begins")
    started_at, started = datetime.now(UTC), time.perf_counter()
    cell = cell_id(config, pack.dataset_id)
    attempt = _next_attempt(store, cell, config, after)
    name = f"{cell}-{attempt}"
    parts = _folds(config, pack, groups)
    row = rows.describe(config, pack, parts)
    row |= rows.begin(cell, attempt, sweep=sweep, label=label, place=place, started_at=started_at)
    row["micro_batch"] = allowance.micro_batch

    written = store.read_cell(
        "epochs", cell, range(1, attempt), epochs=config.epochs, columns=["epoch"]
    )
    known = set(written["epoch"].to_pylist())

    def keep(epoch: Epoch) -> None:
        if epoch.epoch not in known:  # else an earlier attempt wrote it before it died
            kept = asdict(epoch) | {
                "cell_id": cell,
                "attempt": attempt,
                "sweep": sweep,
                "ended_at": datetime.now(UTC),
            }
            store.write("epochs", sweep, f"{name}-{epoch.epoch}", [kept])
        on_epoch(epoch)

    status: Status = "completed"
    try:
        files = _files(store, cell, keep=allowance.keep)
        learn = _learn_nothing if config.backbone.startswith(BASELINE) else _train
        with _within(allowance, place):
            predictions, measured = learn(
                config, pack, place, parts=parts, allowance=allowance, on_epoch=keep, files=files
            )
    except StoreError:
        raise
    except (
        Exception
    ) as error:  # whatever a network, driver or kernel raises: the row keeps it, the sweep goes on
        status = _status(error)
        told = (
            _after_shortage(config, allowance.micro_batch or config.batch_size)
            if status == "oom"
            else ""
        )
        row |= rows.failure(
            f"{told}{type(error).__name__}: {error}", "".join(traceback.format_exception(error))
        )
    else:
        step("trial has predicted")
        row |= measured | rows.score(predictions)
        store.write(
            "predictions", sweep, name, rows.of_predictions(predictions, pack, cell, attempt)
        )
    row |= {"status": status, "duration_s": time.perf_counter() - started}
    store.write("trials", sweep, name, [row])
    if status in ("completed", "diverged"):
        step("trial is done")
        store.drop(store.checkpoint(cell))
    step("trial ends")
    return row


@contextlib.contextmanager
def _within(allowance: Allowance, place: Place) -> Iterator[None]:
    """Hold a trial to the memory that it is allowed."""
    import torch

    own = allowance.memory_bytes if place.device == "cpu" else None
    with memory.limited(own), memory.shared(torch.device(place.device), allowance.gpu_share):
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """Where a trial's files lie that are no tables: what it goes on from, and weights that are kept.

    `share` puts one of them where another machine could go on from it; `drop` takes one away here
    and there.
    """

    checkpoint: Path
    last: Path
    best: Path
    share: Callable[[Path], None]
    drop: Callable[[Path], None]


def _files(store: Store, cell: str, *, keep: Collection[str] = ()) -> _Files:
    best = store.weights(cell, best=True)
    return _Files(
        checkpoint=store.fetch(store.checkpoint(cell)),
        last=store.weights(cell),
        best=store.fetch(best)
        if "best" in keep
        else best,  # of the epochs that another machine trained
        share=store.share,
        drop=store.drop,
    )


def lost(
    config: TrialConfig,
    pack: Pack,
    store: Store,
    *,
    sweep: str,
    label: str,
    place: Place,
    groups: NDArray[np.int64] | None,
    error: str | None,
    detail: str = "",
    status: Status = "error",
    after: int | None = None,
) -> dict[str, Any]:
    """Write and return the row of a trial that could not write its own: its process is gone, or was told to stop.

    `detail` is the traceback, or what else is known of the failure.
    """
    cell = cell_id(config, pack.dataset_id)
    attempt, now = _next_attempt(store, cell, config, after), datetime.now(UTC)
    row = rows.describe(config, pack, _folds(config, pack, groups))
    row |= rows.begin(cell, attempt, sweep=sweep, label=label, place=place, started_at=now)
    row |= {"status": status, "host": None}  # it ran elsewhere
    if error is not None:
        row |= rows.failure(error, detail)
    if status == "stopped":
        row |= _until_stopped(store, cell, attempt, now, epochs=config.epochs)
    store.write("trials", sweep, f"{cell}-{row['attempt']}", [row])
    return row


def _next_attempt(store: Store, cell: str, config: TrialConfig, after: int | None) -> int:
    return (
        store.next_attempt(cell)
        if after is None
        else store.attempts_since(cell, after, epochs=config.epochs).stop
    )


def _until_stopped(
    store: Store, cell: str, next_attempt: int, now: datetime, *, epochs: int
) -> dict[str, Any]:
    """Return what the epochs tell of a stopped trial: the attempt that they are of, when it began, how long it took."""
    before = range(1, next_attempt)
    ended = set(
        store.read_cell("trials", cell, before, epochs=epochs, columns=["attempt"])[
            "attempt"
        ].to_pylist()
    )
    columns = ["epoch", "attempt", "train_s", "validation_s"]
    rows = store.read_cell("epochs", cell, before, epochs=epochs, columns=columns).to_pylist()
    own = [epoch for epoch in rows if epoch["attempt"] == next_attempt - 1]
    if (
        next_attempt - 1 in ended or not own
    ):  # it went on from a checkpoint and was stopped before an epoch of its own
        return {
            "resumed_from": max((epoch["epoch"] for epoch in rows), default=0),
            "duration_s": 0.0,
        }
    duration_s = sum(epoch["train_s"] + epoch["validation_s"] for epoch in own)
    return {
        "attempt": next_attempt - 1,
        "started_at": now - timedelta(seconds=duration_s),
        "duration_s": duration_s,
        "resumed_from": min(epoch["epoch"] for epoch in own) - 1,
    }


def halved(config: TrialConfig, n_images: int) -> int | None:
    """Return half as many images at a time; None: the network cannot train with so few."""
    half = n_images // 2
    few = half == 0 or (
        half == 1 and input_size.fewest_images(config.backbone, config.image_px) > 1
    )
    return None if few else half


def _after_shortage(config: TrialConfig, n_images: int) -> str:
    """Return what to change where memory ran out and the batch cannot go through the network in smaller parts."""
    if config.backbone.startswith(BASELINE) or halved(config, n_images) is not None:
        return ""
    return (
        f"Memory ran out with {n_images} image{'s' * (n_images > 1)} at a time, the fewest with which "
        f"'{config.backbone}' can be trained at image_px {config.image_px}: use a smaller image_px. "
    )


def check(
    config: TrialConfig, pack: Pack, groups: NDArray[np.int64] | None = None
) -> tuple[int, int, int]:
    """Return how many images a configuration trains, validates and tests; costs no training.

    Raises:
        UsageError: the configuration cannot run on these images.
    """
    if config.in_channels == 1 and pack.images.ndim == 4:
        raise UsageError(
            "in_channels = 1 takes gray images, and these have colour. Set in_channels = 3."
        )
    parts = _folds(config, pack, groups)
    return len(parts.train), len(parts.validation), len(parts.test)


def probe(
    config: TrialConfig, pack: Pack, place: Place, groups: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Train a few steps of a cell and return what they tell of its cost: a row of probes.

    Leaves nothing behind.

    The last of two or three short epochs is timed, when kernels and memory are warm; all else, from
    building the network to timing its latency, counts as fixed. The peak of memory is what the
    whole cell would hold: all its images lie on the device, and those that the probe leaves out are
    added.
    """
    import torch

    few = max(8, math.ceil(PROBED_STEPS * config.batch_size / (1 - config.validation_share)))
    n_epochs = PROBED_EPOCHS[place.device]
    small = replace(
        config, epochs=n_epochs, train_images=few, test_images=EVALUATION_BATCH, weights="none"
    )
    parts, epochs = _folds(small, pack, groups), list[Epoch]()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="casting-tune-") as scratch:
        files = _files(Store(Path(scratch)), "probe")
        _, measured = _train(
            small,
            pack,
            place,
            parts=parts,
            allowance=UNLIMITED,
            on_epoch=epochs.append,
            files=files,
        )
    took, last = time.perf_counter() - started, epochs[-1]
    n_all, n_probed = sum(check(config, pack, groups)), sum(map(len, astuple(parts)))
    left_out = (n_all - n_probed) * _image_bytes(config, pack)
    peak_bytes = measured["peak_memory_bytes"]
    score_s = last.validation_s / len(parts.validation)
    fixed_s = (
        took
        - n_epochs * (last.train_s + last.validation_s)
        - score_s * (n_probed - len(parts.train))
    )
    return {
        **{
            name: getattr(config, name)
            for name in ("backbone", "image_px", "batch_size", "dense", "in_channels")
        },
        "device": place.device,
        "precision": config.precision,
        "n_threads": place.n_threads,
        "step_s": last.train_s / last.n_images * config.batch_size,
        "score_s": score_s,
        "fixed_s": max(0.0, fixed_s),
        "peak_memory_bytes": None if peak_bytes is None else peak_bytes + left_out,
        "torch": importlib.metadata.version("torch"),
        "probed_at": datetime.now(UTC),
        "n_images": n_all,
        "device_memory_bytes": memory.total(torch.device(place.device)),
    }


def _folds(config: TrialConfig, pack: Pack, groups: NDArray[np.int64] | None) -> folds.Folds:
    splits, kept_together = pack.splits, cast("NDArray[Any]", pack.sha256)
    if config.split == "grouped":
        if groups is None:
            raise UsageError(
                'split = "grouped" needs the audit\'s groups of these images, and there are none.'
            )
        kept_together = groups
        splits = folds.grouped(
            pack.labels, groups, n_folds=config.n_folds, fold=config.fold, seed=config.split_seed
        )
    return folds.split(
        pack.labels,
        splits,
        kept_together,
        validation_share=config.validation_share,
        seed=config.split_seed,
        train_images=config.train_images,
        test_images=config.test_images,
    )


def _train(
    config: TrialConfig,
    pack: Pack,
    place: Place,
    *,
    parts: folds.Folds,
    allowance: Allowance,
    on_epoch: Callable[[Epoch], None],
    files: _Files,
) -> tuple[Predictions, dict[str, Any]]:
    """Train on the training images, predict validation and test; return predictions and what was measured."""
    import torch

    ends_at = time.perf_counter() + (allowance.max_seconds or math.inf)
    torch.set_num_threads(place.n_threads)
    device = torch.device(place.device)
    precision = cast(Precision, config.precision)
    memory.reset_peak(device)
    model = build.model(
        config.backbone,
        weights=config.weights,
        dense=config.dense,
        dropout=config.dropout,
        in_channels=config.in_channels,
        seed=config.seed,
    ).to(device, memory_format=_layout(config))  # type: ignore[call-overload]
    n_parameters, n_statistics = build.n_parameters(model)
    prepare = _preparation(config, device)
    images = {name: _put(pack, rows, config, device) for name, rows in asdict(parts).items()}
    training, make = _feed(config, *images["train"], prepare)

    def evaluation(part: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        pixels, y_true = images[part]
        for batch in loader.batches(
            len(y_true), min(EVALUATION_BATCH, allowance.micro_batch or EVALUATION_BATCH)
        ):
            yield prepare(augmentation.resize(pixels[batch], px=config.image_px)), y_true[batch]

    recipe = loop.Recipe(
        base_lr=config.base_lr,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        warmup_share=config.warmup_share,
        lr_schedule=config.lr_schedule,
        epochs=config.epochs,
        n_steps=len(loader.batches(len(parts.train), config.batch_size)),
        precision=precision,
    )
    optimiser = loop.make_optimiser(model, recipe)
    try:
        last = checkpoint.load(files.checkpoint, model, optimiser)
    except (
        Exception
    ) as error:  # damaged, however torch finds out: this attempt fails, the next one starts afresh
        if not memory.is_shortage(error):
            files.drop(files.checkpoint)
        raise
    if last is not None:
        on_epoch(
            last
        )  # its row may be missing, should the process have died between checkpoint and row
    n_done = 0 if last is None else last.epoch
    recorder = cuda_graph.Recorder()
    epochs = []
    for epoch in loop.fit(
        model,
        optimiser,
        recipe,
        batches=training,
        validation=lambda: evaluation("validation"),
        make=make,
        launch=recorder if device.type == "cuda" else loop.as_written,
        n_done=n_done,
        micro_batch=allowance.micro_batch,
        ends_at=ends_at,
    ):
        _save(
            files, model, optimiser, epoch, keep=allowance.keep, goes_on=epoch.epoch < recipe.epochs
        )
        on_epoch(epoch)
        epochs.append(epoch)
    scores = [
        loop.predict(model, evaluation(part), precision=precision)
        for part in ("validation", "test")
    ]
    predictions = rows.predictions(parts, pack, scores)
    if not np.isfinite(predictions.score).all():
        raise Diverged("The network scores some images as not a number. A smaller base_lr helps.")
    if "last" in allowance.keep:
        checkpoint.keep(files.last, model, epochs[-1])
        files.share(files.last)
    batch = next(evaluation("test"))[0]
    epoch_s = statistics.median(epoch.train_s for epoch in epochs)
    return predictions, {
        "epoch_s": epoch_s,
        "step_s": epoch_s / recipe.n_steps,
        "image_s": epoch_s / len(parts.train),
        "n_steps": recipe.n_steps,
        "cuda_graph": recorder.records,
        "latency_one_s": loop.latency(model, batch[:1], precision=precision),
        "latency_batch_s": loop.latency(model, batch, precision=precision),
        "latency_batch_images": len(batch),
        "peak_memory_bytes": memory.peak(device),
        "n_parameters": n_parameters,
        "n_statistics": n_statistics,
        "resumed_from": n_done,
    }


def _feed(
    config: TrialConfig,
    pixels: torch.Tensor,
    y_true: torch.Tensor,
    prepare: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[
    Callable[[int], Iterator[tuple[torch.Tensor]]],
    Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
]:
    """Return an epoch's batches, as positions in its order, and what makes one into augmented inputs and labels.

    Order and draws of an epoch lie in the same tensors as those of the one before: a recorded step
    goes on reading them.
    """
    import torch

    n, device = len(y_true), y_true.device
    magnitudes = {name: getattr(config, name) for name in MAGNITUDES}

    def drawn(epoch: int) -> augmentation.Draws:
        return augmentation.draw(
            config.toggles, n, seed=config.seed, epoch=epoch, device=device, magnitudes=magnitudes
        )

    positions, order, draws = (
        torch.arange(n, device=device),
        torch.arange(n, device=device),
        drawn(1),
    )

    def batches(epoch: int) -> Iterator[tuple[torch.Tensor]]:
        torch.manual_seed(seeds.dropout(config.seed, epoch))
        order.copy_(torch.from_numpy(loader.shuffle(n, seed=config.seed, epoch=epoch)))
        draws.copy_from(drawn(epoch))
        for batch in loader.batches(n, config.batch_size):
            yield (positions[batch],)

    def make(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = order[batch]
        return prepare(
            augmentation.apply(pixels[chosen], draws[batch], px=config.image_px)
        ), y_true[chosen]

    return batches, make


def _save(
    files: _Files,
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    epoch: Epoch,
    *,
    keep: Collection[str],
    goes_on: bool,
) -> None:
    """Save what a trial goes on from after an epoch, and the best weights where they are to be kept."""
    if "best" in keep:
        checkpoint.keep_best(files.best, model, epoch)
        files.share(files.best)
    if goes_on:
        checkpoint.save(files.checkpoint, model, optimiser, epoch)
        files.share(files.checkpoint)


def _learn_nothing(
    config: TrialConfig,
    pack: Pack,
    place: Place,
    *,
    parts: folds.Folds,
    allowance: Allowance,
    on_epoch: Callable[[Epoch], None],
    files: _Files,
) -> tuple[Predictions, dict[str, Any]]:
    """Score the test images by a baseline, which may look at all labels of train and validation."""
    import torch
    from threadpoolctl import threadpool_limits

    del allowance, on_epoch, files
    torch.set_num_threads(place.n_threads)
    known = np.sort(np.concatenate([parts.train, parts.validation]))
    name = config.backbone.removeprefix(BASELINE)
    with threadpool_limits(
        place.n_threads, user_api="blas"
    ):  # numpy's, which would take every core
        if name == "linear_probe":
            features = _random_features(pack, np.concatenate([known, parts.test]))
            found = baselines.linear_probe(
                features[: len(known)], pack.labels[known], features[len(known) :]
            )
        elif name == "majority":
            found = baselines.majority(pack.labels[known], len(parts.test))
        else:
            descriptor = cast(Literal["small", "polar"], name.removeprefix("nearest_"))
            found = baselines.nearest(
                pack.images, pack.labels, known, parts.test, descriptor=descriptor
            )
    return rows.predictions(
        replace(parts, train=known, validation=known[:0]), pack, [found.score[:0], found.score]
    ), {}


def _random_features(pack: Pack, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return what a network with random weights sees in some images: [n, d], the same for the same images."""
    import torch

    channels: Literal[1, 3] = 1 if pack.images.ndim == 3 else 3
    config = TrialConfig(backbone=PROBED, image_px=PROBED_PX, in_channels=channels)
    device = torch.device("cpu")
    model = build.model(
        PROBED, weights="none", dense=0, dropout=0, in_channels=channels, seed=0
    ).eval()
    prepare = _preparation(config, device)
    pixels = loader.put(pack.images, rows, px=PROBED_PX, device=device)
    with torch.inference_mode():
        seen = [
            cast("torch.nn.Module", model.backbone)(
                prepare(augmentation.resize(pixels[part], px=PROBED_PX))
            )
            for part in loader.batches(len(rows), EVALUATION_BATCH)
        ]
    return torch.cat(seen).numpy()


def _preparation(
    config: TrialConfig, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what turns augmented images [b, c, px, px] in 0..1 into inputs [b, in_channels, px, px]."""
    import torch

    mean, std = (
        torch.tensor(values, device=device).reshape(1, 3, 1, 1)
        for values in build.normalisation(config.backbone, config.weights)
    )
    if config.in_channels == 1:
        mean, std = mean.mean(1, keepdim=True), std.mean(1, keepdim=True)
    scale, offset = 1 / std, -mean / std

    def prepare(images: torch.Tensor) -> torch.Tensor:
        n, _, height, width = images.shape
        inputs = torch.empty(
            (n, config.in_channels, height, width), device=device, memory_format=_layout(config)
        )
        # a gray image broadcasts against three means: this is the expansion to three channels
        if device.type != "cpu":
            return torch.addcmul(offset, images, scale, out=inputs)
        for channel in range(
            config.in_channels
        ):  # one at a time: 1.6 to 1.8 times as fast, and the same bits
            source = images[:, min(channel, images.shape[1] - 1)]
            torch.addcmul(offset[:, channel], source, scale[:, channel], out=inputs[:, channel])
        return inputs

    return prepare


def _put(
    pack: Pack, rows: NDArray[np.int64], config: TrialConfig, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    labels = torch.from_numpy(pack.labels[rows].astype(np.float32)).to(device)
    return loader.put(pack.images, rows, px=config.image_px, device=device), labels


def _image_bytes(config: TrialConfig, pack: Pack) -> int:
    """Return the bytes of one image on the device: see `loader.put`."""
    channels = 1 if pack.images.ndim == 3 else pack.images.shape[1]
    height, width = (min(side, config.image_px) for side in pack.images.shape[-2:])
    return int(channels * height * width)


def _layout(config: TrialConfig) -> torch.memory_format:
    import torch

    return torch.channels_last if config.layout == "channels_last" else torch.contiguous_format


def _status(error: Exception) -> Status:
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, TimeUp):
        return "timeout"
    return "oom" if memory.is_shortage(error) else "error"
