"""A store in a prefix of an S3 bucket: reads, writes, lists and locks its objects.

Input and output as in `casting_tune.store.local`. An object appears whole or not at all. Knows no
tables, schemas or trials.

Reads the environment as every AWS tool does: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL here; keys and
region in the SDK.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, TypeVar

import pyarrow as pa

from casting_tune import files
from casting_tune.errors import StoreError
from casting_tune.failpoints import step
from casting_tune.store.local import Locked

SCHEME = "s3://"
PATIENCE_S = 30.0
"""How long a request is repeated if the bucket does not respond."""
LEASE_S = 90.0
"""A lock in a bucket that was not renewed for so long is free: its process died."""
_TEMPORARY = (
    "NETWORK_CONNECTION", "SLOW_DOWN", "SERVICE_UNAVAILABLE", "INTERNAL_FAILURE", "REQUEST_TIMEOUT",
    "THROTTLING", "HTTP status 5", "timed out",
)  # fmt: skip
_T = TypeVar("_T")


class LockLost(Exception):
    """Another process now has the lock of this process; the text names that process."""


class Bucket:
    """A prefix of an S3 bucket, with a folder of this machine for files that are no tables.

    An object is written in one request and read in one. pyarrow 26 does not support conditional
    writes (apache/arrow#44281), and boto3, which does, would be a second client with its own keys,
    endpoint and retries in every installation. So the name is checked first, and two processes
    must not use the same name (`lock` ensures that).
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.prefix = address.removeprefix(SCHEME).rstrip("/")
        bucket, _, below = self.prefix.partition("/")
        if not bucket or ".." in below.split("/") or "" in below.split("/")[:-1]:
            raise StoreError(f"Invalid bucket address '{address}'. Use s3://BUCKET/PREFIX.")

    @functools.cached_property
    def cache(self) -> Path:
        """The folder of this machine for packs, drawings and checkpoints of this store."""
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return folder / "casting_tune" / self.prefix

    @functools.cached_property
    def _s3(self) -> Any:
        from pyarrow import fs

        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return fs.S3FileSystem(
            endpoint_override=endpoint,  # the SDK in pyarrow 26 does not read the variable
            allow_delayed_open=True,  # a small object is one request
            background_writes=False,
            connect_timeout=5,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),  # `_retry` repeats
        )

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def path(self, name: str) -> PurePath:
        """Return a file's name in the bucket."""
        return PurePosixPath(self._key(name))

    def names(self, under: str) -> list[str]:
        """Return the sorted names of all files below a prefix."""
        return [name for name, _ in self._listed(under)]

    def _listed(self, under: str, *, patience_s: float | None = None) -> list[tuple[str, Any]]:
        """Return (name, time) of all files below a prefix, sorted."""
        from pyarrow import fs

        below = fs.FileSelector(self._key(under), recursive=True, allow_not_found=True)
        entries = self._retry(lambda: self._s3.get_file_info(below), patience_s)
        return sorted(
            (entry.path.removeprefix(f"{self.prefix}/"), entry.mtime)
            for entry in entries
            if entry.type == fs.FileType.File
        )

    def folders(self, under: str) -> list[str]:
        """Return the sorted names of the folders in a prefix."""
        from pyarrow import fs

        below = fs.FileSelector(self._key(under), recursive=False, allow_not_found=True)
        entries = self._retry(lambda: self._s3.get_file_info(below))
        return sorted(
            entry.path.removeprefix(f"{self.prefix}/")
            for entry in entries
            if entry.type == fs.FileType.Directory
        )

    def existing(self, names: Sequence[str]) -> list[str]:
        """Return those names that are objects, in the same order: one request each, in parallel."""
        from pyarrow import fs

        keys = [self._key(name) for name in names]
        entries = self._retry(lambda: self._s3.get_file_info(keys))
        pairs = zip(names, entries, strict=True)
        return [name for name, entry in pairs if entry.type == fs.FileType.File]

    def source(self, name: str) -> Any:
        """Return what a Parquet reader opens: the whole object, in memory."""
        return pa.BufferReader(self._read(name))

    def _read(self, name: str) -> pa.Buffer:
        def read() -> pa.Buffer:
            with self._s3.open_input_file(self._key(name)) as file:
                return file.read_buffer()

        return self._retry(read)

    def put(self, name: str, content: pa.Buffer, *, patience_s: float | None = None) -> None:
        """Create an object in one request, unless the name exists.

        A request without response may have created its object: the same content under the name is
        no error.

        Raises:
            FileExistsError: the name exists with other content.
            OSError: the bucket does not respond for `patience_s` (PATIENCE_S), or refuses.
        """

        def put() -> None:
            if self._exists(name):
                if self._read(name).equals(content):
                    return
                raise FileExistsError(name)
            step(f"put {name}: begin")
            self._write(name, content)
            step(f"put {name}: end")

        self._retry(put, patience_s)

    def delete(self, name: str) -> None:
        """Remove an object; a missing one is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._retry(lambda: self._s3.delete_file(self._key(name)))

    def move(self, name: str, to: str) -> None:
        """Rename an object."""
        self._retry(lambda: self._s3.move(self._key(name), self._key(to)))

    def share(self, name: str, file: Path) -> None:
        """Upload a file, which may replace an older one: a draft first, which is then renamed."""
        content = pa.py_buffer(file.read_bytes())
        draft = f"{PurePosixPath(name).parent}/.{uuid.uuid4().hex}"
        self._retry(lambda: self._write(draft, content))
        self.move(draft, name)

    def fetch(self, name: str, file: Path) -> None:
        """Download an object; if it does not exist, the local file is unchanged."""
        with contextlib.suppress(FileNotFoundError):
            content = self._read(name)
            with files.replacing(file) as draft:
                draft.write_bytes(content)

    @contextlib.contextmanager
    def lock(self, name: str, owner: str, on_lost: Callable[[], object]) -> Iterator[None]:
        """Lock a name with an object, which is renewed while this process lives.

        Of two processes that start at the same moment both may give up, but never both have the
        lock, because S3 lists what was written before. Ages are differences of the bucket's own
        times, so clocks need not agree. A process that cannot reach the bucket for LEASE_S loses
        the lock to the next one; `on_lost` is then called in a thread as soon as the bucket
        responds again.

        Raises:
            Locked: another process has the lock.
            LockLost: another process has taken the lock meanwhile, and there was no other error.
        """
        lease = f".leases/{name}/{uuid.uuid4().hex}"
        content, ended = pa.py_buffer(owner.encode()), threading.Event()
        began = self._acquire(name, lease, content)
        lost: list[str] = []

        def renew() -> None:
            last = began
            while not ended.wait(LEASE_S / 6):
                with contextlib.suppress(OSError):  # the next one may succeed, and five may fail
                    self._write(lease, content)
                    now = dict(self._listed(f".leases/{name}", patience_s=0))
                    others = sorted(set(now) - {lease})
                    # one that started within our lease sees us and gives up; a later one need not
                    expired = others and (now[lease] - last).total_seconds() > LEASE_S
                    if lease not in now or expired:
                        lost.append(self._owner(others[0]) if others else "another process")
                        on_lost()
                        return
                    last = now[lease]

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with contextlib.suppress(OSError):  # it expires
                self.delete(lease)
        if lost:
            raise LockLost(lost[0])

    def _acquire(self, name: str, lease: str, content: pa.Buffer) -> Any:
        """Write a lease and return its time, or remove it and raise Locked if there is another."""
        self._retry(lambda: self._write(lease, content))
        times = dict(self._listed(f".leases/{name}"))
        for other in set(times) - {lease}:
            if (times[lease] - times[other]).total_seconds() > LEASE_S:
                self.delete(other)
                continue
            self.delete(lease)
            raise Locked(
                f"{self._owner(other)} (if it died, its lock expires after {LEASE_S:.0f} s)"
            )
        return times[lease]

    def _owner(self, lease: str) -> str:
        try:
            return bytes(self._read(lease)).decode(errors="replace")
        except FileNotFoundError:
            return "another process, which has just ended"

    def _exists(self, name: str) -> bool:
        from pyarrow import fs

        return bool(self._s3.get_file_info(self._key(name)).type == fs.FileType.File)

    def _write(self, name: str, content: pa.Buffer) -> None:
        with self._s3.open_output_stream(self._key(name), compression=None) as stream:
            stream.write(content)

    def _retry(self, request: Callable[[], _T], patience_s: float | None = None) -> _T:
        """Repeat a request, after 0.25, 0.5, 1, ... 8 seconds, while there is no response."""
        until, wait = time.monotonic() + (PATIENCE_S if patience_s is None else patience_s), 0.25
        while True:
            try:
                return request()
            except (FileNotFoundError, FileExistsError):
                raise
            except OSError as error:
                if time.monotonic() + wait > until or not is_temporary(error):
                    raise
            time.sleep(wait)
            wait = min(2 * wait, 8)


def is_temporary(error: OSError) -> bool:
    """Return whether a later request may succeed: no network, or a busy service."""
    return any(sign in str(error) for sign in _TEMPORARY)


def is_remote(error: OSError) -> bool:
    """Return whether an error comes from the object store, not from the content of a file."""
    return "AWS Error" in str(error)
