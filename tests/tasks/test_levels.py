"""Every level on a screen with a known truth: order of embeddings, reasons, independence of the order of rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from txeval.data import LogNormExpression, Roles, open_screen, simulate_screen, split
from txeval.data.samples import Samples
from txeval.errors import InputError
from txeval.protocol import load_protocol
from txeval.tasks import Score, TaskInputs, get_task, list_tasks, run_task, task_params
from txeval.tasks.registry import metrics_of

CHEAP: dict[str, dict[str, Any]] = {
    "linear_probe": {"epochs": 60, "batch_size": 256, "lr": 1e-2},
    "consistency": {"draws": 200, "min_null": 15},
    "knn": {"k": 51},
    "relationships": {"min_genes": 20, "draws": 200},
    "reconstruction": {"decoder": "least_squares"},
}


#: Metrics that a protocol has to ask for; others give no row of them.
ASKED_FOR = {"map", "map_significant", "recall_perturbed_mean"}


def protocol_params(protocol: str, task: str) -> dict[str, Any]:
    """Parameters of a protocol, made cheap."""
    if protocol == "paper":
        return CHEAP.get(task, {})
    cheap = {
        "knn": {"k": 51, "retrieval_draws": 199},
        "consistency": {"draws": 200},
        "relationships": {"min_genes": 20},
    }
    return {**load_protocol(protocol).tasks.get(task, {}), **cheap.get(task, {})}


@dataclass
class World:
    """A simulated screen, opened."""

    inputs: TaskInputs
    embeddings: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    path = tmp_path_factory.mktemp("world") / "screen.h5ad"
    truth = simulate_screen(path, n_samples=3000, n_genes=150, n_perturbations=60, n_batches=6, effect=1.5, seed=3)
    screen = open_screen(path, Roles("perturbation", control_column="control", batch="batch", target_gene="gene"))
    samples = screen.samples
    splits = split(
        samples.perturbations[samples.perturbation], samples.batches[samples.batch], samples.is_control, seed=1
    )
    good, noisy = screen.read_obsm("X_truth"), screen.read_obsm("X_noisy")
    shuffled = good[np.random.default_rng(0).permutation(len(good))]
    inputs = TaskInputs(
        embedding=good,
        samples=samples,
        splits=splits,
        params=None,
        expression=LogNormExpression(screen),
        relations={"modules": truth.relations},
    )
    return World(inputs, {"good": good, "noisy": noisy, "random": shuffled, "tied": tied(good)})


def tied(X: np.ndarray) -> np.ndarray:
    """Two columns rounded to whole numbers, and a third of the rows empty: most samples have equals."""
    return np.where(np.arange(len(X))[:, None] % 3 == 0, 0, np.round(X[:, :2])).astype(np.float32)


def scores_of(inputs: TaskInputs, name: str, **params: Any) -> dict[str, Score]:
    task = get_task(name)
    ready = replace(inputs, params=task_params(task, {**CHEAP.get(name, {}), **params}))
    found = run_task(task, ready, metrics_of(task))
    return {metric.name: score for metric, score in found.scores}


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("linear_probe", "top1"),
        ("linear_probe", "top5"),
        ("consistency", "consistent"),
        ("knn", "top1_perturbed"),
        ("knn", "top5"),
        ("relationships", "recall"),
        ("relationships", "auroc"),
        ("reconstruction", "spearman"),
        ("reconstruction", "structural_integrity"),
    ],
)
def test_good_noisy_random_are_ranked_in_this_order(world: World, task: str, metric: str) -> None:
    values = {}
    for name in ("good", "noisy", "random"):
        score = scores_of(replace(world.inputs, embedding=world.embeddings[name]), task)[metric]
        assert score.value is not None, score.reason
        values[name] = score.value
    assert values["good"] > values["noisy"] > values["random"], values


@pytest.mark.parametrize("task", ["linear_probe", "knn"])
def test_random_embedding_is_at_chance(world: World, task: str) -> None:
    score = scores_of(replace(world.inputs, embedding=world.embeddings["random"]), task)["top1_balanced"]
    assert score.value is not None and score.chance is not None and score.n_samples is not None
    assert abs(score.value - score.chance) < 4 * np.sqrt(score.chance / score.n_samples) + 0.02


@pytest.mark.parametrize("protocol", ["paper", "corrected"])
@pytest.mark.parametrize("task", [task.name for task in list_tasks()])
def test_every_metric_gives_a_value_in_its_range_or_a_reason(world: World, task: str, protocol: str) -> None:
    found = run_task(
        get_task(task),
        replace(world.inputs, params=task_params(get_task(task), protocol_params(protocol, task))),
        metrics_of(get_task(task)),
    )
    expected = {m.name for m in metrics_of(get_task(task)) if m.compute}
    assert {metric.name for metric, _ in found.scores} == (expected - ASKED_FOR if protocol == "paper" else expected)
    for metric, score in found.scores:
        assert score.value is not None, f"{metric.name}: {score.reason}"
        assert metric.low - 1e-9 <= score.value <= metric.high + 1e-9
        assert score.n_samples and score.n_groups and score.group
        assert score.units is not None, f"{metric.name} has no units for an interval"
        assert score.units.value == pytest.approx(score.value, rel=1e-6, abs=1e-9)
    assert found.details
    assert all(isinstance(table, pd.DataFrame) and len(table) for table in found.details.values())


def precision(task: str, protocol: str) -> float:
    """Scores of two classes that differ by less than the solver's tolerance may change places: for all equal rows."""
    return 2e-3 if (task, protocol) == ("linear_probe", "corrected") else 1e-6


@pytest.mark.parametrize("embedding", ["good", "tied"])
@pytest.mark.parametrize("protocol", ["paper", "corrected"])
@pytest.mark.parametrize("task", [task.name for task in list_tasks()])
def test_order_of_the_samples_does_not_matter(world: World, task: str, protocol: str, embedding: str) -> None:
    inputs, samples = replace(world.inputs, embedding=world.embeddings[embedding]), world.inputs.samples
    order = np.random.default_rng(5).permutation(samples.n)
    place = np.argsort(order)
    moved = Samples(
        perturbation=samples.perturbation[order],
        perturbations=samples.perturbations,
        is_control=samples.is_control[order],
        batch=samples.batch[order],
        batches=samples.batches,
        target_genes=samples.target_genes,
    )
    assert isinstance(inputs.expression, LogNormExpression)

    class Moved(LogNormExpression):
        def blocks(self, rows: Any, *, max_elements: int | None = None) -> Any:
            return super().blocks(order[rows], max_elements=max_elements)

        def gene_means(self, rows: Any, *, scale: str) -> Any:
            return super().gene_means(order[rows], scale=scale)

    other = replace(
        inputs,
        embedding=world.embeddings[embedding][order],
        samples=moved,
        splits={name: np.sort(place[rows]) for name, rows in inputs.splits.items()},
        expression=Moved(inputs.expression.screen),
    )
    # The recipe of the probe draws minibatches by position: its closed form shows the order of the rows alone.
    params = protocol_params(protocol, task)
    if task == "linear_probe" and protocol == "paper":
        params = {"solver": "lda"}
    first, second = scores_of(inputs, task, **params), scores_of(other, task, **params)
    for name, score in first.items():
        assert second[name].value == pytest.approx(score.value, rel=1e-5, abs=precision(task, protocol)), name


@pytest.mark.parametrize("protocol", ["paper", "corrected"])
@pytest.mark.parametrize("task", ["batch_mixing", "linear_probe", "knn"])
def test_names_of_perturbations_do_not_matter(world: World, task: str, protocol: str) -> None:
    inputs = replace(world.inputs, embedding=world.embeddings["tied"])
    code = np.random.default_rng(6).permutation(len(inputs.samples.perturbations))
    renamed = replace(
        inputs.samples,
        perturbation=code[inputs.samples.perturbation],
        perturbations=np.array([f"p{i:03d}" for i in range(len(code))]),
        target_genes=inputs.samples.target_genes[np.argsort(code)],
    )
    params = protocol_params(protocol, task)
    if task == "linear_probe" and protocol == "paper":
        params = {"solver": "lda"}
    first, second = (scores_of(replace(inputs, samples=s), task, **params) for s in (inputs.samples, renamed))
    for name, score in first.items():
        assert second[name].value == pytest.approx(score.value, rel=1e-5, abs=precision(task, protocol)), name
        assert second[name].chance == (score.chance and pytest.approx(score.chance, rel=1e-5)), name


def test_what_is_drawn_does_not_depend_on_the_order_of_the_file(world: World) -> None:
    inputs, n = world.inputs, world.inputs.samples.n
    order = np.random.default_rng(7).permutation(n)
    place = np.argsort(order)
    moved = replace(
        inputs,
        embedding=world.embeddings["good"][order],
        samples=replace(
            inputs.samples,
            perturbation=inputs.samples.perturbation[order],
            is_control=inputs.samples.is_control[order],
            batch=inputs.samples.batch[order],
        ),
        splits={name: np.sort(place[rows]) for name, rows in inputs.splits.items()},
        sample_order=lambda: place,
    )
    for task, params in {
        "batch_mixing": {"max_samples": 300, "perplexity": 10},
        "knn": {"max_reference": 300, "retrieval": True, "max_queries": 100, "retrieval_draws": 20},
        "linear_probe": {"max_train": 300, "solver": "lda"},
    }.items():
        first, second = scores_of(inputs, task, **params), scores_of(moved, task, **params)
        for name, score in first.items():
            assert second[name].value == pytest.approx(score.value, rel=1e-5, abs=1e-6), name
            assert second[name].left_out == score.left_out


def test_what_a_screen_lacks_is_a_reason_and_not_an_error(world: World) -> None:
    nothing = np.empty(0, dtype=np.int64)
    bare = replace(
        world.inputs,
        splits={"train": nothing, "test": nothing, "heldout": nothing},
        expression=None,
        relations={},
    )
    for task in list_tasks():
        for name, score in scores_of(bare, task.name).items():
            if task.name == "consistency":
                continue
            assert score.value is None and len(score.reason) > 15, (task.name, name)
    null = scores_of(bare, "consistency", null="unexpressed")["consistent"]
    assert null.value is None and "no expression matrix" in null.reason


def test_unexpressed_targets_are_the_null_where_there_are_enough(world: World) -> None:
    score = scores_of(world.inputs, "consistency")["consistent"]
    assert any("unexpressed targets" in note for note in score.notes)
    assert score.left_out["perturbations that are the null"] >= 15
    permuted = scores_of(world.inputs, "consistency", null="permutation")["consistent"]
    assert any("random sets" in note for note in permuted.notes)
    assert "perturbations that are the null" not in permuted.left_out


def test_few_perturbed_genes_are_said_instead_of_a_noisy_number(world: World) -> None:
    score = scores_of(world.inputs, "relationships", min_genes=500)["recall"]
    assert score.value is None and "500 are needed" in score.reason


def test_reference_keeps_the_control_label_in_the_map(world: World) -> None:
    with_control = scores_of(world.inputs, "relationships", keep_control=True)["recall"]
    without = scores_of(world.inputs, "relationships")["recall"]
    genes = [int(score.notes[0].split()[0]) for score in (with_control, without)]
    assert genes[0] == genes[1] + 1


@pytest.mark.parametrize("keep", ["drawn", "complement"])
def test_downsampling_is_counted_and_keeps_what_it_says(world: World, keep: str) -> None:
    n = len(world.inputs.splits["test"])
    score = scores_of(world.inputs, "batch_mixing", max_samples=200, downsample=keep, perplexity=10)["ilisi"]
    assert score.n_samples == (200 if keep == "drawn" else n - 200)
    assert score.left_out == {"samples beyond max_samples": n - score.n_samples}


def test_scoring_every_other_minibatch_uses_fewer_samples(world: World) -> None:
    n = len(world.inputs.splits["heldout"])
    part = scores_of(world.inputs, "reconstruction", score_every=100)["mse"].n_samples
    assert part == min(n, 512)


@pytest.mark.parametrize(
    ("task", "params", "fragment"),
    [
        ("knn", {"kk": 3}, "did you mean 'k'"),
        ("knn", {"k": 0}, "k is 0"),
        ("knn", {"k": "many"}, "type int"),
        ("linear_probe", {"solver": "sgd"}, "'adamw'"),
        ("consistency", {"alpha": 2.0}, "alpha is 2.0"),
        ("relationships", {"tail": 0.7}, "tail is 0.7"),
    ],
)
def test_bad_parameters_are_named(task: str, params: dict[str, Any], fragment: str) -> None:
    with pytest.raises(InputError, match=fragment):
        task_params(get_task(task), params)
