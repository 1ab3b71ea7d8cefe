"""The benchmark on real screens: every level has scores or a reason, and the known order of things holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from txeval.data import simulate_screen
from txeval.run import NullProgress, build_config, execute, make_plan, read_scores


def run(out: Path, **values: Any) -> pd.DataFrame:
    config = build_config({"min_counts": 0, "seeds": 1, "out": out, **values})
    outcome = execute(make_plan(config), progress=NullProgress())
    assert outcome.n_errors == 0
    return read_scores(out)


def value(scores: pd.DataFrame, model: str, task: str, metric: str, post: str = "raw", subset: str = "") -> float:
    rows = scores.query(
        "model == @model and task == @task and metric == @metric and post_processing == @post and subset == @subset"
    )
    assert len(rows), (model, task, metric, post)
    return float(rows["value"].mean())


def check_complete(scores: pd.DataFrame) -> None:
    """Every row has a value or a reason, and every level has rows for every embedding."""
    assert (scores["value"].notna() | (scores["reason"].str.len() > 10)).all()
    assert set(scores["level"]) == {1, 2, 3, 4, 5, 6}
    per_model = scores.groupby("model")["task"].nunique()
    assert (per_model == 6).all()


@pytest.mark.parametrize(
    ("file", "roles"),
    [
        (
            "papalexi2021_thp1_ecciteseq_299genes.h5ad",
            {"perturbation": "perturbation", "control": ["non-targeting"], "batch": "bio_rep"},
        ),
        (
            "schraivogel2020_k562_tapseq_72genes.h5ad",
            {"perturbation": "perturbation", "control": ["non-targeting"], "batch": "lane"},
        ),
    ],
)
def test_pca_is_above_random_where_it_must_be(data_dir: Path, tmp_path: Path, file: str, roles: dict[str, Any]) -> None:
    scores = run(
        tmp_path / "out",
        screen=data_dir / file,
        roles=roles,
        embeddings=["pca@components=50"],
        post_processing=["raw"],
        relations=data_dir / "relationships",
        protocol=_quick(tmp_path),
    )
    check_complete(scores)
    pca = "pca"
    for metric in ("top1", "top5"):
        assert value(scores, pca, "linear_probe", metric) > value(scores, "random", "linear_probe", metric) + 0.05
    assert value(scores, pca, "knn", "top5_perturbed") > value(scores, "random", "knn", "top5_perturbed") + 0.05
    assert value(scores, pca, "consistency", "consistent_adjusted") > value(
        scores, "random", "consistency", "consistent_adjusted"
    )
    # Few perturbed genes, and one test batch: said, not scored.
    assert scores.query("task == 'relationships'")["reason"].str.contains("perturbed genes").all()
    assert scores.query("task == 'batch_mixing'")["reason"].str.contains("one batch").all()


def test_the_map_of_perturbed_genes_recalls_known_relationships(data_dir: Path, tmp_path: Path) -> None:
    scores = run(
        tmp_path / "out",
        screen=data_dir / "ipsc_ec_perturbseq_298targets_x_120programs.h5ad",
        roles={"perturbation": "perturbation", "control": ["safe-targeting"]},
        embeddings=["map=X@nan=0"],
        post_processing=["raw"],
        seeds=5,
        relations=data_dir / "relationships",
    )
    check_complete(scores)
    recall = scores.query("task == 'relationships' and metric == 'recall'")
    of_map, of_random = recall[recall["model"] == "map"], recall[recall["model"] == "random"]
    assert len(of_map) == 5 and of_map["value"].notna().all()
    assert (of_map["value"] > of_map["chance_high"]).all()
    assert (of_map["value"] > 0.15).all()
    weights = of_random["n_groups"].astype(float)
    assert np.average(of_random["value"], weights=weights) == pytest.approx(0.10, abs=0.03)
    inside = of_random["value"].between(of_random["chance_low"], of_random["chance_high"])
    assert inside.mean() > 0.8


def test_scores_do_not_depend_on_workers_blocks_or_order_of_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "screen.h5ad"
    simulate_screen(path, n_samples=1200, n_genes=60, n_perturbations=12, n_batches=6)
    screen = anndata.read_h5ad(path)
    moved = tmp_path / "moved.h5ad"
    screen[np.random.default_rng(0).permutation(screen.n_obs)].copy().write_h5ad(moved)
    common: dict[str, Any] = {
        "roles": {"perturbation": "perturbation", "control_column": "control", "batch": "batch"},
        "embeddings": ["pca@components=20", "truth=obsm:X_truth", "random_uniform@dim=20"],
        "post_processing": ["raw", "tvn"],
        "tasks": ["batch_mixing", "consistency", "knn", "reconstruction", "linear_probe"],
        "protocol": _quick(tmp_path),
    }
    base = run(tmp_path / "base", screen=path, **common)
    two = run(tmp_path / "two", screen=path, workers=2, **common)
    small = run(tmp_path / "small", screen=path, max_elements=5000, **common)
    other = run(tmp_path / "other", screen=moved, **common)
    keys = ["model", "post_processing", "task", "metric", "subset", "seed"]
    values = base.set_index(keys)["value"].sort_index()
    pd.testing.assert_series_equal(two.set_index(keys)["value"].sort_index(), values, check_exact=True)
    for scores in (small, other):
        again = scores.set_index(keys)["value"].sort_index()
        pd.testing.assert_series_equal(again, values, rtol=2e-3, atol=2e-3)


def _quick(folder: Path) -> str:
    """A protocol whose trained models have a closed form, so that only rounding can differ."""
    path = folder / "quick.yaml"
    path.write_text(
        "name: quick\nextends: paper\ntasks:\n"
        "  linear_probe: {solver: lda}\n  reconstruction: {decoder: least_squares}\n  consistency: {draws: 100}\n"
    )
    return str(path)


def test_z_scores_have_no_unexpressed_targets(data_dir: Path, tmp_path: Path) -> None:
    """The threshold of 0.43 is one of log-normalised values: every gene of this plate of z-scores lies below it."""
    scores = run(
        tmp_path / "out",
        screen=data_dir / "l1000_shrna_kd_litmus_plate_976genes.h5ad",
        roles={"perturbation": "perturbation", "control_column": "control", "gene_symbol": "pr_gene_symbol"},
        embeddings=["pca@components=20,input=as_is"],
        post_processing=["raw"],
        tasks=["consistency"],
    )
    rows = scores.query("metric == 'consistent'")
    assert rows["notes"].str.contains("random sets of perturbed samples").all()
    assert rows["notes"].str.contains("no values log-normalised to 10,000").all()
    assert (rows["n_groups"] == 85).all()
    assert value(scores, "pca", "consistency", "consistent") > 0.85
    assert value(scores, "random", "consistency", "consistent") < 0.15


def test_one_drug_has_nothing_to_be_tested_against(data_dir: Path, tmp_path: Path) -> None:
    scores = run(
        tmp_path / "out",
        screen=data_dir / "zhao2021_gbm_panobinostat_300genes.h5ad",
        roles={"perturbation": "condition", "control": ["ctrl"], "batch": "patient_id"},
        embeddings=["pca@components=4"],
        post_processing=["raw"],
        tasks=["consistency"],
    )
    assert scores["value"].isna().all()
    assert set(scores["metric"]) >= {"consistent", "magnitude", "magnitude_adjusted"}
    assert scores["reason"].str.contains("without another one in their batches").all()
