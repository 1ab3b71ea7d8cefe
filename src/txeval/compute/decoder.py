"""Decoders from an embedding to expression: trained ones, and least squares in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from txeval.compute.arrays import F32, F64, Bools, Ints, Rows, row_blocks, take_rows
from txeval.compute.groups import checked_matrix, read_rows
from txeval.compute.random import stream, stream_seed
from txeval.compute.schedule import learning_rates
from txeval.errors import InputError, NotComputable, unknown

__all__ = ["KINDS", "PENALTIES", "Decoder", "DecoderKind", "Targets", "fit_decoder", "hidden_widths"]

DecoderKind = Literal["linear", "mlp", "least_squares", "ridge"]

KINDS: tuple[DecoderKind, ...] = ("linear", "mlp", "least_squares", "ridge")

#: Penalties of "ridge" to choose from, as shares of the mean variance of the embedding's columns.
PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6)

#: Row numbers -> (m, g) float32 expression of these samples.
Targets = Callable[[Ints], Any]

#: Values of expression read ahead of the minibatches: 32 M float32 values are 128 MiB.
READ_AHEAD = 32_000_000

#: Directions of the standardised embedding with less than this share of the largest variance are rounding.
RANK_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Decoder:
    """A fitted decoder: affine layers, with a ReLU between them for the "mlp" kind.

    Attributes
    ----------
    weights, biases
        (width_in, width_out) and (width_out,) float32 per layer. The stacked linear layers of the "linear" kind are
        multiplied into one once they are trained.
    widths
        (d, hidden ..., g) as trained.
    losses
        Mean squared error on the training rows, per epoch.
    rank, centre
        "least_squares": directions of the embedding that were used; with "ridge" also (d,) what is subtracted from it
        first.
    penalty, validation
        "ridge": the penalty chosen, and the mean squared error on the held-out rows for each one tried.
    """

    kind: DecoderKind
    weights: tuple[F32, ...]
    biases: tuple[F32, ...]
    widths: tuple[int, ...]
    losses: F64 = field(default_factory=lambda: np.empty(0))
    rank: int | None = None
    centre: F32 | None = None
    penalty: float | None = None
    validation: Mapping[float, float] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters."""
        return sum((a + 1) * b for a, b in pairwise(self.widths))

    def predict(self, block: Any) -> F32:
        """Expression (m, g) float32 of embedded samples (m, d)."""
        return self.predict_genes(block, slice(None))

    def predict_genes(self, block: Any, genes: slice) -> F32:
        """Expression (m, k) float32 of some genes only."""
        x = np.ascontiguousarray(block, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != self.widths[0]:
            raise InputError(f"the decoder reads {self.widths[0]} dimensions; the block has shape {x.shape}")
        if self.centre is not None:
            x = x - self.centre
        if self.device != "cpu":
            return self._predict_elsewhere(x, genes)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = x @ weight
            x += bias
            np.maximum(x, np.float32(0), out=x)
        x = x @ self.weights[-1][:, genes]
        x += self.biases[-1][genes]
        return x

    def _predict_elsewhere(self, x: F32, genes: slice) -> F32:
        with torch.inference_mode():
            hidden = torch.from_numpy(x).to(self.device)
            for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
                hidden = torch.relu(hidden @ _tensor(weight, self.device) + _tensor(bias, self.device))
            last = _tensor(np.ascontiguousarray(self.weights[-1][:, genes]), self.device)
            out = hidden @ last + _tensor(self.biases[-1][genes], self.device)
            return np.asarray(out.cpu().numpy(), dtype=np.float32)


def _tensor(array: npt.NDArray[Any], device: str) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).to(device)


def hidden_widths(kind: DecoderKind, d: int, g: int, hidden: int | Sequence[int] | None = None) -> tuple[int, ...]:
    """Widths of the hidden layers.

    By default they are interpolated linearly between d and g: one for "linear", three for "mlp" (d = 256, g = 8,248:
    4,252; 2,254, 4,252, 6,250).

    Parameters
    ----------
    kind
        "linear" or "mlp".
    hidden
        One width, or one per layer, instead.
    """
    layers = 1 if kind == "linear" else 3
    if hidden is None:
        return tuple(d + (g - d) * (i + 1) // (layers + 1) for i in range(layers))
    widths = (hidden,) * layers if isinstance(hidden, int) else tuple(hidden)
    if not widths or min(widths) < 1:
        raise InputError(f"hidden widths are {hidden}", remedy="give positive numbers")
    return widths


def fit_decoder(
    X: Rows,
    targets: Targets,
    rows: Ints,
    *,
    kind: DecoderKind = "linear",
    hidden: int | Sequence[int] | None = None,
    epochs: int = 30,
    batch_size: int = 512,
    lr: float = 1e-4,
    weight_decay: float = 1e-6,
    warmup_epochs: int = 10,
    warmup_lr: float = 3e-5,
    seed: int = 0,
    held_out: Bools | None = None,
    penalties: Sequence[float] = PENALTIES,
    device: str = "cpu",
    read_ahead: int = READ_AHEAD,
) -> Decoder:
    r"""Fit a decoder of expression with squared error.

    Parameters
    ----------
    X
        (n, d) embedding.
    targets
        Row numbers -> (m, g) expression of these rows, in their order.
    rows
        Training rows of X.
    kind
        "linear": two stacked linear layers; "mlp": three hidden ReLU layers; both AdamW. "least_squares": the optimum
        that two stacked linear layers of hidden width >= d aim at, in one pass (with intercept; the solution of least
        norm in standardised coordinates where directions are redundant). "ridge": the same with a penalty on the
        weights, chosen by the error on held-out rows; rotation and scale of the embedding have no effect.
    hidden
        See `hidden_widths`.
    epochs, batch_size, lr, weight_decay, warmup_epochs, warmup_lr
        Of the training; see `learning_rates`. The last minibatch of an epoch may be smaller.
    seed
        Of the initial weights and of the order of the samples.
    held_out, penalties
        "ridge": (len(rows),) which training rows the penalty is chosen on (all count in the end), and the penalties
        lambda of :math:`\|Y - XW\|^2 / n + \lambda \bar v \|W\|^2`, with v the mean variance of the columns of X.
    device
        Of torch.
    read_ahead
        Values of expression fetched at a time; no influence on the result.

    Raises
    ------
    NotComputable
        For fewer than two training rows.
    InputError
        For NaN in embedding or expression, and parameters out of range.
    """
    matrix = checked_matrix(X)
    rows = np.asarray(rows, dtype=np.int64)
    if kind not in KINDS:
        raise unknown("decoder", str(kind), KINDS)
    if len(rows) < 2:
        raise NotComputable(f"a decoder needs two training samples; there are {len(rows)}")
    if epochs < 1 or batch_size < 1 or lr <= 0 or warmup_epochs < 0:
        raise InputError(
            f"epochs {epochs}, batch_size {batch_size}, lr {lr}, warmup_epochs {warmup_epochs}",
            remedy="epochs, batch size and learning rate must be positive",
        )
    if kind == "least_squares":
        return _least_squares(matrix, targets, rows, read_ahead)
    if kind == "ridge":
        held = np.zeros(len(rows), dtype=bool) if held_out is None else np.asarray(held_out, dtype=bool)
        if held.shape != rows.shape or held.all() or not penalties or min(penalties) <= 0:
            raise InputError(
                f"{int(held.sum())} of {len(rows)} training samples held out, penalties {tuple(penalties)}",
                remedy="hold some but not all out, and give penalties above 0",
            )
        return _ridge(matrix, targets, rows, held, sorted(penalties, reverse=True), read_ahead)
    return _train(
        matrix,
        targets,
        rows,
        kind,
        hidden,
        learning_rates(epochs, lr=lr, warmup_epochs=min(warmup_epochs, epochs), warmup_lr=warmup_lr).tolist(),
        batch_size,
        weight_decay,
        seed,
        device,
        read_ahead,
    )


def _expression(targets: Targets, rows: Ints) -> npt.NDArray[Any]:
    block = np.asarray(targets(rows))
    if block.ndim != 2 or len(block) != len(rows):
        raise InputError(f"the expression of {len(rows)} samples has shape {block.shape}")
    return read_rows(block, name="expression")


def _train(
    X: Rows,
    targets: Targets,
    rows: Ints,
    kind: DecoderKind,
    hidden: int | Sequence[int] | None,
    rates: list[float],
    batch_size: int,
    weight_decay: float,
    seed: int,
    device: str,
    read_ahead: int,
) -> Decoder:
    g = _expression(targets, rows[:1]).shape[1]
    widths = (X.shape[1], *hidden_widths(kind, X.shape[1], g, hidden), g)
    layers = _initial_layers(widths, stream_seed(seed, "decoder", "weights"), device)
    parameters = [p for layer in layers for p in layer]
    optimizer = torch.optim.AdamW(parameters, lr=rates[0], weight_decay=weight_decay)
    # Minibatches are read several at a time, so that the file is read in long sorted stretches.
    ahead = batch_size * max(1, read_ahead // (batch_size * g))
    losses = np.zeros(len(rates))
    for epoch, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        order = stream(seed, "decoder", "order", epoch).permutation(len(rows))
        for start in range(0, len(order), ahead):
            chosen = rows[order[start : start + ahead]]
            sorting = np.argsort(chosen, kind="stable")
            place = np.empty_like(sorting)
            place[sorting] = np.arange(len(sorting))
            x_read = read_rows(X, chosen[sorting]).astype(np.float32, copy=False)
            y_read = _expression(targets, chosen[sorting]).astype(np.float32, copy=False)
            for a in range(0, len(chosen), batch_size):
                mine = place[a : a + batch_size]
                x = torch.from_numpy(x_read[mine]).to(device)
                y = torch.from_numpy(y_read[mine]).to(device)
                for i, (weight, bias) in enumerate(layers):
                    x = x @ weight + bias
                    if kind == "mlp" and i + 1 < len(layers):
                        x = torch.relu(x)
                loss = torch.nn.functional.mse_loss(x, y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses[epoch] += float(loss.detach()) * len(mine)
        losses[epoch] /= len(rows)
    weights = [weight.detach().cpu().numpy() for weight, _ in layers]
    biases = [bias.detach().cpu().numpy() for _, bias in layers]
    if not all(np.isfinite(array).all() for array in (*weights, *biases)):
        raise NotComputable("the decoder's training diverged: a weight is not finite")
    if kind == "linear":
        weights, biases = _product(weights, biases)
    return Decoder(kind=kind, weights=tuple(weights), biases=tuple(biases), widths=widths, losses=losses, device=device)


def _product(weights: list[Any], biases: list[Any]) -> tuple[list[Any], list[Any]]:
    weight, bias = weights[0].astype(np.float64), biases[0].astype(np.float64)
    for w, b in zip(weights[1:], biases[1:], strict=True):
        weight, bias = weight @ w.astype(np.float64), bias @ w.astype(np.float64) + b
    return [weight.astype(np.float32)], [bias.astype(np.float32)]


def _initial_layers(widths: Sequence[int], seed: int, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights and biases uniform in +- 1 / sqrt(width_in), as `torch.nn.Linear` draws them."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for a, b in pairwise(widths):
        bound = 1 / math.sqrt(a)
        weight = (torch.rand(a, b, generator=generator) * 2 - 1) * bound
        bias = (torch.rand(b, generator=generator) * 2 - 1) * bound
        layers.append((weight.to(device).requires_grad_(), bias.to(device).requires_grad_()))
    return layers


def _least_squares(X: Rows, targets: Targets, rows: Ints, read_ahead: int) -> Decoder:
    d = X.shape[1]
    # Moments about the first rows' mean: sums of squares about 0 would cancel where an embedding lies far from it.
    shift_x = take_rows(X, rows[:1000]).mean(axis=0, dtype=np.float64)
    first = _expression(targets, rows[: max(1, min(len(rows), read_ahead // 10_000, 1000))])
    shift_y = first.mean(axis=0, dtype=np.float64)
    g = first.shape[1]
    sum_x, sum_y = np.zeros(d), np.zeros(g)
    xx, xy = np.zeros((d, d)), np.zeros((d, g))
    yy = 0.0
    for block in row_blocks(len(rows), d + g, max(d + g, read_ahead // 4)):
        x = read_rows(X, rows[block]) - shift_x
        y = _expression(targets, rows[block]) - shift_y
        sum_x += x.sum(axis=0)
        sum_y += y.sum(axis=0)
        xx += x.T @ x
        xy += x.T @ y
        yy += float(np.einsum("ij,ij->", y, y))
    n = len(rows)
    xx -= np.outer(sum_x, sum_x) / n
    xy -= np.outer(sum_x, sum_y) / n
    yy -= float(sum_y @ sum_y) / n
    deviation = np.sqrt(np.maximum(np.diag(xx), 0) / n)
    # A column that varies by less than float32 resolves is constant.
    used = deviation > 1e-7 * np.abs(shift_x)
    scale = np.where(used, deviation, 1.0)
    values, vectors = np.linalg.eigh((xx / np.outer(scale, scale))[np.ix_(used, used)] / n)
    keep = values > RANK_TOLERANCE * max(1.0, float(values.max(initial=0.0))) * max(1, d)
    basis = vectors[:, keep]
    weight = np.zeros((d, g))
    weight[used] = (basis / values[keep]) @ (basis.T @ (xy[used] / scale[used, None] / n))
    weight /= scale[:, None]
    centre = (shift_x + sum_x / n).astype(np.float32)
    bias = shift_y + sum_y / n + (centre - shift_x - sum_x / n) @ weight
    residual = max(0.0, yy - float(np.einsum("ij,ij->", weight, 2 * xy - xx @ weight)))
    return Decoder(
        kind="least_squares",
        weights=(weight.astype(np.float32),),
        biases=(bias.astype(np.float32),),
        widths=(d, g),
        losses=np.asarray([residual / (n * g)]),
        rank=int(keep.sum()),
        centre=centre,
    )


class _Sums:
    """Moments of embedding and expression about fixed shifts."""

    def __init__(self, shift_x: F64, shift_y: F64) -> None:
        d, g = len(shift_x), len(shift_y)
        self.shift_x, self.shift_y = shift_x, shift_y
        self.n, self.x, self.y = 0, np.zeros(d), np.zeros(g)
        self.xx, self.xy, self.yy = np.zeros((d, d)), np.zeros((d, g)), 0.0

    def add(self, x: F64, y: F64) -> None:
        x, y = x - self.shift_x, y - self.shift_y
        self.n += len(x)
        self.x += x.sum(axis=0)
        self.y += y.sum(axis=0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += float(np.einsum("ij,ij->", y, y))

    def join(self, other: _Sums) -> None:
        self.n += other.n
        self.x += other.x
        self.y += other.y
        self.xx += other.xx
        self.xy += other.xy
        self.yy += other.yy

    def about(self, x: F64, y: F64) -> tuple[F64, F64, float]:
        """Sums of products about points given relative to the shifts."""
        xx = self.xx - np.outer(self.x, x) - np.outer(x, self.x) + self.n * np.outer(x, x)
        xy = self.xy - np.outer(self.x, y) - np.outer(x, self.y) + self.n * np.outer(x, y)
        return xx, xy, self.yy - 2 * float(self.y @ y) + self.n * float(y @ y)


def _ridge(X: Rows, targets: Targets, rows: Ints, held: Bools, penalties: list[float], read_ahead: int) -> Decoder:
    d = X.shape[1]
    shift_x = take_rows(X, rows[:1000]).mean(axis=0, dtype=np.float64)
    first = _expression(targets, rows[: max(1, min(len(rows), read_ahead // 10_000, 1000))])
    fitted, outside = (_Sums(shift_x, first.mean(axis=0, dtype=np.float64)) for _ in range(2))
    g = first.shape[1]
    for sums, part in ((fitted, rows[~held]), (outside, rows[held])):
        for block in row_blocks(len(part), d + g, max(d + g, read_ahead // 4)):
            sums.add(read_rows(X, part[block]).astype(np.float64), _expression(targets, part[block]).astype(np.float64))
    losses: dict[float, float] = {}
    chosen = penalties[len(penalties) // 2]
    if outside.n:
        values, vectors, cross = _eigen(fitted)
        xx, xy, yy = outside.about(fitted.x / fitted.n, fitted.y / fitted.n)
        turned, both = vectors.T @ xx @ vectors, np.einsum("ij,ij->i", cross, vectors.T @ xy)
        gram = turned * (cross @ cross.T)
        for penalty in penalties:
            shrunk = 1 / (values + penalty * max(float(values.mean()), 1e-30))
            error = yy - 2 * float(shrunk @ both) + float(shrunk @ gram @ shrunk)
            losses[penalty] = error / (outside.n * g)
        # The strongest of equals: the list goes from strong to weak.
        chosen = min(losses, key=lambda penalty: losses[penalty])
    fitted.join(outside)
    values, vectors, cross = _eigen(fitted)
    shrunk = 1 / (values + chosen * max(float(values.mean()), 1e-30))
    weight = vectors @ (shrunk[:, None] * cross)
    centre = (shift_x + fitted.x / fitted.n).astype(np.float32)
    bias = fitted.shift_y + fitted.y / fitted.n + (centre - shift_x - fitted.x / fitted.n) @ weight
    xx, xy, yy = fitted.about(fitted.x / fitted.n, fitted.y / fitted.n)
    residual = max(0.0, yy - float(np.einsum("ij,ij->", weight, 2 * xy - xx @ weight)))
    return Decoder(
        kind="ridge",
        weights=(weight.astype(np.float32),),
        biases=(bias.astype(np.float32),),
        widths=(d, g),
        losses=np.asarray([residual / (fitted.n * g)]),
        centre=centre,
        penalty=chosen,
        validation=losses,
    )


def _eigen(sums: _Sums) -> tuple[F64, F64, F64]:
    """Variances along the principal axes of the embedding, these axes, and their covariances with the expression."""
    xx, xy, _ = sums.about(sums.x / sums.n, sums.y / sums.n)
    values, vectors = np.linalg.eigh(xx / sums.n)
    return np.maximum(values, 0.0), vectors, vectors.T @ xy / sums.n
