"""Shows a leaderboard on this machine; imports nothing that is slow to load."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from txeval.errors import InputError

__all__ = ["HOST", "make_server"]

#: Only this machine can reach it.
HOST = "127.0.0.1"


class _Quiet(SimpleHTTPRequestHandler):
    """Serves the files of one folder, without a line per request and without lists of folders."""

    server: ThreadingHTTPServer

    def send_head(self) -> Any:
        """Open what is asked for: a regular file of the site, asked for by a name of this machine.

        A page of another site that has its name point here would be asked for under that name.
        """
        port = self.server.server_address[1]
        if self.headers.get("Host") not in {f"{name}:{port}" for name in (HOST, "localhost")}:
            self.send_error(421)
            return None
        file = None
        # A ValueError: a name with a null character.
        with suppress(OSError, ValueError):
            path = Path(self.translate_path(self.path))
            file = (path / "index.html" if path.is_dir() else path).resolve(strict=True)
        if file is None or not file.is_file() or not file.is_relative_to(Path(self.directory).resolve()):
            self.send_error(404)
            return None
        return super().send_head()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def list_directory(self, path: object) -> None:
        """Refuse: there is nothing to choose from but the page."""
        self.send_error(404)

    def end_headers(self) -> None:
        """Add what keeps a browser from guessing types and from keeping an old page."""
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()


def make_server(site: Path, port: int) -> ThreadingHTTPServer:
    """Server of a site, to be started with `serve_forever`.

    Parameters
    ----------
    port
        0: any that is free.

    Raises
    ------
    InputError
        There is no site, or the port cannot be used.
    """
    if not (site / "index.html").is_file():
        raise InputError(f"{site} holds no site", remedy=f"make it: txeval leaderboard build RESULTS... --out {site}")
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Quiet, directory=str(site)))
    except (OSError, OverflowError) as why:
        raise InputError(f"port {port} cannot be used: {why}", remedy="name another: --port 0 takes any") from None
