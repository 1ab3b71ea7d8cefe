"""Learning rates of the trained probes and decoders."""

from __future__ import annotations

import math

import numpy as np

from txeval.compute.arrays import F64

__all__ = ["learning_rate", "learning_rates"]


def learning_rate(epoch: int, epochs: int, *, lr: float, warmup_epochs: int = 0, warmup_lr: float = 0.0) -> float:
    """Learning rate of an epoch: linear warm-up, then half a cosine to 0 at `epochs`.

    With W warm-up epochs of E, epoch e (from 0) has warmup_lr + e (lr - warmup_lr) / (W - 1) for e < W, and
    lr (1 + cos(pi (e - W) / (E - W))) / 2 from then on: the closed form of LinearWarmupCosineAnnealingLR in Lightning
    Bolts, stepped once per epoch.
    """
    if epoch < warmup_epochs:
        return warmup_lr + epoch * (lr - warmup_lr) / max(warmup_epochs - 1, 1)
    return lr * (1 + math.cos(math.pi * (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1))) / 2


def learning_rates(epochs: int, *, lr: float, warmup_epochs: int = 0, warmup_lr: float = 0.0) -> F64:
    """Learning rate of every epoch, (epochs,) float64; see `learning_rate`."""
    every = range(epochs)
    return np.asarray(
        [learning_rate(e, epochs, lr=lr, warmup_epochs=warmup_epochs, warmup_lr=warmup_lr) for e in every]
    )
