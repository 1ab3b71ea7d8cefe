"""Flip bits of a results folder and see whether a changed score is ever shown without a word.

    python benchmarks/flips.py --n 1000 --out benchmarks/results/flips.md

Each try takes a copy of one finished folder, flips one random bit of one random file, or cuts the file off at a random
place, and then does what a user may do next: the same run again, `show`, and `leaderboard check`. A change is silent
where afterwards a command shows other scores, or the folder holds other content than before, and nobody was told.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from txeval.cli import main
from txeval.data import simulate_screen
from txeval.run import NullProgress, Plan, build_config, execute, make_plan

#: Columns that differ between two runs that compute the same.
CLOCKS = ["seconds", "peak_memory_mb"]

#: Where a file is -> what it is called in the table.
KINDS = {
    "cells/*.json": "cells",
    "cells/*.parquet": "tables of cells",
    "embeddings/*": "embeddings",
    "postprocessing/*": "fitted post-processings",
    "plans/*": "plans",
    "splits/*": "splits",
    "samples/*": "samples",
    "protocols/*": "protocols",
    "details/*": "details",
    "scores.*": "scores.parquet, scores.csv",
    "splits.parquet": "splits.parquet",
    "manifest.json": "manifest.json",
    "run.yaml": "run.yaml",
}

#: What a run reads for cells that it has to compute: there the cells are taken away.
READ_BY_CELLS = ("embeddings", "fitted post-processings")


def settings(screen: Path) -> dict[str, Any]:
    """A small run on one level, with a fitted post-processing and a table of units."""
    return {
        "screen": screen,
        "roles": {"perturbation": "perturbation", "control": ["non-targeting"], "batch": "batch"},
        "embeddings": ["truth=obsm:X_truth"],
        "tasks": ["knn"],
        "post_processing": ["raw", "centering"],
        "seeds": 1,
        "min_counts": 0,
    }


def finish(folder: Path) -> tuple[Path, Plan]:
    """Make a screen and its results in a folder; give them, and a plan of the same run in `folder / "copy"`."""
    simulate_screen(folder / "s.h5ad", n_samples=150, n_genes=30, n_perturbations=5, unexpressed_targets=2)
    chosen = settings(folder / "s.h5ad")
    execute(make_plan(build_config({**chosen, "out": folder / "out"})), progress=NullProgress())
    return folder / "out", make_plan(build_config({**chosen, "out": folder / "copy"}))


def harm(path: Path, rng: np.random.Generator) -> str:
    """Flip a bit of a file, or (one time in five) cut it off; say which."""
    content = bytearray(path.read_bytes())
    place = int(rng.integers(len(content)))
    if rng.random() < 0.2:
        path.write_bytes(content[:place])
        return f"cut at {place}"
    bit = int(rng.integers(8))
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place}"


def _command(*words: str) -> tuple[int, str, str]:
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        status = main(list(words))
    return status, out.getvalue(), said.getvalue()


def silent(whole: pd.DataFrame, shown: str, plan: Plan, kind: str) -> tuple[str, bool]:
    """What a harmed folder shows without a word ("" for nothing), and whether the same run makes it whole again.

    Parameters
    ----------
    whole, shown
        Its scores as they were, and what `show` printed of them.
    plan
        Of the run that made it.
    """
    folder = plan.config.out
    assert folder is not None  # given by the caller
    faults = []
    status, said, error = _command("leaderboard", "check", str(folder))
    if status not in (1, 2) or not ("not what was stored" in said or error):
        faults.append("check passes")
    status, now, error = _command("show", str(folder), "--format", "csv")
    if status not in (0, 2) or (status == 0 and now != shown and not error):
        faults.append("show has other numbers")
    if kind in READ_BY_CELLS:
        for path in (folder / "cells").glob("*.json"):
            path.unlink()
    outcome = execute(plan, progress=NullProgress())
    if not whole.equals(outcome.scores.drop(columns=CLOCKS)) and not outcome.warnings:
        faults.append("the run has other scores")
    status, said, _ = _command("leaderboard", "check", str(folder))
    return "; ".join(faults), status != 2 and "not what was stored" not in said


def flip(n: int, seed: int, folder: Path) -> pd.DataFrame:
    """Harm copies of one folder `n` times; one row each: kind, file, harm, silent, healed."""
    rng = np.random.default_rng(seed)
    whole, plan = finish(folder)
    scores = pd.read_parquet(whole / "scores.parquet").drop(columns=CLOCKS)
    shown = _command("show", str(whole), "--format", "csv")[1]
    kinds = {
        kind: paths
        for pattern, kind in KINDS.items()
        if (paths := [path.relative_to(whole) for path in sorted(whole.glob(pattern)) if path.is_file()])
    }
    rows = []
    for number in range(n):
        kind = list(kinds)[number % len(kinds)]
        path = kinds[kind][int(rng.integers(len(kinds[kind])))]
        copy = folder / "copy"
        shutil.copytree(whole, copy)
        done = harm(copy / path, rng)
        fault, healed = silent(scores, shown, plan, kind)
        rows.append({"kind": kind, "file": str(path), "harm": done, "silent": fault, "healed": healed})
        shutil.rmtree(copy)
    return pd.DataFrame(rows)


def table(rows: pd.DataFrame) -> str:
    """Flips, silent ones, and folders that the same run made whole again, by kind of file, as Markdown."""
    lines = ["| kind of file | flips and cuts | silent | whole after the same run |", "|---|---|---|---|"]
    for kind, own in [*rows.groupby("kind", sort=False), ("all", rows)]:
        lines.append(f"| {kind} | {len(own)} | {(own['silent'] != '').sum()} | {own['healed'].sum()} |")
    return "\n".join(lines) + "\n"


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = flip(args.n, args.seed, Path(folder))
    print(table(rows))
    print(rows[rows["silent"] != ""].to_string())
    if args.out:
        args.out.write_text(f"# Flipped bits of a results folder (seed {args.seed})\n\n{table(rows)}")


if __name__ == "__main__":
    _main()
