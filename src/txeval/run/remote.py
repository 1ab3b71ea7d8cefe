"""What runs on the workers of a Dask cluster. Imports little: the scheduler reads this module too."""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from txeval._version import __version__

if TYPE_CHECKING:
    from txeval.run.worker import Worker

__all__ = ["Ticket", "do", "forget", "probe"]

#: A network file system may show a new file this many seconds late.
VISIBLE_WITHIN = 5.0


@dataclass(frozen=True)
class Ticket:
    """What a worker of a cluster is told of a run with each job; the rest lies in a file of the results folder.

    Attributes
    ----------
    id
        Of the run; also the topic under which its workers speak.
    version
        Of txeval, where the run was started.
    setup, digest
        The file with the pickled `Setup`, and the SHA-256 that it must have.
    screen, screen_bytes
        The screen, and the size of its file (-1 for a folder).
    cwd
        The current folder of the client, which relative paths start from.
    device
        What the jobs compute on.
    memory
        Bytes that a worker may take at most.
    environment
        Variables that txeval reads.
    """

    id: str
    version: str
    setup: str
    digest: str
    screen: str
    screen_bytes: int
    cwd: str
    device: str
    memory: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Open:
    """The run that this process computes for, with what it keeps open."""

    id: str
    worker: Worker


_open: _Open | None = None


def probe(ticket: Ticket) -> None:
    """Tell the client whether this worker can compute for its run, and what it has to offer."""
    from distributed import get_worker

    me = get_worker()
    _say(ticket, "probed", "", pickle.dumps({**_offer(ticket, me), "fault": _fault(ticket, me)}))


def do(ticket: Ticket, token: str, job: bytes) -> None:
    """Do one job of a run and tell the client how it went.

    Parameters
    ----------
    token
        What the client calls this try.
    job
        The pickled job.
    """
    _say(ticket, "started", token)
    try:
        with _as_the_client(ticket):
            from txeval.run.worker import single_threaded

            worker = _worker(ticket)
            # Other runs may share this process: threads are limited for the job alone.
            with single_threaded():
                report = worker.do(pickle.loads(job), lambda text: _say(ticket, "says", token, text.encode()))  # noqa: S301 (the client's own)
    except Exception as why:
        from txeval.errors import TxevalError

        if not isinstance(why, TxevalError):
            raise
        _say(ticket, "raised", token, pickle.dumps(why))
        return
    _say(ticket, "ended", token, pickle.dumps(report))


def forget(run: str) -> None:
    """Let go of what a run keeps open here."""
    global _open
    if _open is not None and _open.id == run:
        with suppress(Exception):
            _open.worker.screen.close()
        _open = None


def _worker(ticket: Ticket) -> Worker:
    global _open
    if _open is None or _open.id != ticket.id:
        from txeval.run.worker import Worker

        if _open is not None:
            forget(_open.id)
        setup = pickle.loads(_setup(ticket))  # noqa: S301 (its digest came from the client)
        setup = replace(setup, memory=_memory(ticket))
        _open = _Open(ticket.id, Worker(setup, lambda text: _say(ticket, "warned", "", text.encode())))
    return _open.worker


def _memory(ticket: Ticket) -> int:
    """Bytes that this worker may take: the least of what the run, the worker's limit and the machine allow."""
    from distributed import get_worker

    from txeval.compute.machine import memory_limit, reserve

    me = get_worker()
    machine = memory_limit().bytes
    bounds = [
        ticket.memory,
        me.memory_manager.memory_limit,
        me.state.total_resources.get("MEMORY"),
        machine - reserve(machine),
    ]
    return int(min(bound for bound in bounds if bound))


def _setup(ticket: Ticket) -> bytes:
    """Content of the setup file; OSError or ValueError where it cannot be had."""
    path = Path(ticket.setup)
    deadline = time.monotonic() + VISIBLE_WITHIN
    while not path.is_file() and path.parent.is_dir() and time.monotonic() < deadline:
        time.sleep(0.2)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != ticket.digest:
        raise ValueError(f"{path} is not the file that the client wrote")
    return content


def _offer(ticket: Ticket, me: Any) -> dict[str, Any]:
    return {
        "address": str(me.address),
        "host": platform.node(),
        "pid": os.getpid(),
        "resources": {str(name): float(amount) for name, amount in dict(me.state.total_resources).items()},
        "memory": _memory(ticket),
    }


def _fault(ticket: Ticket, me: Any) -> tuple[str, str]:
    """What keeps this worker from computing for a run, and the remedy; two empty texts where nothing does."""
    if ticket.version != __version__:
        return (
            f"has txeval {__version__}, and the run was started with {ticket.version}",
            "install the same version on both sides",
        )
    if me.state.nthreads != 1:
        return (
            f"has {me.state.nthreads} threads; a cell needs a process of its own",
            "start workers with --nthreads 1, and as many of them as there are cores (--nworkers)",
        )
    if ticket.device != "cpu":
        from txeval.compute.machine import resolve_device
        from txeval.errors import InputError

        try:
            resolve_device(ticket.device)
        except InputError as why:
            return f"cannot compute on {ticket.device}: {why.problem}", why.remedy
    folder = Path(ticket.setup).parent
    try:
        _setup(ticket)
    except (OSError, ValueError) as why:
        text = why.strerror if isinstance(why, OSError) else str(why)
        return f"does not see the results folder {folder} ({text})", "give a folder that all workers see: --out"
    mark = folder / "cells" / f".{ticket.id}.{platform.node()}.{os.getpid()}.tmp"
    try:
        mark.write_bytes(b"x")
        mark.unlink()
    except OSError as why:
        return f"cannot write to {folder} ({why.strerror})", "let the workers write there, or give another folder"
    screen = Path(ticket.screen)
    try:
        size = screen.stat().st_size if ticket.screen_bytes >= 0 else -1
        if not screen.exists():
            raise FileNotFoundError(2, "No such file or directory")
    except OSError as why:
        return (
            f"does not see the screen {screen} ({why.strerror})",
            "put it where all workers see it, under the same path",
        )
    if size != ticket.screen_bytes:
        return (
            f"sees another file as {screen}: {size:,} bytes instead of {ticket.screen_bytes:,}",
            "let all workers see the same file under this path",
        )
    return "", ""


def _say(ticket: Ticket, kind: str, token: str = "", content: bytes = b"") -> None:
    from distributed import get_worker

    me = get_worker()
    me.log_event(ticket.id, [kind, str(me.address), token, content])


@contextmanager
def _as_the_client(ticket: Ticket) -> Iterator[None]:
    """Let relative paths and the variables of txeval mean what they mean for the client."""
    folder = Path.cwd()
    names = {name for name in os.environ if name.startswith("TXEVAL_")} | set(ticket.environment)
    before = {name: os.environ.get(name) for name in names}
    _set(dict.fromkeys(names), ticket.environment)
    with suppress(OSError):
        os.chdir(ticket.cwd)
    try:
        yield
    finally:
        _set(before)
        with suppress(OSError):
            os.chdir(folder)


def _set(*sets: Mapping[str, str | None]) -> None:
    for name, value in {name: value for values in sets for name, value in values.items()}.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
