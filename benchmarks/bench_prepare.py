"""Putting three parts of a screen together on disk, beside anndata's `concat_on_disk`.

python benchmarks/bench_prepare.py [--cells 20000] [--genes 8000] [--folder DIR]

Each case runs in a process of its own: seconds, MB of the values (unpacked) per CPU second (imports included), the
most memory that the process took, and the bytes of the result. txeval writes packed integers; anndata's
`concat_on_disk` writes what it reads, not packed, and keeps the layout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

OURS = """
import sys
from txeval.data.prepare import Recipe, prepare_screen
out, *parts = sys.argv[1:]
prepare_screen(parts, out, Recipe())
"""

THEIRS = """
import sys
from anndata.experimental import concat_on_disk
out, *parts = sys.argv[1:]
concat_on_disk(parts, out, join="outer", max_loaded_elems=16_000_000)
"""

MEASURE = """
import json, resource, time
begun = time.perf_counter()
try:
    exec(CODE)
    failed = ""
except Exception as why:
    failed = f"{type(why).__name__}: {why}"[:80]
used = resource.getrusage(resource.RUSAGE_SELF)
# Not ru_maxrss, which begins with what the parent took.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([time.perf_counter() - begun, used.ru_utime + used.ru_stime, peak, failed]))
"""


def write_part(path: Path, n: int, g: int, layout: str, seed: int) -> int:
    """Write one part, packed as anndata packs it; gives the bytes of its values unpacked."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {"gene_name": pd.Categorical(rng.choice(["A", "B", "non-targeting"], n)), "batch": rng.integers(0, 9, n)},
        index=[f"part{seed}_cell{i}" for i in range(n)],
    )
    level = rng.lognormal(-3.0, 1.6, g)
    blocks = [sp.csr_matrix(rng.poisson(level, (min(1000, n - a), g)).astype(np.float32)) for a in range(0, n, 1000)]
    values = sp.vstack(blocks, format="csr")
    if layout == "dense":
        anndata.AnnData(np.zeros((n, 0), np.float32), obs=obs).write_h5ad(path)
        with h5py.File(path, "r+") as file:
            attributes = dict(file["X"].attrs)
            del file["X"], file["var"]
            made = file.create_dataset("X", (n, g), np.float32, compression="gzip", compression_opts=1, chunks=(64, g))
            made.attrs.update(attributes)
            for i, block in enumerate(blocks):
                made[i * 1000 : i * 1000 + block.shape[0]] = block.toarray()
            anndata.io.write_elem(file, "var", pd.DataFrame(index=[f"G{i}" for i in range(g)]))
        return n * g * 4
    X = values if layout == "csr" else values.tocsc()
    made = anndata.AnnData(X, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(g)]))
    made.write_h5ad(path, compression="gzip", compression_opts=1)
    return values.nnz * 8


def run(code: str, out: Path, parts: list[Path]) -> tuple[float, float, float, str]:
    """Seconds, CPU seconds, MB of memory and what went wrong."""
    script = f"CODE = {code!r}\n{MEASURE}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    ran = subprocess.run(
        [sys.executable, "-c", script, str(out), *map(str, parts)], capture_output=True, text=True, env=environment
    )
    if ran.returncode:
        return 0.0, 0.0, 0.0, ran.stderr.strip().splitlines()[-1][:80] if ran.stderr else f"status {ran.returncode}"
    seconds, cpu, peak, failed = json.loads(ran.stdout.splitlines()[-1])
    return seconds, cpu, peak * 1024 / 1e6, failed


def size(path: Path) -> float:
    """MB on disk."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def main() -> None:
    """Run all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=8_000)
    parser.add_argument("--folder")
    args = parser.parse_args()
    print("| parts | to | by | s | CPU s | MB per CPU s | peak memory, MB | result, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for layout in ("csr", "csc", "dense"):
            # Dense parts hold many times the values.
            n = args.cells // 3 if layout == "dense" else args.cells
            parts = [Path(folder) / f"{layout}{i}.h5ad" for i in range(3)]
            amount = sum(write_part(part, n, args.genes, layout, i) for i, part in enumerate(parts)) / 1e6
            for target in ("h5ad", "zarr"):
                for who, code in (("txeval", OURS), ("concat_on_disk", THEIRS)):
                    out = Path(folder) / f"{layout}.{who}.{target}"
                    seconds, cpu, peak, failed = run(code, out, parts)
                    where = f"| {layout}, 3 x {n:,} x {args.genes:,}, {amount:,.0f} MB | {target} | {who} |"
                    if failed:
                        print(f"{where} {failed} | | | | |", flush=True)
                        continue
                    print(
                        f"{where} {seconds:.1f} | {cpu:.1f} | {amount / cpu:,.0f} | {peak:,.0f} | {size(out):,.0f} |",
                        flush=True,
                    )
            for part in parts:
                part.unlink()


if __name__ == "__main__":
    main()
