"""What runs on an accelerator gives what the processor gives.

Every test runs the code of the accelerator twice: on the processor under another name ("cpu:0"), which checks its
mathematics everywhere, and on a CUDA device, which is reported as not run where there is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from txeval.compute.arrays import row_blocks
from txeval.compute.decoder import fit_closed_form, fit_decoder
from txeval.compute.devices import exact_products, product_on
from txeval.compute.energy import Reference, distance_sums, group_energies, within_sum
from txeval.compute.logistic import fit_logistic
from txeval.compute.moments import gram
from txeval.compute.neighbours import NeighbourIndex, neighbours
from txeval.compute.softmax import fit_lda, fit_softmax, true_class_ranks_of
from txeval.data import simulate_screen
from txeval.metrics.batch_mixing import ilisi_scores
from txeval.metrics.consistency import group_energy, magnitude_permutation_p
from txeval.metrics.knn import true_class_ranks
from txeval.run import NullProgress, build_config, execute, make_plan

CUDA = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NOT RUN: torch finds no CUDA device here; only the processor was tried"
)

device = pytest.mark.parametrize("device", ["cpu:0", pytest.param("cuda", marks=CUDA)])

#: Largest difference of a score between devices that is allowed: ranks may swap where two values agree to 1e-6.
TOLERANCE = 2e-3


def groups(n: int = 3000, d: int = 20, k: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, k, n)
    return (rng.normal(size=(n, d)) + 0.5 * rng.normal(size=(k, d))[codes]).astype(np.float32), codes


@device
def test_products_are_those_of_float64(device: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 300)), rng.normal(size=(300, 50))
    np.testing.assert_allclose(product_on(device, a, b), a @ b, rtol=1e-12, atol=1e-12)
    low = product_on(device, a.astype(np.float32), b.astype(np.float32))
    assert low.dtype == np.float32
    # TF32 has 10 bits of mantissa and would be 1e-2 off.
    np.testing.assert_allclose(low, a @ b, atol=1e-4)


def test_reduced_precision_is_off_within_and_as_it_was_after() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for chosen in (True, False):
            torch.backends.cuda.matmul.allow_tf32 = chosen
            with pytest.raises(KeyError), exact_products():
                assert not torch.backends.cuda.matmul.allow_tf32
                raise KeyError
            assert torch.backends.cuda.matmul.allow_tf32 == chosen
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@device
def test_neighbours_are_the_same(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X, _ = groups(4000)
    X[500:520] = X[0]
    expected = neighbours(X, X[:700], 51)
    found = neighbours(X, X[:700], 51, device=device)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    monkeypatch.setattr("txeval.compute.neighbours._PRODUCTS_ELSEWHERE", 100_000)
    parts = [part for _, part, _ in NeighbourIndex(X).blocks(X[:700], 51, device=device)]
    np.testing.assert_array_equal(np.concatenate(parts), expected[0])


@device
def test_knn_and_mixing_are_the_same(device: str) -> None:
    X, codes = groups()
    query, truth = X[:500] + np.float32(0.01), codes[:500]
    arguments: dict[str, Any] = {"n_classes": 12, "k": 31, "components": 8}
    expected = true_class_ranks(X, codes, query, truth, **arguments).rank
    np.testing.assert_array_equal(true_class_ranks(X, codes, query, truth, device=device, **arguments).rank, expected)
    batch = codes % 3
    np.testing.assert_array_equal(
        ilisi_scores(X, batch, perplexity=15, device=device).scores, ilisi_scores(X, batch, perplexity=15).scores
    )


@device
@pytest.mark.parametrize("far", [0.0, 1e3])
def test_energy_distances_agree(device: str, far: float) -> None:
    X, codes = groups()
    X += np.float32(far)
    control = codes == 0
    labels = np.where(control, -1, codes)
    expected = group_energy(X, labels, 12, control)
    found = group_energy(X, labels, 12, control, device=device)
    mean_distance = float(np.linalg.norm(X[:300, None] - X[None, :300], axis=2).mean())
    np.testing.assert_allclose(found[1:], expected[1:], atol=2e-6 * mean_distance)
    np.testing.assert_allclose(within_sum(X[:700], device=device), within_sum(X[:700]), rtol=1e-6)
    moved = X - X.mean(axis=0)
    direct = np.linalg.norm(moved[:40, None].astype(float) - moved[None, :900], axis=2).sum(axis=1)
    np.testing.assert_allclose(distance_sums(moved[:40], moved[:900], device=device), direct, rtol=1e-6)
    batch = np.arange(len(X)) % 4
    names = np.asarray([f"g{i:02d}" for i in range(12)])
    tested = np.arange(1, 12)
    p = [
        magnitude_permutation_p(X, labels, batch, control, names, tested, energy, draws=60, device=where)
        for energy, where in ((expected, "cpu"), (found, device))
    ]
    np.testing.assert_allclose(p[1], p[0], atol=2 / 61)


@device
def test_energy_of_a_group_that_is_read_by_tiles(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X, codes = groups()
    codes = np.minimum(codes, 2)
    reference = (
        Reference.of_rows(X, np.flatnonzero(codes == 0)),
        Reference.of_rows(X, np.flatnonzero(codes == 0), device=device),
    )
    monkeypatch.setattr("txeval.compute.energy.TILE_ELSEWHERE", 97)
    whole = group_energies(X, codes, 3, reference[0])[1]
    for most in (None, 1):
        np.testing.assert_allclose(
            group_energies(X, codes, 3, reference[1], max_elements=most)[1], whole, rtol=1e-4, atol=1e-5
        )


@device
@pytest.mark.parametrize("kind", ["small counts", "large counts", "values"])
def test_gram_matrices_agree(device: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    X = rng.poisson(0.6, (3000, 70)).astype(np.float32)
    if kind == "large counts":
        X[rng.integers(0, 3000, 40), rng.integers(0, 70, 40)] = 400
    if kind == "values":
        X = np.log1p(X)
    blocks = [sparse.csr_matrix(X[a : a + 700]) for a in range(0, 3000, 700)]
    n, mean, scatter = gram(blocks, 70, device=device)
    assert n == 3000
    np.testing.assert_allclose(mean, X.mean(axis=0, dtype=np.float64), rtol=1e-7)
    centred = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
    direct = centred.T @ centred
    np.testing.assert_allclose(scatter, direct, atol=1e-9 * direct.max() if kind != "values" else 1e-7 * direct.max())


@device
@pytest.mark.parametrize("kind", ["least_squares", "ridge"])
def test_closed_form_decoders_agree(device: str, kind: Any) -> None:
    X, codes = groups(1500, 12)
    rng = np.random.default_rng(1)
    Y = np.maximum(X @ rng.normal(size=(12, 60)) + rng.normal(size=(1500, 60)), 0).astype(np.float32)
    held = codes == 3

    def blocks(rows: Any) -> Any:
        for part in row_blocks(len(rows), 60, 9000):
            yield part, Y[rows[part]]

    rows = rng.permutation(1500)[:1200]
    mask = held[rows] if kind == "ridge" else None
    one, other = (
        fit_closed_form([X], blocks, rows, kind=kind, held_out=[mask], device=where)[0] for where in ("cpu", device)
    )
    assert other.penalty == one.penalty
    np.testing.assert_allclose(other.predict(X), one.predict(X), atol=2e-5)
    np.testing.assert_allclose(other.predict_columns(X, slice(7, 31)), one.predict(X)[:, 7:31].T, atol=2e-5)


@device
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_trained_decoders_agree(device: str, kind: Any) -> None:
    X, _ = groups(400, 8)
    Y = np.maximum(X @ np.random.default_rng(1).normal(size=(8, 30)), 0).astype(np.float32)
    one, other = (
        fit_decoder(X, lambda rows: Y[rows], np.arange(400), kind=kind, hidden=16, epochs=4, device=where)
        for where in ("cpu", device)
    )
    np.testing.assert_allclose(other.losses, one.losses, rtol=1e-4)
    np.testing.assert_allclose(other.predict(X), one.predict(X), atol=1e-3)


@device
def test_probes_agree(device: str) -> None:
    X, codes = groups(2000, 15, 6)
    train, test = slice(0, 1500), slice(1500, None)
    lda = fit_lda(X[train], codes[train], 6)
    one, other = (true_class_ranks_of(lda, X[test], codes[test], device=where)[0] for where in ("cpu", device))
    assert (one != other).mean() <= 0.002
    common: dict[str, Any] = {"seed": 0, "rates": np.full(5, 1e-2), "batch_size": 256, "weight_decay": 1e-6}
    trained = [fit_softmax(X[train], codes[train], 6, device=where, **common).weight for where in ("cpu", device)]
    np.testing.assert_allclose(trained[1], trained[0], atol=1e-3)
    solved = [fit_logistic(X[train], codes[train], 6, weight_decay=1e-3, device=where) for where in ("cpu", device)]
    assert solved[1].loss == pytest.approx(solved[0].loss, rel=1e-4)


@CUDA
def test_a_run_on_cuda_scores_as_one_on_the_processor(tmp_path: Path) -> None:
    simulate_screen(
        tmp_path / "s.h5ad", n_samples=1500, n_genes=120, n_perturbations=30, n_batches=5, effect=1.5, seed=3
    )
    (tmp_path / "p.yaml").write_text(
        "extends: paper\nname: quick\ntasks:\n  linear_probe: {solver: lda}\n"
        "  consistency: {draws: 100, null: permutation}\n  reconstruction: {decoder: ridge}\n"
    )

    def scores(where: str) -> Any:
        config = build_config(
            {
                "screen": tmp_path / "s.h5ad",
                "roles": {"perturbation": "perturbation", "control_column": "control", "batch": "batch"},
                "embeddings": ["pca@components=20", "obsm:X_noisy"],
                "protocol": tmp_path / "p.yaml",
                "tasks": ["batch_mixing", "linear_probe", "consistency", "knn", "reconstruction"],
                "seeds": 1,
                "min_counts": 0,
                "baseline": False,
                "device": where,
                "out": tmp_path / where,
            }
        )
        return execute(make_plan(config), progress=NullProgress()).scores

    one, other = scores("cpu"), scores("cuda")
    assert (one["device"] == "cpu").all() and (other["device"] == "cuda").all()
    keys = ["model", "post_processing", "task", "metric", "subset"]
    both = one.merge(other, on=keys, suffixes=("", "_cuda"))
    assert len(both) == len(one)
    known = both["value"].notna()
    np.testing.assert_allclose(both.loc[known, "value_cuda"], both.loc[known, "value"], atol=TOLERANCE)
