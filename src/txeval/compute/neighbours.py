"""Exact nearest neighbours: float32 matrix products find the candidates, float64 differences decide.

The squared distance less the query's own norm, |x|^2 - 2 q.x, comes from matrix products over tiles. Per query a
threshold from a sample of the reference set keeps a few hundred candidates; their distances are recomputed from
differences in float64. A bound on the rounding of the products then says whether a point that was not kept could
belong among the k nearest; where it could, the row is redone against the whole reference set. So the answer is the
exact one, ties included, whatever the tiles. Where the processor multiplies bfloat16 faster, and a query's threshold
moves little by what these lose, they find the candidates: the same answer with other bounds.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from txeval.compute.arrays import BLOCK_ELEMENTS, F32, F64, Bools, Ints, Rows, row_blocks, take_rows
from txeval.compute.devices import exact_products
from txeval.compute.groups import checked_matrix
from txeval.compute.jit import jit, prefetch
from txeval.compute.random import stream
from txeval.compute.scan import ROWS, halved, halves_pay, pack, pays, scan
from txeval.compute.threads import torch_threads
from txeval.errors import InputError

__all__ = [
    "NeighbourIndex",
    "Neighbourhood",
    "at_least_one",
    "equal_rows",
    "finite_rows",
    "neighbours",
    "self_neighbours",
    "squared_distance",
    "tie_remark",
    "tied_at",
]

#: Largest relative error of one float32 operation.
_ROUNDING = 2.0**-24
#: Bound on what a product loses where it falls below the float32 range (points are scaled to about 1).
_VANISHED = 2.0**-110
#: Values beyond this would have squares that only float64 holds, and no embedding has them.
_LARGEST = 1e30
#: Up to this size every distance is computed directly: a threshold would not pay.
_SMALL = 1024
#: A tile of 2 MiB stays in a core's cache between the product and the filter.
_TILE_QUERIES = 512
#: Candidates are compared in the order of their rows from this width on, and fetched so many before.
_AHEAD, _FETCHED_FROM = 4, 64
#: Bytes of the reference set that stay in a core's cache while all queries are compared with them.
_CHUNK = 2**18
#: Narrower points take longer to compare than to multiply.
_HALVED_FROM = 24
#: Their products with the sample stay there too.
_SAMPLED_QUERIES = 32
#: The same on another device than the CPU, and the products (1 GiB) that are held there at once.
_QUERIES_ELSEWHERE = 8192
_PRODUCTS_ELSEWHERE = 2**28
_TILE_REFERENCE = 1024


@partial(jit, inlined=True)
def squared_distance(a: Any, b: Any) -> Any:
    """Of two points, in float64; for kernels."""
    total = 0.0
    for j in range(len(a)):
        difference = np.float64(a[j]) - np.float64(b[j])
        total += difference * difference
    return total


@jit
def _sorted_by_value(values: Any) -> Any:
    """Positions of non-negative float32 values in their order, equal ones as they come: (n,) int64.

    A radix sort by bytes of what lies above the smallest: bits of such floats are in the order of their values.
    """
    n = len(values)
    bits = values.view(np.uint32)
    low, high = bits[0], bits[0]
    for a in range(n):
        low, high = min(low, bits[a]), max(high, bits[a])
    keys, spare = np.empty(n, np.int64), np.empty(n, np.int64)
    for a in range(n):
        keys[a] = (np.int64(bits[a] - low) << 32) | a
    starts = np.empty(256, np.int64)
    shift = 32
    while np.int64(high - low) >> (shift - 32):
        starts[:] = 0
        for a in range(n):
            starts[(keys[a] >> shift) & 255] += 1
        at = 0
        for b in range(256):
            count = starts[b]
            starts[b] = at
            at += count
        for a in range(n):
            bucket = (keys[a] >> shift) & 255
            spare[starts[bucket]] = keys[a]
            starts[bucket] += 1
        keys, spare = spare, keys
        shift += 8
    for a in range(n):
        keys[a] &= 0xFFFFFFFF
    return keys


@jit
def _keep_nearest(squared: Any, rows: Any, k: int, distances: Any, indices: Any) -> Any:
    """Write the k nearest by (float32 distance, row), of ascending rows; return the k-th distance."""
    rounded = np.sqrt(squared).astype(np.float32)
    if len(rounded) <= 4096:
        order = _sorted_by_value(rounded)
        for a in range(k):
            indices[a] = rows[order[a]]
            distances[a] = rounded[order[a]]
    else:
        # Distance and row make one integer key.
        keys = (rounded.view(np.int32).astype(np.int64) << 32) | rows
        keys = np.sort(np.partition(keys, k - 1)[:k])
        for a in range(k):
            indices[a] = keys[a] & 0xFFFFFFFF
        distances[:] = (keys >> 32).astype(np.int32).view(np.float32)
    return np.float64(distances[k - 1])


@jit
def _reached_by(values: Any, k: int, counts: Any) -> Any:
    """A value that at least k of finite values reach: the k-th smallest, or one of those little above it."""
    low, high = values[0], values[0]
    for a in range(len(values)):
        low, high = min(low, values[a]), max(high, values[a])
    extent = np.float64(high) - np.float64(low)
    if extent < 1e-30:
        return high
    scale = (len(counts) - 1) / extent
    counts[:] = 0
    for a in range(len(values)):
        counts[int((np.float64(values[a]) - low) * scale)] += 1
    total, last = 0, -1
    while total < k:
        last += 1
        total += counts[last]
    bound = low
    for a in range(len(values)):
        if int((np.float64(values[a]) - low) * scale) <= last:
            bound = max(bound, values[a])
    return bound


@partial(jit, inlined=True)
def _error(d: int, norm: Any, squared: Any, lost: Any, largest: Any) -> Any:
    """Bound on |computed - true| of |x|^2 - 2 q.x for any x within a squared distance of q.

    Centring and rounding the points, d + 1 products and sums in float32 in any order, with |x| <= |q| + distance. And
    `lost` |x| where the factors are rounded further, |x| at most `largest`.
    """
    reach = np.sqrt(norm) + np.sqrt(squared)
    return (2 * d + 32) * (_ROUNDING * reach * reach + _VANISHED) + lost * min(reach, largest)


@jit
def _raised(d: int, norms: Any, level: Any, lost: Any, largest: Any) -> Any:
    """Levels of float32 values, raised so far that rounding does not push above them what truly lies below."""
    out = np.empty(len(level), np.float32)
    for q in range(len(level)):
        value = np.float64(level[q])
        squared = max(value + norms[q], 0.0)
        exact = _error(d, norms[q], squared, 0.0, largest)
        out[q] = value + exact + _error(d, norms[q], squared, lost[q], largest)
    return out


@partial(jit, no_nan=True)
def _level(sampled: Any, rank: int, out: Any, wider: Any) -> None:
    """A level per row that at least `rank` of its values reach, little above the lowest such level.

    Found among the smallest values of sets of 16, of which there are at least `rank`. Members of a set lie as far
    apart as there are sets, so that neighbouring sets are worked on together. `wider` gets the level of 3 / 2 `rank`.
    """
    m, n = sampled.shape
    sets = (n + 15) // 16
    smallest = np.empty(sets, np.float32)
    bins = np.empty(256, np.int64)
    for q in range(m):
        row = sampled[q]
        smallest[:] = row[:sets]
        for start in range(sets, n, sets):
            for r in range(min(sets, n - start)):
                smallest[r] = min(smallest[r], row[start + r])
        out[q] = _reached_by(smallest, rank, bins)
        if len(wider):
            wider[q] = _reached_by(smallest, rank + (rank + 1) // 2, bins)


@partial(jit, no_nan=True)
def _filter(tile: Any, start: int, threshold: Any, rows: Any, values: Any, counts: Any) -> None:
    """Append the columns of a tile at or below each row's threshold; counts go on where the room ends."""
    m, n = tile.shape
    room = rows.shape[1]
    whole = n - n % 16
    for q in range(m):
        limit = threshold[q]
        count = counts[q]
        row = tile[q]
        for j in range(0, whole, 16):
            # The minimum of a run takes a few vector instructions, and most runs have nothing to keep.
            smallest = row[j]
            for u in range(1, 16):
                smallest = min(smallest, row[j + u])
            if smallest <= limit:
                for a in range(j, j + 16):
                    if row[a] <= limit:
                        if count < room:
                            rows[q, count] = start + a
                            values[q, count] = row[a]
                        count += 1
        for a in range(whole, n):
            if row[a] <= limit:
                if count < room:
                    rows[q, count] = start + a
                    values[q, count] = row[a]
                count += 1
        counts[q] = count


@jit
def _compare(reference: Any, queries: Any, rows: Any, kept: Any, squared: Any) -> None:
    """Squared distances of queries to the first `kept` of their candidates `rows`.

    Of wide points they are taken by chunks of the reference set: a row that several queries ask for is read once.
    """
    n, d = reference.shape
    if d < _FETCHED_FROM:
        for q in range(len(kept)):
            for a in range(kept[q]):
                squared[q, a] = squared_distance(queries[q], reference[rows[q, a]])
        return
    chunk = max(1, _CHUNK // (4 * d))
    starts = np.zeros(n // chunk + 2, np.int64)
    for q in range(len(kept)):
        for a in range(kept[q]):
            starts[rows[q, a] // chunk + 1] += 1
    for c in range(1, len(starts)):
        starts[c] += starts[c - 1]
    total = starts[-1]
    whose, place = np.empty(total, np.int32), np.empty(total, np.int32)
    for q in range(len(kept)):
        for a in range(kept[q]):
            c = rows[q, a] // chunk
            whose[starts[c]], place[starts[c]] = q, a
            starts[c] += 1
    # Of longer rows the processor fetches the rest.
    lines = min(16, d // 16)
    for t in range(total):
        later = min(t + _AHEAD, total - 1)
        row = reference.ctypes.data + 4 * d * np.int64(rows[whose[later], place[later]])
        for line in range(lines):
            prefetch(row + 64 * line)
        q, a = whose[t], place[t]
        squared[q, a] = squared_distance(queries[q], reference[rows[q, a]])


@jit
def _decide(
    reference: Any,
    queries: Any,
    norms: Any,
    scale: Any,
    threshold: Any,
    rows: Any,
    values: Any,
    counts: Any,
    lost: Any,
    largest: Any,
    k: int,
    distances: Any,
    indices: Any,
) -> Any:
    """Answer each query from its candidates, of which the nearer ones move to the front of `rows`.

    Returns which answers are certain to be exact.
    """
    m, room = rows.shape
    d = reference.shape[1]
    certain = np.zeros(m, np.bool_)
    bins = np.empty(256, np.int64)
    limits = np.empty(m)
    kept = np.zeros(m, np.int64)
    for q in range(m):
        count = counts[q]
        if count < k or count > room:
            continue
        kth = np.float64(_reached_by(values[q, :count], k, bins))
        error = _error(d, norms[q], max(kth + norms[q], 0.0), lost[q], largest)
        limits[q] = min(np.float64(threshold[q]), kth + 2 * error)
        near = 0
        for a in range(count):
            rows[q, near] = rows[q, a]
            near += values[q, a] <= limits[q]
        kept[q] = near if near >= k else 0
    squared = np.empty((m, kept.max()))
    _compare(reference, queries, rows, kept, squared)
    for q in range(m):
        if not kept[q]:
            continue
        found, near_rows = squared[q, : kept[q]], rows[q, : kept[q]]
        # Anything that rounds to the k-th distance or less could belong to the answer; 2^-149 is the smallest float32.
        last = (_keep_nearest(found, near_rows, k, distances[q], indices[q]) + 2.0**-149) * scale
        reach = last * last * (1 + 4 * _ROUNDING)
        certain[q] = reach - norms[q] + _error(d, norms[q], reach, lost[q], largest) <= limits[q]
    return certain


def _scan(
    panels: Any, begin: F32, words: Any, which: Ints, threshold: F32, rows: Any, values: Any, counts: Ints
) -> None:
    """`scan` for some of the queries, which it takes by `ROWS`."""
    filled = np.zeros((-(-len(which) // ROWS) * ROWS, words.shape[1]), words.dtype)
    filled[: len(which)] = words[which]
    limits = np.full(len(filled), -np.inf, np.float32)
    limits[: len(which)] = threshold[which]
    if len(which) == len(rows):
        scan(panels, begin, filled, limits, rows, values, counts)
        return
    some_rows, some_values = np.empty_like(rows[: len(which)]), np.empty_like(values[: len(which)])
    some_counts = np.zeros(len(which), np.int64)
    scan(panels, begin, filled, limits, some_rows, some_values, some_counts)
    rows[which], values[which], counts[which] = some_rows, some_values, some_counts


@jit
def _whole_rows(reference: Any, queries: Any, which: Any, k: int, distances: Any, indices: Any) -> None:
    """Answer the given queries from their distances to the whole reference set."""
    n = len(reference)
    everything = np.arange(n)
    squared = np.empty(n, np.float64)
    for q in which:
        for a in range(n):
            squared[a] = squared_distance(queries[q], reference[a])
        _keep_nearest(squared, everything, k, distances[q], indices[q])


@jit
def _squared_distances(reference: Any, query: Any, out: Any) -> None:
    for a in range(len(reference)):
        out[a] = squared_distance(query, reference[a])


@dataclass(frozen=True)
class Neighbourhood:
    """The k nearest of one query, and all samples that tie with the k-th.

    Attributes
    ----------
    rows, distances
        (s,) int64 and float32: the samples nearer than the k-th, ascending. k - s places are left.
    tied, distance
        (t,) int64: all samples at the distance of the k-th, equal in float32; that distance. The first of them is the
        nearest in float64.
    """

    rows: Ints
    distances: F32
    tied: Ints
    distance: float


@dataclass(frozen=True)
class _Halves:
    """Points in bfloat16: panels for `scan`, the largest share of a norm that rounding took, the largest norm."""

    panels: Any
    begin: F32
    share: float
    largest: float


class NeighbourIndex:
    """A reference set, prepared once for any number of queries.

    Parameters
    ----------
    reference
        (n, d) finite values; used as float32 and kept in memory twice, or two and a half times.
    name
        What messages call it.

    Raises
    ------
    InputError
        For a matrix that is not two-dimensional, has no rows or columns, or holds NaN or infinity.
    """

    def __init__(self, reference: Rows, *, name: str = "X_ref") -> None:
        self.reference = finite_rows(reference, name=name)
        n, d = self.reference.shape
        if n == 0:
            raise InputError(f"{name} has no rows: there is nothing to search", remedy="give samples")
        self.n, self.d = n, d
        # Products of centred values lose less to cancellation; a power of two changes no digit and keeps the squares
        # within the range of float32.
        self._centre = self.reference.mean(axis=0, dtype=np.float64)
        extent = max(float(np.abs(self.reference[block] - self._centre).max()) for block in row_blocks(n, d))
        self._scale = float(2.0 ** -np.ceil(np.log2(extent))) if extent > 0 else 1.0
        size = min(n, max(_SMALL, min(n // 16, 4096 + n // 100)))
        self._sample = self._widened(np.sort(stream(0, "neighbours", n).choice(n, size, replace=False)))
        self._halves = self._packed_halves() if halves_pay() and d >= _HALVED_FROM and n > _SMALL else None
        self._elsewhere: torch.Tensor | None = None

    def _place(self, rows: F32) -> F32:
        return np.asarray((rows - self._centre) * self._scale, dtype=np.float32)

    def _widened(self, rows: Ints | slice) -> F32:
        """Points as -2 x with |x|^2 in one more column, which a 1 in the queries matches: products are the values."""
        points = self._place(self.reference[rows])
        out = np.empty((len(points), self.d + 1), np.float32)
        out[:, :-1] = -2 * points
        out[:, -1] = np.einsum("ij,ij->i", points, points, dtype=np.float64)
        return out

    @cached_property
    def _points(self) -> F32:
        """(n, d + 1), all of them."""
        out = np.empty((self.n, self.d + 1), np.float32)
        for block in row_blocks(self.n, self.d):
            out[block] = self._widened(block)
        return out

    @cached_property
    def _panels(self) -> tuple[Any, F32]:
        """All of them, for `scan`."""
        parts = (self._widened(block) for block in row_blocks(self.n, self.d))
        return pack(((part[:, :-1], part[:, -1]) for part in parts), self.n, self.d)

    def _packed_halves(self) -> _Halves:
        """All of them in bfloat16, for `scan`."""
        share = largest = 0.0

        def parts() -> Iterator[tuple[Any, F32]]:
            nonlocal share, largest
            for block in row_blocks(self.n, self.d):
                part = self._widened(block)
                pairs, _, lost = halved(part[:, :-1])
                norms = 2 * np.sqrt(part[:, -1].astype(np.float64))
                largest = max(largest, float(norms.max()) / 2)
                share = max(share, float(np.divide(lost, norms, out=np.zeros_like(lost), where=norms > 0).max()))
                yield pairs, part[:, -1]

        panels, begin = pack(parts(), self.n, (self.d + 1) // 2)
        # Norms have the rounding of float32.
        return _Halves(panels, begin, share * (1 + 1e-5), largest * (1 + 1e-5))

    def blocks(
        self, queries: Rows, k: int, *, threads: int = 1, device: str = "cpu", max_elements: int | None = None
    ) -> Iterator[tuple[slice, F32, Ints]]:
        """Neighbours of blocks of queries, for callers that need not hold all of them.

        Parameters
        ----------
        queries
            (m, d) rows on demand.
        k
            Number of neighbours; all n where it is larger.
        threads
            Blocks of queries answered at the same time.
        device
            Where candidates are looked for; the answer does not depend on it.
        max_elements
            Bound on the values of one tile and of one block of answers; the answer does not depend on it.

        Yields
        ------
        (rows, distances, indices)
            Slice of the queries, float32 (b, k) ascending, int64 (b, k); equal distances in order of the index.
        """
        k = min(at_least_one("k", k), self.n)
        matrix = checked_matrix(queries, "X_query")
        m, d = matrix.shape
        if d != self.d:
            raise InputError(
                f"the queries have {d} columns, the reference set has {self.d}", remedy="embed both in the same space"
            )
        for rows in row_blocks(m, max(k, d), max_elements):
            block = finite_rows(matrix, rows, name="X_query")
            distances = np.empty((len(block), k), np.float32)
            indices = np.empty((len(block), k), np.int64)
            self._fill(block, k, distances, indices, threads, device, max_elements)
            yield rows, distances, indices

    def neighbourhood(self, query: F32, k: int) -> Neighbourhood:
        """Find the k nearest of one query (d,) float32, and all samples that tie with the last of them.

        Distances are ties where they are equal in float32, as they are in `blocks`: equal rows always tie.
        """
        squared = np.empty(self.n)
        _squared_distances(self.reference, np.ascontiguousarray(query), squared)
        distances = np.sqrt(squared).astype(np.float32)
        kth = np.partition(distances, k - 1)[k - 1]
        near, tied = np.flatnonzero(distances < kth), np.flatnonzero(distances == kth)
        near = near[np.argsort(distances[near], kind="stable")]
        tied = tied[np.argsort(squared[tied], kind="stable")]
        return Neighbourhood(near, distances[near], tied, float(kth))

    def _fill(
        self, queries: F32, k: int, distances: F32, indices: Ints, threads: int, device: str, max_elements: int | None
    ) -> None:
        limit = max_elements or BLOCK_ELEMENTS
        width = min(_TILE_REFERENCE, self.n, max(32, limit // 32))
        step = min(_TILE_QUERIES, max(1, limit // width))
        if device != "cpu":
            # One whole row of products per query.
            step = max(1, min(_QUERIES_ELSEWHERE, _PRODUCTS_ELSEWHERE // self.n))
        parts = [slice(start, min(start + step, len(queries))) for start in range(0, len(queries), step)]

        def answer(part: slice) -> None:
            self._answer(queries[part], k, distances[part], indices[part], width, device)

        with torch_threads(1):
            if threads <= 1 or len(parts) <= 1 or device != "cpu":
                for part in parts:
                    answer(part)
            else:
                with ThreadPoolExecutor(threads) as pool:
                    list(pool.map(answer, parts))

    def _answer(self, queries: F32, k: int, distances: F32, indices: Ints, width: int, device: str) -> None:
        if self.n <= max(_SMALL, 2 * k):
            _whole_rows(self.reference, queries, np.arange(len(queries)), k, distances, indices)
            return
        placed = np.empty((len(queries), self.d + 1), np.float32)
        with np.errstate(over="ignore"):
            placed[:, :-1] = self._place(queries)
        norms = np.einsum("ij,ij->i", placed[:, :-1], placed[:, :-1], dtype=np.float64)
        placed[:, -1] = 1
        # A query this far from everything would leave the range of float32; its row is redone below.
        far = ~(norms < 2.0**60)
        placed[far] = 0
        norms[far] = 0
        if device == "cpu":
            found = self._candidates(placed, norms, k, width)
        else:
            found = self._candidates_on(torch.device(device), placed, k)
        threshold, rows, values, counts, lost = found
        largest = self._halves.largest if self._halves else np.inf
        certain: Bools = _decide(
            self.reference,
            queries,
            norms,
            self._scale,
            threshold,
            rows,
            values,
            counts,
            lost,
            largest,
            k,
            distances,
            indices,
        )
        redo = np.flatnonzero(far | ~certain)
        if len(redo):
            _whole_rows(self.reference, queries, redo, k, distances, indices)

    def _candidates(self, placed: F32, norms: F64, k: int, width: int) -> tuple[Any, ...]:
        """Threshold (m,), candidate rows and values (m, room), counts (m,), what further rounding loses (m,)."""
        m, n, size = len(placed), self.n, len(self._sample)
        queries = torch.from_numpy(placed)
        expected = k * size / n
        # Above the expected rank of the k-th neighbour within the sample: one query in 100,000 has to be redone.
        rank = min(size, int(np.ceil(expected + 4 * np.sqrt(expected) + 4)))
        # Up to a third of the sets, the level lets less than 1.3 times as many through as wanted.
        by_sets = rank <= size // 48
        level, wider = np.empty(m, np.float32), np.empty(m if self._halves and by_sets else 0, np.float32)
        sample = torch.from_numpy(self._sample).t()
        for start in range(0, m, _SAMPLED_QUERIES):
            rows_now = slice(start, start + _SAMPLED_QUERIES)
            sampled = torch.mm(queries[rows_now], sample)
            if by_sets:
                _level(sampled.numpy(), rank, level[rows_now], wider[rows_now])
            else:
                level[rows_now] = sampled.topk(rank, dim=1, largest=False, sorted=False).values.amax(dim=1).numpy()
        lost = np.zeros(m)
        threshold = _raised(self.d, norms, level, lost, np.inf)
        room = int(min(n, max(4 * k, (3.75 if len(wider) else 2.5) * rank * n / size + 256)))
        rows = np.empty((m, room), np.int32)
        values = np.empty((m, room), np.float32)
        counts = np.zeros(m, np.int64)
        if pays():
            rest = np.arange(m)
            if self._halves and len(wider):
                pairs, kept, gone = halved(placed[:, :-1])
                # 2 |q.x - (q.x rounded)| <= 2 (|q - q rounded| + |q rounded| share) |x|
                loses = 2 * (gone + kept * self._halves.share)
                raised = _raised(self.d, norms, level, loses, self._halves.largest)
                little = raised <= wider
                # Few queries would not fill the registers.
                if np.count_nonzero(little) >= m // 2:
                    lost[little], threshold[little] = loses[little], raised[little]
                    rest = np.flatnonzero(~little)
                    _scan(
                        self._halves.panels,
                        self._halves.begin,
                        pairs,
                        np.flatnonzero(little),
                        threshold,
                        rows,
                        values,
                        counts,
                    )
            if len(rest):
                _scan(*self._panels, placed[:, :-1], rest, threshold, rows, values, counts)
            return threshold, rows, values, counts, lost
        points = torch.from_numpy(self._points)
        tile = torch.empty(m * width)
        for start in range(0, n, width):
            part = points[start : start + width]
            out = tile[: m * len(part)].view(m, len(part))
            torch.mm(queries, part.t(), out=out)
            _filter(out.numpy(), start, threshold, rows, values, counts)
        return threshold, rows, values, counts, lost

    def _candidates_on(self, device: torch.device, placed: F32, k: int) -> tuple[Any, ...]:
        """The same by one whole row of products per query and a partial sort, for accelerators."""
        room = min(self.n, k + 64 + k // 8)
        if self._elsewhere is None or self._elsewhere.device.type != device.type:
            self._elsewhere = torch.from_numpy(self._points).to(device)
        with exact_products():
            products = torch.from_numpy(placed).to(device) @ self._elsewhere.t()
        columns = products.topk(room, dim=1, largest=False, sorted=False).indices.sort(dim=1).values
        values = products.gather(1, columns).cpu().numpy()
        # A point that ties with the last one kept may have been left out: the threshold lies just below it.
        threshold = np.nextafter(values.max(axis=1), np.float32(-np.inf))
        counts = np.full(len(placed), room, np.int64)
        return threshold, columns.cpu().numpy().astype(np.int32), values, counts, np.zeros(len(placed))


def neighbours(
    X_ref: Rows, X_query: Rows, k: int, *, threads: int = 1, device: str = "cpu", max_elements: int | None = None
) -> tuple[F32, Ints]:
    """Exact k nearest neighbours, euclidean.

    Parameters
    ----------
    X_ref
        (n, d) reference set, finite; used as float32.
    X_query
        (m, d) queries.
    k
        Number of neighbours, at least 1; all n where it is larger.
    threads
        Blocks of queries answered at the same time.
    device
        Where candidates are looked for ("cpu", "cuda"); the answer does not depend on it.
    max_elements
        Bound on the values of one working block; the answer does not depend on it.

    Returns
    -------
    (distances, indices)
        float32 (m, min(k, n)) ascending, and int64 rows of `X_ref`. Distances that are equal in float32 are in order
        of the row, so the answer is unique; the distance of equal rows is exactly 0.

    Raises
    ------
    InputError
        For k < 1, NaN or infinity, an empty reference set, or sets of different width.
    """
    index = NeighbourIndex(X_ref)
    k = min(at_least_one("k", k), index.n)
    queries = checked_matrix(X_query, "X_query")
    distances = np.empty((queries.shape[0], k), np.float32)
    indices = np.empty((queries.shape[0], k), np.int64)
    for rows, near, which in index.blocks(queries, k, threads=threads, device=device, max_elements=max_elements):
        distances[rows] = near
        indices[rows] = which
    return distances, indices


def tied_at(distances: F32, k: int) -> Ints:
    """Rows of ascending distances (m, k + 1 or more) whose k-th is no less than the next; none where there is no next.

    A search for one neighbour more than are used finds so which queries have more candidates for the last places than
    places; `NeighbourIndex.neighbourhood` has all of these.
    """
    return np.flatnonzero(distances[:, k - 1] == distances[:, k]) if distances.shape[1] > k else np.empty(0, np.int64)


def tie_remark(n: int) -> str:
    """What a score says of n samples whose last places are shared."""
    return (
        f"{n} samples have more neighbours at the distance of the last one than places for them: these share the places"
        " (expectation over ties broken at random)"
    )


def equal_rows(X: Rows, rows: Ints) -> Iterator[tuple[F32, Ints]]:
    """Some rows of a matrix, in groups of equal ones: values (d,) float32, row numbers."""
    if len(rows):
        distinct, group = np.unique(take_rows(X, rows), axis=0, return_inverse=True)
        order = np.argsort(group.reshape(-1), kind="stable")
        ends = np.cumsum(np.bincount(group.reshape(-1)))
        yield from zip(distinct, np.split(rows[order], ends[:-1]), strict=True)


def self_neighbours(
    index: NeighbourIndex, k: int, *, threads: int = 1, device: str = "cpu", max_elements: int | None = None
) -> Iterator[tuple[slice, F32, Ints]]:
    """Blocks of the k nearest other samples of every sample of an index.

    The sample itself is left out by its row, not by its place: with duplicates it need not come first.

    Parameters
    ----------
    k
        Number of other samples; all n - 1 where it is larger.

    Yields
    ------
    (rows, distances, indices)
        As `NeighbourIndex.blocks`, min(k, n - 1) columns.
    """
    k = min(at_least_one("k", k), index.n - 1)
    around = index.blocks(index.reference, k + 1, threads=threads, device=device, max_elements=max_elements)
    for rows, distances, indices in around:
        others = indices != np.arange(rows.start, rows.stop)[:, None]
        # A sample with more than k duplicates in earlier rows is not among its own neighbours: the last one goes.
        others[others.all(axis=1), -1] = False
        yield rows, distances[others].reshape(len(others), k), indices[others].reshape(len(others), k)


def finite_rows(matrix: Rows, rows: slice | None = None, *, name: str) -> F32:
    """Rows of a matrix as C-contiguous float32, checked.

    Raises
    ------
    InputError
        For a matrix that is not two-dimensional or numeric, or holds NaN, infinity or values beyond 1e30.
    """
    matrix = checked_matrix(matrix, name)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            values = take_rows(matrix, rows)
    except (TypeError, ValueError) as why:
        raise InputError(f"{name} does not hold numbers: {why}", remedy="give a numeric matrix") from None
    for block in row_blocks(*values.shape):
        fine = np.abs(values[block]) <= _LARGEST
        if not fine.all():
            row, column = np.argwhere(~fine)[0]
            before = block.start + ((rows.start or 0) if rows else 0)
            raise InputError(
                f"{name} holds {values[block][row, column]} in row {before + row}, column {column}",
                remedy="leave such samples out or replace the values: they must be finite and below 1e30",
            )
    return values


def at_least_one(name: str, value: int) -> int:
    """Check a whole number of 1 or more."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise InputError(f"{name} is {value!r}", remedy="give a whole number of 1 or more")
    return number
