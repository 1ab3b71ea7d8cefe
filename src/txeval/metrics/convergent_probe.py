"""Level 2 without a recipe to tune: a probe solved to convergence, its weight decay chosen on held-out batches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from txeval.compute.arrays import F64, Bools, Ints, Rows, Strings
from txeval.compute.groups import canonical_order, checked_matrix, encode
from txeval.compute.logistic import LogisticFit, Objective, fit_logistic
from txeval.compute.memory import held_rows
from txeval.compute.neighbours import finite_rows
from txeval.compute.random import stream
from txeval.compute.softmax import standardisation, true_class_ranks_of
from txeval.errors import InputError, NotComputable
from txeval.metrics.knn import MAX_AHEAD, accuracies, codes_in, commonest_share

__all__ = ["WEIGHT_DECAYS", "convergent_probe", "validation_rows"]

#: Penalties that are tried, from the strongest to the weakest.
WEIGHT_DECAYS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0001)

#: The validation loss may rise for so many weaker penalties before the rest is left out.
_PATIENCE = 2


def validation_rows(X: Rows, batch: Any, y: Ints, share: float) -> tuple[Bools, str]:
    """Training samples to hold out: whole batches where there are several.

    Parameters
    ----------
    X
        (n, d); only orders samples where there is a single batch.
    batch
        (n,) labels, or None for one batch.
    y
        (n,) classes.
    share
        Share of the batches (of the samples of each class, where there is one batch), at least one and never all.

    Returns
    -------
    (held out (n,) bool, how it was done)
    """
    n = len(y)
    codes, labels = (np.zeros(n, np.int64), np.empty(1)) if batch is None else encode(batch, n, name="batch")
    rng = stream(0, "linear_probe", "validation", len(labels))
    if len(labels) > 1:
        size = min(max(1, round(share * len(labels))), len(labels) - 1)
        chosen = np.sort(rng.permutation(len(labels))[:size])
        shown = ", ".join(str(label) for label in labels[chosen][:5]) + (", ..." if size > 5 else "")
        return np.isin(codes, chosen), f"{size} of {len(labels)} train batches ({shown})"
    held = np.zeros(n, dtype=bool)
    rows = canonical_order(X, np.arange(n), y)
    starts = np.searchsorted(y[rows], np.arange(int(y.max()) + 2))
    for a, b in itertools.pairwise(starts):
        held[rng.permutation(rows[a:b])[: int(share * (b - a))]] = True
    return held, f"{100 * share:.0f} % of the samples of every class, since there is one train batch"


def convergent_probe(
    X_train: Rows,
    y_train: Any,
    X_test: Rows,
    y_test: Any,
    *,
    batch: Any = None,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    validation: float = 0.3,
    tolerance: float = 1e-6,
    max_iterations: int = 300,
    device: str = "cpu",
    threads: int = 1,
) -> dict[str, Any]:
    """Accuracy of softmax regression on standardised inputs, trained to convergence.

    The weight decay is chosen by the cross-entropy on held-out training batches: penalties are tried from the strongest
    to the weakest, each starting from the solution before, until the validation loss has risen twice. The probe is then
    fitted on all training samples with the one chosen. Nothing is drawn but the batches, by a fixed stream: there is no
    seed.

    Parameters
    ----------
    X_train, X_test
        (n, d) and (m, d) rows on demand, finite; used as float32, z-scored by mean and deviation of the training set.
    y_train, y_test
        Labels. A test label that the training set lacks is never found and counts as wrong.
    batch
        (n,) batch labels of the training samples. With one batch, samples of every class are held out.
    weight_decays
        Penalties to choose from, see `txeval.compute.logistic.fit_logistic`.
    validation
        Share of the training batches to hold out, above 0 and below 1.
    tolerance, max_iterations, device, threads
        As `txeval.compute.logistic.fit_logistic`.

    Returns
    -------
    dict
        As `txeval.metrics.linear_probe.linear_probe`, and `weight_decay` (chosen), `validation_loss` (one per penalty
        tried), `converged`.

    Raises
    ------
    InputError
        For NaN or infinity, missing labels, lengths or widths that differ, parameters out of range.
    NotComputable
        For no sample, a single class, no label in common.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.repeat([[-1.0], [1.0]], 20, axis=0) + np.tile([[-0.1], [0.1]], (20, 1))
    >>> y = np.repeat(["a", "b"], 20)
    >>> convergent_probe(X, y, X, y, batch=np.tile([0, 1], 20))["top1"]
    1.0
    """
    decays = sorted({float(value) for value in weight_decays}, reverse=True)
    if not decays or decays[-1] <= 0:
        raise InputError(f"weight_decays is {tuple(weight_decays)}", remedy="give one or more numbers above 0")
    if not 0 < validation < 1:
        raise InputError(f"validation is {validation}", remedy="give a share between 0 and 1")
    train, test = checked_matrix(X_train, "X_train"), checked_matrix(X_test, "X_test")
    (n, d), m = train.shape, test.shape[0]
    if test.shape[1] != d:
        raise InputError(f"X_train has {d} columns, X_test {test.shape[1]}", remedy="embed both in the same space")
    if n == 0 or m == 0:
        raise NotComputable(f"no sample to {'train on' if n == 0 else 'score'}")
    codes, classes = encode(y_train, n, name="y_train")
    truth, n_unknown = codes_in(y_test, classes, m, name="y_test")
    if len(classes) < 2:
        raise NotComputable(f"the training set has one class ({classes[0]!r}): there is nothing to tell apart")
    if n_unknown == m:
        raise NotComputable(f"y_test and y_train have no label in common (y_train has {classes[0]!r}, ...)")
    values = finite_rows(train, name="X_train")

    notes = []
    solver: dict[str, Any] = {
        "tolerance": tolerance,
        "max_iterations": max_iterations,
        "device": device,
        "threads": threads,
    }
    chosen, losses, note, start = _choose(values, codes, classes, batch, decays, validation, solver)
    notes.append(note)
    fit = fit_logistic(values, codes, len(classes), weight_decay=chosen, start=start, **solver)
    if not fit.converged:
        notes.append(f"stopped after {max_iterations} iterations, before it converged")
    if n_unknown:
        notes.append(f"{n_unknown} test samples have a label that the training set lacks: they count as wrong")
    ahead = np.empty((m, MAX_AHEAD), dtype=np.int64)
    rank, tied = true_class_ranks_of(fit.classifier, test, truth, device=device, threads=threads, ahead=ahead)
    return {
        **accuracies(rank, tied, y_test),
        "majority": commonest_share(codes, truth, len(classes)),
        "rank": rank,
        "tied": tied,
        "ahead": ahead,
        "n_train": int(n),
        "n_test": int(m),
        "n_classes": len(classes),
        "n_unknown": n_unknown,
        "solver": "convergent",
        "steps": fit.classifier.steps,
        "weight_decay": chosen,
        "validation_loss": losses,
        "converged": fit.converged,
        "notes": tuple(notes),
    }


def _choose(
    X: Rows,
    y: Ints,
    classes: Strings,
    batch: Any,
    decays: list[float],
    share: float,
    solver: dict[str, Any],
) -> tuple[float, dict[float, float], str, F64 | None]:
    """Weight decay with the smallest validation loss; losses, a note, and a start for the fit on everything."""
    held, how = validation_rows(X, batch, y, share)
    kept = np.unique(y[~held])
    # A class that only the held-out batches have cannot be learnt from the others.
    held &= np.isin(y, kept)
    if len(decays) == 1 or len(kept) < 2 or not held.any():
        chosen = decays[len(decays) // 2]
        why = "given" if len(decays) == 1 else "the middle of the list: no batch could be held out"
        return chosen, {}, f"weight decay {chosen:g}, {why}", None
    fit_rows = np.flatnonzero(np.isin(y, kept) & ~held)
    inside, local = held_rows(X, fit_rows), np.searchsorted(kept, y[fit_rows])
    shift, spread = standardisation(inside)
    training = Objective(inside, local, len(kept), shift, spread, solver["device"])
    outside = Objective(
        held_rows(X, np.flatnonzero(held)), np.searchsorted(kept, y[held]), len(kept), shift, spread, solver["device"]
    )
    losses: dict[float, float] = {}
    best: LogisticFit | None = None
    last: LogisticFit | None = None
    worse = 0
    for decay in decays:
        last = fit_logistic(
            inside,
            local,
            len(kept),
            weight_decay=decay,
            start=None if last is None else last.parameters,
            objective=training,
            **solver,
        )
        losses[decay] = outside(last.parameters, gradient=False)[0]
        if best is None or losses[decay] < min(list(losses.values())[:-1]):
            best, worse = last, 0
        else:
            worse += 1
            if worse == _PATIENCE:
                break
    assert best is not None  # there is at least one penalty
    chosen = min(losses, key=lambda decay: (losses[decay], -decay))
    note = f"weight decay {chosen:g}, chosen by the cross-entropy on {how}"
    if chosen in (decays[0], decays[-1]):
        note += "; it is at the end of the list"
    start = best.parameters if len(kept) == len(classes) else None
    return chosen, losses, note, start
