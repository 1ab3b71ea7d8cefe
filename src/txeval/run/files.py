"""Files that are whole or not there: atomic writes, and a lock on a results folder."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import platform
import time
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
from txeval.run.rows import plain

try:
    import fcntl
except ImportError:  # Windows has none: the lock file alone then tells who is there
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "StorageError",
    "folder_lock",
    "now",
    "read_json",
    "write_atomically",
    "write_json",
    "write_rows",
    "write_table",
]

#: Version of the layout of a results folder.
FORMAT = 1

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_counter = itertools.count()


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(_counter)}.tmp")
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
    text = json.dumps(plain(data), indent=indent, ensure_ascii=False, allow_nan=False)
    write_atomically(path, lambda handle: _send(handle, text.encode("utf-8", errors="backslashreplace")))


def write_table(path: Path, table: pd.DataFrame) -> int:
    """Write a table as parquet, atomically, and return the number of bytes."""
    # Through memory, so that errors of the disk come from the system and not from the parquet library.
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    content = buffer.getbuffer()
    write_atomically(path, lambda handle: _send(handle, content))
    return len(content)


def write_rows(path: Path, values: Rows, max_elements: int | None = None) -> None:
    """Write a matrix as a float32 .npy file, atomically, by blocks of rows."""
    n, d = (int(size) for size in values.shape)

    def write(handle: IO[bytes]) -> None:
        header = {"descr": npy_format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": (n, d)}
        npy_format.write_array_header_1_0(handle, header)
        for rows in row_blocks(n, d, max_elements):
            _send(handle, take_rows(values, rows).data)

    write_atomically(path, write)


def _send(handle: IO[bytes], content: Any) -> None:
    """Write all of a buffer: a full disk can cut a single write short."""
    view = memoryview(content).cast("B") if memoryview(content).nbytes else memoryview(b"")
    while len(view):
        view = view[handle.write(view) :]


def read_json(path: Path) -> Any:
    """Read plain data; None where there is no file; ValueError where it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as why:
        raise ValueError(f"cannot be read: {why.strerror}") from None


def remove_temporary(folder: Path, *, locks: bool = False) -> None:
    """Remove what an interrupted write left; with `locks` also the lock files of single things."""
    for pattern in (".*.tmp", ".*.partial", *([".*.lock"] if locks else [])):
        for path in folder.glob(pattern):
            with suppress(OSError):
                path.unlink()


@contextmanager
def folder_lock(folder: Path, *, wait: bool = False, name: str = ".lock") -> Iterator[None]:
    """Hold a folder for one process.

    The system releases the lock of a process that dies. Where the file system has no locks, the lock file
    itself is the sign, and one whose process is gone on this machine is taken over.

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
    with storing(path):
        handle = path.open("a+", encoding="utf-8")
    try:
        held = _take(handle, path, wait)
        handle.seek(0)
        handle.truncate()
        handle.write(json.dumps({"pid": os.getpid(), "host": platform.node(), "started": now(), "flock": held}))
        handle.flush()
        try:
            yield
        finally:
            handle.seek(0)
            handle.truncate()
    finally:
        handle.close()


def _take(handle: IO[str], path: Path, wait: bool) -> bool:
    """Lock an open file; True where the system holds the lock, False where only the file's content does."""
    while True:
        owner = _owner(path)
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no locks here")
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A run from a machine that cannot lock this file system leaves its name without a lock.
            if owner is None or owner.get("flock") or not _alive(owner):
                return True
            fcntl.flock(handle, fcntl.LOCK_UN)
        except BlockingIOError:
            pass
        except OSError:
            if owner is None or not _alive(owner):
                return False
        if not wait:
            raise _busy(path, owner)
        time.sleep(0.1)


def _owner(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8") or "null")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _alive(owner: dict[str, Any]) -> bool:
    if owner.get("host") != platform.node():
        return True
    return isinstance(owner.get("pid"), int) and psutil.pid_exists(owner["pid"])


def _busy(path: Path, owner: dict[str, Any] | None) -> InputError:
    who = "another process"
    if owner is not None:
        who = f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('started')}"
    return InputError(
        f"the results folder {path.parent} is in use by {who}",
        remedy=f"wait until it has finished, or give another folder; if that run is gone for sure, remove {path}",
    )
