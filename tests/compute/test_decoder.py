from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from txeval.compute import decoder as module
from txeval.compute.decoder import KINDS, PENALTIES, Decoder, fit_closed_form, fit_decoder, hidden_widths
from txeval.compute.schedule import learning_rate
from txeval.errors import InputError, NotComputable


def made(n: int = 400, d: int = 6, g: int = 15, seed: int = 0, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)).astype(np.float32)
    Y = X @ rng.standard_normal((d, g)) + rng.standard_normal(g) + noise * rng.standard_normal((n, g))
    return X, Y.astype(np.float32)


def test_widths_are_those_of_the_published_code() -> None:
    assert hidden_widths("linear", 256, 8248) == (4252,)
    assert hidden_widths("mlp", 256, 8248) == (2254, 4252, 6250)
    assert hidden_widths("mlp", 256, 8248, 512) == (512, 512, 512)
    assert hidden_widths("mlp", 256, 8248, [9, 8]) == (9, 8)
    with pytest.raises(InputError, match="positive"):
        hidden_widths("linear", 2, 2, 0)


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(e, 30, lr=1e-4, warmup_epochs=10, warmup_lr=3e-5) for e in range(31)]
    assert rates[0] == pytest.approx(3e-5)
    assert rates[9] == pytest.approx(1e-4)
    assert rates[10] == pytest.approx(1e-4)
    assert rates[20] == pytest.approx(5e-5)
    assert rates[30] == pytest.approx(0)
    np.testing.assert_allclose(np.diff(rates[:10]), 7e-5 / 9)
    assert [learning_rate(e, 1, lr=1.0, warmup_epochs=10, warmup_lr=0.5) for e in range(1)] == [0.5]


def test_least_squares_is_that_of_numpy() -> None:
    X, Y = made()
    rows = np.random.default_rng(1).permutation(400)[:300]
    decoder = fit_decoder(X, lambda r: Y[r], rows, kind="least_squares")
    design = np.c_[X[rows].astype(float), np.ones(300)]
    solution = np.linalg.lstsq(design, Y[rows].astype(float), rcond=None)[0]
    np.testing.assert_allclose(decoder.predict(X), np.c_[X, np.ones(400)] @ solution, atol=2e-5)
    residual = ((design @ solution - Y[rows]) ** 2).mean()
    assert decoder.losses[0] == pytest.approx(residual, rel=1e-6)
    assert decoder.rank == 6


def test_least_squares_with_redundant_and_constant_columns() -> None:
    X, Y = made(n=200)
    wide = np.c_[X, X[:, 0] * 2, X[:, 1], np.full(200, 5)].astype(np.float32)
    decoder = fit_decoder(wide, lambda r: Y[r], np.arange(200), kind="least_squares")
    assert decoder.rank == 6
    design = np.c_[X, np.ones(200)]
    np.testing.assert_allclose(decoder.predict(wide), design @ np.linalg.lstsq(design, Y, rcond=None)[0], atol=2e-5)


def test_least_squares_far_from_the_origin() -> None:
    X, Y = made(n=200)
    far = X + np.float32(1000)
    decoder = fit_decoder(far, lambda r: Y[r], np.arange(200), kind="least_squares")
    design = np.c_[far.astype(float) - 1000, np.ones(200)]
    np.testing.assert_allclose(decoder.predict(far), design @ np.linalg.lstsq(design, Y, rcond=None)[0], atol=1e-4)


def test_least_squares_with_fewer_samples_than_dimensions_interpolates() -> None:
    X, Y = made(n=5, d=20)
    decoder = fit_decoder(X, lambda r: Y[r], np.arange(5), kind="least_squares")
    assert decoder.rank == 4
    np.testing.assert_allclose(decoder.predict(X), Y, atol=1e-4)


def test_a_constant_embedding_predicts_the_mean() -> None:
    Y = made()[1]
    decoder = fit_decoder(np.ones((400, 3), dtype=np.float32), lambda r: Y[r], np.arange(400), kind="least_squares")
    assert decoder.rank == 0
    np.testing.assert_allclose(decoder.predict(np.ones((2, 3))), np.tile(Y.mean(axis=0), (2, 1)), rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5000))
def test_no_block_size_changes_least_squares(read_ahead: int) -> None:
    X, Y = made(n=100)
    whole = fit_decoder(X, lambda r: Y[r], np.arange(100), kind="least_squares")
    parts = fit_decoder(X, lambda r: Y[r], np.arange(100), kind="least_squares", read_ahead=read_ahead)
    np.testing.assert_allclose(parts.predict(X), whole.predict(X), atol=5e-6)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_training_is_the_same_for_a_seed_and_any_read_ahead(kind: str) -> None:
    X, Y = made()
    asked: list[np.ndarray] = []

    def targets(rows: np.ndarray) -> np.ndarray:
        asked.append(rows)
        return Y[rows]

    settings_ = {"kind": kind, "epochs": 3, "batch_size": 32, "lr": 1e-2}
    first = fit_decoder(X, targets, np.arange(400), seed=3, **settings_)
    assert all((np.diff(rows) > 0).all() for rows in asked)
    again = fit_decoder(X, targets, np.arange(400), seed=3, read_ahead=1, **settings_)
    other = fit_decoder(X, targets, np.arange(400), seed=4, **settings_)
    np.testing.assert_array_equal(first.predict(X), again.predict(X))
    np.testing.assert_array_equal(first.losses, again.losses)
    assert np.abs(first.predict(X) - other.predict(X)).max() > 1e-3


def test_training_leaves_the_global_generator_alone() -> None:
    X, Y = made(n=50)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    fit_decoder(X, lambda r: Y[r], np.arange(50), epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_two_linear_layers_approach_least_squares() -> None:
    X, Y = made(n=1000)
    best = fit_decoder(X, lambda r: Y[r], np.arange(1000), kind="least_squares")
    trained = fit_decoder(
        X, lambda r: Y[r], np.arange(1000), kind="linear", epochs=60, batch_size=50, lr=1e-2, warmup_epochs=5, seed=0
    )
    assert trained.widths == (6, 10, 15)
    assert len(trained.weights) == 1
    mse = ((trained.predict(X) - Y) ** 2).mean()
    assert best.losses[0] < mse < 1.05 * best.losses[0]
    assert trained.losses[-1] < 0.01 * trained.losses[0]


def test_training_is_that_of_torch_modules() -> None:
    X, Y = made(n=64)
    decoder = fit_decoder(
        X, lambda r: Y[r], np.arange(64), kind="mlp", epochs=1, batch_size=64, lr=1e-3, warmup_epochs=0, seed=7
    )
    from txeval.compute.decoder import _initial_layers
    from txeval.compute.random import stream_seed

    layers = _initial_layers(decoder.widths, stream_seed(7, "decoder", "weights"), "cpu")
    modules: list[torch.nn.Module] = []
    for weight, bias in layers:
        module = torch.nn.Linear(*weight.shape)
        with torch.no_grad():
            module.weight.copy_(weight.T)
            module.bias.copy_(bias)
        modules += [module, torch.nn.ReLU()]
    network = torch.nn.Sequential(*modules[:-1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-6)
    loss = ((network(torch.from_numpy(X)) - torch.from_numpy(Y)) ** 2).mean()
    loss.backward()
    optimizer.step()
    assert decoder.losses[0] == pytest.approx(float(loss.detach()), rel=1e-5)
    np.testing.assert_allclose(decoder.predict(X), network(torch.from_numpy(X)).detach().numpy(), atol=1e-5)


def test_an_mlp_learns_what_is_not_linear() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((2000, 2)).astype(np.float32)
    Y = np.abs(X) @ rng.standard_normal((2, 8)).astype(np.float32)
    straight = fit_decoder(X, lambda r: Y[r], np.arange(2000), kind="least_squares")
    curved = fit_decoder(X, lambda r: Y[r], np.arange(2000), kind="mlp", hidden=32, epochs=20, lr=1e-2, batch_size=64)
    assert curved.losses[-1] < 0.05 * straight.losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_genes_of_a_prediction(kind: str) -> None:
    X, Y = made(n=60)
    decoder = fit_decoder(X, lambda r: Y[r], np.arange(60), kind=kind, epochs=2)
    whole = decoder.predict(X)
    assert whole.dtype == np.float32
    assert whole.shape == (60, 15)
    np.testing.assert_allclose(decoder.predict_genes(X[3:9], slice(4, 11)), whole[3:9, 4:11], atol=1e-6)
    copy = pickle.loads(pickle.dumps(decoder))
    assert isinstance(copy, Decoder)
    np.testing.assert_array_equal(copy.predict(X), whole)
    with pytest.raises(InputError, match="6 dimensions"):
        decoder.predict(X[:, :3])


def test_number_of_parameters() -> None:
    decoder = Decoder(kind="mlp", weights=(), biases=(), widths=(256, 2254, 4252, 6250, 8248))
    assert round(decoder.n_parameters / 1e6, 1) == 88.3


def test_bad_input_is_refused() -> None:
    X, Y = made(n=20)
    rows = np.arange(20)
    with pytest.raises(NotComputable, match="two training samples"):
        fit_decoder(X, lambda r: Y[r], rows[:1])
    with pytest.raises(InputError, match="least_squares"):
        fit_decoder(X, lambda r: Y[r], rows, kind="least_square")
    with pytest.raises(InputError, match="positive"):
        fit_decoder(X, lambda r: Y[r], rows, epochs=0)
    with pytest.raises(InputError, match="expression of"):
        fit_decoder(X, lambda r: Y, rows[:3])
    bad = Y.copy()
    bad[4, 2] = np.nan
    for kind in KINDS:
        with pytest.raises(InputError, match="expression has the value nan"):
            fit_decoder(X, lambda r: bad[r], rows, kind=kind, epochs=1)
    with pytest.raises(InputError, match="X has the value"):
        fit_decoder(np.full((20, 6), np.inf), lambda r: Y[r], rows, kind="least_squares")


def test_training_that_diverges_is_no_score() -> None:
    X, Y = made(n=40)
    with pytest.raises(NotComputable, match="diverged"):
        fit_decoder(1e30 * X, lambda r: 1e30 * Y[r], np.arange(40), epochs=2, lr=1e30)


def test_ridge_is_that_of_scikit_learn_and_chooses_by_the_held_out_error() -> None:
    from sklearn.linear_model import Ridge

    draw = np.random.default_rng(5)
    X, W = draw.normal(size=(160, 30)) * np.logspace(0, -2, 30), draw.normal(size=(30, 7))
    Y = (X @ W + 0.5 * draw.normal(size=(160, 7)) + 3).astype(np.float32)
    X = (X + 5).astype(np.float32)
    held = np.arange(160) % 4 == 0
    decoder = fit_decoder(X, lambda r: Y[r], np.arange(160), kind="ridge", held_out=held)

    def sklearn(rows: np.ndarray, penalty: float) -> Ridge:
        variance = X[rows].astype(float).var(axis=0).mean()
        return Ridge(alpha=penalty * variance * len(rows), tol=1e-10).fit(X[rows].astype(float), Y[rows])

    inside = np.flatnonzero(~held)
    for penalty, loss in decoder.validation.items():
        expected = ((sklearn(inside, penalty).predict(X[held].astype(float)) - Y[held]) ** 2).mean()
        assert loss == pytest.approx(expected, rel=1e-5)
    assert decoder.penalty == min(decoder.validation, key=lambda key: decoder.validation[key])
    whole = sklearn(np.arange(160), decoder.penalty or 0)
    np.testing.assert_allclose(decoder.predict(X), whole.predict(X.astype(float)), atol=2e-4)


def test_ridge_does_not_depend_on_rotation_scale_or_blocks() -> None:
    draw = np.random.default_rng(6)
    X = draw.normal(size=(120, 6)).astype(np.float32)
    Y = (X @ draw.normal(size=(6, 5)) + draw.normal(size=(120, 5))).astype(np.float32)
    turn = np.linalg.qr(draw.normal(size=(6, 6)))[0]
    held = draw.random(120) < 0.3
    moved = (1000 * X @ turn + 3).astype(np.float32)
    one = fit_decoder(X, lambda r: Y[r], np.arange(120), kind="ridge", held_out=held)
    two = fit_decoder(moved, lambda r: Y[r], np.arange(120), kind="ridge", held_out=held, read_ahead=70)
    assert one.penalty == two.penalty
    np.testing.assert_allclose(one.predict(X), two.predict(moved), atol=1e-3)


def test_ridge_of_noise_predicts_the_mean_and_edges() -> None:
    draw = np.random.default_rng(7)
    X, Y = draw.normal(size=(80, 40)).astype(np.float32), draw.normal(size=(80, 5)).astype(np.float32)
    held = np.arange(80) < 30
    ridge = fit_decoder(X, lambda r: Y[r], np.arange(80), kind="ridge", held_out=held)
    plain = fit_decoder(X, lambda r: Y[r], np.arange(80), kind="least_squares")
    fresh = draw.normal(size=(200, 40)).astype(np.float32)
    assert np.abs(ridge.predict(fresh) - Y.mean(axis=0)).mean() < 0.3 * np.abs(plain.predict(fresh)).mean()
    constant = fit_decoder(np.ones_like(X), lambda r: Y[r], np.arange(80), kind="ridge", held_out=held)
    np.testing.assert_allclose(constant.predict(np.ones_like(X)), np.tile(Y.mean(axis=0), (80, 1)), atol=1e-5)
    unheld = fit_decoder(X, lambda r: Y[r], np.arange(80), kind="ridge")
    assert unheld.penalty == PENALTIES[len(PENALTIES) // 2] and not unheld.validation
    with pytest.raises(InputError, match="held out"):
        fit_decoder(X, lambda r: Y[r], np.arange(80), kind="ridge", held_out=np.ones(80, bool))


def blocks_of(Y: np.ndarray, size: int) -> Any:
    def read(rows: np.ndarray) -> Any:
        for start in range(0, len(rows), size):
            yield slice(start, min(len(rows), start + size)), Y[rows[start : start + size]]

    return read


@pytest.mark.parametrize("kind", ["least_squares", "ridge"])
@pytest.mark.parametrize("limit", [0, 10**6], ids=["float32", "float64"])
def test_decoders_fitted_together_are_those_fitted_alone(kind: Any, limit: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "FLOAT64_GENES", limit)
    X, Y = made(n=500, d=7, g=40)
    rng = np.random.default_rng(2)
    several = [X, (X[:, ::-1] * 3 + 5).astype(np.float32), rng.normal(size=(500, 3)).astype(np.float32)]
    rows = rng.permutation(500)[:400]
    masks = [rng.random(400) < share for share in (0.3, 0.3, 0.5)] if kind == "ridge" else [None] * 3
    together = fit_closed_form(several, blocks_of(Y, 64), rows, kind=kind, held_out=masks)
    for one, mask, found in zip(several, masks, together, strict=True):
        alone = fit_closed_form([one], blocks_of(Y, 64), rows, kind=kind, held_out=[mask])[0]
        assert alone.penalty == found.penalty and alone.validation == found.validation
        for a, b in ((alone.weights[0], found.weights[0]), (alone.biases[0], found.biases[0])):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_float32_products_lose_nothing_of_directions_of_small_variance(spread: float, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "FLOAT64_GENES", 0)
    rng = np.random.default_rng(0)
    # Strongly correlated columns far from 0, and an expression that follows the direction they differ in.
    common = rng.normal(size=(3000, 1))
    X = (100 + common + spread * rng.normal(size=(3000, 6))).astype(np.float32)
    Y = ((X[:, :1] - X[:, 1:2]) / spread @ rng.normal(size=(1, 25)) + rng.normal(size=(3000, 25))).astype(np.float32)
    decoder = fit_closed_form([X], blocks_of(Y, 500), np.arange(3000), kind="least_squares")[0]
    design = np.c_[X.astype(float) - X.mean(axis=0), np.ones(3000)]
    expected = design @ np.linalg.lstsq(design, Y.astype(float), rcond=None)[0]
    exact = (X.astype(float) - decoder.centre) @ decoder.weights[0] + decoder.biases[0]
    np.testing.assert_allclose(exact, expected, atol=3e-6 * Y.std() / spread)


def test_columns_of_predictions_are_the_predictions() -> None:
    X, Y = made(n=90, d=5, g=200)
    for kind in ("least_squares", "mlp"):
        decoder = fit_decoder(X, lambda r: Y[r], np.arange(90), kind=kind, hidden=8, epochs=2)  # type: ignore[arg-type]
        whole = decoder.predict(X)
        for genes in (slice(0, 200), slice(64, 140), slice(3, 190, 7)):
            np.testing.assert_allclose(decoder.predict_columns(X, genes), whole[:, genes].T, atol=1e-5)
        parts = [decoder.predict_columns(X, slice(a, a + 64)) for a in range(0, 200, 64)]
        np.testing.assert_array_equal(np.concatenate(parts), decoder.predict_columns(X, slice(0, 200)))
