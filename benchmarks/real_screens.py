"""Run the paper protocol on two real screens (PCA and random) and write time and peak memory as Markdown.

python benchmarks/real_screens.py DATA_FOLDER [OUT.md]
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from txeval.run import NullProgress, build_config, execute, make_plan

SCREENS = {
    "Papalexi 2021 (20,729 x 299, batch bio_rep)": (
        "papalexi2021_thp1_ecciteseq_299genes.h5ad",
        {"perturbation": "perturbation", "control": ["non-targeting"], "batch": "bio_rep"},
    ),
    "Schraivogel 2020 TAP-seq (21,977 x 72, batch lane)": (
        "schraivogel2020_k562_tapseq_72genes.h5ad",
        {"perturbation": "perturbation", "control": ["non-targeting"], "batch": "lane"},
    ),
}
WORKERS = 2
SEEDS = 2


def main(data: Path, out: Path) -> None:
    """Run both screens with four post-processings."""
    lines = [
        f"`python benchmarks/real_screens.py`: protocol paper, PCA and random, {SEEDS} seeds, {WORKERS} workers",
        "",
        "| screen | cells | wall s | CPU s | peak MiB of a process | scores | without a score |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    tables = []
    for name, (file, roles) in SCREENS.items():
        with tempfile.TemporaryDirectory() as folder:
            config = build_config(
                {
                    "screen": data / file,
                    "roles": roles,
                    "embeddings": ["pca"],
                    "min_counts": 0,
                    "seeds": SEEDS,
                    "relations": data / "relationships",
                    "workers": WORKERS,
                    "out": Path(folder) / "out",
                }
            )
            start, before = time.perf_counter(), _cpu()
            outcome = execute(make_plan(config), progress=NullProgress())
            wall, cpu = time.perf_counter() - start, _cpu() - before
            if outcome.interrupted:
                sys.exit(outcome.exit_status)
            scores = outcome.scores
            peak = scores["peak_memory_mb"].max()
            missing = int(scores["value"].isna().sum())
            lines.append(
                f"| {name} | {outcome.n_computed} | {wall:.0f} | {cpu:.0f} | {peak:.0f} | {len(scores)} | {missing} |"
            )
            good = scores[scores["value"].notna() & (scores["post_processing"] == "raw")]
            best = good.pivot_table(index=["level", "task", "metric"], columns="model", values="value")
            tables += ["", f"{name}, raw embeddings, mean over seeds", "", _markdown(best.round(3))]
            tables += ["", *(f"- no score: {reason}" for reason in sorted(set(scores["reason"]) - {""}))]
    out.write_text("\n".join([*lines, *tables]) + "\n")
    sys.stdout.write(out.read_text())


def _markdown(table: pd.DataFrame) -> str:
    rows = [
        [*index, *(f"{value:.3f}" for value in values)]
        for index, values in zip(table.index, table.to_numpy(), strict=True)
    ]
    head = [*table.index.names, *table.columns]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows])


def _cpu() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "benchmarks/results/real_screens.md"))
