"""Variable genes against scanpy's definition, computed in one piece with pandas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from txeval.embed.variable_genes import variable_genes


def reference(x: np.ndarray, n_top: int) -> np.ndarray:
    """scanpy 1.11, `highly_variable_genes(flavor="cell_ranger")`, written down again on a data frame."""
    mean, variance = x.mean(axis=0), x.var(axis=0, ddof=1)
    mean = np.where(mean == 0, 1e-12, mean)
    frame = pd.DataFrame({"mean": mean, "dispersion": variance / mean})
    edges = np.r_[-np.inf, np.unique(np.percentile(mean, np.arange(10, 105, 5))), np.inf]
    groups = frame.groupby(pd.cut(frame["mean"], edges), observed=True)["dispersion"]
    median = groups.transform("median")
    deviation = groups.transform(lambda values: (values - values.median()).abs().median() / 0.6744897501960817)
    score = (frame["dispersion"] - median) / deviation
    return np.sort(np.argsort(-score.to_numpy(), kind="stable")[:n_top])


@pytest.mark.parametrize("n_top", [1, 20, 150])
def test_agrees_with_the_definition(n_top: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.poisson(rng.gamma(0.5, 3.0, 400) * rng.gamma(2.0, 0.5, (300, 1)), (300, 400))
    logged = np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4)
    wanted = reference(logged, n_top)
    for size in (300, 37, 1):
        blocks = (sp.csr_matrix(logged[low : low + size]) for low in range(0, 300, size))
        assert np.array_equal(variable_genes(blocks, 400, n_top), wanted)
    assert np.array_equal(variable_genes([logged], 400, n_top), wanted)


def test_all_where_there_are_no_more() -> None:
    assert variable_genes([np.ones((3, 4))], 4, 10).tolist() == [0, 1, 2, 3]


def test_constant_and_silent_genes_are_not_chosen() -> None:
    rng = np.random.default_rng(1)
    x = np.zeros((50, 60))
    x[:, :20] = rng.gamma(1.0, 2.0, (50, 20))
    x[:, 20:40] = 3.0
    chosen = variable_genes([x], 60, 6)
    assert set(chosen) <= set(range(20))
    assert np.array_equal(chosen, np.unique(chosen))
