"""The door to a results folder: files are opened here alone, and what comes out is whole, bounded and of known form."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from txeval.compute.machine import memory_limit
from txeval.errors import InputError
from txeval.run.schemas import IDENTIFIER, Seal

__all__ = [
    "Damaged",
    "fault_of",
    "hashing",
    "inside",
    "open_regular",
    "open_table",
    "read_bytes",
    "read_document",
    "read_json",
    "seal_of",
    "table_frame",
    "verify",
    "with_digest",
]

#: Most bytes of a document: a plan of 150,000 cells, which is thirty models on all levels a hundred times over.
MOST_BYTES = 64 * 2**20

#: Deepest nesting of a document; what txeval writes has less than ten levels.
MOST_LEVELS = 50

_BLOCK = 4 * 2**20

#: Bytes that any machine has.
_SMALL = 2**26

#: SHA-256: processors have instructions for it, with which it is three times as fast as BLAKE2 (see
#: benchmarks/digests.py), and anybody can check it with `sha256sum`.
hashing = hashlib.sha256

_JSON_START, _YAML_START = b'{"sha256":"', b"# sha256: "
_JSON_HEAD = re.compile(re.escape(_JSON_START) + rb'([0-9a-f]{64})"(?:, )?')
_YAML_HEAD = re.compile(re.escape(_YAML_START) + rb"([0-9a-f]{64})\n")

#: Files whose content was found to be what their seal says, as they were then: (path, inode, size, time, digest).
_verified: set[tuple[Any, ...]] = set()


class Damaged(ValueError):
    """A file of a results folder is not what was stored."""


def fault_of(why: FileNotFoundError | Damaged) -> str:
    """What to say of such a file behind its name."""
    return "is missing" if isinstance(why, FileNotFoundError) else f"is damaged: {why}"


def inside(folder: Path, *parts: str) -> Path:
    """Path of a file of a results folder.

    Parameters
    ----------
    parts
        Name of a folder in it, if any, and of the file; names may come from a file that somebody else made.

    Raises
    ------
    InputError
        A name is no plain one, or a folder on the way is a link.
    """
    for part in parts:
        if not re.fullmatch(IDENTIFIER, part):
            raise InputError(
                f"{folder} names a file {part!r}, which is no name of a file in a results folder",
                remedy="do not use this folder: txeval did not write it so",
            )
    if len(parts) > 1:
        room = folder / parts[0]
        if room.is_symlink() or (room.exists() and not room.is_dir()):
            raise InputError(
                f"{room} is no folder but {'a link' if room.is_symlink() else 'a file'}",
                remedy="put the folder itself there; a results folder as a whole may be a link",
            )
    return folder.joinpath(*parts)


def open_regular(path: Path) -> IO[bytes]:
    """Open a file to read.

    Raises
    ------
    FileNotFoundError
        There is none.
    Damaged
        It is a link, a pipe or a device, or cannot be read.
    """
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as why:
        raise Damaged("it is a link" if why.errno == errno.ELOOP else f"it cannot be read: {why.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Damaged("it is no regular file")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read a small file; Damaged where it has more than `most` bytes, FileNotFoundError where there is none."""
    with open_regular(path) as handle:
        try:
            content = handle.read(most + 1)
        except OSError as why:
            raise Damaged(f"it cannot be read: {why.strerror}") from None
    if len(content) > most:
        raise Damaged(f"it has more than {most:,} bytes")
    return content


# Documents


def with_digest(content: bytes) -> bytes:
    """A JSON object or YAML text with the digest of all the rest at its head."""
    if content.startswith(b"{"):
        rest = content[1:].lstrip()
        return _JSON_START + hashing(rest).hexdigest().encode() + (b'"' if rest == b"}" else b'", ') + rest
    return _YAML_START + hashing(content).hexdigest().encode() + b"\n" + content


def is_whole(content: bytes) -> bool:
    """Whether the digest at the head of a document is that of its rest."""
    found = _JSON_HEAD.match(content) or _YAML_HEAD.match(content)
    return found is not None and hashing(content[found.end() :]).hexdigest().encode() == found[1]


def read_json(path: Path) -> Any:
    """Read plain data; None where there is no file; Damaged where it is no JSON of a sensible size and depth."""
    try:
        return _parsed(read_bytes(path))
    except FileNotFoundError:
        return None


def _parsed(content: bytes) -> Any:
    try:
        found = json.loads(content, parse_constant=_no_number)
    except RecursionError:
        raise Damaged(f"it is nested more than {MOST_LEVELS} deep") from None
    except ValueError as why:
        raise Damaged(str(why)) from None
    level, below = [found], 0
    while level := [item for one in level for item in _items(one)]:
        below += 1
        if below > MOST_LEVELS:
            raise Damaged(f"it is nested more than {MOST_LEVELS} deep")
    return found


def _items(value: Any) -> Sequence[Any]:
    """What a value holds that may hold something itself."""
    held = value.values() if isinstance(value, dict) else value
    return [item for item in held if isinstance(item, (dict, list))]


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def read_document(path: Path, schema: type) -> dict[str, Any] | None:
    """Read what `write_document` wrote; None where there is no file.

    Raises
    ------
    Damaged
        The content is not what its digest says.
    InputError
        It is, and it is not of the form of `schema`: nothing that txeval wrote.
    """
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return None
    if not is_whole(content):
        raise Damaged("its content is not what its digest says")
    found: dict[str, Any] = _parsed(content)
    del found["sha256"]
    try:
        msgspec.convert(found, schema)
    except (ValueError, RecursionError) as why:
        raise InputError(
            f"{path}: {_said(found, str(why))}", remedy="do not use this file: txeval did not write it so"
        ) from None
    return found


def _said(found: Any, text: str) -> str:
    """What is wrong with a document: field, value, and what is due."""
    what, _, place = text.partition(" - at ")
    place = place.strip("`").removeprefix("$").lstrip(".")
    value = found
    for step in re.findall(r"[^.\[\]]+", place):
        try:
            value = value[int(step) if isinstance(value, list) else step]
        except (KeyError, IndexError, ValueError, TypeError):
            return f"{place}: {what}"
    if isinstance(value, (dict, list)) and len(value):
        return f"{place}: {what}" if place else what
    return f"{place} is {json.dumps(value)[:100]}: {what}"


# Other files, whose digest stands in a document


def seal_of(path: Path) -> Seal:
    """Size and digest of a file that is there."""
    made = hashing()
    with open_regular(path) as handle:
        size = 0
        while block := handle.read(_BLOCK):
            made.update(block)
            size += len(block)
    return {"size": size, "sha256": made.hexdigest()}


def verify(path: Path, seal: Seal) -> None:
    """Check that a file holds what was stored; once per process, as long as the file stays as it is.

    Raises
    ------
    FileNotFoundError, Damaged
    """
    with open_regular(path) as handle:
        state = os.fstat(handle.fileno())
        if state.st_size != seal["size"]:
            raise Damaged(f"it has {state.st_size:,} bytes instead of {seal['size']:,}")
        key = (os.fspath(path), state.st_ino, state.st_size, state.st_mtime_ns, seal["sha256"])
        if key in _verified:
            return
        made = hashing()
        while block := handle.read(_BLOCK):
            made.update(block)
    if made.hexdigest() != seal["sha256"]:
        raise Damaged("its content is not what its digest says")
    _verified.add(key)


@contextmanager
def open_table(path: Path, seal: Seal) -> Iterator[pq.ParquetFile]:
    """Open a table whose content is what was stored.

    Raises
    ------
    FileNotFoundError, Damaged
        It is not.
    InputError
        It is, and it is no table that fits into the memory, or something in it cannot be read.
    """
    verify(path, seal)
    with open_regular(path) as handle:
        try:
            table = pq.ParquetFile(handle)
            about = table.metadata
            needed = about.num_rows * about.num_columns * 8
            # Most tables are small: to ask the system for the limit costs more than to read them.
            if needed > _SMALL and needed > (room := memory_limit().bytes):
                raise InputError(
                    f"{path} declares {about.num_rows:,} rows of {about.num_columns:,} columns, which need "
                    f"{needed / 2**30:,.1f} GiB of memory ({room / 2**30:,.1f} GiB are there)",
                    remedy="do not use this file, or use a machine with more memory",
                )
            yield table
        except (pa.ArrowException, OSError) as why:
            raise unreadable(path, why) from None


def table_frame(
    path: Path, seal: Seal, *, where: tuple[str, str] | None = None, dictionary: Sequence[str] = ()
) -> pd.DataFrame:
    """Read a table whose content is what was stored; errors as of `open_table`.

    Parameters
    ----------
    where
        Column and value: only these rows.
    dictionary
        Columns of few different texts.
    """
    with open_table(path, seal) as table:
        frame: pd.DataFrame
        if where is None:
            frame = table.read().to_pandas()
            return frame
        missing = {where[0], *dictionary} - set(table.schema_arrow.names)
        if missing:
            raise unreadable(path, KeyError(f"it has no column {', '.join(sorted(missing))}"))
        with open_regular(path) as handle:
            filters = [(where[0], "==", where[1])]
            frame = pq.read_table(handle, filters=filters, read_dictionary=dictionary).to_pandas()
    return frame


def unreadable(path: Path, why: Exception) -> InputError:
    """What to say of a table that its writer stored like that."""
    text = " ".join(str(why).split())[:200] or type(why).__name__
    return InputError(f"{path} cannot be read: {text}", remedy="do not use this file: txeval did not write it so")
