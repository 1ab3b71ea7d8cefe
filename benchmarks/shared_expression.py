"""Level 6 of four post-processings in one pass over the expression, against four runs of one post-processing each.

    python benchmarks/shared_expression.py [--cells 30000] [--genes 8248] [--components 256] [--repeats 2]

Both ways run in one process with one thread, one after the other, on the same simulated screen with its principal
components (`least_squares` and `ridge` decoders). The scores of both must be equal to the last bit. The same is then
run with 2 GiB: its scores must be equal too. Writes benchmarks/results/shared_expression.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from txeval.compute.machine import own_memory
from txeval.data import Roles, open_screen, simulate_screen
from txeval.embed.base import EmbeddingContext
from txeval.embed.pca import PCA
from txeval.run import NullProgress, build_config, execute, make_plan
from txeval.run.worker import PeakMemory, single_threaded

HERE = Path(__file__).parent
POSTS = ["raw", "centering", "center_scaling", "tvn"]
KEYS = ["post_processing", "metric", "subset"]


def make(folder: Path, cells: int, genes: int, components: int) -> None:
    """A screen and its principal components."""
    if not (folder / "screen.h5ad").exists():
        simulate_screen(
            folder / "screen.h5ad", n_samples=cells, n_genes=genes, n_perturbations=500, n_batches=40, seed=0, threads=1
        )
    if not (folder / "pca.npy").exists():
        roles = Roles("perturbation", control_column="control", batch="batch", target_gene="gene")
        with open_screen(folder / "screen.h5ad", roles) as screen, tempfile.TemporaryDirectory(dir=folder) as room:
            options = {"components": components, "input": "counts"}
            PCA().embed(screen, options, EmbeddingContext(folder=Path(room)))
            (Path(room) / "pca.npy").rename(folder / "pca.npy")


def run(folder: Path, decoder: str, posts: list[str], **changes: Any) -> pd.DataFrame:
    """Scores of level 6, from nothing."""
    protocol = folder / f"{decoder}.yaml"
    protocol.write_text(f"extends: paper\nname: bench\ntasks:\n  reconstruction: {{decoder: {decoder}}}\n")
    with tempfile.TemporaryDirectory(dir=folder) as out:
        config = build_config(
            {
                "screen": folder / "screen.h5ad",
                "roles": {"perturbation": "perturbation", "control_column": "control", "batch": "batch"},
                "scale": "counts",
                "embeddings": [{"label": "pca", "source": str(folder / "pca.npy")}],
                "positional": True,
                "protocol": protocol,
                "tasks": ["reconstruction"],
                "post_processing": posts,
                "seeds": 1,
                "min_counts": 0,
                "baseline": False,
                "device": "cpu",
                "out": Path(out),
                **changes,
            }
        )
        outcome = execute(make_plan(config), progress=NullProgress())
        if outcome.exit_status:
            sys.exit(str(outcome.scores[["status", "reason"]].drop_duplicates()))
        return outcome.scores


def measured(call: Any) -> tuple[pd.DataFrame, float, float]:
    """Scores, CPU seconds and added MiB."""
    before, cpu = own_memory(), time.process_time()
    with PeakMemory() as memory:
        scores = call()
    return scores, time.process_time() - cpu, memory.peak - before / 2**20


def same(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two tables hold equal scores and intervals."""
    columns = [*KEYS, "value", "low", "high"]
    a, b = (table[columns].sort_values(KEYS).reset_index(drop=True) for table in (one, other))
    return a.equals(b)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=30_000)
    parser.add_argument("--genes", type=int, default=8_248)
    parser.add_argument("--components", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where screen and components lie, or go; default: temporary")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "shared_expression.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as room, single_threaded():
        folder = args.folder or Path(room)
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, args.cells, args.genes, args.components)
        rows = [decoder_row(folder, decoder, args.repeats) for decoder in ("least_squares", "ridge")]
    about = {
        "cells": args.cells,
        "genes": args.genes,
        "components": args.components,
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in ("txeval", "numpy", "scipy", "torch", "numba")},
    }
    lines = [
        "# Level 6: one pass over the expression for four post-processings",
        "",
        f"`python benchmarks/shared_expression.py --cells {args.cells} --genes {args.genes} --components "
        f"{args.components}`, one thread, median of {args.repeats} runs of each way in turn in one process "
        f"(load {about['load']}; " + ", ".join(f"{k} {v}" for k, v in about["versions"].items()) + ").",
        "",
        "| decoder | alone: CPU s | together: CPU s | ratio | alone: MiB added | together: MiB added "
        "| with 2 GiB: CPU s | MiB added | scores |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['decoder']} | {row['alone_cpu']:.1f} | {row['together_cpu']:.1f} | "
        f"{row['alone_cpu'] / row['together_cpu']:.2f} | {row['alone_mib']:.0f} | {row['together_mib']:.0f} | "
        f"{row['little_cpu']:.1f} | {row['little_mib']:.0f} | {'equal' if row['equal'] else 'DIFFERENT'} |"
        for row in rows
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    args.out.with_suffix(".json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    print("\n".join(lines))
    if not all(row["equal"] for row in rows):
        sys.exit("scores differ")


def decoder_row(folder: Path, decoder: str, repeats: int) -> dict[str, Any]:
    """Both ways in turn, and the second one with 2 GiB."""
    run(folder, decoder, ["raw"], max_memory="2GiB")
    found: dict[str, list[float]] = {"alone_cpu": [], "alone_mib": [], "together_cpu": [], "together_mib": []}
    equal = True
    for _ in range(repeats):
        alone, cpu, mib = measured(lambda: pd.concat([run(folder, decoder, [post]) for post in POSTS]))
        found["alone_cpu"].append(cpu)
        found["alone_mib"].append(mib)
        together, cpu, mib = measured(lambda: run(folder, decoder, POSTS))
        found["together_cpu"].append(cpu)
        found["together_mib"].append(mib)
        equal &= same(alone, together)
    little, cpu, mib = measured(lambda: run(folder, decoder, POSTS, max_memory="2GiB"))
    return {
        "decoder": decoder,
        **{key: float(np.round(statistics.median(values), 2)) for key, values in found.items()},
        "little_cpu": round(cpu, 2),
        "little_mib": round(mib, 1),
        "equal": bool(equal and same(little, together)),
    }


if __name__ == "__main__":
    main()
