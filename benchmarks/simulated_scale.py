"""How time and memory grow from 50,000 to 2,000,000 cells x 8,000 genes: simulate, prepare, PCA.

    python benchmarks/simulated_scale.py FOLDER [--cells 50000 200000 800000 2000000] [--steps simulate prepare pca]

Each step runs in a process of its own and its figures are kept in FOLDER/scale.jsonl, so a run that was stopped goes
on. Writes benchmarks/results/simulated_scale.md. The files of a size are deleted once its PCA is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

GENES = 8_000
SETTINGS = {
    "n_genes": GENES,
    "n_perturbations": 2_000,
    "unexpressed_targets": 200,
    "n_batches": 200,
    "n_programs": 50,
    "depth": 2_000.0,
    "seed": 0,
}
STEPS = ("simulate", "prepare", "pca")
COMPONENTS = 256


def simulate(folder: Path, cells: int) -> dict[str, float]:
    """Write the screen."""
    from txeval.data.simulate import simulate_screen

    path = folder / f"{cells}.h5ad"
    simulate_screen(path, n_samples=cells, **SETTINGS)
    import h5py

    with h5py.File(path) as file:
        nnz = file["X/data"].shape[0]
        kind = str(file["X/data"].dtype)
    return {"bytes": path.stat().st_size, "density": nnz / cells / GENES, "nnz": nnz, "dtype": kind}


def prepare(folder: Path, cells: int) -> dict[str, float]:
    """Check every value, leave out cells of 1,000 counts or fewer, write the others: `txeval data prepare`."""
    from txeval.data.prepare import Recipe, prepare_screen

    path = folder / f"{cells}.prepared.h5ad"
    made = prepare_screen([folder / f"{cells}.h5ad"], path, Recipe(min_counts=1_000))
    import h5py

    with h5py.File(path) as file:
        nnz = file["X/data"].shape[0]
    n = made.shape[0]
    return {"bytes": path.stat().st_size, "density": nnz / n / GENES, "kept": n, "dtype": made.dtype}


def pca(folder: Path, cells: int) -> dict[str, float]:
    """Exact PCA to 256 components."""
    import tempfile

    from txeval.data import Roles, open_screen
    from txeval.embed.base import EmbeddingContext
    from txeval.embed.pca import PCA

    path = folder / f"{cells}.prepared.h5ad"
    path = path if path.exists() else folder / f"{cells}.h5ad"
    roles = Roles("perturbation", control_column="control", batch="batch", target_gene="gene")
    times = {}
    last = [time.perf_counter(), ""]

    def progress(done: int, total: int, text: str) -> None:
        if text != last[1]:
            times[text] = time.perf_counter()
            last[1] = text

    with open_screen(path, roles) as screen, tempfile.TemporaryDirectory(dir=folder) as room:
        start = time.perf_counter()
        made = PCA().embed(
            screen,
            {"components": COMPONENTS, "input": "counts"},
            EmbeddingContext(folder=Path(room), progress=progress),
        )
        moments = times["PCA: projection"] - start
        assert made.shape == (screen.n, COMPONENTS), made.shape
        assert np.isfinite(np.asarray(made.values[np.arange(0, screen.n, max(1, screen.n // 1000))])).all()
    return {"moments_and_axes_s": moments, "explained": made.provenance["explained_variance"]}


def one(step: str, folder: Path, cells: int) -> None:
    """Run one step and print its figures."""
    start = time.perf_counter()
    found = {"simulate": simulate, "prepare": prepare, "pca": pca}[step](folder, cells)
    wall = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "step": step,
        "cells": cells,
        "wall_s": round(wall, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gib": round(usage.ru_maxrss / 2**20, 3),
        "load": round(os.getloadavg()[0], 1),
        **found,
    }
    print(json.dumps(figures))


def report(rows: list[dict[str, float]], out: Path) -> None:
    """Write the table."""
    known = {(row["step"], row["cells"]): row for row in rows}
    sizes = sorted({row["cells"] for row in rows})
    settings = ", ".join(f"{name} {value:g}" for name, value in SETTINGS.items())
    lines = [
        "# A simulated screen, from 50,000 to 2,000,000 cells",
        "",
        f"`python benchmarks/simulated_scale.py FOLDER`: {settings}. Each step in a process of its own;",
        "linear algebra on one thread, making and packing on as many as there are cores.",
        f"{os.cpu_count()} shared {platform.machine()} cores with other work running (column load, waiting processes):",
        "CPU seconds compare, wall seconds do not.",
        "",
        "| step | cells | CPU s | CPU µs per cell | wall s | peak GiB | load |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for step in STEPS:
        for cells in sizes:
            row = known.get((step, cells))
            if row:
                lines.append(
                    f"| {step} | {cells:,} | {row['cpu_s']:,.0f} | {1e6 * row['cpu_s'] / cells:,.0f} "
                    f"| {row['wall_s']:,.0f} | {row['peak_gib']:.2f} | {row['load']:g} |"
                )
    lines += ["", "| file | cells | GB | density | type of the values |", "| --- | --- | --- | --- | --- |"]
    for step in ("simulate", "prepare"):
        for cells in sizes:
            row = known.get((step, cells))
            if row:
                lines.append(
                    f"| {step} | {cells:,} | {row['bytes'] / 1e9:.2f} | {row['density']:.3f} | {row['dtype']} |"
                )
    lines.append("")
    for step in STEPS:
        pairs = [(cells, known[step, cells]["cpu_s"]) for cells in sizes if (step, cells) in known]
        steps = [
            f"{1e6 * (after[1] - before[1]) / (after[0] - before[0]):,.0f} (to {after[0]:,})"
            for before, after in itertools.pairwise(pairs)
        ]
        if steps:
            lines.append(f"- {step}, CPU µs of each further cell: {', '.join(steps)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Run the steps that are not known yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", type=int, nargs="+", default=[50_000, 200_000, 800_000, 2_000_000])
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help="keep the files")
    parser.add_argument("--report", action="store_true", help="only write the table of what is known")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "simulated_scale.md")
    args = parser.parse_args()
    if args.one:
        one(args.one[0], args.folder, int(args.one[1]))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    book = args.folder / "scale.jsonl"
    if args.report:
        report([json.loads(line) for line in book.read_text().splitlines()], args.out)
        return
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    for cells in args.cells:
        for step in args.steps:
            rows = [json.loads(line) for line in book.read_text().splitlines()] if book.exists() else []
            if any(row["step"] == step and row["cells"] == cells for row in rows):
                continue
            command = [sys.executable, __file__, str(args.folder), "--one", step, str(cells)]
            done = subprocess.run(command, env=os.environ | threads, check=True, capture_output=True, text=True)
            line = done.stdout.splitlines()[-1]
            print(line, flush=True)
            with book.open("a") as out:
                out.write(line + "\n")
            report([*rows, json.loads(line)], args.out)
        if "pca" in args.steps and not args.keep:
            for path in args.folder.glob(f"{cells}.*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main()
