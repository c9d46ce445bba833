from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path

import pytest

from casting_tune import machine

GIB = 2**30
Memory = namedtuple("Memory", ["total", "available"])


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on 8 cores with 16 GiB free, outside Slurm."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory(32 * GIB, 16 * GIB))
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)


def system(root: Path, files: dict[str, str]) -> Path:
    """Write files of the operating system below a folder."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_limits_all_cores_of_the_affinity_count(tmp_path: Path) -> None:
    assert machine.cpu_limits(tmp_path) == {"affinity": 8}
    assert machine.cpus(tmp_path) == 8


@pytest.mark.parametrize(
    ("files", "n_cpus"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (
            {  # nested: the group above is the tighter one
                "proc/self/cgroup": "0::/user.slice/run.scope\n",
                "sys/fs/cgroup/user.slice/run.scope/cpu.max": "600000 100000\n",
                "sys/fs/cgroup/user.slice/cpu.max": "300000 100000\n",
            },
            3,
        ),
        (
            {  # the path of the host, of which a container sees the top only
                "proc/self/cgroup": "0::/docker/0123\n",
                "sys/fs/cgroup/cpu.max": "400000 100000\n",
            },
            4,
        ),
        (
            {"proc/self/cgroup": "0::/../other\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"},
            4,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/box\n4:cpu,cpuacct:/box\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "500000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            5,
        ),
    ],
)
def test_the_quota_of_a_container_limits_the_cpus(
    files: dict[str, str], n_cpus: int, tmp_path: Path
) -> None:
    assert machine.cpus(system(tmp_path, files)) == n_cpus


def test_slurm_gives_the_cpus_of_the_task_before_those_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "6")
    assert machine.cpus(tmp_path) == 6
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert machine.cpu_limits(tmp_path) == {"affinity": 8, "Slurm": 3}
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "16")  # more than this process may run on
    assert machine.cpus(tmp_path) == 8
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "many")
    assert machine.cpus(tmp_path) == 8


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 16 * GIB),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 16 * GIB),
        (
            {
                "proc/self/cgroup": "0::/box\n",
                "sys/fs/cgroup/box/memory.max": str(4 * GIB),
                "sys/fs/cgroup/box/memory.current": str(3 * GIB),
                "sys/fs/cgroup/box/memory.stat": f"anon 5\ninactive_file {2 * GIB}\n",
            },
            3 * GIB,
        ),
        (
            {
                "proc/self/cgroup": "3:memory:/box/inner\n0::/\n",
                "sys/fs/cgroup/memory/box/inner/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/box/inner/memory.usage_in_bytes": str(GIB),
                "sys/fs/cgroup/memory/box/memory.limit_in_bytes": str(4 * GIB),
                "sys/fs/cgroup/memory/box/memory.usage_in_bytes": str(3 * GIB),
                "sys/fs/cgroup/memory/box/memory.stat": (
                    f"inactive_file 1\ntotal_inactive_file {GIB}\n"
                ),
            },
            2 * GIB,
        ),
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": str(GIB),
                "sys/fs/cgroup/memory.current": str(2 * GIB),
            },
            0,
        ),
    ],
)
def test_free_memory_is_what_the_tightest_limit_leaves(
    files: dict[str, str], free: int, tmp_path: Path
) -> None:
    assert machine.free_bytes(system(tmp_path, files)) == free


def test_a_gpu_is_possible_where_linux_has_a_device_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert not machine.has_gpu_device(system(tmp_path, {"dev/nvidiactl": ""}))
    for name in ("nvidia0", "kfd", "dxg"):
        assert machine.has_gpu_device(system(tmp_path / name, {f"dev/{name}": ""}))


def test_bf16_is_read_from_the_flags_of_the_cpu(tmp_path: Path) -> None:
    assert machine.cpu_has_bf16(tmp_path) is None
    for flags, has in (("fpu avx512_bf16", True), ("fpu amx_bf16", True), ("fpu avx2", False)):
        root = system(tmp_path, {"proc/cpuinfo": f"model name: x\nflags\t\t: {flags}\n"})
        assert machine.cpu_has_bf16(root) is has
