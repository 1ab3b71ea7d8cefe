"""Sums of euclidean distances between and within sets, by tiles; energy distances of groups to controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from txeval.compute.arrays import BLOCK_ELEMENTS, F64, Ints, Rows, row_blocks
from txeval.compute.devices import exact_products, product_on
from txeval.compute.groups import SetDraws, as_codes, checked_matrix, read_rows
from txeval.compute.jit import jit

__all__ = ["Reference", "distance_sums", "group_energies", "set_energies_reach", "within_sum"]

#: Rows of a tile; fixed, so that a distance is computed by the same calls whatever the size of a reading block.
TILE = 256
#: The same on another device than the CPU.
TILE_ELSEWHERE = 4096
#: A draw of at most so many samples is turned into one matrix of distances that all groups share.
SHARED_SLOTS = 3000

Array = npt.NDArray[Any]


@jit
def _tile(dots: Any, x: Any, y: Any, xx: Any, yy: Any, same: bool, close: Any, sums: Any) -> None:
    """Turn scalar products (m, k) into distances, in place, and write their sums by row."""
    m, k = dots.shape
    zero = close - close
    for i in range(m):
        a = xx[i]
        if same:
            dots[i, i] = a
        near = 0
        total = 0.0
        for j in range(k):
            # No literal numbers here: they would turn float32 lanes into float64 ones.
            scale = a + yy[j]
            square = scale - (dots[i, j] + dots[i, j])
            near += square <= close * scale
            root = np.sqrt(max(square, zero))
            dots[i, j] = root
            total += root
        if near > (1 if same else 0):
            # Differences of large numbers: the few distances that are small beside the norms are computed directly.
            total = 0.0
            for j in range(k):
                exact = float(dots[i, j])
                if exact * exact <= 2 * close * (a + yy[j]):
                    exact = 0.0
                    if not (same and i == j):
                        for f in range(x.shape[1]):
                            gap = np.float64(x[i, f]) - np.float64(y[j, f])
                            exact += gap * gap
                        exact = np.sqrt(exact)
                    dots[i, j] = exact
                total += exact
        sums[i] = total


def _squares(x: Array) -> Array:
    return np.asarray(np.einsum("ij,ij->i", x, x, dtype=np.float64)).astype(x.dtype)


def _close(dtype: Any) -> Any:
    """Squared distance, relative to the squared norms, below which rounding would show."""
    return np.float32(1e-2) if dtype == np.float32 else np.float64(1e-8)


def _tiled_sum(x: Array) -> F64:
    return np.asarray(sum(x[a : a + TILE].sum(axis=0, dtype=np.float64) for a in range(0, len(x), TILE)))


def _distances(x: Array, y: Array, *, same: bool = False, device: str = "cpu") -> tuple[Array, F64]:
    """Distances (m, k) between the rows of two small sets, and their sums by row; products are taken on the device."""
    dots = product_on(device, x, y.T)
    sums = np.empty(len(x))
    xx = _squares(x)
    _tile(dots, x, y, xx, xx if same else _squares(y), same, _close(x.dtype), sums)
    return dots, sums


def _sums_elsewhere(x: torch.Tensor, y: torch.Tensor, *, same: bool = False) -> torch.Tensor:
    """Sums by row of the distances (m, k) between float64 rows, on their device."""
    with exact_products():
        square = (x * x).sum(dim=1)[:, None] + (y * y).sum(dim=1) - 2 * (x @ y.t())
    roots = square.clamp_(min=0).sqrt_()
    if same:
        roots.fill_diagonal_(0)
    return roots.sum(dim=1)


def _tiles_elsewhere(x: Array, device: str) -> list[torch.Tensor]:
    """Rows as float64 on a device, in tiles that are large enough for it."""
    moved = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)).to(device)
    return [moved[a : a + TILE_ELSEWHERE] for a in range(0, len(moved), TILE_ELSEWHERE)]


def distance_sums(x: Array, y: Array, *, device: str = "cpu") -> F64:
    """Sum of the euclidean distances of each row of x (m, d) to all rows of y (k, d): (m,) float64.

    On a device they are float64 throughout, which agrees with the float32 distances of the CPU to about 1e-6.
    """
    if device != "cpu":
        tiles = _tiles_elsewhere(y, device)
        found = [
            torch.stack([_sums_elsewhere(one, other) for other in tiles]).sum(dim=0).cpu().numpy()
            for one in _tiles_elsewhere(x, device)
        ]
        return np.concatenate(found) if found else np.empty(0)
    out = np.empty(len(x))
    for a in range(0, len(x), TILE):
        out[a : a + TILE] = _distances(x[a : a + TILE], y)[1]
    return out


def within_sum(x: Array, *, device: str = "cpu") -> float:
    """Sum of the euclidean distances of all ordered pairs of rows of x (m, d), the diagonal exactly zero."""
    centred = x - (_tiled_sum(x) / len(x)).astype(x.dtype)
    if device != "cpu":
        tiles = _tiles_elsewhere(centred, device)
        whole = torch.zeros((), dtype=torch.float64, device=device)
        for i, one in enumerate(tiles):
            whole += _sums_elsewhere(one, one, same=True).sum()
            for other in tiles[i + 1 :]:
                whole += 2 * _sums_elsewhere(one, other).sum()
        return float(whole)
    total = 0.0
    for a in range(0, len(x), TILE):
        total += float(_distances(centred[a : a + TILE], centred[a : a + TILE], same=True)[1].sum())
        for b in range(a + TILE, len(x), TILE):
            total += 2 * float(_distances(centred[a : a + TILE], centred[b : b + TILE])[1].sum())
    return total


@dataclass(frozen=True)
class Reference:
    """The controls that groups are compared with.

    Attributes
    ----------
    centre
        (d,) float64 mean; distances are computed relative to it.
    points
        (k, d) controls minus `centre`.
    within
        Mean distance of all ordered pairs of controls, a control with itself included.
    device
        Of torch: where distances are computed.
    """

    centre: F64
    points: Array
    within: float
    device: str = "cpu"

    @classmethod
    def of_rows(cls, X: Rows, rows: Ints, *, device: str = "cpu") -> Reference:
        """Read the controls and compute their own term once."""
        points = read_rows(X, rows)
        centre = points.mean(axis=0, dtype=np.float64)
        points = np.ascontiguousarray(points - centre.astype(points.dtype))
        return cls(centre, points, within_sum(points, device=device) / len(points) ** 2, device)

    def mean_distances(self, x: Array) -> F64:
        """Mean distance of each row of x to the controls: (m,) float64."""
        moved = (x - self.centre.astype(x.dtype)).astype(self.points.dtype, copy=False)
        return distance_sums(moved, self.points, device=self.device) / len(self.points)


def group_energies(
    X: Rows,
    codes: Ints,
    n_groups: int,
    reference: Reference,
    *,
    min_samples: int = 1,
    max_elements: int | None = None,
) -> tuple[Ints, F64]:
    r"""Energy distance of every group of samples to the controls.

    .. math:: E = 2 \overline{|x - y|} - \overline{|x - x'|} - \overline{|y - y'|}

    with means over all ordered pairs, a sample with itself included (V-statistics; Székely and Rizzo 2013). The
    published code reports the same number: twice the value of ``geomloss.SamplesLoss("energy")``.

    Parameters
    ----------
    X
        (n, d).
    codes
        (n,) group of each sample; negative: in no group.
    reference
        The controls.
    min_samples
        Smaller groups get NaN.
    max_elements
        Values of X read at once.

    Returns
    -------
    (n, energy)
        (n_groups,) int64 sizes and float64 distances.
    """
    matrix = checked_matrix(X)
    codes = as_codes(codes, matrix.shape[0], n_groups)
    counts = np.bincount(codes[codes >= 0], minlength=n_groups).astype(np.int64)
    energy = np.full(n_groups, np.nan)
    order = np.argsort(codes, kind="stable")
    order = order[np.searchsorted(codes[order], 0) :]
    starts = np.concatenate([[0], np.cumsum(counts)])
    limit = max(TILE, (max_elements or BLOCK_ELEMENTS) // matrix.shape[1])
    wanted = np.flatnonzero(counts >= max(1, min_samples))
    at = 0
    while at < len(wanted):
        # Whole groups are read together as long as they fit; one that does not fit is read by tiles.
        end = at + 1
        while end < len(wanted) and counts[wanted[at : end + 1]].sum() <= limit:
            end += 1
        batch = wanted[at:end]
        if len(batch) == 1 and counts[batch[0]] > limit:
            rows = order[starts[batch[0]] : starts[batch[0] + 1]]
            energy[batch[0]] = _large_energy(matrix, rows, reference)
        else:
            block = read_rows(matrix, np.concatenate([order[starts[g] : starts[g + 1]] for g in batch]))
            ends = np.cumsum(counts[batch])
            for g, b in zip(batch, ends, strict=True):
                x = block[b - counts[g] : b]
                cross = _tiled_cross(x, reference) / len(x)
                energy[g] = 2 * cross - within_sum(x, device=reference.device) / len(x) ** 2 - reference.within
        at = end
    return counts, energy


def _tiled_cross(x: Array, reference: Reference) -> float:
    if reference.device != "cpu":
        return float(reference.mean_distances(x).sum())
    return float(sum(reference.mean_distances(x[a : a + TILE]).sum() for a in range(0, len(x), TILE)))


def _large_energy(X: Rows, rows: Ints, reference: Reference) -> float:
    """Energy of a group that is read by tiles, in the arithmetic of `within_sum`."""
    n = len(rows)
    tiles = [rows[a : a + TILE] for a in range(0, n, TILE)]
    total = np.zeros(X.shape[1])
    dtype: Any = np.float32
    cross = 0.0
    for tile in tiles:
        x = read_rows(X, tile)
        dtype = x.dtype
        total += x.sum(axis=0, dtype=np.float64)
        cross += float(reference.mean_distances(x).sum())
    centre = (total / n).astype(dtype)
    within = 0.0
    for i, tile in enumerate(tiles):
        x = read_rows(X, tile) - centre
        within += float(_distances(x, x, same=True, device=reference.device)[1].sum())
        for other in tiles[i + 1 :]:
            y = read_rows(X, other) - centre
            within += 2 * float(_distances(x, y, device=reference.device)[1].sum())
    return 2 * cross / n - within / n**2 - reference.within


@jit
def _prefix_block_sums(values: Any, starts: Any, out: Any) -> None:
    """Sums of all top-left corners of each (stratum, stratum) block of a square matrix."""
    for s in range(len(starts) - 1):
        for i in range(starts[s], starts[s + 1]):
            for t in range(len(starts) - 1):
                run = 0.0
                for j in range(starts[t], starts[t + 1]):
                    run += values[i, j]
                    out[i, j] = run
            if i > starts[s]:
                for j in range(values.shape[1]):
                    out[i, j] += out[i - 1, j]


@jit
def _shared_within(prefix: Any, indptr: Any, last: Any, out: Any) -> None:
    for g in range(len(indptr) - 1):
        total = 0.0
        for e in range(indptr[g], indptr[g + 1]):
            row = last[e]
            half = 0.0
            for f in range(indptr[g], e):
                half += prefix[row, last[f]]
            total += 2 * half + prefix[row, row]
        out[g] = total


@jit
def _shared_cross(values: Any, starts: Any, indptr: Any, last: Any, out: Any) -> None:
    prefix = np.empty(len(values))
    for s in range(len(starts) - 1):
        run = 0.0
        for i in range(starts[s], starts[s + 1]):
            run += values[i]
            prefix[i] = run
    for g in range(len(indptr) - 1):
        total = 0.0
        for e in range(indptr[g], indptr[g + 1]):
            total += prefix[last[e]]
        out[g] = total


def set_energies_reach(
    X: Rows,
    sets: SetDraws,
    reference: Reference,
    observed: F64,
    *,
    draws: int,
    seed: int,
    shared_slots: int = SHARED_SLOTS,
) -> Ints:
    """Count, per group, the drawn sets whose energy distance to the controls reaches the group's own.

    Parameters
    ----------
    X
        (n, d).
    sets
        Random sets with the composition of each group.
    reference
        The controls.
    observed
        (k,) energy distance of each group.
    shared_slots
        Draws of at most so many samples are turned into one matrix of distances; above, every set is computed alone.
        Both give the same sets and the same counts.

    Returns
    -------
    (k,) int64 between 0 and `draws`.
    """
    # Distances to the controls are needed once per sample, not once per draw.
    cross = np.full(X.shape[0], np.nan)
    for block in row_blocks(len(sets.pool), X.shape[1]):
        rows = np.sort(sets.pool)[block]
        cross[rows] = reference.mean_distances(read_rows(X, rows))
    sizes, last = sets.sizes, sets.last_slots
    reached = np.zeros(len(sizes), dtype=np.int64)
    sum_cross, sum_within = np.empty(len(sizes)), np.empty(len(sizes))
    shared = sets.n_slots <= shared_slots
    own = [] if shared else [sets.slots(g) for g in range(len(sizes))]
    prefix = np.empty((sets.n_slots, sets.n_slots)) if shared else np.empty((0, 0))
    for chunk in sets.draw(draws, seed, "magnitude"):
        for drawn in chunk:
            _shared_cross(cross[drawn], sets.slot_starts, sets.indptr, last, sum_cross)
            if shared:
                x = read_rows(X, drawn)
                x = x - x.mean(axis=0, dtype=np.float64).astype(x.dtype)
                _prefix_block_sums(_distances(x, x, same=True, device=reference.device)[0], sets.slot_starts, prefix)
                _shared_within(prefix, sets.indptr, last, sum_within)
            else:
                for g, slots in enumerate(own):
                    sum_within[g] = within_sum(read_rows(X, drawn[slots]), device=reference.device)
            mean_cross = sum_cross / sizes
            energy = 2 * mean_cross - sum_within / sizes**2 - reference.within
            # Equal sets must count as equal in spite of rounding.
            reached += energy >= observed - 1e-6 * mean_cross
    return reached
