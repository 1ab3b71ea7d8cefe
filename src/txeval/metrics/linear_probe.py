"""Level 2: can one linear layer on the frozen representation tell the classes?"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from txeval.compute.arrays import Rows
from txeval.compute.groups import checked_matrix, encode
from txeval.compute.neighbours import at_least_one
from txeval.compute.random import stream_seed
from txeval.compute.schedule import learning_rates
from txeval.compute.softmax import fit_lda, fit_softmax, true_class_ranks_of
from txeval.errors import InputError, NotComputable, unknown
from txeval.metrics.knn import MAX_AHEAD, accuracies, codes_in, commonest_share

__all__ = ["ProbeSolver", "linear_probe"]

ProbeSolver = Literal["adamw", "softmax-short", "lda"]

_SHORT_EPOCHS = 5
#: On a small screen five epochs are a handful of steps, and a probe that has hardly left its start ranks nothing.
_SHORT_STEPS = 1000
_SHORT_LR = 3e-3
_LDA_RIDGE = 1e-4
#: At learning rates of about 1e-3 a weight moves by less than 1 in so many steps.
_FEW_STEPS = 500


def linear_probe(
    X_train: Rows,
    y_train: Any,
    X_test: Rows,
    y_test: Any,
    *,
    seed: int = 0,
    epochs: int = 250,
    batch_size: int = 2048,
    lr: float = 1e-3,
    weight_decay: float = 1e-6,
    warmup_epochs: int = 10,
    warmup_lr: float = 3e-5,
    drop_last: bool = False,
    solver: ProbeSolver = "adamw",
    device: str = "cpu",
    threads: int = 1,
) -> dict[str, Any]:
    """Accuracy of one linear layer with a softmax, trained on one set and scored on another.

    Parameters
    ----------
    X_train, X_test
        (n, d) and (m, d) rows on demand, finite; used as float32. Training rows beyond 1 GiB are read per minibatch.
    y_train, y_test
        Labels. A test label that the training set lacks is never found and counts as wrong.
    seed
        Of the initial weights and the order of samples.
    epochs, batch_size, lr, weight_decay, warmup_epochs, warmup_lr
        Recipe of the paper: AdamW on the mean cross-entropy, the learning rate set per epoch e (from 0): linear from
        `warmup_lr` at e = 0 to `lr` at e = warmup_epochs - 1, then lr (1 + cos(pi (e - W) / (epochs - W))) / 2.
    drop_last
        Leave out the last partial minibatch of every epoch (reference).
    solver
        "adamw": the recipe, inputs as they are. "softmax-short": AdamW on z-scored inputs, 5 epochs or as many as make
        1,000 steps, learning rate 3e-3 with a cosine to 0 (`epochs`, `lr` and the warm-up are not used). "lda": linear
        discriminant analysis on z-scored inputs in closed form, ridge 1e-4 (nothing of the recipe is used, the seed
        neither). The last two are other probes: their numbers are not those of the recipe.
    device
        Where torch computes; scores on another device agree up to rounding.
    threads
        Threads of torch. The same number gives the same result.

    Returns
    -------
    dict
        `top1`, `top5`: share of test samples whose class has the highest score, or one of the five highest (classes
        with equal scores share the places: see `txeval.metrics.knn.expected_hits`). `top1_balanced`: mean over classes
        of their top 1. `majority`: top 1 of always answering the commonest training label. `rank` (m,) int64, classes
        with a higher score than the true one; max(n_classes, 5) for a label that the training set lacks; `tied` (m,)
        int64, others with the same; `ahead` (m, 5) their codes, see `txeval.compute.softmax.true_class_ranks_of`.
        `n_train`, `n_test`, `n_classes`, `n_unknown`, `solver`, `epochs`, `steps`, `notes`.

    Raises
    ------
    InputError
        For NaN or infinity, missing labels, lengths or widths that differ, parameters out of range.
    NotComputable
        For no sample, a single class, no label in common, or a training that diverges.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.repeat([[-1.0], [1.0]], 20, axis=0)
    >>> linear_probe(X, ["a"] * 20 + ["b"] * 20, X, ["a"] * 20 + ["b"] * 20)["top1"]
    1.0
    """
    if solver not in get_args(ProbeSolver):
        raise unknown("solver", str(solver), get_args(ProbeSolver))
    epochs, batch_size = at_least_one("epochs", epochs), at_least_one("batch_size", batch_size)
    if warmup_epochs < 0:
        raise InputError(f"warmup_epochs is {warmup_epochs}", remedy="give 0 or more")
    if not (lr > 0 and warmup_lr >= 0 and weight_decay >= 0):
        raise InputError(
            f"lr is {lr}, warmup_lr {warmup_lr}, weight_decay {weight_decay}",
            remedy="lr must be above 0, the others 0 or more",
        )
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

    notes = []
    if n_unknown:
        notes.append(f"{n_unknown} test samples have a label that the training set lacks: they count as wrong")
    if solver == "lda":
        epochs = 0
        notes.append(f"linear discriminant analysis on z-scored inputs, ridge {_LDA_RIDGE:g}, instead of training")
        classifier = fit_lda(train, codes, len(classes), ridge=_LDA_RIDGE)
    else:
        if solver == "softmax-short":
            size = min(batch_size, n)
            per_epoch = n // size if drop_last else -(-n // size)
            epochs = max(_SHORT_EPOCHS, -(-_SHORT_STEPS // per_epoch))
            rates = learning_rates(epochs, lr=_SHORT_LR)
            notes.append(
                f"z-scored inputs, {epochs} epochs, learning rate {_SHORT_LR:g} with a cosine to 0, no warm-up"
            )
        else:
            rates = learning_rates(epochs, lr=lr, warmup_epochs=warmup_epochs, warmup_lr=warmup_lr)
        if drop_last and n < batch_size:
            notes.append(
                f"every minibatch holds all {n} training samples: there are fewer than batch_size {batch_size}"
            )
        classifier = fit_softmax(
            train,
            codes,
            len(classes),
            seed=stream_seed(seed, "linear_probe"),
            rates=rates,
            batch_size=batch_size,
            weight_decay=weight_decay,
            drop_last=drop_last,
            standardise=solver == "softmax-short",
            device=device,
            threads=threads,
        )
        if classifier.steps < _FEW_STEPS:
            notes.append(f"{classifier.steps} optimiser steps in all: too few to converge")
    ahead = np.empty((m, MAX_AHEAD), dtype=np.int64)
    rank, tied = true_class_ranks_of(classifier, test, truth, device=device, threads=threads, ahead=ahead)
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
        "solver": solver,
        "epochs": epochs,
        "steps": classifier.steps,
        "notes": tuple(notes),
    }
