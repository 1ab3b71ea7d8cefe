"""Log-normalised expression, against the formula on the whole matrix."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import made
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txeval.data import LogNormExpression, open_screen
from txeval.errors import NotComputable


def lognorm(x: np.ndarray) -> np.ndarray:
    totals = x.sum(1, keepdims=True, dtype=np.float64)
    return np.log1p(np.divide(x * 1e4, totals, out=np.zeros(x.shape), where=totals > 0))


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("expression")
    x = made.counts(80, 11)
    x[[4, 9]] = 0  # samples without counts
    a = made.adata(x=x)
    found = {
        layout: open_screen(made.write(a, folder / f"{layout}.h5ad", layout=layout), made.ROLES)
        for layout in made.LAYOUTS
    }
    return x, found


@settings(max_examples=40, deadline=None)
@given(
    layout=st.sampled_from(list(made.LAYOUTS)),
    rows=st.lists(st.integers(0, 79), min_size=1, max_size=30),
    bound=st.integers(1, 300),
)
def test_counts_are_normalised_to_ten_thousand_and_logged(screens, layout: str, rows: list[int], bound: int) -> None:
    x, found = screens
    expression = LogNormExpression(found[layout])
    wanted = np.array(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for part, block in expression.blocks(wanted, max_elements=bound):
            assert isinstance(block, np.ndarray) and block.dtype == np.float32
            assert block.shape == (part.stop - part.start, 11)
            np.testing.assert_allclose(block, lognorm(x[wanted[part]]), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(expression.gene_means(wanted, scale="counts"), x[wanted].mean(0), rtol=1e-6)
        np.testing.assert_allclose(
            expression.gene_means(wanted, scale="lognorm"), lognorm(x[wanted]).mean(0), rtol=1e-5, atol=1e-6
        )
    assert expression.genes.tolist() == [f"G{j}" for j in range(11)]
    assert "10,000" in expression.note


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_other_scales_are_not_normalised_again(tmp_path: Path, layout: str) -> None:
    counts = made.counts(50, 8) + 1
    normalized = (counts / counts.sum(1, keepdims=True) * 1e4).astype(np.float32)
    z = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    for x, scale, expected, word in [
        (normalized, "normalized", np.log1p(normalized), "normalised already"),
        (np.log1p(normalized), "log1p", np.log1p(normalized), "log1p already"),
        (z, "continuous", z, "as they are"),
    ]:
        path = made.write(made.adata(x=x), tmp_path / f"{scale}.h5ad", layout=layout)
        with open_screen(path, made.ROLES) as screen:
            assert screen.scale == scale
            expression = LogNormExpression(screen)
            rows = np.arange(50)
            got = np.concatenate([block for _, block in expression.blocks(rows, max_elements=64)])
            np.testing.assert_allclose(got, expected, rtol=1e-6)
            if scale == "continuous":
                with pytest.raises(NotComputable, match="no values log-normalised to 10,000: they are continuous"):
                    expression.gene_means(rows, scale="lognorm")
            else:
                np.testing.assert_allclose(
                    expression.gene_means(rows, scale="lognorm"), expected.mean(0), rtol=1e-4, atol=1e-6
                )
            assert word in expression.note
            with pytest.raises(NotComputable, match=f"mean counts need counts, but X holds {scale}"):
                expression.gene_means(rows, scale="counts")


@pytest.mark.parametrize(
    ("total", "genes", "declared", "fault"),
    [
        (1e4, 8, None, ""),
        (1e4, 8, "log1p", ""),
        # Of part of the genes the values themselves cannot show it.
        (1e4, 5, "log1p", ""),
        (1e4, 5, None, "no common total"),
        (1e6, 8, None, "total of about 1,000,000"),
        (1e6, 8, "log1p", "total of about 1,000,000"),
    ],
)
def test_mean_log_expression_has_the_unit_of_ten_thousand(
    tmp_path: Path, total: float, genes: int, declared: str | None, fault: str
) -> None:
    counts = made.counts(50, 8) + 1
    x = np.log1p(counts / counts.sum(1, keepdims=True) * total)[:, :genes].astype(np.float32)
    with open_screen(made.write(made.adata(x=x), tmp_path / "s.h5ad"), made.ROLES, scale=declared) as screen:
        assert screen.scale == "log1p"
        expression = LogNormExpression(screen)
        if fault:
            with pytest.raises(NotComputable, match=fault):
                expression.gene_means(np.arange(50), scale="lognorm")
        else:
            np.testing.assert_allclose(expression.gene_means(np.arange(50), scale="lognorm"), x.mean(0), rtol=1e-5)


def test_means_need_samples_and_a_known_scale(screens) -> None:
    expression = LogNormExpression(screens[1]["csr"])
    with pytest.raises(NotComputable, match="no samples"):
        expression.gene_means(np.array([], dtype=np.int64), scale="counts")
    with pytest.raises(ValueError, match="lognorm"):
        expression.gene_means(np.arange(3), scale="log")


def test_norman_counts(data_dir: Path) -> None:
    path = data_dir / "norman2019_k562_crispra_500hvg.h5ad"
    x = ad.read_h5ad(path).layers["counts"].toarray()
    with open_screen(path, made.Roles("perturbation", ("control",), batch="gem_group"), layer="counts") as screen:
        expression = LogNormExpression(screen)
        rows = np.random.default_rng(0).permutation(screen.n)[:900]
        got = np.concatenate([block for _, block in expression.blocks(rows, max_elements=40_000)])
        np.testing.assert_allclose(got, lognorm(x[rows]), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(expression.gene_means(rows, scale="counts"), x[rows].mean(0, dtype=np.float64))
