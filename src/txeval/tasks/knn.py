"""Level 4: do neighbours share the perturbation? (kNN classification)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from txeval.compute.arrays import F64, Ints, Strings
from txeval.compute.intervals import Units, adjusted_share_interval, once_of_pairs, with_margins
from txeval.compute.memory import held_rows
from txeval.errors import NotComputable
from txeval.metrics.average_precision import (
    RetrievalNull,
    expected_average_precision,
    joined_retrievals,
    map_table,
    retrieve,
)
from txeval.metrics.consistency import adjust
from txeval.metrics.knn import true_class_ranks
from txeval.tasks.accuracy import Ranked, accuracy, balanced_accuracy, joined, perturbation_table
from txeval.tasks.base import (
    Ceiling,
    Metric,
    Score,
    Sizes,
    Task,
    TaskInputs,
    batch_and_perturbation,
    crossed_units,
)
from txeval.tasks.blocks import Blocks, cell_lines
from txeval.tasks.ceiling import HALVES_OF_TEST, shared_split
from txeval.tasks.subsample import Downsample, stratified_draw

__all__ = ["TASK", "KnnParams"]


@dataclass(frozen=True)
class KnnParams:
    """Parameters of level 4.

    Attributes
    ----------
    k
        Number of neighbours.
    components
        Both sets are reduced by a PCA that is fitted on the reference set; embeddings with fewer dimensions stay.
    max_reference
        Reference sets above this size are down-sampled.
    downsample
        "complement" keeps what the draw leaves, as the published code does.
    retrieval
        Whether the retrieval precision (`map`, `map_significant`) is computed too, controls left out.
    retrieval_null
        "samples": random sets of queries with the same batches; "ranks": random rankings, as in copairs.
    retrieval_draws
        Of that null.
    max_queries
        At most so many queries of the retrieval, in the perturbations' proportions.
    alpha
        A perturbation is retrieved where its adjusted p-value is below.
    blocks
        "cell_line": neighbours within one cell line, where the screen names them.
    """

    k: int = 251
    components: int = 32
    max_reference: int = 100_000
    downsample: Downsample = "drawn"
    retrieval: bool = False
    retrieval_null: RetrievalNull = "samples"
    retrieval_draws: int = 1000
    max_queries: int = 20_000
    alpha: float = 0.05
    blocks: Blocks = "none"

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or self.retrieval_draws < 20 or self.max_queries < 1:
            raise ValueError("alpha must lie between 0 and 1, retrieval_draws be 20 or more, max_queries 1 or more")
        if self.k < 1:
            raise ValueError(f"k is {self.k}; it must be 1 or more")
        if self.components < 1:
            raise ValueError(f"components is {self.components}; it must be 1 or more")
        if self.max_reference < 1:
            raise ValueError(f"max_reference is {self.max_reference}; it must be 1 or more")


@dataclass(frozen=True)
class Precisions:
    """Retrieval precision of every query.

    Attributes
    ----------
    table
        One row per perturbation (and cell line): see `txeval.metrics.average_precision.map_table`.
    values, chance
        (m,) of the queries that have one.
    taken
        Per block its perturbations, and what these take from each other: see `Retrieval`.
    truth
        (m,) their perturbation; `unit_labels`, `unit_codes` as in `Ranked`.
    resolution
        Smallest p-value that the draws can give.
    """

    table: pd.DataFrame
    values: F64
    chance: F64
    taken: tuple[tuple[Ints, F64], ...]
    truth: Ints
    unit_labels: tuple[Strings, Strings]
    unit_codes: tuple[Ints, Ints]
    alpha: float
    resolution: float
    left_out: Mapping[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Neighbourhoods:
    """Ranks with the controls as one more class, and without them on both sides; precisions where asked for."""

    everything: Ranked
    perturbed: Ranked | None
    why_not: str
    retrieval: Precisions | str | None = None


def prepare(inputs: TaskInputs) -> Neighbourhoods:
    """Rank the true class of every test sample by the votes of its neighbours in the train split."""
    params: KnnParams = inputs.params
    samples = inputs.samples
    pairs = inputs.in_turn("test")
    if not pairs or min(map(len, pairs[0])) == 0:
        raise NotComputable("the train or the test split is empty: it takes at least two batches")
    left_out: dict[str, int] = {}
    for i, (reference, queries) in enumerate(pairs):
        if len(reference) > params.max_reference:
            reference = inputs.by_name(reference)
            strata = np.zeros(len(reference), dtype=np.int64)
            kept = stratified_draw(strata, params.max_reference, inputs.rng("knn"), params.downsample)
            left_out["reference samples beyond max_reference"] = len(reference) - len(kept)
            pairs[i] = np.sort(reference[kept]), queries

    # All controls are one class, whatever their labels.
    n_perturbations = len(samples.perturbations)
    control_labels = np.unique(samples.perturbation[samples.is_control])
    code = samples.perturbation.copy()
    if len(control_labels):
        code[samples.is_control] = control_labels[0]
    blocks = cell_lines(samples, params.blocks)

    def ranked(pairs: Sequence[tuple[Ints, Ints]]) -> Ranked:
        parts, lost = [], dict(left_out)
        for ref, query in pairs:
            for block in blocks:
                r, q = block.within(ref), block.within(query)
                if len(r) and len(q):
                    parts.append(_votes(inputs, code, r, q, n_perturbations, block.name))
                elif len(q):
                    reason = f"test samples of cell line {block.name}, which train does not have"
                    lost[reason] = lost.get(reason, 0) + len(q)
        if not parts:
            raise NotComputable("no cell line is in both the train and the test split")
        many = (f"neighbours within each of {len(blocks)} cell lines",) if len(blocks) > 1 else ()
        return replace(joined(parts, many), left_out=lost)

    everything = ranked(pairs)
    alone = [(ref[~samples.is_control[ref]], query[~samples.is_control[query]]) for ref, query in pairs]
    alone = [(ref, query) for ref, query in alone if len(ref) and len(query)]
    if not alone:
        why = "no perturbed sample in the train or the test split"
        return Neighbourhoods(everything, None, why, why if params.retrieval else None)
    found = None
    if params.retrieval:
        try:
            found = _retrieved(inputs, alone, left_out)
        except NotComputable as problem:
            return Neighbourhoods(everything, ranked(alone), "", str(problem))
    return Neighbourhoods(everything, ranked(alone), "", found)


def _votes(inputs: TaskInputs, code: Ints, ref: Ints, query: Ints, n_perturbations: int, line: str) -> Ranked:
    params: KnnParams = inputs.params
    result = true_class_ranks(
        held_rows(inputs.embedding, ref),
        code[ref],
        held_rows(inputs.embedding, query),
        code[query],
        k=params.k,
        components=params.components,
        n_classes=n_perturbations,
        threads=inputs.threads,
        device=inputs.device,
    )
    labels, units = batch_and_perturbation(inputs.samples, query)
    return Ranked(
        rank=result.rank,
        tied=result.tied,
        ahead=result.ahead,
        truth=code[query],
        classes=inputs.samples.perturbations,
        unit_labels=labels,
        unit_codes=units,
        train_counts=np.bincount(code[ref], minlength=n_perturbations),
        notes=tuple(f"{line}: {note}" for note in result.notes) if line else result.notes,
    )


def _retrieved(inputs: TaskInputs, pairs: Sequence[tuple[Ints, Ints]], left_out: Mapping[str, int]) -> Precisions:
    """Rank the perturbed reference samples by their cosine with every query; within cell lines where there are some."""
    params: KnnParams = inputs.params
    samples = inputs.samples
    lost = dict(left_out)
    every = np.concatenate([query for _, query in pairs])
    if len(every) > params.max_queries:
        every = inputs.by_name(every)
        kept = every[stratified_draw(samples.perturbation[every], params.max_queries, inputs.rng("retrieval"))]
        lost["queries beyond max_queries"] = len(every) - len(kept)
        pairs = [(ref, query[np.isin(query, kept)]) for ref, query in pairs]
    tables, parts, taken = [], [], []
    for block in cell_lines(samples, params.blocks):
        inside = [(block.within(ref), block.within(query)) for ref, query in pairs]
        absent = sum(len(query) for ref, query in inside if not len(ref))
        if absent:
            lost[f"queries of cell line {block.name}, which train does not have"] = absent
        inside = [(ref, query) for ref, query in inside if len(ref) and len(query)]
        if not inside:
            continue
        q = np.concatenate([query for _, query in inside])
        # Classes that only the other rows have would cost memory and nothing else.
        classes = np.unique(samples.perturbation[np.concatenate([*(ref for ref, _ in inside), q])])
        truth = np.searchsorted(classes, samples.perturbation[q])
        counts = np.bincount(truth, minlength=len(classes))
        embedded = held_rows(inputs.embedding, q)
        found = joined_retrievals(
            [
                retrieve(
                    held_rows(inputs.embedding, ref),
                    np.searchsorted(classes, samples.perturbation[ref]),
                    held_rows(inputs.embedding, query),
                    np.searchsorted(classes, samples.perturbation[query]),
                    n_classes=len(classes),
                    by_class=params.retrieval_null == "samples",
                    query_weight=1.0 / counts[np.searchsorted(classes, samples.perturbation[query])],
                )
                for ref, query in inside
            ]
        )
        known = np.isfinite(found.values)
        if (~known).any():
            reason = "queries whose perturbation the reference set lacks, or has alone"
            lost[reason] = lost.get(reason, 0) + int((~known).sum())
        if not known.any():
            continue
        table = map_table(
            found,
            embedded,
            truth,
            samples.batch[q],
            samples.perturbations[classes],
            null=params.retrieval_null,
            draws=params.retrieval_draws,
        )
        table.insert(1, "cell_line", block.name)
        tables.append(table[table["n"] > 0])
        chance = expected_average_precision(found.n_positive, found.n_total)
        parts.append((q[known], found.values[known], chance[known]))
        if found.taken is not None:
            taken.append((classes, found.taken))
    if not parts:
        raise NotComputable("no query has both a sample of its perturbation and one of another in the reference set")
    table = pd.concat(tables, ignore_index=True)
    table["p_adjusted"] = adjust(table["p_value"].to_numpy())
    rows, values, chance = (np.concatenate(column) for column in zip(*parts, strict=True))
    labels, units = batch_and_perturbation(samples, rows)
    return Precisions(
        table=table,
        values=values,
        chance=chance,
        taken=tuple(taken),
        truth=samples.perturbation[rows],
        unit_labels=labels,
        unit_codes=units,
        alpha=params.alpha,
        resolution=1.0 / (params.retrieval_draws + 1),
        left_out=lost,
        notes=(f"within each of {len(parts)} cell lines",) if len(parts) > 1 else (),
    )


def _retrieval(found: Neighbourhoods) -> Precisions:
    if not isinstance(found.retrieval, Precisions):
        raise NotComputable(found.retrieval or "the protocol does not ask for it (knn: retrieval)")
    return found.retrieval


def _map(found: Neighbourhoods) -> Score:
    """Mean over perturbations of the mean precision of their queries."""
    precision = _retrieval(found)
    weight = 1.0 / np.bincount(precision.truth)[precision.truth]
    total = weight.sum()
    return Score(
        value=float(precision.values @ weight / total),
        chance=float(precision.chance @ weight / total),
        n_samples=len(precision.values),
        n_groups=len(np.unique(precision.truth)),
        group="perturbation",
        left_out=precision.left_out,
        notes=precision.notes,
        units=_precision_units(precision, weight),
    )


def _precision_units(precision: Precisions, weight: F64) -> Units:
    """Contributions by batch and perturbation: precisions.

    For the interval of the score by itself less what a perturbation takes from others, as for accuracies (see
    `txeval.tasks.accuracy`): a perturbation is in the mean twice, by its queries and by its
    reference samples, which stand before those of others.
    """
    batch, level = (np.unique(codes, return_inverse=True)[1].reshape(-1) for codes in precision.unit_codes)
    own = precision.values * weight
    n = int(level.max()) + 1
    of_perturbation = np.full(int(precision.truth.max()) + 1, -1, dtype=np.int64)
    of_perturbation[precision.truth] = level
    taken, first, second, size = np.zeros(n), [], [], []
    for names, matrix in precision.taken:
        at = np.where(names < len(of_perturbation), of_perturbation[np.minimum(names, len(of_perturbation) - 1)], -1)
        used = np.flatnonzero(at >= 0)
        taken += np.bincount(at[used], weights=matrix[:, used].sum(axis=0), minlength=n)
        rows = len(matrix)
        grid = np.zeros((rows, rows))
        np.add.at(grid.T, used % rows, matrix[:, used].T)
        a, b = np.nonzero(grid)
        first.append(a)
        second.append(b)
        size.append(grid[a, b])
    even = np.bincount(level, weights=weight) / weight.sum()
    moved = np.bincount(level, weights=own) - taken
    moved -= even * moved.sum()
    cells = np.unique(batch * n + level, return_inverse=True)[1].reshape(-1)
    noise = float((np.bincount(cells, weights=own - own.sum() / weight.sum() * weight) ** 2).sum())
    if first and len(precision.taken) == 1:
        names, matrix = precision.taken[0]
        groups = np.zeros(n, dtype=np.int64)
        at = np.flatnonzero(names < len(of_perturbation))
        at = at[of_perturbation[names[at]] >= 0]
        groups[of_perturbation[names[at]]] = at % len(matrix)
        together = np.asarray(np.bincount(groups, weights=moved, minlength=len(matrix)), dtype=np.float64)
        moved *= once_of_pairs(together, first[0], second[0], size[0], at_least=noise)
    sums = even * own.sum() + moved
    values = with_margins(own, weight, (level, batch), (sums, np.bincount(batch, weights=own)))
    return crossed_units(precision.unit_labels, precision.unit_codes, own, weight, alone=values)


def _map_significant(found: Neighbourhoods) -> Score:
    precision = _retrieval(found)
    table = precision.table[precision.table["p_adjusted"].notna()]
    if not len(table):
        raise NotComputable("every perturbation is alone in its batches of the test split: it has no null")
    hits = (table["p_adjusted"] < precision.alpha).to_numpy(dtype=float)
    lines, line = np.unique(table["cell_line"], return_inverse=True)
    names, name = np.unique(table["perturbation"].astype(str), return_inverse=True)
    alone = len(precision.table) - len(table)
    return Score(
        value=float(hits.mean()),
        chance=0.0,
        n_samples=int(table["n"].sum()),
        n_groups=len(table),
        group="perturbation",
        left_out={**precision.left_out, **({"perturbations alone in their batches": alone} if alone else {})},
        notes=precision.notes,
        units=Units.single("perturbation", names, hits)
        if len(lines) == 1
        else Units.crossed(("cell_line", "perturbation"), (lines, names), (line, name), hits),
        interval=adjusted_share_interval(
            table["p_value"], precision.alpha, "perturbation", resolution=precision.resolution
        )
        if len(lines) == 1
        else None,
    )


def _perturbed(top: int, found: Neighbourhoods) -> Score:
    if found.perturbed is None:
        raise NotComputable(found.why_not)
    return accuracy(found.perturbed, top)


def _perturbed_balanced(found: Neighbourhoods) -> Score:
    if found.perturbed is None:
        raise NotComputable(found.why_not)
    return balanced_accuracy(found.perturbed, 1)


def _details(found: Neighbourhoods) -> dict[str, pd.DataFrame]:
    tables = _accuracies(found)
    if isinstance(found.retrieval, Precisions):
        tables["retrieval"] = found.retrieval.table
    return tables


def _accuracies(found: Neighbourhoods) -> dict[str, pd.DataFrame]:
    table = perturbation_table(found.everything)
    if found.perturbed is None:
        return {"perturbations": table}
    alone = perturbation_table(found.perturbed).rename(
        columns={"top1": "top1_perturbed", "top5": "top5_perturbed", "median_rank": "median_rank_perturbed"}
    )
    return {"perturbations": table.merge(alone.drop(columns="n_samples"), on="perturbation", how="left")}


def _memory(sizes: Sizes, params: KnnParams) -> int:
    """The reference set as it is searched (at most 2.5 times), the queries as they are compared, ranks and units."""
    reference = min(sizes.train, params.max_reference)
    width = min(params.components, sizes.d)
    bytes_ = 4 * (reference * (3 * width + 1) + sizes.test * width) + 100 * (sizes.test + reference)
    if params.retrieval:
        queries = min(sizes.test, params.max_queries)
        bytes_ += 4 * sizes.d * (reference + 2 * queries) + 100 * queries
    return bytes_


TASK = Task(
    name="knn",
    level=4,
    title="Local organisation (kNN)",
    question="Do samples of one perturbation lie next to each other, across batches?",
    limits="Where controls are a class of their own and common, answering 'control' always scores well.",
    params=KnnParams,
    prepare=prepare,
    memory=_memory,
    metrics=(
        Metric(
            name="top1",
            task="knn",
            label="kNN top 1",
            summary="Share of test samples whose perturbation (controls are one more) gets the most votes.",
            compute=lambda found: accuracy(found.everything, 1),
            headline=True,
        ),
        Metric(
            name="top5",
            task="knn",
            label="kNN top 5",
            summary="Share of test samples whose perturbation is among the five with the most votes.",
            compute=lambda found: accuracy(found.everything, 5),
            headline=True,
        ),
        Metric(
            name="top1_perturbed",
            task="knn",
            label="kNN top 1, controls out",
            summary="Top 1 with the controls left out of reference and queries.",
            compute=lambda found: _perturbed(1, found),
        ),
        Metric(
            name="top5_perturbed",
            task="knn",
            label="kNN top 5, controls out",
            summary="Top 5 with the controls left out of reference and queries.",
            compute=lambda found: _perturbed(5, found),
        ),
        Metric(
            name="top1_balanced",
            task="knn",
            label="kNN top 1, balanced",
            summary="Mean over perturbations (controls are one more) of the share of their samples that are right.",
            compute=lambda found: balanced_accuracy(found.everything, 1),
        ),
        Metric(
            name="top1_perturbed_balanced",
            task="knn",
            label="kNN top 1, controls out, balanced",
            summary="Mean over perturbations of the share of their samples that are right, the controls left out.",
            compute=_perturbed_balanced,
        ),
        Metric(
            name="map",
            task="knn",
            label="Retrieval mAP",
            summary="Mean average precision of finding train samples of the same perturbation first, by cosine.",
            compute=_map,
            asked=lambda params: params.retrieval,
        ),
        Metric(
            name="map_significant",
            task="knn",
            label="Retrieved (BH)",
            summary="Share of perturbations whose retrieval precision exceeds the null's (adjusted p < 0.05).",
            compute=_map_significant,
            asked=lambda params: params.retrieval,
        ),
    ),
    stochastic=lambda params, n_samples: (
        n_samples > params.max_reference or (params.retrieval and n_samples > params.max_queries)
    ),
    details=_details,
    ceiling=Ceiling(
        shared_split("test"),
        HALVES_OF_TEST,
    ),
    version=2,
)
