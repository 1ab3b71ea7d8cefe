"""Level 5: known relationships between genes among the most similar and most opposite pairs of a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from txeval.compute.arrays import F64, Bools, Ints, Strings
from txeval.compute.groups import checked_matrix, encode, read_rows
from txeval.compute.intervals import Units
from txeval.compute.jit import jit
from txeval.compute.pairs import (
    Extremes,
    extremes,
    pair_contributions,
    pair_cosines,
    pair_position,
    ranking_scores,
    tail_thresholds,
)
from txeval.compute.random import stream
from txeval.errors import InputError, NotComputable

__all__ = ["KnownLinks", "RelationMap", "Relabelling", "Side", "relationship_recall"]

#: Predicted links: the most opposite pairs, the most similar ones, or both.
Side = Literal["both", "low", "high"]


@dataclass(frozen=True)
class KnownLinks:
    """Known relationships that a map can be asked about: both genes in it, no self links, each pair once.

    Attributes
    ----------
    first, second
        (m,) gene numbers in the map, first < second, sorted.
    n_given, n_outside, n_self, n_repeated
        Rows of the database, and how many were left out because a gene is not in the map, because they link a gene
        with itself, or because the pair came before (in either direction).
    """

    first: Ints
    second: Ints
    n_given: int
    n_outside: int
    n_self: int
    n_repeated: int

    def __len__(self) -> int:
        return len(self.first)

    @property
    def left_out(self) -> dict[str, int]:
        """Reason -> number of rows."""
        counts = {
            "relationships with a gene outside the map": self.n_outside,
            "self links": self.n_self,
            "relationships listed before": self.n_repeated,
        }
        return {reason: count for reason, count in counts.items() if count}


@dataclass(frozen=True)
class Relabelling:
    """Recall of the same relationships after random relabelling of the genes.

    Attributes
    ----------
    expected
        Mean over all relabellings, exactly: the share of all pairs that are predicted links.
    low, high
        2.5 % and 97.5 % quantiles of the draws.
    recalls
        (draws,) float64.
    by_side
        (2, draws): the part of the links among the most opposite, and among the most similar pairs.
    """

    expected: float
    low: float
    high: float
    recalls: F64
    by_side: F64


@jit
def _relabelled_positions(order: Any, first: Any, second: Any, n: int, out: Any) -> None:
    """Positions of the pairs that links join after a relabelling; see `pair_position`."""
    for i in range(len(first)):
        one, other = np.int64(order[first[i]]), np.int64(order[second[i]])
        a, b = min(one, other), max(one, other)
        out[i] = ((a * (2 * n - a - 1)) >> 1) + (b - a - 1)


@jit
def _count_outside(values: Any, bounds: Any, counts: Any) -> None:
    """Count the values below and above every pair of bounds (t, 2) into counts (t, 2)."""
    for t in range(len(bounds)):
        below, above = 0, 0
        for i in range(len(values)):
            below += values[i] < bounds[t, 0]
            above += values[i] > bounds[t, 1]
        counts[t, 0], counts[t, 1] = below, above


class RelationMap:
    """Cosine similarity of all pairs of genes, computed once for several databases and tails.

    Genes are sorted by name, so that nothing depends on the order in which they come.

    Parameters
    ----------
    X
        (g, d) one row per gene.
    genes
        (g,) distinct names.

    Raises
    ------
    InputError
        For lengths that differ, NaN, or names that repeat.
    NotComputable
        For fewer than two genes.
    """

    def __init__(self, X: Any, genes: Any) -> None:
        matrix = checked_matrix(X)
        codes, names = encode(genes, matrix.shape[0], name="genes")
        if len(names) < len(codes):
            counts = np.bincount(codes)
            twice = int(counts.argmax())
            raise InputError(
                f"gene {str(names[twice])!r} has {counts[twice]} rows ({int((counts > 1).sum())} names repeat)",
                remedy="give one row per gene, such as the mean of its rows",
            )
        if len(names) < 2:
            raise NotComputable(f"a map of {len(names)} gene(s) has no pairs")
        self.genes: Strings = names
        order = np.empty(len(codes), dtype=np.int64)
        order[codes] = np.arange(len(codes))
        self.cosines: npt.NDArray[Any] = pair_cosines(read_rows(matrix, order))
        self._thresholds: dict[float, tuple[float, float]] = {}
        self._predicted: dict[float, tuple[int, int]] = {}
        # Kept by the links themselves: several scores ask for the same.
        self._extremes: dict[int, tuple[KnownLinks, Extremes]] = {}
        self._hits: dict[tuple[int, int, int], tuple[KnownLinks, dict[float, F64]]] = {}
        self._orders: tuple[tuple[int, int], npt.NDArray[np.int32]] | None = None

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return len(self.genes)

    @property
    def n_pairs(self) -> int:
        """Number of pairs of different genes."""
        return len(self.cosines)

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.genes)

    @cached_property
    def _sorted(self) -> npt.NDArray[Any]:
        return np.sort(self.cosines)

    def thresholds(self, tail: float) -> tuple[float, float]:
        """Cosines below and above which a pair is a predicted link; see `txeval.compute.pairs.tail_thresholds`."""
        if not 0 < tail <= 0.5:
            raise InputError(f"tail is {tail}", remedy="give the share of pairs on each side, above 0 and up to 0.5")
        if tail not in self._thresholds:
            self._thresholds[tail] = tail_thresholds(self.cosines, tail)
        return self._thresholds[tail]

    def n_predicted(self, tail: float, side: Side = "both") -> int:
        """Number of pairs that are predicted links, among the most similar ("high") or most opposite ("low") ones."""
        if tail not in self._predicted:
            low, high = self.thresholds(tail)
            self._predicted[tail] = (
                int(np.count_nonzero(self.cosines < low)),
                int(np.count_nonzero(self.cosines > high)),
            )
        below, above = self._predicted[tail]
        return {"both": below + above, "low": below, "high": above}[side]

    def links(self, relations: Any) -> KnownLinks:
        """Known relationships between genes of the map.

        Parameters
        ----------
        relations
            Frame whose first two columns are names, array (m, 2), or two sequences of names. Names are compared as
            they are, with their case.
        """
        a, b = _two_columns(relations)
        index = self._index
        first, second = index.get_indexer(pd.Index(a)), index.get_indexer(pd.Index(b))
        inside = (first >= 0) & (second >= 0)
        itself = inside & (first == second)
        usable = inside & ~itself
        low = np.minimum(first[usable], second[usable]).astype(np.int64)
        high = np.maximum(first[usable], second[usable]).astype(np.int64)
        distinct = np.unique(low * self.n_genes + high)
        return KnownLinks(
            first=distinct // self.n_genes,
            second=distinct % self.n_genes,
            n_given=len(a),
            n_outside=int((~inside).sum()),
            n_self=int(itself.sum()),
            n_repeated=int(usable.sum()) - len(distinct),
        )

    def cosine(self, links: KnownLinks) -> F64:
        """(m,) cosine of each known relationship."""
        return self.cosines[pair_position(links.first, links.second, self.n_genes)].astype(np.float64)

    def hits(self, links: KnownLinks, tail: float, side: Side = "both") -> Bools:
        """(m,) whether each known relationship is a predicted link, on one side or either."""
        low, high = self.thresholds(tail)
        cosine = self.cosine(links)
        return np.asarray(((cosine < low) & (side != "high")) | ((cosine > high) & (side != "low")), dtype=bool)

    def recall(self, links: KnownLinks, tail: float) -> float:
        """Share of the known relationships that are predicted links (0 .. 1; chance about twice the tail).

        Raises
        ------
        NotComputable
            Where no relationship has both genes in the map.
        """
        self._require(links)
        return float(self.hits(links, tail).mean())

    def table(self, links: KnownLinks, tails: Sequence[float] = (0.05,)) -> pd.DataFrame:
        """One row per known relationship.

        Returns
        -------
        pandas.DataFrame
            gene_a, gene_b, cosine, rank (mid-rank of the cosine among all pairs, 0 .. 1), and per tail a column
            `link_<tail in percent>`: "low", "high" or "".
        """
        value = self.cosines[pair_position(links.first, links.second, self.n_genes)]
        order = np.argsort(value, kind="stable")
        doubled = np.empty(len(value), dtype=np.int64)
        doubled[order] = sum(np.searchsorted(self._sorted, value[order], side=side) for side in ("left", "right"))
        frame = pd.DataFrame(
            {
                "gene_a": self.genes[links.first],
                "gene_b": self.genes[links.second],
                "cosine": value.astype(np.float64),
                "rank": doubled / (2 * self.n_pairs),
            }
        )
        for tail in tails:
            low, high = self.thresholds(tail)
            frame[f"link_{100 * tail:g}"] = np.select([value < low, value > high], ["low", "high"], default="")
        return frame

    def relabelled(self, links: KnownLinks, tail: float, *, draws: int = 1000, seed: int = 0) -> Relabelling:
        """Recall under random relabelling of the genes.

        The network of known relationships stays as it is, with every gene's number of links; which gene of the map
        stands where in it is random. The same relabellings serve every database and tail.
        """
        self._require(links)
        hits = self._relabelled_hits(links, tail, draws, seed)
        recalls = hits.sum(axis=0) / len(links)
        below, above = np.quantile(recalls, [0.025, 0.975]) if draws else (np.nan, np.nan)
        expected = self.n_predicted(tail) / self.n_pairs
        return Relabelling(expected, float(below), float(above), recalls, hits / len(links))

    def _relabelled_hits(self, links: KnownLinks, tail: float, draws: int, seed: int) -> F64:
        """(2, draws) links below and above the thresholds in every draw; of all tails asked for so far at once."""
        kept, hits = self._hits.setdefault((id(links), draws, seed), (links, {}))
        if tail not in hits:
            self.thresholds(tail)
            tails = [one for one in self._thresholds if one not in hits]
            bounds = np.asarray([self._thresholds[one] for one in tails])
            found = np.zeros((draws, len(tails), 2))
            place, values = np.empty(len(kept), dtype=np.int64), np.empty(len(kept), dtype=self.cosines.dtype)
            for order, counts in zip(self._relabellings(draws, seed), found, strict=True):
                _relabelled_positions(order, kept.first, kept.second, self.n_genes, place)
                # Faster than a compiled loop, which would use the processor's gather instructions.
                self.cosines.take(place, out=values, mode="clip")
                _count_outside(values, bounds, counts)
            hits.update({one: found[:, number].T for number, one in enumerate(tails)})
        return hits[tail]

    def _relabellings(self, draws: int, seed: int) -> npt.NDArray[np.int32]:
        """(draws, n_genes) permutations of the genes."""
        if self._orders is None or self._orders[0] != (draws, seed):
            rng = stream(seed, "relationships", "relabelling")
            orders = np.empty((draws, self.n_genes), dtype=np.int32)
            for row in orders:
                row[:] = rng.permutation(self.n_genes)
            self._orders = (draws, seed), orders
        return self._orders[1]

    def _extremes_of(self, links: KnownLinks) -> Extremes:
        self._require_negatives(links)
        if id(links) not in self._extremes:
            place = pair_position(links.first, links.second, self.n_genes)
            self._extremes[id(links)] = links, extremes(self._sorted, self.cosines[place])
        return self._extremes[id(links)][1]

    def ranking(self, links: KnownLinks) -> tuple[float, float]:
        """AUROC and average precision of the known relationships against all other pairs.

        Pairs are ranked by how far their cosine's percentile lies from the middle: strong similarity and strong
        opposition both count, as they do for the recall. Both are lower bounds, since the databases are incomplete.

        Returns
        -------
        (auroc, average_precision)
            0 .. 1; chance is 0.5 and len(links) / n_pairs.
        """
        return ranking_scores(self._extremes_of(links))

    def units(self, links: KnownLinks, tail: float, side: Side = "both") -> Units:
        """Contributions to the recall by pairs of genes."""
        return Units.pairs("gene", self.genes, links.first, links.second, self.hits(links, tail, side))

    def ranking_units(self, links: KnownLinks) -> tuple[Units, Units]:
        """Contributions to the AUROC and to the average precision by pairs of genes; see `pair_contributions`."""
        wins, precision = pair_contributions(self._extremes_of(links))
        return (
            Units.pairs("gene", self.genes, links.first, links.second, wins),
            Units.pairs("gene", self.genes, links.first, links.second, precision),
        )

    def _require_negatives(self, links: KnownLinks) -> None:
        self._require(links)
        if len(links) == self.n_pairs:
            raise NotComputable("every pair of the map is a known relationship: there is nothing to rank them against")

    def _require(self, links: KnownLinks) -> None:
        if not len(links):
            raise NotComputable(
                f"none of the {links.n_given} known relationships has both genes in the map ({self.n_genes} genes)"
            )


def _two_columns(relations: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    if isinstance(relations, pd.DataFrame):
        if relations.shape[1] < 2:
            raise InputError(
                f"the relations have columns {', '.join(map(str, relations.columns))}",
                remedy="give two columns of names",
            )
        return relations.iloc[:, 0].to_numpy(dtype=object), relations.iloc[:, 1].to_numpy(dtype=object)
    if isinstance(relations, tuple) and len(relations) == 2:
        a, b = (np.asarray(list(side), dtype=object) for side in relations)
        if len(a) != len(b):
            raise InputError(f"the two columns of the relations have lengths {len(a)} and {len(b)}")
        return a, b
    pairs = np.asarray(relations, dtype=object)
    if pairs.size == 0:
        return np.empty(0, dtype=object), np.empty(0, dtype=object)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise InputError(f"the relations have shape {pairs.shape}", remedy="give two columns of names")
    return pairs[:, 0], pairs[:, 1]


def relationship_recall(X: Any, genes: Any, relations: Any, *, tail: float = 0.05) -> dict[str, Any]:
    """Recall of known relationships among the most similar and most opposite pairs of genes.

    Celik et al. 2024 (doi:10.1371/journal.pcbi.1012463). The cosines of all M pairs of genes are ranked; a pair is a
    predicted link where its right-side rank is at most `tail` or its left-side rank at least 1 - `tail`, as fractions
    of M.

    Parameters
    ----------
    X
        (g, d) one row per gene, such as the mean embedding of its perturbation; a zero row has cosine 0.
    genes
        (g,) distinct names.
    relations
        Frame whose first two columns are names, array (m, 2), or a tuple of two sequences. Used are those with both
        genes in the map, no self links, A-B and B-A once; names are compared with their case.
    tail
        Share of the pairs on each side, above 0 and up to 0.5.

    Returns
    -------
    dict
        `recall` (0 .. 1, chance about 2 x tail), `n_relations` used, `n_pairs`, `low` and `high` (the cosines outside
        of which a pair is a predicted link), `n_predicted`.

    Raises
    ------
    InputError
        For lengths that differ, NaN, names that repeat, a tail out of range.
    NotComputable
        Where no relationship has both genes in the map.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[1.0, 0], [1, 0.1], [0, 1], [-1, 0.3]])
    >>> relationship_recall(X, ["A", "B", "C", "D"], [("A", "B"), ("B", "A"), ("A", "C")], tail=0.2)["recall"]
    0.5
    """
    relation_map = RelationMap(X, genes)
    links = relation_map.links(relations)
    recall = relation_map.recall(links, tail)
    low, high = relation_map.thresholds(tail)
    return {
        "recall": recall,
        "n_relations": len(links),
        "n_pairs": relation_map.n_pairs,
        "low": low,
        "high": high,
        "n_predicted": relation_map.n_predicted(tail),
    }
