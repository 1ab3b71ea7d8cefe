"""Intervals of means over seeds."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import scipy.stats

from txeval.report.tables import TABLE, aggregate, catalogue

__all__ = ["joined_interval", "with_intervals"]

_CELL = ["task", "metric", "subset", "model", "post_processing"]
_NORMAL = float(scipy.stats.norm.ppf(0.975))


def joined_interval(value: list[float], low: list[float], high: list[float]) -> tuple[float, float]:
    """95 % interval of a mean over seeds: that over units, widened by how much the seeds differ.

    The half width is t * sqrt(v_units + v_seeds), where v_units = (mean half width / 1.96)^2 on that side, v_seeds =
    variance over seeds / number of seeds, and t is Student's with the degrees of freedom of Welch and Satterthwaite.

    Parameters
    ----------
    value, low, high
        Score and 95 % interval of each seed.

    Returns
    -------
    (low, high); NaN where a score has no interval: the seeds alone do not tell how sure it is.
    """
    values, lows, highs = (np.asarray(item, dtype=float) for item in (value, low, high))
    if not len(values) or np.isnan([values, lows, highs]).any():
        return math.nan, math.nan
    mean, n = float(values.mean()), len(values)
    seeds = float(values.var(ddof=1)) / n if n > 1 else 0.0
    sides = []
    for width in (float((values - lows).mean()), float((highs - values).mean())):
        units = (width / _NORMAL) ** 2
        total = units + seeds
        df = math.inf if seeds == 0 else total**2 * (n - 1) / seeds**2
        t = _NORMAL if math.isinf(df) else float(scipy.stats.t.ppf(0.975, df))
        sides.append(t * math.sqrt(total))
    return mean - sides[0], mean + sides[1]


def with_intervals(scores: pd.DataFrame) -> pd.DataFrame:
    """`aggregate`, with an interval for means over seeds as well (see `joined_interval`), within the metric's range."""
    frame = aggregate(scores)
    lacking = frame["value"].notna() & frame["low"].isna() & (frame["n_seeds"] > 1)
    if not lacking.any():
        return frame
    keys = [*TABLE, *_CELL]
    good = scores[scores["status"] == "ok"].copy()
    for name in keys:
        good[name] = good[name].fillna("").astype(str)
    found = {
        key: joined_interval(part["value"].tolist(), part["low"].tolist(), part["high"].tolist())
        for key, part in good[good["seed"].notna()].groupby(keys, sort=False)
    }
    frame = frame.copy()
    nothing = (math.nan, math.nan)
    rows = [found.get(tuple(str(item) for item in key), nothing) for key in frame[keys].itertuples(index=False)]
    info = catalogue(frame)
    bounds = [info[pair] for pair in zip(frame["task"], frame["metric"], strict=True)]
    rows = [
        (max(low, entry.low), min(high, entry.high)) if low == low else nothing
        for (low, high), entry in zip(rows, bounds, strict=True)
    ]
    for place, name in enumerate(("low", "high")):
        made = pd.Series([row[place] for row in rows], index=frame.index, dtype=float)
        frame[name] = frame[name].where(~lacking, made)
    return frame
