"""What a cell costs beside its computation: 2,000 small cells, locally and on a Dask cluster, beside a loop and joblib.

python benchmarks/bench_overhead.py [--cells 2000] [--only here dask] [--out benchmarks/results/overhead.md]

The task is a mean over 300 rows. The bare loop and joblib compute the same numbers from the same arrays, and keep
nothing; txeval also opens embeddings, writes each cell to disk (with fsync), and makes the tables of scores at the end.
Overhead is (seconds of the run - seconds of the bare loop) / cells, with everything in: planning, start of processes,
tables. "In the steady state" is the time between the first and the last finished cell, per cell.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

PLUGIN = """
from dataclasses import dataclass

from txeval.compute.arrays import take_rows
from txeval.tasks import Metric, Score, Task


@dataclass(frozen=True)
class Params:
    rows: int = 300


def prepare(inputs):
    rows = inputs.rng("rows").integers(0, inputs.embedding.shape[0], inputs.params.rows)
    return float(take_rows(inputs.embedding, rows).mean())


SMALL = Task(
    name="small",
    level=90,
    title="Small",
    question="What is a mean of some rows?",
    limits="None.",
    params=Params,
    prepare=prepare,
    metrics=(Metric("mean", "small", "mean", "A mean.", compute=lambda found: Score(value=found)),),
    stochastic=lambda params, n: True,
)
"""


def plugin(folder: Path) -> None:
    """Install the task where this process and its children find it."""
    (folder / "overhead_plugin.py").write_text(PLUGIN)
    info = folder / "overhead_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: overhead-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[txeval.tasks]\nsmall = overhead_plugin:SMALL\n")
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


def screen(path: Path, embeddings: int, n: int = 3000, d: int = 32) -> Path:
    import anndata
    import pandas as pd
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    labels = np.array(["ctrl", "A", "B", "C"])[np.arange(n) % 4]
    obs = pd.DataFrame({"gene": labels, "lane": np.arange(n) // 4 % 5}, index=[f"cell_{i}" for i in range(n)])
    obs["lane"] = obs["lane"].astype(str)
    made = anndata.AnnData(sp.csr_matrix(rng.poisson(2, (n, 20)).astype(np.float32)), obs=obs)
    for number in range(embeddings):
        made.obsm[f"X_{number}"] = rng.normal(size=(n, d)).astype(np.float32)
    made.write_h5ad(path)
    return path


def one(values: np.ndarray, seed: int) -> float:
    rows = np.random.default_rng(seed).integers(0, len(values), 300)
    return float(values[np.sort(rows)].mean())


def cpu() -> float:
    """CPU seconds of this process and of all that it started, ended or not."""
    import psutil

    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        try:
            spent = child.cpu_times()
        except psutil.Error:
            continue
        total += spent.user + spent.system
    return total


class Clock:
    """Seconds at which the first and the last cell had finished."""

    def __init__(self) -> None:
        self.first = self.last = 0.0
        self.ended = 0

    def start(self, work: object) -> None: ...

    def begin(self, worker: int, kind: str, text: str) -> None: ...

    def says(self, worker: int, text: str) -> None: ...

    def end(self, worker: int | None, kind: str, text: str, seconds: float, reason: str) -> None:
        if kind == "small":
            self.last = time.perf_counter()
            self.first = self.first or self.last
            self.ended += 1

    def warn(self, text: str) -> None:
        print(f"warning: {text}", file=sys.stderr)

    def stop(self) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--embeddings", type=int, default=20)
    parser.add_argument("--only", nargs="+", default=["loop", "joblib", "here", "pool", "dask"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()

    import joblib
    import psutil

    seeds = given.cells // given.embeddings
    cells = seeds * given.embeddings
    rows: list[tuple[str, float, float, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        plugin(place)
        path = screen(place / "small.h5ad", given.embeddings)

        import anndata

        held = anndata.read_h5ad(path)
        arrays = [held.obsm[f"X_{number}"] for number in range(given.embeddings)]
        begin, spent = time.perf_counter(), cpu()
        for values in arrays:
            for seed in range(seeds):
                one(values, seed)
        loop = time.perf_counter() - begin
        rows.append(("bare loop, keeps nothing", loop, 0.0, 0.0, cpu() - spent))
        if "joblib" in given.only:
            begin, spent = time.perf_counter(), cpu()
            joblib.Parallel(n_jobs=2)(joblib.delayed(one)(values, seed) for values in arrays for seed in range(seeds))
            took = time.perf_counter() - begin
            over = 1000 * (took - loop) / cells
            rows.append(("joblib, 2 processes, keeps nothing", took, over, 0.0, cpu() - spent))

        from txeval.run import build_config, execute, make_plan

        def measure(name: str, **changes: object) -> None:
            clock = Clock()
            begin, spent = time.perf_counter(), cpu()
            config = build_config(
                {
                    "screen": path,
                    "roles": {"perturbation": "gene", "control": ["ctrl"], "batch": "lane"},
                    "embeddings": [f"obsm:X_{number}" for number in range(given.embeddings)],
                    "tasks": ["small"],
                    "post_processing": ["raw"],
                    "seeds": seeds,
                    "min_counts": 0,
                    "baseline": False,
                    "out": place / name.replace(" ", "_").replace(",", ""),
                    **changes,
                }
            )
            outcome = execute(make_plan(config), progress=clock)
            took = time.perf_counter() - begin
            assert outcome.n_computed == cells == clock.ended, (outcome.message, clock.ended)
            assert outcome.exit_status == 0
            steady = 1000 * (clock.last - clock.first) / (cells - 1)
            rows.append((name, took, 1000 * (took - loop) / cells, steady, cpu() - spent))

        if "here" in given.only:
            measure("txeval, 1 worker")
        if "pool" in given.only:
            measure("txeval, 2 workers", workers=2)
        if "dask" in given.only:
            with ExitStack() as stack:
                address = cluster(stack, place, 2)
                measure("txeval, Dask, 2 worker processes", scheduler=address)

    import distributed

    lines = [
        "# Overhead of a cell",
        "",
        f"`python benchmarks/bench_overhead.py`: {cells:,} small cells, a mean over 300 rows each",
        f"({given.embeddings} embeddings of 3,000 x 32, {seeds} seeds). The bare loop and joblib compute such means",
        "and keep nothing. txeval opens the embeddings, keeps each cell on disk at once (fsync), and writes all",
        "tables of scores. Seconds are of the whole run, from reading the configuration to the last table; overhead",
        "is (seconds - those of the bare loop) / cells; steady state is from the first finished cell to the last.",
        "",
        "| how | s | overhead, ms per cell | steady state, ms per cell | CPU ms per cell, all processes |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {took:.2f} | {'' if not over else f'{over:.2f}'} | {'' if not steady else f'{steady:.2f}'} | "
            f"{1000 * used / cells:.2f} |"
            for name, took, over, steady, used in rows
        ),
        "",
        f"Python {platform.python_version()}, distributed {distributed.__version__}, joblib {joblib.__version__}, "
        f"numpy {np.__version__}; {psutil.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end.",
        "",
    ]
    print("\n".join(lines))
    if given.out:
        given.out.write_text("\n".join(lines))


def cluster(stack: ExitStack, folder: Path, workers: int) -> str:
    """A scheduler and workers on loopback, as processes of their own."""
    import json

    file = folder / "scheduler.json"
    common = ["--host", "127.0.0.1", "--no-dashboard"]

    def start(*command: str) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
        )
        stack.callback(process.wait)
        stack.callback(process.kill)

    start("distributed.cli.dask_scheduler", *common, "--port", "0", "--scheduler-file", str(file))
    while not file.exists() or not file.read_text():
        time.sleep(0.1)
    address = str(json.loads(file.read_text())["address"])
    for number in range(workers):
        options = ["--nthreads", "1", "--memory-limit", "0", "--no-nanny", "--name", str(number)]
        start("distributed.cli.dask_worker", address, *common, *options, "--local-directory", str(folder))
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(workers)
    return address


if __name__ == "__main__":
    main()
