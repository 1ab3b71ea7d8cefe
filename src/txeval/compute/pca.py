"""Exact principal components of an embedding, from its covariance accumulated by blocks in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from txeval.compute.arrays import F32, F64, Rows, row_blocks
from txeval.compute.groups import distinct_rows, row_hashes
from txeval.compute.neighbours import finite_rows
from txeval.errors import InputError

__all__ = ["PrincipalAxes", "principal_axes"]


#: Variances within this share of each other are equal but for rounding.
EQUAL = 1e-9


@dataclass(frozen=True)
class PrincipalAxes:
    """Principal components of a matrix.

    Attributes
    ----------
    mean
        (d,) float64 column means.
    axes
        (r, d) float64 orthonormal rows, r = min(n, d), by descending variance; the entry of largest absolute value
        of each is positive.
    variance
        (r,) float64 variance (ddof 1) along each axis.
    """

    mean: F64
    axes: F64
    variance: F64

    def reaching(self, share: float) -> int:
        """Smallest number of components with at least this share (0 to 1) of the variance; 1 where there is none."""
        total = self.variance.sum()
        if total <= 0:
            return 1
        return min(len(self.variance), int(np.searchsorted(np.cumsum(self.variance) / total, share)) + 1)

    def project(self, X: Rows, k: int, *, max_elements: int | None = None) -> F32:
        """Coordinates of rows (n, d) along the first k axes: (n, k or more) float32, the same for equal rows.

        Axes of equal variance are arbitrary within their space: where the k-th has the variance of further ones, all of
        them are used. Where there are fewer than k, all are.
        """
        if X.shape[1] != len(self.mean):
            raise InputError(
                f"the matrix has {X.shape[1]} columns, the components were fitted on {len(self.mean)}",
                remedy="embed both in the same space",
            )
        k = min(k, len(self.variance))
        if self.variance[k - 1] > EQUAL * self.variance[0]:
            k += int((self.variance[k:] >= self.variance[k - 1] * (1 - EQUAL)).sum())
        rotation = np.ascontiguousarray(self.axes[:k].T)
        out = np.empty((X.shape[0], rotation.shape[1]), np.float32)
        hashes = np.empty(X.shape[0], np.uint64)
        for rows in row_blocks(X.shape[0], X.shape[1], max_elements):
            block = finite_rows(X, rows, name="X")
            hashes[rows] = row_hashes(block)
            out[rows] = (block - self.mean) @ rotation
        repeated = distinct_rows(hashes)
        return out if repeated is None else out[repeated[0][repeated[1]]]


def principal_axes(X: Rows, *, name: str = "X", max_elements: int | None = None) -> PrincipalAxes:
    """Principal components by eigendecomposition of the covariance.

    Two passes over blocks of rows: means, then products of the centred rows, both in float64. A matrix with fewer
    rows than columns has a singular value decomposition instead, which is then the smaller problem.

    Parameters
    ----------
    X
        (n, d) finite values; used as float32.
    name
        What messages call it.

    Raises
    ------
    InputError
        For a matrix without rows, or that holds NaN or infinity.
    """
    n, d = X.shape
    if n == 0:
        raise InputError(f"{name} has no rows: it has no components", remedy="give samples")
    total = np.zeros(d)
    for rows in row_blocks(n, d, max_elements):
        total += finite_rows(X, rows, name=name).sum(axis=0, dtype=np.float64)
    mean = total / n
    if n < d:
        _, lengths, axes = np.linalg.svd(finite_rows(X, name=name) - mean, full_matrices=False)
        values = lengths**2
    else:
        scatter = np.zeros((d, d))
        for rows in row_blocks(n, d, max_elements):
            block = finite_rows(X, rows, name=name) - mean
            scatter += block.T @ block
        values, vectors = np.linalg.eigh(scatter)
        axes = vectors.T
    order = np.argsort(-values, kind="stable")
    axes = axes[order]
    peaks = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    variance = np.maximum(values[order], 0) / max(n - 1, 1)
    return PrincipalAxes(mean, np.ascontiguousarray(axes * np.where(peaks < 0, -1.0, 1.0)), variance)
