"""The baselines: what they are made of, and that only seed and samples decide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from small_screen import small_adata

from txeval.compute.arrays import take_rows
from txeval.embed import Embedding, embedding_fingerprint, make_embedding, parse_spec
from txeval.errors import InputError


def made(text, screen, context, seed=0):
    return make_embedding(parse_spec(text), screen, replace(context, seed=seed))


def test_random_is_a_permutation_of_pca(screen, context):
    pca = take_rows(made("pca", screen, context).values)
    found = made("random", screen, context)
    rows = take_rows(found.values)
    np.testing.assert_array_equal(np.sort(rows, axis=0), np.sort(pca, axis=0))
    source = np.array([int(np.flatnonzero((pca == row).all(axis=1))[0]) for row in rows])
    assert sorted(source) == list(range(120))
    assert (source == np.arange(120)).sum() < 8
    assert found.provenance["of"]["source"] == "pca"
    assert found.provenance["seed"] == 0
    assert found.provenance["ordered_by"] == "sample name"


@pytest.mark.parametrize("text", ["random", "random_uniform@dim=40"])
def test_seeds_differ_and_repeat(screen, context, text):
    first = take_rows(made(text, screen, context, 0).values).copy()
    other = take_rows(made(text, screen, context, 1).values).copy()
    again = take_rows(made(text, screen, context, 0).values)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("text", ["random", "random@of=obsm:X_emb", "random_uniform@dim=5"])
def test_order_of_the_file_does_not_matter(write_screen, context, text):
    base = take_rows(made(text, write_screen(), context, 4).values).copy()
    order = np.random.default_rng(1).permutation(120)
    shuffled = write_screen(small_adata(order=order), name="shuffled.h5ad")
    found = take_rows(made(text, shuffled, context, 4).values)
    np.testing.assert_allclose(found, base[order], atol=1e-3)


def test_uniform(screen, context):
    found = made("random_uniform", screen, context)
    x = take_rows(found.values)
    assert x.shape == (120, 512)
    assert stats.kstest(x.ravel(), "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(x)[np.triu_indices(120, 1)]).max() < 0.25  # independent samples
    for elements in (1, 5000):
        again = made("random_uniform", screen, replace(context, max_elements=elements))
        np.testing.assert_array_equal(take_rows(again.values), x)


def test_names_that_repeat(write_screen, context):
    adata = small_adata()
    adata.obs_names = ["same"] * 120
    screen = write_screen(adata)
    assert "not unique" in made("random_uniform@dim=3", screen, context).provenance["ordered_by"]


@pytest.mark.parametrize("scale", ["log1p", "continuous"])
def test_screens_without_counts_have_a_baseline_too(write_screen, context, scale):
    adata = small_adata(scale=scale)
    screen = write_screen(adata, scale=scale)
    found = made("random", screen, context)
    assert found.provenance["of"]["options"]["input"] == "as_is"
    assert f"PCA of the {scale} values" in found.provenance["warnings"][0]


def test_other_embeddings_come_from_the_context(screen, context):
    asked = []

    def others(spec):
        asked.append(spec)
        return Embedding(np.arange(240, dtype=np.float32).reshape(120, 2), {"from": "elsewhere"})

    found = made("random@of=pca@components=7", screen, replace(context, others=others))
    assert asked[0].source == "pca"
    assert asked[0].options == {"components": 7}
    assert sorted(take_rows(found.values)[:, 0]) == list(range(0, 240, 2))
    assert found.provenance["of"]["from"] == "elsewhere"


def test_fingerprint_follows_what_is_shuffled(screen):
    def fingerprint(text, seed=0):
        return embedding_fingerprint(parse_spec(text), screen, seed)

    assert fingerprint("random") == fingerprint("random")
    assert len({fingerprint("random"), fingerprint("random", 1), fingerprint("random@of=pca@components=5")}) == 3
    assert fingerprint("random@of=obsm:X_emb") != fingerprint("random@of=obsm:X_half")
    assert fingerprint("pca") == fingerprint("pca", 1)  # deterministic


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("random@of=random", "cannot be built on itself"),
        ("random@of=pcb", "did you mean 'pca'"),
        ("random@of=obsm:X_embb", "did you mean 'X_emb'"),
        ("random_uniform@dim=0", "dim is 0"),
        ("random_uniform@dim=big", "a str"),
    ],
)
def test_bad_input(screen, context, text, message):
    with pytest.raises(InputError, match=message):
        made(text, screen, context)
    with pytest.raises(InputError, match=message):
        embedding_fingerprint(parse_spec(text), screen, 0)
