"""Peak memory of a whole run under several limits, and that its scores are equal.

    python benchmarks/memory_limits.py RUN.yaml [--limits 1500MiB 2GiB 8GiB] [--workers 1] [--tasks ...]

Runs `txeval run RUN.yaml --max-memory LIMIT` for each limit in a results folder of its own, watches the memory of all
its processes (anonymous and shared pages; pages of mapped files do not count) five times a second, and compares all
scores to the last bit. Writes benchmarks/results/memory_limits.md.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import psutil

from txeval.compute.machine import own_memory, parse_size

HERE = Path(__file__).parent
CLOCKS = ["seconds", "peak_memory_mb"]


def watched(command: list[str], log: Path) -> tuple[int, float, float, float]:
    """Exit status, wall and CPU seconds, and peak GiB of a command with its descendants."""
    before, start, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    with log.open("w", encoding="utf-8") as handle:
        process = subprocess.Popen(command, stdout=handle, stderr=subprocess.STDOUT)
        family = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                members = [family, *family.children(recursive=True)]
            except psutil.Error:
                members = []
            total = 0
            for member in members:
                status = Path(f"/proc/{member.pid}/status")
                # A process that has just ended has no such line.
                if status.exists() and "RssAnon" in status.read_text(encoding="ascii"):
                    total += own_memory(status)
            peak = max(peak, total)
            time.sleep(0.2)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return process.returncode, time.perf_counter() - start, cpu, peak / 2**30


def main() -> None:
    """Run under every limit and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--limits", nargs="+", default=["1500MiB", "2GiB", "8GiB"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--tasks", nargs="+", default=[])
    parser.add_argument("--what", default="", help="a line on the data, for the table")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "memory_limits.md")
    args = parser.parse_args()
    rows, first = [], None
    for limit in args.limits:
        with tempfile.TemporaryDirectory(dir=args.run.parent) as room:
            out = Path(room) / "results"
            command = [sys.executable, "-m", "txeval", "run", str(args.run), "--plain", "--device", "cpu"]
            command += ["--max-memory", limit, "--workers", str(args.workers), "--out", str(out)]
            command += ["--tasks", *args.tasks] if args.tasks else []
            status, wall, cpu, peak = watched(command, Path(room) / "log")
            if status not in (0, 1):
                sys.exit((Path(room) / "log").read_text(encoding="utf-8")[-3000:])
            scores = pd.read_parquet(out / "scores.parquet")
            shutil.rmtree(out)
        first = scores if first is None else first
        equal = scores.drop(columns=CLOCKS).equals(first.drop(columns=CLOCKS))
        rows.append(
            f"| {limit} | {args.workers} | {peak:.2f} | {peak * 2**30 / parse_size(limit):.2f} | {wall:.0f} | "
            f"{cpu:.0f} | "
            f"{'equal' if equal else 'DIFFERENT'} ({len(scores)} rows) |"
        )
        print(rows[-1], flush=True)
    lines = [
        "# Peak memory of a run under `--max-memory`",
        "",
        args.what,
        "",
        f"`python benchmarks/memory_limits.py {args.run.name} --limits {chr(32).join(args.limits)} "
        f"--workers {args.workers}`: "
        "all processes of the run together, anonymous and shared pages",
        f"(load {os.getloadavg()[0]:.1f}; "
        + ", ".join(f"{name} {version(name)}" for name in ("txeval", "numpy", "torch", "numba"))
        + ").",
        "",
        "| limit | workers | peak GiB | of the limit | wall s | CPU s | scores, against the first line |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *rows,
    ]
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
