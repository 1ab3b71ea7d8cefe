"""Runs on a Dask cluster: one that is there, or one that dask-jobqueue starts.

The client decides which worker does what: cells of one embedding go to the worker that has it open, each worker has one
cell at work and one waiting, and a job whose worker is lost is given again. So Dask needs no settings of its own, and a
worker that joins late or leaves early changes nothing but the time.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
import os
import pickle
import queue
import re
import shutil
import threading
import time
import uuid
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from txeval._version import __version__
from txeval.errors import InputError, TxevalError, unknown
from txeval.protocol import read_yaml
from txeval.run.files import write_atomically
from txeval.run.plan import CellGroup
from txeval.run.pool import LOST_TRIES, Hooks, Job, Needs
from txeval.run.remote import Ticket, do, forget, probe
from txeval.run.worker import Report, Setup

__all__ = ["ClusterError", "ClusterFile", "Dask", "Place", "check_place", "read_cluster"]

#: Seconds within which a scheduler must answer when the run starts, and later.
CONNECT_WITHIN = 30.0
ANSWER_WITHIN = 60.0

#: Seconds within which the first worker of a running cluster must join, and another one after the last has gone.
WORKERS_WITHIN = 600.0

#: The same for workers that wait in the queue of a batch system.
QUEUED_WITHIN = 7 * 24 * 3600.0

#: So long is waited at first for what all workers say of themselves; one that computes for somebody else says it late.
TRIED_WITHIN = 10.0

#: How often it is asked which workers are there.
LOOK_EVERY = 1.0

#: Jobs that a worker has at a time: one at work, one waiting, so that no worker waits for the client.
DEPTH = 2

#: Kinds of batch systems, and their classes in dask-jobqueue.
TYPES = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "lsf": "LSFCluster",
    "sge": "SGECluster",
    "htcondor": "HTCondorCluster",
    "oar": "OARCluster",
    "moab": "MoabCluster",
    "local": "LocalCluster",
}

_ADDRESS = re.compile(r"[a-z]+://\S+|[^\s:/]+:\d+")


class ClusterError(InputError):
    """The cluster cannot be used, or has gone; what was finished before is kept."""

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.problem, self.remedy))


def _rebuild(problem: str, remedy: str) -> ClusterError:
    return ClusterError(problem, remedy=remedy)


@dataclass(frozen=True)
class ClusterFile:
    """What a cluster file asks for.

    Attributes
    ----------
    type
        Batch system, one of `TYPES`.
    options
        Options of the class of dask-jobqueue.
    minimum, maximum
        Number of workers; equal where it is fixed.
    start_timeout
        Seconds within which the first worker must start.
    """

    path: Path
    type: str
    options: Mapping[str, Any]
    minimum: int
    maximum: int
    start_timeout: float = QUEUED_WITHIN

    def make(self) -> Any:
        """Give the cluster of dask-jobqueue, without workers yet.

        Raises
        ------
        InputError
            dask-jobqueue is missing, refuses the options, or the batch system is not on this machine.
        """
        _need("dask_jobqueue")
        import dask_jobqueue
        from dask_jobqueue.local import LocalCluster

        kind: Any = LocalCluster if self.type == "local" else getattr(dask_jobqueue, TYPES[self.type])
        # A dashboard would be open to everybody on the network; who wants one says so.
        # Whoever reaches an open port of Dask runs what they like in the name of the user. The certificates lie beside
        # the cluster file, readable for the user alone, until the cluster ends.
        options = {"security": True, "shared_temp_directory": str(self.path.absolute().parent), **self.options}
        if not options["security"]:
            options["security"] = None
        elif options["security"] is True:
            _need("cryptography")
        quiet = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
        options["scheduler_options"] = {**quiet, **(options.get("scheduler_options") or {})}
        try:
            return kind(**options)
        except (TypeError, ValueError) as why:
            raise InputError(
                f"{self.path}: dask-jobqueue refuses the options of {self.type}: {why}",
                remedy=f"see the parameters of dask_jobqueue.{TYPES[self.type]}",
            ) from None

    def check_here(self) -> None:
        """Check that the batch system takes jobs from this machine."""
        import dask_jobqueue

        if self.type == "local":
            return
        command = str(getattr(dask_jobqueue, TYPES[self.type]).job_cls.submit_command).split()[0]
        if shutil.which(command) is None:
            raise InputError(
                f"{self.path} asks for {self.type}, and there is no command {command} on this machine",
                remedy="start the run where jobs can be submitted, or give a running cluster: --scheduler ADDRESS",
            )


@dataclass(frozen=True)
class Place:
    """Where the workers are.

    Attributes
    ----------
    scheduler
        Address of a running scheduler, or the file that it writes its address to.
    cluster
        What starts the workers, where no scheduler is given.
    """

    scheduler: str | None = None
    cluster: ClusterFile | None = None

    @property
    def text(self) -> str:
        """What to call it in messages."""
        if self.cluster is not None:
            return f"the {self.cluster.type} cluster of {self.cluster.path}"
        return f"the scheduler {self.scheduler}"


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise InputError(
            f"the executor dask needs the package {package.replace('_', '-')}, which is not installed",
            remedy="pip install 'txeval[cluster]'",
        )


def check_place(scheduler: str | None, cluster: Path | None) -> Place:
    """Check what can be said of a cluster without talking to it.

    Raises
    ------
    InputError
        Neither or both are given, the address is none, the file cannot be used, or Dask is not installed.
    """
    if (scheduler is None) == (cluster is None):
        what = "neither a scheduler nor a cluster file is given" if scheduler is None else "both are given"
        raise InputError(
            f"executor dask: {what}",
            remedy="give --scheduler tcp://HOST:PORT of a running cluster, or --cluster FILE.yaml that starts one",
        )
    _need("distributed")
    if cluster is not None:
        _need("dask_jobqueue")
        return Place(cluster=read_cluster(cluster))
    assert scheduler is not None  # one of the two is given
    if not scheduler.endswith(".json") and not _ADDRESS.fullmatch(scheduler):
        raise InputError(
            f"scheduler: {scheduler!r} is no address",
            remedy="give tcp://HOST:PORT as `dask scheduler` prints it, or its --scheduler-file NAME.json",
        )
    return Place(scheduler=scheduler)


_KEYS = {
    "type": "one of " + ", ".join(TYPES),
    "workers": "a whole number from 1 up",
    "minimum": "a whole number from 0 up",
    "maximum": "a whole number from 1 up",
    "start_timeout": "a number of seconds",
    "options": "name: value lines",
}


def read_cluster(path: Path) -> ClusterFile:
    """Read a cluster file: `type`, `workers` (or `minimum` and `maximum`), `start_timeout`, `options`.

    Raises
    ------
    InputError
        It cannot be read, has an unknown name, contradicts itself, or would start workers with several threads.
    """
    if not path.is_file():
        raise InputError(f"cluster: there is no file {path}", remedy="give a YAML file; docs/cluster.md has examples")
    content = read_yaml(path, "")
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no settings", remedy="write type:, workers: and options:")
    for name in content:
        if name not in _KEYS:
            raise unknown("setting", str(name), _KEYS, where=str(path))

    def bad(name: str) -> InputError:
        return InputError(f"{path}: {name} is {content.get(name)!r}", remedy=f"give {_KEYS[name]}")

    def whole(name: str, low: int, default: int) -> int:
        value = content.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise bad(name)
        return value

    if content.get("type") is None:
        raise InputError(f"{path}: type is missing", remedy=f"give {_KEYS['type']}")
    if content["type"] not in TYPES:
        raise unknown("batch system", str(content["type"]), TYPES, where=str(path))
    if "workers" in content and ("minimum" in content or "maximum" in content):
        raise InputError(
            f"{path}: workers contradicts minimum and maximum", remedy="give workers, or minimum and maximum"
        )
    if "workers" not in content and "maximum" not in content:
        raise InputError(f"{path} does not say how many workers", remedy="give workers:, or minimum: and maximum:")
    maximum = whole("maximum", 1, 1) if "maximum" in content else whole("workers", 1, 1)
    minimum = whole("minimum", 0, 1) if "maximum" in content else maximum
    if minimum > maximum:
        raise InputError(f"{path}: minimum {minimum} is above maximum {maximum}", remedy="exchange them")
    wait = content.get("start_timeout", QUEUED_WITHIN)
    if not isinstance(wait, (int, float)) or isinstance(wait, bool) or not wait > 0:
        raise bad("start_timeout")
    options = content.get("options") or {}
    if not isinstance(options, dict):
        raise bad("options")
    cores = options.get("cores", 1)
    if not isinstance(cores, int) or isinstance(cores, bool) or cores < 1:
        raise InputError(f"{path}: options: cores is {cores!r}", remedy="give a whole number from 1 up")
    made = {"cores": cores, "processes": cores, **options}
    if made["processes"] != cores:
        raise InputError(
            f"{path}: {cores} cores in {made['processes']} processes would make workers of several threads",
            remedy=f"a cell needs a process of its own: leave processes out, or write processes: {cores}",
        )
    return ClusterFile(path, str(content["type"]), made, minimum, maximum, float(wait))


@dataclass
class _Sent:
    """One try of one job."""

    token: str
    number: int
    future: Any
    address: str
    started: bool = False


@dataclass
class _Member:
    """A worker of the cluster.

    Attributes
    ----------
    number
        For messages and the display.
    jobs
        Tries that it has, in their order.
    group
        What its last job was about.
    """

    address: str
    number: int
    host: str
    pid: int
    resources: dict[str, float]
    memory: int
    jobs: OrderedDict[str, _Sent] = field(default_factory=OrderedDict)
    group: str = ""

    @property
    def text(self) -> str:
        return f"{self.address} (process {self.pid} on {self.host})"

    def lacks(self, needs: Mapping[str, float]) -> str:
        """What it does not have of what a job needs; "" where it can do it."""
        if self.memory < needs.get("MEMORY", 0):
            return f"{needs['MEMORY'] / 2**30:.1f} GiB of memory (it may take {self.memory / 2**30:.1f})"
        for name, amount in needs.items():
            if name != "MEMORY" and self.resources.get(name, 0.0) < amount:
                return f"{name}={amount:g} (it declares {self.resources.get(name, 0.0):g})"
        return ""


class _Waiting:
    """Jobs that no worker has yet, by what they are about."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._groups: OrderedDict[str, deque[int]] = OrderedDict()
        self.jobs: list[Job] = []
        self.extend(jobs)

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def extend(self, jobs: Sequence[Job]) -> None:
        """Take further jobs in."""
        for job in jobs:
            self.jobs.append(job)
            self.add(len(self.jobs) - 1)

    def add(self, number: int, *, first: bool = False) -> None:
        """Take a job in; `first`: before the others of its group."""
        group = self._groups.setdefault(group_of(self.jobs[number]), deque())
        (group.appendleft if first else group.append)(number)

    def take(self, mine: str, others: set[str], fits: Callable[[Job], bool]) -> int | None:
        """Give a job that fits: of the own group, else of the first that nobody is at, else of the longest."""
        order = sorted(
            self._groups, key=lambda name: (name != mine, name in others, -len(self._groups[name]) * (name in others))
        )
        for name in order:
            for number in self._groups[name]:
                if fits(self.jobs[number]):
                    self._groups[name].remove(number)
                    if not self._groups[name]:
                        del self._groups[name]
                    return number
        return None

    def first(self) -> Job:
        """Give one of them, without taking it."""
        return self.jobs[next(iter(self._groups.values()))[0]]


def group_of(job: Job) -> str:
    """What a worker reads for a job: jobs of one group are best done by one worker."""
    embedding = getattr(job, "embedding", None)
    found = getattr(job, "group", None) or getattr(embedding or job, "key", None)
    return str(found or job.text)


class Dask:
    """Does jobs on the workers of a Dask cluster.

    A job whose worker is lost is tried again, `LOST_TRIES` times in all. Workers that cannot be used (another version,
    several threads, no sight of the files) are an error when the run starts, and left out with a warning later.

    Parameters
    ----------
    setup
        Written to the results folder, where every worker reads it once.
    place
        Which cluster.
    hooks
        Told what happens.
    needs
        What a job asks of a worker: its resources count where it declares them, MEMORY also where its limit is known.
    """

    def __init__(self, setup: Setup, place: Place, hooks: Hooks, needs: Needs = lambda job: {}) -> None:
        self.setup = replace(setup, folder=Path(setup.folder).absolute())
        self.place = place
        self.hooks = hooks
        self.needs = needs
        self._stack = ExitStack()
        self._said: queue.SimpleQueue[tuple[str, str, str, Any]] = queue.SimpleQueue()
        self._members: dict[str, _Member] = {}
        self._unfit: dict[str, str] = {}
        self._probing: dict[str, Any] = {}
        self._futures: dict[str, _Sent] = {}
        self._left = _Waiting([])
        self._lost: dict[int, int] = {}
        self._count = 0
        self._looked = -LOOK_EVERY
        self._alone_since = time.monotonic()
        self._first = 0.0
        self._began = False

    # Opening and closing

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._close(gently=False)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(gently=kind is None)

    def _open(self) -> None:
        _need("distributed")
        importlib.import_module("distributed")
        self._stack.enter_context(_quiet())
        address: Any = self.place.scheduler
        wait = WORKERS_WITHIN
        if self.place.cluster is not None:
            asked = self.place.cluster
            cluster = asked.make()
            self._stack.callback(_within, 20.0, cluster.close)
            asked.check_here()
            if asked.minimum == asked.maximum:
                cluster.scale(asked.maximum)
            else:
                cluster.adapt(minimum=asked.minimum, maximum=asked.maximum)
            address, wait = cluster, asked.start_timeout
        elif address.endswith(".json"):
            address = _address_in(Path(address))
        self._wait = wait
        self._client = self._connect(address)
        self._stack.callback(_within, 10.0, self._client.close, 5)
        self._check_versions()
        self._ticket = self._issue()
        self._client.subscribe_topic(self._ticket.id, self._hear)

    def _connect(self, address: Any) -> Any:
        import distributed

        # Of a cluster that is made here Dask knows the certificate.
        if isinstance(address, str):
            security: Any = distributed.Security
            has = security().get_connection_args("client")
            encrypted = address.startswith("tls://")
            if (encrypted and has["ssl_context"] is None) or (has["require_encryption"] and not encrypted):
                why = "it asks for a certificate" if encrypted else "Dask is told here to refuse what is not encrypted"
                raise ClusterError(
                    f"{self.place.text} cannot be reached: {why}",
                    remedy="give an address in tls:// and the variables of its certificate as docs/cluster.md shows",
                )
        connect: Any = distributed.Client
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                client = connect(address, timeout=CONNECT_WITHIN, set_as_default=False, name="txeval")
            except (OSError, TimeoutError, ValueError) as why:
                raise ClusterError(
                    f"{self.place.text} does not answer within {CONNECT_WITHIN:.0f} seconds "
                    f"({_line(why) or type(why).__name__})",
                    remedy="start it (`dask scheduler`), or check address, port, firewall and certificate",
                ) from None
        for item in caught:
            if type(item.message).__name__ == "VersionMismatchWarning":
                self.hooks.warn(f"{self.place.text}: {' '.join(str(item.message).split())}")
        return client

    def _check_versions(self) -> None:
        """Compare the versions of txeval: without it, neither scheduler nor workers could read a job."""
        found = self._ask(lambda: self._client.get_versions(packages=["txeval"]))
        sides = [
            ("the scheduler", found["scheduler"]),
            *((f"worker {at}", has) for at, has in found["workers"].items()),
        ]
        for side, has in sides:
            version = (has or {}).get("packages", {}).get("txeval")
            if version != __version__:
                raise ClusterError(
                    f"{side} of {self.place.text} has txeval {version or 'not installed'}, this process {__version__}"
                    if version
                    else f"{side} of {self.place.text} has no txeval; this process has {__version__}",
                    remedy="install the same version on both sides",
                )

    def _issue(self) -> Ticket:
        """Write the setup where the workers read it, and give the ticket that tells them of it."""
        run = f"txeval-{uuid.uuid4().hex}"
        content = pickle.dumps(self.setup)
        # Should the client be killed, the next run clears it away: its name is that of a temporary file.
        path = self.setup.folder / f".{run}.tmp"
        write_atomically(path, lambda handle: _write(handle, content))
        self._stack.callback(_remove, path)
        screen = Path(self.setup.screen.path).absolute()
        return Ticket(
            id=run,
            version=__version__,
            setup=str(path),
            digest=hashlib.sha256(content).hexdigest(),
            screen=str(screen),
            screen_bytes=screen.stat().st_size if screen.is_file() else -1,
            cwd=str(Path.cwd()),
            device=self.setup.device,
            memory=self.setup.memory,
            environment={name: value for name, value in os.environ.items() if name.startswith("TXEVAL_")},
        )

    def _close(self, *, gently: bool) -> None:
        client = getattr(self, "_client", None)
        if client is not None and client.status == "running":
            left = [sent.future for sent in self._futures.values()] + list(self._probing.values())
            if left:
                _within(3.0, lambda: client.cancel(left, force=True))
            if gently and hasattr(self, "_ticket"):
                # Workers that compute for somebody else by now let go by themselves.
                _within(3.0, lambda: client.run(forget, self._ticket.id, on_error="ignore", wait=False))
        self._stack.close()

    # Running

    def run(self, jobs: Sequence[Job]) -> None:
        """Do all jobs.

        Raises
        ------
        ClusterError
            The scheduler has gone, no worker is left, or none can be used.
        Exception
            What a worker raised that concerns the whole run: a full disk, an embedding that cannot be used.
        """
        self._left = _Waiting(jobs)
        self._lost = {}
        while self._left or self._futures:
            self._look()
            self._give()
            for message in self._heard():
                self._take(*message)

    def room(self) -> tuple[int, int]:
        """Number of workers, and bytes that each may take; waits for the first worker."""
        while not self._members:
            self._look()
            for message in self._heard():
                self._take(*message)
        many = max(len(self._members), self.place.cluster.maximum if self.place.cluster else 1)
        return many, min(member.memory for member in self._members.values())

    def _hear(self, event: tuple[float, Any]) -> None:
        """Keep what a worker says; called from the thread of the connection."""
        kind, address, token, content = event[1]
        self._said.put((str(kind), str(address), str(token), content))

    def _heard(self) -> Iterator[tuple[str, str, str, Any]]:
        with suppress(queue.Empty):
            yield self._said.get(timeout=0.2)
            while True:
                yield self._said.get_nowait()

    def _take(self, kind: str, address: str, token: str, content: Any) -> None:
        """Act on what was said."""
        if kind == "probed":
            self._admit(address, pickle.loads(content))  # noqa: S301 (of our own workers)
            return
        if kind == "warned":
            self.hooks.warn(content.decode())
            return
        if kind == "probe failed":
            self._probing.pop(token, None)
            self._reject(token, content)
            return
        sent = self._futures.get(token)
        if sent is None:
            # A try that was given up meanwhile.
            return
        member = self._members.get(sent.address)
        job = self._left.jobs[sent.number]
        number = member.number if member is not None else 0
        if kind == "started":
            sent.started = True
            self.hooks.started(number, job)
        elif kind == "says":
            self.hooks.says(number, content.decode())
        elif kind == "raised":
            raise _placed(pickle.loads(content), member.text if member else sent.address)  # noqa: S301
        elif kind == "ended":
            self._drop(token)
            report: Report = pickle.loads(content)  # noqa: S301
            self._left.extend(self.hooks.ended(number, job, report))
        elif kind == "cancelled":
            self._check_connection()
            raise self._gone("has given up the jobs of this run: it was started anew, or somebody cancelled them")
        elif kind == "failed":
            # Its worker could not even begin.
            self._drop(token, cancel=True)
            self._again(sent, content, number)

    def _drop(self, token: str, *, cancel: bool = False) -> None:
        sent = self._futures.pop(token)
        member = self._members.get(sent.address)
        if member is not None:
            member.jobs.pop(token, None)
        if cancel:
            with suppress(Exception):
                sent.future.cancel(force=True)
        else:
            sent.future.release()

    def _again(self, sent: _Sent, cause: str, number: int) -> None:
        """Count a lost try, and give the job again or give it up."""
        job = self._left.jobs[sent.number]
        if isinstance(job, CellGroup):
            # Alone they need less memory, and one that kills its worker is told from the others.
            self.hooks.warn(f"{job.text}: {cause}; trying each alone")
            self._left.extend(job.cells)
            return
        self._lost[sent.number] = self._lost.get(sent.number, 0) + 1
        if self._lost[sent.number] < LOST_TRIES:
            self.hooks.warn(f"{job.text}: {cause}; trying again")
            self._left.add(sent.number, first=True)
        else:
            self.hooks.ended(number, job, Report("error", f"lost {LOST_TRIES} times, the last time: {cause}"))

    # Which workers are there

    def _look(self) -> None:
        """Ask now and then who is there; take back the jobs of those that are gone, and try those that are new."""
        self._check_connection()
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY:
            return
        there = set(self._ask(lambda: self._client.nthreads(callback_timeout=ANSWER_WITHIN)))
        self._looked = time.monotonic()
        for address in [address for address in self._members if address not in there]:
            member = self._members.pop(address)
            self.hooks.sized(len(self._members))
            for token, sent in list(member.jobs.items()):
                self._drop(token, cancel=True)
                if sent.started:
                    cause = f"worker {member.text} is lost (killed, out of memory, or its time was up)"
                    self._again(sent, cause, member.number)
                else:
                    self._left.add(sent.number, first=True)
        for address in [address for address in self._probing if address and address not in there]:
            self._probing.pop(address).release()
        for address in [address for address in self._unfit if address not in there]:
            del self._unfit[address]
        for address in there - set(self._members) - set(self._unfit) - set(self._probing):
            self._try_out(address)
        if not there and "" not in self._probing:
            # A cluster that scales by demand starts its first worker for this one.
            self._try_out("")
        self._wait_for_workers()

    def _wait_for_workers(self) -> None:
        if self._members:
            self._alone_since = time.monotonic()
            return
        waited = time.monotonic() - self._alone_since
        if self._unfit and not self._probing and waited > 5 * LOOK_EVERY:
            address, fault = next(iter(self._unfit.items()))
            raise ClusterError(f"no worker of {self.place.text} can be used: {address} {fault}")
        if waited > self._wait:
            what = "has gone and no other came" if self._began else "has joined it"
            raise ClusterError(
                f"{self.place.text} has no workers: none {what} within {self._wait:.0f} seconds",
                remedy="start some (`dask worker ADDRESS --nthreads 1`) and run the same command again",
            )
        if waited > 30 and not self._unfit:
            self.hooks.warn(f"{self.place.text} has no workers yet; waiting for the first")

    def _try_out(self, address: str) -> None:
        """Have a worker (any, where no address is given) say whether it can compute for this run."""
        future = self._client.submit(
            probe,
            self._ticket,
            key=f"txeval_probe-{uuid.uuid4().hex}",
            pure=False,
            **({"workers": [address]} if address else {}),
        )
        self._probing[address] = future

        def tell(done: Any) -> None:
            if done.status == "error":
                self._said.put(("probe failed", address, address, _of(done)))

        future.add_done_callback(tell)

    def _admit(self, address: str, offer: Mapping[str, Any]) -> None:
        for known in (address, ""):
            if known in self._probing:
                self._probing.pop(known).release()
        if address in self._members:
            return
        problem, remedy = offer["fault"]
        if problem:
            self._reject(address, f"{problem}; {remedy}", (f"worker {address} on {offer['host']} {problem}", remedy))
            return
        resources = dict(offer["resources"])
        if resources.get("GPU", 0) > 0 and self.setup.device == "cpu":
            self.hooks.warn("there are workers with a GPU, which this run does not use: --device cuda would")
        self._members[address] = _Member(
            address, self._count, offer["host"], int(offer["pid"]), resources, int(offer["memory"])
        )
        self._first = self._first or time.monotonic()
        self._count += 1
        self.hooks.sized(len(self._members))

    def _reject(self, address: str, fault: str, error: tuple[str, str] | None = None) -> None:
        """Leave a worker out; before the first job is given that is an error, since it will not be the only one."""
        if not self._began:
            problem, remedy = error or (f"worker {address} cannot be used: {fault}", "look at its log")
            raise ClusterError(problem, remedy=remedy)
        self._unfit[address] = fault
        self.hooks.warn(f"worker {address} is left out: it {fault}")

    def _check_connection(self) -> None:
        if self._client.status != "running":
            raise self._gone()

    def _gone(self, text: str = "has gone") -> ClusterError:
        return ClusterError(
            f"{self.place.text} {text}; finished scores are kept",
            remedy="start it again, and run the same command: it goes on from there",
        )

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except TimeoutError:
            raise self._gone(f"does not answer within {ANSWER_WITHIN:.0f} seconds") from None
        except OSError:
            raise self._gone() from None

    # Who does what

    def _give(self) -> None:
        """Give jobs to those that have less than they may have; at first wait a little for all to be tried out."""
        if not self._began:
            if not self._members or (self._probing and time.monotonic() - self._first < TRIED_WITHIN):
                return
            self._began = True
        for depth in range(1, DEPTH + 1):
            for member in sorted(self._members.values(), key=lambda one: len(one.jobs)):
                if len(member.jobs) < depth:
                    self._give_one(member)
        if self._left and self._members and not self._futures:
            member = next(iter(self._members.values()))
            job = self._left.first()
            lacks = member.lacks(self.needs(job))
            raise ClusterError(
                f"no worker of {self.place.text} can do {job.text}: {member.text} lacks {lacks}",
                remedy="start workers with more memory, with --resources GPU=1 where --device cuda is asked for",
            )

    def _give_one(self, member: _Member) -> None:
        def fits(job: Job) -> bool:
            return not member.lacks(self.needs(job))

        others = {other.group for other in self._members.values() if other is not member and other.jobs}
        number = self._left.take(member.group, others, fits)
        if number is None and not member.jobs:
            number = self._take_back(fits)
        if number is not None:
            self._send(member, number, self._left.jobs[number])

    def _take_back(self, fits: Callable[[Job], bool]) -> int | None:
        """Take a job that waits at a busy worker, for one that has nothing to do."""
        for member in self._members.values():
            waiting = [sent for sent in member.jobs.values() if not sent.started and fits(self._left.jobs[sent.number])]
            if len(member.jobs) > 1 and waiting:
                self._drop(waiting[-1].token, cancel=True)
                return waiting[-1].number
        return None

    def _send(self, member: _Member, number: int, job: Job) -> None:
        token = uuid.uuid4().hex
        member.group = group_of(job)
        needs = {name: amount for name, amount in self.needs(job).items() if name in member.resources}
        future = self._client.submit(
            do,
            self._ticket,
            token,
            pickle.dumps(job),
            # Dask learns from the front part how long jobs of a kind take, and scales by that.
            key=f"txeval_{getattr(job, 'task', 'embedding')}-{token}",
            pure=False,
            workers=[member.address],
            allow_other_workers=False,
            **({"resources": needs} if needs else {}),
        )
        sent = _Sent(token, number, future, member.address)
        self._futures[token] = member.jobs[token] = sent

        def tell(done: Any) -> None:
            if done.status == "error":
                self._said.put(("failed", member.address, token, f"worker {member.text}: {_of(done)}"))
            elif done.status == "cancelled":
                self._said.put(("cancelled", member.address, token, ""))

        future.add_done_callback(tell)


def _of(future: Any) -> str:
    """Why a future has no result."""
    with suppress(Exception):
        why = future.exception(timeout=5)
        return f"{type(why).__name__}: {_line(why)}"
    return "an error that cannot be read"


def _placed(why: BaseException, place: str) -> BaseException:
    """An error of a worker, with its place."""
    if isinstance(why, InputError):
        why.problem = f"{why.problem} (on worker {place})"
        why.args = (f"{why.problem}\n  -> {why.remedy}" if why.remedy else why.problem,)
        return why
    return why if isinstance(why, TxevalError) else TxevalError(f"worker {place}: {why}")


def _line(why: BaseException) -> str:
    return " ".join(str(why).split())


def _write(handle: Any, content: bytes) -> None:
    handle.write(content)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _address_in(path: Path) -> str:
    """Address in the file that a scheduler writes, which may come late."""
    deadline = time.monotonic() + CONNECT_WITHIN
    while True:
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["address"])
        except (OSError, ValueError, KeyError, TypeError) as why:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the scheduler file {path} cannot be read within {CONNECT_WITHIN:.0f} seconds ({_line(why)})",
                    remedy="start the scheduler with `dask scheduler --scheduler-file FILE`",
                ) from None
        time.sleep(0.2)


def _within(seconds: float, act: Callable[..., object], *arguments: Any) -> bool:
    """Do something that may hang, and do not wait for it longer than this."""

    def work() -> None:
        with suppress(Exception):
            act(*arguments)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask from writing to standard error what is said here in words."""
    # Dask gives some of its loggers levels of their own.
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in ("distributed", "tornado")]
    before = {name: logging.getLogger(name).level for name in {"distributed", "distributed.client", *names}}
    for name in before:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
