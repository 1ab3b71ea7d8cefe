"""The convergent probe: scikit-learn's solution, no dependence on seed, scale or order, and its choice of penalty."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import txeval.compute.logistic as kernels
from txeval.compute.logistic import Objective, fit_logistic
from txeval.errors import InputError, NotComputable
from txeval.metrics.convergent_probe import convergent_probe, validation_rows


def problem(n=500, m=300, d=8, n_classes=5, noise=1.5, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_classes, d))
    y, truth = rng.integers(n_classes, size=n), rng.integers(n_classes, size=m)
    X, Q = centres[y] + noise * rng.normal(size=(n, d)), centres[truth] + noise * rng.normal(size=(m, d))
    return X.astype(np.float32), y, Q.astype(np.float32), truth, rng.integers(4, size=n)


@pytest.mark.parametrize("decay", [0.3, 0.01, 0.001])
@pytest.mark.parametrize("logits", [None, 40])
def test_the_solution_is_that_of_scikit_learn(decay, logits, monkeypatch) -> None:
    if logits:
        monkeypatch.setattr(kernels, "_LOGITS", logits)
    X, y, *_ = problem(n=200 if logits else 500)
    X = X * np.logspace(-2, 2, X.shape[1], dtype=np.float32)
    fit = fit_logistic(X, y, 5, weight_decay=decay, tolerance=1e-10, max_iterations=2000)
    theirs = LogisticRegression(C=1 / (decay * len(y)), tol=1e-8, max_iter=5000).fit(
        StandardScaler().fit_transform(X), y
    )
    np.testing.assert_allclose(fit.classifier.weight, theirs.coef_, atol=3e-3)
    # The biases are not penalised: they are known up to a common number.
    ours = fit.classifier.bias - fit.classifier.bias.mean()
    np.testing.assert_allclose(ours, theirs.intercept_ - theirs.intercept_.mean(), atol=3e-3)
    assert fit.converged


def test_the_gradient_is_that_of_finite_differences() -> None:
    X, y, *_ = problem(n=40, d=3)
    rng = np.random.default_rng(1)
    objective = Objective(X, y, 5, np.zeros(3, np.float32), np.ones(3, np.float32))
    at = rng.normal(size=20) * 0.3
    slope = objective(at)[1]
    for j in range(20):
        step = np.zeros(20)
        step[j] = 1e-2
        numeric = (objective(at + step)[0] - objective(at - step)[0]) / 2e-2
        assert slope[j] == pytest.approx(numeric, abs=3e-4)


def test_scale_shift_and_order_do_not_matter() -> None:
    X, y, Q, truth, batch = problem()
    order = np.random.default_rng(3).permutation(len(y))
    scale, shift = np.logspace(-3, 3, X.shape[1], dtype=np.float32), np.float32(5)
    one = convergent_probe(X, y, Q, truth, batch=batch)
    two = convergent_probe((X * scale + shift)[order], y[order], Q * scale + shift, truth, batch=batch[order])
    assert one["weight_decay"] == two["weight_decay"]
    assert (one["rank"] == two["rank"]).mean() > 0.99


def test_the_penalty_is_strong_for_noise_and_weaker_for_signal() -> None:
    X, y, Q, truth, batch = problem(noise=0.6)
    rng = np.random.default_rng(0)
    noise = convergent_probe(rng.normal(size=X.shape), y, rng.normal(size=Q.shape), truth, batch=batch)
    signal = convergent_probe(X, y, Q, truth, batch=batch)
    assert noise["weight_decay"] > signal["weight_decay"]
    assert "at the end" in " ".join(noise["notes"])
    assert abs(noise["top1"] - 0.2) < 0.1 < signal["top1"] - 0.5
    assert (
        signal["converged"]
        and min(signal["validation_loss"], key=signal["validation_loss"].get) == signal["weight_decay"]
    )


def test_whole_batches_are_held_out() -> None:
    X, y, _, _, batch = problem()
    held, how = validation_rows(X, batch, y, 0.3)
    assert all(len(set(held[batch == b])) == 1 for b in range(4))
    assert len(set(batch[held])) == 1 and "1 of 4 train batches" in how
    held, how = validation_rows(X, None, y, 0.3)
    shares = np.bincount(y, weights=held) / np.bincount(y)
    assert (np.abs(shares - 0.3) < 0.02).all() and "one train batch" in how


def test_edges() -> None:
    X, y, Q, truth, batch = problem()
    with pytest.raises(NotComputable, match="one class"):
        convergent_probe(X, np.zeros(len(y)), Q, truth)
    with pytest.raises(NotComputable, match="in common"):
        convergent_probe(X, y, Q, truth + 50)
    with pytest.raises(InputError, match="weight_decays"):
        convergent_probe(X, y, Q, truth, weight_decays=(0.1, 0.0))
    with pytest.raises(InputError, match="nan"):
        convergent_probe(X * np.nan, y, Q, truth)
    # Each class in a batch of its own: nothing can be held out that the rest could have learnt.
    alone = convergent_probe(X, y, Q, truth, batch=y)
    assert alone["top1"] > 0.3
    constant = convergent_probe(np.ones_like(X), y, np.ones_like(Q), truth, batch=batch)
    assert constant["top1"] == pytest.approx(constant["majority"])
