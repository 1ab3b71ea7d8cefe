"""The linear probe against autograd, scikit-learn and its invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import txeval.compute.softmax as kernels
from txeval.compute.groups import canonical_order
from txeval.compute.schedule import learning_rates
from txeval.compute.softmax import (
    LinearClassifier,
    fit_lda,
    fit_softmax,
    softmax_gradients,
    standardisation,
    true_class_ranks_of,
)
from txeval.errors import InputError, NotComputable
from txeval.metrics import linear_probe

rng = np.random.default_rng(4)


def problem(n=600, m=400, d=10, n_classes=6, noise=1.0, seed=0):
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(n_classes, d))
    y, truth = draw.integers(0, n_classes, n), draw.integers(0, n_classes, m)
    return (
        (centres[y] + noise * draw.normal(size=(n, d))).astype(np.float32),
        y,
        (centres[truth] + noise * draw.normal(size=(m, d))).astype(np.float32),
        truth,
    )


@pytest.mark.parametrize("parts", [None, 1, 7])
def test_gradients_are_those_of_autograd(parts, monkeypatch):
    x, y = torch.randn(50, 8, dtype=torch.float64), torch.randint(5, (50,))
    weight = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, weight, bias), y).backward()
    if parts:
        monkeypatch.setattr(kernels, "_LOGITS", parts * 5)
    d_weight, d_bias = torch.full_like(weight, 3.0), torch.full_like(bias, 3.0)
    with torch.no_grad():
        softmax_gradients(x, y, weight, bias, d_weight, d_bias)
    torch.testing.assert_close(d_weight, weight.grad)
    torch.testing.assert_close(d_bias, bias.grad)


@pytest.mark.parametrize(("epochs", "warmup"), [(250, 10), (30, 10), (12, 2), (12, 1)])
def test_learning_rates_follow_the_chained_schedule(epochs, warmup):
    # LinearWarmupCosineAnnealingLR of Lightning Bolts in its chainable form.
    base, start = 1e-3, 3e-5
    rate, expected = start, [start]
    for e in range(1, epochs):
        if e < warmup:
            rate += (base - start) / (warmup - 1)
        elif e == warmup:
            rate = base
        else:
            span = epochs - warmup
            rate *= (1 + math.cos(math.pi * (e - warmup) / span)) / (1 + math.cos(math.pi * (e - warmup - 1) / span))
        expected.append(rate)
    found = learning_rates(epochs, lr=base, warmup_epochs=warmup, warmup_lr=start)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found[warmup] == base
    assert found[-1] < 0.02 * base or epochs < 100


def test_learning_rates_without_warmup():
    found = learning_rates(4, lr=1.0)
    np.testing.assert_allclose(found, (1 + np.cos(np.pi * np.arange(4) / 4)) / 2)
    np.testing.assert_allclose(learning_rates(3, lr=1.0, warmup_epochs=5, warmup_lr=0.2), [0.2, 0.4, 0.6])


@pytest.mark.parametrize("drop_last", [False, True])
def test_training_is_that_of_torch(drop_last):
    X, y, _, _ = problem(n=230, d=7)
    rates = learning_rates(6, lr=1e-2, warmup_epochs=2, warmup_lr=1e-3)
    found = fit_softmax(X, y, 6, seed=11, rates=rates, batch_size=64, weight_decay=1e-2, drop_last=drop_last)

    generator = torch.Generator().manual_seed(11)
    layer = torch.nn.Linear(7, 6)
    bound = 7**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    optimiser = torch.optim.AdamW(layer.parameters(), weight_decay=1e-2)
    rows = torch.from_numpy(canonical_order(X, np.arange(230), y))
    steps = 0
    for rate in rates:
        optimiser.param_groups[0]["lr"] = rate
        for batch in rows[torch.randperm(230, generator=generator)].split(64):
            if drop_last and len(batch) < 64:
                continue
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(layer(torch.from_numpy(X)[batch]), torch.from_numpy(y)[batch]).backward()
            optimiser.step()
            steps += 1
    assert found.steps == steps == 6 * (3 if drop_last else 4)
    np.testing.assert_allclose(found.weight, layer.weight.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.bias, layer.bias.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_start_is_that_of_a_torch_layer():
    found = fit_softmax(
        np.zeros((20, 16)), np.arange(20) % 2, 2, seed=0, rates=np.zeros(1), batch_size=20, weight_decay=0
    )
    layer = torch.nn.Linear(16, 2)
    assert abs(found.weight).max() <= 0.25
    assert abs(found.weight).max() == pytest.approx(abs(layer.weight.detach().numpy()).max(), rel=0.3)


def test_logistic_regression_agrees_where_both_converge():
    X, y, queries, truth = problem(n=3000, m=1500)
    found = linear_probe(X, y, queries, truth, batch_size=256, lr=1e-2, epochs=100)
    model = LogisticRegression(C=1e6, max_iter=1000).fit(X, y)
    assert found["top1"] == pytest.approx(model.score(queries, truth), abs=0.01)
    order = np.argsort(-model.predict_proba(queries), axis=1)
    assert found["top5"] == pytest.approx((order[:, :5] == truth[:, None]).any(axis=1).mean(), abs=0.01)
    assert found["steps"] == 1200
    assert not found["notes"]


def test_real_embedding(golden_dir):
    arrays = np.load(golden_dir / "norman.npz")
    X, y, control = arrays["embedding"], arrays["perturbation"], arrays["is_control"]
    train, test = (rows[~control[rows]] for rows in (arrays["split_train"], arrays["split_test"]))
    found = linear_probe(X[train], y[train], X[test], y[test], batch_size=256)
    scaler = StandardScaler().fit(X[train])
    model = LogisticRegression(max_iter=2000).fit(scaler.transform(X[train]), y[train])
    assert found["top1"] == pytest.approx(model.score(scaler.transform(X[test]), y[test]), abs=0.04)
    assert found["top1"] > 4 * found["majority"]
    assert (found["n_train"], found["n_test"], found["n_classes"]) == (len(train), len(test), len(set(y[train])))
    nonsense = linear_probe(X[train], y[train], rng.permutation(X[test]), y[test], batch_size=256)
    assert nonsense["top1"] < 0.1


def test_lda_is_that_of_scikit_learn():
    X, y, queries, truth = problem(d=8)
    X, queries = X * np.arange(1, 9, dtype=np.float32), queries * np.arange(1, 9, dtype=np.float32)
    scaler = StandardScaler().fit(X)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=1e-4).fit(scaler.transform(X), y)
    found = fit_lda(X, y, 6, max_elements=100)
    scores = ((queries - found.shift) / found.spread) @ found.weight.T + found.bias
    expected = model.decision_function(scaler.transform(queries))
    # Scores are comparable up to what is the same for all classes.
    np.testing.assert_allclose(
        scores - scores.mean(axis=1, keepdims=True), expected - expected.mean(axis=1, keepdims=True), atol=1e-3
    )
    probe = linear_probe(X, y, queries, truth, solver="lda")
    assert probe["top1"] == pytest.approx(model.score(scaler.transform(queries), truth))
    assert (probe["steps"], probe["epochs"]) == (0, 0)
    assert "linear discriminant analysis" in probe["notes"][0]


def test_short_softmax():
    X, y, queries, truth = problem(n=5000, noise=0.7)
    short = linear_probe(1000 * X, y, 1000 * queries, truth, solver="softmax-short", batch_size=32)
    long = linear_probe(X, y, queries, truth, batch_size=64, epochs=60)
    assert short["top1"] == pytest.approx(long["top1"], abs=0.03)
    # Seven epochs make 1,000 steps here; where five make more, five it is.
    assert short["epochs"] == 7
    assert 1000 <= short["steps"] < 1000 + short["steps"] / short["epochs"]
    assert "z-scored" in short["notes"][0]
    many = linear_probe(1000 * X, y, 1000 * queries, truth, solver="softmax-short", batch_size=16)
    assert many["epochs"] == 5
    assert many["steps"] > 1000


def test_standardisation():
    X = rng.normal(size=(500, 3)) * [1, 1e-3, 0] + [1, 5, 0.1]
    mean, deviation = standardisation(X, max_elements=100)
    wide = X.astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(deviation, [*wide.std(axis=0)[:2], 1], rtol=1e-5)


@pytest.mark.parametrize("solver", ["adamw", "softmax-short"])
def test_a_seed_gives_one_result(solver):
    X, y, queries, truth = problem(noise=2.0)
    first, again = (linear_probe(X, y, queries, truth, seed=3, epochs=15, solver=solver) for _ in range(2))
    other = linear_probe(X, y, queries, truth, seed=4, epochs=15, solver=solver)
    np.testing.assert_array_equal(first["rank"], again["rank"])
    assert (first["rank"] != other["rank"]).any()


@pytest.mark.parametrize("solver", ["adamw", "softmax-short", "lda"])
def test_order_and_names_have_no_effect(solver):
    X, y, queries, truth = problem(noise=2.0)
    expected = linear_probe(X, y, queries, truth, epochs=15, batch_size=100, solver=solver)
    order, back = rng.permutation(len(X)), rng.permutation(len(queries))
    names = np.array([f"g{i}" for i in range(6)], dtype=object)
    shuffled = linear_probe(
        X[order], names[y[order]], queries[back], names[truth[back]], epochs=15, batch_size=100, solver=solver
    )
    np.testing.assert_array_equal(shuffled["rank"], expected["rank"][back])


@pytest.mark.parametrize("solver", ["adamw", "softmax-short"])
def test_rows_on_demand_give_the_same(solver, monkeypatch):
    class OnDemand:
        def __init__(self, values):
            self.values, self.shape, self.reads = values, values.shape, []

        def __getitem__(self, rows):
            out = self.values[rows]
            self.reads.append(len(out))
            return out

    X, y, queries, truth = problem()
    expected = linear_probe(X, y, queries, truth, epochs=5, batch_size=100, solver=solver)
    monkeypatch.setattr(kernels, "held_bytes", lambda: 0)
    lazy = OnDemand(X)
    found = linear_probe(lazy, y, OnDemand(queries), truth, epochs=5, batch_size=100, solver=solver)
    np.testing.assert_array_equal(found["rank"], expected["rank"])
    assert lazy.reads.count(100) == found["steps"] > 0


def test_ranks_count_larger_scores_and_equal_ones_apart():
    classifier = LinearClassifier(np.array([[1.0], [2.0], [2.0], [3.0]], np.float32), np.zeros(4, np.float32))
    x, ahead = np.ones((5, 1)), np.empty((5, 5), np.int64)
    rank, tied = true_class_ranks_of(classifier, x, np.array([0, 1, 2, 3, -1]), max_elements=4, ahead=ahead)
    assert rank.tolist() == [3, 1, 1, 0, 5]
    assert tied.tolist() == [0, 1, 1, 0, 0]
    assert ahead.tolist() == [[1, 2, 3, -1, -1], [3, -1, -1, -1, 2], [3, -1, -1, -1, 1], [-1] * 5, [-1] * 5]


def test_scores_of_equal_inputs_do_not_favour():
    # All classes tie where nothing distinguishes them: the answer is one class, not all of them.
    X, y = np.zeros((60, 3)), np.arange(60) % 6
    with pytest.raises(NotComputable, match="no class varies"):
        linear_probe(X, y, X, y, solver="lda")
    assert linear_probe(X, y, X, y, epochs=15)["top1"] == pytest.approx(1 / 6)


def test_a_minibatch_larger_than_the_set():
    X, y, queries, truth = problem(n=90)
    found = linear_probe(X, y, queries, truth, epochs=20, batch_size=64_768, drop_last=True)
    assert found["steps"] == 20
    assert "every minibatch holds all 90 training samples" in found["notes"][0]
    assert "20 optimiser steps" in found["notes"][1]
    whole = linear_probe(X, y, queries, truth, epochs=20, batch_size=90)
    np.testing.assert_array_equal(found["rank"], whole["rank"])
    dropped = linear_probe(X, y, queries, truth, epochs=20, batch_size=40, drop_last=True)
    assert dropped["steps"] == 40


def test_labels_that_training_lacks():
    X, y, queries, truth = problem()
    found = linear_probe(X, y, queries, np.where(truth == 2, 77, truth), solver="lda")
    assert found["n_unknown"] == (truth == 2).sum()
    assert (found["rank"][truth == 2] == 6).all()
    assert "label that the training set lacks" in found["notes"][0]
    with pytest.raises(NotComputable, match="no label in common"):
        linear_probe(X, y, queries, truth + 100)


def test_divergence_is_said():
    X, y, queries, truth = problem()
    with pytest.raises(NotComputable, match="diverged"):
        linear_probe(X * 1e29, y, queries, truth, epochs=30, lr=1e30)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X_train": np.full((4, 2), np.nan)}, InputError, "X_train holds nan in row 0"),
        ({"X_train": np.full((4, 2), np.nan), "solver": "lda"}, InputError, "X_train holds nan in row 0"),
        ({"X_test": np.full((2, 2), np.inf)}, InputError, "X_test holds inf in row 0"),
        ({"X_test": np.zeros((2, 3))}, InputError, "X_train has 2 columns, X_test 3"),
        ({"y_train": ["a"]}, InputError, "y_train has 1 entries for 4"),
        ({"y_test": ["a", None]}, InputError, "y_test is missing in row 1"),
        ({"y_train": ["a"] * 4}, NotComputable, "one class"),
        ({"X_train": np.zeros((0, 2)), "y_train": []}, NotComputable, "no sample to train on"),
        ({"X_test": np.zeros((0, 2)), "y_test": []}, NotComputable, "no sample to score"),
        ({"epochs": 0}, InputError, "epochs is 0"),
        ({"batch_size": 0}, InputError, "batch_size is 0"),
        ({"lr": 0}, InputError, "lr is 0"),
        ({"weight_decay": -1}, InputError, "weight_decay -1"),
        ({"warmup_epochs": -1}, InputError, "warmup_epochs is -1"),
        ({"solver": "adam"}, InputError, "adamw"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {
        "X_train": rng.normal(size=(4, 2)),
        "y_train": ["a", "a", "b", "b"],
        "X_test": np.zeros((2, 2)),
        "y_test": ["a", "b"],
    }
    with pytest.raises(error, match=message):
        linear_probe(**(arguments | change))
