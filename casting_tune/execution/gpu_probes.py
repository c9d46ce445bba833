"""Probes networks that the store does not know: seconds for a plan, memory for sharing a GPU.

Input: configurations, images, a store. Output: rows of probes in the store, and the share of a GPU
of each configuration. Does not decide what runs.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casting_tune.config import TrialConfig
from casting_tune.data.pack import Pack
from casting_tune.execution import nodes
from casting_tune.execution.dataset import Reporter
from casting_tune.execution.nodes import Devices
from casting_tune.planning import gpu_sharing
from casting_tune.planning.gpu_sharing import Peak
from casting_tune.store.store import Store
from casting_tune.training.baseline_fit import is_baseline
from casting_tune.training.probe import probe
from casting_tune.training.records import Place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


PROBING = "probing networks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What share of a GPU each configuration gets.

    Attributes:
        peaks: memory of trials and probes.
        devices: the GPUs.
        n_images: returns how many images a configuration puts on the GPU.
    """

    peaks: tuple[Peak, ...]
    devices: Devices
    n_images: Callable[[TrialConfig], int]

    def of(self, config: TrialConfig) -> float:
        """Return a share: 0 for a baseline, which trains nothing; 1 if the memory is unknown."""
        if is_baseline(config):
            return 0.0
        n_images = self.n_images(config)
        peak = gpu_sharing.peak_bytes(self.peaks, config, n_images)
        if peak is None:
            peak = gpu_sharing.bound_bytes(self.peaks, config, n_images)
        return gpu_sharing.share(peak, self.devices.gpu_bytes)

    def knows(self, config: TrialConfig) -> bool:
        """Return whether the memory of a configuration is known."""
        return not unmeasured([config], self.peaks, self.n_images)


def unmeasured(
    configs: Sequence[TrialConfig], peaks: Sequence[Peak], n_images: Callable[[TrialConfig], int]
) -> tuple[TrialConfig, ...]:
    """Return the configuration with the most images per network and size of unknown memory."""
    lacking: dict[tuple[Any, ...], TrialConfig] = {}
    for config in configs:
        if (
            is_baseline(config)
            or gpu_sharing.peak_bytes(peaks, config, n_images(config)) is not None
        ):
            continue
        like = gpu_sharing.like(config)
        if like not in lacking or n_images(config) > n_images(lacking[like]):
            lacking[like] = config
    return tuple(lacking.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """Probes configurations and writes their rows.

    Attributes:
        images: the pack.
        store: takes the rows; its trials and earlier probes are not probed again.
        place: of a trial.
        groups: [n] group number of each image, if a split needs them.
        address: of the cluster; None: this machine.
        report: reports progress, and networks that cannot be probed.
    """

    images: Pack
    store: Store
    place: Place
    groups: NDArray[np.int64] | None
    address: str | None
    report: Reporter

    def run_here(self, configs: Sequence[TrialConfig]) -> None:
        """Probe configurations in this process, one after the other."""
        on_progress = self.report.progress(PROBING)
        for i, config in enumerate(configs):
            if on_progress:
                on_progress(i, len(configs))
            self._write(probe(config, self.images, self.place, self.groups))

    def share(
        self,
        configs: Sequence[TrialConfig],
        *,
        also: Sequence[TrialConfig],
        n_images: Callable[[TrialConfig], int],
    ) -> Shares:
        """Probe in workers the configurations whose memory is unknown, and return all shares.

        Args:
            configs: their memory must be known; none: only the GPUs are measured.
            also: probed even if their memory is known.
            n_images: returns how many images a configuration puts on the GPU.
        """
        on_progress = self.report.progress(PROBING)
        lacking = unmeasured(configs, self._peaks(), n_images)
        known = {gpu_sharing.like(config) for config in lacking}
        lacking += tuple(config for config in also if gpu_sharing.like(config) not in known)
        failures: list[str] = []

        def on_probe(position: int, n_ended: int, result: dict[str, Any] | str) -> None:
            del position
            if isinstance(result, str):
                failures.append(result)
            else:
                self._write(result)
            if on_progress:
                on_progress(n_ended, len(lacking))

        if on_progress:
            on_progress(0, max(len(lacking), 1))
        devices = nodes.measure(
            lacking,
            self.images,
            place=self.place,
            groups=self.groups,
            address=self.address,
            on_probe=on_probe,
        )
        if failures:
            self.report.say(
                f"{len(failures)} networks could not be probed ({failures[0]}): "
                "their trials get a whole GPU each."
            )
        return Shares(peaks=self._peaks(), devices=devices, n_images=n_images)

    def _write(self, row: dict[str, Any]) -> None:
        self.store.write("probes", self.place.device, uuid.uuid4().hex, [row])

    def _peaks(self) -> tuple[Peak, ...]:
        trials = self.store.read("trials", columns=[*gpu_sharing.READ]).to_pylist()
        probes = self.store.read("probes").to_pylist()
        return gpu_sharing.learn(trials, probes, device=self.place.device)
