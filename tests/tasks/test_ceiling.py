from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txeval.compute.random import stream
from txeval.data.samples import Samples
from txeval.tasks.base import TaskInputs
from txeval.tasks.ceiling import _pairs, any_pair, first_half, mixed_batches, replicated_links, shared_split
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
    train, test = after.splits["train"], after.splits["test"]
    assert not np.intersect1d(train, test).size
    assert set(before.splits["train"]) < set(train)
    assert set(test) < set(before.splits["test"])
    assert set(zip(pert[test], batch[test], strict=True)) <= set(zip(pert[train], batch[train], strict=True))


def test_batches_are_dealt_within_the_test_split_and_keep_their_sizes() -> None:
    pert, batch, rng = layout()
    before = inputs(pert, batch, rng.normal(size=(600, 4)), "batch_mixing")
    after = mixed_batches(before)
    rows = before.splits["test"]
    others = np.setdiff1d(np.arange(600), rows)
    np.testing.assert_array_equal(np.bincount(after.samples.batch), np.bincount(batch))
    np.testing.assert_array_equal(after.samples.batch[others], batch[others])
    assert (after.samples.batch[rows] != batch[rows]).mean() > 0.2


def test_pairs_of_one_batch_count_in_the_ceiling_of_consistency() -> None:
    pert, batch, rng = layout()
    before = inputs(pert, batch, rng.normal(size=(600, 4)), "consistency", across_batches=True)
    assert before.params.across_batches
    assert not any_pair(before).params.across_batches


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
