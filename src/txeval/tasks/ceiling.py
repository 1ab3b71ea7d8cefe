"""Ceilings: half of each perturbation's samples held against the other half, which only noise tells apart.

Each function gives the inputs under which a level scores its ceiling; the level itself computes as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from txeval.compute.arrays import Bools, Ints, Strings
from txeval.data.samples import Samples
from txeval.errors import NotComputable
from txeval.tasks.base import TaskInputs
from txeval.tasks.blocks import RowSubset, subset

__all__ = ["HALVES_OF_TEST", "every_halving", "mixed_batches", "replicated_links", "shared_split"]

#: What the levels that learn from train and ask about test hold against each other.
HALVES_OF_TEST = (
    "each half of a perturbation's test samples joins train in turn and the other half is asked, so that what is asked "
    "finds replicates of its own batch. All test samples are asked, as of a model; where a batch has about one sample "
    "of each perturbation a half holds no replicate, and the ceiling is no higher than the score of what it is built on"
)

#: Links of one half (and database and cell line) that are asked of the other, at most.
MAX_LINKS = 20_000


def first_half(samples: Samples, rows: Ints, rng: np.random.Generator) -> Bools:
    """Mark a random half of the samples of each perturbation, batch by batch as evenly as can be.

    They are drawn by their place in `rows`. Where a perturbation has one sample per batch, half of its batches are
    marked.

    Returns
    -------
    (len(rows),) flags.
    """
    drawn = rng.permutation(len(rows))
    label = samples.perturbation[rows]
    order = np.lexsort((drawn, samples.batch[rows], label))
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    place = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    begin = rng.integers(0, 2, size=len(samples.perturbations))
    first = np.empty(len(rows), dtype=bool)
    first[order] = (place + begin[label[order]]) % 2 == 0
    return first


def shared_split(asked: str) -> Callable[[TaskInputs], TaskInputs]:
    """Each half of the samples that are asked about joins the train split in turn, and the other half is asked.

    Train and what is asked then share their batches and their perturbations, and every sample that a model is asked
    about is asked once: the ceiling has the units of a model's score.

    Parameters
    ----------
    asked
        The split that the level scores: "test" or "heldout".
    """

    def change(inputs: TaskInputs) -> TaskInputs:
        rows = inputs.by_name(inputs.splits[asked])
        if len(rows) < 2:
            raise NotComputable(f"the {asked} split has {len(rows)} samples: there are no halves")
        first = np.zeros(inputs.samples.n, dtype=bool)
        first[rows] = first_half(inputs.samples, rows, inputs.rng("ceiling"))
        return replace(inputs, first_half=first)

    return change


def mixed_batches(inputs: TaskInputs) -> TaskInputs:
    """The test samples of each perturbation dealt to its batches at random, within each cell line.

    The parts of a perturbation then differ by noise alone, and every batch keeps its perturbations in their numbers.
    """
    samples, rows = inputs.samples, inputs.by_name(inputs.splits["test"])
    rng = inputs.rng("ceiling")
    batch = samples.batch.copy()
    line = np.zeros(len(rows), dtype=np.int64) if samples.cell_line is None else samples.cell_line[rows]
    order = np.lexsort((samples.batch[rows], samples.perturbation[rows], line))
    drawn = np.lexsort((rng.permutation(len(rows)), samples.perturbation[rows], line))
    batch[rows[drawn]] = samples.batch[rows[order]]
    return replace(inputs, samples=replace(samples, batch=batch))


def replicated_links(prepare: Callable[[TaskInputs], Any]) -> Callable[[TaskInputs], TaskInputs]:
    """Links that the map of one half of the samples predicts stand for the known ones, the other half is asked.

    Of each database only the genes count: its links are replaced by those predicted between them.

    Parameters
    ----------
    prepare
        Makes the map of a half: the level's own preparation.
    """

    def change(inputs: TaskInputs) -> TaskInputs:
        samples = inputs.samples
        every = inputs.by_name(np.arange(samples.n))
        sizes = np.bincount(samples.perturbation[~samples.is_control])
        if (sizes >= 2).sum() < 2:
            raise NotComputable("halves take two samples of a perturbation, and fewer than two perturbations have them")
        first = np.zeros(samples.n, dtype=bool)
        first[every] = first_half(samples, every, inputs.rng("ceiling"))
        first &= ~samples.is_control
        learn, ask = (_half(inputs, np.flatnonzero(part | samples.is_control)) for part in (first, ~first))
        found = prepare(learn)
        predicted = [_predicted(part.map, found.params.tail) for part in found.maps]
        rng = inputs.rng("ceiling", "links")
        relations = {}
        for name, frame in sorted(inputs.relations.items()):
            of_database = np.unique(frame.iloc[:, :2].to_numpy().astype(str))
            parts = []
            for genes, a, b in predicted:
                known = np.isin(genes, of_database)
                inside = np.flatnonzero(known[a] & known[b])
                if len(inside) > MAX_LINKS:
                    inside = np.sort(rng.choice(inside, MAX_LINKS, replace=False))
                parts.append(pd.DataFrame({"gene_a": genes[a[inside]], "gene_b": genes[b[inside]]}))
            relations[name] = pd.concat(parts).drop_duplicates(ignore_index=True)
        return replace(ask, relations=relations)

    return change


def _predicted(relation_map: Any, tail: float) -> tuple[Strings, Ints, Ints]:
    """Genes of a map, and first and second of its predicted links."""
    low, high = relation_map.thresholds(tail)
    first, second = _pairs(
        np.flatnonzero((relation_map.cosines < low) | (relation_map.cosines > high)), relation_map.n_genes
    )
    return relation_map.genes, first, second


def _half(inputs: TaskInputs, rows: Ints) -> TaskInputs:
    part = subset(inputs.samples, rows), RowSubset(inputs.embedding, rows)
    return replace(inputs, samples=part[0], embedding=part[1], sample_order=None)


def _pairs(position: Ints, n: int) -> tuple[Ints, Ints]:
    """First and second of the pairs at positions of the upper triangle, row by row."""
    # Row i begins at i (2 n - i - 1) / 2; the root is near it, and the steps beside it settle rounding.
    i = np.floor(((2 * n - 1) - np.sqrt((2.0 * n - 1) ** 2 - 8.0 * position)) / 2).astype(np.int64)
    i -= i * (2 * n - i - 1) // 2 > position
    i += (i + 1) * (2 * n - i - 2) // 2 <= position
    return i, position - i * (2 * n - i - 1) // 2 + i + 1


def every_halving(inputs: TaskInputs) -> TaskInputs:
    """Each perturbation's halves against each other, averaged over all ways to halve it.

    A pair of its samples is divided by as many halvings as any other pair, so that the mean cosine between halves, in
    the mean over all halvings, is the mean over all pairs: those that share a batch included. One halving alone would
    have half of the pairs, and find fewer perturbations than a model that has them all.
    """
    return replace(inputs, params=replace(inputs.params, across_batches=False))
