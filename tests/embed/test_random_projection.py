"""The random projection: distances on average, weights by gene name, seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from txeval.data import Roles, open_screen, simulate_screen
from txeval.data.expression import LogNormExpression
from txeval.embed import EmbeddingContext, EmbeddingSpec, make_embedding
from txeval.embed.random_projection import projection
from txeval.errors import InputError


def test_weights_go_by_name_and_seed() -> None:
    genes = np.array(["A", "B", "C", "A"])
    W = projection(genes, 5, 0)
    np.testing.assert_array_equal(projection(genes[[1, 2, 0, 3]], 5, 0), W[[1, 2, 0, 3]])
    assert not np.allclose(W[0], W[3]) and not np.allclose(W, projection(genes, 5, 1))
    large = projection(np.array([f"g{i}" for i in range(2000)]), 50, 0)
    assert large.mean() == pytest.approx(0, abs=0.005) and large.std() == pytest.approx(1 / np.sqrt(50), rel=0.02)


def test_it_is_the_projected_expression_and_keeps_distances(tmp_path: Path) -> None:
    simulate_screen(tmp_path / "s.h5ad", n_samples=300, n_genes=80, n_perturbations=10, n_batches=3, seed=1)
    screen = open_screen(tmp_path / "s.h5ad", Roles("perturbation", control_column="control", batch="batch"))
    spec = EmbeddingSpec("rp", "random_projection", {"components": 400})
    folder = tmp_path / "made"
    folder.mkdir()
    made = make_embedding(spec, screen, EmbeddingContext(folder=folder, seed=3, max_elements=5000)).values
    values = np.asarray(made[np.arange(screen.n)])
    expression = np.concatenate([block for _, block in LogNormExpression(screen).blocks(np.arange(screen.n))])
    np.testing.assert_allclose(values, expression @ projection(screen.genes, 400, 3), rtol=1e-4, atol=1e-4)
    pairs = np.random.default_rng(0).integers(screen.n, size=(200, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    before, after = (((m[pairs[:, 0]] - m[pairs[:, 1]]) ** 2).sum(axis=1) for m in (expression, values))
    assert np.median(after / before) == pytest.approx(1, abs=0.1)
    with pytest.raises(InputError, match="components is 0"):
        make_embedding(
            EmbeddingSpec("rp", "random_projection", {"components": 0}),
            screen,
            EmbeddingContext(folder=folder, seed=0),
        )
