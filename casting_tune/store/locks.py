"""Locks of a store: two processes do not run the same sweep or train the same cell."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from casting_tune.errors import StoreError
from casting_tune.store import s3
from casting_tune.store.local import Locked, reason

if TYPE_CHECKING:
    from casting_tune.store.store import Store


def _ignore() -> None:
    """Do nothing if the lock is lost."""


@contextlib.contextmanager
def sweep_lock(store: Store, sweep: str, on_lost: Callable[[], object] = _ignore) -> Iterator[None]:
    """Lock a sweep for this process.

    `on_lost` is called, in a thread, if another process has taken the lock because this one could
    not reach the bucket.

    Raises:
        StoreError: another process has the lock; the message gives its host and number. Or, at the
            end, another process has taken the lock.
    """
    try:
        with _lock(store, sweep, f"sweep '{sweep}'", on_lost):
            yield
    except Locked as locked:
        raise StoreError(
            f"Sweep '{sweep}' is already running in this store: {locked}. Wait for it or stop it."
        ) from locked


def claim(
    store: Store, cell_id: str, on_lost: Callable[[], object] = _ignore
) -> Callable[[], None] | None:
    """Lock a cell while it is trained; return the function that unlocks it.

    None: another process has the lock. `on_lost` is as in `sweep_lock`; after a lost lock the
    returned function raises StoreError.
    """
    with contextlib.ExitStack() as stack:
        try:
            store.root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_lock(store, f"cell-{cell_id}", f"cell {cell_id}", on_lost))
        except Locked:
            return None
        except OSError as error:
            raise StoreError(f"Cannot lock a cell in {store.address}: {reason(error)}.") from error
        return stack.pop_all().close


@contextlib.contextmanager
def _lock(store: Store, name: str, what: str, on_lost: Callable[[], object]) -> Iterator[None]:
    """Lock a name; raise Locked if another process has it, and StoreError for other errors."""
    with contextlib.ExitStack() as stack:
        try:
            owner = f"process {os.getpid()} on {platform.node()}"
            stack.enter_context(store.place.lock(name, owner, on_lost))
        except OSError as error:
            raise StoreError(f"Cannot lock {what} in {store.address}: {reason(error)}.") from error
        try:
            yield
            stack.close()
        except s3.LockLost as lost:
            raise StoreError(
                f"This process could not reach {store.address} for {s3.LEASE_S:.0f} s, and {lost} "
                f"now runs {what}. Wait until it ends; then repeat the same command."
            ) from lost
