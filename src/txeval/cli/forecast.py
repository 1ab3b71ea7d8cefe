"""What each level has to work with on a screen, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from txeval.errors import InputError

if TYPE_CHECKING:
    from txeval.run.plan import Plan

__all__ = ["counted", "forecast"]


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 batch, 3 batches."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def forecast(plan: Plan) -> dict[str, str]:
    """Task name -> one sentence on what it reads here; an empty one for tasks of plug-ins."""
    parts = plan.split_record()["parts"]
    return {name: _FACTS[name](plan, parts) if name in _FACTS else "" for name in plan.tasks}


def _mixing(plan: Plan, parts: Mapping[str, Any]) -> str:
    test = parts["test"]
    text = f"{counted(test['samples'], 'test sample')} of {counted(test['batches'], 'batch', 'batches')}"
    return text if test["batches"] > 1 else f"no score: {text}, at least two are needed"


def _classes(plan: Plan, parts: Mapping[str, Any]) -> str:
    train, test = (parts[name]["samples"] - parts[name]["controls"] for name in ("train", "test"))
    if not train or not test:
        return "no score: the train or the test split holds no perturbed sample"
    return f"{train:,} perturbed samples to learn from, {test:,} to score, {parts['test']['perturbations']:,} classes"


def _neighbours(plan: Plan, parts: Mapping[str, Any]) -> str:
    reference, queries = parts["train"]["samples"], parts["test"]["samples"]
    if not reference or not queries:
        return "no score: the train or the test split is empty"
    share = parts["test"]["controls"] / queries
    return f"{reference:,} reference samples, {queries:,} queries, {share:.1%} of them controls"


def _groups(plan: Plan, parts: Mapping[str, Any]) -> str:
    samples = plan.screen.samples
    counts = np.bincount(samples.perturbation[~samples.is_control], minlength=len(samples.perturbations))
    targets = set(samples.target_genes.tolist()) - {""}
    measured = len(targets & set(plan.screen.genes.tolist()))
    return (
        f"{int((counts >= 2).sum()):,} perturbations with at least 2 samples; {counted(measured, 'target gene')} "
        "measured; the perturbations of unexpressed ones are the null where there are enough"
    )


def _relations(plan: Plan, parts: Mapping[str, Any]) -> str:
    from txeval.data.relations import load_relations

    samples = plan.screen.samples
    present = np.unique(samples.perturbation[~samples.is_control])
    genes = set(samples.target_genes[present].tolist()) - {""}
    needed = int(plan.tasks["relationships"].params.min_genes)
    if len(genes) < needed:
        return f"no score: {len(genes):,} perturbed genes, {needed:,} are needed"
    try:
        databases = load_relations(plan.config.relations)
    except InputError as why:
        return f"{len(genes):,} perturbed genes; no score: {why.problem}"
    known = []
    for name, frame in databases.items():
        first, second = (frame[column].astype(str) for column in ("entity1", "entity2"))
        both = first.isin(genes) & second.isin(genes) & (first != second)
        pairs = {frozenset(pair) for pair in zip(first[both], second[both], strict=True)}
        known.append(f"{name} {len(pairs):,}")
    return f"{len(genes):,} perturbed genes; known relationships among them: {', '.join(known)}"


def _expression(plan: Plan, parts: Mapping[str, Any]) -> str:
    heldout, train = parts["heldout"], parts["train"]
    if not train["samples"] or not heldout["samples"]:
        return "no score: the train or the heldout split is empty"
    return (
        f"{plan.screen.n_genes:,} genes; {train['samples']:,} samples to learn from, {heldout['samples']:,} to score, "
        f"{heldout['controls']:,} of them controls"
    )


_FACTS: dict[str, Callable[[Plan, Mapping[str, Any]], str]] = {
    "batch_mixing": _mixing,
    "linear_probe": _classes,
    "consistency": _groups,
    "knn": _neighbours,
    "relationships": _relations,
    "reconstruction": _expression,
}
