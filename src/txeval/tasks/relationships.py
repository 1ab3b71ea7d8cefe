"""Level 5: does the map of perturbed genes recall known relationships?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from txeval.compute.groups import group_means
from txeval.errors import NotComputable
from txeval.metrics.relationships import KnownLinks, RelationMap
from txeval.tasks.base import Metric, Score, Task, TaskInputs

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
        Random relabellings of genes for the chance range.
    """

    tail: float = 0.05
    wide_tail: float = 0.10
    keep_control: bool = False
    min_genes: int = 50
    min_relations: int = 10
    draws: int = 1000

    def __post_init__(self) -> None:
        for name in ("tail", "wide_tail"):
            if not 0 < getattr(self, name) <= 0.5:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and at most 0.5")
        if self.min_genes < 3 or self.min_relations < 1 or self.draws < 20:
            raise ValueError("min_genes must be 3 or more, min_relations 1 or more, draws 20 or more")


@dataclass(frozen=True)
class GeneMap:
    """The map of perturbed genes and the known links of each database in it."""

    map: RelationMap
    links: Mapping[str, KnownLinks]
    params: RelationshipsParams
    n_samples: int
    left_out: Mapping[str, int]
    notes: tuple[str, ...]


def prepare(inputs: TaskInputs) -> GeneMap:
    """Average the samples of every perturbed gene and compare all pairs of genes."""
    params: RelationshipsParams = inputs.params
    samples = inputs.samples
    if not inputs.relations:
        raise NotComputable("no database of known relationships is at hand")
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
    counts, means = group_means(inputs.embedding, codes, len(genes))
    present = counts > 0
    genes, means = genes[present], means[present]
    if len(genes) < params.min_genes:
        raise NotComputable(
            f"the screen has {len(genes)} perturbed genes; {params.min_genes} are needed for a map of relationships"
        )
    left_out = {"perturbations without a single target gene": int((~targeted).sum()) - len(control_labels)}
    relation_map = RelationMap(means, genes)
    return GeneMap(
        map=relation_map,
        links={name: relation_map.links(frame) for name, frame in sorted(inputs.relations.items())},
        params=params,
        n_samples=int(np.isin(codes, np.flatnonzero(present)).sum()),
        left_out={reason: count for reason, count in left_out.items() if count > 0},
        notes=(f"{len(genes)} genes, {relation_map.n_pairs} pairs",),
    )


def _per_database(found: GeneMap, score: Callable[[KnownLinks], Score]) -> list[Score]:
    """Apply a score to every database; one with too few links gets its reason."""
    scores = []
    for name, links in found.links.items():
        if len(links) < found.params.min_relations:
            made = Score(
                reason=f"{len(links)} known relationships have both genes in the map; "
                f"{found.params.min_relations} are needed"
            )
        else:
            try:
                made = score(links)
            except NotComputable as why:
                made = Score(reason=str(why))
        scores.append(
            replace(
                made,
                subset=name,
                n_samples=found.n_samples,
                n_groups=len(links),
                group="relationship",
                left_out={**found.left_out, **links.left_out},
                notes=(*found.notes, *made.notes),
            )
        )
    return scores


def _recall(found: GeneMap, tail: float) -> list[Score]:
    def score(links: KnownLinks) -> Score:
        chance = found.map.relabelled(links, tail, draws=found.params.draws)
        return Score(
            value=found.map.recall(links, tail),
            chance=chance.expected,
            chance_low=chance.low,
            chance_high=chance.high,
            units=found.map.units(links, tail),
        )

    return _per_database(found, score)


def _ranking(found: GeneMap, which: int) -> list[Score]:
    def score(links: KnownLinks) -> Score:
        share = len(links) / found.map.n_pairs
        return Score(
            value=found.map.ranking(links)[which],
            chance=share if which else 0.5,
            units=found.map.ranking_units(links)[which],
            notes=("lower bound: pairs that the database does not list count as unrelated",),
        )

    return _per_database(found, score)


def _details(found: GeneMap) -> dict[str, pd.DataFrame]:
    tables = []
    for name, links in found.links.items():
        table = found.map.table(links, (found.params.tail, found.params.wide_tail))
        table.insert(0, "database", name)
        tables.append(table)
    return {"relations": pd.concat(tables, ignore_index=True)} if tables else {}


TASK = Task(
    name="relationships",
    level=5,
    title="Known relationships",
    question="Are genes that are known to act together close, or opposite, in the map of perturbed genes?",
    limits="Databases are incomplete and lean towards well-studied genes; a shift common to all samples inflates it.",
    params=RelationshipsParams,
    prepare=prepare,
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
)
