"""What a worker does: makes one embedding or computes one cell, and keeps the result."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
import threading
import time
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pandas as pd
import threadpoolctl
import torch

from txeval._version import __version__
from txeval.compute.arrays import Ints, Rows
from txeval.compute.devices import exact_products
from txeval.compute.intervals import Units, interval, units_to_frame
from txeval.compute.machine import own_memory
from txeval.compute.memory import WORKING_LEAST, WORKING_MOST, bounded
from txeval.data import LogNormExpression, Screen
from txeval.data.relations import relations_digest
from txeval.embed import Embedding, EmbeddingContext, EmbeddingSpec, embedding_fingerprint, make_embedding
from txeval.embed.inner import sample_order
from txeval.errors import InputError, NotComputable
from txeval.postprocess import Fitted, PostProcessed, fit, map_bytes
from txeval.run.files import StorageError, folder_lock, is_full, now, storing
from txeval.run.plan import Cell, CellGroup, EmbeddingJob, relations_of
from txeval.run.store import UNITS_TABLE, Store
from txeval.tasks.base import Metric, Prepared, Score, Sizes, TaskInputs, run_task
from txeval.tasks.measured import keep_in
from txeval.tasks.registry import get_task, metrics_of

__all__ = ["Report", "Setup", "Worker", "failed_cell", "single_threaded"]

#: What a process takes before it computes anything: interpreter, numerical libraries and compiled kernels.
PROCESS_BYTES = 384 * 2**20


#: Errors of the code or the data: another try would take as long and end in the same way.
SAME_AGAIN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Setup:
    """What every worker needs to know of a run; cheap to send to another process.

    Attributes
    ----------
    max_elements
        Bound on the values of one block that is read of the screen.
    relations_digest
        Of the databases of the plan; "" where no task needs any.
    memory
        Bytes that the worker's process may take; None: no bound.
    device
        "cpu" or a CUDA device of torch.
    """

    folder: Path
    screen: Screen
    split_digest: str
    relations: Path | None = None
    relations_digest: str = ""
    max_elements: int | None = None
    memory: int | None = None
    device: str = "cpu"

    @property
    def room(self) -> int:
        """Bytes that the worker's process may take, for sums: a great many where there is no bound."""
        return self.memory or 2**62

    def working(self, fixed: int = 0) -> int:
        """Bytes that are left to a step beside the process itself and what the step needs for its result."""
        return 2**62 if self.memory is None else self.memory - PROCESS_BYTES - fixed


@dataclass(frozen=True)
class Report:
    """What became of a job.

    Attributes
    ----------
    outcome
        "done", or "error" where something unexpected happened: the next run tries again.
    reason
        Why there is no result, as one line.
    trace
        The traceback, where there is one.
    finished
        Whether a job without a result needs no second try.
    stored
        Whether the rows are kept already.
    again
        Whether another try may help: what was missing was memory, a file, a device.
    parts
        Of a group: the report of each cell.
    """

    outcome: str
    reason: str = ""
    trace: str = ""
    finished: bool = False
    stored: bool = False
    seconds: float = 0.0
    n_failed: int = 0
    warnings: list[str] = field(default_factory=list)
    again: bool = False
    parts: tuple[Report, ...] = ()


@lru_cache(maxsize=1)
def _thread_pools(modules: int) -> Any:
    """The pools of threads of the loaded libraries; looked for again once more modules are loaded, as it takes long."""
    return threadpoolctl.ThreadpoolController()


@contextmanager
def single_threaded() -> Iterator[None]:
    """Let every numerical library use one thread within the block: sums then do not depend on the machine."""
    torch_before, numba_before = torch.get_num_threads(), numba.get_num_threads()
    with ExitStack() as stack:
        stack.enter_context(_thread_pools(len(sys.modules)).limit(limits=1))
        stack.callback(torch.set_num_threads, torch_before)
        stack.callback(numba.set_num_threads, numba_before)
        torch.set_num_threads(1)
        numba.set_num_threads(1)
        yield


class PeakMemory:
    """Highest memory of this process while the block runs, in MiB, sampled ten times a second; see `own_memory`."""

    # One thread for all blocks: to start one for each costs a small cell more than its computation.
    _running: list[PeakMemory] = []  # noqa: RUF012 (of the process)
    _wake = threading.Event()
    _thread: threading.Thread | None = None

    def __init__(self) -> None:
        self.peak = 0.0

    @classmethod
    def _watch(cls) -> None:
        while True:
            cls._wake.wait()
            time.sleep(0.1)
            for one in list(cls._running):
                one._look()

    def _look(self) -> None:
        self.peak = max(self.peak, own_memory() / 2**20)

    def __enter__(self) -> PeakMemory:
        self._look()
        PeakMemory._running.append(self)
        PeakMemory._wake.set()
        if PeakMemory._thread is None or not PeakMemory._thread.is_alive():
            PeakMemory._thread = threading.Thread(target=self._watch, name="txeval-memory", daemon=True)
            PeakMemory._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        PeakMemory._running.remove(self)
        if not PeakMemory._running:
            PeakMemory._wake.clear()
        self._look()


class Kept:
    """The last few things that were opened, by key.

    Parameters
    ----------
    size
        How many.
    most, weigh
        How many bytes, and how to tell those of a thing; the last one stays in any case.
    """

    def __init__(self, size: int, most: int | None = None, weigh: Callable[[Any], int] = lambda thing: 0) -> None:
        self._size, self._most, self._weigh = size, most, weigh
        self._things: OrderedDict[str, Any] = OrderedDict()

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """Give what is kept under a key, or make it."""
        if key in self._things:
            self._things.move_to_end(key)
            return self._things[key]
        # Room first: two large embeddings need not be in memory while the third is read.
        while len(self._things) >= self._size:
            self._things.popitem(last=False)
        self._things[key] = make()
        while self._most is not None and len(self._things) > 1 and self.nbytes > self._most:
            self._things.popitem(last=False)
        return self._things[key]

    @property
    def nbytes(self) -> int:
        """Bytes of all things that are kept."""
        return sum(self._weigh(thing) for thing in self._things.values())

    def clear(self) -> None:
        """Let all things go."""
        self._things.clear()


class Worker:
    """Computes jobs of one run, and keeps open what the next one will need too."""

    def __init__(self, setup: Setup, warn: Callable[[str], None] | None = None) -> None:
        self.setup = setup
        self.screen = setup.screen
        self.store = Store(setup.folder, warn)
        self._embeddings = Kept(2)
        self._fitted = Kept(
            4, max(WORKING_LEAST, min(WORKING_MOST, setup.working())) // 4, lambda fitted: fitted.nbytes
        )
        self._widths: dict[str, int] = {}
        self._splits: dict[str, Ints] | None = None
        self._relations: Mapping[str, pd.DataFrame] | None = None
        self._expression: LogNormExpression | None = None

    @property
    def splits(self) -> dict[str, Ints]:
        """Row numbers of each split."""
        if self._splits is None:
            table = self.store.load_split(self.setup.split_digest)
            self._splits = {name: np.flatnonzero(table[name]) for name in ("train", "test", "heldout")}
        return self._splits

    def do(self, job: EmbeddingJob | Cell | CellGroup, progress: Callable[[str], None] = lambda text: None) -> Report:
        """Do one job; raises only for a disk that cannot be written to, and InputError of an embedding."""
        cells = () if isinstance(job, EmbeddingJob) else job.cells if isinstance(job, CellGroup) else (job,)
        fixed = sum(map(self._fixed, cells))
        # Maps that are kept for other cells count too, and go where they leave too little.
        if self.setup.working(fixed + self._fitted.nbytes) < WORKING_LEAST:
            self._fitted.clear()
        with bounded(self.setup.working(fixed + self._fitted.nbytes), self.store.scratch), exact_products():
            if isinstance(job, EmbeddingJob):
                return self.embed(job, progress)
            return self.compute_together(job) if isinstance(job, CellGroup) else self.compute(job)

    def _fixed(self, cell: Cell) -> int:
        """Bytes that a cell needs for what it makes."""
        key = cell.embedding.key
        if key not in self._widths:
            shape = self.store.embedding_about(key).get("shape")
            if shape is None:
                return 0
            self._widths[key] = int(shape[1])
        sizes = Sizes.of(self.screen.samples, self.splits, self.screen.n_genes, self._widths[key])
        return cell_bytes(cell, sizes)

    def embed(self, job: EmbeddingJob, progress: Callable[[str], None]) -> Report:
        """Make an embedding and keep it."""
        start = time.perf_counter()
        try:
            with warnings.catch_warnings(record=True) as caught:
                embedding = self._made(job.spec, job.seed or 0, job.key, progress)
        except InputError as why:
            # What nobody asked for by name must not stop what they did ask for.
            if isinstance(why, StorageError) or not job.added:
                raise
            return Report("error", why.problem, seconds=time.perf_counter() - start)
        except NotComputable as why:
            return Report("error", str(why), finished=True, seconds=time.perf_counter() - start)
        except Exception as why:  # an embedder may raise anything: its rows say what
            seconds = time.perf_counter() - start
            again = not isinstance(why, SAME_AGAIN)
            return Report("error", _named(why), traceback.format_exc(), seconds=seconds, again=again)
        remarks = [f"embedding {job.text}: {text}" for text in [*_remarks(embedding.provenance), *_texts(caught)]]
        return Report("done", seconds=time.perf_counter() - start, warnings=remarks)

    def _made(self, spec: EmbeddingSpec, seed: int, key: str, progress: Callable[[str], None]) -> Embedding:
        """Give an embedding: the stored one, or a new one, which is then stored."""
        with self.store.making("embeddings", key):
            values = self.store.load_embedding(key, self.screen.n)
            if values is None:
                context = EmbeddingContext(
                    folder=self.store.embedding_folder(key),
                    seed=seed,
                    train_rows=self.splits["train"],
                    others=lambda other: self._other(other, seed, progress),
                    device=self.setup.device,
                    max_elements=self.setup.max_elements,
                    progress=lambda done, total, text: progress(f"{text} ({done:,} of {total:,})"),
                )
                made = make_embedding(spec, self.screen, context)
                about = {"source": spec.source, "shape": list(made.shape), "provenance": dict(made.provenance)}
                self.store.save_embedding(
                    key,
                    made.values,
                    {**about, "txeval_version": __version__, "made": now()},
                    self.setup.max_elements,
                )
                self.store.forget_embedding_folder(key)
                values = self.store.load_embedding(key, self.screen.n)
        if values is None:
            raise StorageError(f"the embedding {spec.label} could not be read back from {self.store.folder}")
        return Embedding(values, self.store.embedding_about(key).get("provenance", {}))

    def _other(self, spec: EmbeddingSpec, seed: int, progress: Callable[[str], None]) -> Embedding:
        """Give the embedding that another one is built on."""
        key = embedding_fingerprint(spec, self.screen, seed, train_rows=self.splits["train"])
        return self._made(spec, seed, key, progress)

    def _values(self, job: EmbeddingJob) -> Rows:
        def make() -> Rows:
            return self._made(job.spec, job.seed or 0, job.key, lambda text: None).values

        values: Rows = self._embeddings.get(job.key, make)
        return values

    def _fit(self, cell: Cell, values: Rows) -> Fitted:
        samples = self.screen.samples

        def compute() -> Fitted:
            return fit(
                cell.post_processing,
                values,
                samples.is_control,
                samples.batch,
                len(samples.batches),
                **cell.post_params,
            )

        def make() -> Fitted:
            if cell.post_processing == "raw":
                return compute()
            with self.store.making("postprocessing", cell.fit_key):
                found = self.store.load_fitted(cell.fit_key)
                if found is None:
                    found = compute()
                    self.store.save_fitted(cell.fit_key, found)
            return found

        fitted: Fitted = self._fitted.get(cell.fit_key, make)
        return fitted

    def compute(self, cell: Cell) -> Report:
        """Compute one cell and keep its rows, or the reason why there are none."""
        return self._computed(cell, lambda: (self._inputs(cell), None), _Shared())

    def compute_together(self, group: CellGroup) -> Report:
        """Compute cells that share a pass over the expression, and keep each as it would be kept alone.

        Seconds and CPU seconds of what they share are divided evenly. Where the shared pass fails, each is computed
        alone, so that one of them does not take the others with it.
        """
        task = get_task(group.task)
        assert task.together is not None  # else there are no groups of its cells
        start, cpu = time.perf_counter(), time.process_time()
        with PeakMemory() as memory, warnings.catch_warnings(record=True) as caught:
            try:
                inputs = [self._inputs(cell) for cell in group.cells]
                prepared = task.together(inputs)
            except StorageError:
                raise
            except Exception as why:  # whatever it was: the cell that it belongs to says so
                _stop_if_full(why, self.store.folder)
                parts = tuple(self.compute(cell) for cell in group.cells)
                return self._joined(parts, time.perf_counter() - start)
        size = len(group.cells)
        shared = _Shared(
            (time.perf_counter() - start) / size, (time.process_time() - cpu) / size, memory.peak, size, _texts(caught)
        )
        given = zip(group.cells, inputs, prepared, strict=True)
        parts = tuple(self._computed(cell, partial(_pair, one, found), shared) for cell, one, found in given)
        return self._joined(parts, time.perf_counter() - start)

    @staticmethod
    def _joined(parts: Sequence[Report], seconds: float) -> Report:
        outcome = "error" if any(part.outcome == "error" for part in parts) else "done"
        return Report(outcome, stored=True, seconds=seconds, parts=tuple(parts))

    def _computed(
        self, cell: Cell, ready: Callable[[], tuple[TaskInputs, Prepared | NotComputable | None]], shared: _Shared
    ) -> Report:
        """Compute what is left of one cell, and keep its rows."""
        task = get_task(cell.task)
        metrics = [metric for metric in metrics_of(task) if metric.name in cell.metrics]
        start, cpu = time.perf_counter(), time.process_time()
        tables: dict[str, pd.DataFrame] = {}
        content: dict[str, Any]
        again = False
        with PeakMemory() as memory, warnings.catch_warnings(record=True) as caught:
            try:
                rows, tables = self._scores(cell, metrics, *ready())
                content = {"state": "done", "rows": rows}
            except StorageError:
                raise
            except NotComputable as why:
                content = {"state": "done", "rows": _failed(cell.metrics, str(why))}
            except Exception as why:  # a task may raise anything: its rows say what
                _stop_if_full(why, self.store.folder)
                content = {
                    "state": "error",
                    "rows": _failed(cell.metrics, _named(why)),
                    "traceback": traceback.format_exc(),
                }
                tables = {}
                again = not isinstance(why, SAME_AGAIN)
        seconds = time.perf_counter() - start + shared.seconds
        remarks = [f"{cell.text}: {text}" for text in dict.fromkeys([*shared.remarks, *_texts(caught)])]
        self.store.save_cell(
            cell.key,
            {
                **content,
                **cell_header(cell, self.setup.device),
                "seconds": seconds,
                "cpu_seconds": time.process_time() - cpu + shared.cpu_seconds,
                "peak_memory_mb": max(memory.peak, shared.peak),
                "together": shared.size,
                "warnings": remarks,
            },
            tables,
        )
        failed = [row for row in content["rows"] if row["status"] != "ok"]
        reason = failed[0]["reason"] if failed else ""
        return Report(
            content["state"],
            reason,
            content.get("traceback", ""),
            finished=content["state"] == "done",
            stored=True,
            seconds=seconds,
            n_failed=len(failed),
            warnings=remarks,
            again=again,
        )

    def _inputs(self, cell: Cell) -> TaskInputs:
        """What a cell reads."""
        task, samples = get_task(cell.task), self.screen.samples
        values = self._values(cell.embedding)
        fitted = self._fit(cell, values)
        inputs = TaskInputs(
            embedding=PostProcessed(values, fitted, samples.batch),
            samples=samples,
            splits=self.splits,
            params=cell.params,
            seed=cell.seed or 0,
            expression=self._expressed() if task.needs_expression else None,
            relations=self._related() if task.needs_relations else {},
            device=self.setup.device,
            threads=1,
            kept=self._kept,
            sample_order=lambda: self._sample_order,
        )
        return task.ceiling.inputs(inputs) if cell.ceiling and task.ceiling is not None else inputs

    @cached_property
    def _sample_order(self) -> Ints:
        return sample_order(self.screen)[0]

    def _kept(self, key: str, make: Callable[[Path], None]) -> Path:
        """Give a folder of the run's scratch, made by the first worker that asks for it."""
        room = self.store.scratch
        with folder_lock(room, wait=True, name=f".{key}.lock"):
            return keep_in(room, key, make)

    def _scores(
        self, cell: Cell, metrics: list[Metric], inputs: TaskInputs, prepared: Prepared | NotComputable | None
    ) -> tuple[list[dict[str, Any]], dict[str, pd.DataFrame]]:
        task, samples = get_task(cell.task), self.screen.samples
        result = run_task(task, inputs, metrics, prepared)
        fitted = self._fit(cell, self._values(cell.embedding))
        # What an embedder wants every score of it to say, such as that its weights were never trained.
        about = self.store.embedding_about(cell.embedding.key).get("provenance", {})
        notes = [str(note) for note in about.get("notes", [])]
        if cell.ceiling and task.ceiling is not None:
            notes.append(f"ceiling: {task.ceiling.summary}")
        if len(fitted.fallback_batches):
            names = [str(samples.batches[code]) for code in fitted.fallback_batches]
            shown = ", ".join(names[:10]) + (f", and {len(names) - 10} more" if len(names) > 10 else "")
            notes.append(
                f"{cell.post_processing}: {len(names)} batch(es) have too few controls and got the statistics of all "
                f"controls: {shown}"
            )
        seen: set[tuple[str, str]] = set()
        rows: list[dict[str, Any]] = []
        units: list[tuple[str, str, Units]] = []
        for metric, score in result.scores:
            if (metric.name, score.subset) in seen:
                raise ValueError(f"metric {metric.name} gave two scores for the subset {score.subset!r}")
            seen.add((metric.name, score.subset))
            rows.append(self._row(cell, metric, score, notes))
            if score.units is not None and score.value is not None:
                units.append((metric.name, score.subset, score.units))
        tables = dict(result.details)
        if units:
            if UNITS_TABLE in tables:
                raise ValueError(f"task {cell.task} has a details table of its own called {UNITS_TABLE}")
            tables[UNITS_TABLE] = units_to_frame(units)
        return rows, tables

    def _row(self, cell: Cell, metric: Metric, score: Score, notes: list[str]) -> dict[str, Any]:
        row: dict[str, Any] = {
            "metric": metric.name,
            **{
                item.name: getattr(score, item.name)
                for item in dataclasses.fields(score)
                if item.name not in ("units", "interval")
            },
            "status": "ok" if score.value is not None else "failed",
            "reason": score.reason if score.value is None else "",
            "left_out": {str(reason): int(count) for reason, count in score.left_out.items()},
            "notes": [*score.notes, *notes],
            "low": None,
            "high": None,
            "interval_unit": "",
            "interval_method": "",
            "interval_note": "",
        }
        if score.value is None:
            return row
        found = score.interval
        if found is None and score.units is None:
            return {**row, "interval_note": "the metric has no resampling units"}
        if found is None and score.units is not None:
            found = interval(score.units, low=metric.low, high=metric.high)
        assert found is not None  # one of the two was there
        return {
            **row,
            "low": found.low,
            "high": found.high,
            "interval_unit": found.unit,
            "interval_method": found.method,
            "interval_note": found.note,
        }

    def _expressed(self) -> LogNormExpression:
        if self._expression is None:
            self._expression = LogNormExpression(self.screen)
        return self._expression

    def _related(self) -> Mapping[str, pd.DataFrame]:
        if self._relations is None:
            # The plan has said already what is missing.
            found = relations_of(self.setup.relations, [])
            if self.setup.relations_digest and relations_digest(found) != self.setup.relations_digest:
                raise InputError(
                    f"the databases of known relationships on {platform.node()} are not those that the run was planned "
                    f"with ({', '.join(sorted(found)) or 'none'} found)",
                    remedy="name a folder that every worker sees: --relations FOLDER",
                )
            self._relations = found
        return self._relations


@dataclass(frozen=True)
class _Shared:
    """A cell's part of what was computed for several."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak: float = 0.0
    size: int = 1
    remarks: Sequence[str] = ()


def _pair(inputs: TaskInputs, prepared: Prepared | NotComputable) -> tuple[TaskInputs, Prepared | NotComputable | None]:
    return inputs, prepared


def _stop_if_full(why: BaseException, folder: Path) -> None:
    """Raise StorageError where a temporary file did not fit on the disk: no other cell would fare better."""
    if isinstance(why, OSError) and is_full(why):
        with storing(folder):
            raise why


def cell_bytes(cell: Cell, sizes: Sizes) -> int:
    """Bytes that a cell needs whatever the size of its blocks: for what its task makes, and for its maps."""
    task = get_task(cell.task)
    maps = map_bytes(sizes.batches, sizes.d) if cell.post_processing == "tvn" else 0
    return maps + (task.memory(sizes, cell.params) if task.memory is not None else 0)


def cell_header(cell: Cell, device: str) -> dict[str, Any]:
    """What a stored cell says of itself beside its rows."""
    return {
        "task": cell.task,
        "post_processing": cell.post_processing,
        "embedding_fingerprint": cell.embedding.key,
        "seed": cell.seed,
        "txeval_version": __version__,
        "device": device,
        "process": os.getpid(),
        "finished": now(),
    }


def failed_cell(
    cell: Cell, reason: str, trace: str = "", *, finished: bool = False, device: str = "cpu"
) -> dict[str, Any]:
    """Content of a cell that no worker could finish."""
    return {
        "state": "done" if finished else "error",
        "rows": _failed(cell.metrics, reason),
        "traceback": trace,
        **cell_header(cell, device),
        "seconds": None,
        "cpu_seconds": None,
        "peak_memory_mb": None,
        "warnings": [],
    }


def _failed(metrics: tuple[str, ...], reason: str) -> list[dict[str, Any]]:
    return [{"metric": metric, "subset": "", "status": "failed", "value": None, "reason": reason} for metric in metrics]


def _named(why: BaseException) -> str:
    text = " ".join(str(why).split())
    return f"{type(why).__name__}: {text}" if text else type(why).__name__


def _texts(caught: list[warnings.WarningMessage] | None) -> list[str]:
    """Warnings of libraries, each once."""
    return list(dict.fromkeys(f"{item.category.__name__}: {item.message}" for item in caught or []))


def _remarks(provenance: Mapping[str, Any]) -> list[str]:
    """Warnings that an embedder left in its provenance, and those of the embedding that it is built on."""
    found = [str(text) for text in provenance.get("warnings", [])]
    inner = provenance.get("of")
    return found + (_remarks(inner) if isinstance(inner, Mapping) else [])
