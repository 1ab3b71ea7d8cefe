"""What a report shows of single perturbations and samples, from details tables and stored embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from txeval.compute.arrays import F32, Ints, Strings
from txeval.compute.groups import group_means
from txeval.compute.pca import principal_axes
from txeval.compute.random import stream
from txeval.data.samples import Samples
from txeval.errors import InputError
from txeval.postprocess import PostProcessed
from txeval.report.html.details import Cells, Details, Key

__all__ = [
    "Neighbours",
    "cluster_order",
    "distributions",
    "layout_of",
    "nearest",
    "perturbation_means",
    "perturbation_table",
    "sample_of_cells",
]

#: Task -> (details table, column, what one value is, axis title) of the distribution that its level shows.
DISTRIBUTIONS: Mapping[str, tuple[str, str, str, str]] = {
    "batch_mixing": ("batches", "ilisi", "batch", "iLISI of the samples of a batch"),
    "linear_probe": ("perturbations", "top1", "perturbation", "share of its samples that are recognised"),
    "consistency": ("perturbations", "avg_cosine", "perturbation", "mean cosine between its samples"),
    "knn": ("perturbations", "top1", "perturbation", "share of its samples that are recognised"),
    "relationships": (
        "relations",
        "rank",
        "known relationship",
        "rank of its cosine among all pairs (0 opposite, 1 similar)",
    ),
    "reconstruction": ("genes", "spearman", "gene", "Spearman correlation of prediction and truth"),
}

BINS = 30

#: (task, column of its perturbations table, name in the report, whether it is averaged over seeds).
PERTURBATION_COLUMNS: tuple[tuple[str, str, str, bool], ...] = (
    ("consistency", "avg_cosine", "cosine", False),
    ("consistency", "p_value", "p", False),
    ("consistency", "p_adjusted", "p_adjusted", False),
    ("consistency", "energy_distance", "energy", False),
    ("consistency", "magnitude_p_value", "energy_p", False),
    ("linear_probe", "top1", "linear", True),
    ("knn", "top1", "knn", True),
)


def distributions(details: Details, task: str, keys: Mapping[tuple[int, int], Key]) -> dict[str, Any] | None:
    """Histograms of one level over its units: (model, post-processing) numbers -> counts in equal bins.

    Returns
    -------
    dict with `low`, `high` of the bins, `unit`, `title`, and per pair [model, post, counts, n, q05, median, q95].
    """
    if task not in DISTRIBUTIONS:
        return None
    table, column, unit, title = DISTRIBUTIONS[task]
    cells = details.get(task, table)
    if cells is None or column not in cells.columns:
        return None
    values: dict[tuple[int, int], npt.NDArray[Any]] = {}
    for pair, key in keys.items():
        frame = cells.first(key, [column])
        if frame is not None:
            numbers = frame[column].to_numpy(dtype=float)
            numbers = numbers[np.isfinite(numbers)]
            if len(numbers):
                values[pair] = numbers
    if not values:
        return None
    low = min(float(numbers.min()) for numbers in values.values())
    high = max(float(numbers.max()) for numbers in values.values())
    if low == high:
        low, high = low - 0.5, high + 0.5
    rows = []
    for (model, post), numbers in values.items():
        counts, _ = np.histogram(numbers, bins=BINS, range=(low, high))
        q05, median, q95 = np.quantile(numbers, [0.05, 0.5, 0.95])
        rows.append([model, post, counts.tolist(), len(numbers), float(q05), float(median), float(q95)])
    return {"low": low, "high": high, "unit": unit, "title": title, "rows": rows}


def perturbation_table(details: Details, key: Key, index: pd.Index) -> dict[str, npt.NDArray[np.float64]]:
    """Numbers of every perturbation of `index` under one embedding and post-processing; NaN where there is none."""
    made: dict[str, npt.NDArray[np.float64]] = {}
    for task, column, name, averaged in PERTURBATION_COLUMNS:
        cells = details.get(task, "perturbations")
        if cells is None or column not in cells.columns:
            continue
        frames = list(_frames(cells, key, column, averaged))
        if not frames:
            continue
        stacked = np.full((len(frames), len(index)), np.nan)
        for i, frame in enumerate(frames):
            place = index.get_indexer(pd.Index(frame["perturbation"]))
            stacked[i, place[place >= 0]] = frame[column].to_numpy(dtype=float)[place >= 0]
        made[name] = stacked.mean(axis=0)
    return made


def _frames(cells: Cells, key: Key, column: str, averaged: bool) -> Sequence[pd.DataFrame]:
    columns = ["perturbation", column]
    if averaged:
        return list(cells.each(key, columns))
    found = cells.first(key, columns)
    return [] if found is None else [found]


def perturbation_means(embedding: PostProcessed, samples: Samples, labels: Strings) -> F32:
    """(p, d) mean of the samples of each label, controls left out; rows of NaN for labels without samples."""
    place = pd.Index(labels).get_indexer(pd.Index(samples.perturbations))
    codes = np.where(samples.is_control, -1, place[samples.perturbation])
    counts, sums = group_means(embedding, codes.astype(np.int64), len(labels))
    means: F32 = sums.astype(np.float32)
    means[counts == 0] = np.nan
    return means


@dataclass(frozen=True)
class Neighbours:
    """The most similar others of every row: (p, k) numbers, -1 where there is none, and their cosines."""

    index: Ints
    cosine: F32


def unit_rows(means: F32) -> F32:
    """Rows of length one; rows without a direction become zero."""
    length = np.sqrt((means.astype(np.float64) ** 2).sum(axis=1))
    good = np.isfinite(length) & (length > 0)
    out = np.zeros_like(means, dtype=np.float32)
    out[good] = means[good] / length[good, None]
    return out


def nearest(means: F32, k: int, *, block: int = 1024) -> Neighbours:
    """The k rows of highest cosine for every row, the row itself left out, by descending cosine."""
    unit = unit_rows(means)
    known = np.isfinite(means).all(axis=1) & (unit != 0).any(axis=1)
    n = len(unit)
    k = min(k, max(int(known.sum()) - 1, 0))
    index = np.full((n, k), -1, dtype=np.int64)
    cosine = np.full((n, k), np.nan, dtype=np.float32)
    for start in range(0, n if k else 0, block):
        rows = slice(start, min(start + block, n))
        similar = unit[rows] @ unit.T
        similar[:, ~known] = -np.inf
        similar[np.arange(rows.stop - start), np.arange(start, rows.stop)] = -np.inf
        top = np.argpartition(-similar, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(similar, top, axis=1)
        order = np.lexsort((top, -values), axis=1)
        index[rows] = np.take_along_axis(top, order, axis=1)
        cosine[rows] = np.take_along_axis(values, order, axis=1)
    index[~known] = -1
    cosine[~known] = np.nan
    return Neighbours(index, np.clip(cosine, -1, 1))


def cosines_between(means: F32) -> npt.NDArray[np.float64]:
    """(p, p) cosines; NaN in rows and columns without a direction."""
    unit = unit_rows(means).astype(np.float64)
    found = np.clip(unit @ unit.T, -1, 1)
    lost = ~(unit != 0).any(axis=1)
    found[lost], found[:, lost] = np.nan, np.nan
    return found


def cluster_order(cosines: npt.NDArray[np.float64]) -> Ints:
    """Order of the leaves of average-linkage clustering of 1 - cosine; rows without numbers come last."""
    known = np.flatnonzero(np.isfinite(np.diag(cosines)))
    lost = np.setdiff1d(np.arange(len(cosines)), known)
    if len(known) > 2:
        apart = np.clip(1 - cosines[np.ix_(known, known)], 0, 2)
        np.fill_diagonal(apart, 0)
        tree = linkage(squareform((apart + apart.T) / 2, checks=False), "average", optimal_ordering=True)
        known = known[leaves_list(tree)]
    return np.concatenate([known, lost]).astype(np.int64)


def sample_of_cells(samples: Samples, n: int, seed: int = 0) -> Ints:
    """Row numbers of at most n samples, seeded: a fifth controls where there are that many, the rest at random."""
    if samples.n <= n:
        return np.arange(samples.n)
    rng = stream(seed, "report", "cells")
    controls, others = np.flatnonzero(samples.is_control), np.flatnonzero(~samples.is_control)
    n_controls = min(len(controls), max(n // 5, n - len(others)))
    picked = [
        rng.choice(controls, size=n_controls, replace=False),
        rng.choice(others, size=min(len(others), n - n_controls), replace=False),
    ]
    return np.sort(np.concatenate(picked)).astype(np.int64)


@dataclass(frozen=True)
class Layout:
    """Two coordinates per sample, and what the axes are."""

    xy: F32
    axes: tuple[str, str] = ("", "")
    note: str = field(default="")


def layout_of(values: F32, how: str, seed: int = 0) -> Layout:
    """Two dimensions of rows (n, d): their first principal components, or UMAP of up to 50 of them.

    Raises
    ------
    InputError
        UMAP is asked for and not installed.
    """
    axes = principal_axes(values)
    total = float(axes.variance.sum()) or 1.0
    if how == "umap":
        try:
            import umap
        except ImportError:
            raise InputError(
                "umap-learn is not installed", remedy="pip install 'txeval[umap]', or --layout pca"
            ) from None
        reduced = axes.project(values, min(50, len(axes.variance)))
        fitted = umap.UMAP(n_neighbors=min(15, len(values) - 1), random_state=seed, n_jobs=1)
        return Layout(np.asarray(fitted.fit_transform(reduced), dtype=np.float32), ("UMAP 1", "UMAP 2"))
    xy = axes.project(values, 2)
    if xy.shape[1] < 2:
        xy = np.column_stack([xy, np.zeros(len(xy), np.float32)])
    shares = [100 * float(axes.variance[i]) / total if i < len(axes.variance) else 0.0 for i in range(2)]
    return Layout(xy, (f"PC 1 ({shares[0]:.1f} %)", f"PC 2 ({shares[1]:.1f} %)"))
