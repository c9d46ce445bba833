"""Memory of a device and of a trial, and limits that end only the trial.

Input: a device, bytes. Output: bytes; an error in the trial that exceeds its limit.
Does not know trials.
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
"""GPU memory of a process in addition to torch's tensors: the CUDA context and its kernels.

torch does not count it. 595 MiB after one matrix product (NVIDIA H100, driver 580, torch
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
