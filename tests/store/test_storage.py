from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from casting_tune.analysis import selection
from casting_tune.config import TrialConfig
from casting_tune.deploy import retrain
from casting_tune.errors import CastingTuneError, StoreError
from casting_tune.store import artifacts, completed, s3, storage
from casting_tune.store.attempts import attempts_since, next_attempt, read_cell
from casting_tune.store.local import Folder, Locked
from casting_tune.store.locks import sweep_lock
from casting_tune.store.s3 import Bucket
from casting_tune.store.schema import VERSION_KEY
from casting_tune.store.spool import drain, settle
from casting_tune.store.store import Store
from casting_tune.store.table_file import serialised

ROW = {"cell_id": "a1", "attempt": 1, "sweep": "s", "status": "completed"}


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Folder | Bucket:
    return storage.at(
        tmp_path / "results" if request.param == "folder" else request.getfixturevalue("bucket")
    )


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PATIENCE_S", 0.0)


class Weather:
    """A wire to the S3 server that can be cut, or lose the answers to puts on their way back."""

    def __init__(self, server: str) -> None:
        host, _, port = server.removeprefix("http://").partition(":")
        self.server, self.cut, self.lose_answers = (host, int(port)), False, 0
        self.ear = socket.create_server(("127.0.0.1", 0))
        self.ends: list[socket.socket] = []
        self.threads = [threading.Thread(target=self._listen)]
        self.threads[0].start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ear.getsockname()[1]}"

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.ear.accept()
                server = socket.create_connection(self.server)
                self.ends += [client, server]
                requested: list[bytes] = []
                for way in (
                    (client, server, requested.append),
                    (server, client, self._lost(requested)),
                ):
                    self.threads.append(threading.Thread(target=self._pass_on, args=way))
                    self.threads[-1].start()

    def _lost(self, requested: list[bytes]) -> Callable[[bytes], object]:
        def lose(answer: bytes) -> None:
            put = any(part.startswith(b"PUT") for part in requested)
            if answer.startswith(b"HTTP/1.1 100"):  # "go on": no answer yet
                return
            requested.clear()
            if self.lose_answers and put:
                self.lose_answers -= 1
                raise ConnectionError

        return lose

    def _pass_on(
        self, source: socket.socket, target: socket.socket, see: Callable[[bytes], object]
    ) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                if self.cut:
                    break
                see(content)
                target.sendall(content)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.ear.shutdown(socket.SHUT_RDWR)
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        for end in [self.ear, *self.ends]:
            end.close()


@pytest.fixture
def weather(s3_server: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Weather]:
    sky = Weather(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", sky.endpoint)
    storage.at.cache_clear()
    yield sky
    sky.close()


def test_what_was_put_is_listed_moved_and_deleted(place: Folder | Bucket) -> None:
    place.put("trials/s/a.parquet", pa.py_buffer(b"one"))
    place.put("trials/t/b.parquet", pa.py_buffer(b"two"))
    assert place.names("trials") == ["trials/s/a.parquet", "trials/t/b.parquet"]
    place.move("trials/s/a.parquet", "quarantine/trials/s/a.parquet")
    place.delete("trials/t/b.parquet")
    place.delete("trials/t/b.parquet")
    assert place.names("trials") == []
    assert place.names("quarantine") == ["quarantine/trials/s/a.parquet"]
    assert place.names("nowhere") == []


def test_folders_and_files_are_found_by_their_names(place: Folder | Bucket) -> None:
    assert place.folders("trials") == []
    assert place.existing(["trials/s/a.parquet"]) == []
    place.put("trials/s/a.parquet", pa.py_buffer(b"one"))
    place.put("trials/r/b.parquet", pa.py_buffer(b"two"))
    assert place.folders("trials") == ["trials/r", "trials/s"]
    names = ["trials/s/b.parquet", "trials/s/a.parquet", "trials/r", "trials/r/b.parquet"]
    assert place.existing(names) == ["trials/s/a.parquet", "trials/r/b.parquet"]


def test_a_name_is_given_once(place: Folder | Bucket) -> None:
    place.put("trials/s/a.parquet", pa.py_buffer(b"one"))
    with pytest.raises(FileExistsError):
        place.put("trials/s/a.parquet", pa.py_buffer(b"two"))
    assert place.names("trials") == ["trials/s/a.parquet"]


def test_a_lock_has_one_owner_and_the_error_names_it(place: Folder | Bucket) -> None:
    if isinstance(place, Folder):
        place.root.mkdir()
    with place.lock("s", "process 7 on press", print):
        with (
            pytest.raises(Locked, match="process 7 on press"),
            place.lock("s", "process 8 on oven", print),
        ):
            pass
        with place.lock("another", "process 8 on oven", print):
            pass
    with place.lock("s", "process 8 on oven", print):
        pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_reported_and_locks_nothing(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def without(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", without)
    with sweep_lock(Store(tmp_path), "s"), sweep_lock(Store(tmp_path), "s"):
        pass
    assert caplog.messages[0].startswith(f"The file system of '{tmp_path}' has no locks.")
    assert list(tmp_path.iterdir()) == []


def test_any_other_error_of_a_lock_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("fcntl.flock", denied)
    with (
        pytest.raises(StoreError, match=r"Cannot lock sweep 's' in .*Permission denied"),
        sweep_lock(Store(tmp_path), "s"),
    ):
        pass


def test_a_lock_in_a_bucket_whose_process_died_ends_by_itself(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = storage.at(bucket)
    assert isinstance(place, Bucket)
    with contextlib.ExitStack() as dead:
        dead.enter_context(place.lock("s", "process 7 on press", print))
        monkeypatch.setattr(s3, "LEASE_S", -1.0)
        with place.lock("s", "process 8 on oven", print):
            assert len(place.names(".leases")) == 1
        monkeypatch.undo()


def test_who_could_not_reach_the_bucket_for_too_long_learns_that_its_sweep_is_anothers_now(
    bucket: str, s3_server: str, weather: Weather, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "LEASE_S", 1.5)
    learned = threading.Event()
    running = sweep_lock(Store(bucket), "s", learned.set)
    running.__enter__()
    weather.cut = True
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    elsewhere = Bucket(bucket)  # its wire is whole
    time.sleep(3.2)  # the bucket's times are whole seconds
    with elsewhere.lock("s", "process 8 on oven", pytest.fail):
        weather.cut = False
        assert learned.wait(5)
        with pytest.raises(
            StoreError, match=r"could not reach s3.*process 8 on oven now runs sweep 's'"
        ):
            running.__exit__(None, None, None)


def test_a_process_that_could_not_reach_the_bucket_keeps_a_lock_that_no_other_wants(
    bucket: str, weather: Weather, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "LEASE_S", 0.6)
    with storage.at(bucket).lock("s", "process 7 on press", pytest.fail):
        weather.cut = True
        time.sleep(1.7)
        weather.cut = False
        time.sleep(0.5)


def test_who_asks_for_a_lock_and_gives_way_costs_its_holder_nothing(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "LEASE_S", 3.0)
    until = time.monotonic() + 2
    with storage.at(bucket).lock("s", "process 7 on press", pytest.fail):
        while time.monotonic() < until:
            with pytest.raises(Locked), Bucket(bucket).lock("s", "process 8 on oven", print):
                pass


@pytest.mark.parametrize("address", ["s3://", "s3:///a", "s3://b/../c", "s3://b//c"])
def test_an_address_that_is_no_place_in_a_bucket_is_refused(address: str) -> None:
    with pytest.raises(StoreError, match="s3://BUCKET/PREFIX"):
        Store(address).files("trials")


def test_a_store_in_a_bucket_holds_rows_as_a_folder_does(bucket: str) -> None:
    store = Store(bucket)
    store.check_writable()
    assert store.completed() == set()
    store.write("trials", "s", "a1-1", [ROW])
    with pytest.raises(StoreError, match="written once"):
        store.write("trials", "s", "a1-1", [ROW | {"status": "error"}])
    assert store.completed() == {"a1"}
    assert next_attempt(store, "a1") == 2
    assert attempts_since(store, "a1", 0, epochs=3) == range(1, 2)
    assert (
        read_cell(store, "trials", "a1", range(1, 3), epochs=3).to_pylist()
        == store.read("trials").to_pylist()
    )
    assert [file.name for file in store.files("trials")] == ["a1-1.parquet"]
    assert store.names("") == ["trials/s/a1-1.parquet"]


def test_a_bucket_that_is_not_there_is_reported_before_any_trial(bucket: str) -> None:
    with pytest.raises(StoreError, match=r"NO_SUCH_BUCKET.*--results"):
        Store("s3://nobodys-castings/results").check_writable()


def test_rows_wait_in_the_spool_while_the_network_is_away_and_are_put_in_their_order(
    bucket: str, weather: Weather, impatient: None
) -> None:
    store = Store(bucket)
    store.write("epochs", "s", "a1-1-1", [{"cell_id": "a1", "epoch": 1}])
    weather.cut = True
    store.write("predictions", "s", "a1-1", [{"cell_id": "a1", "image": 0}])
    store.write("trials", "s", "a1-1", [ROW])
    assert drain(store) == ["predictions/s/a1-1.parquet", "trials/s/a1-1.parquet"]
    with pytest.raises(StoreError, match=r"2 files .* wait in .*spool"):
        settle(store)
    with pytest.raises(StoreError, match="NETWORK_CONNECTION"):
        store.completed()
    weather.cut = False
    store.write("epochs", "s", "b2-1-1", [{"cell_id": "b2", "epoch": 1}])
    assert store.names("") == [
        "epochs/s/a1-1-1.parquet", "epochs/s/b2-1-1.parquet", "predictions/s/a1-1.parquet",
        "trials/s/a1-1.parquet",
    ]  # fmt: skip
    settle(store)
    assert store.completed() == {"a1"}


def test_a_full_spool_is_reported_in_one_line(
    bucket: str, weather: Weather, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    weather.cut = True
    monkeypatch.setattr(Folder, "put", full)
    with pytest.raises(
        StoreError, match=r"Cannot write .*Cannot write to .*spool either: .*No space left"
    ):
        Store(bucket).write("trials", "s", "a1-1", [ROW])


def test_a_spooled_file_whose_name_was_taken_is_kept_apart_and_not_lost(
    bucket: str, weather: Weather, impatient: None
) -> None:
    store = Store(bucket)
    weather.cut = True
    store.write("trials", "s", "a1-1", [ROW | {"status": "error"}])
    weather.cut = False
    other = storage.at(bucket)
    other.put("trials/s/a1-1.parquet", pa.py_buffer(b"of another machine"))
    settle(store)
    assert [name.partition("~")[0] for name in store.names("quarantine")] == [
        "quarantine/trials/s/a1-1.parquet"
    ]


def test_an_answer_that_is_lost_neither_doubles_nor_refuses_a_row(
    bucket: str, weather: Weather
) -> None:
    store = Store(bucket)
    weather.lose_answers = 1
    store.write("trials", "s", "a1-1", [ROW])
    assert weather.lose_answers == 0
    assert store.read("trials")["cell_id"].to_pylist() == ["a1"]


def test_a_network_that_comes_back_within_the_patience_is_not_noticed(
    bucket: str, weather: Weather
) -> None:
    store = Store(bucket)
    weather.cut = True
    timer = threading.Timer(0.6, lambda: setattr(weather, "cut", False))
    timer.start()
    store.write("trials", "s", "a1-1", [ROW])
    timer.join()
    assert drain(store) == []
    assert store.completed() == {"a1"}


def test_a_checkpoint_goes_to_the_bucket_and_to_another_machine(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Store(bucket)
    file = artifacts.checkpoint(here, "a1")
    file.parent.mkdir(parents=True)
    for content in (b"epoch 1", b"epoch 2" * 1_000_000):
        file.write_bytes(content)
        artifacts.share(here, file)
    monkeypatch.setenv("XDG_CACHE_HOME", str(file.parent / "elsewhere"))
    storage.at.cache_clear()
    there = Store(bucket)
    assert artifacts.checkpoint(there, "a1") != file
    assert (
        artifacts.fetch(there, artifacts.checkpoint(there, "a1")).read_bytes()
        == b"epoch 2" * 1_000_000
    )
    artifacts.drop(there, artifacts.checkpoint(there, "a1"))
    assert there.names("") == []
    assert not artifacts.fetch(there, artifacts.checkpoint(there, "a1")).exists()


def test_an_error_about_a_bucket_names_its_address_and_no_folder_of_this_machine(
    bucket: str,
) -> None:
    store, place = Store(bucket), storage.at(bucket)
    store.write("trials", "s", "a1-1", [ROW | {"status": "error"}])
    requested = {
        "run_id": "r",
        "sweep": "s",
        "dataset_id": "d",
        "cell_id": "a1",
        "position": 0,
        "kind": "cell",
    }
    store.write("cells", "s", "r", [requested | {"quick": False}])
    later = pa.table({"cell_id": ["a1"]}).replace_schema_metadata({VERSION_KEY: b"99"})
    place.put("epochs/s/a1-1-1.parquet", serialised(later))
    place.put("predictions/s/a1-1.parquet", pa.py_buffer(b"no parquet"))
    weights = artifacts.weights(store, "a1")
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"no weights")
    cell = completed.Cell(
        row={"cell_id": "a1"},
        config=TrialConfig(backbone="timm:test_resnet.r160_in1k"),
        pack=None,  # type: ignore[arg-type]
        groups=None,
        predictions=None,  # type: ignore[arg-type]
    )
    wrong: dict[str, Callable[[], object]] = {
        f"'{bucket}'": lambda: selection.best(store, "s"),
        f"of '{bucket}'": lambda: completed._pack(
            store, {"cell_id": "a1", "dataset_id": "d"}, None, None
        ),
        f"{bucket}/trials/s/a1-1.parquet already exists": lambda: store.write(
            "trials", "s", "a1-1", [ROW]
        ),
        f"{bucket}/epochs/s/a1-1-1.parquet was written by a newer": lambda: store.read("epochs"),
        f"{bucket}/predictions/s/a1-1.parquet cannot be read": lambda: store.read("predictions"),
        f"{bucket}/nothing": lambda: store.move("nothing", "something"),
        f" in {bucket}/weights/a1.safetensors (": lambda: retrain.trained(cell, store),
    }
    for says, do in wrong.items():
        with pytest.raises(CastingTuneError) as raised:
            do()
        assert says in str(raised.value)
        assert str(store.root) not in str(raised.value)
