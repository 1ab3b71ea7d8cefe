"""Shows a leaderboard on this machine; imports nothing that is slow to load."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from txeval.errors import InputError

__all__ = ["HOST", "make_server"]

#: Only this machine can reach it.
HOST = "127.0.0.1"


class _Quiet(SimpleHTTPRequestHandler):
    """Serves the files of one folder, without a line per request and without lists of folders."""

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
