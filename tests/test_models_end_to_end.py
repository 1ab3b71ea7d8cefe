"""Every model of the paper through `run`, on a real screen: scVI trained here, foundation models untrained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from txeval.cli import main
from txeval.run import NullProgress, build_config, execute, make_plan, read_scores
from txeval.testing import make_tiny_cellplm, make_tiny_geneformer, make_tiny_scgpt, make_tiny_uce

QUICK = (
    "name: quick\nextends: paper\ntasks:\n"
    "  linear_probe: {solver: lda}\n  reconstruction: {decoder: least_squares}\n  consistency: {draws: 50}\n"
)


def subset(source: Path, out: Path, n: int, layer: str | None = None) -> Path:
    """A seeded sample of a real screen, with its counts in X."""
    screen = anndata.read_h5ad(source)
    screen = screen[np.sort(np.random.default_rng(0).choice(screen.n_obs, n, replace=False))].copy()
    if layer is not None:
        screen.X = screen.layers[layer]
    screen.write_h5ad(out)
    return out


ROLES: dict[str, dict[str, Any]] = {
    "norman": {"perturbation": "perturbation", "control": ["control"], "batch": "gem_group"},
    "papalexi": {"perturbation": "perturbation", "control": ["non-targeting"], "batch": "bio_rep"},
}


@pytest.fixture(scope="module", params=["norman", "papalexi"])
def scores(request: pytest.FixtureRequest, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """All models on one screen; transfer scVI comes from the other one."""
    folder = tmp_path_factory.mktemp("models")
    screens = {
        "norman": subset(data_dir / "norman2019_k562_crispra_500hvg.h5ad", folder / "norman.h5ad", 500, "counts"),
        "papalexi": subset(data_dir / "papalexi2021_thp1_ecciteseq_299genes.h5ad", folder / "papalexi.h5ad", 600),
    }
    here = request.param
    there = next(name for name in screens if name != here)
    genes = list(anndata.read_h5ad(screens[here], backed="r").var_names)
    (folder / "quick.yaml").write_text(QUICK)
    weights = {
        "geneformer-v1": make_tiny_geneformer(folder / "v1", genes, version=1),
        "geneformer-v2-104m": make_tiny_geneformer(folder / "v2", genes, version=2),
        "scgpt": make_tiny_scgpt(folder / "scgpt", genes),
        "uce-4l": make_tiny_uce(folder / "uce", genes),
        "cellplm": make_tiny_cellplm(folder / "cellplm", genes),
    }
    small = "latent=16,hidden=32,max_epochs=12,genes=150"
    reference = (
        f"reference={screens[there]},reference_perturbation=perturbation"
        f",reference_control={ROLES[there]['control'][0]},reference_batch={ROLES[there]['batch']}"
    )
    values: dict[str, Any] = {
        "screen": screens[here],
        "roles": ROLES[here],
        "embeddings": [
            "pca@components=20",
            *(f"scvi-{likelihood}=scvi@likelihood={likelihood},{small}" for likelihood in ("zinb", "nb", "poisson")),
            f"transfer-scvi@{reference},min_gene_overlap=0.001,{small}",
            *(f"{name}@weights={path}" for name, path in weights.items()),
            f"scgpt-finetuned@weights={weights['scgpt']},epochs=1",
        ],
        "protocol": str(folder / "quick.yaml"),
        "post_processing": ["raw"],
        "seeds": 1,
        "min_counts": 0,
        "relations": data_dir / "relationships",
        "out": folder / "out",
    }
    outcome = execute(make_plan(build_config(values)), progress=NullProgress())
    assert outcome.n_errors == 0, outcome.warnings
    made = read_scores(folder / "out")
    made.attrs["folder"] = folder / "out"
    return made


def test_every_model_has_all_six_levels(scores: pd.DataFrame) -> None:
    assert scores["model"].nunique() == 12
    assert (scores.groupby("model")["level"].nunique() == 6).all()
    assert (scores["value"].notna() | (scores["reason"].str.len() > 10)).all()
    lacking = scores[scores["value"].isna()]
    # Papalexi has three batches, one of them in the test split.
    assert set(lacking["task"]) <= {"relationships", "batch_mixing"}
    assert lacking["reason"].str.contains("perturbed genes|one batch|random baseline").all()


def test_models_with_random_weights_say_so_in_every_output(
    scores: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    untrained = {"geneformer-v1", "geneformer-v2-104m", "scgpt", "scgpt-finetuned", "uce-4l", "cellplm"}
    said = scores["notes"].str.contains("untrained:", regex=False)
    scored = scores["value"].notna() & ~scores["derived"]
    assert set(scores.loc[said, "model"]) == untrained
    assert said[scored & scores["model"].isin(untrained)].all()
    folder = str(scores.attrs["folder"])
    for words in (["--format", "csv"], ["--format", "markdown"], ["--table", "full", "--format", "latex"], ["--plain"]):
        assert main(["show", folder, *words]) == 0
        text = capsys.readouterr().out.replace("\n", " ")
        assert text.count("(untrained)") >= len(untrained), words


def test_trained_models_are_above_random_where_pca_is(scores: pd.DataFrame) -> None:
    def value(model: str, task: str, metric: str) -> float:
        rows = scores.query("model == @model and task == @task and metric == @metric")
        return float(rows["value"].mean())

    for task, metric in (("linear_probe", "top5"), ("reconstruction", "spearman")):
        assert value("pca", task, metric) > value("random", task, metric)
        for likelihood in ("zinb", "nb", "poisson"):
            assert value(f"scvi-{likelihood}", task, metric) > value("random", task, metric), (task, likelihood)
