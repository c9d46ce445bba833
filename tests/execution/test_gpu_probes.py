from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from casting_tune.config import TrialConfig
from casting_tune.data.pack import Pack
from casting_tune.execution import gpu_probes, nodes
from casting_tune.execution.dataset import Reporter
from casting_tune.execution.gpu_probes import Probes, Shares
from casting_tune.execution.nodes import Devices
from casting_tune.planning import gpu_sharing
from casting_tune.planning.gpu_sharing import Peak
from casting_tune.store.store import Store
from casting_tune.training.records import Place

GIB = 2**30
CONFIG = TrialConfig(
    backbone="timm:test_resnet.r160_in1k",
    image_px=32,
    batch_size=16,
    epochs=1,
    precision="fp32",
    dense=64,
)
PEAK = Peak(like=gpu_sharing.like(CONFIG), n_images=100, peak_bytes=4 * GIB)


def shares(*peaks: Peak) -> Shares:
    devices = Devices(gpu_bytes=24 * GIB, n_gpus=1, n_cpus=8)
    return Shares(peaks=peaks, devices=devices, n_images=lambda config: config.train_images or 100)


def test_shares_follow_measured_memory_a_baseline_gets_0_and_an_unknown_network_1() -> None:
    known = shares(PEAK)
    assert known.of(CONFIG) == 0.25  # 5.75 of 24 GiB
    assert (
        known.of(replace(CONFIG, dense=32)) == 0.25
    )  # chosen by a search between two that were probed
    assert known.of(replace(CONFIG, dense=128)) == 1.0
    assert known.of(replace(CONFIG, train_images=200)) == 1.0
    assert known.of(TrialConfig(backbone="baseline:majority")) == 0.0
    assert known.knows(CONFIG)
    assert known.knows(TrialConfig(backbone="baseline:majority"))
    assert not known.knows(replace(CONFIG, dense=32))


def test_one_configuration_of_each_network_and_size_is_probed_that_with_the_most_images() -> None:
    few, many = (replace(CONFIG, dense=0, seed=n, train_images=n) for n in (50, 90))
    baseline = TrialConfig(backbone="baseline:majority")
    requested = [CONFIG, few, many, few, baseline, replace(CONFIG, seed=3)]
    assert gpu_probes.unmeasured(requested, (PEAK,), shares().n_images) == (many,)


def test_a_network_that_cannot_be_probed_is_named_and_stops_nothing(
    packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    nonsense = replace(CONFIG, backbone="timm:nonsense")
    assert "nonsense" in nodes._probe(nonsense, packed, Place(), None)

    def measure(configs: list[TrialConfig], pack: Pack, **more: Any) -> Devices:
        for i, config in enumerate(configs):
            more["on_probe"](i, i + 1, nodes._probe(config, pack, more["place"], None))
        return Devices(gpu_bytes=24 * GIB, n_gpus=1, n_cpus=8)

    monkeypatch.setattr(nodes, "measure", measure)
    lines: list[str] = []
    messages: list[tuple[str, int, int]] = []
    report = Reporter(lines.append, lambda what, done, total: messages.append((what, done, total)))
    probes = Probes(
        images=packed, store=store, place=Place(), groups=None, address=None, report=report
    )
    found = probes.share(
        [CONFIG, nonsense],
        also=[replace(CONFIG, seed=7)],
        n_images=lambda _: len(packed.labels),
    )
    assert found.of(CONFIG) < 1.0
    assert found.of(nonsense) == 1.0
    assert store.read("probes").num_rows == 1
    assert messages == [("probing networks", done, 2) for done in range(3)]
    (line,) = lines
    assert line.startswith("1 networks could not be probed (")
    assert line.endswith("their trials get a whole GPU each.")
