from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txeval.compute.random import stream
from txeval.data.samples import Samples
from txeval.errors import NotComputable
from txeval.tasks.base import TaskInputs, run_task
from txeval.tasks.ceiling import _pairs, first_half, mixed_batches, replicated_links, shared_split
from txeval.tasks.registry import get_task, list_tasks, task_params
from txeval.tasks.relationships import prepare


def samples(perturbation: np.ndarray, batch: np.ndarray, *, controls: int = 0) -> Samples:
    names = np.array([f"p{i:03d}" for i in range(perturbation.max() + 1)])
    return Samples(
        perturbation=perturbation.astype(np.int64),
        perturbations=names,
        is_control=perturbation < controls,
        batch=batch.astype(np.int64),
        batches=np.array([f"b{i}" for i in range(batch.max() + 1)]),
        target_genes=np.where(np.arange(len(names)) < controls, "", names),
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 5), st.integers(0, 1000))
def test_halves_are_even_within_every_perturbation_and_nearly_within_every_batch(
    n: int, n_pert: int, n_batch: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # The last of each label is there, so that codes and labels agree in number.
    pert = np.append(rng.integers(0, n_pert, n), n_pert - 1)
    batch = np.append(rng.integers(0, n_batch, n), n_batch - 1)
    first = first_half(samples(pert, batch), np.arange(len(pert)), stream(seed, "x"))
    frame = pd.DataFrame({"pert": pert, "batch": batch, "sign": np.where(first, 1, -1)})
    assert frame.groupby("pert")["sign"].sum().abs().max() <= 1
    assert frame.groupby(["pert", "batch"])["sign"].sum().abs().max() <= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 60))
def test_positions_of_pairs_are_turned_back(n: int) -> None:
    first, second = np.triu_indices(n, 1)
    a, b = _pairs(np.arange(len(first)), n)
    np.testing.assert_array_equal(a, first)
    np.testing.assert_array_equal(b, second)


def test_positions_of_pairs_are_turned_back_in_a_large_map() -> None:
    n = 9866
    position = np.array([0, n - 2, n - 1, n * (n - 1) // 2 - 1, 12_345_678])
    a, b = _pairs(position, n)
    assert ((a >= 0) & (a < b) & (b < n)).all()
    np.testing.assert_array_equal(a * (2 * n - a - 1) // 2 + (b - a - 1), position)


def inputs(perturbation: np.ndarray, batch: np.ndarray, values: np.ndarray, task: str, **changes: object) -> TaskInputs:
    rows = np.arange(len(values))
    odd = batch % 2 == 1
    return TaskInputs(
        embedding=values.astype(np.float32),
        samples=samples(perturbation, batch, controls=1),
        splits={"train": rows[~odd], "test": rows[odd], "heldout": rows[odd]},
        params=task_params(get_task(task), changes),
    )


def layout(seed: int = 0, n: int = 600) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return np.arange(n) % 12, np.arange(n) // 12 % 5, rng


def test_train_and_what_is_asked_share_batches_and_perturbations_and_no_sample() -> None:
    pert, batch, rng = layout()
    before = inputs(pert, batch, rng.normal(size=(600, 4)), "knn")
    after = shared_split("test")(before)
    pairs = after.in_turn("test")
    assert len(pairs) == 2
    for train, test in pairs:
        assert not np.intersect1d(train, test).size
        assert set(before.splits["train"]) < set(train)
        assert set(train) | set(test) == set(before.splits["train"]) | set(before.splits["test"])
        assert set(zip(pert[test], batch[test], strict=True)) <= set(zip(pert[train], batch[train], strict=True))
    np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in pairs])), before.splits["test"])


def test_a_model_is_asked_once_about_the_splits_as_they_are() -> None:
    pert, batch, rng = layout()
    before = inputs(pert, batch, rng.normal(size=(600, 4)), "knn")
    [(train, test)] = before.in_turn("test")
    np.testing.assert_array_equal(train, before.splits["train"])
    np.testing.assert_array_equal(test, before.splits["test"])


def test_batches_are_dealt_within_the_test_samples_of_each_perturbation() -> None:
    rng = np.random.default_rng(4)
    # Batches differ in their perturbations.
    batch = np.repeat(np.arange(6), 100)
    pert = np.minimum(rng.poisson(2 + batch), 11)
    pert[-1] = 11
    before = inputs(pert, batch, rng.normal(size=(600, 4)), "batch_mixing")
    after = mixed_batches(before)
    rows = before.splits["test"]
    others = np.setdiff1d(np.arange(600), rows)
    np.testing.assert_array_equal(after.samples.batch[others], batch[others])
    for code in range(12):
        mine = rows[pert[rows] == code]
        np.testing.assert_array_equal(np.sort(after.samples.batch[mine]), np.sort(batch[mine]))
    assert (after.samples.batch[rows] != batch[rows]).mean() > 0.2


@pytest.mark.parametrize("task", ["linear_probe", "knn"])
def test_a_batch_effect_costs_the_model_and_not_the_ceiling(task: str) -> None:
    rng = np.random.default_rng(2)
    pert, batch = np.arange(2400) % 12, np.arange(2400) // 12 % 5
    # Odd batches are asked; in them the perturbations lie elsewhere.
    effect = 2 * rng.normal(size=(2, 12, 40))
    made = inputs(pert, batch, effect[batch % 2, pert] + rng.normal(size=(2400, 40)), task)
    if task == "linear_probe":
        made = replace(made, params=replace(made.params, solver="convergent"))
    if task == "knn":
        made = replace(made, params=replace(made.params, k=25, retrieval=True))
    metrics = [metric for metric in get_task(task).metrics if metric.name in {"top1", "map", "map_significant"}]
    scores = []
    for asked in (made, get_task(task).ceiling.inputs(made)):
        found = {metric.name: score for metric, score in run_task(get_task(task), asked, metrics).scores}
        scores.append(found)
    model, ceiling = scores
    assert model["top1"].value < 0.35
    assert ceiling["top1"].value > 0.8
    assert ceiling["top1"].n_samples == model["top1"].n_samples
    # The units of both are the same, so that the two can be compared as a pair.
    for one, other in zip(model["top1"].units.labels, ceiling["top1"].units.labels, strict=True):
        np.testing.assert_array_equal(one, other)
    if task == "knn":
        assert ceiling["map"].value > model["map"].value + 0.2
        assert ceiling["map_significant"].value == 1.0
        assert ceiling["map"].n_samples == model["map"].n_samples


def test_queries_of_two_halves_are_judged_as_each_half_alone_would_be() -> None:
    pert, batch, rng = layout()
    values = rng.normal(size=(600, 6)) + rng.normal(size=(12, 6))[pert]
    made = shared_split("test")(inputs(pert, batch, values, "knn", k=25, retrieval=True))
    whole = get_task("knn").prepare(made)
    for train, test in made.in_turn("test"):
        alone = replace(made, splits={"train": train, "test": test, "heldout": test}, first_half=None)
        part = get_task("knn").prepare(alone)
        # Samples are told by their rank and truth: the halves stand one after another.
        n = len(part.everything.rank)
        places = (slice(0, n), slice(len(whole.everything.rank) - n, None))
        assert any(np.array_equal(whole.everything.rank[place], part.everything.rank) for place in places)
        m = len(part.retrieval.values)
        places = (slice(0, m), slice(len(whole.retrieval.values) - m, None))
        assert any(np.allclose(whole.retrieval.values[place], part.retrieval.values) for place in places)


def test_all_pairs_are_the_mean_over_all_halvings() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(6, 4)) + 1
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    between = []
    for first in itertools.combinations(range(6), 3):
        second = [i for i in range(6) if i not in first]
        between.append((unit[list(first)] @ unit[second].T).mean())
    pert = np.array([1] * 6 + [0] * 4 + [2] * 6)
    # The second batch holds half of the perturbation.
    batch = np.array([0, 0, 0, 1, 1, 1] + [0, 1, 0, 1] + [0, 1] * 3)
    values = np.vstack([x, rng.normal(size=(10, 4))])
    made = inputs(pert, batch, values, "consistency", across_batches=True, null="permutation", draws=20)
    table = get_task("consistency").prepare(get_task("consistency").ceiling.inputs(made)).table
    mine = table.loc[table["perturbation"] == "p001", "avg_cosine"].item()
    assert mine == pytest.approx(np.mean(between), abs=1e-6)
    before = get_task("consistency").prepare(made).table
    assert before.loc[before["perturbation"] == "p001", "avg_cosine"].item() != pytest.approx(mine, abs=1e-3)


class Values:
    """Expression that tasks read."""

    note = "made"

    def __init__(self, values: np.ndarray) -> None:
        self.values = values.astype(np.float32)
        self.genes = np.array([f"g{i}" for i in range(values.shape[1])])

    def blocks(self, rows: np.ndarray, *, max_elements: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        for start in range(0, len(rows), 100):
            yield slice(start, start + 100), self.values[rows[start : start + 100]]

    def gene_means(self, rows: np.ndarray, *, scale: str) -> np.ndarray:
        return self.values[rows].mean(axis=0)


def test_each_half_is_decoded_by_the_decoder_that_did_not_learn_from_it() -> None:
    pert, batch, rng = layout()
    x = rng.normal(size=(600, 5))
    # What embedding and expression have in common is another thing in the batches that are asked.
    weights = rng.normal(size=(2, 5, 8))
    y = np.einsum("ij,ijk->ik", x, weights[batch % 2]) + 0.1 * rng.normal(size=(600, 8))
    task = get_task("reconstruction")
    made = replace(inputs(pert, batch, x, "reconstruction", decoder="least_squares"), expression=Values(y))
    halved = task.ceiling.inputs(made)
    found = task.prepare(halved)
    squared = np.zeros(600)
    for train, asked in halved.in_turn("heldout"):
        design = np.column_stack([x, np.ones(600)])
        solved = np.linalg.lstsq(design[train], y[train], rcond=None)[0]
        squared[asked] = ((design[asked] @ solved - y[asked]) ** 2).mean(axis=1)
    rows = made.splits["heldout"]
    np.testing.assert_allclose(found.samples.squared, squared[rows], rtol=2e-3)
    model = task.prepare(made)
    assert found.samples.squared.mean() < 0.8 * model.samples.squared.mean()


def test_a_perturbation_with_one_sample_has_no_halves() -> None:
    rng = np.random.default_rng(0)
    pert = np.arange(60)
    made = inputs(pert, pert % 2, rng.normal(size=(60, 4)), "relationships")
    with pytest.raises(NotComputable, match="two samples"):
        get_task("relationships").ceiling.inputs(made)


@dataclass
class Planted:
    """A map of genes of a given noise, and what its ceiling is asked."""

    noise: float

    def recall(self) -> float:
        rng = np.random.default_rng(1)
        genes, per_gene = 80, 30
        effect = rng.normal(size=(genes + 1, 10))
        pert = np.repeat(np.arange(genes + 1), per_gene)
        values = effect[pert] + self.noise * rng.normal(size=(len(pert), 10))
        made = inputs(pert, np.tile(np.arange(5), len(pert) // 5 + 1)[: len(pert)], values, "relationships")
        names = made.samples.perturbations[1:]
        known = pd.DataFrame({"a": names[:-1], "b": names[1:]})
        made = TaskInputs(**{**vars(made), "relations": {"CHAIN": known}})
        asked = replicated_links(prepare)(made)
        found = prepare(asked)
        [part] = found.maps
        return float(part.map.recall(part.links["CHAIN"], found.params.tail))


def test_links_of_one_half_are_found_again_as_far_as_noise_allows() -> None:
    assert Planted(0.01).recall() > 0.95
    assert 0.2 < Planted(2.0).recall() < 0.9
    assert Planted(1000.0).recall() == pytest.approx(0.1, abs=0.04)


def test_every_level_has_a_ceiling() -> None:
    assert all(
        task.ceiling is not None
        for task in list_tasks()
        if task.name in {"batch_mixing", "linear_probe", "consistency", "knn", "relationships", "reconstruction"}
    )
