from __future__ import annotations

import sys

import numpy as np
import psutil
import pytest
import torch

from casting_tune import memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and limits a process's own memory")
MIB = 2**20


def held() -> int:
    memory.reset_peak(torch.device("cpu"))
    found = memory.peak(torch.device("cpu"))
    assert found is not None
    return found


@linux
def test_the_peak_is_what_was_held_since_the_reset() -> None:
    before = held()
    block = np.ones(64 * MIB, np.uint8)
    assert (memory.peak(torch.device("cpu")) or 0) - before >= 60 * MIB
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


def test_another_error_is_no_shortage() -> None:
    assert memory.is_shortage(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not memory.is_shortage(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"))
    assert not memory.is_shortage(ValueError("out of memory"))


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
