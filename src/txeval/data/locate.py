"""Where the data are: a folder that the user names, or a download with a checksum."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import yaml

from txeval.data.download import Digests, Progress, digests_of, download, explain, offline
from txeval.errors import InputError, unknown

__all__ = [
    "Entry",
    "Progress",
    "cache_folder",
    "catalogue",
    "data_folders",
    "fetch",
    "file_digest",
    "file_digests",
    "find_file",
    "whole_or_nothing",
]


@dataclass(frozen=True)
class Entry:
    """A file that the program knows of.

    Attributes
    ----------
    id
        Name in the catalogue.
    path
        Where it lies under a data folder, with "/".
    url, sha256
        Where to download it and the digest of its bytes; "" for a file that is prepared from another.
    licence
        SPDX identifier of the licence of the data.
    non_commercial
        Whether the licence forbids commercial use.
    citation, description
        Whom to cite, and what it is.
    """

    id: str
    path: str
    url: str = ""
    sha256: str = ""
    licence: str = ""
    non_commercial: bool = False
    citation: str = ""
    description: str = ""


@cache
def catalogue() -> Mapping[str, Entry]:
    """Every known file, by its id."""
    entries: dict[str, Entry] = {}
    folder = resources.files("txeval.data") / "catalogue"
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.name.endswith(".yaml"):
            for name, content in yaml.safe_load(item.read_text(encoding="utf-8")).items():
                entries[name] = Entry(id=name, **content)
    return MappingProxyType(entries)


def cache_folder() -> Path:
    """Folder of the downloads: the one that TXEVAL_CACHE names, else the user's cache."""
    named = os.environ.get("TXEVAL_CACHE")
    if named:
        return Path(named)
    import pooch

    return Path(pooch.os_cache("txeval"))


def data_folders() -> list[Path]:
    """Folders that may hold data, in the order of the search.

    The folder that TXEVAL_DATA names, then a folder `shared/data` beside a source checkout (of this module, or
    the current folder). Downloads are not among them: see `cache_folder`.

    Raises
    ------
    InputError
        Where TXEVAL_DATA names a folder that does not exist.
    """
    folders = []
    named = os.environ.get("TXEVAL_DATA")
    if named:
        if not Path(named).is_dir():
            raise InputError(
                f"TXEVAL_DATA names {named}, which is not a folder", remedy="set it to a folder, or unset it"
            )
        folders.append(Path(named))
    for root in (Path(__file__).resolve().parents[3], Path.cwd()):
        beside = root.parent / "shared" / "data"
        if (root / "src" / "txeval" / "data" / "locate.py").is_file() and beside.is_dir() and beside not in folders:
            folders.append(beside)
    return folders


def find_file(relative: str) -> Path | None:
    """Find a file by its path under a data folder, without downloading it.

    Looks in `data_folders()` (in the folder of TXEVAL_DATA also for the bare file name) and then among the
    downloads. A catalogued file must have the catalogued bytes.

    Parameters
    ----------
    relative
        Path under a data folder, or the id of a catalogued file.

    Returns
    -------
    Path or None
        None where it is nowhere. A download whose bytes are wrong counts as not there.

    Raises
    ------
    InputError
        For a file in a data folder whose bytes are not the catalogued ones, and for a path that leaves the folder.
    """
    return _find(_entry(relative))


def fetch(what: str | Entry, *, progress: Progress | None = None) -> Path:
    """Find a file, or download it into the cache.

    A download is checked against its digest before it takes its place; what came before a connection broke is kept
    beside it, hidden, and gone on with. TXEVAL_OFFLINE=1 forbids downloads.

    Parameters
    ----------
    what
        Id of a catalogued file, its path under a data folder, or an entry of one's own.
    progress
        Called with (bytes done, bytes in all, text).

    Raises
    ------
    InputError
        Where it is nowhere and cannot be downloaded: names the file, the address, and where to put it by hand.
    """
    entry = what if isinstance(what, Entry) else _entry(what)
    found = _find(entry)
    if found is not None:
        return found
    by_hand = cache_folder().joinpath(*PurePosixPath(entry.path).parts)
    if not entry.url:
        if entry.id not in catalogue():
            raise unknown("data file", entry.path, _names(), where=_searched())
        raise InputError(f"{entry.path} is not there: looked in {_searched()}", remedy=f"put it at {by_hand}")
    remedy = f"download it by hand and put it at {by_hand}, or into a folder that TXEVAL_DATA names, as {entry.path}"
    if offline():
        raise InputError(
            f"{entry.path} is not there and TXEVAL_OFFLINE forbids to download it from {entry.url}",
            remedy=f"unset TXEVAL_OFFLINE, or {remedy}",
        )
    try:
        download(entry.url, by_hand, sha256=entry.sha256, progress=progress or (lambda done, total, text: None))
    except (OSError, ValueError) as why:
        raise explain(f"{entry.path} from {entry.url}", why, remedy) from why
    return by_hand


def file_digest(path: Path) -> str:
    """SHA-256 of the bytes of a file, in hexadecimal."""
    return file_digests(path).sha256


def file_digests(path: Path) -> Digests:
    """SHA-256 and MD5 of the bytes of a file; read once for each state of the file."""
    state = path.stat()
    return _digests(str(path), state.st_size, state.st_mtime_ns)


@contextmanager
def whole_or_nothing(out: Path) -> Iterator[Path]:
    """Give a file to write to that becomes `out` when the block ends, and vanishes where it fails.

    Raises
    ------
    InputError
        Where the file cannot be written.
    """
    part: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.stem}-", suffix=out.suffix)
        os.close(handle)
        part = Path(name)
        yield part
        part.chmod(0o666 & ~_umask())
        part.replace(out)
    except OSError as why:
        raise InputError(f"cannot write {out}: {why.strerror or why}", remedy="name another folder") from why
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _umask() -> int:
    # There is no way to read it but to set it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@cache
def _digests(path: str, size: int, mtime_ns: int) -> Digests:
    return digests_of(Path(path))


def _names() -> list[str]:
    return [*catalogue(), *(entry.path for entry in catalogue().values())]


def _searched() -> str:
    return ", ".join(map(str, [*data_folders(), cache_folder()]))


def _entry(what: str) -> Entry:
    for entry in catalogue().values():
        if what in (entry.id, entry.path):
            return entry
    path = PurePosixPath(what)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise InputError(f"{what!r} is no path under a data folder", remedy="give a relative path such as a/b.h5ad")
    return Entry(id=what, path=str(path))


def _find(entry: Entry) -> Path | None:
    relative = PurePosixPath(entry.path)
    places = [folder.joinpath(*relative.parts) for folder in data_folders()]
    if os.environ.get("TXEVAL_DATA"):
        places.insert(1, Path(os.environ["TXEVAL_DATA"]) / relative.name)
    for place in places:
        if place.is_file():
            if entry.sha256 and file_digest(place) != entry.sha256:
                raise InputError(
                    f"{place} has the SHA-256 digest {file_digest(place)}; {entry.id} has {entry.sha256}",
                    remedy=f"replace it by the file from {entry.url}, or give it another name",
                )
            return place
    cached = cache_folder().joinpath(*relative.parts)
    if cached.is_file() and (not entry.sha256 or file_digest(cached) == entry.sha256):
        return cached
    return None
