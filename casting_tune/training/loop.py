"""The training loop, as a generator that yields one Epoch at a time; predictions; latency.

Input: a network, batches of normalised inputs, the optimiser's settings. Output: Epochs, scores,
seconds. Does not know where batches come from, who schedules, or where rows go.

Nothing in the loop waits for the device: losses stay there and are read once per epoch. A step
takes everything that changes between batches as tensors, so that the caller can record it and
launch it as one (`cuda_graph`).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from casting_tune.config import Epoch
from casting_tune.data.batches import slices
from casting_tune.errors import Diverged, TimeUp

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
    Step = Callable[..., torch.Tensor]

REFERENCE_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Settings of the optimiser: AdamW, a linear warm-up, then the schedule, one step per batch.

    `n_steps` is the number of steps per epoch.
    """

    base_lr: float
    batch_size: int
    weight_decay: float
    warmup_share: float
    lr_schedule: Literal["cosine", "constant"]
    epochs: int
    n_steps: int
    precision: Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a training.

    Attributes:
        micro_batch: most images per forward pass. Their gradients add up to the gradient of the
            batch; only batch normalisation sees fewer images. None: the whole batch.
        ends_at: no step starts after this time of `time.perf_counter`. A GPU completes the steps
            that were launched before.
    """

    micro_batch: int | None = None
    ends_at: float = math.inf


UNLIMITED = Limits()


def unchanged(inputs: torch.Tensor, y_true: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch that consists of inputs and labels already."""
    return inputs, y_true


def by_kernel(step: Step) -> Step:
    """Return a step that is launched kernel by kernel."""
    return step


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """The batches of a training, and how a step takes them.

    Attributes:
        batches: epoch (from 1) -> its training batches, each the tensors that `make` takes.
        validation: -> the validation batches, in a fixed order.
        make: a batch -> (inputs [b, c, px, px] float, y_true [b] float 0 or 1); part of the step.
        launch: how the step is launched: `by_kernel`, or a `cuda_graph.Recorder`.
    """

    batches: Callable[[int], Iterable[tuple[torch.Tensor, ...]]]
    validation: Callable[[], Batches]
    make: Callable[..., tuple[torch.Tensor, torch.Tensor]] = unchanged
    launch: Callable[[Step], Step] = by_kernel


def fit(
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    recipe: Recipe,
    feed: Feed,
    *,
    n_done: int = 0,
    limits: Limits = UNLIMITED,
) -> Iterator[Epoch]:
    """Train, and yield an Epoch after each pass over the training images.

    The loss is binary cross-entropy on the logit. The last epoch's weights stay.

    Args:
        model: inputs [b, c, px, px] -> logits [b].
        optimiser: of the model's parameters, from `make_optimiser`.
        recipe: the optimiser's settings.
        feed: the batches of training and validation.
        n_done: epochs that model and optimiser have completed; the first Epoch is the next one.
        limits: of memory and time.

    Raises:
        Diverged: a training loss that is not a finite number.
        TimeUp: `limits.ends_at` has passed.
    """
    import torch

    take = feed.launch(_step(model, optimiser, recipe, feed.make, limits.micro_batch))
    set_rate = _rate_setter(optimiser, next(model.parameters()).device)
    n_taken = n_done * recipe.n_steps
    for epoch in range(n_done + 1, recipe.epochs + 1):
        model.train()
        started = time.perf_counter()
        losses, n_images, lr = [], 0, 0.0
        for batch in feed.batches(epoch):
            lr = learning_rate(n_taken, recipe)
            set_rate(lr)
            losses.append(take(*batch))
            n_images += len(batch[0])
            n_taken += 1
            if time.perf_counter() > limits.ends_at:
                raise TimeUp(f"Time limit reached in epoch {epoch} of {recipe.epochs}.")
        train_loss = float(torch.stack(losses).sum()) / n_images
        train_s = time.perf_counter() - started
        if not math.isfinite(train_loss):
            raise Diverged(
                f"The training loss is {train_loss} in epoch {epoch}. "
                f"Use a base_lr below {recipe.base_lr}."
            )
        loss, accuracy = _validate(model, feed.validation(), recipe.precision)
        yield Epoch(
            epoch=epoch,
            n_images=n_images,
            n_steps=len(losses),
            learning_rate=lr,
            train_loss=train_loss,
            validation_loss=loss,
            validation_accuracy=accuracy,
            train_s=train_s,
            validation_s=time.perf_counter() - started - train_s,
        )


def _step(
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    recipe: Recipe,
    make: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    micro_batch: int | None,
) -> Step:
    """Return a function that takes one step and returns the sum of the images' losses, []."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    device_type = next(model.parameters()).device.type

    def step(*batch: torch.Tensor) -> torch.Tensor:
        inputs, y_true = make(*batch)
        optimiser.zero_grad(set_to_none=True)
        losses = []
        for part in slices(len(y_true), micro_batch or len(y_true)):
            with torch.autocast(device_type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                logits = model(inputs[part])
            loss = binary_cross_entropy_with_logits(logits.float(), y_true[part], reduction="sum")
            (loss / len(y_true)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        optimiser.step()
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    return step


def make_optimiser(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return AdamW; biases and normalisation scales (one dimension) do not decay."""
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.base_lr, fused=True)


def _rate_setter(optimiser: torch.optim.Optimizer, device: torch.device) -> Callable[[float], Any]:
    """Return a function that sets the learning rate.

    On a GPU the rate is a tensor, because a recorded step reads it at every replay.
    """
    import torch

    groups = optimiser.param_groups
    if device.type == "cuda":
        rate = torch.zeros((), device=device)
        for group in groups:
            group.update(lr=rate, capturable=True)
        return rate.fill_

    def set_rate(lr: float) -> None:
        for group in groups:
            group["lr"] = lr

    return set_rate


def learning_rate(step: int, recipe: Recipe) -> float:
    """Return the learning rate of a step, counted from 0 over the whole training.

    The peak is base_lr * sqrt(batch_size / 32), the square-root scaling of adaptive optimisers
    (Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", 2022). It is
    reached linearly over the warm-up. Then a half cosine falls to zero at the last step
    (Loshchilov and Hutter, "SGDR", 2017), or the rate stays constant.
    """
    peak = recipe.base_lr * math.sqrt(recipe.batch_size / REFERENCE_BATCH)
    total = recipe.epochs * recipe.n_steps
    warmup = round(recipe.warmup_share * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    if recipe.lr_schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def predict(
    model: torch.nn.Module, batches: Batches, *, precision: Literal["fp32", "bf16"]
) -> NDArray[np.float32]:
    """Return P(defective) of every image: [n] float32 in [0, 1], in the order of the batches."""
    import torch

    logits = [logit for logit, _ in _logits(model, batches, precision)]
    return torch.cat(logits).sigmoid().cpu().numpy()


def latency(
    model: torch.nn.Module, inputs: torch.Tensor, *, precision: Literal["fp32", "bf16"]
) -> float:
    """Return the median seconds of one forward pass of `inputs` [b, c, px, px].

    Every pass includes waiting for the device. After one warm-up pass, 3 to 11 passes are timed,
    until they have taken one second.
    """
    seconds: list[float] = []
    while len(seconds) < 4 or (len(seconds) < 12 and sum(seconds[1:]) < 1):
        started = time.perf_counter()
        predict(model, [(inputs, inputs)], precision=precision)  # reads the scores: waits
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def _validate(
    model: torch.nn.Module, batches: Batches, precision: Literal["fp32", "bf16"]
) -> tuple[float, float]:
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    pairs = list(_logits(model, batches, precision))
    logits, y_true = torch.cat([logit for logit, _ in pairs]), torch.cat([y for _, y in pairs])
    loss = binary_cross_entropy_with_logits(logits, y_true)
    accuracy = ((logits >= 0) == (y_true > 0.5)).float().mean()
    return float(loss), float(accuracy)


def _logits(
    model: torch.nn.Module, batches: Batches, precision: Literal["fp32", "bf16"]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    import torch

    model.eval()
    with torch.inference_mode():
        for inputs, y_true in batches:
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = model(inputs)
            yield logits.float(), y_true
