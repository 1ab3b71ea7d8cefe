"""Describe, validate and briefly run every screen of a folder, from nothing but its file; write what came of it.

python benchmarks/every_screen.py FOLDER [OUT.md] [--no-run]

Each screen goes the way of a newcomer: `txeval data describe FILE --out run.yaml`, `txeval validate run.yaml`, then a
run with two post-processings and one seed, of at most 3,000 samples.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from txeval.data.describe import Description, describe
from txeval.data.proposal import render
from txeval.data.subset import subset_screen
from txeval.run import NullProgress, execute, load_config, make_plan

SAMPLES = 3000
LEVELS = range(1, 7)


def roles(about: Description) -> str:
    """The proposed roles of a screen, in one cell of a table."""
    parts = []
    for role in ("perturbation", "control", "control_column", "exclude", "separator", "batch", "cell_line", "layer"):
        value = about.value(role)
        if value is not None:
            text = ", ".join(value) if isinstance(value, list) else str(value)
            parts.append(f"{role.replace('_', ' ')} `{text}`")
    return ", ".join(parts)


def row(about: Description) -> list[str]:
    """A line of the table: what describe proposes, and what it says it cannot know or wants looked at."""
    n, g = about.shape
    lacks = [f"no {role}" for role, found in about.proposals.items() if found.value is None and role != "cell_line"]
    said = [*lacks, *(finding.text.split(":")[0].split(" (such")[0] for finding in about.findings)]
    levels = "".join(str(i) for i, why in zip(LEVELS, about.levels.values(), strict=True) if not why)
    cells = [f"`{about.path.name}`", f"{n:,} x {g:,}", about.scale, roles(about), "; ".join(said) or "-", levels or "-"]
    return [cell.replace("|", "\\|") for cell in cells]


HEAD = ["file", "samples x genes", "scale", "proposed", "said", "levels"]


def table(rows: list[list[str]], head: list[str]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def run(about: Description, relations: Path, folder: Path) -> tuple[list[str], pd.DataFrame]:
    """Validate and run one screen; what came of it, and the scores."""
    path = folder / "run.yaml"
    path.write_text(render(about), encoding="utf-8")
    change = {"relations": relations, "post_processing": ["raw", "tvn"], "seeds": 1}
    make_plan(load_config(path, change))  # all of the screen: what validate shows
    if about.shape[0] > SAMPLES:
        config = load_config(path, change)
        small = folder / "small.h5ad"
        subset_screen(config.screen, small, config.roles, n=SAMPLES, seed=0, labels=config.labels)
        change["screen"] = small
    start = time.perf_counter()
    outcome = execute(make_plan(load_config(path, {**change, "out": folder / "out"})), progress=NullProgress())
    seconds = time.perf_counter() - start
    scores = outcome.scores
    with_value = scores[scores["value"].notna()]
    reached = "".join(str(level) for level in sorted(set(with_value["level"])))
    reasons = sorted({str(reason) for reason in scores["reason"] if reason})
    n = len(scores)
    return [
        f"`{about.path.name}`",
        f"{n - len(with_value):,} of {n:,}",
        reached,
        f"{seconds:.0f}",
        "; ".join(reasons).replace("|", "\\|") or "-",
    ], scores


def main() -> int:
    """Write the tables; 1 where a screen that should have gone through did not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--no-run", action="store_true")
    parser.add_argument("--only", nargs="+", default=[])
    args = parser.parse_args()
    described, runs, wrong = [], [], []
    for path in sorted(args.folder.glob("*.h5ad")):
        if args.only and path.stem not in args.only:
            continue
        about = describe(path)
        described.append(row(about))
        if args.no_run:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                cells, scores = run(about, args.folder / "relationships", Path(folder))
            except Exception as why:  # whatever goes wrong with one screen, the others are of interest
                wrong.append(f"{path.name}: {type(why).__name__}: {why}")
                continue
        runs.append(cells)
        print(path.name, cells[1:], file=sys.stderr, flush=True)
        expected = {i for i, lacks in zip(LEVELS, about.levels.values(), strict=True) if not lacks}
        if "known relationships have both genes" in cells[-1]:
            expected -= {5}  # what the databases hold, no file tells
        missing = expected - set(scores.loc[scores["value"].notna(), "level"])
        if missing:
            wrong.append(f"{path.name}: describe says that levels {sorted(missing)} have what they need; no score")
    text = table(described, HEAD)
    if runs:
        text += "\n\n" + table(runs, ["file", "scores without a value", "levels with a score", "seconds", "reasons"])
    text += "".join(f"\n\nWRONG: {line}" for line in wrong) + "\n"
    sys.stdout.write(text)
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
