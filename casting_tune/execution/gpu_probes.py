"""Probes what the store does not know of networks: seconds for a plan, memory for trials that share a GPU.

Comes in: configurations to come, the images, a store. Goes out: rows of probes in the store; and
Shares: what share of a GPU each configuration gets. Decides nothing about what runs.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casting_tune.config import BASELINE, TrialConfig
from casting_tune.data.pack import Pack
from casting_tune.execution import nodes
from casting_tune.execution.nodes import Devices
from casting_tune.planning import gpu_sharing
from casting_tune.planning.gpu_sharing import Peak
from casting_tune.store.store import Store
from casting_tune.training import trial
from casting_tune.training.records import Place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What share of a GPU each configuration gets.

    Attributes:
        peaks: what trials and probes took.
        devices: the GPUs.
        n_images: tells how many images a configuration puts on the GPU.
    """

    peaks: tuple[Peak, ...]
    devices: Devices
    n_images: Callable[[TrialConfig], int]

    def of(self, config: TrialConfig) -> float:
        """Return a share: 0 for a baseline, which trains nothing, and 1 where nothing tells of the memory."""
        if config.backbone.startswith(BASELINE):
            return 0.0
        n_images = self.n_images(config)
        peak = gpu_sharing.peak_bytes(self.peaks, config, n_images)
        if peak is None:
            peak = gpu_sharing.bound_bytes(self.peaks, config, n_images)
        return gpu_sharing.share(peak, self.devices.gpu_bytes)

    def knows(self, config: TrialConfig) -> bool:
        """Say whether the memory of a configuration is known."""
        return not unmeasured([config], self.peaks, self.n_images)


def unmeasured(
    configs: Sequence[TrialConfig], peaks: Sequence[Peak], n_images: Callable[[TrialConfig], int]
) -> tuple[TrialConfig, ...]:
    """Return one configuration, that with the most images, of each network and size whose memory is not known."""
    lacking: dict[tuple[Any, ...], TrialConfig] = {}
    for config in configs:
        if (
            config.backbone.startswith(BASELINE)
            or gpu_sharing.peak_bytes(peaks, config, n_images(config)) is not None
        ):
            continue
        like = gpu_sharing.like(config)
        if like not in lacking or n_images(config) > n_images(lacking[like]):
            lacking[like] = config
    return tuple(lacking.values())


def time(
    configs: Sequence[TrialConfig],
    images: Pack,
    store: Store,
    *,
    place: Place,
    groups: NDArray[np.int64] | None,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Probe configurations in this process, one after the other, and write their rows."""
    for i, config in enumerate(configs):
        if on_progress:
            on_progress(i, len(configs))
        store.write(
            "probes", place.device, uuid.uuid4().hex, [trial.probe(config, images, place, groups)]
        )


def share(
    configs: Sequence[TrialConfig],
    images: Pack,
    store: Store,
    *,
    also: Sequence[TrialConfig],
    n_images: Callable[[TrialConfig], int],
    place: Place,
    groups: NDArray[np.int64] | None,
    address: str | None,
    say: Callable[[str], None],
    on_progress: Callable[[int, int], None] | None,
) -> Shares:
    """Ask for the GPUs' memory, probe what nothing tells of, write its rows, and return what each configuration gets.

    Args:
        configs: whose memory must be known; none: only the GPUs are asked.
        images: the pack.
        store: where trials and probes are looked for, and probes go.
        also: what is probed whatever is known of its memory.
        n_images: tells how many images a configuration puts on the GPU.
        place: of a trial, with a GPU.
        groups: photographs of the images, [n], where a split needs them.
        address: of the cluster, None here.
        say: told of networks that cannot be probed.
        on_progress: told (done, total).
    """
    lacking = unmeasured(configs, _peaks(store, place.device), n_images)
    known = {gpu_sharing.like(config) for config in lacking}
    lacking += tuple(config for config in also if gpu_sharing.like(config) not in known)
    failures: list[str] = []

    def keep(position: int, n_ended: int, found: dict[str, Any] | str) -> None:
        del position
        if isinstance(found, str):
            failures.append(found)
        else:
            store.write("probes", place.device, uuid.uuid4().hex, [found])
        if on_progress:
            on_progress(n_ended, len(lacking))

    if on_progress:
        on_progress(0, max(len(lacking), 1))
    devices = nodes.measure(
        lacking, images, place=place, groups=groups, address=address, on_probe=keep
    )
    if failures:
        say(
            f"{len(failures)} networks could not be probed ({failures[0]}): their trials get a whole GPU each."
        )
    return Shares(peaks=_peaks(store, place.device), devices=devices, n_images=n_images)


def _peaks(store: Store, device: str) -> tuple[Peak, ...]:
    rows = store.read("trials", columns=[*gpu_sharing.READ]).to_pylist()
    return gpu_sharing.learn(rows, store.read("probes").to_pylist(), device=device)
