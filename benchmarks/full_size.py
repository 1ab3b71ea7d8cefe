"""One embedding of a screen of Replogle's size through every level: time, memory, and growth with the cells.

    python benchmarks/full_size.py FOLDER [--cells 50000 200000 800000 1980000] [--steps simulate pca run] [--workers 2]

Simulates a screen with the layout of Replogle 2022 (267 batches, 9,866 perturbations of which 1,000 hit genes that are
not expressed, 3.8 % controls, 8,248 genes), makes its exact PCA with 256 components, splits the planted relationships
into five databases, and runs `txeval run` under `full_size.yaml` with all four post-processings. Smaller sizes have
the same genes, batches, perturbations and effects with fewer cells each, so that only the number of cells grows.

Every step runs in processes of its own. Figures are kept in FOLDER/full_size.jsonl, cells in the results folder: a
run that was stopped goes on. Writes benchmarks/results/full_size.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import yaml

HERE = Path(__file__).parent
FULL = 1_980_000
SIZES = (50_000, 200_000, 800_000, FULL)
STEPS = ("simulate", "pca", "run")
COMPONENTS = 256
LAYOUT: dict[str, Any] = {
    "n_genes": 8_248,
    "n_perturbations": 6_000,
    "unexpressed_targets": 1_000,
    "unmeasured_targets": 2_866,
    "n_batches": 267,
    "n_programs": 64,
    "control_fraction": 75_328 / FULL,
    "depth": 5_000.0,
    "seed": 0,
}
#: Relationships of both genes in the map that each published database has for Replogle's genes, about.
DATABASES = {"CORUM": 8_000, "HuMAP": 12_000, "Reactome": 24_000, "SIGNOR": 3_000, "StringDB": 15_000}
PACKAGES = ("txeval", "numpy", "scipy", "torch", "numba", "pandas", "h5py", "anndata")
#: Level, task, and what its time should grow with.
LEVELS = (
    ("batch_mixing", 1),
    ("linear_probe", 2),
    ("consistency", 3),
    ("knn", 4),
    ("relationships", 5),
    ("reconstruction", 6),
)


def simulate(folder: Path, cells: int) -> dict[str, Any]:
    """Write the screen, and its planted relationships as five databases."""
    from txeval.data.simulate import simulate_screen

    truth = simulate_screen(folder / "screen.h5ad", n_samples=cells, threads=1, **LAYOUT)
    rng = np.random.default_rng(0)
    (folder / "relations").mkdir(exist_ok=True)
    for name, size in DATABASES.items():
        chosen = np.sort(rng.choice(len(truth.relations), size, replace=False))
        truth.relations.iloc[chosen].to_csv(folder / "relations" / f"{name}.csv", index=False)
    import h5py

    with h5py.File(folder / "screen.h5ad") as file:
        density = file["X/data"].shape[0] / cells / LAYOUT["n_genes"]
    return {"gb": (folder / "screen.h5ad").stat().st_size / 1e9, "density": density}


def pca(folder: Path, cells: int) -> dict[str, Any]:
    """Exact principal components of the counts, as a file of its own."""
    from txeval.data import Roles, open_screen
    from txeval.embed.base import EmbeddingContext
    from txeval.embed.pca import PCA

    roles = Roles("perturbation", control_column="control", batch="batch", target_gene="gene")
    with open_screen(folder / "screen.h5ad", roles) as screen, tempfile.TemporaryDirectory(dir=folder) as room:
        made = PCA().embed(screen, {"components": COMPONENTS, "input": "counts"}, EmbeddingContext(folder=Path(room)))
        (Path(room) / "pca.npy").rename(folder / "pca.npy")
        return {"explained": made.provenance["explained_variance"], "gb": (folder / "pca.npy").stat().st_size / 1e9}


def write_run(folder: Path) -> Path:
    """YAML of the run, with paths relative to it."""
    content = {
        "screen": "screen.h5ad",
        "roles": {
            "perturbation": "perturbation",
            "control_column": "control",
            "batch": "batch",
            "target_gene": "gene",
        },
        "scale": "counts",
        "embeddings": [{"label": "pca", "source": "pca.npy"}],
        "positional": True,
        "protocol": str(HERE / "full_size.yaml"),
        "relations": "relations",
        "out": "results",
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


class Watch:
    """Memory of a process and its descendants, and the load of the machine, looked at every second."""

    def __init__(self, pid: int) -> None:
        self.process = psutil.Process(pid)
        self.peak_pss = self.peak_rss = self.peak_private = 0.0
        self.loads: list[float] = []

    def look(self) -> None:
        """Take one look."""
        pss = rss = private = 0.0
        with_children = [self.process]
        try:
            with_children += self.process.children(recursive=True)
        except psutil.Error:
            return
        for process in with_children:
            try:
                found = process.memory_full_info()
            except (psutil.Error, OSError):
                continue
            pss += found.pss / 2**30
            rss += found.rss / 2**30
            private += found.uss / 2**30
        self.peak_pss, self.peak_rss = max(self.peak_pss, pss), max(self.peak_rss, rss)
        self.peak_private = max(self.peak_private, private)
        self.loads.append(os.getloadavg()[0])


def run(folder: Path, cells: int, workers: int, options: Sequence[str]) -> dict[str, Any]:
    """`txeval run` on the screen, watched from outside."""
    command = [sys.executable, "-m", "txeval", "run", str(write_run(folder)), "--workers", str(workers), "--plain"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    with (folder / "run.log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=subprocess.STDOUT)
        watch = Watch(process.pid)
        while process.poll() is None:
            watch.look()
            # Adding up the pages of large processes takes milliseconds itself.
            time.sleep(1.0)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # 1: some scores could not be computed, such as iLISI relative to a random baseline that is not run.
    if process.returncode not in (0, 1):
        sys.stderr.write((folder / "run.log").read_text(encoding="utf-8")[-4000:])
        sys.stderr.write(f"txeval run ended with exit status {process.returncode}\n")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "exit_status": process.returncode,
        "workers": workers,
        "options": list(options),
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        "peak_pss_gib": round(watch.peak_pss, 3),
        "peak_rss_gib": round(watch.peak_rss, 3),
        "peak_private_gib": round(watch.peak_private, 3),
        "load": round(float(np.mean(watch.loads)), 1),
        "results_gb": sum(file.stat().st_size for file in (folder / "results").rglob("*") if file.is_file()) / 1e9,
        "cells": read_cells(folder / "results"),
        "scores": read_scores(folder / "results"),
    }


def read_cells(results: Path) -> list[dict[str, Any]]:
    """Figures that every cell was stored with."""
    found = []
    for path in sorted(results.glob("cells/*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        row = {key: cell[key] for key in ("task", "post_processing", "state")}
        for key in ("seconds", "cpu_seconds", "peak_memory_mb"):
            row[key] = round(float(cell[key]), 2)
        samples = [item["n_samples"] for item in cell["rows"] if item.get("n_samples")]
        row["n_samples"] = max(samples, default=0)
        row["failed"] = sum(item["status"] != "ok" for item in cell["rows"])
        row["reasons"] = sorted({item["reason"] for item in cell["rows"] if item["status"] != "ok"})
        found.append(row)
    return found


HEADLINE = {
    "batch_mixing": "ilisi",
    "linear_probe": "top1",
    "consistency": "consistent",
    "knn": "top1",
    "relationships": "recall",
    "reconstruction": "spearman",
}


def read_scores(results: Path) -> dict[str, dict[str, float]]:
    """One score of each level, by post-processing: that the work was done at all."""
    table = pd.read_parquet(results / "scores.parquet")
    table = table[(table["status"] == "ok") & (table["metric"] == table["task"].map(HEADLINE))]
    means = table.groupby(["task", "post_processing"])["value"].mean()
    made: dict[str, dict[str, float]] = {}
    for (task, post), value in means.items():
        made.setdefault(task, {})[post] = round(float(value), 4)
    return made


def one(step: str, folder: Path, cells: int) -> None:
    """Run one step in this process and print its figures."""
    start = time.perf_counter()
    found = {"simulate": simulate, "pca": pca}[step](folder, cells)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "wall_s": round(time.perf_counter() - start, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_rss_gib": round(usage.ru_maxrss / 2**20, 3),
        "load": round(os.getloadavg()[0], 1),
        **found,
    }
    print(json.dumps(figures))


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def growth(runs: Mapping[int, Mapping[str, Any]], small: int, large: int) -> list[dict[str, Any]]:
    """CPU seconds of every level at two sizes, and their growth relative to that of the work."""
    made = []
    for task, level in LEVELS:
        sums, samples = {}, {}
        for size in (small, large):
            cells = [cell for cell in runs[size]["cells"] if cell["task"] == task]
            sums[size] = sum(cell["cpu_seconds"] for cell in cells)
            samples[size] = max((cell["n_samples"] for cell in cells), default=0)
        if not sums[small]:
            continue
        made.append(
            {
                "task": task,
                "level": level,
                "cpu_small": round(sums[small], 1),
                "cpu_large": round(sums[large], 1),
                "samples_small": samples[small],
                "samples_large": samples[large],
                "against_linear": round(sums[large] / sums[small] / (large / small), 3),
                "against_samples": round(sums[large] / sums[small] / (samples[large] / samples[small]), 3),
            }
        )
    return made


def report(rows: list[dict[str, Any]], out: Path) -> None:
    """Write the tables of everything that is known."""
    known = {(row["step"], row["n"]): row for row in rows}
    runs = {n: row for (step, n), row in sorted(known.items()) if step == "run" and row["exit_status"] in (0, 1)}
    settings = ", ".join(f"{name} {value:.6g}" for name, value in LAYOUT.items())
    lines = [
        "# One embedding at the size of Replogle 2022",
        "",
        f"`python benchmarks/full_size.py FOLDER`: simulated screens ({settings}), exact PCA with {COMPONENTS}",
        "components, `txeval run` under `benchmarks/full_size.yaml` (the paper's protocol with `lda` and",
        "`least_squares`), four post-processings, one thread per worker. Smaller sizes: fewer cells per perturbation.",
        "",
        f"{processor()}, {os.cpu_count()} cores; "
        + ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        + ". The machine was shared: the column load is the mean number of processes that",
        "wanted a core; wall seconds hold for that load, CPU seconds compare.",
        "",
        "Memory: sums over all processes of the run. `private` counts what only one process holds, `proportional` adds",
        "shared pages once (pages of mapped files that the system can drop at any time are in it).",
        "",
        "| step | cells | wall s | CPU s | CPU s / 2 | peak GiB private | proportional | load |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (step, n), row in sorted(known.items(), key=lambda item: (item[0][1], STEPS.index(item[0][0]))):
        private = row.get("peak_private_gib")
        peak = row.get("peak_pss_gib", row.get("peak_rss_gib"))
        lines.append(
            f"| {step} | {n:,} | {row['wall_s']:,.0f} | {row['cpu_s']:,.0f} | "
            + (f"{row['cpu_s'] / 2:,.0f} | {private:.2f}" if private is not None else "|")
            + f" | {peak:.2f} | {row['load']:.1f} |"
        )
    for n, row in runs.items():
        lines += ["", f"## {n:,} cells", ""]
        lines += ["| level | post-processing | samples | seconds | CPU s | peak MiB | score |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
        order = dict(LEVELS)
        posts = ["raw", "centering", "center_scaling", "tvn"]
        cells = sorted(row["cells"], key=lambda cell: (order[cell["task"]], posts.index(cell["post_processing"])))
        for cell in cells:
            value = row["scores"].get(cell["task"], {}).get(cell["post_processing"])
            score = f"{HEADLINE[cell['task']]} {value:.4f}" if value is not None else "; ".join(cell["reasons"])
            lines.append(
                f"| {order[cell['task']]} {cell['task']} | {cell['post_processing']} | {cell['n_samples']:,} | "
                f"{cell['seconds']:,.1f} | {cell['cpu_seconds']:,.1f} | {cell['peak_memory_mb']:,.0f} | {score} |"
            )
        total = sum(cell["cpu_seconds"] for cell in cells)
        lines.append(f"| all | | | | {total:,.0f} | | |")
    grown = growth(runs, 200_000, max(runs)) if 200_000 in runs and max(runs) > 200_000 else []
    if grown:
        lines += [
            "",
            f"## Growth from 200,000 to {max(runs):,} cells",
            "",
            "CPU seconds of the four post-processings together. Against linear: the ratio of the seconds over that of",
            "the cells, 1.15 is the limit. Against samples: over the ratio of the samples that the level scores",
            "(batch mixing takes at most 300,000 of the test samples).",
            "",
            "| level | CPU s, 200,000 | CPU s, full | samples | against linear | against samples |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for row in grown:
            lines.append(
                f"| {row['level']} {row['task']} | {row['cpu_small']:,.1f} | {row['cpu_large']:,.1f} | "
                f"{row['samples_small']:,} to {row['samples_large']:,} | {row['against_linear']:.2f} | "
                f"{row['against_samples']:.2f} |"
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {
        "layout": LAYOUT,
        "components": COMPONENTS,
        "processor": processor(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "steps": [known[key] for key in sorted(known, key=lambda key: (key[1], STEPS.index(key[0])))],
        "growth": grown,
    }
    out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run the steps that are not known yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="do the steps again that are known")
    parser.add_argument("--report", action="store_true", help="only write the tables of what is known")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "full_size.md")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args, options = parser.parse_known_args()
    if args.one:
        one(args.one[0], args.folder, int(args.one[1]))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    book = args.folder / "full_size.jsonl"

    def known() -> list[dict[str, Any]]:
        return [json.loads(line) for line in book.read_text().splitlines()] if book.exists() else []

    if args.report:
        report(known(), args.out)
        return
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    for n in args.cells:
        folder = args.folder / str(n)
        folder.mkdir(exist_ok=True)
        for step in args.steps:
            if not args.again and any(row["step"] == step and row["n"] == n for row in known()):
                continue
            if step == "run":
                if args.again and (folder / "results").exists():
                    shutil.rmtree(folder / "results")
                figures = run(folder, n, args.workers, options)
            else:
                command = [sys.executable, __file__, str(folder), "--one", step, str(n)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                figures = json.loads(done.stdout.splitlines()[-1])
            line = json.dumps({"step": step, "n": n, **figures})
            with book.open("a", encoding="utf-8") as out:
                out.write(line + "\n")
            print(line[:400], flush=True)
            report(known(), args.out)


if __name__ == "__main__":
    main()
