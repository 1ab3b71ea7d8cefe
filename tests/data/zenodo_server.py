"""A server on this machine that speaks the interface of Zenodo, and fails in every way that one can ask for."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@dataclass
class Zenodo:
    """What the server holds, and how it behaves.

    Attributes
    ----------
    records
        Record -> file name -> content.
    cut_after
        Bytes of each answer with a file after which the connection ends; None: none.
    refusals
        Answers with a file that are refused with `status` before one is given.
    api_refusals
        The same for descriptions of records.
    pause
        Seconds between two pieces of a file.
    ranges, tags
        Whether it sends parts of files, and says by a tag which file it has.
    lies
        File name -> digest that the record states, instead of the right one.
    redirects
        File name -> address that its address leads to.
    answer
        What a description of a record is replaced by.
    asked
        (path, Range) of every request.
    """

    records: dict[int, dict[str, bytes]] = field(default_factory=dict)
    cut_after: int | None = None
    status: int = 500
    refusals: int = 0
    api_refusals: int = 0
    retry_after: str = ""
    pause: float = 0.0
    piece: int = 1 << 16
    ranges: bool = True
    tags: bool = True
    lies: dict[str, str] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    answer: Any = None
    old_spelling: bool = False
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    address: str = ""

    def describe(self, record: int) -> dict[str, Any]:
        files = []
        for name, content in self.records[record].items():
            digest = self.lies.get(name, md5(content))
            if self.old_spelling:
                files.append({"filename": name, "filesize": len(content), "checksum": digest})
            else:
                links = {"self": f"{self.address}/api/records/{record}/files/{name}/content"}
                files.append({"key": name, "size": len(content), "checksum": f"md5:{digest}", "links": links})
        metadata = {"title": f"Record {record}", "license": {"id": "cc-by-4.0"}, "doi": f"10.5281/zenodo.{record}"}
        return {"id": record, "doi": f"10.5281/zenodo.{record}", "metadata": metadata, "files": files}

    def count(self, text: str) -> int:
        """Requests whose path has this text in it."""
        return sum(text in path for path, _ in self.asked)

    def statistics(self) -> Counter[str]:
        return Counter(path for path, _ in self.asked)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Zenodo

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        state, path = self.state, unquote(urlsplit(self.path).path)
        state.asked.append((path, self.headers.get("Range")))
        try:
            described = re.fullmatch(r"/api/records/(\d+)", path)
            if described:
                self._describe(int(described[1]))
                return
            asked = re.fullmatch(r"/api/records/(\d+)/files/(.+)/content", path)
            moved = re.fullmatch(r"/elsewhere/(\d+)/(.+)", path)
            found = asked or moved
            content = state.records.get(int(found[1]), {}).get(found[2]) if found else None
            if content is None:
                self.send_error(404)
            elif state.refusals > 0:
                state.refusals -= 1
                self._refuse()
            elif asked and found and found[2] in state.redirects:
                self._head(302, 0, Location=state.redirects[found[2]])
            else:
                self._send(content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _refuse(self) -> None:
        more = {"Retry-After": self.state.retry_after} if self.state.retry_after else {}
        self._head(self.state.status, 0, **more)

    def _head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _describe(self, record: int) -> None:
        state = self.state
        if state.api_refusals > 0:
            state.api_refusals -= 1
            self._refuse()
            return
        if record not in state.records:
            self.send_error(404)
            return
        answer = state.describe(record) if state.answer is None else state.answer
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self._head(200, len(body), Content_Type="application/json")
        self.wfile.write(body)

    def _send(self, content: bytes) -> None:
        state, wanted = self.state, self.headers.get("Range")
        tag = f'"md5:{md5(content)}"'
        same = self.headers.get("If-Range") in (None, tag)
        tags = {"ETag": tag} if state.tags else {}
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and state.ranges and same else 0
        if start and start >= len(content):
            self._head(416, 0)
            return
        if start:
            part = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._head(206, len(content) - start, Content_Range=part, **tags)
        else:
            self._head(200, len(content), **tags)
        body = content[start:] if state.cut_after is None else content[start : start + state.cut_after]
        for a in range(0, len(body), state.piece):
            self.wfile.write(body[a : a + state.piece])
            self.wfile.flush()
            if state.pause:
                time.sleep(state.pause)
        if len(body) < len(content) - start:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up: tests make them."""


@contextmanager
def zenodo_server(records: dict[int, dict[str, bytes]] | None = None) -> Iterator[Zenodo]:
    """Run the server while the block lasts."""
    state = Zenodo(records=records or {})
    handler = type("Handler", (_Handler,), {"state": state})
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        state.address = f"http://127.0.0.1:{server.server_port}"
        yield state
        server.shutdown()
        thread.join()
