"""UCE against the answers of the official code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_embedders import Golden, check_embedding, load, roles, written

from txeval.compute.arrays import take_rows
from txeval.compute.random import stream
from txeval.data import open_screen
from txeval.embed import uce
from txeval.embed.base import EmbeddingContext


@dataclass
class Case:
    golden: Golden
    files: uce.Files
    genome: uce.Genome

    def __post_init__(self) -> None:
        self.match = uce.match(self.golden.adata.var_names, self.genome)
        self.loaded = uce.load_model(self.files, self.genome, self.match.genes)
        self.counts = self.match.collapse(self.golden.counts())
        self.rows, self.chromosome, self.start = (
            np.array([table[gene] for gene in self.match.genes])
            for table in (self.genome.row, self.genome.chromosome, self.genome.start)
        )

    def sentence(self, sample: int, rng: Any) -> np.ndarray:
        low, high = self.counts.indptr[sample : sample + 2]
        own = self.counts.indices[low:high]
        return uce.draw_sentence(
            uce.sampling_weights(self.counts.data[low:high]),
            self.rows[own],
            self.chromosome[own],
            self.start[own],
            rng,
            first_chromosome=self.loaded.first_chromosome,
        )

    def embed(self, sentences: list[np.ndarray], mask: str) -> np.ndarray:
        with torch.inference_mode():
            return uce.forward(
                self.loaded, [(s.astype(np.int64),) for s in sentences], max(map(len, sentences)), mask=mask
            )


@pytest.fixture(scope="module")
def case(golden_dir: Path) -> Case:
    golden = load(golden_dir, "uce")
    files = uce.find_files(golden.checkpoint, "uce-4l", golden.expected["species"])
    return Case(golden, files, uce.load_genome(files, golden.expected["species"]))


def test_genes_rows_chromosomes_and_starts(case: Case) -> None:
    expected, arrays = case.golden.expected, case.golden.arrays
    names = np.asarray(case.golden.adata.var_names)
    assert np.array_equal(case.match.target >= 0, case.golden.adata.var["in_vocab"])
    assert names[case.match.target >= 0].tolist() == expected["genes_used"]
    assert case.match.ways["upper case"] >= len(expected["case_changed"])
    assert np.array_equal(case.rows, arrays["gene_row"])
    assert np.array_equal(case.chromosome, arrays["gene_chrom_code"])
    assert np.array_equal(case.start, arrays["gene_start"])
    assert case.loaded.first_chromosome == expected["CHROM_TOKEN_OFFSET"]
    assert case.genome.n_codes == expected["n_chromosome_categories"]
    assert case.loaded.sizes["tokens"] == expected["table_rows"]
    assert len(case.loaded.positions) == expected["pad_length"]
    assert tuple(expected[key] for key in ("pad", "chrom_close", "cls")) == (uce.PAD, uce.CHROMOSOME_END, uce.CLS)


def test_sampling_probabilities(case: Case) -> None:
    made = np.zeros(case.counts.shape, dtype=np.float32)
    for row in range(len(made)):
        low, high = case.counts.indptr[row : row + 2]
        made[row, case.counts.indices[low:high]] = uce.sampling_weights(case.counts.data[low:high])
    assert np.abs(made - case.golden.arrays["gene_prob"]).max() < 1e-6


@pytest.mark.parametrize("run", ["single", "batch"])
def test_the_official_seed_gives_the_official_sentences(case: Case, run: str) -> None:
    rng = np.random.RandomState(case.golden.expected["runs"][run]["numpy_seed"])
    official = case.golden.ragged(f"{run}_tokens")
    assert [len(tokens) for tokens in official] == case.golden.expected["sequence_lengths"][run]
    for sample, tokens in enumerate(official):
        assert np.array_equal(case.sentence(sample, rng), tokens), f"sample {sample}"


def test_draws_of_our_own_streams_have_the_official_distribution(case: Case) -> None:
    """Chi-squared per gene against the official probabilities, as small as that of the official draws."""
    arrays, draws = case.golden.arrays, case.golden.expected["draws"]
    gene = np.full(case.loaded.sizes["tokens"], -1)
    gene[case.rows] = np.arange(len(case.rows))
    first = []
    for cell, official in zip(arrays["draw_cells"], draws["chi2_per_gene"], strict=True):
        counted = np.zeros(len(case.rows))
        for draw in range(draws["per_cell"]):
            sentence = case.sentence(int(cell), stream(draw, "test", int(cell)))
            first.append((int(cell), int(sentence[1])))
            drawn = gene[sentence]
            counted += np.bincount(drawn[drawn >= 0], minlength=len(case.rows))
        wanted = arrays["gene_prob"][cell] * draws["size"] * draws["per_cell"]
        assert counted.sum() == draws["size"] * draws["per_cell"]
        likely = wanted > 0
        assert not counted[~likely].any()
        chi2 = ((counted - wanted)[likely] ** 2 / wanted[likely]).mean()
        assert chi2 < max(2.0, 1.5 * official)
    # The order of the chromosomes is random: the first one changes from draw to draw, as in the official code.
    official_first = {tuple(pair) for pair in arrays["draw_first_chrom_token"].tolist()}
    assert len(set(first)) > 0.7 * len(official_first)
    assert {token for _, token in first} <= set(range(case.loaded.first_chromosome, case.loaded.sizes["tokens"]))


def test_single_sentences(case: Case) -> None:
    """A sentence on its own has no padding, so the mask does not matter; the others are tested in batches."""
    official = case.golden.arrays["single_emb"]
    for row, tokens in enumerate(case.golden.ragged("single_tokens")):
        made = case.embed([tokens], ("official", "bool")[row % 2])
        assert np.abs(made - official[row]).max() < 1e-5


@pytest.mark.parametrize(
    ("tokens", "mask", "answer"),
    [
        ("batch_tokens", "official", "batch_emb"),
        ("batch_tokens", "bool", "batch_alone_emb"),
        ("single_tokens", "official", "single_in_batches_of_8_emb"),
        ("single_tokens", "bool", "single_emb"),
    ],
)
def test_sentences_in_batches(case: Case, tokens: str, mask: str, answer: str) -> None:
    sentences = case.golden.ragged(tokens)
    size = case.golden.expected["runs"]["batch"]["batch_size"]
    made = np.concatenate([case.embed(sentences[low : low + size], mask) for low in range(0, len(sentences), size)])
    assert np.abs(made - case.golden.arrays[answer]).max() < 1e-5


@pytest.mark.parametrize("mask", ["official", "bool"])
def test_masks_agree_where_lengths_are_equal(case: Case, mask: str) -> None:
    sentences = [case.golden.ragged("batch_tokens")[row] for row in case.golden.arrays["equal_rows"]]
    assert {len(sentence) for sentence in sentences} == {case.golden.expected["equal_length"]}
    assert np.abs(case.embed(sentences, mask) - case.golden.arrays["equal_emb"]).max() < 1e-5


@pytest.mark.parametrize("mask", ["official", "bool"])
def test_the_embedder_gives_the_rows_of_its_own_sentences(case: Case, mask: str, tmp_path: Path) -> None:
    """From the file to the embedding: sentences of the streams, chunks of 8 samples, official pooling."""
    with open_screen(written(case.golden, tmp_path, rows=12), roles()) as screen:
        options = {"weights": str(case.golden.checkpoint), "batch_size": 8, "mask": mask}
        made = uce.EMBEDDERS[0].embed(screen, options, EmbeddingContext(tmp_path, seed=3))
        sentences = [case.sentence(row, stream(3, "uce", name)) for row, name in enumerate(screen.sample_names)]
    wanted = np.concatenate([case.embed(sentences[low : low + 8], mask) for low in range(0, len(sentences), 8)])
    check_embedding(made, wanted)
    assert made.provenance["depends_on_batch_mates"] == (mask == "official")
    assert np.allclose(np.linalg.norm(take_rows(made.values), axis=1), 1, atol=1e-5)
    # No filter: the official default would drop some of these samples.
    assert made.shape[0] == 12 > sum(row < 12 for row in case.golden.expected["default_filter_keeps_rows"])
