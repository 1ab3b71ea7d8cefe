"""Level 1: how many batches there are, in effect, among a sample's neighbours (iLISI)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from txeval.compute.arrays import F32, F64, Ints, Rows
from txeval.compute.groups import canonical_order, checked_matrix, encode
from txeval.compute.jit import jit
from txeval.compute.neighbours import (
    NeighbourIndex,
    at_least_one,
    equal_rows,
    finite_rows,
    self_neighbours,
    squared_distance,
    tie_remark,
    tied_at,
)
from txeval.compute.pca import principal_axes
from txeval.compute.random import stream
from txeval.errors import InputError, NotComputable

__all__ = ["IlisiScores", "ilisi", "ilisi_scores"]

#: The paper reduces embeddings to at least so many components, and to as many as reach this share of the variance.
PAPER_COMPONENTS = 32
PAPER_VARIANCE = 0.9


@dataclass(frozen=True)
class IlisiScores:
    r"""iLISI per sample, and what it was computed with.

    Attributes
    ----------
    scores
        (n,) float64, 1 to the number of batches.
    lent
        (n_batches,) float64, sums to 0: what each batch adds to the sum of all scores by being around, in the linear
        approximation. A batch is in the score twice, as the batch of samples and as that of neighbours: an interval
        needs both. With q the shares of the batches among the neighbours of i, :math:`N = \sum_j p_j^2` what these
        give by being finitely many, which no batch changes, and :math:`a_b = (q_b^2 - \sum_{j \in b} p_j^2) / (1 - N)`
        the probability that two different neighbours are both of b (A in all): :math:`-s_i^2 (1 - N) (a_b - 2 q_b A +
        A / B)`, the derivative in the number of batches like b at B batches in all.
    expected, expected_lent
        The same under perfect mixing: means over random relabellings of the samples with the same batch sizes, on the
        same neighbours and weights. Empty where none was asked for.
    n_neighbours
        Other samples that were weighted for each sample.
    perplexity
        Effective number of neighbours that the weights were fitted to.
    components
        Dimensions that distances were taken in.
    notes
        What differs from what was asked for.
    """

    scores: F64
    lent: F64
    expected: F64
    expected_lent: F64
    n_neighbours: int
    perplexity: int
    components: int
    notes: tuple[str, ...] = ()


@partial(jit, inlined=True)
def _weights(beta: float, distances: Any, bits: Any, p: Any) -> tuple[float, float]:
    """exp(-beta d) of distances into p: their sum, and the sum weighted by the distances.

    Written out (2^k times a Taylor polynomial on half of ln 2, 1e-15 relative) because a loop with calls of exp does
    not vectorise. `bits` has room for as many 64-bit integers; what would be below 2^-1022 becomes about that.
    """
    total = 0.0
    weighted = 0.0
    for j in range(len(distances)):
        x = -beta * distances[j]
        power = max(np.floor(x * 1.4426950408889634 + 0.5), -1022.0)
        r = max(x, -708.0) - power * 0.6931471805599453
        # The exponent of a float64 with this power of two.
        bits[j] = (np.int64(power) + 1023) << 52
        tail = 1 / 39916800 + r * (1 / 479001600)
        tail = 1 / 362880 + r * (1 / 3628800 + r * tail)
        tail = 1 / 5040 + r * (1 / 40320 + r * tail)
        tail = 1 / 120 + r * (1 / 720 + r * tail)
        p[j] = 1.0 + r * (1.0 + r * (0.5 + r * (1 / 6 + r * (1 / 24 + r * tail))))
    scale = bits.view(np.float64)
    for j in range(len(distances)):
        value = p[j] * scale[j]
        p[j] = value
        total += value
        weighted += distances[j] * value
    return total, weighted


@jit
def _inverse_simpson(
    values: Any,
    samples: Any,
    indices: Any,
    k: int,
    slots: int,
    tied: Any,
    labels: Any,
    n_batches: int,
    perplexity: Any,
    out: Any,
    lent: Any,
) -> None:
    """1 / sum_c (sum_{j in c} p_j)^2 per sample, p fitted to the perplexity by bisection on beta; adds to `lent`.

    The first k of `indices` (m, >= k) are the neighbours of the m `samples`; a negative sample is left out. The last
    `slots` of the k are drawn at random, without replacement, from tied samples, of which `tied` (1 + r, n_batches)
    are of each batch: the sum of squares is replaced by its expectation over the draws. Distances are taken anew in
    float64: the bisection stops within a tolerance, so that float32 distances would move where it stops, and a score by
    up to 3e-4.
    `labels` (1 + r, n) holds the batches and r relabellings; the scores of the latter are summed into row 1.
    """
    m = len(samples)
    target = np.log(perplexity)
    p, away = np.empty(k), np.empty(k)
    bits = np.empty(k, np.int64)
    share = np.zeros(n_batches)
    squares = np.zeros(n_batches)
    for at in range(m):
        i = samples[at]
        if i < 0:
            continue
        # Subtracting the smallest distance leaves p and its entropy as they are, and keeps the sum above 0.
        nearest = np.inf
        for j in range(k):
            away[j] = np.sqrt(squared_distance(values[i], values[indices[at, j]]))
            nearest = min(nearest, away[j])
        beta, low, high = 1.0, -np.inf, np.inf
        for j in range(k):
            away[j] -= nearest
        for step in range(51):
            total, weighted = _weights(beta, away, bits, p)
            difference = np.log(total) + beta * weighted / total - target
            if abs(difference) < 1e-5 or step == 50:
                break
            if difference > 0:
                low = beta
                beta = beta * 2 if high == np.inf else (beta + high) / 2
            else:
                high = beta
                beta = beta / 2 if low == -np.inf else (beta + low) / 2
        for r in range(len(labels)):
            for j in range(k - slots):
                c = labels[r, indices[at, j]]
                weight = p[j] / total
                share[c] += weight
                squares[c] += weight * weight
            spread = 0.0
            if slots:
                # How many of the slots a batch gets is hypergeometric. Its variance is subtracted from `squares`, so
                # that `both` below is the expectation of the pairs of different neighbours.
                weight = p[k - 1] / total
                size = 0.0
                for c in range(n_batches):
                    size += tied[r, c]
                for c in range(n_batches):
                    mean = slots * (tied[r, c] / size)
                    variance = weight * weight * mean * (1.0 - tied[r, c] / size) * ((size - slots) / (size - 1.0))
                    share[c] += weight * mean
                    squares[c] += weight * weight * mean - variance
                    spread += variance
            simpson = 0.0
            alone = 0.0
            for c in range(n_batches):
                simpson += share[c] ** 2
                alone += squares[c]
            score = max(1.0, 1.0 / (simpson + spread))
            row = min(r, 1)
            out[row, i] += score
            for c in range(n_batches):
                both = share[c] ** 2 - squares[c]
                rest = simpson - alone
                lent[row, c] -= score * score * (both - 2.0 * share[c] * rest + rest / n_batches)
                share[c] = 0.0
                squares[c] = 0.0


def _score_tied(
    index: NeighbourIndex,
    query: F32,
    members: Ints,
    k: int,
    labels: Ints,
    n_batches: int,
    perplexity: float,
    scores: F64,
    lent: F64,
) -> None:
    """Score samples of equal values, whose k-th neighbour ties with others that are not among the k nearest."""
    # Each sample is its own neighbour; at distance 0 it is one of those that tie.
    found = index.neighbourhood(query, k + 1)
    itself_tied = found.distance == 0
    slots = k if itself_tied else k + 1 - len(found.rows)
    tied = np.stack([np.bincount(row[found.tied], minlength=n_batches) for row in labels]).astype(np.float64)
    # Distances that are equal in float32 may differ by rounding: all take the smallest, whatever the order of the file.
    last = np.full(slots, found.tied[0])
    every = np.arange(len(labels))
    for i in members:
        tied[every, labels[:, i]] -= itself_tied
        indices = np.concatenate([found.rows[found.rows != i], last])[None]
        _inverse_simpson(
            index.reference, np.array([i]), indices, k, slots, tied, labels, n_batches, perplexity, scores, lent
        )
        tied[every, labels[:, i]] += itself_tied


def _relabelled(X: Rows, codes: Ints, draws: int, seed: int) -> Ints:
    """Batches of the samples, then `draws` random assignments of as many samples to each: (1 + draws, n)."""
    labels = np.empty((1 + draws, len(codes)), dtype=np.int64)
    labels[0] = codes
    if draws:
        # By the order of values, so that the order of the samples does not matter.
        order, pool = canonical_order(X, np.arange(len(codes))), np.sort(codes)
        for r in range(draws):
            labels[1 + r, order] = stream(seed, "batch_mixing", "perfect", r).permutation(pool)
    return labels


def ilisi_scores(
    X: Rows,
    batch: Any,
    *,
    perplexity: int = 83,
    include_self: bool = True,
    components: int | Literal["paper"] | None = None,
    min_components: int | None = None,
    variance: float | None = None,
    mixing_draws: int = 0,
    seed: int = 0,
    threads: int = 1,
    device: str = "cpu",
    max_elements: int | None = None,
) -> IlisiScores:
    """iLISI per sample with what it was computed with.

    Parameters
    ----------
    X, batch, perplexity, include_self, components
        As `ilisi`.
    min_components, variance
        Reduce by PCA to the larger of `min_components` and the number that reaches this share of the variance;
        `components="paper"` is 32 and 0.9.
    mixing_draws, seed
        Random relabellings for the expectation under perfect mixing, and their stream.
    threads, device, max_elements
        As `txeval.compute.neighbours.neighbours`; they do not change the scores.

    Raises
    ------
    InputError
        For NaN or infinity in `X`, a wrong number of labels, or parameters out of range.
    NotComputable
        For fewer than three neighbours: there is no perplexity then.
    """
    matrix = checked_matrix(X)
    n = matrix.shape[0]
    codes, batches = encode(batch, n, name="batch")
    perplexity = at_least_one("perplexity", perplexity)
    if components == "paper":
        min_components, variance = PAPER_COMPONENTS, PAPER_VARIANCE
    elif components is not None:
        min_components = at_least_one("components", components)
    if variance is not None and not 0 < variance <= 1:
        raise InputError(f"variance is {variance}", remedy="give a share above 0 and at most 1")

    notes: list[str] = []
    available = n if include_self else n - 1
    wanted = 3 * perplexity
    if available < wanted:
        if available < 3:
            raise NotComputable(f"iLISI needs at least 3 neighbours; there are {n} samples")
        notes.append(
            f"{available} neighbours instead of {wanted}, perplexity {available // 3} instead of {perplexity}:"
            f" there are {n} samples"
        )
        wanted, perplexity = available, available // 3
    others = wanted - 1 if include_self else wanted

    values = finite_rows(matrix, name="X")
    values = _reduced(values, min_components, variance, max_elements)

    if mixing_draws < 0:
        raise InputError(f"mixing_draws is {mixing_draws}", remedy="give 0 or more")
    labels = _relabelled(matrix, codes, mixing_draws, seed)
    scores = np.zeros((2, n))
    lent = np.zeros((2, len(batches)))
    n_tied = 0
    index = NeighbourIndex(values, name="X")
    no_ties = np.zeros((0, 0))
    # One more than counts shows whether the last one ties with others.
    around = self_neighbours(index, others + 1, threads=threads, device=device, max_elements=max_elements)
    for rows, distances, indices in around:
        samples = np.arange(rows.start, rows.stop)
        tied = rows.start + tied_at(distances, others)
        for query, members in equal_rows(values, tied):
            _score_tied(index, query, members, others, labels, len(batches), float(perplexity), scores, lent)
        samples[tied - rows.start] = -1
        n_tied += len(tied)
        _inverse_simpson(
            values, samples, indices, others, 0, no_ties, labels, len(batches), float(perplexity), scores, lent
        )
    if n_tied:
        notes.append(tie_remark(n_tied))
    none = np.empty(0)
    return IlisiScores(
        scores=scores[0],
        lent=lent[0],
        expected=scores[1] / mixing_draws if mixing_draws else none,
        expected_lent=lent[1] / mixing_draws if mixing_draws else none,
        n_neighbours=others,
        perplexity=perplexity,
        components=int(values.shape[1]),
        notes=tuple(notes),
    )


def _reduced(values: F32, min_components: int | None, variance: float | None, max_elements: int | None) -> F32:
    """Principal components of the values; the values themselves where no dimension would go."""
    d = values.shape[1]
    k = min_components or 1
    if k >= d or (min_components is None and variance is None):
        return values
    axes = principal_axes(values, max_elements=max_elements)
    if variance is not None:
        k = max(k, axes.reaching(variance))
    return values if k >= d else axes.project(values, k, max_elements=max_elements)


def ilisi(
    X: Rows,
    batch: Any,
    *,
    perplexity: int = 83,
    include_self: bool = True,
    components: int | Literal["paper"] | None = None,
) -> F64:
    """Effective number of batches among the neighbours of every sample (integration LISI).

    For each sample i and its nearest neighbours j (euclidean distance d_ij), p_ij = exp(-beta_i d_ij) / sum, with
    beta_i such that the entropy of p_i is log(perplexity) (bisection, tolerance 1e-5, at most 50 steps). The score is
    1 / sum_c (sum_{j in c} p_ij)^2 over batches c.

    Where more neighbours are at the distance of the last one (equal in float32) than there are places left, the sum of
    squares is its expectation over ties broken at random, so that the order of the samples does not matter: with s
    places left for t tied samples, t_c of them of batch c, their number in c is hypergeometric. The one step that is
    not exact is 1 over an expectation for the expectation of 1 over it.

    Parameters
    ----------
    X
        (n, d) representation, finite; used as float32.
    batch
        (n,) batch labels.
    perplexity
        Effective number of neighbours. With fewer samples than the 3 x perplexity neighbours wanted, those that there
        are count, with a third of their number as the perplexity; `ilisi_scores` tells.
    include_self
        True: the sample counts as one of its 3 x perplexity neighbours and is then left out (paper, reference);
        False: 3 x perplexity other samples.
    components
        Reduce by PCA first: to so many components, or "paper": to the larger of 32 and the number that reaches 90 %
        of the variance. None: as it is. Embeddings with fewer dimensions stay as they are.

    Returns
    -------
    (n,) float64
        1 (all neighbours of one batch) to the number of batches (all equally present).

    Raises
    ------
    InputError
        For NaN or infinity in `X`, a wrong number of labels, or parameters out of range.
    NotComputable
        For fewer than three neighbours.

    References
    ----------
    Korsunsky et al., Nature Methods 16, 1289 (2019).

    Examples
    --------
    >>> import numpy as np
    >>> X = np.repeat([[0.0], [9.0]], 50, axis=0)
    >>> scores = ilisi(X, np.repeat(["a", "b"], 50), perplexity=10)
    >>> round(float(scores.mean()), 6)
    1.0
    """
    found = ilisi_scores(X, batch, perplexity=perplexity, include_self=include_self, components=components)
    return found.scores
