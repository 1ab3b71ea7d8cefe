"""Draws of samples that tasks share."""

from __future__ import annotations

from typing import Literal

import numpy as np

from txeval.compute.arrays import Ints

__all__ = ["Downsample", "stratified_draw"]

Downsample = Literal["drawn", "complement"]


def stratified_draw(strata: Ints, size: int, rng: np.random.Generator, keep: Downsample = "drawn") -> Ints:
    """Positions of a sample of a given size with the strata's proportions.

    Which code a stratum has does not matter. Positions do: give samples in an order that does not depend on the file's,
    such as that of `TaskInputs.by_name`.

    Parameters
    ----------
    strata
        (n,) non-negative codes; all zero for a plain draw.
    size
        Number to draw, below n.
    keep
        "drawn" returns the sample, "complement" what it leaves (the slip of the published code).

    Returns
    -------
    Sorted int64 positions: `size` of them, or n - size.
    """
    n = len(strata)
    order = rng.permutation(n)
    by_stratum = order[np.argsort(strata[order], kind="stable")]
    counts = np.bincount(strata)
    exact = counts * (size / n)
    quota = np.floor(exact).astype(np.int64)
    # Largest remainders first, so that the quotas add up to `size`; of equal ones that of the first sample drawn.
    first = np.full(len(counts), n)
    np.minimum.at(first, strata[order], np.arange(n))
    rest = np.lexsort([first, quota - exact])[: size - int(quota.sum())]
    quota[rest] += 1
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    within = np.arange(n) - np.repeat(starts, counts)
    drawn = within < np.repeat(quota, counts)
    return np.sort(by_stratum[drawn if keep == "drawn" else ~drawn]).astype(np.int64)
