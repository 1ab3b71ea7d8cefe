"""Level 5: does the map of perturbed genes recall known relationships?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd

from txeval.compute.arrays import F64, Ints, Rows
from txeval.compute.groups import group_means
from txeval.compute.intervals import Units
from txeval.errors import NotComputable
from txeval.metrics.degree_null import DegreeNull, degree_null
from txeval.metrics.relationships import KnownLinks, RelationMap, Side
from txeval.tasks.base import Ceiling, Metric, Samples, Score, Sizes, Task, TaskInputs
from txeval.tasks.blocks import Block, Blocks, RowSubset, cell_lines, subset
from txeval.tasks.ceiling import replicated_links

__all__ = ["TASK", "RelationshipsParams"]


@dataclass(frozen=True)
class RelationshipsParams:
    """Parameters of level 5.

    Attributes
    ----------
    tail
        Pairs below this share of all pairs, or above 1 minus it, are the predicted links.
    wide_tail
        Tail of the second recall.
    keep_control
        Whether the control label stays in the map as one more gene, as in the published code.
    min_genes, min_relations
        With fewer, recall is noise and is not reported.
    draws
        Random relabellings of genes, or random networks, for the chance range.
    null
        "relabelled": which gene stands where in the network is random; "degree": the network is random, and every gene
        keeps its number of links.
    reference_mean
        "controls": the embedding as the post-processing leaves it, which centres it on the controls ("raw" does not);
        "perturbed": in each batch the mean of all perturbed samples is subtracted, so that a shift common to all of
        them does not count; "both": the first, and the recall of the second beside it (`recall_perturbed_mean`).
    blocks
        "cell_line": a map for each cell line, where the screen names them; links of all maps count alike.
    """

    tail: float = 0.05
    wide_tail: float = 0.10
    keep_control: bool = False
    min_genes: int = 50
    min_relations: int = 10
    draws: int = 1000
    null: Literal["relabelled", "degree"] = "relabelled"
    reference_mean: Literal["controls", "perturbed", "both"] = "controls"
    blocks: Blocks = "none"

    def __post_init__(self) -> None:
        for name in ("tail", "wide_tail"):
            if not 0 < getattr(self, name) <= 0.5:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and at most 0.5")
        if self.min_genes < 3 or self.min_relations < 1 or self.draws < 20:
            raise ValueError("min_genes must be 3 or more, min_relations 1 or more, draws 20 or more")


@dataclass(frozen=True)
class LineMap:
    """The map of one cell line (or of all samples) and the known links of each database in it."""

    line: str
    map: RelationMap
    centred: RelationMap | None
    links: Mapping[str, KnownLinks]
    n_samples: int
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class GeneMap:
    """All maps; `nulls` keeps what random networks gave, by map and database."""

    maps: tuple[LineMap, ...]
    params: RelationshipsParams
    notes: tuple[str, ...]
    left_out: Mapping[str, int]
    nulls: dict[tuple[int, str], DegreeNull] = field(default_factory=dict)

    def null(self, number: int, name: str) -> DegreeNull:
        """Random networks of a map and a database, made once."""
        if (number, name) not in self.nulls:
            part = self.maps[number]
            tails = (self.params.tail, self.params.wide_tail)
            self.nulls[number, name] = degree_null(part.map, part.links[name], tails, draws=self.params.draws)
        return self.nulls[number, name]


def prepare(inputs: TaskInputs) -> GeneMap:
    """Average the samples of every perturbed gene and compare all pairs of genes, within cell lines if asked to."""
    params: RelationshipsParams = inputs.params
    if not inputs.relations:
        raise NotComputable("no database of known relationships is at hand")
    blocks = cell_lines(inputs.samples, params.blocks)
    maps, lost = [], {}
    for block in blocks:
        try:
            maps.append(_map_of(inputs, block))
        except NotComputable as why:
            if len(blocks) == 1:
                raise
            lost[f"samples of cell line {block.name}: {why}"] = len(block.rows)
    if not maps:
        raise NotComputable("; ".join(lost))
    notes = [
        f"{part.line + ': ' if part.line else ''}{part.map.n_genes} genes, {part.map.n_pairs} pairs" for part in maps
    ]
    if params.reference_mean == "perturbed":
        notes.append("reference: the mean of all perturbed samples of each batch")
    return GeneMap(tuple(maps), params, tuple(notes), lost)


def _map_of(inputs: TaskInputs, block: Block) -> LineMap:
    params: RelationshipsParams = inputs.params
    samples, embedding = inputs.samples, inputs.embedding
    if block.name:
        samples, embedding = subset(samples, block.rows), RowSubset(embedding, block.rows)
    names = samples.target_genes.astype(object).copy()
    control_labels = np.unique(samples.perturbation[samples.is_control])
    if params.keep_control:
        names[control_labels] = samples.perturbations[control_labels]
    else:
        names[control_labels] = ""
    targeted = np.asarray([bool(name) for name in names])
    genes = np.unique(names[targeted].astype(str)) if targeted.any() else np.empty(0, dtype=str)
    code_of_label = np.full(len(names), -1, dtype=np.int64)
    code_of_label[targeted] = np.searchsorted(genes, names[targeted].astype(str))
    codes = code_of_label[samples.perturbation]
    if not params.keep_control:
        codes[samples.is_control] = -1
    counts, means = group_means(embedding, codes, len(genes))
    present = counts > 0
    if int(present.sum()) < params.min_genes:
        raise NotComputable(
            f"the {'cell line' if block.name else 'screen'} has {int(present.sum())} perturbed genes; "
            f"{params.min_genes} are needed for a map of relationships"
        )
    shifted = None
    if params.reference_mean != "controls":
        shifted = means - _perturbed_means(samples, embedding, codes, len(genes))
    plain = means if params.reference_mean != "perturbed" or shifted is None else shifted
    relation_map = RelationMap(plain[present], genes[present])
    # Both known beforehand, random relabellings are gone through once for both.
    relation_map.thresholds(params.tail), relation_map.thresholds(params.wide_tail)
    without = int((~targeted[np.unique(samples.perturbation)]).sum()) - len(control_labels)
    left_out = {"perturbations without a single target gene": without}
    return LineMap(
        line=block.name,
        map=relation_map,
        centred=RelationMap(shifted[present], genes[present])
        if shifted is not None and params.reference_mean == "both"
        else None,
        links={name: relation_map.links(frame) for name, frame in sorted(inputs.relations.items())},
        n_samples=int(np.isin(codes, np.flatnonzero(present)).sum()),
        left_out={reason: count for reason, count in left_out.items() if count > 0},
    )


def _perturbed_means(samples: Samples, embedding: Rows, codes: Ints, n_genes: int) -> F64:
    """Mean of all perturbed samples in the batches of each gene's samples: (n_genes, d)."""
    n_batches = len(samples.batches)
    number, means = group_means(embedding, np.where(samples.is_control, -1, samples.batch), n_batches)
    means = np.where(number[:, None] > 0, means, 0.0)
    used = codes >= 0
    cells = np.bincount(codes[used] * n_batches + samples.batch[used], minlength=n_genes * n_batches)
    weights = cells.reshape(n_genes, n_batches)
    return np.asarray(weights @ means / np.maximum(1, weights.sum(axis=1))[:, None])


def _per_database(found: GeneMap, score: Callable[[str, list[int]], Score]) -> list[Score]:
    """Apply a score to every database and the maps with links of it; one with too few gets its reason."""
    scores = []
    for name in found.maps[0].links:
        numbers = [i for i, part in enumerate(found.maps) if len(part.links[name])]
        n_links = sum(len(found.maps[i].links[name]) for i in numbers)
        if n_links < found.params.min_relations:
            made = Score(
                reason=f"{n_links} known relationships have both genes in the map; "
                f"{found.params.min_relations} are needed"
            )
        else:
            try:
                made = score(name, numbers)
            except NotComputable as why:
                made = Score(reason=str(why))
        left_out = dict(found.left_out)
        for part in found.maps:
            for reason, count in {**part.left_out, **part.links[name].left_out}.items():
                left_out[reason] = left_out.get(reason, 0) + count
        scores.append(
            replace(
                made,
                subset=name,
                n_samples=sum(part.n_samples for part in found.maps),
                n_groups=n_links,
                group="relationship",
                left_out=left_out,
                notes=(*found.notes, *made.notes),
            )
        )
    return scores


def _shares(found: GeneMap, name: str, numbers: list[int]) -> F64:
    """Share of the links of a database that each map holds."""
    sizes = np.asarray([len(found.maps[i].links[name]) for i in numbers], dtype=np.float64)
    return np.asarray(sizes / sizes.sum())


def _pooled(found: GeneMap, name: str, numbers: list[int], units: Callable[[LineMap], Units]) -> Units:
    """Contributions of the pairs of genes of all maps."""
    if len(numbers) == 1:
        return units(found.maps[numbers[0]])
    parts = [units(found.maps[i]) for i in numbers]
    genes = np.unique(np.concatenate([part.labels[0] for part in parts]))
    codes = [np.concatenate([np.searchsorted(genes, p.labels[k])[p.codes[k]] for p in parts]) for k in (0, 1)]
    return Units.pairs("gene", genes, codes[0], codes[1], np.concatenate([part.numerator for part in parts]))


def _recall(found: GeneMap, tail: float, side: Side = "both", *, centred: bool = False) -> list[Score]:
    """Recall, with the chance level of the null that the protocol names."""

    def of(part: LineMap) -> RelationMap:
        return part.centred if centred and part.centred is not None else part.map

    def score(name: str, numbers: list[int]) -> Score:
        shares = _shares(found, name, numbers)
        expected, draws = 0.0, np.zeros(found.params.draws)
        for share, i in zip(shares, numbers, strict=True):
            part = found.maps[i]
            if found.params.null == "degree" and not centred:
                null = found.null(i, name)
                drawn = null.low[tail] * (side != "high") + null.high[tail] * (side != "low")
                expected += share * float(drawn.mean())
            elif found.params.null == "degree":
                null = degree_null(of(part), part.links[name], (tail,), draws=found.params.draws, ranking_draws=0)
                drawn = null.low[tail] + null.high[tail]
                expected += share * float(drawn.mean())
            else:
                relabelled = of(part).relabelled(part.links[name], tail, draws=found.params.draws)
                drawn = relabelled.recalls if side == "both" else relabelled.by_side[int(side == "high")]
                expected += share * of(part).n_predicted(tail, side) / of(part).n_pairs
            draws += share * drawn
        low, high = np.quantile(draws, [0.025, 0.975])
        units = _pooled(found, name, numbers, lambda part: of(part).units(part.links[name], tail, side))
        if len(numbers) == 1:
            value = float(of(found.maps[numbers[0]]).hits(found.maps[numbers[0]].links[name], tail, side).mean())
        else:
            value = units.value
        return Score(
            value=value,
            chance=float(expected),
            chance_low=float(low),
            chance_high=float(high),
            notes=("chance: random networks with each gene's number of links",)
            if found.params.null == "degree"
            else (),
            units=units,
        )

    return _per_database(found, score)


def _recall_perturbed_mean(found: GeneMap) -> list[Score]:
    """Recall after subtracting the mean of the perturbed samples."""
    return _recall(found, found.params.tail, centred=True)


def _ranking(found: GeneMap, which: int) -> list[Score]:
    def score(name: str, numbers: list[int]) -> Score:
        shares = _shares(found, name, numbers)
        value, chance = 0.0, 0.0
        low = high = None
        for share, i in zip(shares, numbers, strict=True):
            part = found.maps[i]
            value += share * part.map.ranking(part.links[name])[which]
            chance += share * (len(part.links[name]) / part.map.n_pairs if which else 0.5)
        if found.params.null == "degree":
            drawn = sum(
                share * (found.null(i, name).average_precision if which else found.null(i, name).auroc)
                for share, i in zip(shares, numbers, strict=True)
            )
            chance = float(np.mean(drawn))
            low, high = (float(q) for q in np.quantile(drawn, [0.025, 0.975]))
        return Score(
            value=float(value),
            chance=float(chance),
            chance_low=low,
            chance_high=high,
            units=_pooled(found, name, numbers, lambda part: part.map.ranking_units(part.links[name])[which]),
            notes=("lower bound: pairs that the database does not list count as unrelated",),
        )

    return _per_database(found, score)


def _details(found: GeneMap) -> dict[str, pd.DataFrame]:
    tables = []
    for part in found.maps:
        for name, links in part.links.items():
            table = part.map.table(links, (found.params.tail, found.params.wide_tail))
            table.insert(0, "database", name)
            if len(found.maps) > 1:
                table.insert(1, "cell_line", part.line)
            tables.append(table)
    return {"relations": pd.concat(tables, ignore_index=True)} if tables else {}


def _memory(sizes: Sizes, params: RelationshipsParams) -> int:
    """Mean of every perturbation, and the cosines of all pairs with a copy to find their limits in."""
    maps = 2 if params.reference_mean == "both" else 1
    return maps * (3 * 8 * sizes.perturbations * sizes.d + 8 * sizes.perturbations**2) + 40 * sizes.n


TASK = Task(
    name="relationships",
    level=5,
    title="Known relationships",
    question="Are genes that are known to act together close, or opposite, in the map of perturbed genes?",
    limits="Databases are incomplete and lean towards well-studied genes; a shift common to all samples inflates it.",
    params=RelationshipsParams,
    prepare=prepare,
    memory=_memory,
    metrics=(
        Metric(
            name="recall",
            task="relationships",
            label="Recall",
            summary="Share of known relationships among the 5 % most similar and the 5 % most opposite pairs of genes.",
            compute=lambda found: _recall(found, found.params.tail),
            headline=True,
        ),
        Metric(
            name="recall_10",
            task="relationships",
            label="Recall (10 %)",
            summary="The same with 10 % on each side.",
            compute=lambda found: _recall(found, found.params.wide_tail),
        ),
        Metric(
            name="recall_positive",
            task="relationships",
            label="Recall, similar",
            summary="Share of known relationships among the 5 % most similar pairs of genes.",
            compute=lambda found: _recall(found, found.params.tail, "high"),
        ),
        Metric(
            name="recall_negative",
            task="relationships",
            label="Recall, opposite",
            summary="Share of known relationships among the 5 % most opposite pairs of genes.",
            compute=lambda found: _recall(found, found.params.tail, "low"),
        ),
        Metric(
            name="recall_perturbed_mean",
            task="relationships",
            label="Recall, perturbed mean",
            summary="Recall after subtracting the mean of all perturbed samples of the batch instead of the controls'.",
            compute=_recall_perturbed_mean,
            asked=lambda params: params.reference_mean == "both",
        ),
        Metric(
            name="auroc",
            task="relationships",
            label="AUROC",
            summary="Known relationships against all other pairs, ranked by how extreme their cosine is.",
            compute=lambda found: _ranking(found, 0),
        ),
        Metric(
            name="average_precision",
            task="relationships",
            label="Average precision",
            summary="Area under the precision-recall curve of the same ranking.",
            compute=lambda found: _ranking(found, 1),
        ),
    ),
    stochastic=lambda params, n_samples: False,
    details=_details,
    needs_relations=True,
    ceiling=Ceiling(
        replicated_links(prepare),
        "the links that the map of half of the samples predicts, between genes of the database, are asked of the map "
        "of the other half",
    ),
    version=2,
)
