from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from casting_tune.errors import ResourcesError
from casting_tune.execution import ray_cluster, ray_head


@contextlib.contextmanager
def listening(answer: bytes | None) -> Iterator[int]:
    """A port that accepts connections and answers each with a few bytes, or never."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)

        def serve() -> None:
            held = []
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    held.append(server.accept()[0])
                    if answer is not None:
                        held[-1].recv(100)
                        held[-1].sendall(answer)
            for connection in held:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            over.set()
            thread.join()


def test_a_head_is_distinguished_from_other_servers_and_from_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_head, "ANSWER_S", 0.3)
    with listening(
        b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    ) as port:  # the settings of an HTTP/2 server
        ray_head.check_answers("127.0.0.1", port)
    with (
        listening(b"HTTP/1.1 400 Bad Request\r\n") as port,
        pytest.raises(ConnectionError, match="not a Ray head"),
    ):
        ray_head.check_answers("127.0.0.1", port)
    started = time.monotonic()
    with listening(None) as port:
        with pytest.raises(TimeoutError):
            ray_head.check_answers("127.0.0.1", port)
        monkeypatch.setenv("RAY_USE_TLS", "1")
        ray_head.check_answers("127.0.0.1", port)
    assert time.monotonic() - started < 3
    with pytest.raises(ConnectionRefusedError):
        ray_head.check_answers("127.0.0.1", port)


SETTINGS = bytes.fromhex("000000 04 00 00000000")
OPEN = SETTINGS + bytes.fromhex("000001 01 04 00000001 88  000005 00 00 00000001 0000000000")
"""A head that answers CheckAlive: headers (:status 200), then data."""
CLOSED = SETTINGS + bytes.fromhex("000001 01 05 00000001 88")
"""A head that refuses it: headers that end the stream."""


def test_a_head_that_accepts_a_call_without_a_token_requires_none() -> None:
    for frames, requires in ((OPEN, False), (CLOSED, True)):
        with listening(frames) as port:
            assert ray_head.requires_token("127.0.0.1", port) is requires


def test_a_head_that_is_slow_to_answer_is_waited_for_and_counts_as_neither(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_head, "BUSY_S", 0.3)
    with listening(SETTINGS) as port, pytest.raises(TimeoutError):
        ray_head.requires_token("127.0.0.1", port)
    reset = SETTINGS + bytes.fromhex("000004 03 00 00000001 00000007")
    with listening(reset) as port, pytest.raises(ConnectionError, match="ended the call"):
        ray_head.requires_token("127.0.0.1", port)


def test_a_token_for_a_cluster_that_requires_none_is_refused_before_ray_joins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    joined: list[str] = []
    monkeypatch.setattr("ray.init", lambda address, **_: joined.append(address))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with listening(OPEN) as port:
        address = f"127.0.0.1:{port}"
        monkeypatch.setattr("casting_tune.execution.ray_private.resolve", lambda named: named)
        with (
            pytest.raises(ResourcesError, match=f"'{address}' does not run our tasks: it requires"),
            ray_cluster.running(address, n_slots=0),
        ):
            pass
        assert joined == []
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with ray_cluster.running(address, n_slots=0):
            assert joined == [address]
