"""Softmax regression with weight decay, solved to convergence: the same answer whatever the seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch

from txeval.compute.arrays import F32, F64, Ints, Rows, row_blocks, take_rows
from txeval.compute.memory import held_bytes
from txeval.compute.softmax import LinearClassifier, standardisation
from txeval.compute.threads import torch_threads
from txeval.errors import NotComputable

__all__ = ["LogisticFit", "Objective", "fit_logistic"]

#: So many logits are computed at once.
_LOGITS = 4_000_000


@dataclass(frozen=True)
class LogisticFit:
    """A solution and how it was reached.

    Attributes
    ----------
    classifier
        Scores of the classes; `steps` are the iterations.
    parameters
        (n_classes * (d + 1),) float64: weights and biases, a start for another fit.
    loss
        Mean cross-entropy, without the penalty.
    converged
        False where `max_iterations` ended it.
    """

    classifier: LinearClassifier
    parameters: F64
    loss: float
    converged: bool


class Objective:
    """Mean cross-entropy of softmax(z W' + b) on z-scored rows, and its gradient, by blocks of rows.

    Parameters
    ----------
    X, y
        (n, d) finite rows on demand, (n,) classes below `n_classes`.
    shift, spread
        (d,) z = (x - shift) / spread.
    device
        Where torch computes.
    """

    def __init__(self, X: Rows, y: Ints, n_classes: int, shift: F32, spread: F32, device: str = "cpu") -> None:
        self.n, self.d = int(X.shape[0]), int(X.shape[1])
        self.n_classes = n_classes
        self._rows, self.shift, self.spread = X, shift, spread
        self._device = torch.device(device)
        self._y = torch.from_numpy(np.ascontiguousarray(y, dtype=np.int64)).to(self._device)
        self._held = self._scaled(None) if self.n * self.d * 4 <= held_bytes() else None

    def _scaled(self, rows: slice | None) -> torch.Tensor:
        block = (take_rows(self._rows, rows) - self.shift) / self.spread
        return torch.from_numpy(block).to(self._device)

    def __call__(self, parameters: F64, *, gradient: bool = True) -> tuple[float, F64]:
        """Loss, and its gradient (n_classes * (d + 1),) (empty where it is not asked for)."""
        weight, bias = self.unpack(parameters)
        W, b = torch.from_numpy(weight).to(self._device), torch.from_numpy(bias).to(self._device)
        total = 0.0
        d_weight = np.zeros((self.n_classes, self.d)) if gradient else np.empty((0, 0))
        d_bias = np.zeros(self.n_classes)
        for rows in row_blocks(self.n, max(self.n_classes, self.d), _LOGITS):
            z = self._held[rows] if self._held is not None else self._scaled(rows)
            truth = self._y[rows]
            log_p = torch.log_softmax(torch.addmm(b, z, W.t()), dim=1)
            own = torch.arange(len(truth), device=self._device)
            total -= float(log_p[own, truth].sum(dtype=torch.float64))
            if gradient:
                p = log_p.exp_()
                p[own, truth] -= 1
                d_weight += (p.t() @ z).cpu().numpy()
                d_bias += p.sum(dim=0, dtype=torch.float64).cpu().numpy()
        if not gradient:
            return total / self.n, np.empty(0)
        return total / self.n, np.concatenate([d_weight.ravel(), d_bias]) / self.n

    def unpack(self, parameters: F64) -> tuple[F32, F32]:
        """Weights (n_classes, d) and biases (n_classes,) as float32."""
        split = self.n_classes * self.d
        weight = parameters[:split].reshape(self.n_classes, self.d).astype(np.float32)
        return weight, parameters[split:].astype(np.float32)


def fit_logistic(
    X: Rows,
    y: Ints,
    n_classes: int,
    *,
    weight_decay: float,
    start: F64 | None = None,
    objective: Objective | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 300,
    device: str = "cpu",
    threads: int = 1,
) -> LogisticFit:
    r"""Minimise the mean cross-entropy plus a penalty by L-BFGS, on z-scored inputs.

    .. math:: \frac{1}{n}\sum_i -\log p_{y_i}(x_i) + \frac{\lambda}{2} \|W\|_F^2

    The biases are not penalised. The function is convex and the start fixed (weights 0, biases the log frequencies), so
    that no seed enters. Products are float32, sums float64.

    Parameters
    ----------
    X, y
        (n, d) rows on demand, (n,) classes that all occur.
    weight_decay
        The factor of the penalty, above 0.
    start
        Parameters of another fit of the same shape to begin with.
    objective
        The objective of these data, where it was made before.
    tolerance
        Converged where an iteration lowers the objective by less than this share of it, or no element of the gradient
        is above a tenth of it.
    max_iterations
        Bound on the iterations.

    Raises
    ------
    NotComputable
        Where the loss is not finite.
    """
    with torch_threads(threads):
        if objective is None:
            objective = Objective(X, y, n_classes, *standardisation(X), device=device)
        size = n_classes * objective.d
        if start is None:
            counts = np.bincount(y, minlength=n_classes)
            start = np.concatenate([np.zeros(size), np.log(np.maximum(counts, 0.5) / len(y))])

        def penalised(parameters: F64) -> tuple[float, F64]:
            loss, slope = objective(parameters)
            loss += 0.5 * weight_decay * float(parameters[:size] @ parameters[:size])
            slope[:size] += weight_decay * parameters[:size]
            return loss, slope

        found = scipy.optimize.minimize(
            penalised,
            start,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": max_iterations, "ftol": tolerance, "gtol": tolerance / 10, "maxcor": 10},
        )
        if not np.isfinite(found.fun):
            raise NotComputable("the loss of the probe is not finite")
        weight, bias = objective.unpack(found.x)
        loss = float(found.fun) - 0.5 * weight_decay * float(found.x[:size] @ found.x[:size])
    classifier = LinearClassifier(weight, bias, objective.shift, objective.spread, steps=int(found.nit))
    return LogisticFit(classifier, np.asarray(found.x), loss, found.status != 1)
