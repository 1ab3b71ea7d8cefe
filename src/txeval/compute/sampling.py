"""Negative binomial counts of many genes at once: the cost grows with the values that are not 0, not with the genes."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from txeval.compute.arrays import F32, F64, Ints
from txeval.compute.jit import jit

__all__ = ["CountModel", "sample_counts"]

_TABLE = 256
_buffers = threading.local()

#: Above this, the probability of 0 underflows; the draw is then made of several draws.
_LARGEST_RATE = 500.0


@dataclass(frozen=True)
class CountModel:
    """What the counts of a sample depend on.

    The share of gene j in a sample with base b and program activities z is proportional to
    base[b, j] * exp(sum of z[program] * loading over the members with gene j); gene `target` is multiplied by `factor`
    as well. Its count is negative binomial with mean library * share and variance mean + dispersion[j] * mean^2.

    Attributes
    ----------
    base
        (B, g) float32 expression of each gene without programs, above or at 0, on any common scale.
    gene, program, loading
        (k,) members of programs: column, row of z, float32 loading; at most one member per gene.
    dispersion
        (g,) float64, positive.
    """

    base: F32
    gene: npt.NDArray[np.int32]
    program: npt.NDArray[np.int32]
    loading: F32
    dispersion: F64


@partial(jit, inlined=True)
def _uniform(state: Any) -> Any:
    """Next number in [0, 1) of xoshiro256++ (Blackman and Vigna 2021), whose state is four uint64."""
    s0, s1, s2, s3 = state[0], state[1], state[2], state[3]
    mixed = s0 + s3
    result = ((mixed << np.uint64(23)) | (mixed >> np.uint64(41))) + s0
    shifted = s1 << np.uint64(17)
    s2 ^= s0
    s3 ^= s1
    s1 ^= s2
    s0 ^= s3
    s2 ^= shifted
    s3 = (s3 << np.uint64(45)) | (s3 >> np.uint64(19))
    state[0], state[1], state[2], state[3] = s0, s1, s2, s3
    return np.float64(result >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@partial(jit, inlined=True)
def _exp(x: Any, out: Any, bits: Any) -> None:
    """exp of float32 between -87 and 87 to 2e-7, in loops that vectorise: 2^k times a polynomial (Taylor, degree 6)."""
    for i in range(len(x)):
        y = min(max(x[i] * np.float32(1.4426950408889634), np.float32(-125.0)), np.float32(125.0))
        k = np.floor(y + np.float32(0.5))
        f = (y - k) * np.float32(0.6931471805599453)
        p = np.float32(1 / 24) + f * (np.float32(1 / 120) + f * np.float32(1 / 720))
        p = np.float32(1) + f * (np.float32(1) + f * (np.float32(0.5) + f * (np.float32(1 / 6) + f * p)))
        out[i] = p
        bits[i] = (np.int32(k) + np.int32(127)) << np.int32(23)
    powers = bits.view(np.float32)
    for i in range(len(x)):
        out[i] *= powers[i]


@partial(jit, inlined=True)
def _cumulate(rate: Any, out: Any) -> Any:
    """Running sums in float64, four at a time so that an addition need not wait for the one before."""
    total = 0.0
    g = len(rate)
    j = 0
    while j + 4 <= g:
        a, b = np.float64(rate[j]), np.float64(rate[j + 1])
        c, d = np.float64(rate[j + 2]), np.float64(rate[j + 3])
        ab = a + b
        abc = ab + c
        out[j], out[j + 1], out[j + 2] = total + a, total + ab, total + abc
        total += ab + (c + d)
        out[j + 3] = total
        j += 4
    while j < g:
        total += rate[j]
        out[j] = total
        j += 1
    return total


@partial(jit, inlined=True)
def _count(mu: Any, phi: Any, rate: Any, ratios: Any) -> Any:
    """Smallest k with exp(-rate) <= P(count <= k): inversion, for mu up to `_LARGEST_RATE`."""
    x = mu * phi
    # -log P(count = 0) = log(1 + x) / phi; the series is exact to 1e-9 there and saves a logarithm.
    none = mu * (1.0 - x * (0.5 - x * (1 / 3 - x * (0.25 - x * 0.2)))) if x < 0.02 else math.log1p(x) / phi
    if rate >= none:
        return 0
    # All probabilities are relative to that of 0, which may be too small for a float.
    wanted = math.exp(none - rate)
    odds, step = mu / (1.0 + x), x / (1.0 + x)
    p = odds
    total = 1.0 + p
    k = 1
    while total < wanted:
        # P(k + 1) / P(k) = x / (1 + x) (1 / phi + k) / (k + 1)
        p *= (odds + step * k) * (ratios[k] if k < _TABLE else 1.0 / (k + 1.0))
        total += p
        k += 1
        # Past the mode, terms that no longer change the sum end it: rounding may leave it below what is wanted.
        if p < 1e-17 * total and k > mu:
            break
    return k


@jit
def _sample(
    base: Any,
    gene: Any,
    program: Any,
    loading: Any,
    dispersion: Any,
    base_of: Any,
    z: Any,
    library: Any,
    target: Any,
    factor: Any,
    state: Any,
    columns: Any,
    counts: Any,
    indptr: Any,
) -> None:
    g, k = base.shape[1], len(gene)
    rate, running = np.empty(g, np.float32), np.full(g + 8, np.inf)
    exponent, grown, bits = np.empty(k, np.float32), np.empty(k, np.float32), np.empty(k, np.int32)
    ratios = 1.0 / np.arange(1.0, _TABLE + 1.0)
    n = 0
    for i in range(len(base_of)):
        row = base[base_of[i]]
        for j in range(g):
            rate[j] = row[j]
        for a in range(k):
            exponent[a] = z[i, np.uint32(program[a])] * loading[a]
        _exp(exponent, grown, bits)
        for a in range(k):
            rate[np.uint32(gene[a])] *= grown[a]
        if target[i] >= 0:
            rate[target[i]] *= factor[i]
        total = _cumulate(rate, running)
        scale = library[i] / total if total > 0.0 else 0.0
        if scale < 1e-200:  # nothing to draw, and distances would not be finite
            indptr[i + 1] = n
            continue
        back = 1.0 / scale
        # A Poisson process along the genes, each as long as its mean. The means are at least -log P(count = 0), so that
        # a gene without a point has count 0; in one with a point, exp(-distance to its first point) is uniform above
        # exp(-mean) and inverts the distribution of the count. The next distance starts at the gene's end.
        j, begin = 0, 0.0
        while j < g:
            distance = -math.log(1.0 - _uniform(state)) * back
            goal = begin + distance
            while running[j + 7] <= goal:
                j += 8
            # Counting has no branch that could be guessed wrong.
            passed = 0
            for ahead in range(8):
                passed += running[j + ahead] <= goal
            j += passed
            if j >= g:
                break
            before = running[j - 1] if j else 0.0
            mu = rate[j] * scale
            if mu <= _LARGEST_RATE:
                count = _count(mu, dispersion[j], (goal - before) * scale, ratios)
            else:
                # A negative binomial is the sum of independent ones of the same mean x dispersion.
                pieces = math.ceil(mu / _LARGEST_RATE)
                count = 0
                for _ in range(pieces):
                    rate_of_piece = -math.log(1.0 - _uniform(state))
                    count += _count(mu / pieces, dispersion[j] * pieces, rate_of_piece, ratios)
            if count:
                columns[n] = j
                counts[n] = count
                n += 1
            begin = running[j]
            j += 1
        indptr[i + 1] = n


def sample_counts(
    model: CountModel, base: Ints, z: F32, library: F64, target: Ints, factor: F64, seeds: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Ints]:
    """Draw the counts of m samples.

    Exact: counts have the stated distribution, up to the rounding of float32 means (2e-7 relative).

    Parameters
    ----------
    model
        What they depend on.
    base
        (m,) row of `model.base`.
    z
        (m, q) float32 activity of every program.
    library
        (m,) expected total counts.
    target, factor
        (m,) gene whose expression is multiplied by the factor; -1: none.
    seeds
        (4,) uint64 that the draws depend on, not all 0.

    Returns
    -------
    (counts (nnz,) int32, columns (nnz,) int32 increasing in each row, indptr (m + 1,) int64)
    """
    m, g = len(base), model.base.shape[1]
    columns, counts = _room(m * g)
    indptr = np.zeros(m + 1, np.int64)
    _sample(
        model.base,
        model.gene,
        model.program,
        model.loading,
        model.dispersion,
        base,
        np.ascontiguousarray(z, np.float32),
        library,
        target,
        factor,
        seeds.copy(),
        columns,
        counts,
        indptr,
    )
    n = int(indptr[-1])
    return counts[:n].copy(), columns[:n].copy(), indptr


def _room(size: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Two buffers of each thread: fresh ones for every call would cost as much in page faults as the draws."""
    if len(getattr(_buffers, "columns", ())) < size:
        _buffers.columns, _buffers.counts = np.empty(size, np.int32), np.empty(size, np.int32)
    return _buffers.columns, _buffers.counts
