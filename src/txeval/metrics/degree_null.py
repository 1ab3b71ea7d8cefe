"""A null for known relationships that keeps how many of them every gene has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from txeval.compute.arrays import F64, Ints
from txeval.compute.jit import jit
from txeval.compute.random import stream
from txeval.errors import InputError, NotComputable
from txeval.metrics.relationships import KnownLinks, RelationMap

__all__ = ["DegreeNull", "degree_null", "swapped_links"]

#: Swaps that are tried before the first network, per link; between networks one per link is tried.
_BURN_IN = 10
#: Up to so many genes are swapped: a table of all pairs is kept.
MAX_GENES = 30_000


@dataclass(frozen=True)
class DegreeNull:
    """Scores of random networks in which every gene has as many links as in the known one.

    Attributes
    ----------
    low, high
        Tail -> (draws,) share of the links below the low and above the high threshold.
    auroc, average_precision
        (ranking_draws,) float64.
    moved
        Share of the known links that a random network does not have, mean over draws: 0 where nothing can be swapped.
    """

    low: dict[float, F64]
    high: dict[float, F64]
    auroc: F64
    average_precision: F64
    moved: float


@jit
def _swap(first: Any, second: Any, linked: Any, picks: Any) -> None:
    """Try to exchange the ends of pairs of links, in place; a swap that would repeat a link is not made."""
    for t in range(len(picks)):
        i, j = picks[t, 0], picks[t, 1]
        a, b = first[i], second[i]
        # Either end of the second link, so that every exchange can be reached.
        if picks[t, 2] == 0:
            c, d = first[j], second[j]
        else:
            c, d = second[j], first[j]
        if i == j or a == d or c == b or linked[a, d] or linked[c, b]:
            continue
        linked[a, b] = linked[b, a] = False
        linked[c, d] = linked[d, c] = False
        linked[a, d] = linked[d, a] = True
        linked[c, b] = linked[b, c] = True
        second[i] = d
        first[j], second[j] = c, b


def swapped_links(links: KnownLinks, n_genes: int, *, draws: int, seed: int = 0) -> Iterator[tuple[Ints, Ints]]:
    """Random networks with the degrees of the known one, by Markov chain.

    The ends of two random links are exchanged where no link repeats or joins a gene to itself; ten tries per link come
    first, then one per link before every network. The chain is symmetric, so that its stationary law is uniform over
    networks that can be reached (Maslov and Sneppen, Science 296, 910, 2002).

    Yields
    ------
    (first, second)
        (m,) gene numbers with first < second, in the order of the pairs.
    """
    if n_genes > MAX_GENES:
        raise NotComputable(
            f"a null of degrees keeps a table of {n_genes:,} x {n_genes:,} genes; {MAX_GENES:,} at most"
        )
    m = len(links)
    first, second = links.first.copy(), links.second.copy()
    linked = np.zeros((n_genes, n_genes), dtype=np.bool_)
    linked[first, second] = linked[second, first] = True
    rng = stream(seed, "relationships", "degree", m)
    for draw in range(draws):
        tries = m * (_BURN_IN if draw == 0 else 1)
        for start in range(0, tries, 1_000_000):
            size = min(1_000_000, tries - start)
            picks = np.column_stack([rng.integers(m, size=(size, 2)), rng.integers(2, size=size)])
            _swap(first, second, linked, picks)
        a, b = np.minimum(first, second), np.maximum(first, second)
        order = np.argsort(a * n_genes + b, kind="stable")
        yield a[order], b[order]


def degree_null(
    relation_map: RelationMap,
    links: KnownLinks,
    tails: Sequence[float],
    *,
    draws: int = 200,
    ranking_draws: int = 50,
    seed: int = 0,
) -> DegreeNull:
    """Recall in both tails, AUROC and average precision of random networks with the known one's degrees.

    Genes that many relationships name are often genes of strong effect, whose cosines lie far from 0: a recall above
    that of relabelled genes may say no more than that. Networks that keep each gene's number of links have that
    advantage too.

    Parameters
    ----------
    relation_map, links
        The map and its known relationships.
    tails
        Shares of the pairs on each side.
    draws, ranking_draws
        Random networks, and how many of them are ranked.
    seed
        Of the chain.

    Raises
    ------
    NotComputable
        Without a relationship, or where every pair is one.
    """
    if draws < 1 or ranking_draws < 0:
        raise InputError(f"draws is {draws}, ranking_draws {ranking_draws}", remedy="give 1 or more, 0 or more")
    if not len(links):
        raise NotComputable("none of the known relationships has both genes in the map")
    low = {tail: np.empty(draws) for tail in tails}
    high = {tail: np.empty(draws) for tail in tails}
    ranked: list[tuple[float, float]] = []
    known = links.first * relation_map.n_genes + links.second
    kept = 0
    for draw, (first, second) in enumerate(swapped_links(links, relation_map.n_genes, draws=draws, seed=seed)):
        random = KnownLinks(first, second, len(links), 0, 0, 0)
        cosine = relation_map.cosine(random)
        for tail in tails:
            below, above = relation_map.thresholds(tail)
            low[tail][draw], high[tail][draw] = (cosine < below).mean(), (cosine > above).mean()
        if draw < ranking_draws:
            ranked.append(relation_map.ranking(random))
        kept += int(np.isin(first * relation_map.n_genes + second, known, assume_unique=True).sum())
    table = np.asarray(ranked, dtype=np.float64).reshape(-1, 2)
    return DegreeNull(low, high, table[:, 0], table[:, 1], 1 - kept / (draws * len(links)))
