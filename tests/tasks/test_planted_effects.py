"""Every level on simulated screens: its score grows with the planted effect, and without one it is at chance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from txeval.data import LogNormExpression, Roles, open_screen, simulate_screen, split
from txeval.tasks import Score, TaskInputs, get_task, run_task, task_params
from txeval.tasks.registry import metrics_of

EFFECTS = (0.0, 0.4, 1.6)
BATCH_EFFECTS = (0.0, 0.3, 1.0)
PARAMS: dict[str, dict[str, Any]] = {
    "batch_mixing": {"perplexity": 30},
    "linear_probe": {"solver": "lda"},
    "consistency": {"min_null": 20},
    "knn": {"k": 51},
    "relationships": {"min_genes": 20, "draws": 200},
    "reconstruction": {"decoder": "least_squares"},
}


def inputs_of(path: Path, embed: str, **settings: Any) -> TaskInputs:
    truth = simulate_screen(
        path,
        n_samples=3000,
        n_genes=160,
        n_perturbations=60,
        n_batches=6,
        unexpressed_targets=30,
        null_fraction=0.0,
        seed=5,
        **settings,
    )
    screen = open_screen(path, Roles("perturbation", control_column="control", batch="batch", target_gene="gene"))
    samples = screen.samples
    expression = LogNormExpression(screen)
    if embed == "expression":
        values = np.concatenate([block for _, block in expression.blocks(np.arange(screen.n))]).astype(np.float32)
    else:
        values = screen.read_obsm(embed)
    return TaskInputs(
        embedding=values,
        samples=samples,
        splits=split(
            samples.perturbations[samples.perturbation], samples.batches[samples.batch], samples.is_control, seed=1
        ),
        params=None,
        expression=expression,
        relations={"programs": truth.relations},
    )


def score(inputs: TaskInputs, name: str, metric: str) -> Score:
    task = get_task(name)
    ready = replace(inputs, params=task_params(task, PARAMS[name]))
    return {m.name: found for m, found in run_task(task, ready, metrics_of(task)).scores}[metric]


@pytest.fixture(scope="module")
def by_effect(tmp_path_factory: pytest.TempPathFactory) -> list[TaskInputs]:
    folder = tmp_path_factory.mktemp("effects")
    return [inputs_of(folder / f"{effect}.h5ad", "X_truth", effect=effect, program_noise=0.1) for effect in EFFECTS]


@pytest.fixture(scope="module")
def without_noise(tmp_path_factory: pytest.TempPathFactory) -> list[TaskInputs]:
    """Activities that scatter by themselves can be reconstructed without any perturbation."""
    folder = tmp_path_factory.mktemp("effects")
    return [inputs_of(folder / f"{effect}.h5ad", "X_truth", effect=effect, program_noise=0.0) for effect in EFFECTS]


@pytest.mark.parametrize(
    ("task", "metric", "chance", "tolerance"),
    [
        ("linear_probe", "top1_balanced", None, 0.02),
        ("linear_probe", "top5", None, 0.04),
        ("consistency", "consistent", 0.05, 0.1),
        ("consistency", "magnitude", 0.05, 0.1),
        ("knn", "top1_balanced", None, 0.02),
        ("knn", "top5_perturbed", None, 0.04),
        ("relationships", "recall", 0.1, 0.09),
        ("relationships", "auroc", 0.5, 0.06),
        ("reconstruction", "spearman", 0.0, 0.02),
        ("reconstruction", "structural_integrity", 0.5, 0.01),
    ],
)
def test_score_grows_with_the_effect(
    by_effect: list[TaskInputs],
    without_noise: list[TaskInputs],
    task: str,
    metric: str,
    chance: float | None,
    tolerance: float,
) -> None:
    screens = without_noise if task == "reconstruction" else by_effect
    if task == "consistency":
        # The activities themselves would give weak effects away as surely as strong ones.
        screens = [replace(inputs, embedding=inputs.expression.screen.read_obsm("X_noisy")) for inputs in screens]
    scores = [score(inputs, task, metric) for inputs in screens]
    none, weak, strong = (found.value for found in scores)
    assert none is not None and weak is not None and strong is not None, [found.reason for found in scores]
    if chance is None:
        chance = scores[0].chance
        assert chance is not None
    assert none == pytest.approx(chance, abs=tolerance)
    assert none < weak < strong
    assert strong > chance + 2 * tolerance


def test_mixing_falls_with_the_batch_effect(tmp_path: Path) -> None:
    values = []
    for effect in BATCH_EFFECTS:
        inputs = inputs_of(tmp_path / f"{effect}.h5ad", "expression", effect=0.0, batch_effect=effect)
        found = score(inputs, "batch_mixing", "ilisi").value
        assert found is not None
        values.append(found)
        n_batches = len(np.unique(inputs.samples.batch[inputs.splits["test"]]))
    none, weak, strong = values
    assert none > 0.9 * n_batches
    assert none > weak > strong
    assert strong < 0.6 * n_batches
