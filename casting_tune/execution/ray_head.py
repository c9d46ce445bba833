"""Whether the head of a Ray cluster answers at an address, and whether it requires a token.

Input: host and port. Output: an answer within seconds, or an OSError. Imports no Ray: the head
speaks gRPC, which is HTTP/2 (RFC 9113), and a few frames are enough.
"""

from __future__ import annotations

import os
import socket
from typing import BinaryIO

from casting_tune.errors import ResourcesError

ANSWER_S = 5.0
"""Time limit for an answer of a cluster's head; Ray 2.60 itself tries for up to 13 minutes."""

BUSY_S = 60.0
"""Time limit for the answer to a call; a head that answers at all may be busy."""

CALL = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""A call of Ray 2.60 that changes nothing."""

_DATA, _HEADERS, _RESET, _SETTINGS = 0, 1, 3, 4  # types of frames
_END_STREAM, _END_HEADERS = 1, 4  # flags
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def check_answers(host: str, port: int) -> None:
    """Raise OSError within seconds if no head of a Ray cluster answers at an address.

    A server answers the client's preface with its settings. With RAY_USE_TLS=1 it only has to
    accept the connection.
    """
    with socket.create_connection((host, port), timeout=ANSWER_S) as connection:
        if _uses_tls():
            return
        connection.sendall(_PREFACE + _frame(_SETTINGS, 0, 0))
        answer = connection.recv(4, socket.MSG_WAITALL)
    if answer[3:] != bytes([_SETTINGS]):
        raise ConnectionError("not a Ray head; the port of 'ray start' is usually 6379")


def requires_token(host: str, port: int) -> bool:
    """Return whether a head refuses a call without a token; True with RAY_USE_TLS=1: unknown.

    gRPC refuses a call with headers that end the stream, and answers it with data ("Trailers-Only"
    in https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).

    Raises:
        OSError: no answer within BUSY_S.
    """
    if _uses_tls():
        return True
    fields = {
        ":method": "POST", ":scheme": "http", ":path": CALL, ":authority": "ray",
        "content-type": "application/grpc", "te": "trailers",
    }  # fmt: skip
    call = _frame(_HEADERS, _END_HEADERS, 1, b"".join(map(_field, fields.items())))
    empty_message = _frame(_DATA, _END_STREAM, 1, bytes(5))
    with socket.create_connection((host, port), timeout=BUSY_S) as connection:
        connection.sendall(_PREFACE + _frame(_SETTINGS, 0, 0) + call + empty_message)
        with connection.makefile("rb") as answer:
            while True:
                kind, flags, stream = _next_frame(answer)
                if stream == 1 and kind == _DATA:
                    return False
                if stream == 1 and kind == _HEADERS and flags & _END_STREAM:
                    return True
                if stream == 1 and kind == _RESET:
                    raise ConnectionError("the head ended the call")


def check_token(named: str, host: str, port: int) -> None:
    """Raise ResourcesError if this machine sends a token to a cluster that requires none.

    Ray 2.60 connects, and then ends our actors: the head asks this process about them without a
    token, is refused, and takes this process for dead. It may do so before or after an actor's
    first answer, so running one proves nothing.
    """
    if os.environ.get("RAY_AUTH_MODE") == "token" and not requires_token(host, port):
        raise ResourcesError(
            f"Connected, but the Ray cluster at '{named}' does not run our tasks: it requires no "
            "token, and this machine sends one (RAY_AUTH_MODE=token or ~/.ray/auth_token). Start "
            "its nodes with RAY_AUTH_MODE=token and that token, or set RAY_AUTH_MODE=disabled here."
        )


def _uses_tls() -> bool:
    return os.environ.get("RAY_USE_TLS", "0") != "0"


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame of HTTP/2 (RFC 9113, 4.1)."""
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


def _field(field: tuple[str, str]) -> bytes:
    """Return a header field, literal and without an index (RFC 7541, 6.2.2)."""
    name, value = (text.encode() for text in field)
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _next_frame(answer: BinaryIO) -> tuple[int, int, int]:
    """Return type, flags and stream of the next frame."""
    head = answer.read(9)
    if len(head) < 9:
        raise ConnectionError("the connection was closed without an answer")
    answer.read(int.from_bytes(head[:3], "big"))
    return head[3], head[4], int.from_bytes(head[5:], "big")
