"""What a run may take of the machine: memory over all workers, number of workers, device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from txeval.compute.machine import Memory, as_size, memory_limit, reserve, resolve_device, usable_cores
from txeval.compute.memory import WORKING_LEAST
from txeval.errors import InputError
from txeval.run.config import RunConfig
from txeval.run.plan import Cell, CellGroup, EmbeddingJob, Plan
from txeval.run.worker import PROCESS_BYTES, cell_bytes
from txeval.tasks.base import Sizes
from txeval.tasks.registry import get_task

#: Cells that share a pass at most: what a worker that dies takes with it.
MOST_TOGETHER = 8

#: Memory that a group leaves to its blocks.
GROUP_WORKING = 2**30

#: More than any machine has: on a cluster, each worker has its own bound.
_UNKNOWN = 2**62

__all__ = [
    "PROCESS_BYTES",
    "Resources",
    "check_memory",
    "find_resources",
    "fixed_bytes",
    "group_cells",
    "needs_of",
    "sizes_of",
]


@dataclass(frozen=True)
class Resources:
    """What one run may take.

    Attributes
    ----------
    memory
        Bound on the memory of all its processes together.
    workers
        Worker processes; 1 computes in the process of the run.
    device
        "cpu" or a CUDA device of torch.
    """

    memory: Memory
    workers: int
    device: str
    warnings: tuple[str, ...] = ()

    def worker_memory(self, workers: int | None = None) -> int:
        """Bytes that each worker process may take; the process of the run takes `PROCESS_BYTES` where it is another."""
        workers = workers or self.workers
        return self.memory.bytes if workers == 1 else max(0, self.memory.bytes - PROCESS_BYTES) // workers


def find_resources(config: RunConfig, plan: Plan | None = None) -> Resources:
    """Resolve `max_memory`, `workers` and `device` of a configuration on this machine, or for a cluster.

    Without `max_memory` it is what the machine or the control group has, minus `txeval.compute.machine.reserve`.
    Workers "auto" are the usable cores, but no more than the memory can feed.

    On a cluster `max_memory` bounds each worker, and "auto" is the processor: what a worker has is known when it joins.

    Raises
    ------
    InputError
        A device is asked for that is not there.
    """
    if config.executor == "dask":
        most = Memory(
            config.max_memory or _UNKNOWN, "max_memory" if config.max_memory else "the workers of the cluster"
        )
        return Resources(most, 1, "cpu" if config.device == "auto" else config.device)
    limit, warnings = memory_limit(), list[str]()
    if config.max_memory is None:
        memory = Memory(limit.bytes - reserve(limit.bytes), f"{limit.source}, less a reserve")
    else:
        memory = Memory(config.max_memory, "max_memory")
        if config.max_memory > limit.bytes:
            warnings.append(
                f"max_memory is {as_size(config.max_memory)}, and {limit.source} has {as_size(limit.bytes)}: "
                "the run may end for lack of memory"
            )
    if config.workers != "auto":
        workers = config.workers
    else:
        each = PROCESS_BYTES + WORKING_LEAST
        if plan is not None:
            each += max((fixed_bytes(plan, cell, None) for cell in plan.cells), default=0)
        workers = max(1, min(usable_cores(), (memory.bytes - PROCESS_BYTES) // each))
    return Resources(memory, workers, resolve_device(config.device), tuple(warnings))


def sizes_of(plan: Plan, d: int | None) -> Sizes:
    """Sizes of a plan's screen and splits; a width of None counts as 1."""
    return Sizes.of(plan.screen.samples, plan.splits, plan.screen.n_genes, d or 1)


def fixed_bytes(plan: Plan, cell: Cell, d: int | None) -> int:
    """What a cell needs for its results whatever the size of its blocks."""
    return cell_bytes(cell, sizes_of(plan, d))


def needs_of(
    plan: Plan, job: EmbeddingJob | Cell | CellGroup, resources: Resources, widths: dict[str, int]
) -> dict[str, float]:
    """What a job asks of a worker of a cluster: MEMORY in bytes, and GPU where the device is one."""
    cells = job.cells if isinstance(job, CellGroup) else (job,) if isinstance(job, Cell) else ()
    fixed = sum(fixed_bytes(plan, cell, widths.get(cell.embedding.key)) for cell in cells)
    needs = {"MEMORY": float(PROCESS_BYTES + WORKING_LEAST + fixed)}
    return {**needs, "GPU": 1.0} if resources.device.startswith("cuda") else needs


def check_memory(
    plan: Plan, cells: Iterable[Cell], widths: dict[str, int], resources: Resources, workers: int | None = None
) -> None:
    """Check that every cell fits into the memory of a worker.

    Parameters
    ----------
    widths
        Embedding key -> its columns, where known.

    Raises
    ------
    InputError
        The first cell that does not, with what it needs.
    """
    workers = workers or resources.workers
    share = resources.worker_memory(workers)
    worst: tuple[int, str] = (0, "")
    seen = set()
    for cell in cells:
        d = widths.get(cell.embedding.key)
        if (cell.task, d) in seen:
            continue
        seen.add((cell.task, d))
        need = PROCESS_BYTES + WORKING_LEAST + fixed_bytes(plan, cell, d)
        worst = max(worst, (need, f"{cell.task} of {cell.model}" + (f" ({d} columns)" if d else "")))
    need, what = worst
    if need <= share:
        return
    whole = need if workers == 1 else need * workers + PROCESS_BYTES
    fewer = "" if workers == 1 else f", or fewer workers than {workers}"
    raise InputError(
        f"{what} needs {as_size(need)} of memory in a worker, and a worker has {as_size(share)}: "
        f"{as_size(resources.memory.bytes)} ({resources.memory.source}) for {workers} worker(s)",
        remedy=f"give --max-memory {as_size(whole).replace(' ', '')} or more{fewer}",
    )


def group_cells(
    plan: Plan, cells: Sequence[Cell], widths: dict[str, int], share: int, workers: int
) -> list[Cell | CellGroup]:
    """Put cells together that can share a pass over the expression, as many as memory and workers let.

    Parameters
    ----------
    widths
        Embedding key -> its columns.
    share
        Bytes that a worker may take.
    workers
        How many there are.

    Returns
    -------
    Cells and groups in the order of the first cell of each.
    """
    alike: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        task = get_task(cell.task)
        joins = task.together is not None and task.shares(cell.params)
        key: tuple[Any, ...] = (cell.task, cell.params, cell.seed, cell.ceiling, cell.metrics) if joins else (cell.key,)
        alike.setdefault(key, []).append(cell)
    chunks: dict[str, Cell | CellGroup] = {}
    for same in alike.values():
        each = max(fixed_bytes(plan, cell, widths.get(cell.embedding.key)) for cell in same)
        fits = (share - PROCESS_BYTES - GROUP_WORKING) // max(1, each)
        size = max(1, min(MOST_TOGETHER, fits, -(-len(same) // workers)))
        for start in range(0, len(same), size):
            chunk = same[start : start + size]
            chunks[chunk[0].key] = chunk[0] if len(chunk) == 1 else CellGroup(tuple(chunk))
    return [chunks[cell.key] for cell in cells if cell.key in chunks]
