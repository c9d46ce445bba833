"""A drawn set three times larger than the memory limit of the process trains to the end."""

from __future__ import annotations

import pytest

from tests.benchmarks import larger_than_memory

MIB = 2**20


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_set_three_times_larger_than_the_limit_trains_to_the_end_with_flat_memory() -> None:
    found = larger_than_memory.measure(
        n_images=10_000, size_px=512, px=32, repeats=1, limit_gib=None
    )  # 2.4 GiB; it raises unless both ways give the same scores
    (run,) = found["runs"]["disk"]
    assert found["pack_bytes"] >= 3 * found["limit_bytes"]
    assert run["images_from"] == "disk"
    assert run["peak_bytes"] <= found["limit_bytes"]
    assert run["grown_bytes"] < 64 * MIB
    assert found["packing"]["peak_bytes"] < found["limit_bytes"]
