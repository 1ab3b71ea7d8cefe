"""Every level has its floors and its ceiling as rows, with numbers where a screen allows them."""

from __future__ import annotations

import pandas as pd
import pytest
import yaml

from txeval.data import simulate_screen
from txeval.run import NullProgress, build_config, execute, make_plan

FLOORS = {"random", "shuffled", "control_mean"}
CEILING = "replicate ceiling (pca)"
LEVELS = {"batch_mixing", "linear_probe", "consistency", "knn", "relationships", "reconstruction"}
PROTOCOL = {
    "name": "cheap",
    "extends": "corrected",
    "tasks": {
        "knn": {"k": 31, "retrieval_draws": 99},
        "consistency": {"draws": 99},
        "relationships": {"draws": 50},
        "linear_probe": {"weight_decays": [0.1, 0.01], "max_iterations": 40},
    },
}


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("floors")
    truth = simulate_screen(
        folder / "screen.h5ad", n_samples=2400, n_genes=250, n_perturbations=60, n_batches=6, effect=1.5, seed=3
    )
    relations = folder / "relations"
    relations.mkdir()
    truth.relations.to_csv(relations / "modules.csv", index=False)
    (folder / "cheap.yaml").write_text(yaml.safe_dump(PROTOCOL))
    config = build_config(
        {
            "screen": folder / "screen.h5ad",
            "roles": {
                "perturbation": "perturbation",
                "control_column": "control",
                "batch": "batch",
                "target_gene": "gene",
            },
            "embeddings": ["pca"],
            "protocol": str(folder / "cheap.yaml"),
            "relations": relations,
            "post_processing": ["centering"],
            "min_counts": 0,
            "seeds": 1,
            "workers": 1,
            "out": folder / "out",
        }
    )
    return execute(make_plan(config), progress=NullProgress()).scores


def test_every_level_has_a_row_for_every_metric_of_floors_and_ceiling(scores: pd.DataFrame) -> None:
    metrics = {task: set(part["metric"]) for task, part in scores[scores["model"] == "pca"].groupby("task")}
    assert set(metrics) == LEVELS
    for model in (*sorted(FLOORS), CEILING):
        mine = scores[scores["model"] == model]
        assert {task: set(part["metric"]) for task, part in mine.groupby("task")} == metrics
        # A hole says why.
        holes = mine[mine["status"] != "ok"]
        assert (holes["reason"].str.len() > 0).all()
        assert set(mine.loc[mine["status"] == "ok", "task"]) == LEVELS - ({"relationships"} & set(holes["task"]))


def test_floors_are_where_they_belong(scores: pd.DataFrame) -> None:
    value = scores[scores["subset"] == ""].set_index(["model", "task", "metric"])["value"]
    chance = scores[scores["subset"] == ""].set_index(["model", "task", "metric"])["chance"]
    for model in FLOORS:
        top1 = (model, "knn", "top1_perturbed_balanced")
        assert value[top1] == pytest.approx(chance[top1], abs=0.04)
        assert abs(value[model, "reconstruction", "structural_integrity_rescaled"]) < 0.1
        assert value[model, "consistency", "consistent_adjusted"] < 0.1
    assert value["control_mean", "reconstruction", "structural_integrity_rescaled"] == pytest.approx(0, abs=0.01)


def test_the_ceiling_is_above_the_embedding_and_says_what_was_held_against_what(scores: pd.DataFrame) -> None:
    mine = scores[scores["model"] == CEILING]
    assert mine.loc[mine["derived"] == False, "notes"].str.contains("ceiling: ").all()  # noqa: E712
    ok = scores[(scores["status"] == "ok") & (scores["subset"] == "")]
    both = ok.pivot_table(index=["task", "metric"], columns="model", values="value")
    for key in (
        ("batch_mixing", "ilisi_perfect"),
        ("linear_probe", "top1_balanced"),
        ("consistency", "consistent_adjusted"),
        ("knn", "map"),
        ("knn", "top1_perturbed_balanced"),
        ("reconstruction", "pearson_delta"),
    ):
        assert both.loc[key, CEILING] > both.loc[key, "pca"] - 0.02
    # All samples that a model is asked are asked.
    n = ok.pivot_table(index=["task", "metric"], columns="model", values="n_samples")
    for task in ("linear_probe", "knn", "reconstruction", "batch_mixing"):
        part = n.loc[task].dropna()
        assert (part[CEILING] == part["pca"]).all()
