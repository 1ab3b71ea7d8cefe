"""Files that are whole or not there: atomic writes with their digests, and a lock on a results folder."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import psutil
from numpy.lib import format as npy_format

from txeval.compute.arrays import Rows, row_blocks, take_rows
from txeval.errors import InputError
from txeval.run.folder import hashing, read_json, with_digest
from txeval.run.rows import plain
from txeval.run.schemas import Seal

try:
    import fcntl
except ImportError:  # Windows has none: the lock file alone then tells who is there
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "StorageError",
    "folder_lock",
    "now",
    "write_atomically",
    "write_document",
    "write_json",
    "write_rows",
    "write_sealed",
    "write_table",
]

#: Version of the layout of a results folder.
FORMAT = 2

#: How often the holder of a lock shows that it is alive, and for how many seconds it may be silent. Other machines go
#: by that, and by their own monotonic clocks: neither the clock of the file server nor a clock that jumps matters.
BEAT_EVERY = 5.0
SILENT_AFTER = 30.0

#: Where the system has no locks: how long to wait before looking whether somebody else took the lock as well.
SETTLE = 0.3

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_counter = itertools.count()

#: In names of temporary files: processes on two machines, or in two containers, may have the same number.
_process = uuid.uuid4().hex[:12]


class StorageError(InputError):
    """The results folder cannot be written to; what was finished before is kept."""

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.problem, self.remedy))


def _rebuild(problem: str, remedy: str) -> StorageError:
    return StorageError(problem, remedy=remedy)


def now() -> str:
    """Current time, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_full(why: OSError) -> bool:
    """Whether the system says that the disk is full or a limit on it is reached."""
    return why.errno in _FULL


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn what the system says of a write into a StorageError."""
    try:
        yield
    except OSError as why:
        text = why.strerror or str(why)
        if why.errno in _FULL:
            problem = f"{path} cannot be written: the disk is full or a limit is reached ({text})"
            remedy = "free some space and run the same command again: finished scores are kept"
        else:
            problem = f"{path} cannot be written: {text}"
            remedy = "make the results folder writable and run the same command again: finished scores are kept"
        raise StorageError(problem, remedy=remedy) from why


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file under another name in the same folder, then move it to its place.

    Parameters
    ----------
    path
        Where it is to be. After a crash at any moment it is there whole, or as it was before.
    write
        Writes the content to the open file.

    Raises
    ------
    StorageError
        Where the system cannot write.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{_process}.{next(_counter)}.tmp")
    with storing(path):
        try:
            with temporary.open("wb") as handle:
                write(handle)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any, *, indent: int | None = None) -> None:
    """Write plain data atomically; NaN and infinities become null."""
    write_atomically(path, lambda handle: _send(handle, _as_json(data, indent)))


def write_document(path: Path, data: Any, *, indent: int | None = None) -> None:
    """Write plain data, or a YAML text, with the digest of its content at its head; `read_document` reads it."""
    content = data.encode() if isinstance(data, str) else _as_json(data, indent)
    write_atomically(path, lambda handle: _send(handle, with_digest(content)))


def _as_json(data: Any, indent: int | None) -> bytes:
    text = json.dumps(plain(data), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", errors="backslashreplace")


class _Sealing(io.RawIOBase):
    """An open file that keeps the digest of what is written to it."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._hash = hashing()
        self._size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, content: Any, /) -> int:
        done = self._handle.write(content)
        self._hash.update(memoryview(content).cast("B")[:done])
        self._size += done
        return done

    @property
    def seal(self) -> Seal:
        return {"size": self._size, "sha256": self._hash.hexdigest()}


def write_sealed(path: Path, write: Callable[[IO[bytes]], None]) -> Seal:
    """Write a file atomically, from its beginning to its end, and give its size and digest."""
    seals: list[Seal] = []

    def sealing(handle: IO[bytes]) -> None:
        own: Any = _Sealing(handle)
        write(own)
        seals.append(own.seal)

    write_atomically(path, sealing)
    return seals[-1]


def write_table(path: Path, table: pd.DataFrame) -> Seal:
    """Write a table as parquet, atomically, and give its size and digest."""
    # Through memory, so that errors of the disk come from the system and not from the parquet library.
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return write_sealed(path, lambda handle: _send(handle, buffer.getbuffer()))


def write_rows(path: Path, values: Rows, max_elements: int | None = None) -> Seal:
    """Write a matrix as a float32 .npy file, atomically, by blocks of rows, and give its size and digest."""
    n, d = (int(size) for size in values.shape)

    def write(handle: IO[bytes]) -> None:
        header = {"descr": npy_format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": (n, d)}
        npy_format.write_array_header_1_0(handle, header)
        for rows in row_blocks(n, d, max_elements):
            _send(handle, take_rows(values, rows).data)

    return write_sealed(path, write)


def _send(handle: IO[bytes], content: Any) -> None:
    """Write all of a buffer: a full disk can cut a single write short."""
    view = memoryview(content).cast("B") if memoryview(content).nbytes else memoryview(b"")
    while len(view):
        view = view[handle.write(view) :]


def remove_temporary(folder: Path, *, locks: bool = False) -> None:
    """Remove what an interrupted write left; with `locks` also the files of locks that nobody holds."""
    for pattern in (".*.tmp", ".*.partial"):
        for path in folder.glob(pattern):
            with suppress(OSError):
                path.unlink()
    for path in folder.glob(".*.lock") if locks else ():
        # On a cluster, a worker of a client that was killed may still be at its last job.
        owner = _owner(path)
        if owner is None or owner.get("host") == platform.node():
            with suppress(InputError, OSError), folder_lock(folder, name=path.name):
                path.unlink()


@contextmanager
def folder_lock(folder: Path, *, wait: bool = False, name: str = ".lock") -> Iterator[None]:
    """Hold a folder for one process.

    The system releases the lock of a process that dies. It is not relied on between machines: some network file
    systems have no locks, others keep them within one machine. There the content of the lock file tells who holds it,
    and changes every `BEAT_EVERY` seconds; a holder that is silent for `SILENT_AFTER` seconds has gone.

    Parameters
    ----------
    wait
        Wait until it is free instead of raising.

    Raises
    ------
    InputError
        Somebody else holds it; the message says who.
    """
    path = folder / name
    descriptor, mark = _take(path, wait)
    try:
        _beater.add(descriptor, mark)
        try:
            yield
        finally:
            _beater.remove(descriptor)
            with suppress(OSError):
                if (_owner(path) or mark).get("token") == mark["token"]:
                    os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _take(path: Path, wait: bool) -> tuple[int, dict[str, Any]]:
    """Open and lock a file, and write into it who holds it; give its descriptor and that mark."""
    while True:
        with storing(path):
            # A link would be followed, and what it leads to overwritten.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            owner = None
            held = _system_lock(descriptor)
            if held is not None and not _is_at(descriptor, path):
                # Its last holder has removed it: the lock of a file that is gone is worth nothing.
                os.close(descriptor)
                continue
            owner = _owner(path)
            if held is not None and (owner is None or not _alive(owner, path, held)):
                mark = _mark(held)
                with storing(path):
                    os.ftruncate(descriptor, 0)
                    _put(descriptor, mark)
                if not held:
                    time.sleep(SETTLE)
                    owner = _owner(path)
                if held or (owner is not None and owner.get("token") == mark["token"]):
                    return descriptor, mark
        except BaseException:
            with suppress(OSError):
                os.close(descriptor)
            raise
        os.close(descriptor)
        if not wait:
            raise _busy(path, owner)
        time.sleep(0.1)


def _system_lock(descriptor: int) -> bool | None:
    """Lock an open file: True where that worked, None where somebody else holds it, False where there are no locks."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no locks here")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there, ours = path.stat(), os.fstat(descriptor)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _mark(held: bool) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "started": now(),
        "flock": held,
        "token": uuid.uuid4().hex,
        "beat": 0,
    }


def _put(descriptor: int, mark: dict[str, Any]) -> None:
    """Write a mark over the one before; of the same length, so that a reader never finds half of one."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps({**mark, "beat": f"{mark['beat']:012d}"}).encode())
    with suppress(OSError):
        os.fsync(descriptor)


class _Beater:
    """Shows of all locks of this process that it is alive."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._marks: dict[int, dict[str, Any]] = {}
        self._thread: threading.Thread | None = None

    def add(self, descriptor: int, mark: dict[str, Any]) -> None:
        """Begin with one."""
        with self._guard:
            self._marks[descriptor] = mark
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._beat, name="txeval-locks", daemon=True)
                self._thread.start()

    def remove(self, descriptor: int) -> None:
        """End with one; its descriptor is not written to any more."""
        with self._guard:
            self._marks.pop(descriptor, None)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_EVERY)
            with self._guard:
                for descriptor, mark in self._marks.items():
                    mark["beat"] += 1
                    # A full disk does not end a run by its lock.
                    with suppress(OSError):
                        _put(descriptor, mark)


_beater = _Beater()


def _owner(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _alive(owner: dict[str, Any], path: Path, held: bool) -> bool:
    """Whether the one whose mark was found is still there.

    Parameters
    ----------
    held
        Whether the system has just given us the lock.
    """
    if owner.get("host") == platform.node():
        if held and owner.get("flock"):
            return False
        pid = owner.get("pid")
        return isinstance(pid, int) and 0 < pid < 2**31 and psutil.pid_exists(pid)
    deadline = time.monotonic() + SILENT_AFTER
    while time.monotonic() < deadline:
        time.sleep(min(0.5, SILENT_AFTER / 10))
        found = _owner(path)
        if found is None:
            return False
        if found != owner:
            return True
    return False


def _busy(path: Path, owner: dict[str, Any] | None) -> InputError:
    who = "another process"
    if owner is not None:
        who = f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('started')}"
    return InputError(
        f"the results folder {path.parent} is in use by {who}",
        remedy=f"wait until it has finished, or give another folder; if that run is gone for sure, remove {path}",
    )
