from __future__ import annotations

import errno
import sys

import numpy as np
import psutil
import pytest
import torch

from casting_tune.config import UNLIMITED, Allowance
from casting_tune.training import memory

linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells and limits a process's own memory"
)
MIB = 2**20


def held() -> int:
    memory.reset_peak(torch.device("cpu"))
    found = memory.peak(torch.device("cpu"))
    assert found is not None
    return found


@linux
def test_the_peak_is_what_was_held_since_the_reset() -> None:
    before = held()
    block = np.ones(512 * MIB, np.uint8)
    # An allocator may return some of what an earlier test freed at the same time: 10 MiB were seen.
    assert (memory.peak(torch.device("cpu")) or 0) - before >= 384 * MIB
    del block


@linux
@pytest.mark.parametrize(
    "ask", [lambda: torch.ones(512 * MIB, dtype=torch.uint8), lambda: np.ones(512 * MIB, np.uint8)]
)
def test_who_asks_for_more_than_the_limit_gets_an_error_that_says_so(ask: object) -> None:
    with memory.limited(held() + 128 * MIB), pytest.raises((RuntimeError, MemoryError)) as refused:
        ask()  # type: ignore[operator]
    assert memory.is_shortage(refused.value)


@linux
def test_less_than_the_limit_is_given_and_the_limit_goes_with_the_block() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory.limited(held() + 512 * MIB):
        torch.ones(64 * MIB, dtype=torch.uint8)
        assert resource.getrlimit(resource.RLIMIT_DATA) != before
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        *map(
            RuntimeError,
            (
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
                "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
                "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, "
                "when calling `cusolverDnCreate(handle)`",
                "cuFFT error: CUFFT_ALLOC_FAILED",
                "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
                "CUDA driver error: out of memory",
                "HIP out of memory. Tried to allocate 20.00 MiB",
                "CUDA error: cudaErrorMemoryAllocation",
                "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: "
                "can't allocate memory: you",
                "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: "
                "not enough memory: you tried",
                "unable to mmap 4096 bytes from file </x>: Cannot allocate memory (12)",
                "could not create a primitive",
                "std::bad_alloc",
            ),
        ),
    ],
    ids=str,
)
def test_memory_that_ran_out_is_a_shortage_whoever_says_so(error: Exception) -> None:
    assert memory.is_shortage(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        ValueError("out of memory"),
        OSError(errno.ENOENT, "No such file or directory"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=str,
)
def test_another_error_is_no_shortage(error: Exception) -> None:
    assert not memory.is_shortage(error)


def test_the_memory_of_the_machine_is_what_the_system_says() -> None:
    assert memory.total(torch.device("cpu")) == psutil.virtual_memory().total


def test_a_share_limits_the_allocator_to_what_its_context_leaves_and_no_longer_than_the_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[float] = []
    monkeypatch.setattr(memory, "total", lambda _: 3 * 2**30)
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", limits.append)
    with memory.shared(torch.device("cuda"), 0.5):
        assert limits == [0.25]  # the context takes a quarter of these 3 GiB
    assert limits == [0.25, 1.0]
    with memory.shared(torch.device("cuda"), 1.0), memory.shared(torch.device("cpu"), 0.5):
        assert limits == [0.25, 1.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_no_more_than_the_share() -> None:
    cuda = torch.device("cuda")
    with memory.shared(cuda, 0.5), pytest.raises(torch.OutOfMemoryError):
        torch.empty(int(0.6 * memory.total(cuda)), dtype=torch.uint8, device=cuda)


GIB = 2**30


@pytest.mark.parametrize(
    ("n_bytes", "on_disk", "where"),
    [
        (2 * GIB, True, "device"),
        (2 * GIB + 1, True, "disk"),
        (2 * GIB + 1, False, "memory"),
    ],
)
def test_images_stay_on_the_device_if_they_take_at_most_half_of_its_free_memory(
    n_bytes: int, on_disk: bool, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free", lambda *_, **__: 4 * GIB)
    found = memory.images_from(
        n_bytes,
        device=torch.device("cpu"),
        allowance=UNLIMITED,
        n_at_once=1,
        on_disk=on_disk,
    )
    assert found == where


def test_images_may_take_more_of_a_share_of_a_gpu_that_was_measured_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "free", lambda *_, **__: 10 * GIB)
    found = [
        memory.images_from(
            n_gib * GIB,
            device=torch.device("cuda"),
            allowance=Allowance(gpu_share=share),
            n_at_once=4,
            on_disk=True,
        )
        for n_gib, share in ((8, 0.25), (9, 0.25), (6, 1.0))
    ]
    assert found == ["device", "disk", "disk"]


def test_trials_at_once_share_the_free_memory_of_a_machine_without_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "_left_of_limits", lambda: None)
    monkeypatch.setattr("casting_tune.machine.cpus", lambda: 8)
    monkeypatch.setattr("casting_tune.machine.free_bytes", lambda: 16 * GIB)
    cpu = torch.device("cpu")
    assert memory.free(cpu, n_at_once=4) == 4 * GIB
    assert memory.free(cpu, n_at_once=1000) == 2 * GIB  # a cluster; 8 of them at most are here


@linux
def test_free_memory_is_what_the_limit_of_the_process_leaves() -> None:
    with memory.limited(held() + 256 * MIB):
        free = memory.free(torch.device("cpu"))
        block = torch.ones(128 * MIB, dtype=torch.uint8)
        less = memory.free(torch.device("cpu"))
    del block
    assert 192 * MIB < free <= 256 * MIB
    assert 120 * MIB < free - less < 136 * MIB
