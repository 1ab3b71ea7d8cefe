"""What the digests of a results folder cost.

    python benchmarks/digests.py --n 300000 --d 512 --run-seconds 3600

Measures the hashes of hashlib, then what is paid for one embedding (n, d) of float32: its digest while it is written,
and its verification in each process that reads it. `--run-seconds` are the CPU seconds of a run of such an embedding
(benchmarks/results/full_size.md); the share of the two is given.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from pathlib import Path

import numpy as np

from txeval.run.files import write_rows
from txeval.run.folder import verify


def hashes(size: int = 2**28) -> dict[str, float]:
    """MiB per second of each hash."""
    content = np.random.default_rng(0).bytes(size)
    found = {}
    for name in ("sha256", "blake2b", "blake2s", "sha512", "sha3_256"):
        start = time.perf_counter()
        hashlib.new(name, content)
        found[name] = size / 2**20 / (time.perf_counter() - start)
    return found


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=300_000)
    parser.add_argument("--d", type=int, default=512)
    parser.add_argument("--run-seconds", type=float, help="CPU seconds of a run of one such embedding")
    parser.add_argument("--processes", type=int, default=3, help="that verify it: the run's own, and its workers")
    args = parser.parse_args()
    print("| hash | MiB/s |\n|---|---|")
    for name, speed in hashes().items():
        print(f"| {name} | {speed:,.0f} |")
    values = np.random.default_rng(0).standard_normal((args.n, args.d), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "values.npy"
        seal = write_rows(path, values)
        start = time.perf_counter()
        hashlib.sha256(values.data)
        while_writing = time.perf_counter() - start
        start = time.perf_counter()
        verify(path, seal)
        reading = time.perf_counter() - start
    print(f"\n{values.nbytes / 2**30:.2f} GiB: {while_writing:.2f} s while it is written, {reading:.2f} s to verify it")
    if args.run_seconds:
        paid = while_writing + args.processes * reading
        print(
            f"{args.processes} processes: {paid:.1f} s, {100 * paid / args.run_seconds:.2f} % of {args.run_seconds:g} s"
        )


if __name__ == "__main__":
    _main()
