"""Worker processes: each has its own pipe, so that it is known which one does what and which one has died."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from txeval.errors import TxevalError
from txeval.run.plan import Cell, CellGroup, EmbeddingJob
from txeval.run.worker import Report, Setup, Worker, single_threaded

if TYPE_CHECKING:
    from txeval.run.cluster import Place

__all__ = ["LOST_TRIES", "Here", "Hooks", "Job", "Pool", "Runner", "make_runner"]

Job = EmbeddingJob | Cell | CellGroup

#: What a job asks of a worker of a cluster, by the name of the resource.
Needs = Callable[[Job], dict[str, float]]

#: How often a job is tried whose worker process died.
LOST_TRIES = 3

#: Environment variables that set the number of threads of numerical libraries when they are loaded.
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


class Hooks(Protocol):
    """What the one who gives the jobs wants to be told."""

    def started(self, worker: int, job: Job) -> None:
        """A worker begins a job."""
        ...

    def says(self, worker: int, text: str) -> None:
        """A worker tells how far it is."""
        ...

    def ended(self, worker: int, job: Job, report: Report) -> list[Job]:
        """A job has ended, with or without a result; give what of it is to be done once more."""
        ...

    def sized(self, workers: int) -> None:
        """There are so many workers now."""
        ...

    def warn(self, text: str) -> None:
        """Something is odd."""
        ...


class Runner(Protocol):
    """Does jobs somewhere, within a `with` block; what it raises concerns the whole run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, jobs: Sequence[Job]) -> None:
        """Do all jobs; each is told to the hooks when it begins and ends."""
        ...

    def room(self) -> tuple[int, int]:
        """Number of workers, and bytes that each may take."""
        ...


class Here:
    """Does jobs in this process, one after the other, with one thread."""

    def __init__(self, setup: Setup, hooks: Hooks) -> None:
        self.hooks = hooks
        self.worker = Worker(setup, hooks.warn)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def room(self) -> tuple[int, int]:
        """Number of workers, and bytes that each may take."""
        return 1, self.worker.setup.room

    def run(self, jobs: Sequence[Job]) -> None:
        """Do all jobs."""
        left = deque(jobs)
        with single_threaded():
            while left:
                job = left.popleft()
                self.hooks.started(0, job)
                left.extend(self.hooks.ended(0, job, self.worker.do(job, lambda text: self.hooks.says(0, text))))


@dataclass
class _Child:
    process: SpawnProcess
    pipe: Connection
    ready: bool = False
    job: Job | None = None


class Pool:
    """Does jobs in worker processes.

    A job whose process dies is tried again, `LOST_TRIES` times in all; the other workers go on meanwhile.

    Parameters
    ----------
    setup
        Sent to each worker once.
    workers
        Number of processes.
    hooks
        Told what happens.
    """

    def __init__(self, setup: Setup, workers: int, hooks: Hooks) -> None:
        self.setup = setup
        self.workers = workers
        self.hooks = hooks
        self._children: dict[int, _Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop(gently=kind is None)

    def room(self) -> tuple[int, int]:
        """Number of workers, and bytes that each may take."""
        return self.workers, self.setup.room

    def run(self, jobs: Sequence[Job]) -> None:
        """Do all jobs, in their order as workers become free.

        Raises
        ------
        TxevalError
            Worker processes do not start.
        Exception
            What a worker raised that concerns the whole run: a full disk, an embedding that cannot be used.
        """
        left = deque(jobs)
        tries: dict[int, int] = {}
        starts = 0
        while left or any(child.job is not None for child in self._children.values()):
            for number in range(min(self.workers, len(left) + self._busy())):
                if number not in self._children and left:
                    self._children[number] = self._start()
                child = self._children.get(number)
                if child is not None and child.ready and child.job is None and left:
                    self._give(number, child, left.popleft())
            for number in self._stirring():
                child = self._children[number]
                message = _receive(child)
                if message is not None:
                    left.extend(self._hear(number, child, message))
                    continue
                del self._children[number]
                cause = _cause(child.process)
                if child.job is None:
                    # It died between two jobs, or before it was ready for any.
                    starts += 1
                    if starts > LOST_TRIES * self.workers:
                        raise TxevalError(
                            f"worker processes do not start: {cause}. A script that calls txeval with more than one "
                            "worker must do so under `if __name__ == '__main__':`"
                        )
                    continue
                job = child.job
                if isinstance(job, CellGroup):
                    # Alone they need less memory, and one that kills its worker is told from the others.
                    self.hooks.warn(f"{job.text}: the worker process ended ({cause}); trying each alone")
                    left.extendleft(reversed(job.cells))
                    continue
                tries[id(job)] = tries.get(id(job), 0) + 1
                if tries[id(job)] < LOST_TRIES:
                    self.hooks.warn(f"{job.text}: the worker process ended ({cause}); trying again")
                    left.appendleft(job)
                else:
                    reason = f"the worker process ended {LOST_TRIES} times: {cause}"
                    self.hooks.ended(number, job, Report("error", reason))

    def _busy(self) -> int:
        return sum(child.job is not None for child in self._children.values())

    def _start(self) -> _Child:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.setup, os.getpid()))
        with _one_thread_environment():
            process.start()
        theirs.close()
        return _Child(process, ours)

    def _give(self, number: int, child: _Child, job: Job) -> None:
        child.job = job
        self.hooks.started(number, job)
        # A worker that has just died is noticed by its sentinel.
        with suppress(OSError):
            child.pipe.send(job)

    def _stirring(self) -> list[int]:
        """Numbers of the workers that have something to say or have ended."""
        watched: dict[Any, int] = {}
        for number, child in self._children.items():
            watched[child.pipe] = watched[child.process.sentinel] = number
        return sorted({watched[item] for item in wait(list(watched), timeout=0.5)})

    def _hear(self, number: int, child: _Child, message: tuple[str, Any]) -> list[Job]:
        """Pass on what a worker says; gives what is to be done once more."""
        kind, content = message
        if kind == "ready":
            child.ready = True
        elif kind == "says":
            self.hooks.says(number, content)
        elif kind == "warn":
            self.hooks.warn(content)
        elif kind == "raise":
            raise content
        elif kind == "ended" and child.job is not None:
            job, child.job = child.job, None
            return self.hooks.ended(number, job, content)
        return []

    def _stop(self, *, gently: bool) -> None:
        children = list(self._children.values())
        self._children.clear()
        for child in children:
            if gently and child.job is None:
                with suppress(OSError):
                    child.pipe.send(None)
            else:
                child.process.kill()
        deadline = time.monotonic() + 5
        for child in children:
            child.process.join(max(0.0, deadline - time.monotonic()))
            if child.process.is_alive():
                child.process.kill()
                child.process.join(5)
            child.pipe.close()


def make_runner(
    setup: Setup, workers: int, hooks: Hooks, place: Place | None = None, needs: Needs = lambda job: {}
) -> Runner:
    """Give what does jobs: a Dask cluster where one is named, this process for one worker, else worker processes."""
    if place is not None:
        from txeval.run.cluster import Dask

        return Dask(setup, place, hooks, needs)
    return Here(setup, hooks) if workers == 1 else Pool(setup, workers, hooks)


def _receive(child: _Child) -> tuple[str, Any] | None:
    """Next message of a worker; None where it has ended and said all."""
    try:
        if child.pipe.poll():
            message: tuple[str, Any] = child.pipe.recv()
            return message
        if child.process.is_alive():
            return ("nothing", None)
    except (EOFError, OSError):
        pass
    child.process.join(5)
    return None


def _cause(process: SpawnProcess) -> str:
    code = process.exitcode
    if code is None or code >= 0:
        return f"exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name}, perhaps for lack of memory" if name == "SIGKILL" else name


@contextmanager
def _one_thread_environment() -> Iterator[None]:
    """Let processes that start within the block load their numerical libraries with one thread."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _work(pipe: Connection, setup: Setup, parent: int) -> None:
    """What a worker process does until it is told to stop or its parent is gone."""
    # Ctrl-C reaches the whole group of processes; the parent decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    speak: Callable[[tuple[str, Any]], None] = pipe.send
    with single_threaded():
        worker = Worker(setup, lambda text: speak(("warn", text)))
        speak(("ready", None))
        while True:
            try:
                job = pipe.recv()
            except EOFError:
                return
            if job is None:
                return
            try:
                speak(("ended", worker.do(job, lambda text: speak(("says", text)))))
            except TxevalError as why:
                speak(("raise", why))


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, even in the middle of a computation."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
