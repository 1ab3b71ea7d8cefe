"""Rank correlations of columns, exact with ties, by blocks of columns; a store that gives columns of row blocks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from txeval.compute.arrays import F64, Bools
from txeval.compute.jit import jit
from txeval.compute.memory import allocate, column_elements, held_bytes, release, scratch_folder
from txeval.compute.spread import is_constant
from txeval.errors import InputError, NotComputable

__all__ = [
    "GENE_TILE",
    "ColumnStore",
    "Ranks",
    "Spearman",
    "columns_of",
    "correlation_influence",
    "rank_columns",
    "spearman_by_gene",
    "spearman_of_ranks",
    "twice_ranks",
]

#: Genes whose predictions are made by one product: fixed, so that none depends on how many are ranked together.
GENE_TILE = 64

#: Rows of a tile of a file of columns.
_TILE_ROWS = 1024

Array = npt.NDArray[Any]
U32 = npt.NDArray[np.uint32]
Columns = Callable[[slice], Array]


@jit
def _pack(bits: Any, low: Any, out: Any) -> None:
    """Keys that sort like the float32 values, with 32 bits of anything below them."""
    for i in range(len(bits)):
        b = np.uint32(bits[i])
        if b == np.uint32(0x80000000):
            b = np.uint32(0)
        high = np.uint32(~b) if b >= np.uint32(0x80000000) else np.uint32(b | np.uint32(0x80000000))
        out[i] = (np.uint64(high) << np.uint64(32)) | np.uint64(low[i])


@jit
def _pack_nonzero(bits: Any, out: Any) -> tuple[int, int]:
    """Keys of the values that are not zero with their positions: (how many, how many negative)."""
    m = 0
    negative = 0
    for i in range(len(bits)):
        b = np.uint32(bits[i])
        if b == np.uint32(0x80000000) or b == np.uint32(0):
            continue
        if b >= np.uint32(0x80000000):
            high = np.uint32(~b)
            negative += 1
        else:
            high = np.uint32(b | np.uint32(0x80000000))
        out[m] = (np.uint64(high) << np.uint64(32)) | np.uint64(i)
        m += 1
    return m, negative


@jit
def _radix_sort(keys: Any, spare: Any) -> bool:
    """Sort keys by their upper 32 bits in three passes of 11 bits; True where the result lies in `spare`."""
    n = len(keys)
    counts = np.zeros((3, 2048), dtype=np.int64)
    mask = np.uint64(2047)
    for i in range(n):
        key = keys[i]
        counts[0, (key >> np.uint64(32)) & mask] += 1
        counts[1, (key >> np.uint64(43)) & mask] += 1
        counts[2, (key >> np.uint64(54)) & mask] += 1
    source, target = keys, spare
    swapped = False
    for digit in range(3):
        shift = np.uint64(32 + 11 * digit)
        if counts[digit, (source[0] >> shift) & mask] == n:
            continue
        at = 0
        for b in range(2048):
            count = counts[digit, b]
            counts[digit, b] = at
            at += count
        for i in range(n):
            key = source[i]
            bucket = (key >> shift) & mask
            target[counts[digit, bucket]] = key
            counts[digit, bucket] += 1
        source, target = target, source
        swapped = not swapped
    return swapped


def _sorted_keys(keys: Array, spare: Array) -> Array:
    """Keys in the order of their upper 32 bits; both arrays are used up."""
    if len(keys) < 2000:
        # The tables of the radix sort cost more than such a sort.
        keys.sort()
        return keys
    return spare if _radix_sort(keys, spare) else keys


@jit
def _ranks_of_keys(keys: Any, negative: int, zeros: int, out: Any) -> None:
    """Twice the average ranks from sorted keys of the values that are not zero; zeros rank between the signs."""
    for i in range(len(out)):
        out[i] = 2 * negative + zeros + 1
    m = len(keys)
    a = 0
    while a < m:
        b = a + 1
        value = keys[a] >> np.uint64(32)
        while b < m and (keys[b] >> np.uint64(32)) == value:
            b += 1
        rank = a + b + 1 + (2 * zeros if a >= negative else 0)
        for i in range(a, b):
            out[keys[i] & np.uint64(0xFFFFFFFF)] = rank
        a = b


@jit
def _ranks_of_order(values: Any, order: Any, out: Any) -> None:
    a = 0
    n = len(values)
    while a < n:
        b = a + 1
        while b < n and values[order[b]] == values[order[a]]:
            b += 1
        for i in range(a, b):
            out[order[i]] = a + b + 1
        a = b


@jit
def _correlate_keys(keys: Any) -> tuple[float, float]:
    """Covariance and variance sums from sorted keys (prediction | twice the rank of the truth)."""
    n = len(keys)
    covariance = 0.0
    square = 0.0
    a = 0
    while a < n:
        value = keys[a] >> np.uint64(32)
        b = a
        run = 0.0
        while b < n and (keys[b] >> np.uint64(32)) == value:
            run += np.float64(keys[b] & np.uint64(0xFFFFFFFF)) - (n + 1)
            b += 1
        centred = np.float64(a + b + 1 - (n + 1))
        covariance += centred * run
        square += centred * centred * (b - a)
        a = b
    return covariance, square


@jit
def _square_sum(ranks: Any) -> float:
    n = len(ranks)
    total = 0.0
    for i in range(n):
        centred = np.float64(ranks[i]) - (n + 1)
        total += centred * centred
    return total


@jit
def _product_sum(first: Any, second: Any) -> float:
    n = len(first)
    total = 0.0
    for i in range(n):
        total += (np.float64(first[i]) - (n + 1)) * (np.float64(second[i]) - (n + 1))
    return total


def twice_ranks(values: Array) -> U32:
    """Twice the average ranks (1-based) of a column without NaN, as exact integers: (n,) uint32.

    float32 values are radix-sorted as 64-bit keys that carry their position; zeros, the commonest value of
    expression, are not sorted at all.
    """
    n = len(values)
    out = np.empty(n, dtype=np.uint32)
    if values.dtype == np.float32:
        keys = np.empty(n, dtype=np.uint64)
        m, negative = _pack_nonzero(np.ascontiguousarray(values).view(np.uint32), keys)
        _ranks_of_keys(_sorted_keys(keys[:m], np.empty(m, dtype=np.uint64)), negative, n - m, out)
    else:
        _ranks_of_order(values, np.argsort(values), out)
    return out


@dataclass(frozen=True)
class Spearman:
    """Rank correlation of every gene.

    Attributes
    ----------
    values
        (g,) float64, NaN where truth or prediction is constant.
    constant_true, constant_pred
        (g,) bool; of a prediction, up to rounding.
    """

    values: F64
    constant_true: Bools
    constant_pred: Bools


def spearman_by_gene(
    pred_columns: Columns, true_columns: Columns, n: int, g: int, *, max_elements: int | None = None
) -> Spearman:
    """Spearman correlation of prediction and truth for every gene, over samples.

    Average ranks for ties on both sides (as `scipy.stats.spearmanr`), in exact integer arithmetic up to the last
    division. Memory: two blocks of columns.

    Parameters
    ----------
    pred_columns, true_columns
        slice of genes -> (n, k) array; float32, or anything that converts to float64.
    n, g
        Samples and genes.
    max_elements
        Values per block of columns; None: `txeval.compute.memory.column_elements`.

    Raises
    ------
    NotComputable
        For fewer than two samples.
    """
    _two(n)
    found = _Correlations(n, g)
    step = max(1, (max_elements or column_elements()) // (2 * n))
    for start in range(0, g, step):
        genes = slice(start, min(g, start + step))
        true, pred = _by_column(true_columns(genes), n, "true"), _by_column(pred_columns(genes), n, "pred")
        for k in range(len(true)):
            ranks = twice_ranks(true[k])
            found.add(start + k, pred[k], ranks, _square_sum(ranks))
    return found.result()


def _two(n: int) -> None:
    if n < 2:
        raise NotComputable(f"a rank correlation needs two samples; there are {n}")


class _Correlations:
    """Rank correlations gene by gene."""

    def __init__(self, n: int, g: int) -> None:
        self.values = np.full(g, np.nan)
        self.constant_true, self.constant_pred = np.zeros(g, dtype=bool), np.zeros(g, dtype=bool)
        self._keys, self._spare = np.empty(n, dtype=np.uint64), np.empty(n, dtype=np.uint64)

    def add(self, gene: int, pred: Array, ranks: U32, square_true: float) -> None:
        """Correlate a prediction (n,) with twice the ranks of the truth, whose centred squares sum to `square_true`."""
        if pred.dtype == np.float32:
            _pack(pred.view(np.uint32), ranks, self._keys)
            covariance, square_pred = _correlate_keys(_sorted_keys(self._keys, self._spare))
        else:
            pred_ranks = twice_ranks(pred)
            covariance, square_pred = _product_sum(pred_ranks, ranks), _square_sum(pred_ranks)
        self.constant_true[gene] = square_true == 0
        self.constant_pred[gene] = is_constant(pred.min(), pred.max(), pred.dtype)
        if not (self.constant_true[gene] or self.constant_pred[gene]):
            self.values[gene] = min(1.0, max(-1.0, covariance / np.sqrt(square_true) / np.sqrt(square_pred)))

    def result(self) -> Spearman:
        return Spearman(self.values, self.constant_true, self.constant_pred)


@dataclass(frozen=True)
class Ranks:
    """Ranks of the truth for every gene, made once for all predictions of the same samples.

    Attributes
    ----------
    twice
        (g, n) uint32 twice the average ranks, mapped from a file.
    squares
        (g,) float64 sums of the squares of the centred ones; 0 for a constant gene.
    """

    twice: U32
    squares: F64

    @classmethod
    def open(cls, path: Path, squares: Path) -> Ranks:
        """Map what `rank_columns` wrote."""
        return cls(np.load(path, mmap_mode="r"), np.load(squares))


def rank_columns(columns: Columns, n: int, g: int, path: Path, squares: Path) -> None:
    """Write the ranks of every column (n, k) of a slice of genes, and the sums of their squares, as .npy files."""
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint32, shape=(g, n))
    allocate(path, path.stat().st_size)
    sums = np.zeros(g)
    step = max(1, column_elements() // (2 * max(n, 1)))
    for start in range(0, g, step):
        block = _by_column(columns(slice(start, min(g, start + step))), n, "true")
        for k, column in enumerate(block):
            ranks = twice_ranks(column)
            out[start + k] = ranks
            sums[start + k] = _square_sum(ranks)
        release(out)
    out.flush()
    np.save(squares, sums)


def spearman_of_ranks(predictions: Sequence[Columns], ranks: Ranks) -> list[Spearman]:
    """Spearman correlation of several predictions with one truth, as `spearman_by_gene`, from the ranks of the truth.

    Parameters
    ----------
    predictions
        slice of genes -> (k, n) float32, gene by gene, for each prediction; slices begin at multiples of `GENE_TILE`.

    Raises
    ------
    NotComputable
        For fewer than two samples.
    InputError
        For NaN in a prediction.
    """
    g, n = ranks.twice.shape
    _two(n)
    found = [_Correlations(n, g) for _ in predictions]
    step = GENE_TILE * max(1, column_elements() // (2 * n * GENE_TILE))
    for start in range(0, g, step):
        genes = slice(start, min(g, start + step))
        true = np.ascontiguousarray(ranks.twice[genes])
        for one, columns in zip(found, predictions, strict=True):
            pred = columns(genes)
            if not np.isfinite(pred).all():
                raise InputError("pred holds NaN or infinite values", remedy="remove or fill them")
            for k in range(len(true)):
                one.add(start + k, pred[k], true[k], float(ranks.squares[start + k]))
        release(ranks.twice)
    return [one.result() for one in found]


def _by_column(block: Array, n: int, name: str) -> Array:
    block = np.asarray(block)
    if block.ndim != 2 or len(block) != n:
        raise InputError(f"{name} gave columns of shape {block.shape} for {n} samples")
    columns = np.ascontiguousarray(block.T, dtype=np.float32 if block.dtype in (np.float16, np.float32) else np.float64)
    if not np.isfinite(columns).all():
        raise InputError(f"{name} holds NaN or infinite values", remedy="remove or fill them")
    return columns


def correlation_influence(pred: Array, true: Array) -> tuple[F64, F64]:
    r"""Influence of every sample on the Pearson and on the rank correlation of two columns.

    Pearson, with z the standardised values: :math:`z_p z_t - \rho (z_p^2 + z_t^2) / 2`. Spearman is that of the
    mid-distribution functions U and V, which move with every sample themselves: with :math:`A_i = E[V (1(X > x_i) +
    1(X = x_i) / 2)]` and B likewise, the covariance changes by :math:`u_i v_i + A_i + B_i - 3 E[UV]`, and the
    variances by the same with U or V twice (ties make them vary). Each sums to 0 over samples.

    Parameters
    ----------
    pred, true
        (n,) without NaN.

    Returns
    -------
    (pearson, spearman)
        (n,) float64 each; 0 where a column is constant.
    """
    n = len(pred)
    zero = np.zeros(n)
    p, t = (np.asarray(side, dtype=np.float64) for side in (pred, true))
    if n < 2 or any(is_constant(side.min(), side.max(), side.dtype) for side in (pred, true)):
        return zero, zero
    p, t = (p - p.mean()) / p.std(), (t - t.mean()) / t.std()
    rho = float((p * t).mean())
    pearson = p * t - rho * (p * p + t * t) / 2

    ranks = twice_ranks(np.ascontiguousarray(pred)), twice_ranks(np.ascontiguousarray(true))
    u, v = ((side - 1.0) / (2 * n) for side in ranks)

    def above(side: U32, weights: F64) -> F64:
        sums = np.bincount(side, weights=weights, minlength=2 * n + 2)
        return np.asarray((weights.sum() - np.cumsum(sums) + sums / 2)[side] / n)

    def moved(first: int, second: int) -> F64:
        grades = (u, v)
        product = grades[first] * grades[second]
        one = above(ranks[first], grades[second])
        other = one if first == second else above(ranks[second], grades[first])
        return np.asarray(product + one + other - 3 * product.mean())

    var_u, var_v = float((u * u).mean()) - 0.25, float((v * v).mean()) - 0.25
    size = float(np.sqrt(var_u * var_v))
    rho = (float((u * v).mean()) - 0.25) / size
    return pearson, moved(0, 1) / size - rho / 2 * (moved(0, 0) / var_u + moved(1, 1) / var_v)


def columns_of(matrix: Any, *, max_elements: int | None = None) -> Columns:
    """Read columns of anything that gives rows by slices, by row blocks."""
    n, g = matrix.shape

    def read(genes: slice) -> Array:
        if isinstance(matrix, np.ndarray):
            return np.asarray(matrix[:, genes])
        step = max(1, (max_elements or column_elements()) // g)
        parts = [np.asarray(matrix[a : min(n, a + step)])[:, genes] for a in range(0, n, step)]
        return np.concatenate(parts) if parts else np.empty((0, len(range(*genes.indices(g)))))

    return read


class ColumnStore:
    """A matrix that is written by row blocks and read by columns, in memory or in a temporary file.

    The file holds tiles of `_TILE_ROWS` rows, each by columns, so that both ways touch long stretches of it.

    Parameters
    ----------
    n, g
        Shape of the whole matrix.
    max_bytes
        Above this many bytes (float32) it lives in a file; None: `txeval.compute.memory.held_bytes`.
    folder
        Where that file goes; None: `txeval.compute.memory.scratch_folder`.
    """

    def __init__(self, n: int, g: int, *, max_bytes: int | None = None, folder: Path | None = None) -> None:
        self.n, self.g = n, g
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._values: Array
        if 4 * n * g <= (held_bytes() if max_bytes is None else max_bytes):
            self._tile = max(n, 1)
            self._values = np.empty((1, g, self._tile), dtype=np.float32)
        else:
            self._tile = _TILE_ROWS
            self._folder = tempfile.TemporaryDirectory(dir=folder or scratch_folder(), prefix="txeval-columns-")
            path = Path(self._folder.name) / "columns"
            shape = (-(-n // self._tile), g, self._tile)
            allocate(path, 4 * shape[0] * shape[1] * shape[2])
            self._values = np.memmap(path, mode="r+", dtype=np.float32, shape=shape)

    @property
    def on_disk(self) -> bool:
        """Whether it lives in a file."""
        return self._folder is not None

    def write(self, rows: slice, block: Array) -> None:
        """Store rows (m, g)."""
        start, stop, _ = rows.indices(self.n)
        at = start
        while at < stop:
            tile, place = divmod(at, self._tile)
            end = min(stop, (tile + 1) * self._tile)
            self._values[tile, :, place : place + end - at] = block[at - start : end - start].T
            at = end
        if stop // self._tile > start // self._tile:
            release(self._values)

    def __call__(self, genes: slice) -> Array:
        """Columns (n, k)."""
        if len(self._values) == 1:
            return self._values[0, genes, : self.n].T
        parts = self._values[:, genes].transpose(1, 0, 2)
        columns = parts.reshape(parts.shape[0], -1)[:, : self.n].T
        release(self._values)
        return columns

    def close(self) -> None:
        """Free the memory or remove the file."""
        self._values = np.empty((1, 0, 0), dtype=np.float32)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> ColumnStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
