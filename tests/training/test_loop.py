from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from casting_tune.config import Epoch
from casting_tune.errors import Diverged
from casting_tune.training import loop
from casting_tune.training.loop import Feed, Recipe

RECIPE = Recipe(
    base_lr=0.32,
    batch_size=8,
    weight_decay=0.0,
    warmup_share=0.25,
    lr_schedule="cosine",
    epochs=2,
    n_steps=4,
    precision="fp32",
)


class Dot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs.flatten(1) @ self.weight).squeeze(1)


def fit(model: nn.Module, recipe: Recipe, **feed: Any) -> Iterator[Epoch]:
    return loop.fit(model, loop.make_optimiser(model, recipe), recipe, Feed(**feed))


def separable(n_batches: int = 4) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for batch in range(n_batches):
        generator = torch.Generator().manual_seed(batch)
        inputs = torch.randn(8, 1, 2, 2, generator=generator)
        yield inputs, (inputs.sum((1, 2, 3)) > 0).float()


def test_a_separable_problem_is_learned_and_the_loss_falls() -> None:
    model = Dot()
    epochs = list(
        fit(model, replace(RECIPE, epochs=20), batches=lambda _: separable(), validation=separable)
    )
    assert epochs[-1].train_loss < epochs[0].train_loss < 0.75
    assert epochs[-1].validation_accuracy == 1.0
    assert [epoch.epoch for epoch in epochs] == list(range(1, 21))
    assert {(epoch.n_images, epoch.n_steps) for epoch in epochs} == {(32, 4)}


def test_the_first_loss_of_an_undecided_network_is_log_two() -> None:
    still = replace(RECIPE, base_lr=1e-12, epochs=1)
    (epoch,) = fit(Dot(), still, batches=lambda _: separable(), validation=separable)
    assert epoch.train_loss == pytest.approx(math.log(2), abs=1e-6)
    assert epoch.validation_loss == pytest.approx(math.log(2), abs=1e-6)


def test_a_loss_that_is_not_finite_ends_the_training_as_diverged() -> None:
    def poisoned(_: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield torch.full((8, 1, 2, 2), torch.inf), torch.zeros(8)

    with pytest.raises(Diverged, match="base_lr"):
        list(fit(Dot(), RECIPE, batches=poisoned, validation=separable))


def test_the_learning_rate_warms_up_to_the_scaled_peak_and_falls_to_zero() -> None:
    rates = [loop.learning_rate(step, RECIPE) for step in range(8)]
    peak = 0.32 * math.sqrt(8 / 32)  # = 0.16
    assert rates[:3] == pytest.approx(
        [peak / 2, peak, peak]
    )  # two warm-up steps of eight, then the top of the cosine
    assert rates[5] == pytest.approx(peak * 0.5)  # halfway down: step 3 of 6 after the warm-up
    assert 0 < rates[7] < 0.1 * peak


def test_a_constant_schedule_stays_at_its_peak() -> None:
    constant = replace(RECIPE, lr_schedule="constant", warmup_share=0.0)
    assert {loop.learning_rate(step, constant) for step in range(8)} == {0.16}


def test_predictions_are_probabilities_in_the_batches_order_and_leave_the_model_alone() -> None:
    model = Dot()
    with torch.no_grad():
        model.weight.fill_(1.0)
    inputs = torch.tensor([0.0, 1.0, -1.0]).reshape(3, 1, 1, 1).expand(3, 1, 2, 2) / 4
    score = loop.predict(
        model, [(inputs[:2], torch.zeros(2)), (inputs[2:], torch.zeros(1))], precision="fp32"
    )
    np.testing.assert_allclose(score, [0.5, 0.7310586, 0.2689414], rtol=1e-6)
    assert score.dtype == np.float32
    assert model.weight.grad is None


def test_scales_and_biases_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1), nn.Flatten(0))
    before = {name: value.clone() for name, value in model.named_parameters()}
    decaying = replace(RECIPE, weight_decay=0.5, base_lr=0.1, epochs=1, warmup_share=0.0)
    nothing = [
        (torch.zeros(8, 4), torch.full((8,), 0.5))
    ]  # the bias of the last layer starts off zero logits alone
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.zero_()
    list(fit(model, decaying, batches=lambda _: nothing, validation=lambda: nothing))
    after = dict(model.named_parameters())
    assert torch.equal(after["1.weight"], before["1.weight"])
    assert after["0.weight"].abs().sum() < before["0.weight"].abs().sum()


def test_latency_is_the_median_of_timed_passes() -> None:
    assert 0 < loop.latency(Dot(), torch.zeros(2, 1, 2, 2), precision="fp32") < 1
