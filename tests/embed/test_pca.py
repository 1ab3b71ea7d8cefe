"""Exact PCA against scikit-learn, and what must not change it."""

from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pytest
from sklearn.decomposition import PCA as SklearnPCA
from small_screen import small_adata

from txeval.compute.arrays import take_rows
from txeval.data import Roles, open_screen
from txeval.embed import make_embedding, parse_spec
from txeval.embed.pca import principal_axes
from txeval.errors import InputError


def dense(adata):
    return adata.X.toarray().astype(np.float64)


def assert_same(found, expected, tolerance=1e-4):
    """Equal up to the sign of each column, relative to the size of the column."""
    assert found.shape == expected.shape
    size = np.linalg.norm(expected, axis=0)
    wrong = np.linalg.norm(np.abs(found) - np.abs(expected), axis=0) / size
    assert wrong.max() < tolerance


@pytest.mark.parametrize(
    ("text", "scale", "transform"),
    [
        ("pca@components=8", "counts", lambda x: x),
        ("pca@components=8,input=as_is", "counts", lambda x: x),
        ("pca@components=8,input=lognorm", "counts", lambda x: np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4)),
        ("pca@components=8,input=lognorm", "normalized", np.log1p),
        ("pca@components=8,input=lognorm", "log1p", lambda x: x),
        ("pca@components=8,input=as_is", "log1p", lambda x: x),
        ("pca@components=8,input=as_is", "continuous", lambda x: x),
    ],
)
def test_equals_sklearn(write_screen, context, text, scale, transform):
    adata = small_adata(scale=scale)
    screen = write_screen(adata, scale=scale)
    made = make_embedding(parse_spec(text), screen, context)
    model = SklearnPCA(8, svd_solver="full")
    expected = model.fit_transform(transform(dense(adata)))
    assert_same(take_rows(made.values), expected)
    assert made.values.dtype == np.float32
    share = float(model.explained_variance_ratio_.sum())
    assert made.provenance["explained_variance"] == pytest.approx(share, abs=1e-5)
    assert "all 120 kept samples" in made.provenance["fitted_on"]
    assert made.provenance["input"] == parse_spec(text).options.get("input", "counts")


def test_real_screen(data_dir, context, tmp_path):
    adata = anndata.read_h5ad(data_dir / "papalexi2021_thp1_ecciteseq_299genes.h5ad")[:3000].copy()
    adata.write_h5ad(tmp_path / "part.h5ad")
    screen = open_screen(tmp_path / "part.h5ad", Roles("perturbation", control_column="control", batch="bio_rep"))
    made = make_embedding(parse_spec("pca@components=20"), screen, context)
    assert_same(take_rows(made.values), SklearnPCA(20, svd_solver="full").fit_transform(dense(adata)))


def test_only_kept_samples_count(write_screen, context):
    adata = small_adata()
    totals = dense(adata).sum(axis=1)
    screen = write_screen(adata, min_counts=float(np.median(totals)))
    made = make_embedding(parse_spec("pca@components=5"), screen, context)
    expected = SklearnPCA(5, svd_solver="full").fit_transform(dense(adata)[totals > np.median(totals)])
    assert_same(take_rows(made.values), expected)


@pytest.mark.parametrize("kind", ["counts", "lognorm"])
def test_block_size_and_order_do_not_matter(write_screen, context, tmp_path, kind):
    spec = parse_spec(f"pca@components=6,input={kind}")
    base = take_rows(make_embedding(spec, write_screen(), context).values)
    order = np.random.default_rng(3).permutation(120)
    shuffled = write_screen(small_adata(order=order), name="shuffled.h5ad")
    for screen, rows in ((write_screen(), slice(None)), (shuffled, order)):
        for elements in (1, 100, 1000):
            made = make_embedding(spec, screen, replace(context, max_elements=elements))
            np.testing.assert_allclose(take_rows(made.values), base[rows], atol=1e-4 * np.abs(base).max())


def test_fewer_components_than_asked_for_are_recorded(write_screen, context):
    adata = small_adata(n=12)
    made = make_embedding(parse_spec("pca"), write_screen(adata), context)
    assert made.shape == (12, 11)
    assert made.provenance["components"] == 11
    assert made.provenance["components_requested"] == 256
    # Genes that repeat others add no component: what would be left is rounding, which scaling would blow up.
    twice = small_adata()
    x = twice.X.toarray()
    x[:, 10:20] = x[:, :10]
    twice.X = type(twice.X)(x)
    assert make_embedding(parse_spec("pca"), write_screen(twice), context).shape == (120, 20)


def test_combinations_of_genes_add_no_component(write_screen, context):
    """Also where values are no counts, whose sums are rounded."""
    adata = small_adata(scale="continuous")
    x = adata.X.toarray()
    x[:, 10:20] = x[:, :10] * 0.7 + x[:, 20:30] * 0.1
    adata.X = x
    made = make_embedding(parse_spec("pca@input=as_is"), write_screen(adata, scale="continuous"), context)
    spread = take_rows(made.values).std(axis=0)
    assert spread.min() > 1e-5 * spread.max()
    assert made.shape == (120, 20)


def test_signs_are_fixed():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 9))
    scatter = x.T @ x
    values, axes = principal_axes(scatter, 9)
    assert (np.diff(values) < 0).all()
    assert (axes[np.abs(axes).argmax(axis=0), np.arange(9)] > 0).all()
    np.testing.assert_allclose(axes @ np.diag(values) @ axes.T, scatter, atol=1e-10)


def test_lanczos_equals_dense(monkeypatch):
    from txeval.embed import pca

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 200)) * np.exp(-np.arange(200) / 20)
    scatter = x.T @ x
    expected = principal_axes(scatter, 10)
    monkeypatch.setattr(pca, "_DENSE_GENES", 10)
    values, axes = principal_axes(scatter, 10)
    np.testing.assert_allclose(values, expected[0], rtol=1e-10)
    np.testing.assert_allclose(axes, expected[1], atol=1e-8)


@pytest.mark.parametrize(
    ("text", "scale", "message"),
    [
        ("pca", "log1p", r"needs counts values(.|\n)*pca@input=lognorm or input=as_is"),
        ("pca", "continuous", r"needs counts values(.|\n)*pca@input=as_is"),
        ("pca@input=lognorm", "continuous", r"needs counts or log1p or normalized"),
        ("pca@input=count", "counts", "did you mean 'counts'"),
        ("pca@components=0", "counts", "components is 0"),
        ("pca@components=2.5", "counts", "a float"),
        ("pca@component=3", "counts", "did you mean 'components'"),
    ],
)
def test_bad_input(write_screen, context, text, scale, message):
    screen = write_screen(small_adata(scale=scale), scale=scale)
    with pytest.raises(InputError, match=message):
        make_embedding(parse_spec(text), screen, context)


def test_nothing_to_find(write_screen, context):
    adata = small_adata()
    adata.X = type(adata.X)(np.ones(adata.shape, dtype=np.float32))
    with pytest.raises(InputError, match="same expression"):
        make_embedding(parse_spec("pca"), write_screen(adata), context)


def test_too_little_memory(screen, context, monkeypatch):
    from types import SimpleNamespace

    from txeval.embed import pca

    monkeypatch.setattr(pca.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(InputError, match="PCA of 30 genes needs"):
        make_embedding(parse_spec("pca"), screen, context)


def test_unwritable_folder(screen, context):
    (context.folder / "blocked").write_text("a file")
    with pytest.raises(InputError, match="cannot write"):
        make_embedding(parse_spec("pca"), screen, replace(context, folder=context.folder / "blocked"))


def test_roles_are_not_used(write_screen, context):
    """Other labels, same embedding."""
    adata = small_adata()
    base = take_rows(make_embedding(parse_spec("pca@components=4"), write_screen(adata), context).values)
    adata.obs["gene"] = np.roll(adata.obs["gene"].to_numpy(), 7)
    again = take_rows(
        make_embedding(parse_spec("pca@components=4"), write_screen(adata, name="b.h5ad"), context).values
    )
    np.testing.assert_array_equal(again, base)
