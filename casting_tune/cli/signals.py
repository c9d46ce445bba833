"""End a command cleanly after Ctrl-C or SIGTERM, also while Ray starts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casting_tune.execution.ray_cluster import Ahead

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Handle SIGINT and SIGTERM with a function, and restore the previous handlers."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def ray_ahead() -> Iterator[Ahead]:
    """Yield the object that starts Ray before the first trial, and shut Ray down at the end.

    SIGTERM unwinds the stack as Ctrl-C does.
    """
    from casting_tune.execution.ray_cluster import Ahead

    def end(number: int, frame: FrameType | None) -> None:
        raise_safely(SystemExit(128 + number), number, frame)

    with handled(end):
        try:
            with Ahead() as ahead:
                yield ahead
        except SystemError as error:
            if isinstance(error.__cause__, SystemExit):
                # Cython, in ray.get and ray.wait, wraps an exception of a signal handler
                raise error.__cause__ from None
            raise


def raise_safely(error: BaseException, number: int, frame: FrameType | None) -> None:
    """Raise an exception in a signal handler; in the import machinery of Python, try again later.

    An exception inside `_get_module_lock` of CPython 3.11, just before its `try`, leaves the lock
    of all imports locked. Ray, which another thread imports, would then wait forever. Modules that
    are being imported may be interrupted.
    """
    # `_call_with_frames_removed` calls the code of a module itself
    while frame is not None and frame.f_code.co_name != "_call_with_frames_removed":
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            again = threading.Timer(
                0.01, signal.pthread_kill, (threading.main_thread().ident, number)
            )
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise error
