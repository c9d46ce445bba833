"""What this machine gives to a run: CPUs, a GPU, bf16 instructions, free memory, the git commit.

Input: files of the operating system and variables of Slurm. Output: numbers. Every command asks
here, so that `doctor`, plans and runs agree.
"""

from __future__ import annotations

import importlib.resources
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

ROOT = Path("/")
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def cpus(root: Path = ROOT) -> int:
    """Return how many CPUs this process may use: the smallest of `cpu_limits`, at least 1."""
    return max(1, int(min(cpu_limits(root).values())))


def cpu_limits(root: Path = ROOT) -> dict[str, float]:
    """Return the CPUs that each rule grants this process.

    Args:
        root: folder that has proc and sys.

    Returns:
        "affinity": cores that the process may run on. "container": quota of its control groups
        and of those above them, versions 1 and 2; may be a fraction. "Slurm": CPUs of its task, or
        of its job on this node. Only affinity is always present.
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux
    limits: dict[str, float] = {
        "affinity": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    }
    quotas = list(_cpu_quotas(root))
    if quotas:
        limits["container"] = min(quotas)
    slurm = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE", "")
    if slurm.isdigit():
        limits["Slurm"] = int(slurm)
    return limits


def free_bytes(root: Path = ROOT) -> int:
    """Return the memory that this process may still use, in bytes.

    It is the free memory of the machine, or less if a control group limits it: the limit minus what
    is used, without cached files that the kernel would give up.
    """
    free: int = psutil.virtual_memory().available
    for folder in _groups(root, "memory"):
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        if limit and limit[0].isdigit():
            used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
            free = min(free, int(limit[0]) - int((used or ["0"])[0]) + _cached_bytes(folder))
    return max(0, free)


def has_gpu_device(root: Path = ROOT) -> bool:
    """Return whether this machine may have a GPU; a Linux without a device file has none."""
    devices = ("nvidia[0-9]*", "dxg", "kfd")  # of CUDA, of WSL, of ROCm
    return sys.platform != "linux" or any(any((root / "dev").glob(name)) for name in devices)


def cpu_has_bf16(root: Path = ROOT) -> bool | None:
    """Return whether this CPU has bf16 instructions, from /proc/cpuinfo; None: unknown."""
    for line in _lines(root / "proc/cpuinfo"):
        if line.startswith("flags"):
            return not BF16_FLAGS.isdisjoint(line.split())
    return None


def git_commit() -> str | None:
    """Return the commit of the checkout of casting_tune; None: installed without one."""
    here = Path(str(importlib.resources.files("casting_tune")))
    if not (here.parent / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups, and of those above them.

    Version 2 has one hierarchy (line `0::/path`), version 1 one for each controller, alone
    (`3:memory:/path`) or together (`4:cpu,cpuacct:/path`): cgroups(7). In a container the path may
    be that of the host, where only the top exists.
    """
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        group = PurePosixPath(path.lstrip("/"))
        for mount in {controllers, controller if controllers else ""}:
            for part in (group, *group.parents):
                if ".." not in part.parts:  # above the container's own top
                    yield root / "sys/fs/cgroup" / mount / part


def _cpu_quotas(root: Path) -> Iterator[float]:
    for folder in _groups(root, "cpu"):
        words = _words(folder / "cpu.max") or (
            _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        )
        if len(words) == 2 and words[0].isdigit():  # "max" or -1: no limit
            yield int(words[0]) / int(words[1])


def _cached_bytes(folder: Path) -> int:
    """Return the bytes of files that a control group has read and does not use."""
    stat = dict(line.split(maxsplit=1) for line in _lines(folder / "memory.stat"))
    return int(stat.get("total_inactive_file") or stat.get("inactive_file") or 0)


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
