"""What counts as constant: the one decision that every division by a spread rests on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from txeval.compute.arrays import Bools

__all__ = ["is_constant", "no_spread"]

#: Share of the size of values that products and sums of them may differ by without differing: float32 and float64.
_RESOLUTION = 1e-6, 1e-14


def no_spread(deviation: npt.ArrayLike, size: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> Bools:
    """Whether deviations are what rounding leaves of equal values.

    Parameters
    ----------
    deviation
        Standard deviation, range or norm about the mean, >= 0; any shape.
    size
        Size of the values, such as their absolute mean; same units and shape.
    dtype
        What the values were computed in; whole numbers as float64.
    """
    share = _RESOLUTION[0 if np.dtype(dtype) in (np.float16, np.float32) else 1]
    return np.asarray(np.asarray(deviation) <= share * np.abs(np.asarray(size)), dtype=bool)


def is_constant(low: npt.ArrayLike, high: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> Bools:
    """Whether values from `low` to `high` are equal up to rounding; see `no_spread`."""
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    return no_spread(high - low, np.maximum(np.abs(low), np.abs(high)), dtype)
