"""Train the network of one cell and predict its validation and test images.

Input: a configuration, a pack and its split, limits, files. Output: predictions, what the training
measured, and each Epoch to `on_epoch`. Writes checkpoints and kept weights, but no rows.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from casting_tune.config import Epoch, Predictions, TrialConfig
from casting_tune.data.batches import slices
from casting_tune.data.pack import Pack
from casting_tune.data.splits import Folds
from casting_tune.errors import Diverged
from casting_tune.models import build
from casting_tune.store import artifacts
from casting_tune.store.store import Store
from casting_tune.training import checkpoint, cuda_graph, inputs, loop, memory, records
from casting_tune.training.records import Measured, TrialContext

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The files of a trial that are not tables: its checkpoint, and weights to keep.

    `share` puts one of them where another machine can read it; `drop` removes one everywhere.
    """

    checkpoint: Path
    last: Path
    best: Path
    share: Callable[[Path], None]
    drop: Callable[[Path], None]


def files_of(store: Store, cell: str, *, keep: Collection[str] = ()) -> Files:
    """Return the files of a cell, fetched if another machine wrote them."""
    best = artifacts.weights(store, cell, best=True)
    return Files(
        checkpoint=artifacts.fetch(store, artifacts.checkpoint(store, cell)),
        last=artifacts.weights(store, cell),
        best=artifacts.fetch(store, best) if "best" in keep else best,
        share=partial(artifacts.share, store),
        drop=partial(artifacts.drop, store),
    )


def fit_network(
    config: TrialConfig,
    pack: Pack,
    context: TrialContext,
    *,
    parts: Folds,
    files: Files,
    on_epoch: Callable[[Epoch], None],
) -> tuple[Predictions, Measured]:
    """Train on the training images, then predict validation and test.

    Args:
        config: the cell.
        pack: the images.
        context: place and limits of the trial.
        parts: image indices of train, validation and test.
        files: checkpoint and weights; training continues from an existing checkpoint.
        on_epoch: called after each epoch, when its checkpoint is saved.

    Raises:
        Diverged: a loss or a score is not a finite number.
        TimeUp: the time limit has passed.
    """
    ends_at = time.perf_counter() + (context.allowance.max_seconds or math.inf)
    with _set_up(config, pack, context, parts) as training:
        n_done = _resume(training, files, on_epoch)
        limits = loop.Limits(micro_batch=context.allowance.micro_batch, ends_at=ends_at)
        epochs = []
        for epoch in loop.fit(
            training.model,
            training.optimiser,
            training.recipe,
            training.feed,
            n_done=n_done,
            limits=limits,
        ):
            _save(training, files, epoch, keep=context.allowance.keep)
            on_epoch(epoch)
            epochs.append(epoch)
        precision = training.recipe.precision
        scores = [
            loop.predict(training.model, training.evaluation(part), precision=precision)
            for part in ("validation", "test")
        ]
        predictions = records.predictions(parts, pack, scores)
        if not np.isfinite(predictions.score).all():
            raise Diverged("Some scores are not a number. Use a smaller base_lr.")
        if "last" in context.allowance.keep:
            checkpoint.keep(files.last, training.model, epochs[-1])
            files.share(files.last)
        return predictions, _measure(training, epochs, n_train=len(parts.train), n_done=n_done)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Training:
    """A network on its device, and everything that trains it."""

    model: torch.nn.Module
    optimiser: torch.optim.Optimizer
    recipe: loop.Recipe
    feed: loop.Feed
    evaluation: Callable[[str], Generator[tuple[torch.Tensor, torch.Tensor]]]
    recorder: cuda_graph.Recorder
    device: torch.device
    images_from: memory.ImagesFrom


@contextlib.contextmanager
def _set_up(
    config: TrialConfig, pack: Pack, context: TrialContext, parts: Folds
) -> Iterator[_Training]:
    """Build the network, and put the images on the device or read them until the context ends."""
    import torch

    torch.set_num_threads(context.place.n_threads)
    device = torch.device(context.place.device)
    memory.reset_peak(device)
    model = build.model(
        config.backbone,
        weights=config.weights,
        dense=config.dense,
        dropout=config.dropout,
        in_channels=config.in_channels,
        seed=config.seed,
    ).to(device, memory_format=inputs.memory_format(config))  # type: ignore[call-overload]
    prepare = inputs.normaliser(config, device)
    recorder, recipe = cuda_graph.Recorder(), _recipe(config, n_train=len(parts.train))
    with inputs.placed(pack, parts, config, context) as (images, images_from):
        batches, make = inputs.training_batches(config, images["train"], prepare)

        def evaluation(part: str) -> Generator[tuple[torch.Tensor, torch.Tensor]]:
            most = context.allowance.micro_batch
            return inputs.evaluation_batches(
                images[part], prepare, px=config.image_px, most_images=most
            )

        yield _Training(
            model=model,
            optimiser=loop.make_optimiser(model, recipe),
            recipe=recipe,
            feed=loop.Feed(
                batches=batches,
                validation=lambda: evaluation("validation"),
                make=make,
                launch=recorder if device.type == "cuda" else loop.by_kernel,
            ),
            evaluation=evaluation,
            recorder=recorder,
            device=device,
            images_from=images_from,
        )


def _recipe(config: TrialConfig, *, n_train: int) -> loop.Recipe:
    return loop.Recipe(
        base_lr=config.base_lr,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        warmup_share=config.warmup_share,
        lr_schedule=config.lr_schedule,
        epochs=config.epochs,
        n_steps=len(slices(n_train, config.batch_size)),
        precision=cast(Precision, config.precision),
    )


def _resume(training: _Training, files: Files, on_epoch: Callable[[Epoch], None]) -> int:
    """Continue from a checkpoint, if there is one, and return how many epochs are completed."""
    try:
        last = checkpoint.load(files.checkpoint, training.model, training.optimiser)
    # torch reports a damaged file by many types; this attempt fails and the next one starts afresh
    except Exception as error:
        if not memory.is_shortage(error):
            files.drop(files.checkpoint)
        raise
    if last is None:
        return 0
    on_epoch(last)  # the process may have died between the checkpoint and the row
    return last.epoch


def _save(training: _Training, files: Files, epoch: Epoch, *, keep: Collection[str]) -> None:
    """Save the best weights if they are to be kept, and a checkpoint unless training is over."""
    if "best" in keep:
        checkpoint.keep_best(files.best, training.model, epoch)
        files.share(files.best)
    if epoch.epoch < training.recipe.epochs:
        checkpoint.save(files.checkpoint, training.model, training.optimiser, epoch)
        files.share(files.checkpoint)


def _measure(
    training: _Training, epochs: Sequence[Epoch], *, n_train: int, n_done: int
) -> Measured:
    """Return times, memory and size; measures the latency of one image and of one batch."""
    n_parameters, n_statistics = build.n_parameters(training.model)
    with contextlib.closing(training.evaluation("test")) as test:
        batch = next(test)[0]
    epoch_s = statistics.median(epoch.train_s for epoch in epochs)
    n_steps, precision = training.recipe.n_steps, training.recipe.precision
    return Measured(
        epoch_s=epoch_s,
        step_s=epoch_s / n_steps,
        image_s=epoch_s / n_train,
        n_steps=n_steps,
        cuda_graph=training.recorder.records,
        latency_one_s=loop.latency(training.model, batch[:1], precision=precision),
        latency_batch_s=loop.latency(training.model, batch, precision=precision),
        latency_batch_images=len(batch),
        peak_memory_bytes=memory.peak(training.device),
        n_parameters=n_parameters,
        n_statistics=n_statistics,
        resumed_from=n_done,
        images_from=training.images_from,
    )
