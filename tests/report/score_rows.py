"""Builds score rows for the tests of tables."""

from __future__ import annotations

from typing import Any

import pandas as pd

from txeval.run.rows import score_frame


def row(value: float | None, **changes: Any) -> dict[str, Any]:
    """One score row; a value of None makes a failed one."""
    made: dict[str, Any] = {
        "dataset": "screen",
        "split": "paper/42",
        "model": "pca",
        "source": "pca",
        "post_processing": "raw",
        "task": "knn",
        "level": 4,
        "metric": "top1",
        "subset": "",
        "seed": None,
        "protocol": "paper",
        "status": "ok" if value is not None else "failed",
        "value": value,
        "reason": "" if value is not None else "too few samples",
        "screen_fingerprint": "s1",
        "protocol_fingerprint": "p1",
        "embedding_fingerprint": "e1",
    }
    made.update(changes)
    if changes.get("model") in ("random", "random_uniform"):
        made["source"] = changes["model"]
    return made


def scores(*rows: dict[str, Any]) -> pd.DataFrame:
    """A score table as `read_scores` gives it."""
    return score_frame(rows)


def screen_scores() -> pd.DataFrame:
    """Two models, a baseline, four post-processings, three levels, three seeds, and every kind of hole."""
    rows = []
    posts = ("raw", "centering", "center_scaling", "tvn")
    for m, model in enumerate(("random", "pca", "scVI")):
        for p, post in enumerate(posts):
            cell = {"model": model, "post_processing": post}
            for metric, base in (("top1", 0.1), ("top5", 0.3)):
                rows.append(row(base + 0.05 * m + 0.01 * p, metric=metric, chance=0.05, **cell))
            for seed in range(3):
                probe = {"task": "linear_probe", "level": 2, "seed": seed}
                failed = model == "scVI" and post == "tvn" and seed == 2
                reason = {"reason": "diverged"} if failed else {}
                value = None if failed else 0.2 + 0.1 * m + 0.01 * seed
                rows += [row(value, metric=metric, **probe, **cell, **reason) for metric in ("top1", "top5")]
            recall = {"task": "relationships", "level": 5, "metric": "recall"}
            if model == "scVI":
                rows.append(row(None, **recall, **cell) | {"reason": "3 perturbed genes; 10 needed"})
            else:
                value = 0.1 + 0.2 * m + 0.01 * p
                rows += [row(value, subset=name, chance=0.1, **recall, **cell) for name in ("CORUM", "StringDB")]
    return scores(*rows)
