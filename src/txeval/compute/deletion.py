"""What a correlation loses without all samples of a level, beyond the sum of their single influences."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from txeval.compute.arrays import F64, Ints

__all__ = ["correlation_gap"]


def correlation_gap(x: npt.NDArray[Any], y: npt.NDArray[Any], codes: Ints, n_levels: int) -> F64:
    r"""Delete-one-level influence on the Pearson correlation of two columns, less the sum of its samples' influences.

    For a level of :math:`n_l` of n samples the first is :math:`(1 - n_l / n) (\rho - \rho_{-l})`. Influences are
    those of a fixed mean and variance. Where few levels make the variance, each has moved them towards itself, and the
    scatter of influences is too small by half; the difference puts that right.

    Parameters
    ----------
    x, y
        (n,) columns; ranks for a rank correlation.
    codes
        (n,) levels.

    Returns
    -------
    (n_levels,) float64, in units of the correlation; 0 where a column is constant or a level holds all that varies.
    """
    n = len(codes)
    a, b = (np.asarray(side, dtype=np.float64) for side in (x, y))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    if not size > 0:
        return np.zeros(n_levels)
    a, b = a / np.sqrt(a @ a / n), b / np.sqrt(b @ b / n)
    rho = float(a @ b) / n

    def per_level(values: F64) -> F64:
        return np.asarray(np.bincount(codes, weights=values, minlength=n_levels), dtype=np.float64)

    number = np.bincount(codes, minlength=n_levels)
    sum_a, sum_b, aa, bb, ab = (per_level(values) for values in (a, b, a * a, b * b, a * b))
    rest = np.maximum(n - number, 1)
    var_a, var_b = (n - aa) / rest - (sum_a / rest) ** 2, (n - bb) / rest - (sum_b / rest) ** 2
    usable = (number > 0) & (number < n) & (var_a > 1e-9) & (var_b > 1e-9)
    without = (n * rho - ab) / rest - sum_a * sum_b / rest**2
    without = without / np.sqrt(np.where(usable, var_a * var_b, 1.0))
    gap = (1.0 - number / n) * (rho - without) - (ab - rho * (aa + bb) / 2) / n
    return np.where(usable, gap, 0.0)
