"""Classify images with an exported network: onnxruntime only, on any computer.

Images are decoded as for the pack; all later steps are in the graph. This module imports no torch,
timm, kornia, ray or pandas, and no module that does.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from casting_tune.data import decode, pixel_rules
from casting_tune.data.pixel_rules import PixelRules
from casting_tune.deploy import export_folder, image_files
from casting_tune.deploy.decisions import Decision
from casting_tune.errors import UsageError

POLL_S = 0.25
"""Seconds between two scans of a folder; a file is complete if two scans agree and it decodes."""

GIVE_UP_S = 5.0
"""Seconds without a change after which a file that does not decode is bad: a writer may pause."""

LEAST_ONNXRUNTIME = "1.26"
"""The lower bound of the extra `export` in pyproject.toml. Versions 1.20 to 1.25.1 cannot load the
graph: their optimiser makes a FusedMatMul of float64 tensors, for which they have no kernel.
"""


@dataclass(frozen=True, slots=True)
class Network:
    """An opened export: the contents of decision.json, and the session of onnxruntime."""

    settings: dict[str, Any]
    session: Any


def open_network(folder: Path, *, n_threads: int = 0, max_megapixels: int | None = None) -> Network:
    """Open an export after a check of every file against SHA256SUMS.

    Args:
        folder: the export.
        n_threads: CPU threads; 0: all cores.
        max_megapixels: larger images get no decision; None: the limit of the training.

    Raises:
        UsageError: the folder is not an export, or onnxruntime is missing or too old.
        StoreError: a file is missing, changed or unreadable, or has a later version.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise UsageError('predict requires onnxruntime: pip install "casting-tune[export]"')
    check_onnxruntime()
    export_folder.check_sums(folder)
    settings = export_folder.read_decision(folder)
    if max_megapixels is not None:
        settings["pixels"] = settings.get("pixels", {}) | {"max_megapixels": max_megapixels}
        rules_of(settings).check()
    return Network(settings, open_session(folder / "network.onnx", n_threads=n_threads))


def open_session(file: Path, *, n_threads: int = 0) -> Any:
    """Return an onnxruntime session on the CPU whose idle threads sleep; 0 threads: all cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def check_onnxruntime() -> None:
    """Raise UsageError if the installed onnxruntime is older than LEAST_ONNXRUNTIME."""
    import onnxruntime
    from packaging.version import Version

    if Version(onnxruntime.__version__) < Version(LEAST_ONNXRUNTIME):
        raise UsageError(
            f"onnxruntime {onnxruntime.__version__} is too old: an exported network requires "
            f'{LEAST_ONNXRUNTIME} or later. pip install "onnxruntime>={LEAST_ONNXRUNTIME}"'
        )


def decide(network: Network, file: Path) -> Decision:
    """Classify one image. A file that cannot be used gives a Decision with a reason."""
    started = time.perf_counter()
    picture = opened(file, network.settings)
    path = os.fsencode(file).decode("utf-8", "replace")
    reason = picture.reason or unfit(picture, network.settings)
    if reason or picture.pixels is None:
        return Decision(path, picture.sha256, None, None, reason, time.perf_counter() - started)
    pixels = picture.pixels
    if network.settings["colour"] and pixels.ndim == 2:
        pixels = np.broadcast_to(pixels, (3, *pixels.shape))
    scores, decisions = network.session.run(
        ["score", "defective"], {"images": np.ascontiguousarray(pixels[None])}
    )
    seconds = time.perf_counter() - started
    return Decision(path, picture.sha256, float(scores[0]), bool(decisions[0]), "", seconds)


def decide_all(network: Network, files: Iterable[Path]) -> Iterator[Decision]:
    """Classify images in order."""
    return (decide(network, file) for file in files)


def watch(
    network: Network,
    folders: Sequence[Path],
    *,
    idle_s: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Decision]:
    """Classify the present and new images of folders when complete; a changed image again.

    Args:
        network: the opened export.
        folders: scanned every `POLL_S` seconds, with their subfolders.
        idle_s: stop after so many seconds without a new image; None: never stop.
        sleep, clock: time, in seconds.
    """
    decided: dict[Path, tuple[int, ...]] = {}
    waiting: dict[Path, tuple[tuple[int, ...], float]] = {}
    last = clock()
    while True:
        present = _stamps(folders)
        # forget removed files, or the dicts would grow without limit
        decided = {file: stamp for file, stamp in decided.items() if file in present}
        waiting = {file: seen for file, seen in waiting.items() if file in present}
        for file, stamp in present.items():
            if decided.get(file) == stamp:
                continue
            if file not in waiting or waiting[file][0] != stamp:
                waiting[file] = (stamp, clock())
                continue
            decision = decide(network, file)
            young = clock() - waiting[file][1] < GIVE_UP_S
            if image_files.stamp(file) != stamp or (decision.reason and young):
                continue
            decided[file] = stamp
            del waiting[file]
            last = clock()
            yield decision
        if idle_s is not None and not waiting and clock() - last >= idle_s:
            return
        sleep(POLL_S)


def _stamps(folders: Sequence[Path]) -> dict[Path, tuple[int, ...]]:
    return {
        file: stamp
        for folder in folders
        for file in image_files.below(folder)
        if (stamp := image_files.stamp(file))
    }


def opened(file: Path, settings: dict[str, Any]) -> decode.Picture:
    """Decode an image by the rules of the training."""
    return decode.decode(file, box=settings["letterbox_px"], rules=rules_of(settings))


def rules_of(settings: dict[str, Any]) -> PixelRules:
    """Return the rules of decision.json; an export before version 2 has the default ones."""
    rules = pixel_rules.from_record(settings.get("pixels", {}))
    return replace(rules, colour="colour") if settings["colour"] else rules


def unfit(picture: decode.Picture, settings: dict[str, Any]) -> str:
    """Return why a decoded image does not suit the network; empty if it does.

    Another size is resized; another aspect ratio, by over 1 %, would be distorted.
    """
    if picture.pixels is None:
        return picture.reason
    if picture.pixels.ndim == 3 and not settings["colour"]:
        return "a colour image; the network was trained on gray images"
    height, width = picture.pixels.shape[-2:]
    packed_height, packed_width = settings["packed_px"]
    if abs(height * packed_width - width * packed_height) > 0.01 * height * packed_width:
        return (
            f"{height} x {width} pixels; the network was trained on the aspect ratio of "
            f"{packed_height} x {packed_width}"
        )
    return ""
