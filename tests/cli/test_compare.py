"""Floors, ceilings, intervals, ranks and comparisons of a real run on a simulated screen with batch effects."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from txeval.cli import main
from txeval.data.simulate import simulate_screen
from txeval.data.truth import relations_folder
from txeval.protocol import load_protocol
from txeval.report import ResultsFolder, summary
from txeval.report.comparison import compare, sides
from txeval.run import NullProgress, build_config, execute, make_plan, read_scores

PROTOCOL = """
extends: corrected
name: small
seeds: 2
post_processing: {choices: [raw, centering]}
headline:
  batch_mixing: [ilisi]
  knn: [top1_perturbed, top5]
  consistency: [consistent]
  reconstruction: [structural_integrity, spearman]
tasks:
  consistency: {draws: 60}
  batch_mixing: {perplexity: 20, biology: false}
  knn: {retrieval: false, k: 15}
"""
TASKS = ["batch_mixing", "knn", "consistency", "reconstruction", "relationships"]


def run(folder: Path, out: str, **changes: object):
    values = {
        "screen": folder / "screen.h5ad",
        "roles": {"perturbation": "perturbation", "control": ["non-targeting"], "batch": "batch"},
        "embeddings": ["pca", "truth=obsm:X_truth", "noisy=obsm:X_noisy"],
        "protocol": str(folder / "small.yaml"),
        "tasks": TASKS,
        "min_counts": 0,
        "relations": relations_folder(folder / "screen.h5ad"),
        "out": folder / out,
        **changes,
    }
    return execute(make_plan(build_config(values)), progress=NullProgress())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    simulate_screen(
        folder / "screen.h5ad",
        n_samples=1200,
        n_genes=120,
        n_perturbations=60,
        n_batches=14,
        unexpressed_targets=0,
        effect=3.0,
        batch_effect=0.4,
    )
    (folder / "small.yaml").write_text(PROTOCOL)
    run(folder, "results")
    return folder


@pytest.fixture(scope="module")
def scores(folder: Path) -> pd.DataFrame:
    return read_scores(folder / "results")


def value(scores: pd.DataFrame, model: str, metric: str, post: str = "raw", subset: str = "") -> float:
    rows = scores[
        (scores["model"] == model)
        & (scores["metric"] == metric)
        & (scores["post_processing"] == post)
        & (scores["subset"] == subset)
    ]
    assert len(rows), (model, metric)
    assert (rows["status"] == "ok").all(), rows["reason"].iloc[0]
    return float(rows["value"].mean())


def test_nothing_failed(scores: pd.DataFrame) -> None:
    failed = scores[scores["status"] != "ok"]
    assert failed.empty, failed[["model", "task", "metric", "post_processing", "reason"]].drop_duplicates().to_string()


def test_a_screen_whose_perturbations_do_nothing_has_the_control_mean_as_its_score(scores: pd.DataFrame) -> None:
    assert value(scores, "control_mean", "structural_integrity") == pytest.approx(0.5, abs=0.01)
    assert value(scores, "control_mean", "top1_perturbed") < 0.08
    assert value(scores, "control_mean", "consistent") < 0.15


def test_rows_shuffled_within_batch_mix_as_the_original_and_know_nothing_else(scores: pd.DataFrame) -> None:
    # Not the same to the last digit: the test split holds part of a batch, and rows move in and out of it.
    assert value(scores, "shuffled", "ilisi") == pytest.approx(value(scores, "pca", "ilisi"), rel=0.03)
    assert value(scores, "shuffled", "top1_perturbed") < 0.06
    assert value(scores, "random", "ilisi") > value(scores, "shuffled", "ilisi")


@pytest.mark.parametrize("metric", ["spearman", "structural_integrity", "ilisi"])
def test_the_ceiling_is_not_below_the_model_that_it_is_the_ceiling_of(scores: pd.DataFrame, metric: str) -> None:
    ceiling = "replicate ceiling (pca)"
    assert value(scores, ceiling, metric) > value(scores, "pca", metric)
    assert scores.loc[scores["model"] == ceiling, "notes"].str.contains("ceiling: ").all()


def test_the_ceiling_of_knn_is_far_above_the_floors(scores: pd.DataFrame) -> None:
    # Half of the queries, about one sample of a perturbation per batch: near the model, not strictly above it.
    ceiling = value(scores, "replicate ceiling (pca)", "top1_perturbed")
    assert ceiling > value(scores, "pca", "top1_perturbed") - 0.1
    assert ceiling > 5 * value(scores, "shuffled", "top1_perturbed")


def test_the_ceiling_of_relationships_and_consistency_is_above_chance(scores: pd.DataFrame) -> None:
    ceiling = "replicate ceiling (pca)"
    recalls = scores[(scores["model"] == ceiling) & (scores["metric"] == "recall")]
    assert (recalls["value"] > recalls["chance"]).all()
    assert value(scores, ceiling, "consistent") >= value(scores, "pca", "consistent") - 0.05


def test_a_second_run_computes_nothing(folder: Path) -> None:
    again = run(folder, "results")
    assert (again.n_computed, again.n_failed) == (0, 0)


def test_floors_are_chosen_by_the_protocol_or_by_the_run(folder: Path) -> None:
    def labels(**changes: object) -> list[str]:
        values = {
            "screen": folder / "screen.h5ad",
            "roles": {"perturbation": "perturbation", "control": ["non-targeting"], "batch": "batch"},
            "embeddings": ["truth=obsm:X_truth"],
            **changes,
        }
        return [spec.label for spec in build_config(values).chosen_embeddings]

    assert labels() == ["random", "truth"]
    assert labels(protocol="corrected") == ["random", "shuffled", "control_mean", "replicate ceiling (pca)", "truth"]
    assert labels(baseline=False) == ["truth"]
    assert labels(baselines=["ceiling@of=obsm:X_truth"]) == ["replicate ceiling (obsm:X_truth)", "truth"]
    assert labels(baselines=["shuffled"], embeddings=["mine=shuffled"]) == ["mine"]


def test_the_summary_has_intervals_ranks_and_a_choice_without_leakage(folder: Path) -> None:
    results = ResultsFolder.open(folder / "results")
    table = summary(results.scores, results)
    assert set(table["metric"]) == {
        "ilisi",
        "top1_perturbed",
        "top5",
        "consistent",
        "structural_integrity",
        "spearman",
        "recall",
        "recall_perturbed_mean",
    }
    assert set(table["choice"]) == {"cross_fitted"}
    assert (table["remark"] == "").all()
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    assert list(dict.fromkeys(table["model"]))[:4] == ["random", "shuffled", "control_mean", "replicate ceiling (pca)"]
    models = table[table["role"] == ""]
    assert (models["rank_low"] <= models["rank"]).all()
    assert (models["rank"] <= models["rank_high"]).all()
    assert table.loc[table["role"] != "", "rank"].isna().all()
    knn = models[models["metric"] == "top1_perturbed"].set_index("model")
    assert knn.loc["truth", "rank_high"] == 1
    assert list(knn["tied_best"]) == [model == "truth" for model in knn.index]


def test_seeds_of_a_mean_have_an_interval(folder: Path) -> None:
    results = ResultsFolder.open(folder / "results")
    table = summary(results.scores, results)
    random = table[(table["model"] == "random") & (table["metric"] == "top1_perturbed")].iloc[0]
    assert random["n_seeds"] == 2
    assert random["sd"] > 0
    assert random["low"] < random["value"] < random["high"]


def test_two_embeddings_are_told_apart_where_they_differ(folder: Path) -> None:
    results = ResultsFolder.open(folder / "results")
    frame = compare(sides(results, None, ["truth", "random"]))
    knn = frame[frame["metric"] == "top1_perturbed"].iloc[0]
    assert knn["verdict"] == "first"
    assert knn["difference"] == pytest.approx(knn["first_value"] - knn["second_value"])
    assert knn["low"] > 0
    assert (frame["p_holm"] >= frame["p_value"]).all()
    assert (frame["p_bh"] <= frame["p_holm"] + 1e-12).all()
    assert frame["reason"].eq("").all()


def test_a_folder_against_itself_is_equal_everywhere(folder: Path) -> None:
    one, other = (ResultsFolder.open(folder / "results") for _ in range(2))
    frame = compare(sides(one, other, []))
    assert set(frame["first"]) == {"noisy [A]", "pca [A]", "truth [A]"}
    assert (frame["difference"] == 0).all()
    assert set(frame["verdict"]) == {"not told apart"}
    assert frame["note"].str.contains("equal on every unit").all()


def test_what_the_commands_print(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = str(folder / "results")

    def printed(*words: str) -> str:
        assert main([*words, "--plain"]) == 0
        return capsys.readouterr().out

    shown = printed("show", results)
    assert "*" in shown
    assert "#1" in shown
    assert "halves are swapped" in " ".join(shown.split())
    ranks = printed("compare", results)
    assert "ranks of 3 embeddings" in ranks
    assert "truth is first" in printed("compare", results, "--format", "words", "--metric", "top1_perturbed")
    pair = printed("compare", results, "--embeddings", "truth", "random", "--post-processing", "raw")
    assert "truth better" in pair
    assert "adjusted for the" in pair
    table = pd.read_csv(io.StringIO(printed("compare", results, "--format", "csv")))
    assert len(table) == 3 * table["label"].nunique()
    marked = printed("compare", results, "--embeddings", "truth", "random", "--format", "markdown")
    assert "| **truth better**" in marked
    assert r"\begin{tabular}" in printed("compare", results, results, "--format", "latex")
    assert "cross_fitted" not in printed("compare", results, "--choice", "best", "--format", "csv")


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--embeddings", "truht"], "did you mean 'truth'"),
        (["--embeddings", "truth"], "1 embedding(s) to compare"),
        (["--metric", "top9"], "no metric called 'top9'"),
        (["--post-processing", "center"], "no post-processing called 'center'"),
        (["{}", "--embeddings", "a", "b", "c"], "3 embeddings are named for two folders"),
    ],
)
def test_what_cannot_be_compared_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], fragment: str
) -> None:
    results = str(folder / "results")
    assert main(["compare", results, *(word.format(results) for word in words)]) == 2
    assert fragment in capsys.readouterr().err


def test_the_halves_are_the_same_for_all_and_no_choice_is_made_where_there_is_none(folder: Path) -> None:
    results = ResultsFolder.open(folder / "results")
    raw = results.scores[results.scores["post_processing"] == "raw"]
    table = summary(raw, results)
    assert set(table["choice"]) == {"only"}
    assert np.isfinite(table["low"]).all()
    assert load_protocol("paper").choice == "best"


def test_the_plot_shows_the_differences(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("altair")
    from txeval.report.figures import difference_figure

    frame = compare(sides(ResultsFolder.open(folder / "results"), None, ["noisy", "truth"]))
    chart = difference_figure(frame).to_dict()
    drawn = [row for data in _values(chart) for row in data if "place" in row]
    known = frame[frame["difference"].notna()]
    texts = {(row["score"].split("  ", 1)[1], row["text"]) for row in drawn}
    assert texts == {(row.label, f"{row.difference:+.3f}") for row in known.itertuples()}
    assert {row["pair"] for row in drawn} == {"noisy minus truth"}
    assert next(row["place"] for row in drawn if row["score"] == "4  kNN top 5") < 0
    better = {row.label: (row.difference > 0) == row.higher_is_better for row in known.itertuples() if row.difference}
    for row in drawn:
        label = row["score"].split("  ", 1)[1]
        if label in better:
            assert (row["place"] > 0) == better[label]
            assert row["low"] <= row["place"] <= row["high"]
    path = tmp_path / "differences.svg"
    words = ["compare", str(folder / "results"), "--embeddings", "noisy", "truth", "--plot", str(path), "--plain"]
    assert main(words) == 0
    assert path.read_text().startswith("<svg")


def _values(chart: object) -> list[list[dict]]:
    """Data of every part of a chart."""
    if isinstance(chart, dict):
        own = [chart["values"]] if isinstance(chart.get("values"), list) else []
        own += list(chart.get("datasets", {}).values()) if isinstance(chart.get("datasets"), dict) else []
        return own + [found for part in chart.values() for found in _values(part)]
    return [found for part in chart for found in _values(part)] if isinstance(chart, list) else []
