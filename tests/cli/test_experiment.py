"""Experiments end to end on a simulated screen, and the figures and tables that come of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from txeval.cli import main
from txeval.data import simulate_screen
from txeval.data.simulate import relations_folder
from txeval.embed import parse_spec
from txeval.errors import InputError
from txeval.report.experiments import likelihood_frame, scaling_frame
from txeval.run import read_scores
from txeval.run.experiment import default_sizes, likelihood_embeddings, scaling_embeddings, spec_text

pytest.importorskip("scvi")

MODEL = "scVI=scvi@latent=4,hidden=8,layers=1,genes=0,input=counts"


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("experiment") / "s.h5ad"
    simulate_screen(path, n_samples=700, n_genes=120, n_perturbations=55, n_batches=5, unexpressed_targets=5, seed=2)
    roles = ["--perturbation", "perturbation", "--control", "non-targeting", "--batch", "batch", "--min-counts", "0"]
    return [str(path), *roles, "--target-gene", "gene", "--relations", str(relations_folder(path))]


def test_growing_sets_are_trained_scored_and_drawn_and_nothing_is_done_twice(
    screen: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["experiment", "scaling", *screen, "--model", MODEL, "--steps", "3", "--sizes", "60", "all"]
    command += ["--seeds", "2", "--embedding", "truth=obsm:X_truth", "--post-processing", "raw", "--out", str(out)]
    assert main([*command, "--plain"]) == 0
    said = capsys.readouterr().out
    assert "training samples" in said and "Recall" in said
    scores, manifest = read_scores(out), json.loads((out / "manifest.json").read_text())
    frame = scaling_frame(scores, manifest)
    recall = frame[frame["metric"] == "recall"]
    train = manifest["splits"][0]["parts"]["train"]["samples"]
    assert list(recall["size"]) == [60, train]
    assert (recall["n"] == 2).all() and set(frame["task"]) == {"relationships"}

    parts = {
        model["options"]["samples"]: [found["trained_on_part"] for found in model["provenance"]]
        for model in manifest["embeddings"]
        if model["source"] == "trained-on"
    }
    assert [part["samples"] for part in parts[60]] == [60, 60]
    for small, large in zip(parts[60], parts[0], strict=True):
        assert set(small["batches"]) < set(large["batches"])

    # The truth is known: modules that perturbations act on are found in it, and not in a shuffled embedding.
    values = scores[scores["metric"] == "recall"].groupby("model")["value"].mean()
    assert values["truth"] > 0.3 > 0.2 > values["random"]

    figure = out / "figures" / "scaling.svg"
    assert figure.is_file() and "<svg" in figure.read_text()
    cells = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    assert main([*command, "--plain"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()} == cells

    capsys.readouterr()
    assert main(["figures", str(out), "--format", "pdf", "png", "--only", "scaling", "--tables", "latex", "csv"]) == 0
    assert (out / "figures" / "scaling.pdf").read_bytes().startswith(b"%PDF")
    assert (out / "figures" / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert r"\toprule" in (out / "figures" / "table-summary.tex").read_text()
    assert len((out / "figures" / "table-full.csv").read_text().splitlines()) > 10
    assert main(["figures", str(out), "--only", "scalling"]) == 2
    assert "'scaling'" in capsys.readouterr().err


def test_likelihoods(screen: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["experiment", "likelihood", *screen, "--model", f"{MODEL},max_epochs=1,kl_warmup=1", "--seeds", "1"]
    command += ["--likelihoods", "nb", "poisson", "--post-processing", "raw", "--out", str(out), "--format", "none"]
    assert main([*command, "--plain"]) == 0
    frame = likelihood_frame(read_scores(out), json.loads((out / "manifest.json").read_text()))
    assert list(frame.loc[frame["metric"] == "recall", "likelihood"]) == ["NB", "Poisson"]
    assert not (out / "figures").exists()
    assert "NB" in capsys.readouterr().out


def test_sizes_and_steps() -> None:
    assert default_sizes(1600) == [100, 200, 400, 800, 0]
    assert default_sizes(150) == [0]
    model = parse_spec(MODEL)
    made = scaling_embeddings(model, [0, 60, 256], 300, steps=12)
    assert [spec.options["samples"] for spec in made] == [60, 256, 0]
    epochs = [parse_spec(spec.options["of"]).options["max_epochs"] for spec in made]
    assert epochs == [12, 6, 4]
    assert [spec.label for spec in made] == ["scVI, 60 samples", "scVI, 256 samples", "scVI, 300 samples"]
    assert parse_spec(spec_text(model)) == model
    assert len(scaling_embeddings(model, [300, 0], 300)) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scaling", "--sizes", "100000"], "train split"),
        (["scaling", "--likelihoods", "nb"], "likelihood"),
        (["likelihood", "--sizes", "10"], "scaling"),
        (["likelihood", "--model", "pca"], "likelihood"),
        (["likelihood", "--model", "scvi@likelihood=nb"], "varies"),
        (["scaling", "--model", "pca"], "does not learn"),
        (["scaling", "--model", "scvi@max_epochs=2", "--steps", "5"], "contradict"),
        (["scalling"], "'scaling'"),
    ],
)
def test_wrong_requests_say_what_to_do(
    screen: list[str], arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, *rest = arguments
    assert main(["experiment", kind, *screen, *rest, "--out", str(tmp_path / "o")]) == 2
    assert said in capsys.readouterr().err


def test_a_likelihood_that_does_not_exist() -> None:
    with pytest.raises(InputError, match="gauss"):
        likelihood_embeddings(parse_spec("scvi"), ["gauss"])
