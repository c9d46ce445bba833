from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from casting_tune import machine
from casting_tune.config import TrialConfig
from casting_tune.planning import expand, sweep_file
from casting_tune.store.store import Store
from casting_tune.training import precision
from tests.cli.test_main import call

GAINING, DEPTHWISE, UNKNOWN = "resnet50", "mobilenetv2", "timm:regnetx_002"


@pytest.mark.parametrize(
    ("backbone", "device", "has_bf16", "resolved"),
    [
        (GAINING, "cpu", True, "bf16"),
        (GAINING, "cpu", False, "fp32"),
        ("timm:resnet10t", "cpu", True, "bf16"),
        ("timm:resnet10t", "cpu", False, "fp32"),
        (DEPTHWISE, "cpu", True, "fp32"),
        (UNKNOWN, "cpu", True, "fp32"),
        (DEPTHWISE, "cuda", False, "bf16"),
        (UNKNOWN, "cuda", False, "bf16"),
    ],
)
def test_auto_takes_bf16_only_where_it_was_measured_to_be_faster(
    monkeypatch: pytest.MonkeyPatch,
    backbone: str,
    device: Literal["cpu", "cuda"],
    has_bf16: bool,
    resolved: str,
) -> None:
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: has_bf16)
    assert precision.resolve(TrialConfig(backbone=backbone), device) == resolved
    for requested in ("fp32", "bf16"):  # what a person says stands
        assert (
            precision.resolve(TrialConfig(backbone=backbone, precision=requested), device)
            == requested
        )


def test_bf16_on_a_cpu_without_it_is_reported_before_training(
    drawn: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requested: tuple[Any, ...] = (
        "sweep",
        "cpu_baseline",
        "--quick",
        "--plan",
        "--gpus-per-trial",
        0,
        "--data",
        drawn,
    )
    for has_bf16, words, message in (
        (False, ("--set", "precision=bf16"), True),
        (False, (), False),
        (True, ("--set", "precision=bf16"), False),
    ):
        monkeypatch.setattr(machine, "cpu_has_bf16", lambda has=has_bf16: has)
        code, out, err = call(capsys, *requested, "--results", store.root, *words)
        assert code == 0, err
        assert ("without bf16 instructions" in " ".join((out + err).split())) == message


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", sweep_file.names())
def test_a_packaged_sweep_leaves_the_precision_to_the_machine(name: str, quick: bool) -> None:
    sweep = expand.read(name, quick=quick)
    configs = [cell.config for cell in sweep.cells]
    if sweep.search is not None:
        configs = [expand.search_config(sweep.search, {"base_lr": 1e-3})]
    assert {config.precision for config in configs} == {"auto"}
