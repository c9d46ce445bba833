"""What this machine has for a sweep and what it lacks, each with advice.

Input: the place of the results. Output: Findings. Trains nothing, uses no network, leaves nothing
behind.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

from casting_tune import machine
from casting_tune.errors import StoreError

IMPORTED = (
    "torch",
    "timm",
    "kornia",
    "ray.tune",
    "pyarrow",
    "duckdb",
    "pandas",
    "sklearn",
    "onnxruntime",
)
"""Modules that may fail to load although their versions fit, such as torch with torchvision."""

GIB = 2**30
# a worker with torch, timm, kornia and Ray takes 0.9 GiB before its first image
TRIAL_GIB, TIGHT_GIB = 1, 4
SHM_GIB = 1  # the real castings, packed, are 0.6 GiB
DISK_GIB = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was checked, its state, what was seen, and what to do if the state is not ok."""

    about: str
    state: Literal["ok", "warn", "fail"]
    seen: str
    way_out: str = ""


def examine(results: str) -> tuple[Finding, ...]:
    """Check libraries, CPUs, GPU, memory, results folder, weights and extras, in this order."""
    return (
        _python(), _libraries(), _imports(), _cpus(), _gpu(), _bf16(), _memory(), _shm(),
        _results(results), _disk(results), _weights(), _extras(),
    )  # fmt: skip


def _python() -> Finding:
    return Finding(
        about="Python",
        state="ok",
        seen=f"{platform.python_version()}, {platform.platform(terse=True)}",
    )


def _libraries() -> Finding:
    """Compare the version of every library with the requirements of casting-tune."""
    required = [
        wanted
        for wanted in _requirements()
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""})
    ]
    wrong = _unmet(required)
    shown = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "timm", "kornia", "ray")
        if not any(part.startswith(name) for part in wrong)
    )
    if wrong:
        return Finding(
            about="libraries",
            state="fail",
            seen="; ".join(wrong),
            way_out="pip install -U casting-tune",
        )
    return Finding(
        about="libraries",
        state="ok",
        seen=f"{shown} and {len(required) - 4} others meet the requirements",
    )


def _imports() -> Finding:
    broken = []
    for name in IMPORTED:
        if name == "onnxruntime" and importlib.util.find_spec(name) is None:
            continue  # an extra that is not installed
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken installation may raise anything
            broken.append(f"{name}: {_line(error)}")
    if broken:
        way_out = (
            "Reinstall these; a CPU-only torch requires the torchvision that was built for it."
        )
        return Finding(about="imports", state="fail", seen="; ".join(broken), way_out=way_out)
    return Finding(about="imports", state="ok", seen="every library loads")


def _cpus() -> Finding:
    mine, limits = machine.cpus(), machine.cpu_limits()
    limited = sorted(name for name, n_cpus in limits.items() if n_cpus < limits["affinity"])
    by = f", limited by {' and '.join(limited)}" if limited else ""
    seen = f"{mine} of {psutil.cpu_count() or 1} for this process{by}"
    return Finding(about="CPUs", state="ok", seen=f"{seen}; the sweep sets the threads of a trial")


def _gpu() -> Finding:
    if not machine.has_gpu_device():
        return Finding(about="GPU", state="ok", seen="none here: trials train on the CPU")
    try:
        import torch

        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    except Exception as error:  # a wrong driver may raise anything, or torch does not load
        return Finding(
            about="GPU",
            state="fail",
            seen=_line(error),
            way_out="Repair the GPU driver (check with nvidia-smi).",
        )
    if not gpus and sys.platform == "linux":
        way_out = (
            "Install a torch for this GPU and a matching driver; else trials train on the CPU."
        )
        return Finding(
            about="GPU",
            state="warn",
            seen="there is a device, but torch does not see it",
            way_out=way_out,
        )
    seen = ", ".join(f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB" for gpu in gpus)
    return Finding(about="GPU", state="ok", seen=seen or "none here: trials train on the CPU")


def _bf16() -> Finding:
    seen = (
        "available: networks that gain use bf16 on the CPU"
        if machine.cpu_has_bf16()
        else "not available: the CPU uses fp32"
    )
    return Finding(about="bf16 instructions", state="ok", seen=seen)


def _memory() -> Finding:
    free_gib = machine.free_bytes() / GIB
    seen = f"{free_gib:.1f} GiB free of {psutil.virtual_memory().total / GIB:.1f}"
    if free_gib >= TIGHT_GIB:
        return Finding(about="memory", state="ok", seen=seen)
    way_out = "Close other programs, or use --trials-at-once 1."
    return Finding(
        about="memory",
        state="warn" if free_gib >= TRIAL_GIB else "fail",
        seen=seen,
        way_out=way_out,
    )


def _shm() -> Finding:
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding(
            about="/dev/shm",
            state="ok",
            seen="not on this system: Ray stores its objects elsewhere",
        )
    free_gib = shutil.disk_usage(place).free / GIB
    seen = f"{free_gib:.1f} GiB free for the images that all trials share"
    if free_gib >= SHM_GIB:
        return Finding(about="/dev/shm", state="ok", seen=seen)
    way_out = (
        "In a container: --shm-size=4g. Until then Ray shares them on the disk, which is slow."
    )
    return Finding(about="/dev/shm", state="warn", seen=seen, way_out=way_out)


def _results(results: str) -> Finding:
    """Write to the store once, and delete the folders that this creates."""
    from casting_tune.store.store import Store

    store = Store(results)
    made = [folder for folder in (store.root, *store.root.parents) if not folder.exists()]
    try:
        store.check_writable()
    except StoreError as error:
        return Finding(about="results", state="fail", seen=str(error), way_out="")
    finally:
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            for folder in made:
                folder.rmdir()
    return Finding(about="results", state="ok", seen=f"'{results}' can be written")


def _disk(results: str) -> Finding:
    from casting_tune.store.store import Store

    root = Store(results).absolute().root
    place = next(folder for folder in (root, *root.parents) if folder.exists())
    free_gib = shutil.disk_usage(place).free / GIB
    seen = f"{free_gib:.1f} GiB free for packs, checkpoints and rows"
    if free_gib >= DISK_GIB:
        return Finding(about="disk", state="ok", seen=seen)
    return Finding(
        about="disk",
        state="warn",
        seen=seen,
        way_out="Delete files, or use another folder: --results.",
    )


def _weights() -> Finding:
    from casting_tune.models import build

    try:
        cached = build.cached()
    except Exception as error:  # timm does not load: see `imports`
        return Finding(about="weights", state="fail", seen=_line(error), way_out="See imports.")
    absent = [name for name, is_here in cached.items() if not is_here]
    if not absent:
        return Finding(
            about="weights",
            state="ok",
            seen=f"all {len(cached)} pretrained backbones are in the cache",
        )
    way_out = (
        'A sweep with weights = "imagenet" downloads them first; without a network, fill the cache '
        "elsewhere and set HF_HOME."
    )
    seen = f"none of {len(cached)} pretrained backbones is in the cache"
    if len(absent) < len(cached):
        n_here = len(cached) - len(absent)
        seen = (
            f"{n_here} of {len(cached)} pretrained backbones are in the cache; "
            f"not {', '.join(absent)}"
        )
    return Finding(about="weights", state="warn", seen=seen, way_out=way_out)


def _extras() -> Finding:
    """List the complete extras; a sweep requires none of them."""
    here: list[str] = []
    absent: list[str] = []
    for extra in importlib.metadata.metadata("casting-tune").get_all("Provides-Extra") or []:
        if extra != "test":
            wanted = [
                wanted
                for wanted in _requirements()
                if wanted.marker is not None
                and wanted.marker.evaluate({"extra": extra})
                and not wanted.marker.evaluate({"extra": ""})
            ]
            (absent if _unmet(wanted) else here).append(extra)
    seen = f"installed: {', '.join(here) or 'none'}; not installed: {', '.join(absent) or 'none'}"
    way_out = f'To install them: pip install "casting-tune[{",".join(absent)}]"' if absent else ""
    return Finding(about="extras", state="ok", seen=seen, way_out=way_out)


def _requirements() -> list[Requirement]:
    return [Requirement(text) for text in importlib.metadata.requires("casting-tune") or []]


def _unmet(required: list[Requirement]) -> list[str]:
    """Return a line for each library that is missing or has another version."""
    lines = []
    for wanted in required:
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{wanted.name} is not installed")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            lines.append(f"{wanted.name} is {version}, not {wanted.specifier}")
    return lines


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
