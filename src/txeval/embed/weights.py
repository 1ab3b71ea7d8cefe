"""Weights of models: where they come from, where they are looked for, and how they are fetched and checked."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, Any
from urllib.parse import quote

import yaml

from txeval.data.download import download as transfer
from txeval.data.download import offline
from txeval.data.locate import Progress, cache_folder, data_folders, file_digest
from txeval.destination import check_destination
from txeval.errors import InputError, unknown

__all__ = [
    "Archive",
    "Check",
    "RemoteFile",
    "Weights",
    "catalogue",
    "download",
    "fetch_weights",
    "find_weights",
    "list_weights",
    "record_weights",
    "search_places",
    "verify_weights",
]

#: File of a folder of weights that says what its files are.
DIGESTS = "digests.json"

_CHUNK = 1 << 20
_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class RemoteFile:
    """One file of a model.

    Attributes
    ----------
    path
        Where it lies in the folder of the weights, with "/".
    url
        Where it comes from; "" for a file of a shared folder.
    sha256, bytes
        Digest and size of the published file, where they are known.
    """

    path: str
    url: str = ""
    sha256: str = ""
    bytes: int | None = None

    @property
    def pinned(self) -> bool:
        """Whether anything is known of the published file that a copy can be compared with."""
        return self.bytes is not None or bool(self.sha256)


@dataclass(frozen=True)
class Archive:
    """A .zip or .tar.gz file that some files of a model come in.

    Attributes
    ----------
    members
        Pattern of a file name -> folder that such files are put in.
    """

    url: str
    name: str
    members: Mapping[str, str]


@dataclass(frozen=True)
class Weights:
    """The weights of a model, as the catalogue knows them.

    Attributes
    ----------
    models
        Embedders that read them.
    source
        "huggingface", "http", "gdrive" or "dropbox".
    address
        Page where a person finds them.
    megabytes
        About how much there is to fetch; None: not known.
    folder
        Name of their folder; weights of one repository share it.
    drive
        Identifier of a shared folder of Google Drive that holds `files`.
    """

    name: str
    title: str
    source: str
    address: str
    licence: str = ""
    citation: str = ""
    models: tuple[str, ...] = ()
    megabytes: float | None = None
    folder: str = ""
    drive: str = ""
    files: tuple[RemoteFile, ...] = ()
    archives: tuple[Archive, ...] = ()

    def missing(self, folder: Path) -> list[str]:
        """Files that a folder lacks, by path or pattern."""
        lacking = [file.path for file in self.files if not (folder / file.path).is_file()]
        for archive in self.archives:
            lacking += [
                str(PurePosixPath(place) / pattern)
                for pattern, place in archive.members.items()
                if not any((folder / place).glob(pattern))
            ]
        return lacking


@cache
def catalogue() -> Mapping[str, Weights]:
    """Every known set of weights, by name."""
    found: dict[str, Weights] = {}
    root = resources.files("txeval.embed") / "catalogue"
    for item in sorted(root.iterdir(), key=lambda item: item.name):
        if item.name.endswith(".yaml"):
            for name, content in yaml.safe_load(item.read_text(encoding="utf-8")).items():
                if name != "defaults":
                    found[name] = _weights(name, content)
    return MappingProxyType(found)


def _weights(name: str, content: Mapping[str, Any]) -> Weights:
    content = dict(content)
    page = content["address"].rstrip("/")
    files = []
    for item in content.pop("files", ()):
        described = {"path": item} if isinstance(item, str) else dict(item)
        if content["source"] == "huggingface":
            described.setdefault("url", f"{page}/resolve/main/{quote(described['path'])}")
        files.append(RemoteFile(**described))
    return Weights(
        name=name,
        models=tuple(content.pop("models", (name,))),
        folder=content.pop("folder", name),
        files=tuple(files),
        archives=tuple(Archive(**item) for item in content.pop("archives", ())),
        **content,
    )


def list_weights() -> list[Weights]:
    """Every known set of weights, in the order of their names."""
    return [catalogue()[name] for name in sorted(catalogue())]


def _entry(model: str) -> Weights:
    for entry in catalogue().values():
        if model == entry.name or model in entry.models:
            return entry
    names = sorted({*catalogue(), *(model for entry in catalogue().values() for model in entry.models)})
    raise unknown("model with weights", model, names)


def search_places(entry: Weights) -> list[Path]:
    """Folders where weights are looked for, in this order.

    Those that TXEVAL_WEIGHTS names, then `weights` in the data folders (TXEVAL_DATA), then the cache; in each first
    under the name of the weights, then under that of their folder.
    """
    roots = [Path(part).expanduser() for part in os.environ.get("TXEVAL_WEIGHTS", "").split(os.pathsep) if part]
    roots += [folder / "weights" for folder in data_folders()]
    roots.append(cache_folder() / "weights")
    return [root / name for root in roots for name in dict.fromkeys((entry.name, entry.folder))]


def find_weights(model: str, *, given: str = "") -> Path:
    """Folder of the weights of a model, without fetching anything.

    Parameters
    ----------
    model
        Name of weights, or of an embedder that reads some.
    given
        Folder that the user names; nothing else is looked at then.

    Raises
    ------
    InputError
        There is none: says where it was looked for, where the weights come from, and how to get them.
    """
    if given:
        folder = Path(given).expanduser()
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise InputError(f"the weights folder of {model}, {folder}, {what}", remedy="check the path")
        return folder
    entry = _entry(model)
    places = search_places(entry)
    there = [place for place in places if place.is_dir() and any(place.iterdir())]
    # A folder may hold other files than the catalogue knows, such as those of an older version.
    for place in there:
        if not entry.missing(place):
            return place
    if there:
        return there[0]
    unset = "" if os.environ.get("TXEVAL_WEIGHTS") else " (TXEVAL_WEIGHTS is not set)"
    raise InputError(
        f"{model} needs its weights, which are not here; looked in {', '.join(map(str, places))}{unset}",
        remedy=f"`txeval weights fetch {entry.name}`, or {_by_hand(entry, places[0])};"
        " or name their folder: weights=DIR",
    )


def _by_hand(entry: Weights, folder: Path) -> str:
    names = [file.path for file in entry.files]
    names += [str(PurePosixPath(place) / name) for archive in entry.archives for name, place in archive.members.items()]
    return f"get them from {entry.address} and put them into {folder} as {', '.join(names)}"


# Fetching


def fetch_weights(
    model: str | Weights, folder: Path | None = None, *, progress: Progress = lambda done, total, text: None
) -> Path:
    """Fetch the weights of a model; what is there already and is whole stays.

    An interrupted download goes on where it was, where the server allows it. The SHA-256 digest of every file is
    written to `digests.json`.

    Parameters
    ----------
    model
        Name of weights or of an embedder, or an entry of one's own.
    folder
        Where to; None: the first folder that TXEVAL_WEIGHTS names, else the cache.
    progress
        Called with (bytes done, bytes in all or 0, text).

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        They cannot be fetched: names the address, and how to put the files there by hand.
    """
    entry = model if isinstance(model, Weights) else _entry(model)
    if folder is None:
        base = os.environ.get("TXEVAL_WEIGHTS", "").split(os.pathsep)[0]
        folder = (Path(base).expanduser() if base else cache_folder() / "weights") / entry.folder
    folder = check_destination(folder, option="--to", folder=True)
    missing = entry.missing(folder)
    if not missing and all(check.whole for check in verify_weights(folder, entry)):
        _record(folder, entry.name, {})
        return folder
    by_hand = _by_hand(entry, folder)
    if offline():
        raise InputError(
            f"the weights {entry.name} lack {', '.join(missing)} in {folder}, and TXEVAL_OFFLINE forbids to fetch them",
            remedy=f"unset TXEVAL_OFFLINE, or {by_hand}",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        changed = {check.path for check in verify_weights(folder, entry) if not check.whole}
        for file in entry.files:
            if file.url and (file.path in missing or file.path in changed):
                digest = download(file.url, folder / file.path, sha256=file.sha256, progress=progress)
                _check_size(file, folder)
                _record(folder, entry.name, {file.path: (file.url, digest)})
        for archive in entry.archives:
            _unpack_needed(entry, archive, folder, changed, progress)
        if entry.drive and (set(missing) | changed) & {file.path for file in entry.files}:
            _from_drive(entry, folder, progress)
    except (OSError, ValueError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as why:
        reason = " ".join(str(why).split())[:300] or type(why).__name__
        raise InputError(
            f"could not fetch the weights {entry.name} from {entry.address}: {reason}",
            remedy=f"the same command goes on from here; or {by_hand}",
        ) from why
    lacking = entry.missing(folder)
    if lacking:
        raise InputError(
            f"{entry.address} gave no {', '.join(lacking)}: it has changed since this program was written",
            remedy=by_hand,
        )
    return folder


def _check_size(file: RemoteFile, folder: Path) -> None:
    """Remove a fetched file that has another size than the published one; ValueError says so."""
    size = (folder / file.path).stat().st_size
    if file.bytes is not None and size != file.bytes:
        (folder / file.path).unlink()
        raise ValueError(f"{file.path} has {size:,} bytes, but the catalogue says {file.bytes:,}")


def download(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    progress: Progress = lambda done, total, text: None,
) -> str:
    """Fetch a file, as `txeval.data.download.download` does, and give its SHA-256 digest.

    The address https://huggingface.co is replaced by that of HF_ENDPOINT, where that is set.
    """
    if url.startswith(f"{_HUB}/"):
        url = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/") + url.removeprefix(_HUB)
    return transfer(url, target, sha256=sha256, progress=progress).sha256


def _unpack_needed(entry: Weights, archive: Archive, folder: Path, changed: Iterable[str], progress: Progress) -> None:
    """Fetch an archive and take out what is wanted, unless all of it is there."""
    wanted = {
        pattern: place
        for pattern, place in archive.members.items()
        if not any((folder / place).glob(pattern))
        or any(fnmatch.fnmatchcase(path, str(PurePosixPath(place) / pattern)) for path in changed)
    }
    if not wanted:
        return
    packed = folder / archive.name
    taken: dict[str, tuple[str, str]] = {}
    try:
        download(archive.url, packed, progress=progress)
        with _members(packed) as members:
            for name, handle, size in members:
                base = PurePosixPath(name.replace("\\", "/")).name
                for pattern, place in wanted.items():
                    if fnmatch.fnmatchcase(base, pattern):
                        progress(0, size, f"unpacking {base}")
                        target = folder / place / base
                        _write_whole(target, handle)
                        path = str(PurePosixPath(place) / base)
                        taken[path] = (archive.url, file_digest(target))
    finally:
        _record(folder, entry.name, taken)
        packed.unlink(missing_ok=True)


@contextmanager
def _members(packed: Path) -> Iterator[Iterator[tuple[str, IO[bytes], int]]]:
    """Plain files of a .zip or .tar file: (name, content, size). Names are used for comparison only."""

    def of_zip(archive: zipfile.ZipFile) -> Iterator[tuple[str, IO[bytes], int]]:
        for item in archive.infolist():
            if not item.is_dir():
                with archive.open(item) as handle:
                    yield item.filename, handle, item.file_size

    def of_tar(archive: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes], int]]:
        for item in archive:
            handle = archive.extractfile(item) if item.isfile() else None
            if handle is not None:
                yield item.name, handle, item.size

    if zipfile.is_zipfile(packed):
        with zipfile.ZipFile(packed) as zipped:
            yield of_zip(zipped)
    else:
        with tarfile.open(packed) as tarred:
            yield of_tar(tarred)


def _write_whole(target: Path, handle: IO[bytes]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.partial")
    try:
        with part.open("wb") as out:
            shutil.copyfileobj(handle, out, _CHUNK)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _from_drive(entry: Weights, folder: Path, progress: Progress) -> None:
    """Fetch a shared folder of Google Drive."""
    try:
        import gdown
    except ImportError:
        raise InputError(
            f"fetching {entry.name} from Google Drive needs the package gdown",
            remedy=f"pip install 'txeval[download]', or {_by_hand(entry, folder)}",
        ) from None
    room = folder / ".drive"
    room.mkdir(exist_ok=True)
    progress(0, 0, f"fetching {entry.name} from Google Drive")
    try:
        listed = gdown.download_folder(id=entry.drive, output=str(room), quiet=True, use_cookies=False, resume=True)
    # What gdown raises for links, quotas and connections has no common base but this.
    except Exception as why:
        raise OSError(f"Google Drive: {why}") from why
    found = {Path(str(name)).name: Path(str(name)) for name in listed or []}
    taken = {}
    for file in entry.files:
        here = found.get(PurePosixPath(file.path).name)
        if here is not None and here.is_file():
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            here.replace(folder / file.path)
            taken[file.path] = (entry.address, file_digest(folder / file.path))
    _record(folder, entry.name, taken)
    shutil.rmtree(room, ignore_errors=True)


# Checking


@dataclass(frozen=True)
class Check:
    """What became of a file.

    Attributes
    ----------
    state
        "ok"; "not published": it is not the file that the catalogue describes; "changed": its digest is not the
        recorded one; "missing"; "not recorded": nothing to compare with.
    found, recorded
        SHA-256 digests; "" where there is none.
    published
        What the catalogue knows of the file, and it was compared with: "size and digest", "size", or "unknown".
    """

    path: str
    state: str
    found: str = ""
    recorded: str = ""
    origin: str = ""
    published: str = "unknown"

    @property
    def whole(self) -> bool:
        """Whether nothing speaks against the file."""
        return self.state in ("ok", "not recorded")


def _read_record(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / DIGESTS
    if not path.is_file():
        return {}
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        if not all(isinstance(item["sha256"], str) for item in files.values()):
            raise ValueError("a digest is no text")
        return dict(files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as why:
        raise InputError(
            f"{path} is no record of digests ({why})",
            remedy="remove it, and record the files anew: txeval weights verify DIR --record",
        ) from why


def _record(folder: Path, name: str, digests: Mapping[str, tuple[str, str]]) -> None:
    """Add files, path -> (origin, digest), to the record of a folder."""
    files = _read_record(folder)
    for path, (origin, digest) in digests.items():
        files[path] = {
            "sha256": digest,
            "bytes": (folder / path).stat().st_size,
            "from": origin,
            "weights": name,
            "recorded": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
    if files:
        text = json.dumps({"files": dict(sorted(files.items()))}, indent=1)
        part = folder / f".{DIGESTS}.{os.getpid()}.partial"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / DIGESTS)


def _files(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    relative = (path.relative_to(folder) for path in paths)
    return sorted(
        path.as_posix()
        for path in relative
        if not any(part.startswith(".") for part in path.parts) and path.name != DIGESTS
    )


def verify_weights(folder: Path, entry: Weights | None = None) -> list[Check]:
    """Compare every file of a folder with the published one, and with the digest recorded when it was fetched.

    What is known of published files is in the catalogue: size and digest, the size alone, or nothing.

    Parameters
    ----------
    entry
        Weights whose files alone are wanted; None: all that are there or recorded, whichever weights they are of.

    Raises
    ------
    InputError
        There is no such folder, or its record is damaged.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        if entry is not None:
            return []
        raise InputError(f"there is no folder {folder}", remedy="check the path")
    recorded = _read_record(folder)
    names = sorted({*recorded, *_files(folder)})
    if entry is not None:
        patterns = [file.path for file in entry.files]
        patterns += [str(PurePosixPath(place) / name) for a in entry.archives for name, place in a.members.items()]
        names = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    checks = []
    for name in names:
        known = recorded.get(name, {})
        expected, origin = str(known.get("sha256", "")), str(known.get("from", ""))
        if not (folder / name).is_file():
            checks.append(Check(name, "missing", "", expected, origin))
            continue
        found = file_digest(folder / name)
        state = "not recorded" if not expected else "ok" if found == expected else "changed"
        file = _published(name, entry)
        known_of_it = "unknown"
        if file is not None:
            known_of_it = "size and digest" if file.sha256 else "size"
            fits = file.bytes in (None, (folder / name).stat().st_size) and file.sha256 in ("", found)
            if not fits:
                state = "not published"
            elif file.sha256:
                state = "ok"
        checks.append(Check(name, state, found, expected, origin, known_of_it))
    return checks


def _published(name: str, entry: Weights | None) -> RemoteFile | None:
    """What the catalogue knows of a file by its path in a folder of weights."""
    entries = catalogue().values() if entry is None else [entry]
    return next((file for known in entries for file in known.files if file.path == name and file.pinned), None)


def record_weights(folder: Path) -> list[Check]:
    """Record the digests of files that have none, such as those that were put there by hand; the others stay."""
    folder = Path(folder).expanduser()
    checks = verify_weights(folder)
    _record(folder, "", {check.path: ("", check.found) for check in checks if check.state == "not recorded"})
    return verify_weights(folder)
