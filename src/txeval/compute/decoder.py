"""Decoders from an embedding to expression: trained ones, and least squares in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from txeval.compute.arrays import F32, F64, Bools, Ints, Rows, row_blocks, take_rows
from txeval.compute.correlation import GENE_TILE
from txeval.compute.devices import exact_products, product_on
from txeval.compute.groups import checked_matrix, read_rows
from txeval.compute.memory import column_elements
from txeval.compute.random import stream, stream_seed
from txeval.compute.schedule import learning_rates
from txeval.compute.spread import no_spread
from txeval.errors import InputError, NotComputable, unknown

__all__ = [
    "CLOSED_FORM",
    "KINDS",
    "PANEL_ELEMENTS",
    "PENALTIES",
    "Decoder",
    "DecoderKind",
    "Targets",
    "fit_closed_form",
    "fit_decoder",
    "hidden_widths",
]

DecoderKind = Literal["linear", "mlp", "least_squares", "ridge"]

KINDS: tuple[DecoderKind, ...] = ("linear", "mlp", "least_squares", "ridge")

#: Decoders without a seed.
CLOSED_FORM: tuple[DecoderKind, ...] = ("least_squares", "ridge")

#: Values of expression in a block that products are summed over: fixed, so that no result depends on memory.
PANEL_ELEMENTS = 8_000_000

#: Penalties of "ridge" to choose from, as shares of the mean variance of the embedding's columns.
PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6)

#: Row numbers -> (m, g) float32 expression of these samples.
Targets = Callable[[Ints], Any]

#: Up to this many genes products are float64, which costs little there.
FLOAT64_GENES = 2048

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
        if self.device != "cpu":
            return self._predict_elsewhere(x if self.centre is None else x - self.centre, genes)
        x = self._hidden(x) @ self.weights[-1][:, genes]
        x += self.biases[-1][genes]
        return x

    def predict_columns(self, X: Rows, genes: slice) -> F32:
        """Expression of some genes for all samples, gene by gene: (k, n) float32.

        Products are taken for blocks of samples and `GENE_TILE` genes, counted from the first one of the slice.
        """
        n, chosen = int(X.shape[0]), np.arange(self.widths[-1])[genes]
        out = np.empty((len(chosen), n), dtype=np.float32)
        last = np.ascontiguousarray(self.weights[-1][:, genes].T)
        bias = np.ascontiguousarray(self.biases[-1][genes])[:, None]
        tiles = [slice(a, a + GENE_TILE) for a in range(0, len(chosen), GENE_TILE)]
        for part in row_blocks(n, max(self.widths[:-1])):
            if self.device != "cpu":
                out[:, part] = self.predict_genes(take_rows(X, part), genes).T
                continue
            hidden = self._hidden(take_rows(X, part)).T
            for tile in tiles:
                out[tile, part] = last[tile] @ hidden + bias[tile]
        return out

    def _hidden(self, x: F32) -> F32:
        """What the last layer reads, (m, width)."""
        if self.centre is not None:
            x = x - self.centre
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = x @ weight
            x += bias
            np.maximum(x, np.float32(0), out=x)
        return x

    def _predict_elsewhere(self, x: F32, genes: slice) -> F32:
        with torch.inference_mode(), exact_products():
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
    read_ahead: int | None = None,
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
        Values of expression fetched at a time ahead of the minibatches; None: `txeval.compute.memory.column_elements`.
        No influence on the result.

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
    if kind in CLOSED_FORM:
        g = _expression(targets, rows[:1]).shape[1]

        def blocks(chosen: Ints) -> Iterator[tuple[slice, Any]]:
            for part in row_blocks(len(chosen), g, PANEL_ELEMENTS):
                yield part, _expression(targets, chosen[part])

        return fit_closed_form(
            [matrix], blocks, rows, kind=kind, held_out=[held_out], penalties=penalties, device=device
        )[0]
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
        read_ahead or column_elements(),
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


class _ClosedForm:
    """One embedding on its way to a closed-form decoder.

    The embedding alone is read first: its moments give axes along which it is uncorrelated with variance 1. Products
    with the expression are taken along these axes, so that float32 loses nothing of directions of small variance.
    """

    def __init__(
        self, X: Rows, rows: Ints, kind: DecoderKind, held: Bools, penalties: Sequence[float], device: str
    ) -> None:
        self.X, self.rows, self.kind, self.device = X, rows, kind, device
        self.held, self.penalties = held, penalties
        d = X.shape[1]
        # Moments about the first rows' mean: sums of squares about 0 would cancel where an embedding lies far from it.
        self.shift = take_rows(X, rows[:1000]).mean(axis=0, dtype=np.float64)
        self.n = np.asarray([int((~held).sum()), int(held.sum())])
        self.x, self.xx = np.zeros((2, d)), np.zeros((2, d, d))
        for block in row_blocks(len(rows), d):
            x = read_rows(X, rows[block]) - self.shift
            for part, mine in enumerate((~held[block], held[block])):
                if mine.any():
                    chosen = x if mine.all() else x[mine]
                    self.x[part] += chosen.sum(axis=0)
                    self.xx[part] += chosen.T @ chosen
        self.mean = self.x.sum(axis=0) / self.n.sum()
        whole = self.xx.sum(axis=0) - self.n.sum() * np.outer(self.mean, self.mean)
        deviation = np.sqrt(np.maximum(np.diag(whole), 0) / self.n.sum())
        self.used = ~no_spread(deviation, self.shift)
        self.scale = np.where(self.used, deviation, 1.0)
        scaled = (whole / np.outer(self.scale, self.scale))[np.ix_(self.used, self.used)] / self.n.sum()
        values, vectors = np.linalg.eigh(scaled)
        keep = values > RANK_TOLERANCE * max(1.0, float(values.max(initial=0.0))) * max(1, d)
        self.rank = int(keep.sum())
        self.values = values[keep]
        self.axes = np.zeros((d, self.rank))
        self.axes[self.used] = vectors[:, keep] / self.scale[self.used, None]
        self.whitening = self.axes / np.sqrt(self.values)
        self.product = np.zeros((0, 0, 0))

    def add(self, block: slice, y: npt.NDArray[Any]) -> None:
        """Add products with the expression (m, g) of some of the rows, about its shift."""
        if not self.product.size:
            self.product = np.zeros((2 if self.n[1] else 1, self.rank, y.shape[1]))
        x = read_rows(self.X, self.rows[block]) - self.shift - self.mean
        white = (x @ self.whitening).astype(y.dtype)
        held = self.held[block]
        for part in range(len(self.product)):
            mine = held if part else ~held
            if mine.all():
                self.product[part] += product_on(self.device, white.T, y)
            elif mine.any():
                self.product[part] += product_on(self.device, white[mine].T, y[mine])

    def finish(self, shift_y: F64, sum_y: F64, square_y: F64) -> Decoder:
        """Solve.

        Parameters
        ----------
        shift_y
            (g,) what was subtracted from the expression.
        sum_y, square_y
            (2, g) and (2,) sums of the rest and of its squares, for the rows fitted and those held out.
        """
        n, g = int(self.n.sum()), len(shift_y)
        mean_y = sum_y.sum(axis=0) / n
        # Rows are centred about the mean of all, so that the sums of the two parts cancel only together.
        white = ((self.x - self.n[:, None] * self.mean) @ self.whitening)[: len(self.product)]
        product = self.product - white[:, :, None] * mean_y
        losses: dict[float, float] = {}
        chosen = None
        if self.kind == "least_squares":
            weight = self.whitening @ (product.sum(axis=0) / n)
        else:
            chosen = self.penalties[len(self.penalties) // 2]
            if self.n[1]:
                losses = self._validation(product, sum_y, square_y, mean_y)
                # The strongest of equals: the list goes from strong to weak.
                chosen = min(losses, key=lambda penalty: losses[penalty])
            whole = self.xx.sum(axis=0) - n * np.outer(self.mean, self.mean)
            values, vectors = np.linalg.eigh(whole / n)
            values = np.maximum(values, 0.0)
            shrunk = 1 / (values + chosen * max(float(values.mean()), 1e-30))
            weight = vectors @ (shrunk[:, None] * (vectors.T @ self._unwhitened(product.sum(axis=0)) / n))
        centre = (self.shift + self.mean).astype(np.float32)
        bias = shift_y + mean_y + (centre - self.shift - self.mean) @ weight
        whole = self.xx.sum(axis=0) - n * np.outer(self.mean, self.mean)
        cross = self._unwhitened(product.sum(axis=0))
        total = float(square_y.sum()) - n * float(mean_y @ mean_y)
        residual = max(0.0, total - float(np.einsum("ij,ij->", weight, 2 * cross - whole @ weight)))
        return Decoder(
            kind=self.kind,
            weights=(weight.astype(np.float32),),
            biases=(bias.astype(np.float32),),
            widths=(len(self.shift), g),
            losses=np.asarray([residual / (n * g)]),
            rank=self.rank if self.kind == "least_squares" else None,
            centre=centre,
            penalty=chosen,
            validation=losses,
            device=self.device,
        )

    def _unwhitened(self, product: F64) -> F64:
        """Sums of products of the embedding's own columns from those along the axes: (d, g)."""
        back = np.zeros((len(self.shift), self.rank))
        back[self.used] = (self.axes * self.scale[:, None])[self.used] * self.scale[self.used, None]
        return np.asarray((back * np.sqrt(self.values)) @ product)

    def _validation(self, product: F64, sum_y: F64, square_y: F64, mean_y: F64) -> dict[float, float]:
        """Mean squared error on the rows held out for every penalty, fitted on the others."""
        fitted, outside = (self._unwhitened(part) for part in product)
        (n, m), g = self.n, len(mean_y)
        # Everything is about the means of all rows so far; from here on about those of the rows fitted.
        moved_x = self.x - self.n[:, None] * self.mean
        moved_y = sum_y - self.n[:, None] * mean_y
        squares = [
            self.xx[p] - np.outer(self.x[p], self.mean) - np.outer(self.mean, self.x[p])
            + self.n[p] * np.outer(self.mean, self.mean)
            for p in range(2)
        ]  # fmt: skip
        at_x, at_y = moved_x[0] / n, moved_y[0] / n
        values, vectors = np.linalg.eigh((squares[0] - n * np.outer(at_x, at_x)) / n)
        values = np.maximum(values, 0.0)
        cross = vectors.T @ (fitted - np.outer(moved_x[0], at_y)) / n
        xx = squares[1] - np.outer(moved_x[1], at_x) - np.outer(at_x, moved_x[1]) + m * np.outer(at_x, at_x)
        xy = outside - np.outer(moved_x[1], at_y) - np.outer(at_x, moved_y[1]) + m * np.outer(at_x, at_y)
        about = square_y[1] - 2 * float(sum_y[1] @ mean_y) + m * float(mean_y @ mean_y)
        yy = about - 2 * float(moved_y[1] @ at_y) + m * float(at_y @ at_y)
        turned, both = vectors.T @ xx @ vectors, np.einsum("ij,ij->i", cross, vectors.T @ xy)
        gram = turned * (cross @ cross.T)
        losses = {}
        for penalty in self.penalties:
            shrunk = 1 / (values + penalty * max(float(values.mean()), 1e-30))
            losses[penalty] = float(yy - 2 * float(shrunk @ both) + float(shrunk @ gram @ shrunk)) / (m * g)
        return losses


def fit_closed_form(
    Xs: Sequence[Rows],
    blocks: Callable[[Ints], Iterator[tuple[slice, Any]]],
    rows: Ints,
    *,
    kind: DecoderKind,
    held_out: Sequence[Bools | None] | None = None,
    penalties: Sequence[float] = PENALTIES,
    device: str = "cpu",
) -> list[Decoder]:
    """Fit a "least_squares" or "ridge" decoder of every one of several embeddings in one pass over the expression.

    Products are float64 up to 2,048 genes, and above that float32 along uncorrelated axes of each embedding, summed in
    float64 (which leaves about 1e-6 of the predictions' deviation). The decoder of an embedding does not depend on
    which others are fitted with it.

    Parameters
    ----------
    Xs
        (n, d) embeddings of the same samples.
    blocks
        Row numbers -> slices into them and blocks (m, g) of expression, in their order.
    rows, kind, held_out, penalties
        As in `fit_decoder`; `held_out` for each embedding.
    device
        Of torch: where products with the expression are taken and predictions made; rounding differs.

    Raises
    ------
    NotComputable
        For fewer than two training rows.
    InputError
        For NaN in an embedding or in the expression, and penalties or held-out rows that do not serve.
    """
    rows = np.asarray(rows, dtype=np.int64)
    if len(rows) < 2:
        raise NotComputable(f"a decoder needs two training samples; there are {len(rows)}")
    fits: list[_ClosedForm] = []
    for i, X in enumerate(Xs):
        given = held_out[i] if held_out is not None and kind == "ridge" else None
        held = np.zeros(len(rows), dtype=bool) if given is None else np.asarray(given, dtype=bool)
        if held.shape != rows.shape or held.all() or not penalties or min(penalties) <= 0:
            raise InputError(
                f"{int(held.sum())} of {len(rows)} training samples held out, penalties {tuple(penalties)}",
                remedy="hold some but not all out, and give penalties above 0",
            )
        fits.append(_ClosedForm(checked_matrix(X), rows, kind, held, sorted(penalties, reverse=True), device))
    shift = np.zeros(0)
    sums: list[tuple[F64, F64]] = []
    for block, found in blocks(rows):
        y = read_rows(np.asarray(found), name="expression")
        if not sums:
            # One row suffices: what is subtracted only has to be near.
            shift = y[0].astype(np.float64)
            sums = [(np.zeros((2, len(shift))), np.zeros(2)) for _ in fits]
        y = (y - shift).astype(np.float64 if len(shift) <= FLOAT64_GENES else np.float32)
        by_mask: dict[bytes, tuple[F64, F64]] = {}
        for fit, (total, square) in zip(fits, sums, strict=True):
            mask = fit.held[block]
            key = mask.tobytes()
            if key not in by_mask:
                by_mask[key] = (
                    np.stack([part.sum(axis=0, dtype=np.float64) for part in (y[~mask], y[mask])]),
                    np.asarray([np.einsum("ij,ij->", part, part, dtype=np.float64) for part in (y[~mask], y[mask])]),
                )
            total += by_mask[key][0]
            square += by_mask[key][1]
            fit.add(block, y)
    return [fit.finish(shift, *parts) for fit, parts in zip(fits, sums, strict=True)]
