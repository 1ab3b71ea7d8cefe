"""Geneformer against the answers of the official tokenizer and extractor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_embedders import Golden, check_embedding, load, roles, written

from txeval.data import open_screen
from txeval.embed import geneformer
from txeval.embed.base import EmbeddingContext

MODELS = {"geneformer_v1": ("geneformer-v1", 1), "geneformer_v2": ("geneformer-v2-104m", 2)}
LAYERS = {"last": 0, "second_to_last": -1}


@dataclass
class Case:
    golden: Golden
    name: str
    version: int
    files: geneformer.Files
    vocabulary: geneformer.Vocabulary

    def __post_init__(self) -> None:
        self.match = geneformer.match(self.golden.adata.var["ensembl_id"], self.vocabulary)
        self.counts = self.match.collapse(self.golden.counts())

    def tokens(self, max_length: int) -> list[np.ndarray]:
        genes = self.match.genes
        return geneformer.rank_tokens(
            self.counts,
            np.array([self.vocabulary.tokens[gene] for gene in genes]),
            np.array([self.vocabulary.medians[gene] for gene in genes]),
            max_length=max_length,
            start=self.vocabulary.start,
            end=self.vocabulary.end,
        )


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, golden_dir: Path) -> Case:
    golden = load(golden_dir, request.param)
    name, version = MODELS[request.param]
    files = geneformer.find_files(golden.checkpoint, name)
    return Case(golden, name, version, files, geneformer.load_vocabulary(files, version=version))


def test_special_tokens_and_sizes(case: Case) -> None:
    expected = case.golden.expected
    for name, token in expected["special_tokens"].items():
        assert case.vocabulary.tokens[name] == token
    assert len(case.vocabulary.tokens) == expected["vocab_size"]
    encoder = geneformer.load_encoder(case.files)
    assert encoder.positions == expected["model_input_size"]
    assert (encoder.width, encoder.sizes["layers"]) == (expected["config"]["hidden"], expected["config"]["layers"])


def test_genes_in_the_vocabulary_match_and_no_others(case: Case) -> None:
    assert np.array_equal(case.match.target >= 0, case.golden.adata.var["in_vocab"]) or case.version == 2
    known = case.golden.adata.var["in_vocab"].to_numpy()
    # A retired id that maps to a known gene counts as that gene, whether or not the table calls it known.
    assert (case.match.target[known] >= 0).all()
    retired = {entry["id_in_file"] for entry in case.golden.expected["relabelled_genes"]}
    extra = set(case.golden.adata.var["ensembl_id"].to_numpy()[(case.match.target >= 0) & ~known])
    assert extra <= retired
    assert set(case.match.summed) == set(case.golden.expected["duplicate_targets"])
    assert case.match.ways["mapped id"] == len(case.golden.expected["relabelled_genes"])


def test_tokens_are_the_official_ones(case: Case) -> None:
    expected = case.golden.expected
    for prefix, length in (("stable", "model_input_size"), ("trunc", "truncated_model_input_size")):
        made = case.tokens(expected[length])
        for row, (mine, official) in enumerate(zip(made, case.golden.ragged(f"{prefix}_tokens"), strict=True)):
            assert np.array_equal(mine, official), f"{prefix}, sample {row}"
    assert [len(tokens) for tokens in case.tokens(expected["model_input_size"])] == expected["lengths"]


def test_tokens_as_run_differ_only_inside_ties(case: Case) -> None:
    """The official sort is unstable: what it gives has the ranks of ours, whatever the order of equal values."""
    around = 0 if case.version == 1 else 1
    made = case.tokens(case.golden.expected["model_input_size"])
    indptr = case.golden.arrays["rank_value_indptr"]
    gene_of = {token: gene for gene, token in case.vocabulary.tokens.items()}
    column = {gene: number for number, gene in enumerate(case.match.genes)}
    for row, (mine, theirs) in enumerate(zip(made, case.golden.ragged("asrun_tokens"), strict=True)):
        mine, theirs = (tokens[around : len(tokens) - around] if len(tokens) else tokens for tokens in (mine, theirs))
        value = case.golden.arrays["rank_value"][indptr[row] : indptr[row + 1]]
        dense = case.counts[row].toarray()[0].astype(np.float64)
        for tokens in (mine, theirs):
            genes = [gene_of[int(token)] for token in tokens]
            own = [dense[column[gene]] / case.vocabulary.medians[gene] for gene in genes]
            assert np.allclose(own, value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("prefix", ["stable", "asrun", "trunc"])
def test_embeddings(case: Case, prefix: str, layer: str) -> None:
    tokens = case.golden.ragged(f"{prefix}_tokens")
    rows = [row for row, own in enumerate(tokens) if len(own)]
    encoder = geneformer.load_encoder(case.files, layer=LAYERS[layer])
    for pooling, name in (("mean", "emb"), ("cls", "cls")):
        key = f"{prefix}_{name}_{layer}"
        if key not in case.golden.arrays:
            continue
        official = case.golden.arrays[key]
        assert np.isnan(official).any(axis=1).nonzero()[0].tolist() == case.golden.expected["dropped_rows"]
        for size in (1, 7, 40):
            made = np.empty_like(official[rows])
            for low in range(0, len(rows), size):
                items = [(tokens[row].astype(np.int64),) for row in rows[low : low + size]]
                with torch.inference_mode():
                    made[low : low + size] = geneformer.forward(
                        encoder, items, max(len(item[0]) for item in items), pooling=pooling, special=case.version == 2
                    )
            assert np.abs(made - official[rows]).max() < 1e-5


@pytest.mark.parametrize("layer", LAYERS)
def test_the_embedder_gives_the_official_rows(case: Case, layer: str, tmp_path: Path) -> None:
    path = written(case.golden, tmp_path, "ensembl_id")
    embedder = next(found for found in geneformer.EMBEDDERS if found.info.name == case.name)
    with open_screen(path, roles(gene_symbol="ensembl_id")) as screen:
        options = {"weights": str(case.golden.checkpoint), "layer": LAYERS[layer]}
        made = embedder.embed(screen, options, EmbeddingContext(tmp_path))
        official = case.golden.arrays[f"stable_emb_{layer}"].copy()
        dropped = case.golden.expected["dropped_rows"]
        official[dropped] = 0
        check_embedding(made, official)
        assert not made.provenance["untrained"]
        assert made.provenance["unusable"] == {"count": len(dropped), "rows": dropped, "filled_with": "zeros"}
        cut = {**options, "max_length": case.golden.expected["truncated_model_input_size"]}
        official = case.golden.arrays[f"trunc_emb_{layer}"].copy()
        official[dropped] = 0
        shorter = embedder.embed(screen, cut, EmbeddingContext(tmp_path))
        check_embedding(shorter, official)
        assert 0 < shorter.provenance["samples_cut_to_max_length"] < screen.n
        if case.version == 2:
            official = case.golden.arrays[f"stable_cls_{layer}"].copy()
            official[dropped] = 0
            check_embedding(embedder.embed(screen, {**options, "pooling": "cls"}, EmbeddingContext(tmp_path)), official)


def test_symbols_go_through_the_models_own_table(case: Case) -> None:
    """Without relabelled genes, symbols give the tokens that Ensembl ids give."""
    var = case.golden.adata.var
    by_symbol = geneformer.match(case.golden.adata.var_names, case.vocabulary)
    relabelled = {entry["symbol"] for entry in case.golden.expected["relabelled_genes"]}
    for name, first, second in zip(var.index, by_symbol.target, case.match.target, strict=True):
        if name not in relabelled and first >= 0:
            assert by_symbol.genes[first] == case.match.genes[second]
    assert by_symbol.fraction > 0.9
