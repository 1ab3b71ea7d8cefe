"""Moments by blocks: means, deviations and Gram matrices of matrices that never are in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from txeval.compute.arrays import F64, Ints, Rows, row_blocks, take_rows
from txeval.compute.devices import exact_products
from txeval.compute.jit import jit
from txeval.errors import InputError

__all__ = ["GroupMoments", "gram", "group_moments", "int8_gemm_is_exact"]

#: Largest count that an int8 holds.
_INT8_MAX = 127

#: float32 sums of products of two values up to 127 are exact integers up to this many terms (2**24 / 127**2).
_EXACT_F32_ROWS = 1024

#: Integers up to here give products whose float64 sums stay exact for 8 million rows.
_EXACT_F64_MAX = 2**15

#: Up to this many columns, values that are no counts are multiplied in float64, which costs little there.
_FLOAT64_COLUMNS = 2048

#: Columns of one tile of the upper triangle.
_TILE = 1024

Kernel = Literal["int8", "float32"]


@dataclass(frozen=True)
class GroupMoments:
    """Moments of every feature in every group of rows.

    Attributes
    ----------
    count
        (k,) rows per group.
    mean
        (k, d); 0 for an empty group.
    squares
        (k, d) sum of squared deviations from the group's mean.
    """

    count: Ints
    mean: F64
    squares: F64

    def pooled(self) -> tuple[int, F64, F64]:
        """(n, mean (d,), squares (d,)) of all groups together, merged after Chan et al. (1983)."""
        n = int(self.count.sum())
        weight = self.count[:, None].astype(np.float64)
        mean = (weight * self.mean).sum(axis=0) / max(n, 1)
        squares = self.squares.sum(axis=0) + (weight * (self.mean - mean) ** 2).sum(axis=0)
        return n, mean, squares


@jit
def _welford(block: Any, codes: Any, count: Any, mean: Any, squares: Any) -> None:
    d = block.shape[1]
    for i in range(block.shape[0]):
        group = codes[i]
        count[group] += 1
        share = 1.0 / count[group]
        for j in range(d):
            value = np.float64(block[i, j])
            delta = value - mean[group, j]
            mean[group, j] += delta * share
            squares[group, j] += delta * (value - mean[group, j])


def group_moments(X: Rows, rows: Ints, codes: Ints, n_groups: int, *, max_elements: int | None = None) -> GroupMoments:
    """Mean and squared deviations per group of rows, in one pass (Welford 1962) with float64 accumulation.

    Parameters
    ----------
    X
        (n, d) rows on demand.
    rows
        (m,) row numbers to use.
    codes
        (m,) group 0 .. n_groups - 1 of each of them.
    """
    d = int(X.shape[1])
    count = np.zeros(n_groups, dtype=np.int64)
    mean = np.zeros((n_groups, d))
    squares = np.zeros((n_groups, d))
    for part in row_blocks(len(rows), d, max_elements):
        _welford(take_rows(X, rows[part]), np.ascontiguousarray(codes[part]), count, mean, squares)
    return GroupMoments(count, mean, squares)


@cache
def int8_gemm_is_exact() -> bool:
    """Whether this machine multiplies int8 matrices exactly.

    Processors without the VNNI instructions may saturate 16-bit sums of pairs, so the extremes are tried once.
    """
    import torch

    rng = np.random.default_rng(0)
    a = rng.choice(np.array([-127, -1, 0, 1, 126, 127], dtype=np.int8), size=(67, 259))
    a[:3] = _INT8_MAX
    try:
        left = torch.from_numpy(a)
        product = torch._int_mm(left[1:40], left[1:].T).numpy()
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    wide = a[1:].astype(np.int64)
    return bool(np.array_equal(product, wide[:39] @ wide.T))


def gram(
    blocks: Iterable[Any],
    g: int,
    *,
    kernel: Kernel | None = None,
    panel_rows: int | None = None,
    device: str = "cpu",
) -> tuple[int, F64, F64]:
    """Mean and centred scatter of a matrix that arrives in blocks of rows.

    `scatter = sum_i (x_i - mean)(x_i - mean)^T`. Blocks of integers within +-32,767 (counts) are summed exactly: values
    up to 127 by int8 products, the rest of larger ones by sparse products, or all by float64 where large ones
    are frequent. Other blocks are shifted by the mean of the first one, multiplied in panels and summed in float64:
    panels are float64 up to 2,048 columns, and float32 above, which leaves about 1e-6 relative to the deviations of
    the two features.

    Parameters
    ----------
    blocks
        Blocks (m_i, g) of rows, CSR or dense.
    g
        Number of columns.
    kernel
        How small counts are multiplied; by default int8 where this machine does that exactly, else float32 in panels
        short enough to be exact.
    panel_rows
        Rows gathered before a product is taken.
    device
        Of torch: where panels are multiplied and summed. Small counts are then float32 panels, which are exact too.

    Returns
    -------
    (n, mean (g,) float64, scatter (g, g) float64, symmetric)

    Raises
    ------
    InputError
        Where a value is NaN or infinite, or there is no row.
    """
    if device != "cpu":
        kernel = "float32"
    integers = _Integers(g, kernel or ("int8" if int8_gemm_is_exact() else "float32"), panel_rows, device)
    floats = _Floats(g, panel_rows, device)
    for block in blocks:
        if block.shape[0] == 0:
            continue
        if sparse.issparse(block) and not block.has_canonical_format:
            block = block.copy()
            block.sum_duplicates()
        values = block.data if sparse.issparse(block) else block
        if values.dtype.kind not in "iub" and not _finite(values):
            raise InputError("the expression matrix holds NaN or infinite values", remedy="remove or fill them first")
        largest = _largest_integer(values)
        if largest is not None and largest <= _EXACT_F64_MAX:
            integers.add(block, largest)
        else:
            floats.add(block)
    n, mean, scatter = _merged(integers.finish(), floats.finish())
    if n == 0:
        raise InputError("there is no sample to take moments of")
    return n, mean, scatter


Moments = tuple[int, F64, F64]


def _finite(values: npt.NDArray[Any]) -> bool:
    # The sum is finite unless a value is not (or it overflows), and needs no mask in memory.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum(dtype=np.float64)))


def _largest_integer(values: npt.NDArray[Any]) -> float | None:
    """Largest absolute value where all are whole numbers, else None."""
    if values.size == 0:
        return 0.0
    if values.dtype.kind not in "iub" and not bool((np.rint(values) == values).all()):
        return None
    return float(max(abs(float(values.max())), abs(float(values.min()))))


def _dense(block: Any, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    if sparse.issparse(block):
        return np.asarray(block.astype(dtype).toarray())
    return np.asarray(block).astype(dtype)


class _Elsewhere:
    """Sum of X^T X of panels (m, g), kept on a device in float64."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.total: Any = None

    def add(self, panel: npt.NDArray[Any]) -> None:
        """Multiply a panel and add it."""
        import torch

        with exact_products():
            x = torch.from_numpy(np.ascontiguousarray(panel)).to(self.device)
            product = x.t() @ x
            self.total = product.double() if self.total is None else self.total.add_(product)

    def finish(self, gram: F64) -> None:
        """Add the sum to a matrix in memory, and free it."""
        if self.total is not None:
            gram += self.total.cpu().numpy()
            self.total = None


class _Integers:
    """Exact X^T X of integers: upper triangle of small values by panels, corrections for large ones."""

    def __init__(self, g: int, kernel: Kernel, panel_rows: int | None, device: str) -> None:
        self.g = g
        self.kernel = kernel
        self.elsewhere = None if device == "cpu" else _Elsewhere(device)
        wanted = panel_rows or max(512, 64_000_000 // max(g, 1))
        # torch's int8 product is wrong for panels of a single row (torch 2.13), so that these are kept longer.
        low, high = (1, _EXACT_F32_ROWS) if kernel == "float32" else (64, 8192)
        self.panel_rows = min(max(wanted, low), high)
        self.n = 0
        self.filled = 0
        self.panel: npt.NDArray[Any] | None = None
        self.gram: F64 | None = None
        self.total = np.zeros(g)

    def add(self, block: Any, largest: float) -> None:
        if self.gram is None:
            self.gram = np.zeros((self.g, self.g))
        self.n += block.shape[0]
        self.total += np.asarray(block.sum(axis=0, dtype=np.float64)).ravel()
        if largest > _INT8_MAX:
            if not self._sparse_rest_pays(block):
                self._add_wide(block)
                return
            block = self._take_rest(block)
        self._add_small(block)

    def _sparse_rest_pays(self, block: Any) -> bool:
        # A multiplication of the sparse product costs about 100 times one of the dense float64 product, which
        # does half of m g^2; the sparse one does (entries of the rest) x (entries per row).
        m = block.shape[0]
        values = block.data if sparse.issparse(block) else block
        n_large = int(np.count_nonzero(np.abs(values) > _INT8_MAX))
        n_entries = block.nnz if sparse.issparse(block) else int(np.count_nonzero(block))
        return bool(n_large * n_entries * 200 <= (m * self.g) ** 2)

    def _take_rest(self, block: Any) -> Any:
        """Add the products that involve the rest R = X - clip(X), return clip(X).

        X^T X = L^T L + R^T X + X^T R - R^T R for X = L + R.
        """
        assert self.gram is not None  # add() made it
        if sparse.issparse(block):
            small = sparse.csr_matrix(block, dtype=np.float64, copy=True)
            rest = small.copy()
            small.data = np.clip(small.data, -_INT8_MAX, _INT8_MAX)
            rest.data = rest.data - small.data
            rest.eliminate_zeros()
        else:
            small = np.clip(block, -_INT8_MAX, _INT8_MAX)
            rest = sparse.csr_matrix(np.asarray(block, dtype=np.float64) - small)
        rows = np.flatnonzero(np.diff(rest.indptr))
        rest = rest[rows]
        columns = np.unique(rest.indices)
        rest_t = sparse.csr_matrix(rest[:, columns].T)
        whole = sparse.csr_matrix(block[rows], dtype=np.float64)
        cross = (rest_t @ whole).toarray()
        # The lower triangle is overwritten at the end, so that adding the symmetric correction everywhere is right.
        self.gram[columns, :] += cross
        self.gram[:, columns] += cross.T
        self.gram[np.ix_(columns, columns)] -= (rest_t @ rest_t.T).toarray()
        return small

    def _add_wide(self, block: Any) -> None:
        assert self.gram is not None  # add() made it
        for start in range(0, block.shape[0], self.panel_rows):
            wide = _dense(block[start : start + self.panel_rows], np.float64)
            self.gram += wide.T @ wide

    def _add_small(self, block: Any) -> None:
        m = block.shape[0]
        done = 0
        while done < m:
            if self.panel is None:
                # int8 panels are kept transposed, as the product wants them.
                shape = (self.g, self.panel_rows) if self.kernel == "int8" else (self.panel_rows, self.g)
                self.panel = np.zeros(shape, dtype=np.dtype(self.kernel))
            take = min(m - done, self.panel_rows - self.filled)
            values = _dense(block[done : done + take], self.panel.dtype)
            place = slice(self.filled, self.filled + take)
            if self.kernel == "int8":
                self.panel[:, place] = values.T
            else:
                self.panel[place] = values
            self.filled += take
            done += take
            if self.filled == self.panel_rows:
                self._flush()

    def _flush(self) -> None:
        if self.filled == 0 or self.panel is None or self.gram is None:
            return
        if self.elsewhere is not None:
            self.elsewhere.add(self.panel[: self.filled])
        elif self.kernel == "float32":
            panel = self.panel[: self.filled]
            self.gram += panel.T @ panel
        else:
            import torch

            if self.filled < self.panel_rows:
                self.panel[:, self.filled :] = 0
            panel_t = torch.from_numpy(self.panel)
            for start in range(0, self.g, _TILE):
                stop = min(start + _TILE, self.g)
                self.gram[start:stop, start:] += torch._int_mm(panel_t[start:stop], panel_t[start:].T).numpy()
        self.filled = 0

    def finish(self) -> Moments | None:
        self._flush()
        if self.gram is None:
            return None
        if self.elsewhere is not None:
            self.elsewhere.finish(self.gram)
        mean = self.total / self.n
        _mirror(self.gram)
        for start in range(0, self.g, _TILE):
            rows = slice(start, min(start + _TILE, self.g))
            self.gram[rows] -= np.outer(self.total[rows], mean)
        # The product of a column with the rounded mean of another is not exactly that of the other with its own.
        _mirror(self.gram)
        return self.n, mean, self.gram


class _Floats:
    """X^T X of any values around the mean of the first block, in panels summed in float64."""

    def __init__(self, g: int, panel_rows: int | None, device: str) -> None:
        self.g = g
        self.panel_rows = panel_rows or 1024
        self.elsewhere = None if device == "cpu" else _Elsewhere(device)
        self.n = 0
        self.shift: F64 | None = None
        self.total = np.zeros(g)
        self.gram: F64 | None = None
        self.dtype: npt.DTypeLike = np.float64 if g <= _FLOAT64_COLUMNS else np.float32
        self.pending: list[npt.NDArray[Any]] = []

    def add(self, block: Any) -> None:
        if self.gram is None:
            self.gram = np.zeros((self.g, self.g))
            self.shift = np.asarray(block.mean(axis=0, dtype=np.float64)).ravel()
        for start in range(0, block.shape[0], self.panel_rows):
            panel = (_dense(block[start : start + self.panel_rows], np.float64) - self.shift).astype(self.dtype)
            self.n += panel.shape[0]
            self.total += panel.sum(axis=0, dtype=np.float64)
            # Small blocks are gathered, since adding a product costs as much as multiplying hundreds of rows.
            self.pending.append(panel)
            if sum(map(len, self.pending)) >= self.panel_rows:
                self._flush()

    def _flush(self) -> None:
        if self.gram is None or not self.pending:
            return
        panel = self.pending[0] if len(self.pending) == 1 else np.concatenate(self.pending)
        self.pending.clear()
        if self.elsewhere is not None:
            self.elsewhere.add(panel)
        else:
            self.gram += panel.T @ panel

    def finish(self) -> Moments | None:
        self._flush()
        if self.gram is None or self.shift is None:
            return None
        if self.elsewhere is not None:
            self.elsewhere.finish(self.gram)
        offset = self.total / self.n
        for start in range(0, self.g, _TILE):
            rows = slice(start, min(start + _TILE, self.g))
            self.gram[rows] -= np.outer(self.total[rows], offset)
        _mirror(self.gram)
        return self.n, self.shift + offset, self.gram


def _mirror(matrix: F64) -> None:
    """Copy the upper triangle to the lower one, tile by tile."""
    g = len(matrix)
    for start in range(0, g, _TILE):
        stop = min(start + _TILE, g)
        corner = matrix[start:stop, start:stop]
        lower = np.tril_indices(stop - start, -1)
        corner[lower] = corner.T[lower]
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T


def _merged(one: Moments | None, other: Moments | None) -> Moments:
    """Moments of two sets of rows together (Chan et al. 1983)."""
    if one is None or other is None:
        present = one or other
        return present if present is not None else (0, np.zeros(0), np.zeros((0, 0)))
    n = one[0] + other[0]
    delta = other[1] - one[1]
    mean = one[1] + delta * (other[0] / n)
    scatter = one[2]
    scatter += other[2]
    scatter += np.outer(delta, delta) * (one[0] * other[0] / n)
    return n, mean, scatter
