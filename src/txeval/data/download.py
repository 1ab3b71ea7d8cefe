"""Fetching a file by HTTP: resumed after a cut, verified, atomic; and the file lists of Zenodo records."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from txeval.errors import InputError

__all__ = [
    "Broken",
    "Digests",
    "Progress",
    "Record",
    "RecordFile",
    "digests_of",
    "download",
    "explain",
    "fetch_record",
    "is_plain_name",
    "offline",
]

#: Called with (done, total, text); total is 0 where it is not known.
Progress = Callable[[int, int, str], None]

#: Attempts in a row that bring nothing before it is given up; each waits twice as long as the one before.
ATTEMPTS = 5
PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0

#: Seconds to connect, seconds between two packets.
TIMEOUT = (15.0, 60.0)

#: What a broken connection had in hand is lost, so not much at a time.
_CHUNK = 1 << 16

#: Answers that may be different a moment later.
_PASSING = (408, 425, 429, 500, 502, 503, 504)

#: Bytes of the description of a record: none comes near.
_LONGEST_RECORD = 1 << 24


class Broken(OSError):
    """A download that may go on later."""


@dataclass(frozen=True)
class Digests:
    """Digests of a file, in hexadecimal."""

    sha256: str
    md5: str


class _Anew(Exception):
    """What is here of a file is of no use."""


class _Hashes:
    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self.md5 = hashlib.md5(usedforsecurity=False)

    def update(self, piece: bytes) -> None:
        self.sha256.update(piece)
        self.md5.update(piece)

    def result(self) -> Digests:
        return Digests(self.sha256.hexdigest(), self.md5.hexdigest())


def digests_of(path: Path) -> Digests:
    """Digests of the bytes of a file."""
    hashes = _Hashes()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            hashes.update(piece)
    return hashes.result()


def download(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    md5: str = "",
    size: int | None = None,
    progress: Progress = lambda done, total, text: None,
) -> Digests:
    """Fetch a file by HTTP; it appears under its name when it is whole and verified.

    A connection that breaks is taken up again where it broke, as often as it brings something; what came before this
    process ended is kept in `.NAME.partial` and gone on with, where the server still has the same file (by its
    ETag) or a digest will tell. Proxies are those of HTTPS_PROXY, HTTP_PROXY and NO_PROXY.

    Parameters
    ----------
    sha256, md5, size
        What the file must have; "" and None: not known. The SHA-256 that the Hugging Face hub states is checked in
        any case.
    progress
        Called with (bytes done, bytes in all or 0, text).

    Raises
    ------
    Broken
        The connection broke or the server was out of order again and again: calling it again goes on from there.
    OSError, ValueError
        Whatever else went wrong, with a reason.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{url} is no address of the web")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.partial")
    note = target.with_name(f".{target.name}.partial.json")
    with _alone(target):
        best, failures = _size(part), 0
        while True:
            begun = _size(part)
            try:
                found, stated = _attempt(url, target.name, part, note, bool(sha256 or md5), size, progress)
                wrong = _compare(target.name, found, sha256=sha256, md5=md5, stated=stated)
                if not wrong:
                    part.replace(target)
                    note.unlink(missing_ok=True)
                    return found
                part.unlink(missing_ok=True)
                note.unlink(missing_ok=True)
                # Pieces of two files put together: once more, from the beginning.
                if not begun:
                    raise ValueError(wrong)
                best = 0
            except _Anew:
                best = 0
            except Broken as why:
                failures = 0 if _size(part) > best else failures + 1
                best = max(best, _size(part))
                limit = getattr(why, "attempts", ATTEMPTS)
                if failures >= limit:
                    raise
                wait = getattr(why, "wait", None) or PAUSE_SECONDS * 2**failures
                progress(_size(part), size or 0, f"fetching {target.name} (interrupted, trying again)")
                time.sleep(min(wait, LONGEST_PAUSE_SECONDS))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _compare(name: str, found: Digests, *, sha256: str, md5: str, stated: str) -> str:
    for kind, actual, expected, who in (
        ("SHA-256", found.sha256, sha256, "the catalogue"),
        ("SHA-256", found.sha256, stated, "the server"),
        ("MD5", found.md5, md5, "the record"),
    ):
        if expected and actual != expected:
            return f"{name} has the {kind} digest {actual}, but {who} says {expected}"
    return ""


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Keep other processes from fetching the same file."""
    try:
        import fcntl
    except ImportError:  # no such locks here
        yield
        return
    path = target.with_name(f".{target.name}.lock")
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is fetching {target}: wait for it") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _attempt(
    url: str, name: str, part: Path, note: Path, verifiable: bool, size: int | None, progress: Progress
) -> tuple[Digests, str]:
    """Fetch what is missing, once: digests of the whole, and the SHA-256 that the server states."""
    import requests

    headers = {"Accept-Encoding": "identity"}
    start = 0
    with suppress(OSError, ValueError, KeyError):
        known = json.loads(note.read_text())
        if known["url"] == url and (known["tag"] or verifiable):
            start = _size(part)
            if start:
                headers["Range"] = f"bytes={start}-"
                if known["tag"]:
                    headers["If-Range"] = known["tag"]
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            _refuse_unsafe(url, answer.url)
            if answer.status_code == 416 and start:
                # Nothing is left to send, or the file is another one: begin anew, which settles it.
                part.unlink(missing_ok=True)
                note.unlink(missing_ok=True)
                raise _Anew
            if answer.status_code in _PASSING:
                raise _passing(answer)
            answer.raise_for_status()
            goes_on = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(
                f"bytes {start}-"
            )
            if not goes_on:
                start = 0
            length = answer.headers.get("Content-Length", "")
            total = start + int(length) if length.isdigit() else (size or 0)
            if size is not None and total != size:
                raise ValueError(f"the server has {total:,} bytes of {name}, but the record says {size:,}")
            free = shutil.disk_usage(part.parent).free
            if total - start > free:
                need, room = (total - start) / 1e9, free / 1e9
                raise OSError(
                    errno.ENOSPC, f"{name} needs {need:,.2f} GB more, and {part.parent} has {room:,.2f} GB free"
                )
            tag = answer.headers.get("ETag", "")
            # A weak tag does not say that the bytes are the same.
            note.write_text(json.dumps({"url": url, "tag": "" if tag.startswith("W/") else tag}))
            return _store(answer, part, start, total, name, progress), _stated_digest(answer)
    except requests.exceptions.SSLError as why:
        raise OSError(f"no safe connection to {urlsplit(url).netloc} ({_reason(why)})") from why
    except (
        requests.exceptions.ConnectionError,
        requests.exceptions.Timeout,
        requests.exceptions.ChunkedEncodingError,
    ) as why:
        broken = Broken(f"no connection to {urlsplit(url).netloc} ({_reason(why)})")
        # Nobody answers: mostly there is no network at all, and waiting long would not help.
        broken.attempts = 2  # type: ignore[attr-defined]
        raise broken from why


def _passing(answer: Any) -> Broken:
    broken = Broken(f"{answer.status_code} {answer.reason} from {urlsplit(answer.url).netloc}")
    after = answer.headers.get("Retry-After", "")
    if after.isdigit():
        broken.wait = float(after)  # type: ignore[attr-defined]
    return broken


def _refuse_unsafe(asked: str, given: str) -> None:
    if urlsplit(asked).scheme == "https" and urlsplit(given).scheme != "https":
        raise ValueError(f"{asked} leads to {given}, which is not encrypted")


def _reason(why: BaseException) -> str:
    """The innermost reason, in a few words: urllib3 wraps it several times."""
    inner: Any = why
    while True:
        deeper = next((item for item in getattr(inner, "args", ()) if isinstance(item, BaseException)), None)
        deeper = deeper or getattr(inner, "reason", None)
        if not isinstance(deeper, BaseException):
            break
        inner = deeper
    text = " ".join(str(inner).split()) or type(inner).__name__
    return text.split(": ", 1)[-1][:200]


def _store(answer: Any, part: Path, start: int, total: int, name: str, progress: Progress) -> Digests:
    import requests

    hashes, done = _Hashes(), start
    if start:
        with part.open("rb") as before:
            while piece := before.read(_CHUNK):
                hashes.update(piece)
    try:
        with part.open("ab" if start else "wb") as out:
            progress(done, total, f"fetching {name}")
            for chunk in answer.iter_content(_CHUNK):
                out.write(chunk)
                hashes.update(chunk)
                done += len(chunk)
                progress(done, total, f"fetching {name}")
    except requests.exceptions.RequestException as why:
        raise Broken(f"the connection broke after {done:,} of {total:,} bytes of {name} ({_reason(why)})") from why
    if total and done != total:
        raise Broken(f"the connection ended after {done:,} of {total:,} bytes of {name}")
    return hashes.result()


def _stated_digest(answer: Any) -> str:
    """SHA-256 that the Hugging Face hub states for a large file, in the answer that sends us on to it."""
    for one in (*answer.history, answer):
        tag = one.headers.get("X-Linked-Etag", "").strip('"')
        if len(tag) == 64 and all(char in "0123456789abcdef" for char in tag):
            return str(tag)
    return ""


# Zenodo


@dataclass(frozen=True)
class RecordFile:
    """One file of a record.

    Attributes
    ----------
    size
        In bytes; None: the record does not say.
    md5
        "" where the record does not say.
    """

    record: int
    name: str
    size: int | None
    md5: str
    url: str


@dataclass(frozen=True)
class Record:
    """What a Zenodo record says of itself.

    Attributes
    ----------
    licence
        As the record spells it; "" where it does not say.
    """

    id: int
    title: str
    doi: str
    licence: str
    files: tuple[RecordFile, ...]


def is_plain_name(name: object) -> bool:
    """Whether a name from elsewhere is one file name, which stays in its folder on every system."""
    return (
        isinstance(name, str)
        and 0 < len(name.encode("utf-8", "replace")) <= 200
        and name.isprintable()
        and not name.startswith((".", "~", "-"))
        and not any(char in name for char in '/\\:*?"<>|')
    )


def fetch_record(record: int) -> Record:
    """Ask Zenodo for the files of a record; TXEVAL_ZENODO replaces the address https://zenodo.org.

    Raises
    ------
    Broken
        The server cannot be reached or is out of order.
    OSError, ValueError
        There is no such record, it is not public, or the answer makes no sense: another record, no files, a file
        name that is a path.
    """
    import requests

    home = (os.environ.get("TXEVAL_ZENODO") or "https://zenodo.org").rstrip("/")
    url = f"{home}/api/records/{record}"
    for attempt in range(max(1, ATTEMPTS)):
        try:
            with requests.get(url, timeout=TIMEOUT, stream=True, headers={"Accept": "application/json"}) as answer:
                _refuse_unsafe(url, answer.url)
                if answer.status_code in _PASSING:
                    raise _passing(answer)
                if answer.status_code in (404, 410):
                    raise ValueError(f"there is no record {record} at {home} ({answer.status_code})")
                if answer.status_code in (401, 403):
                    raise ValueError(f"the record {record} at {home} is not public ({answer.status_code})")
                answer.raise_for_status()
                return _read_record(_body(answer, url), record, home)
        except (Broken, requests.exceptions.ConnectionError, requests.exceptions.Timeout) as why:
            unreachable = not isinstance(why, Broken)
            if attempt + 1 >= (2 if unreachable else ATTEMPTS):
                reason = f"no connection to {urlsplit(url).netloc} ({_reason(why)})" if unreachable else str(why)
                raise Broken(reason) from why
            time.sleep(min(getattr(why, "wait", None) or PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS))
    raise AssertionError


def _body(answer: Any, url: str) -> dict[str, Any]:
    text = b""
    for piece in answer.iter_content(_CHUNK):
        text += piece
        if len(text) > _LONGEST_RECORD:
            raise ValueError(f"{url} answers with more than a record")
    try:
        content = json.loads(text)
    except ValueError:
        raise ValueError(f"{url} answers with something that is not JSON") from None
    if not isinstance(content, dict):
        raise ValueError(f"{url} does not answer with a record")
    return content


def _read_record(content: dict[str, Any], record: int, home: str) -> Record:
    if str(content.get("id")) != str(record):
        raise ValueError(f"asked for record {record}, {home} answers with record {content.get('id')!r}")
    raw = content.get("metadata")
    about: dict[str, Any] = raw if isinstance(raw, dict) else {}
    listed = content.get("files")
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"record {record} lists no files: it is empty or not public")
    files = []
    for item in listed:
        # Two spellings of the interface: key / size / "md5:..." and filename / filesize / "...".
        item = item if isinstance(item, dict) else {}
        name = item.get("key", item.get("filename"))
        if not is_plain_name(name):
            raise ValueError(f"record {record} lists a file called {name!r}, which is no plain file name")
        size = item.get("size", item.get("filesize"))
        kind, _, value = str(item.get("checksum") or "").rpartition(":")
        value = value.lower()
        is_md5 = kind in ("", "md5") and len(value) == 32 and all(char in "0123456789abcdef" for char in value)
        files.append(
            RecordFile(
                record=record,
                name=str(name),
                size=size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else None,
                md5=value if is_md5 else "",
                url=f"{home}/api/records/{record}/files/{quote(str(name))}/content",
            )
        )
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        raise ValueError(f"record {record} lists two files of one name")
    licence = about.get("license")
    if isinstance(licence, dict):
        licence = licence.get("id")
    return Record(
        id=record,
        title=str(about.get("title") or ""),
        doi=str(content.get("doi") or about.get("doi") or ""),
        licence=str(licence or ""),
        files=tuple(files),
    )


def offline() -> bool:
    """Whether TXEVAL_OFFLINE forbids to use the network."""
    return os.environ.get("TXEVAL_OFFLINE", "0") not in ("", "0")


def explain(what: str, why: BaseException, remedy: str) -> InputError:
    """Error for something that could not be fetched."""
    again = "try again later, and it goes on from there; or " if isinstance(why, Broken) else ""
    reason = " ".join(str(why).split())[:400] or type(why).__name__
    if isinstance(why, OSError) and why.errno in (errno.ENOSPC, errno.EDQUOT):
        again = "make room, and the same command goes on from there; or "
        reason = str(why.strerror)
    return InputError(f"could not fetch {what}: {reason}", remedy=again + remedy)
