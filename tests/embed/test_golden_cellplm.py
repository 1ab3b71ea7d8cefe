"""CellPLM against the answers of the official pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_embedders import Golden, check_embedding, load, roles, written

from txeval.compute.random import stream
from txeval.data import open_screen
from txeval.embed import cellplm
from txeval.embed.base import EmbeddingContext

RUNS = [
    "all",
    "chunked",
    "by_batch",
    "by_batch_chunked",
    "half_genes",
    "argmax_all",
    "argmax_chunked",
    "argmax_by_batch",
]


@dataclass
class Case:
    golden: Golden
    files: cellplm.Files

    def __post_init__(self) -> None:
        self.known = cellplm.load_genes(self.files)
        self.batch = np.unique(self.golden.adata.obs["batch"], return_inverse=True)[1]

    def run(self, name: str, noise: np.ndarray | None) -> cellplm.Outcome:
        settings, adata = self.golden.expected["runs"][name], self.golden.adata
        if settings["genes"] == "half_genes_var":
            adata = adata[:, self.golden.arrays["half_genes_var"].tolist()]
        match = cellplm.match(adata.var_names, self.known)
        counts, model = match.collapse(adata.X), cellplm.load_model(self.files, match.genes)
        parts = []
        chunks = list(
            cellplm.groups(adata.n_obs, self.batch if settings["uses_obs_batch"] else None, settings["batch_size"])
        )
        for rows in chunks:
            with torch.inference_mode():
                h = cellplm.embed_input(model, counts[rows])
                parts.append(cellplm.embed_group(model, h, None if noise is None else noise[rows]))
        back = np.argsort(np.concatenate(chunks))
        return cellplm.Outcome(
            *(np.concatenate([getattr(part, key) for part in parts])[back] for key in ("values", "logits", "cluster"))
        )


@pytest.fixture(scope="module")
def case(golden_dir: Path) -> Case:
    golden = load(golden_dir, "cellplm")
    return Case(golden, cellplm.find_files(golden.checkpoint, golden.expected["prefix"]))


def test_every_run_is_here(case: Case) -> None:
    assert list(case.golden.expected["runs"]) == RUNS


def test_genes(case: Case) -> None:
    match = cellplm.match(case.golden.adata.var_names, case.known)
    assert len(case.known) == case.golden.expected["n_genes_checkpoint"]
    assert len(match.genes) == case.golden.expected["genes_matched"]
    assert np.array_equal(match.target >= 0, case.golden.adata.var["in_vocab"])


@pytest.mark.parametrize("run", RUNS)
def test_chunks(case: Case, run: str) -> None:
    settings, arrays = case.golden.expected["runs"][run], case.golden.arrays
    batch = case.batch if settings["uses_obs_batch"] else None
    for number, rows in enumerate(cellplm.groups(len(case.batch), batch, settings["batch_size"])):
        assert np.array_equal(rows[np.argsort(arrays[f"{run}_position"][rows])], rows)
        assert np.array_equal(np.flatnonzero(arrays[f"{run}_chunk"] == number), np.sort(rows))


@pytest.mark.parametrize("block", [1024, 7])
@pytest.mark.parametrize("run", RUNS)
def test_embeddings(case: Case, run: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a group goes through the layers in several blocks."""
    monkeypatch.setattr(cellplm, "BLOCK", block)
    arrays = case.golden.arrays
    zero = case.golden.expected["runs"][run]["noise"] == "zero"
    assert not (zero and arrays[f"{run}_noise"].any())
    made = case.run(run, None if zero else arrays[f"{run}_noise"])
    assert np.array_equal(made.cluster, arrays[f"{run}_cluster"])
    assert np.abs(made.logits - arrays[f"{run}_logits"]).max() < 1e-5
    assert np.abs(made.values - arrays[f"{run}_emb"]).max() < 1e-5


@pytest.mark.parametrize("run", ["all", "chunked", "by_batch", "by_batch_chunked"])
def test_the_official_seed_gives_the_official_noise(case: Case, run: str) -> None:
    settings, arrays = case.golden.expected["runs"][run], case.golden.arrays
    dim, clusters = arrays[f"{run}_emb"].shape[1], arrays[f"{run}_noise"].shape[1]
    batch = case.batch if settings["uses_obs_batch"] else None
    with torch.random.fork_rng():
        torch.manual_seed(settings["torch_seed"])
        # The official data loader draws its own seed first, and the model a latent sample after each chunk.
        torch.empty((), dtype=torch.int64).random_()
        for rows in cellplm.groups(len(case.batch), batch, settings["batch_size"]):
            made = cellplm.gumbel(torch.rand(len(rows), clusters).numpy())
            torch.randn(len(rows), dim)
            assert np.abs(made - arrays[f"{run}_noise"][rows]).max() < 1e-4


def test_own_draws_have_the_official_distribution(case: Case) -> None:
    """Clusters over 200 seeds of our streams against softmax(logits), as close as the official ones."""
    official = case.golden.arrays["cluster_counts"]
    logits = case.golden.arrays["all_logits"].astype(np.float64)
    chance = np.exp(logits - logits.max(axis=1, keepdims=True))
    chance /= chance.sum(axis=1, keepdims=True)
    runs = case.golden.expected["cluster_draws"]["runs"]
    made = np.zeros_like(official)
    for seed in range(runs):
        noise = np.stack(
            [cellplm.gumbel(stream(seed, "cellplm", row).random(logits.shape[1])) for row in range(len(logits))]
        )
        made[np.arange(len(logits)), (logits + noise).argmax(axis=1)] += 1

    def chi2(counts: np.ndarray) -> float:
        likely = chance * runs > 1
        return float((((counts - chance * runs) ** 2) / (chance * runs))[likely].mean())

    assert chi2(official) < 1.3
    assert chi2(made) < 1.3


@pytest.mark.parametrize("run", ["argmax_all", "argmax_chunked", "argmax_by_batch"])
def test_the_embedder_gives_the_official_rows(case: Case, run: str, tmp_path: Path) -> None:
    settings = case.golden.expected["runs"][run]
    with open_screen(written(case.golden, tmp_path, batch=True), roles(batch="batch")) as screen:
        options = {
            "weights": str(case.golden.checkpoint),
            "noise": "argmax",
            "by_batch": settings["uses_obs_batch"],
            "batch_size": settings["batch_size"],
        }
        made = cellplm.EMBEDDERS[0].embed(screen, options, EmbeddingContext(tmp_path, max_elements=236 * 11))
    check_embedding(made, case.golden.arrays[f"{run}_emb"])
    # The official code embeds a sample without known genes too: so do we, and say so.
    assert case.golden.expected["zeroed_row"] in made.provenance["unusable"]["rows"]
