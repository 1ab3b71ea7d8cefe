"""What a step is, and how it is measured: CPU seconds of one thread, interleaved, and added memory."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["Case", "Check", "Repeated", "Step", "Way", "gemm_rate", "measure"]

#: Repeats of a pair of ways, and CPU seconds after which no further one begins.
REPEATS, ENOUGH = 3, 90.0


@dataclass(frozen=True)
class Way:
    """One way to do a step.

    Attributes
    ----------
    parts
        (call, factor): the seconds of the whole step are the sum of factor x seconds of the call. A factor other than
        1 is an extrapolation, which `Case.size` explains.
    """

    parts: tuple[tuple[Callable[[], Any], float], ...]

    @classmethod
    def of(cls, call: Callable[[], Any], factor: float = 1.0) -> Way:
        """A way of a single part."""
        return cls(((call, factor),))

    @property
    def whole(self) -> bool:
        """Whether nothing is extrapolated."""
        return all(factor == 1.0 for _, factor in self.parts)


@dataclass(frozen=True)
class Check:
    """Something that must hold for the comparison to count."""

    text: str
    value: float
    at_most: float

    @property
    def fine(self) -> bool:
        """Whether it holds."""
        return bool(self.value <= self.at_most)


@dataclass(frozen=True)
class Case:
    """Data of a step, and the ways to do it.

    Attributes
    ----------
    size
        What was measured, and what it stands for.
    check
        From the results of ours and of the others (lists of what the parts gave).
    flops
        Floating point operations of matrix products that ours cannot do without; 0: not bound by them.
    inner
        Length of the scalar products of these.
    warm
        Compiles, at a small size.
    """

    size: str
    ours: Way
    others: Mapping[str, Way]
    check: Callable[[list[Any], Mapping[str, list[Any]]], Sequence[Check]]
    warm: Callable[[], Any] = lambda: None
    flops: float = 0.0
    inner: int = 256


@dataclass(frozen=True)
class Step:
    """A step of the benchmark.

    Attributes
    ----------
    make
        Called with whether a small size will do.
    at_least
        Alternative -> how many times faster ours must be.
    at_most_mib
        Bound on what ours adds to the memory that the data take.
    """

    name: str
    title: str
    make: Callable[[bool], Case]
    at_least: Mapping[str, float] = field(default_factory=dict)
    at_most_mib: float | None = None


class Repeated:
    """A matrix of many rows out of fewer: the first ones once, the others over and over, copied as they are read."""

    def __init__(self, values: np.ndarray, n: int, once: int = 0) -> None:
        self.values, self.n, self.once = values, n, once

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""
        return self.n, self.values.shape[1]

    def __len__(self) -> int:
        return self.n

    def place(self, rows: Any) -> Any:
        """Rows of `values` that stand for rows."""
        cycle = len(self.values) - self.once
        return np.where(rows < self.once, rows, self.once + (rows - self.once) % cycle)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.n)
            first = int(self.place(np.int64(start)))
            if step == 1 and first + stop - start <= len(self.values) and (stop <= self.once or start >= self.once):
                return self.values[first : first + stop - start]
            rows = np.arange(start, stop, step)
        return self.values[self.place(np.asarray(rows))]


def gemm_rate(inner: int) -> float:
    """float32 operations per CPU second of the fastest matrix product at hand, one thread."""
    a, b = torch.rand(1024, inner), torch.rand(2048, inner)
    left, right = a.numpy(), b.numpy()
    out = np.empty((1024, 2048), np.float32)
    ways: list[Callable[[], Any]] = [lambda: torch.mm(a, b.t()), lambda: np.matmul(left, right.T, out=out)]
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    best = 0.0
    for way in ways:
        way()
        for _ in range(3):
            start, done = time.process_time(), 0
            while time.process_time() - start < 0.1:
                way()
                done += 1
            best = max(best, 2.0 * a.shape[0] * b.shape[0] * inner * done / (time.process_time() - start))
    return best


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"this system does not tell {name}")


def _added_memory(way: Way) -> tuple[float, float]:
    """MiB of resident memory that a way adds at its highest, and the highest of the process in all."""
    before = _status("VmRSS")
    # Resets the high-water mark, so that it is that of this call.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    for call, _ in way.parts:
        call()
    peak = _status("VmHWM")
    return max(0.0, peak - before), peak


def _timed(way: Way) -> tuple[float, float, list[Any]]:
    """(CPU seconds, wall seconds, results) of a way, extrapolated."""
    cpu = wall = 0.0
    results = []
    for call, factor in way.parts:
        start, start_wall = time.process_time(), time.perf_counter()
        results.append(call())
        cpu += factor * (time.process_time() - start)
        wall += factor * (time.perf_counter() - start_wall)
    return cpu, wall, results


def measure(step: Step, *, quick: bool) -> dict[str, Any]:
    """Measure a step in this process.

    Ours and the others take turns; ratios are medians over the turns. The first call of ours, after compiling, gives
    its memory.
    """
    torch.set_num_threads(1)
    case = step.make(quick)
    case.warm()
    added, peak = _added_memory(case.ours)
    rates = [gemm_rate(case.inner)] if case.flops else []
    turns: list[dict[str, float]] = []
    walls: list[float] = []
    found: dict[str, list[Any]] = {}
    begin = time.process_time()
    for turn in range(1 if quick else REPEATS):
        if turn and time.process_time() - begin > ENOUGH:
            break
        cpu, wall, ours = _timed(case.ours)
        times = {"ours": cpu}
        walls.append(wall)
        for name, way in case.others.items():
            times[name], _, found[name] = _timed(way)
        turns.append(times)
    if case.flops:
        rates.append(gemm_rate(case.inner))
    checks = case.check(ours, found)
    cpu = statistics.median(turn["ours"] for turn in turns)
    ratios = {
        name: statistics.median(turn[name] / turn["ours"] for turn in turns if turn["ours"] > 0) for name in case.others
    }
    return {
        "step": step.name,
        "title": step.title,
        "quick": quick,
        "size": case.size,
        "cpu_s": cpu,
        "wall_s": statistics.median(walls),
        "added_mib": added,
        "peak_mib": peak,
        "extrapolated": not case.ours.whole,
        "others": {
            name: {
                "cpu_s": statistics.median(turn[name] for turn in turns),
                "ratio": ratios[name],
                "at_least": step.at_least.get(name),
                "extrapolated": not way.whole,
            }
            for name, way in case.others.items()
        },
        "gemm_gflops": max(rates) / 1e9 if rates else None,
        "against_gemm": cpu / (case.flops / max(rates)) if rates else None,
        "checks": [{"text": c.text, "value": c.value, "at_most": c.at_most, "fine": c.fine} for c in checks],
        "at_most_mib": step.at_most_mib,
        "turns": len(turns),
        "load": os.getloadavg()[0],
    }
