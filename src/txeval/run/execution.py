"""Runs a plan: what the results folder lacks is computed, kept at once, and shown."""

from __future__ import annotations

import dataclasses
import os
import platform
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd

from txeval._version import __version__
from txeval.errors import InputError
from txeval.run.assemble import Assembled
from txeval.run.files import FORMAT, now
from txeval.run.plan import COSTS, DEFAULT_COST, Cell, CellGroup, EmbeddingJob, Plan, screen_record, task_record
from txeval.run.pool import Job, make_runner
from txeval.run.progress import NullProgress, Progress, Work
from txeval.run.resources import Resources, check_memory, find_resources, group_cells, needs_of
from txeval.run.store import Store
from txeval.run.worker import Report, Setup, failed_cell

__all__ = ["Outcome", "execute"]

_PACKAGES = ("numpy", "scipy", "pandas", "scikit-learn", "torch", "numba", "anndata", "h5py", "zarr", "pyarrow")


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes
    ----------
    exit_status
        0: every score was computed; 1: some were not; 130: stopped.
    n_computed, n_reused
        Cells computed now, and cells that the folder had already.
    n_failed
        Score rows of this plan without a value.
    n_errors
        Cells that ended in an unexpected error; the next run tries them again.
    n_pending
        Cells that a stopped run has not reached.
    scores
        All rows of the folder.
    message
        What to do next, where there is something.
    """

    folder: Path
    exit_status: int
    n_computed: int
    n_reused: int
    n_failed: int
    n_errors: int
    n_pending: int
    seconds: float
    scores: pd.DataFrame
    interrupted: bool = False
    message: str = ""
    warnings: list[str] = field(default_factory=list)


def execute(plan: Plan, *, progress: Progress | None = None, command: Sequence[str] | None = None) -> Outcome:
    """Compute the cells of a plan that its results folder lacks, and write the tables of scores.

    Embeddings come first, then the cells, in `workers` processes with one thread each (one worker: in this
    process). Every finished cell is kept at once, so that a stopped or killed run goes on where it was.

    Parameters
    ----------
    plan
        Made by `make_plan`; its configuration names the results folder.
    progress
        Shows how far the run is.
    command
        Command line for the manifest; None: that of this process.

    Raises
    ------
    InputError
        The folder is in use, is for another screen, cannot be written to, or has scores already under
        `overwrite="never"`; an embedding cannot be used.
    """
    if plan.config.out is None:
        raise InputError("no results folder is given", remedy="give one: out")
    return _Run(plan, plan.config.out, progress or NullProgress(), list(command or sys.argv)).go()


class _Run:
    """One run of one plan; what the runner tells it goes to the store and to the progress display."""

    def __init__(self, plan: Plan, folder: Path, progress: Progress, command: list[str]) -> None:
        self.plan = plan
        self.progress = progress
        self.command = command
        self.store = Store(folder, progress.warn)
        self.cells = {cell.key: cell for cell in plan.cells}
        self.broken: dict[str, Report] = {}
        self.tries: Counter[str] = Counter()
        self.n_computed = 0
        self.n_errors = 0
        self.work: Work | None = None
        self.begin = time.perf_counter()
        self.resources: Resources = find_resources(plan.config, plan)

    def go(self) -> Outcome:
        """Do everything."""
        self.store.prepare()
        with self.store.lock():
            self.store.check_fits(self.plan)
            todo, reused, seconds = self._todo()
            record = self._record()
            self.store.save_split(self.plan.split_digest, self.plan.split_table)
            self.store.save_samples(self.plan.screen.fingerprint, self.plan.screen.samples)
            self.store.write_repeat(self.plan)
            self.store.save_plan(record)
            interrupted = False
            try:
                self._compute(todo, reused, seconds)
            except KeyboardInterrupt:
                interrupted = True
            except BaseException as why:
                with suppress(Exception):
                    self._close(record, f"failed: {type(why).__name__}")
                raise
            finally:
                self.progress.stop()
            self._close(record, "stopped" if interrupted else "finished")
            return self._outcome(self.store.assemble(), reused, interrupted)

    def _todo(self) -> tuple[list[Cell], int, dict[str, list[float]]]:
        """Cells to compute, number of those that are there, and the seconds that those took, by task."""
        seconds: dict[str, list[float]] = {}
        there = set()
        for key, cell in self.cells.items():
            stored = self.store.load_cell(key)
            if stored is None:
                continue
            if isinstance(stored.get("seconds"), (int, float)):
                seconds.setdefault(cell.task, []).append(float(stored["seconds"]))
            if stored.get("state") == "done":
                there.add(key)
        policy = self.plan.config.overwrite
        if policy == "never" and there:
            raise InputError(
                f"{self.store.folder} has {len(there)} of the {len(self.cells)} cells of this run already, "
                "and overwrite is 'never'",
                remedy="give a new folder, or overwrite 'missing' to add to this one",
            )
        if policy == "always":
            there = set()
        return [cell for key, cell in self.cells.items() if key not in there], len(there), seconds

    def _compute(self, todo: Sequence[Cell], reused: int, seconds: dict[str, list[float]]) -> None:
        config = self.plan.config
        jobs = self._embedding_jobs(todo)
        every: list[Job] = [*jobs, *todo]
        left = Counter(_kind(job) for job in every)
        costs = {kind: COSTS.get(kind, DEFAULT_COST) for kind in left}
        workers = min(self.resources.workers, max(len(todo), len(jobs), 1))
        widths = self._widths(todo)
        check_memory(self.plan, todo, widths, self.resources, workers)
        self.work = Work(reused, left, costs, seconds, workers)
        self.progress.start(self.work)
        for text in (*self.plan.warnings, *self.resources.warnings):
            self.progress.warn(text)
        if not todo:
            return
        setup = Setup(
            folder=self.store.folder,
            screen=self.plan.screen,
            split_digest=self.plan.split_digest,
            relations=config.relations,
            relations_digest=next((task.relations for task in self.plan.tasks.values() if task.relations), ""),
            max_elements=config.max_elements,
            memory=self.resources.worker_memory(workers) if config.place is None else config.max_memory,
            device=self.resources.device,
        )

        def needs(job: Job) -> dict[str, float]:
            return needs_of(self.plan, job, self.resources, widths)

        with _stoppable(), make_runner(setup, workers, self, config.place, needs) as runner:
            runner.run(jobs)
            widths.update(self._widths(todo))
            check_memory(self.plan, todo, widths, self.resources, workers)
            ready = []
            for cell in todo:
                if cell.embedding.key in self.broken:
                    broken = self.broken[cell.embedding.key]
                    reason = f"the embedding could not be made: {broken.reason}"
                    self.ended(None, cell, dataclasses.replace(broken, reason=reason, seconds=0.0, again=False))
                else:
                    ready.append(cell)
            many, room = runner.room()
            runner.run(group_cells(self.plan, ready, widths, room, many))

    def _widths(self, cells: Sequence[Cell]) -> dict[str, int]:
        """Columns of the embeddings that are there."""
        found = {key: self.store.embedding_about(key).get("shape") for key in {c.embedding.key for c in cells}}
        return {key: int(shape[1]) for key, shape in found.items() if shape is not None}

    def _embedding_jobs(self, todo: Sequence[Cell]) -> list[EmbeddingJob]:
        """Embeddings that the cells need and the store lacks; deterministic ones first, as others build on them."""
        needed = {cell.embedding.key: cell.embedding for cell in todo}
        if self.plan.config.overwrite == "always":
            for cell in todo:
                self.store.forget_made(cell.embedding.key, cell.fit_key)
        missing = [job for key, job in needed.items() if self.store.load_embedding(key, self.plan.screen.n) is None]
        return sorted(missing, key=lambda job: job.seed is not None)

    # What the runner tells

    def started(self, worker: int, job: Job) -> None:
        """Show that a job begins."""
        self.progress.begin(worker, _kind(job), _text(job))

    def says(self, worker: int, text: str) -> None:
        """Show how far a job is."""
        self.progress.says(worker, text)

    def warn(self, text: str) -> None:
        """Show and record a warning."""
        self.store.warn(text)

    def sized(self, workers: int) -> None:
        """Let the time that is left follow from the number of workers."""
        if self.work is not None:
            self.work.workers = workers

    def ended(self, worker: int | None, job: Job, report: Report) -> list[Job]:
        """Keep the reason of a job that no worker could finish, show that it is over, give what is to be done again."""
        if isinstance(job, CellGroup):
            again: list[Job] = []
            for one, part in zip(job.cells, report.parts or [report] * len(job.cells), strict=True):
                again += self.ended(worker, one, part)
            return again
        for text in report.warnings:
            self.store.warn(text)
        if report.again and self.tries[job.key] < self.plan.config.retries:
            self.tries[job.key] += 1
            self.store.warn(f"{_text(job)}: {report.reason}; it is tried again")
            return [job]
        if isinstance(job, EmbeddingJob):
            if report.outcome == "error":
                self.broken[job.key] = report
        else:
            self.n_computed += 1
            self.n_errors += report.outcome == "error" and not report.finished
            if not report.stored:
                device = self.resources.device
                cell = failed_cell(job, report.reason, report.trace, finished=report.finished, device=device)
                self.store.save_cell(job.key, cell, {})
        self.progress.end(worker, _kind(job), _text(job), report.seconds, report.reason)
        return []

    # What is written down

    def _record(self) -> dict[str, Any]:
        plan = self.plan
        screen = screen_record(plan.screen)
        models = []
        for label, content in plan.contents.items():
            jobs = [job for job in plan.embeddings if job.spec.label == label]
            models.append(
                {
                    "label": label,
                    "source": jobs[0].spec.source,
                    "options": dict(jobs[0].spec.options),
                    "content": content,
                    "stochastic": jobs[0].seed is not None,
                    "added": jobs[0].added,
                    "fingerprints": [job.key for job in jobs],
                }
            )
        return {
            "format": FORMAT,
            "id": plan.id,
            "dataset": plan.screen.name,
            "screen": screen,
            "protocol": plan.config.protocol.to_dict(),
            "protocol_digest": plan.protocol_digest,
            "split": plan.split_record(),
            "models": models,
            "tasks": {name: task_record(planned) for name, planned in plan.tasks.items()},
            "entries": [
                {
                    "key": cell.key,
                    "family": cell.family,
                    "model": cell.model,
                    "post_processing": cell.post_processing,
                    "task": cell.task,
                    "seed": cell.seed,
                    "embedding_fingerprint": cell.embedding.key,
                    **({"metrics": list(cell.metrics)} if cell.ceiling else {}),
                }
                for cell in plan.cells
            ],
            "config": plan.config.to_dict(),
            "warnings": list(plan.warnings),
            "runs": [
                {
                    "started": now(),
                    "state": "running",
                    "command": self.command,
                    "max_memory": self.resources.memory.bytes if plan.config.place is None else plan.config.max_memory,
                    "max_memory_source": self.resources.memory.source,
                    "workers": self.resources.workers if plan.config.place is None else plan.config.place.text,
                    "device": self.resources.device,
                    **environment(),
                }
            ],
        }

    def _close(self, record: dict[str, Any], state: str) -> None:
        """Write down how the run ended."""
        run = {
            **record["runs"][-1],
            "finished": now(),
            "state": state,
            "seconds": time.perf_counter() - self.begin,
            "n_computed": self.n_computed,
            "n_errors": self.n_errors,
            "warnings": self.store.warnings,
        }
        self.store.save_plan({**record, "runs": [*record["runs"][:-1], run]}, again=True)

    def _outcome(self, assembled: Assembled, reused: int, interrupted: bool) -> Outcome:
        scores = assembled.scores
        keys = ["protocol", "model", "post_processing", "task"]
        protocol = self.plan.config.protocol.name
        mine = {(protocol, cell.model, cell.post_processing, cell.task) for cell in self.plan.cells}
        rows = [row in mine for row in scores[keys].itertuples(index=False, name=None)]
        n_failed = int((scores["status"] != "ok")[rows].sum())
        message = ""
        if interrupted:
            message = (
                f"stopped: {assembled.pending} of {len(self.cells)} cells are left; the same command goes on from there"
            )
        elif self.n_errors:
            message = f"{self.n_errors} cells ended in an error; the same command tries them again"
        return Outcome(
            folder=self.store.folder,
            exit_status=130 if interrupted else int(n_failed > 0),
            n_computed=self.n_computed,
            n_reused=reused,
            n_failed=n_failed,
            n_errors=self.n_errors,
            n_pending=assembled.pending,
            seconds=time.perf_counter() - self.begin,
            scores=scores,
            interrupted=interrupted,
            message=message,
            warnings=list(dict.fromkeys([*self.plan.warnings, *assembled.warnings])),
        )


def environment() -> dict[str, Any]:
    """Versions, machine and process, as plain data."""
    versions = {"python": platform.python_version(), "txeval": __version__}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "versions": versions,
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
        "host": platform.node(),
        "pid": os.getpid(),
    }


def _cpu() -> str:
    """Name of the processor, where the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _kind(job: Job) -> str:
    return "embedding" if isinstance(job, EmbeddingJob) else job.task


def _text(job: Job) -> str:
    return f"embedding {job.text}" if isinstance(job, EmbeddingJob) else job.text


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let a request to terminate (a cluster's, for instance) stop the run as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
