"""How much memory a device has and a trial takes, and limits that end the trial alone.

Comes in: a device, bytes. Goes out: bytes; an error in the trial that asks for more than its limit.
Knows no trials.
"""

from __future__ import annotations

import contextlib
import errno
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

CONTEXT_BYTES = 768 * 2**20
"""What a process holds of a GPU beside torch's tensors: the CUDA context and the kernels that are loaded into it.

torch's own figures leave it out. 595 MiB after one matrix product (NVIDIA H100, driver 580, torch
2.11, CUDA 13); the rest is for kernels that are loaded later.
"""

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
"""How libraries word an allocation that was refused, in lower case; none of these raises torch.OutOfMemoryError."""


def reset_peak(device: torch.device) -> None:
    """Forget the most bytes held so far."""
    import torch

    if device.type == "cuda":
        gc.collect()  # recordings and networks of the trial before
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(
            OSError
        ):  # Linux alone: "5" resets this process's own peak (proc(5), clear_refs)
            Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int | None:
    """Return the most bytes held since the reset: of the GPU, or of this process's resident memory (None: unknown).

    Of a GPU it is what torch reserved, since a recorded step keeps its memory between two replays.
    """
    import torch

    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else _status("VmHWM")


def total(device: torch.device) -> int:
    """Return the bytes of a device: of the GPU (or the part of one) that this process sees first, or of the machine."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return psutil.virtual_memory().total


@contextlib.contextmanager
def shared(device: torch.device, share: float) -> Iterator[None]:
    """Let this process hold at most a share of the GPU's memory, its context included; 1 or more is no limit.

    Beyond that torch frees what it only keeps, and then the trial that asks runs out of memory, not
    its neighbours.
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
    """Let this process hold at most so many bytes of its own, as far as the system can tell; None is no limit.

    The kernel refuses what goes beyond (setrlimit(2), RLIMIT_DATA: private writable memory, so
    images that are shared between processes do not count), and the library that asked raises: see
    `is_shortage`. Linux alone; elsewhere, and where the process holds more already, nothing is
    limited.
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
    """Say whether an error means that memory ran out, of the GPU or of the machine."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM  # fork(2), mmap(2)
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def _status(name: str) -> int | None:
    """Return a figure of this process in bytes as Linux tells it, None elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
