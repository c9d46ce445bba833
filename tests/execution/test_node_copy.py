from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from casting_tune.data.pack import Pack
from casting_tune.data.pixel_source import file_of
from casting_tune.errors import ResourcesError
from casting_tune.execution import node_copy, nodes, ray_cluster
from casting_tune.execution.node_copy import PackFile, Read, Source


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """The driver's file of images: 30 images of 100 x 100, of random levels."""
    file = tmp_path / "driver" / "castings.npy"
    file.parent.mkdir()
    np.save(file, np.random.default_rng(0).integers(0, 256, (30, 100, 100), dtype=np.uint8))
    return file


def source_of(file: Path, *, path: Path | None = None) -> Source:
    """The source of a file; `path` is where another node looks for it."""
    return Source(
        file=path or file, n_bytes=file.stat().st_size, digest=node_copy.digest(file), node="n"
    )


class Driver:
    """Answers requests for bytes of a file, and counts them."""

    def __init__(self, file: Path) -> None:
        self.content, self.asked = file.read_bytes(), 0

    def read(self, offset: int, n_bytes: int) -> bytes:
        self.asked += 1
        return self.content[offset : offset + n_bytes]

    def reader(self) -> Read:
        return self.read


def test_a_node_that_sees_the_file_of_the_driver_makes_no_copy(
    driver: Path, tmp_path: Path
) -> None:
    there = Driver(driver)
    found = node_copy.node_file(source_of(driver), tmp_path / "node", read=there.reader)
    assert (found, there.asked, (tmp_path / "node").exists()) == (driver, 0, False)


def test_each_of_two_nodes_fetches_one_copy_and_keeps_it(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_copy, "CHUNK", 100_000)  # the file has 300,128 bytes: four chunks
    there, hidden = Driver(driver), source_of(driver, path=tmp_path / "nowhere" / "castings.npy")
    for node in ("one", "two"):
        before = there.asked
        first, second = (
            node_copy.node_file(hidden, tmp_path / node, read=there.reader) for _ in range(2)
        )
        assert first == second
        assert first.parent == tmp_path / node
        assert first.read_bytes() == driver.read_bytes()
        assert there.asked - before == 4
        assert [file.name for file in first.parent.glob("*")] in (
            [first.name, f".{hidden.digest}.lock"],
            [f".{hidden.digest}.lock", first.name],
        )


def test_workers_of_a_node_that_start_at_once_fetch_one_copy(driver: Path, tmp_path: Path) -> None:
    there, hidden = Driver(driver), source_of(driver, path=tmp_path / "nowhere")
    found: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(
                node_copy.node_file(hidden, tmp_path / "node", read=there.reader)
            )
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(set(found)), len(found), there.asked) == (1, 4, 1)


@pytest.mark.parametrize("damage", ["shorter", "other levels"])
def test_a_file_at_the_path_with_other_content_is_not_used(
    driver: Path, tmp_path: Path, damage: str
) -> None:
    content = driver.read_bytes()
    other = content[:-1] if damage == "shorter" else content[:-5000] + bytes(5000)
    path = tmp_path / "castings.npy"
    path.write_bytes(other)
    found = node_copy.node_file(
        source_of(driver, path=path), tmp_path / "node", read=Driver(driver).reader
    )
    assert found.read_bytes() == content
    assert path.read_bytes() == other


def test_a_damaged_copy_of_the_node_is_fetched_again(driver: Path, tmp_path: Path) -> None:
    there, hidden = Driver(driver), source_of(driver, path=tmp_path / "nowhere")
    copy = node_copy.node_file(hidden, tmp_path / "node", read=there.reader)
    copy.write_bytes(b"half")
    assert node_copy.node_file(hidden, tmp_path / "node", read=there.reader) == copy
    assert copy.read_bytes() == driver.read_bytes()


def test_a_disk_that_is_too_small_for_a_copy_is_named_with_the_bytes_that_it_needs(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 2**28})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    large = replace(source_of(driver, path=tmp_path / "nowhere"), n_bytes=2**30)
    with pytest.raises(ResourcesError, match=r"need 1\.00 GiB .* has 0\.25 GiB free\. Free disk"):
        node_copy.node_file(large, tmp_path / "node", read=Driver(driver).reader)
    assert not list((tmp_path / "node").glob("*.npy"))


def test_a_folder_for_copies_that_cannot_be_written_is_named(driver: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    hidden = source_of(driver, path=tmp_path / "nowhere")
    with pytest.raises(ResourcesError, match=r"cannot be copied to .*XDG_CACHE_HOME"):
        node_copy.node_file(hidden, tmp_path / "file" / "node", read=Driver(driver).reader)


class Cluster:
    """A Ray of one node with an object store of so many bytes."""

    def __init__(self, n_bytes: float) -> None:
        self.n_bytes = n_bytes

    def nodes(self) -> list[dict[str, object]]:
        has = {"object_store_memory": self.n_bytes, "CPU": 1.0}
        return [{"NodeID": "n", "Alive": True, "Resources": has}]

    def get_runtime_context(self) -> Cluster:
        return self

    def get_node_id(self) -> str:
        return "n"


def test_a_pack_travels_without_its_pixels_and_a_worker_sees_them_all(packed: Pack) -> None:
    travels = nodes.sendable(Cluster(1e12), packed, here=True)
    assert isinstance(travels, PackFile)
    assert travels.pack.images.nbytes == 0
    there = node_copy.opened(travels)
    np.testing.assert_array_equal(there.images, packed.images)
    assert file_of(there.images) == file_of(packed.images)
    assert not there.images.flags.writeable
    assert there.dataset_id == packed.dataset_id


def test_on_a_cluster_images_that_fit_the_object_store_go_there_and_others_stay_in_their_file(
    packed: Pack,
) -> None:
    n_bytes = packed.images.nbytes
    assert nodes.sendable(Cluster(n_bytes), packed, here=False) is packed
    assert isinstance(nodes.sendable(Cluster(n_bytes - 1), packed, here=False), PackFile)


def test_images_without_a_file_that_do_not_fit_the_object_store_are_refused(packed: Pack) -> None:
    unfiled = replace(packed, images=np.array(packed.images))
    assert nodes.sendable(Cluster(unfiled.images.nbytes), unfiled, here=True) is unfiled
    with pytest.raises(ResourcesError, match="object store holds"):
        nodes.sendable(Cluster(unfiled.images.nbytes - 1), unfiled, here=True)


@pytest.mark.slow
def test_a_task_on_the_node_of_the_driver_reads_any_part_of_its_file(driver: Path) -> None:
    with ray_cluster.running(None, n_slots=1) as ray:
        node = ray.get_runtime_context().get_node_id()
        read = node_copy._driver_reader(replace(source_of(driver), node=node))
        assert read(100, 300_000) == driver.read_bytes()[100:300_100]
        assert read(300_000, 2**20) == driver.read_bytes()[300_000:]
