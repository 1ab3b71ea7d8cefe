"""Run the steps that are not known yet, each in a process of its own, and write the table."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.bench.measure import measure
from benchmarks.bench.steps import every_step
from benchmarks.bench.table import write

ROOT = Path(__file__).parents[2]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1") | {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
}


def known(book: Path, quick: bool) -> dict[str, dict[str, Any]]:
    """The newest figures of every step."""
    rows = [json.loads(line) for line in book.read_text(encoding="utf-8").splitlines()] if book.exists() else []
    return {row["step"]: row for row in rows if row["quick"] == quick}


def main() -> int:
    """Measure and write."""
    steps = every_step()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("--steps", nargs="+", choices=list(steps), default=list(steps), metavar="NAME")
    parser.add_argument("--list", action="store_true", help="only name the steps")
    parser.add_argument("--quick", action="store_true", help="small sizes: only whether every step still runs")
    parser.add_argument("--again", action="store_true", help="measure steps again that are known")
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench", help="where figures are kept, and screens")
    parser.add_argument("--out", type=Path, help="table, without its suffix (default: benchmarks/results/bench)")
    parser.add_argument(
        "--growth", type=int, nargs="*", metavar="CELLS", help="sizes of screens that every level is run on"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.list:
        for step in steps.values():
            print(f"{step.name:20} {step.title}")
        return 0
    if args.one:
        print(json.dumps(measure(steps[args.one], quick=args.quick)))
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    book = args.folder / "steps.jsonl"
    results = ROOT / "benchmarks" / "results"
    out = args.out or (args.folder / "quick" if args.quick else results / "bench")
    failed = []
    for name in args.steps:
        if name not in known(book, args.quick) or args.again:
            command = [sys.executable, "-m", "benchmarks.bench", "--one", name, *(["--quick"] if args.quick else [])]
            done = subprocess.run(
                command, cwd=ROOT, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, text=True, check=False
            )
            if done.returncode:
                failed.append(name)
                continue
            line = done.stdout.splitlines()[-1]
            with book.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            row = json.loads(line)
            ratios = ", ".join(f"{other} {item['ratio']:.1f} x" for other, item in row["others"].items())
            print(f"{name}: {row['cpu_s']:.3g} CPU s; {ratios}", flush=True)
    if args.growth:
        sizes = [str(n) for n in args.growth]
        command = [
            sys.executable,
            str(ROOT / "benchmarks" / "full_size.py"),
            str(args.folder / "full"),
            "--cells",
            *sizes,
        ]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append("growth")
    found = known(book, args.quick)
    write([found[name] for name in steps if name in found], out)
    print(f"{out.with_suffix('.md')}, {out.with_suffix('.json')}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
