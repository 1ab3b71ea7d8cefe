"""Linear classifiers with a softmax: minibatch AdamW with hand-written gradients, and the closed form of LDA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from txeval.compute.arrays import F32, F64, Ints, Rows, row_blocks, take_rows
from txeval.compute.groups import canonical_order, group_sums
from txeval.compute.jit import jit
from txeval.compute.memory import held_bytes
from txeval.compute.neighbours import finite_rows
from txeval.compute.spread import no_spread
from txeval.compute.threads import torch_threads
from txeval.errors import NotComputable

__all__ = [
    "LinearClassifier",
    "fit_lda",
    "fit_softmax",
    "softmax_gradients",
    "standardisation",
    "true_class_ranks_of",
]

#: So many logits are computed at once.
_LOGITS = 4_000_000


@dataclass(frozen=True)
class LinearClassifier:
    """Scores `((x - shift) / spread) @ weight.T + bias`.

    Attributes
    ----------
    weight, bias
        (n_classes, d) and (n_classes,) float32.
    shift, spread
        (d,) float32; None where inputs are taken as they are.
    steps
        Optimiser steps that were taken.
    """

    weight: F32
    bias: F32
    shift: F32 | None = None
    spread: F32 | None = None
    steps: int = 0


def standardisation(X: Rows, *, max_elements: int | None = None) -> tuple[F32, F32]:
    """Mean and population standard deviation of every column, (d,) float32; a constant column gets deviation 1."""
    n, d = X.shape
    mean = np.zeros(d)
    for rows in row_blocks(n, d, max_elements):
        mean += finite_rows(X, rows, name="X_train").sum(axis=0, dtype=np.float64)
    mean /= n
    squares = np.zeros(d)
    for rows in row_blocks(n, d, max_elements):
        squares += ((take_rows(X, rows) - mean) ** 2).sum(axis=0)
    deviation = np.sqrt(squares / n)
    return mean.astype(np.float32), np.where(no_spread(deviation, mean), 1.0, deviation).astype(np.float32)


class _Batches:
    """Rows of the training set as tensors, from memory where they fit."""

    def __init__(self, X: Rows, device: torch.device, shift: F32 | None, spread: F32 | None) -> None:
        n, d = X.shape
        self.device = device
        self.shift = None if shift is None else torch.from_numpy(shift).to(device)
        self.spread = None if spread is None else torch.from_numpy(spread).to(device)
        self.rows = X
        self.held: torch.Tensor | None = None
        if n * d * 4 <= held_bytes():
            self.held = self._scaled(torch.from_numpy(finite_rows(X, name="X_train")).to(device))
        else:
            for rows in row_blocks(n, d):
                finite_rows(X, rows, name="X_train")

    def _scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.shift is None or self.spread is None else (x - self.shift) / self.spread

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        if self.held is not None:
            return self.held.index_select(0, rows.to(self.device))
        return self._scaled(torch.from_numpy(take_rows(self.rows, rows.numpy())).to(self.device))


def softmax_gradients(
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    d_weight: torch.Tensor,
    d_bias: torch.Tensor,
    work: torch.Tensor | None = None,
) -> None:
    """Write the gradients of the mean cross-entropy of softmax(x @ weight.T + bias) against classes y.

    Two matrix products and one softmax; the gradient of the input is not needed. Minibatches are summed over parts
    whose logits stay in the cache, in the buffers of `work` (see `gradient_work`) where it is given.
    """
    m, n_classes = len(x), len(weight)
    d_weight.zero_()
    d_bias.zero_()
    work = gradient_work(m, weight) if work is None else work
    step = work.shape[1]
    for start in range(0, m, step):
        part, classes = x[start : start + step], y[start : start + step]
        logits, p = work[:, : len(part), :n_classes]
        torch.addmm(bias, part, weight.t(), out=logits)
        torch.softmax(logits, dim=1, out=p)
        p[torch.arange(len(part), device=x.device), classes] -= 1
        d_weight.addmm_(p.t(), part, alpha=1 / m)
        d_bias.add_(p.sum(dim=0), alpha=1 / m)


def gradient_work(m: int, weight: torch.Tensor) -> torch.Tensor:
    """Buffers for the logits of minibatches of m rows."""
    return weight.new_empty(2, min(m, max(1, _LOGITS // len(weight))), len(weight))


def fit_softmax(
    X: Rows,
    y: Ints,
    n_classes: int,
    *,
    seed: int,
    rates: F64,
    batch_size: int,
    weight_decay: float,
    drop_last: bool = False,
    standardise: bool = False,
    device: str = "cpu",
    threads: int = 1,
) -> LinearClassifier:
    """Train a linear layer on the mean cross-entropy with AdamW (betas 0.9 and 0.999, epsilon 1e-8).

    Weights and biases start uniform in +-1/sqrt(d); every epoch goes through the samples in a new order. Orders are
    drawn over the samples sorted by class and values, so that the order of the rows has no effect.

    Parameters
    ----------
    X, y
        (n, d) rows on demand, (n,) classes.
    seed
        Of the start and of the orders.
    rates
        (epochs,) learning rate of each epoch.
    drop_last
        Leave out the last partial minibatch of an epoch, unless it is the only one.
    standardise
        Take inputs as z-scores.

    Raises
    ------
    NotComputable
        Where the weights leave the range of float32.
    """
    n, d = X.shape
    where = torch.device(device)
    generator = torch.Generator().manual_seed(seed)
    with torch_threads(threads):
        shift, spread = standardisation(X) if standardise else (None, None)
        batches = _Batches(X, where, shift, spread)
        classes = torch.from_numpy(np.ascontiguousarray(y)).to(where)
        bound = 1 / np.sqrt(d)
        weight = torch.empty(n_classes, d).uniform_(-bound, bound, generator=generator).to(where)
        bias = torch.empty(n_classes).uniform_(-bound, bound, generator=generator).to(where)
        weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
        optimiser = torch.optim.AdamW([weight, bias], lr=float(rates[0]), weight_decay=weight_decay, fused=True)
        size = min(batch_size, n)
        stop = n - n % size if drop_last else n
        work = gradient_work(size, weight)
        sorted_rows = torch.from_numpy(canonical_order(X, np.arange(n), y))
        steps = 0
        for rate in rates:
            optimiser.param_groups[0]["lr"] = float(rate)
            order = sorted_rows[torch.randperm(n, generator=generator)]
            for start in range(0, stop, size):
                rows = order[start : start + size]
                softmax_gradients(
                    batches.take(rows), classes[rows.to(where)], weight, bias, weight.grad, bias.grad, work
                )
                optimiser.step()
                steps += 1
    if not bool(torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise NotComputable("training diverged: the weights are no longer finite (are the inputs very large?)")
    return LinearClassifier(weight.cpu().numpy(), bias.cpu().numpy(), shift, spread, steps)


def fit_lda(
    X: Rows, y: Ints, n_classes: int, *, ridge: float = 1e-4, max_elements: int | None = None
) -> LinearClassifier:
    """Linear discriminant analysis: Gaussian classes with one covariance, in closed form.

    On z-scored inputs, with S the pooled covariance within classes (divisor n), S' = (1 - ridge) S + ridge tr(S)/d I,
    class means m_c and frequencies f_c: score_c(x) = m_c' S'^-1 x - m_c' S'^-1 m_c / 2 + log f_c.

    Raises
    ------
    NotComputable
        Where no class varies within itself.
    """
    n, d = X.shape
    shift, spread = standardisation(X, max_elements=max_elements)
    counts, sums = group_sums(X, y, n_classes, max_elements=max_elements)
    means = (sums / counts[:, None] - shift) / spread
    total = np.zeros((d, d))
    for rows in row_blocks(n, d, max_elements):
        z = (take_rows(X, rows) - shift).astype(np.float64) / spread
        total += z.T @ z
    within = (total - (means * counts[:, None]).T @ means) / n
    size = np.trace(within) / d
    if size <= 1e-12:
        raise NotComputable("no class varies within itself: there is no covariance to discriminate with")
    within = (1 - ridge) * within + ridge * size * np.eye(d)
    weight = np.linalg.solve(within, means.T).T
    bias = np.log(counts / n) - (weight * means).sum(axis=1) / 2
    return LinearClassifier(weight.astype(np.float32), bias.astype(np.float32), shift, spread)


@jit
def _rank_by_scores(scores: Any, truth: Any, never: int, out: Any, tied: Any, ahead: Any) -> None:
    for i in range(scores.shape[0]):
        true = truth[i]
        tied[i] = 0
        if true < 0:
            out[i] = never
            continue
        own = scores[i, true]
        larger, equal = 0, -1
        for c in range(scores.shape[1]):
            larger += scores[i, c] > own
            equal += scores[i, c] == own
        out[i], tied[i] = larger, equal
        if larger + equal <= ahead.shape[1]:
            front, back = 0, ahead.shape[1] - 1
            for c in range(scores.shape[1]):
                if scores[i, c] > own:
                    ahead[i, front] = c
                    front += 1
                elif scores[i, c] == own and c != true:
                    ahead[i, back] = c
                    back -= 1


def true_class_ranks_of(
    classifier: LinearClassifier,
    X: Rows,
    y: Ints,
    *,
    device: str = "cpu",
    threads: int = 1,
    max_elements: int | None = None,
    ahead: Ints | None = None,
) -> tuple[Ints, Ints]:
    """Rank of the true class of every row by the classifier's float32 scores.

    A negative class (one that was not trained) has rank max(n_classes, 5).

    Parameters
    ----------
    ahead
        (n, k) to be filled, where the classes with a larger or the same score are k or fewer: the former from the
        front, the latter from the back; -1 elsewhere.

    Returns
    -------
    (rank, tied)
        (n,) int64 each: the number of classes with a larger score, and of others with the same.
    """
    n_classes, d = classifier.weight.shape
    where = torch.device(device)
    weight = torch.from_numpy(classifier.weight).to(where)
    bias = torch.from_numpy(classifier.bias).to(where)
    truth = np.ascontiguousarray(y, dtype=np.int64)
    out, tied = np.empty(len(truth), np.int64), np.empty(len(truth), np.int64)
    before = np.empty((len(truth), 0), np.int64) if ahead is None else ahead
    before[:] = -1
    with torch_threads(threads):
        for rows in row_blocks(len(truth), max(n_classes, d), max_elements):
            block = finite_rows(X, rows, name="X_test")
            if classifier.shift is not None and classifier.spread is not None:
                block = (block - classifier.shift) / classifier.spread
            scores = torch.addmm(bias, torch.from_numpy(block).to(where), weight.t())
            _rank_by_scores(scores.cpu().numpy(), truth[rows], max(n_classes, 5), out[rows], tied[rows], before[rows])
    return out, tied
