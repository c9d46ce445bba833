from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from casting_tune import machine
from casting_tune.execution import doctor
from casting_tune.execution.doctor import Finding
from casting_tune.models import build
from tests.cli.test_main import call

Usage = namedtuple("Usage", ["total", "used", "free"])
Memory = namedtuple("Memory", ["total", "available"])


def finding(results: Path, about: str) -> Finding:
    (found,) = [one for one in doctor.examine(str(results)) if one.about == about]
    return found


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load one library instead of all, and ask timm nothing."""
    monkeypatch.setattr(doctor, "IMPORTED", ("json",))
    monkeypatch.setattr(build, "cached", lambda: {"vgg16": True, "resnet50": False})


def test_a_sound_machine_exits_0_and_its_findings_come_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "doctor", "--results", tmp_path / "a" / "b", "--json")
    found = json.loads(out)
    assert (code, err, found["failed"]) == (0, "", 0)
    assert [one["about"] for one in found["findings"]][:3] == ["Python", "libraries", "imports"]
    assert not (tmp_path / "a").exists()  # it leaves nothing behind
    code, out, _ = call(capsys, "doctor", "--results", tmp_path)
    assert code == 0
    assert "in the cache; not resnet50" in " ".join(out.split())


def test_a_results_folder_that_cannot_be_written_is_named_and_exits_7(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    code, out, _ = call(capsys, "doctor", "--results", tmp_path / "file" / "results")
    assert code == 7
    assert "fail" in out
    assert "cannot be written" in " ".join(out.split())
    assert "1 of 12 checks failed: exit code 7." in out


@pytest.mark.parametrize(
    ("requested", "seen"),
    [
        ("nowhere-at-all>=1", "nowhere-at-all is not installed"),
        ("timm>=99", "timm is "),
        ("timm>=0.1,<0.2", "not <0.2"),
    ],
)
def test_a_library_that_is_absent_or_too_old_fails_and_is_named(
    requested: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["torch>=2", requested])
    found = finding(tmp_path, "libraries")
    assert (found.state, seen in found.seen, found.way_out[:11]) == ("fail", True, "pip install")


def test_a_library_that_does_not_load_fails_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_wheel.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "IMPORTED", ("json", "broken_wheel"))
    found = finding(tmp_path, "imports")
    assert found.state == "fail"
    assert found.seen == "broken_wheel: RuntimeError: operator torchvision::nms does not exist"


@pytest.mark.parametrize(("free_gib", "state"), [(0.5, "fail"), (2, "warn"), (8, "ok")])
def test_memory_is_enough_scarce_or_too_little(
    free_gib: float, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "psutil.virtual_memory", lambda: Memory(total=16 * 2**30, available=int(free_gib * 2**30))
    )
    assert finding(tmp_path, "memory").state == state


def test_little_shared_memory_and_a_full_disk_are_warnings_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(2**36, 2**36 - 2**26, 2**26))
    for about, way_out in (("/dev/shm", "--shm-size"), ("disk", "--results")):
        found = finding(tmp_path, about)
        assert (found.state, way_out in found.way_out) == ("warn", True)


@pytest.mark.parametrize(
    ("limits", "seen"),
    [
        ({"affinity": 8}, "8 of 8 for this process;"),
        ({"affinity": 8, "container": 2.5}, "2 of 8 for this process, limited by container;"),
        (
            {"affinity": 8, "container": 4.0, "Slurm": 3},
            "3 of 8 for this process, limited by Slurm and container;",
        ),
    ],
)
def test_cpus_are_shown_with_the_rules_that_limit_them(
    limits: dict[str, float], seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda: 8)
    monkeypatch.setattr(machine, "cpu_limits", lambda root=None: limits)
    assert finding(tmp_path, "CPUs").seen.startswith(seen)


def test_a_gpu_device_that_torch_does_not_see_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "has_gpu_device", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert finding(tmp_path, "GPU").state == "warn"
    monkeypatch.setattr(machine, "has_gpu_device", lambda: False)
    assert finding(tmp_path, "GPU").state == "ok"


def test_weights_that_are_not_in_the_cache_are_named(tmp_path: Path) -> None:
    found = finding(tmp_path, "weights")
    assert found.state == "warn"
    assert found.seen == "1 of 2 pretrained backbones are in the cache; not resnet50"


def test_an_extra_is_installed_only_if_all_its_libraries_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = [
        "torch>=2",
        'pytest>=1; extra == "export"',
        'pytest>=1; extra == "wandb"',
        'none-x; extra == "wandb"',
    ]
    monkeypatch.setattr(doctor, "_requirements", lambda: [Requirement(text) for text in wanted])

    class Metadata:
        def get_all(self, name: str) -> list[str]:
            return ["export", "wandb", "test"]

    monkeypatch.setattr("importlib.metadata.metadata", lambda name: Metadata())
    found = doctor._extras()
    assert found.seen == "installed: export; not installed: wandb"
    assert 'pip install "casting-tune[wandb]"' in found.way_out
