"""Where the files of a store lie: a folder, or a prefix of an S3 bucket.

Comes in: names relative to that place ("trials/s/a-1.parquet") and whole contents. Goes out:
contents, lists of names, and a lock. A file appears whole under a new name or not at all. Knows
nothing of tables, schemas and trials.

Reads the environment as every AWS tool does: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL; keys and
region are the SDK's.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, TypeVar

import pyarrow as pa

from casting_tune.errors import StoreError
from casting_tune.failpoints import step

SCHEME = "s3://"
PATIENCE_S = 30.0
"""How long an object store that does not answer is asked again."""
LEASE_S = 90.0
"""A lock in a bucket that was not renewed for so long is nobody's any more: its process died."""
_PASSING = (
    "NETWORK_CONNECTION", "SLOW_DOWN", "SERVICE_UNAVAILABLE", "INTERNAL_FAILURE", "REQUEST_TIMEOUT", "THROTTLING",
    "HTTP status 5", "timed out",
)  # fmt: skip
_T = TypeVar("_T")


class Held(Exception):
    """Another process holds the lock; the text says which."""


class Lost(Exception):
    """The lock that this process held is another's now; the text says whose."""


@functools.lru_cache(maxsize=8)
def at(address: Path | str) -> Folder | Bucket:
    """Return the place of an address: `s3://bucket/prefix` is a bucket's, all else a folder."""
    if str(address).startswith(SCHEME):
        return Bucket(str(address))
    return Folder(Path(address))


class Folder:
    """A folder of this machine, or one that is mounted here."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> PurePath:
        """Return a file's full name."""
        return self.root / name

    def names(self, under: str) -> list[str]:
        """Return the names of all files below a folder, sorted; none where there is no folder."""
        top = os.path.join(self.root, under)  # noqa: PTH118  (strings: a hundred thousand names are no rarity)
        below = len(str(self.root)) + 1
        return sorted(
            os.path.join(folder, file)[below:]  # noqa: PTH118
            for folder, _, files in os.walk(top, onerror=_raise)
            for file in files
        )

    def folders(self, under: str) -> list[str]:
        """Return the names of the folders in a folder, sorted; none where there is no folder."""
        top = self.root / under
        return (
            sorted(f"{under}/{entry.name}" for entry in os.scandir(top) if entry.is_dir())
            if top.is_dir()
            else []
        )

    def there(self, names: Sequence[str]) -> list[str]:
        """Return those of some names that files have, in their order: a look at each, at no other file."""
        return [name for name in names if _is_there(os.path.join(self.root, name))]  # noqa: PTH118

    def source(self, name: str) -> Any:
        """Return what a Parquet reader opens."""
        return str(self.root / name)

    def put(self, name: str, content: pa.Buffer) -> None:
        """Make a file appear whole: temporary name, fsync, then a link that fails if the name is taken.

        Raises:
            FileExistsError: the name is taken.
            OSError: the folder cannot be written.
        """
        place = self.root / name
        step(f"put {name}: begin")
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = (
            place.parent / f".{place.name}.{uuid.uuid4().hex}"
        )  # pandas, pyarrow and DuckDB's globs pass over dots
        try:
            with beside.open("wb") as file:
                step(f"put {name}: opened")
                file.write(content)
                step(f"put {name}: written")
                file.flush()
                os.fsync(file.fileno())
            step(f"put {name}: synced")
            os.link(beside, place)
            step(f"put {name}: linked")
        finally:
            beside.unlink(missing_ok=True)
        _sync_folder(place.parent)
        step(f"put {name}: end")

    def delete(self, name: str) -> None:
        """Remove a file; one that is gone already is no error."""
        (self.root / name).unlink(missing_ok=True)

    def move(self, name: str, to: str) -> None:
        """Give a file another name, which nobody has."""
        target = self.root / to
        target.parent.mkdir(parents=True, exist_ok=True)
        step(f"move {name}: begin")
        os.link(self.root / name, target)
        step(f"move {name}: linked")
        (self.root / name).unlink()
        step(f"move {name}: end")

    @contextlib.contextmanager
    def hold(self, name: str, who: str, on_lost: Callable[[], object]) -> Iterator[None]:
        """Hold a lock; the operating system lets go of it when the process ends, however it ends, and not before.

        Raises:
            Held: another process holds it.
        """
        import fcntl

        del on_lost
        file = self.root / f".running-{name}"
        while True:
            with file.open("a+") as held:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    held.seek(0)
                    raise Held(held.read()) from error
                if not _same(held.fileno(), file):
                    continue  # its last holder removed it between our opening and our locking
                held.truncate(0)
                held.write(who)
                held.flush()
                step(f"hold {name}")
                try:
                    yield
                finally:
                    with contextlib.suppress(
                        NotADirectoryError
                    ):  # the whole folder is gone, and what failed says so
                        file.unlink(missing_ok=True)
                return


class Bucket:
    """A prefix of an S3 bucket, with a folder of this machine for what is no row.

    An object is put in one request and read in one. pyarrow does not offer S3's conditional put
    (apache/arrow#44281): a name is looked up first, and two processes must not want the same one
    (`hold` sees to that).
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.prefix = address.removeprefix(SCHEME).rstrip("/")
        bucket, _, below = self.prefix.partition("/")
        if not bucket or ".." in below.split("/") or "" in below.split("/")[:-1]:
            raise StoreError(f"'{address}' is no place in a bucket. Write s3://BUCKET/PREFIX.")

    @functools.cached_property
    def cache(self) -> Path:
        """Where packs, drawings and checkpoints of this store lie on this machine."""
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
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),  # `_patiently` asks again
        )

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def path(self, name: str) -> PurePath:
        """Return a file's name in the bucket."""
        return PurePosixPath(self._key(name))

    def names(self, under: str) -> list[str]:
        """Return the names of all files below a prefix, sorted."""
        return [name for name, _ in self._listed(under)]

    def _listed(self, under: str, *, patience_s: float | None = None) -> list[tuple[str, Any]]:
        from pyarrow import fs

        below = fs.FileSelector(self._key(under), recursive=True, allow_not_found=True)
        found = self._patiently(lambda: self._s3.get_file_info(below), patience_s)
        files = [
            (f.path.removeprefix(f"{self.prefix}/"), f.mtime)
            for f in found
            if f.type == fs.FileType.File
        ]
        return sorted(files)

    def folders(self, under: str) -> list[str]:
        """Return the names of the folders in a prefix, sorted."""
        from pyarrow import fs

        below = fs.FileSelector(self._key(under), recursive=False, allow_not_found=True)
        found = self._patiently(lambda: self._s3.get_file_info(below))
        return sorted(
            f.path.removeprefix(f"{self.prefix}/") for f in found if f.type == fs.FileType.Directory
        )

    def there(self, names: Sequence[str]) -> list[str]:
        """Return those of some names that objects have, in their order: a request each, several at a time."""
        from pyarrow import fs

        found = self._patiently(lambda: self._s3.get_file_info([self._key(name) for name in names]))
        return [
            name for name, seen in zip(names, found, strict=True) if seen.type == fs.FileType.File
        ]

    def source(self, name: str) -> Any:
        """Return what a Parquet reader opens: the whole object, in memory."""
        return pa.BufferReader(self._read(name))

    def _read(self, name: str) -> pa.Buffer:
        def read() -> pa.Buffer:
            with self._s3.open_input_file(self._key(name)) as file:
                return file.read_buffer()

        return self._patiently(read)

    def put(self, name: str, content: pa.Buffer, *, patience_s: float | None = None) -> None:
        """Make an object appear in one request, unless the name is taken.

        A request whose answer was lost has put its object all the same: the same content under the
        name is no error.

        Raises:
            FileExistsError: other content has the name.
            OSError: the bucket does not answer for `patience_s` (PATIENCE_S), or refuses.
        """

        def put() -> None:
            if self._there(name):
                if self._read(name).equals(content):
                    return
                raise FileExistsError(name)
            step(f"put {name}: begin")
            self._write(name, content)
            step(f"put {name}: end")

        self._patiently(put, patience_s)

    def delete(self, name: str) -> None:
        """Remove an object; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._patiently(lambda: self._s3.delete_file(self._key(name)))

    def move(self, name: str, to: str) -> None:
        """Give an object another name."""
        self._patiently(lambda: self._s3.move(self._key(name), self._key(to)))

    def share(self, name: str, file: Path) -> None:
        """Put a file of this machine whole in the place of an older one: large files go beside first, then move."""
        content = pa.py_buffer(file.read_bytes())
        beside = f"{PurePosixPath(name).parent}/.{uuid.uuid4().hex}"
        self._patiently(lambda: self._write(beside, content))
        self.move(beside, name)

    def fetch(self, name: str, file: Path) -> None:
        """Bring an object whole to this machine; one that is not there leaves the file alone."""
        with contextlib.suppress(FileNotFoundError):
            content = self._read(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            beside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
            try:
                beside.write_bytes(content)
                beside.replace(file)
            finally:
                beside.unlink(missing_ok=True)

    @contextlib.contextmanager
    def hold(self, name: str, who: str, on_lost: Callable[[], object]) -> Iterator[None]:
        """Hold a lock: an object of our own, renewed while we live; whoever finds a living one of another gives way.

        Two that begin in the same moment may both give way, never both hold (S3 lists what was put
        before). Ages are differences of the bucket's own times, so clocks need not agree. A holder
        that cannot reach the bucket for LEASE_S loses its hold to whoever asks next: it is told so
        by `on_lost`, in a thread, when it reaches the bucket again, and at the end.

        Raises:
            Held: another process holds it.
            Lost: another process has it since, and nothing else went wrong.
        """
        lease = f".leases/{name}/{uuid.uuid4().hex}"
        renewed, ended = pa.py_buffer(who.encode()), threading.Event()
        self._patiently(lambda: self._write(lease, renewed))
        times = dict(self._listed(f".leases/{name}"))
        for other in set(times) - {lease}:
            if (times[lease] - times[other]).total_seconds() > LEASE_S:
                self.delete(other)
                continue
            self.delete(lease)
            raise Held(f"{self._holder(other)} (if that died, its hold ends after {LEASE_S:.0f} s)")
        lost: list[str] = []

        def renew() -> None:
            last = times[lease]
            while not ended.wait(LEASE_S / 6):
                with contextlib.suppress(
                    OSError
                ):  # the next one may come through, and five may fail
                    self._write(lease, renewed)
                    now = dict(self._listed(f".leases/{name}", patience_s=0))
                    others = sorted(set(now) - {lease})
                    # one that began within our time sees us and gives way; one that began after it
                    # need not
                    if lease not in now or (
                        others and (now[lease] - last).total_seconds() > LEASE_S
                    ):
                        lost.append(self._holder(others[0]) if others else "another process")
                        on_lost()
                        return
                    last = now[lease]

        renewing = threading.Thread(target=renew, daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            with contextlib.suppress(OSError):  # it ends by itself
                self.delete(lease)
        if lost:
            raise Lost(lost[0])

    def _holder(self, lease: str) -> str:
        try:
            return bytes(self._read(lease)).decode(errors="replace")
        except FileNotFoundError:
            return "another process that ended this moment"

    def _there(self, name: str) -> bool:
        from pyarrow import fs

        return bool(self._s3.get_file_info(self._key(name)).type == fs.FileType.File)

    def _write(self, name: str, content: pa.Buffer) -> None:
        with self._s3.open_output_stream(self._key(name), compression=None) as stream:
            stream.write(content)

    def _patiently(self, ask: Callable[[], _T], patience_s: float | None = None) -> _T:
        """Ask again, after 0.25, 0.5, 1, ... 8 seconds, while the bucket does not answer."""
        until, wait = time.monotonic() + (PATIENCE_S if patience_s is None else patience_s), 0.25
        while True:
            try:
                return ask()
            except (FileNotFoundError, FileExistsError):
                raise
            except OSError as error:
                if time.monotonic() + wait > until or not passing(error):
                    raise
            time.sleep(wait)
            wait = min(2 * wait, 8)


def passing(error: OSError) -> bool:
    """Say whether an error of an object store is one that time may mend: no network, or a service that is busy."""
    return any(sign in str(error) for sign in _PASSING)


def remote(error: OSError) -> bool:
    """Say whether an error is an object store's answer, or want of one, and not a fault of a file's content."""
    return "AWS Error" in str(error)


def reason(error: OSError) -> str:
    """Return why a file could not be read or written, in one line."""
    return str(error.strerror or error).splitlines()[0].partition("; Details")[0][:200]


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _is_there(file: str) -> bool:
    """Say whether a file is there.

    A folder that cannot be searched is an error: it may hold the file.
    """
    try:
        return stat.S_ISREG(os.stat(file).st_mode)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return False


def _same(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
