"""Rows of `paper` and `reference` stay what they were before other protocols came: values kept in a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from txeval.data import LogNormExpression, Roles, open_screen, simulate_screen, split
from txeval.protocol import load_protocol
from txeval.tasks import TaskInputs, list_tasks, run_task, task_params
from txeval.tasks.registry import metrics_of

FILE = Path(__file__).with_name("paper_rows.json")

#: Everything else is the protocol's.
CHEAP: dict[str, dict[str, Any]] = {
    "linear_probe": {"epochs": 15, "warmup_epochs": 3, "batch_size": 256},
    "consistency": {"draws": 100, "min_null": 5},
    "knn": {"k": 31},
    "relationships": {"min_genes": 15, "draws": 50},
    "reconstruction": {"epochs": 4, "warmup_epochs": 1, "batch_size": 128},
}


def rows(folder: Path) -> dict[str, list[float | None]]:
    """Value and chance of every score, by protocol, task, metric and subset."""
    truth = simulate_screen(
        folder / "screen.h5ad", n_samples=900, n_genes=60, n_perturbations=25, n_batches=5, effect=1.5, seed=11
    )
    roles = Roles("perturbation", control_column="control", batch="batch", target_gene="gene")
    screen = open_screen(folder / "screen.h5ad", roles)
    samples = screen.samples
    found: dict[str, list[float | None]] = {}
    for name in ("paper", "reference"):
        protocol = load_protocol(name)
        splits = split(
            samples.perturbations[samples.perturbation],
            samples.batches[samples.batch],
            samples.is_control,
            seed=7,
            scheme=protocol.split["scheme"],
        )
        inputs = TaskInputs(
            embedding=screen.read_obsm("X_noisy"),
            samples=samples,
            splits=splits,
            params=None,
            expression=LogNormExpression(screen),
            relations={"modules": truth.relations},
        )
        for task in list_tasks():
            params = task_params(task, {**protocol.tasks.get(task.name, {}), **CHEAP.get(task.name, {})})
            for metric, score in run_task(task, replace(inputs, params=params), metrics_of(task)).scores:
                found[f"{name}/{task.name}/{metric.name}/{score.subset}"] = [score.value, score.chance]
    return found


def test_rows_are_those_of_before(tmp_path: Path) -> None:
    before = json.loads(FILE.read_text())
    found = rows(tmp_path)
    assert set(before) <= set(found)
    for key, values in before.items():
        # Accuracies of trained models may differ by a sample on other processors.
        loose = 0.02 if "linear_probe" in key else 1e-6
        for name, one, other in zip(("value", "chance"), values, found[key], strict=True):
            if one is None:
                assert other is None, (key, name)
            else:
                assert other == pytest.approx(one, rel=1e-4, abs=loose), (key, name)
    assert sum(value is not None for value, _ in before.values()) > 0.9 * len(before)
    assert np.isfinite([value for value, _ in before.values() if value is not None]).all()
