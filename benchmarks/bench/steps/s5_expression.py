"""What reads expression: PCA of counts, rank correlations, reconstruction scores; and the closed-form probe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from benchmarks.bench.measure import Case, Check, Step, Way
from scipy import sparse
from scipy.stats import spearmanr

from txeval.compute.correlation import columns_of, spearman_by_gene
from txeval.compute.moments import gram
from txeval.embed.pca import principal_axes
from txeval.metrics.linear_probe import linear_probe
from txeval.metrics.reconstruction import GeneMoments, IntegritySums

FULL, HELDOUT, GENES = 1_980_000, 194_178, 8_248


def counts(n: int, g: int, density: float = 0.22) -> sparse.csr_matrix:
    """Counts with the spread of a Perturb-seq screen, a few above 127."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.3, 1.0, g)
    rate *= -np.log1p(-density) / np.mean(1 - np.exp(-rate)) * 0.5
    blocks = [
        sparse.csr_matrix(rng.poisson(rate * rng.lognormal(0, 0.4, (min(1024, n - i), 1))).astype(np.float32))
        for i in range(0, n, 1024)
    ]
    return sparse.csr_matrix(sparse.vstack(blocks))


def pca(quick: bool) -> Case:
    """256 components of 2 million cells: moments, eigenvectors once, projection."""
    from sklearn.decomposition import IncrementalPCA

    n, g, k = (1_024, 300, 20) if quick else (8_192, 8_000, 256)
    batch = 256 if quick else 2_048
    x = counts(n, g)
    kept: dict[str, Any] = {}

    def blocks(size: int) -> Any:
        return (x[i : i + size] for i in range(0, n, size))

    def moments() -> Any:
        kept["n"], kept["mean"], kept["scatter"] = gram(blocks(485), g)
        return kept["scatter"]

    def axes() -> Any:
        kept["values"], kept["axes"] = principal_axes(kept["scatter"], k)
        return kept["values"]

    def projection() -> None:
        axes32, mean32 = kept["axes"].astype(np.float32), kept["mean"].astype(np.float32)
        for block in blocks(485):
            (block.toarray() - mean32) @ axes32

    def first() -> None:
        kept["model"] = IncrementalPCA(k).partial_fit(x[:batch].toarray())

    def further() -> Any:
        return kept["model"].partial_fit(x[batch : 2 * batch].toarray())

    def transform() -> Any:
        return kept["model"].transform(x[:batch].toarray())

    def check(ours: list[Any], others: Mapping[str, list[Any]]) -> list[Check]:
        some = np.unique(np.linspace(0, g - 1, 50).astype(int))
        dense = x[:, some].toarray().astype(np.int64)
        total = dense.sum(axis=0).astype(np.float64)
        exact = (dense.T @ dense) - np.outer(total, total) / n
        scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
        return [
            Check(
                "largest difference of covariances from 64-bit integers, relative",
                float(abs((ours[0][np.ix_(some, some)] - exact) / np.where(scale > 0, scale, 1)).max()),
                1e-12,
            )
        ]

    return Case(
        size=(
            f"{FULL:,} x {g:,} counts, {k} components: moments and projection from {n:,} of the cells, axes once; "
            f"IncrementalPCA from its second batch of {batch:,} and the transformation of one"
        ),
        ours=Way(((moments, FULL / n), (axes, 1.0), (projection, FULL / n))),
        others={"IncrementalPCA": Way(((first, 1.0), (further, FULL / batch - 1), (transform, FULL / batch)))},
        check=check,
        warm=lambda: gram([x[:64, :64]], 64),
        flops=FULL * (float(g) * g + 2.0 * g * k),
        inner=2048,
    )


def predicted(n: int, g: int) -> tuple[np.ndarray, np.ndarray]:
    """Normalised expression with zeros, and a prediction of it."""
    rng = np.random.default_rng(0)
    true = np.where(rng.random((n, g)) < 0.78, 0, np.log1p(rng.gamma(2, 2, (n, g)))).astype(np.float32)
    return (0.3 * true + rng.standard_normal((n, g), dtype=np.float32)).astype(np.float32), true


def spearman(quick: bool) -> Case:
    """Rank correlation per gene, ties and all."""
    from torchmetrics.functional import spearman_corrcoef

    n, g = (2_000, 6) if quick else (HELDOUT, 48)
    pred, true = predicted(n, g)
    left, right = torch.from_numpy(pred), torch.from_numpy(true)

    def torchmetrics() -> np.ndarray:
        return spearman_corrcoef(left, right).numpy()

    def scipy() -> np.ndarray:
        return np.array([spearmanr(pred[:, j], true[:, j]).statistic for j in range(g)])

    def check(ours: list[Any], others: Mapping[str, list[Any]]) -> list[Check]:
        return [
            Check(
                "largest difference from scipy", float(abs(ours[0].values - others["scipy spearmanr"][0]).max()), 1e-12
            )
        ]

    return Case(
        size=f"{n:,} samples x {GENES:,} genes, from {g} of the genes",
        ours=Way.of(lambda: spearman_by_gene(columns_of(pred), columns_of(true), n, g), GENES / g),
        others={"torchmetrics": Way.of(torchmetrics, GENES / g), "scipy spearmanr": Way.of(scipy, GENES / g)},
        check=check,
        warm=lambda: (
            spearman_by_gene(columns_of(pred[:2000, :2]), columns_of(true[:2000, :2]), 2000, 2),
            spearman_corrcoef(left[:100], right[:100]),
        ),
    )


def integrity(quick: bool) -> Case:
    """Structural Integrity in one pass."""
    n, g, batches = (2_000, 50, 4) if quick else (20_000, 500, 81)
    pred, true = predicted(n, g)
    rng = np.random.default_rng(1)
    batch, control = rng.integers(0, batches, n), rng.random(n) < 0.12

    def ours() -> float:
        sums = IntegritySums(g, batches)
        for start in range(0, n, 4096):
            rows = slice(start, start + 4096)
            sums.add(pred[rows], true[rows], batch[rows], control[rows])
        return sums.result().score

    def copies() -> float:
        distance, most = [], []
        for b in range(batches):
            mine = batch == b
            p, t = (m[mine] - m[mine & control].mean(axis=0) for m in (pred, true))
            distance.append(np.linalg.norm(p - t) / mine.sum())
            most.append(2 * np.linalg.norm(t) / mine.sum())
        return float(1 - np.mean(distance) / np.mean(most))

    def check(found: list[Any], others: Mapping[str, list[Any]]) -> list[Check]:
        return [Check("difference", abs(found[0] - others["centred copies"][0]), 1e-5)]

    return Case(
        size=f"{n:,} x {g}, {batches} batches",
        ours=Way.of(ours),
        others={"centred copies": Way.of(copies)},
        check=check,
        warm=ours,
    )


def errors(quick: bool) -> Case:
    """Pearson, squared and absolute errors, R2 in one pass."""
    n, g = (2_000, 50) if quick else (20_000, 500)
    pred, true = predicted(n, g)

    def ours() -> Any:
        sums = GeneMoments(g)
        for start in range(0, n, 4096):
            sums.add(pred[start : start + 4096], true[start : start + 4096])
        return sums.scores()

    def whole() -> Any:
        a, b = pred.astype(np.float64), true.astype(np.float64)
        p, t = a - a.mean(axis=0), b - b.mean(axis=0)
        pearson = (p * t).sum(axis=0) / np.sqrt((p * p).sum(axis=0) * (t * t).sum(axis=0))
        r2 = 1 - ((a - b) ** 2).sum() / ((b - b.mean()) ** 2).sum()
        return pearson.mean(), ((a - b) ** 2).mean(), np.abs(a - b).mean(), r2

    def check(found: list[Any], others: Mapping[str, list[Any]]) -> list[Check]:
        gap = np.subtract(list(found[0].values()), others["whole float64 matrices"][0])
        return [Check("largest difference", float(np.abs(gap).max()), 1e-6)]

    return Case(
        size=f"{n:,} x {g}",
        ours=Way.of(ours),
        others={"whole float64 matrices": Way.of(whole)},
        check=check,
        warm=ours,
    )


def lda(quick: bool) -> Case:
    """The closed-form probe, ranks of the true classes included."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    n, m, classes, d = (2_000, 400, 20, 16) if quick else (60_000, 10_000, 2_000, 256)
    rng = np.random.default_rng(0)
    centres = 0.5 * rng.standard_normal((classes, d), dtype=np.float32)
    y, truth = rng.permutation(np.arange(n) % classes), rng.integers(0, classes, m)
    x = centres[y] + rng.standard_normal((n, d), dtype=np.float32)
    queries = centres[truth] + rng.standard_normal((m, d), dtype=np.float32)

    def sklearn() -> float:
        # lsqr solves by least squares; with a little shrinkage, which ours has as well.
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=1e-4).fit(x, y)
        return float((model.predict(queries) == truth).mean())

    def check(found: list[Any], others: Mapping[str, list[Any]]) -> list[Check]:
        return [Check("difference in top 1", abs(found[0]["top1"] - others["sklearn LDA"][0]), 2e-3)]

    return Case(
        size=f"{n:,} x {d}, {classes:,} classes, {m:,} queries",
        ours=Way.of(lambda: linear_probe(x, y, queries, truth, solver="lda")),
        others={"sklearn LDA": Way.of(sklearn)},
        check=check,
        warm=lambda: linear_probe(x[:200], y[:200] % 5, queries[:20], truth[:20] % 5, solver="lda"),
        flops=2.0 * m * classes * d,
        inner=d,
    )


STEPS = (
    Step("pca", "PCA of counts", pca, {"IncrementalPCA": 8}, at_most_mib=4096),
    Step("spearman", "Spearman by gene", spearman, {"torchmetrics": 4}),
    Step("integrity", "Structural Integrity", integrity),
    Step("errors", "Pearson, MSE, MAE, R2", errors),
    Step("lda", "Linear probe, lda", lda),
)
