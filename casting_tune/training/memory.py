"""Memory of a device and of a trial, and limits that end only the trial.

Input: a device, bytes, limits. Output: bytes; where the images of a trial are; an error in the
trial that exceeds its limit. Does not know trials.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from casting_tune import machine
from casting_tune.config import Allowance

if TYPE_CHECKING:
    import torch

CONTEXT_BYTES = 768 * 2**20
"""GPU memory of a process in addition to torch's tensors: the CUDA context and its kernels.

torch does not count it. 595 MiB after one matrix product (NVIDIA H100, driver 580, torch
2.11, CUDA 13); the rest is for kernels that are loaded later.
"""

IMAGES_SHARE = 0.5
"""The images stay on a device if they take at most this share of its free memory.

The rest is for the network. The share of a GPU that `gpu_sharing` gives to a trial was measured
with the images, so they may take 0.8 of it (1 / `gpu_sharing.MARGIN`).
"""
MEASURED_SHARE = 0.8

ImagesFrom = Literal["device", "memory", "disk"]
"""From where a trial reads its images: all on its device; or batches, from memory or a file."""

_SIGNS = (
    # torch: the CPU allocator on Linux and on Windows, CUDA, HIP, a mapped file
    "can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory",
    # torch 2.15 passes on what a library of CUDA or ROCm says: CUBLAS_STATUS_ALLOC_FAILED,
    # CUDNN_STATUS_ALLOC_FAILED, CUFFT_ALLOC_FAILED,
    # CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED, cudaErrorMemoryAllocation
    "alloc_failed", "allocation_failed", "errormemoryallocation",
    # oneDNN; the C++ library
    "could not create a primitive", "bad_alloc", "bad allocation",
)  # fmt: skip
"""Texts of a failed allocation, in lower case; none of these raises torch.OutOfMemoryError."""


def reset_peak(device: torch.device) -> None:
    """Forget the most bytes held so far."""
    import torch

    if device.type == "cuda":
        gc.collect()  # recordings and networks of the trial before
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Linux only: "5" resets the peak of this process (proc(5), clear_refs)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int | None:
    """Return the peak since the reset: bytes of the GPU, or of this process; None: unknown.

    On a GPU it is the memory that torch reserved, because a recorded step keeps its memory between
    two replays.
    """
    import torch

    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else _status("VmHWM")


def total(device: torch.device) -> int:
    """Return the bytes of the first visible GPU (or part of one), or of the machine."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return psutil.virtual_memory().total


def images_from(
    n_bytes: int, *, device: torch.device, allowance: Allowance, n_at_once: int, on_disk: bool
) -> ImagesFrom:
    """Return from where a trial reads its images; its results do not depend on it.

    Args:
        n_bytes: of the images of the trial, at the size of the network's input.
        device: of the trial; its network is there already.
        allowance: limits of the trial.
        n_at_once: trials that may run at the same time.
        on_disk: whether the pack is a file, not an array in memory.
    """
    most = allowance.images_bytes
    if most is None:
        measured = device.type == "cuda" and allowance.gpu_share < 1
        share = MEASURED_SHARE if measured else IMAGES_SHARE
        most = int(share * free(device, gpu_share=allowance.gpu_share, n_at_once=n_at_once))
    if n_bytes <= most:
        return "device"
    return "disk" if on_disk else "memory"


def free(device: torch.device, *, gpu_share: float = 1.0, n_at_once: int = 1) -> int:
    """Return the bytes that a trial can still allocate on a device, by all limits that are known.

    Without a limit of the process, trials of one machine share the free memory equally.
    """
    import torch

    if device.type == "cuda":
        available, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        own = total(device) * gpu_share - CONTEXT_BYTES - torch.cuda.memory_allocated(device)
        return int(max(0, min(available + unused, own if gpu_share < 1 else math.inf)))
    left = _left_of_limits()
    if left is None:
        return machine.free_bytes() // min(n_at_once, machine.cpus())
    return min(left, machine.free_bytes())


def _left_of_limits() -> int | None:
    """Return the bytes that the limits of this process leave (setrlimit(2)); None: no limit."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    left = []
    for limit, used in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        soft, held = resource.getrlimit(limit)[0], _status(used)
        if soft != resource.RLIM_INFINITY and held is not None:
            left.append(max(0, soft - held))
    return min(left, default=None)


@contextlib.contextmanager
def shared(device: torch.device, share: float) -> Iterator[None]:
    """Limit this process to a share of the GPU's memory, its context included; 1: no limit.

    Beyond that torch frees its cache; then this trial runs out of memory, not its neighbours.
    """
    if device.type != "cuda" or share >= 1:
        yield
        return
    import torch

    torch.cuda.set_per_process_memory_fraction(max(0.0, share - CONTEXT_BYTES / total(device)))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@contextlib.contextmanager
def limited(limit_bytes: int | None) -> Iterator[None]:
    """Limit the private memory of this process; None: no limit.

    The kernel refuses further allocations (setrlimit(2), RLIMIT_DATA: private writable memory, so
    images that processes share do not count), and the library raises: see `is_shortage`. Linux
    only; other systems have no limit and neither does a process that already uses more.
    """
    held, mapped = _status("VmRSS"), _status("VmData")
    if limit_bytes is None or held is None or mapped is None or held >= limit_bytes:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = mapped + limit_bytes - held
    resource.setrlimit(
        resource.RLIMIT_DATA,
        (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard),
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def is_shortage(error: Exception) -> bool:
    """Return whether an error means that the GPU or the machine is out of memory."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM  # fork(2), mmap(2)
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def _status(name: str) -> int | None:
    """Return a value of /proc/self/status in bytes; None: not on Linux."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
