"""Score rows: the one table that every view is made from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["COLUMNS", "DESCRIPTIONS", "empty_scores", "score_frame"]

#: Column -> (pandas type, what it holds), in the order of `scores.parquet` and `scores.csv`.
_SCHEMA: dict[str, tuple[str, str]] = {
    "dataset": ("string", "name of the screen"),
    "split": ("string", "which split, as in splits.parquet: scheme, seed and digest"),
    "model": ("string", "label of the embedding"),
    "source": ("string", "where the embedding is from: an embedder, or a file or key of a precomputed one"),
    "post_processing": ("string", "post-processing of the embedding"),
    "task": ("string", "task, that is a level of the benchmark"),
    "level": ("Int64", "number of the level"),
    "metric": ("string", "metric of the task"),
    "subset": ("string", "part of the metric, such as the name of a database; empty for the whole"),
    "seed": ("Int64", "seed; missing where the score is deterministic and was computed once"),
    "protocol": ("string", "name of the protocol"),
    "status": ("string", "ok, or failed: then `reason` says why and `value` is missing"),
    "value": ("float64", "the score"),
    "low": ("float64", "lower bound of the 95 % interval"),
    "high": ("float64", "upper bound of the 95 % interval"),
    "interval_unit": ("string", "what varies in the interval: batch x perturbation, gene, ..."),
    "interval_method": ("string", "how the interval was made"),
    "interval_note": ("string", "why there is no interval, or what it takes as given"),
    "chance": ("float64", "what a representation without information would get"),
    "chance_low": ("float64", "lower bound of the 95 % range of that, where known"),
    "chance_high": ("float64", "upper bound of the 95 % range of that, where known"),
    "n_samples": ("Int64", "samples that went into the score"),
    "n_groups": ("Int64", "groups that went into the score"),
    "group": ("string", "what a group is: batch, perturbation, gene, pair, ..."),
    "left_out": ("string", "JSON: reason -> how many were left out for it"),
    "notes": ("string", 'remarks on how the score was made, joined by " | "'),
    "reason": ("string", "why there is no score"),
    "derived": ("bool", "computed from other rows rather than from the embedding"),
    "screen_fingerprint": ("string", "digest of the screen's content"),
    "embedding_fingerprint": ("string", "digest of what determines the embedding"),
    "protocol_fingerprint": (
        "string",
        "digest of the protocol's parameters that determine scores (number of seeds and choice of "
        "post-processings left out)",
    ),
    "cell_key": ("string", "digest of all that determines the cell that the row is from"),
    "txeval_version": ("string", "version that computed it"),
    "device": ("string", "where it was computed"),
    "seconds": ("float64", "wall time of the whole cell (all metrics of one task); missing for derived rows"),
    "peak_memory_mb": (
        "float64",
        "peak memory (MiB) of the process while it computed the cell, without pages of mapped files",
    ),
}

#: Columns of a score table, in order.
COLUMNS: tuple[str, ...] = tuple(_SCHEMA)

#: Column -> what it holds.
DESCRIPTIONS: dict[str, str] = {name: text for name, (_, text) in _SCHEMA.items()}


def score_frame(rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """Build a score table with exactly `COLUMNS`, typed; absent text is "", absent numbers are missing."""
    frame = pd.DataFrame(rows if isinstance(rows, pd.DataFrame) else list(rows))
    made: dict[str, pd.Series] = {}
    for name, (kind, _) in _SCHEMA.items():
        column = frame[name] if name in frame else pd.Series([None] * len(frame), index=frame.index, dtype=object)
        if kind == "string":
            made[name] = column.astype("string").fillna("")
        elif kind == "bool":
            made[name] = column.astype("boolean").fillna(False).astype(bool)
        elif kind == "Int64":
            made[name] = pd.to_numeric(column).astype("Int64")
        else:
            made[name] = pd.to_numeric(column).astype("Float64").astype("float64")
    return pd.DataFrame(made, columns=list(COLUMNS)).reset_index(drop=True)


def empty_scores() -> pd.DataFrame:
    """A score table without rows."""
    return score_frame([])


def plain(value: Any) -> Any:
    """Plain data for JSON: numpy numbers and arrays converted, tuples as lists, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    if value is None or value is pd.NA:
        return None
    return value if isinstance(value, str) else str(value)


def canonical_json(value: Any) -> str:
    """JSON of plain data that is the same for equal data."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
