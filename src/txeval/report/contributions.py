"""What each unit contributed to the scores of a table, and intervals of means over seeds from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from txeval.compute.intervals import Interval, Units, combine, interval
from txeval.compute.paired import match
from txeval.errors import NotComputable

__all__ = ["Contributions", "Place", "UnitSource", "mean_interval"]


class Place(NamedTuple):
    """One score of every seed: what its rows have in common."""

    dataset: str
    protocol: str
    task: str
    metric: str
    subset: str
    model: str
    post_processing: str


class UnitSource(Protocol):
    """Gives what each unit contributed to a score."""

    def seeds(self, place: Place) -> Sequence[Units]:
        """Units of a score, one for each seed; raises NotComputable where they were not kept."""
        ...


class Contributions(UnitSource, Protocol):
    """The same, and what the protocols of the scores ask for."""

    def choice(self, protocol: str) -> str:
        """How the protocol chooses post-processings for the summary: "best" or "cross_fitted"."""
        ...

    def headline(self, protocol: str) -> Mapping[str, Sequence[str]]:
        """Task -> metrics that the protocol wants in the summary; tasks that are absent say so themselves."""
        ...


def mean_interval(seeds: Sequence[Units], *, low: float, high: float) -> Interval:
    """95 % interval of the mean of a score over seeds: over its units, and over seeds where these shift it as a whole.

    Parameters
    ----------
    seeds
        Units of the score, one for each seed.
    low, high
        Range of possible values.
    """
    if len(seeds) == 1:
        return interval(seeds[0], low=low, high=high)
    try:
        extra = float(match([seeds]).spread[0])
        whole = combine(seeds, [1.0 / len(seeds)] * len(seeds))
    except NotComputable as why:
        return Interval(float("nan"), float("nan"), "", "", str(why))
    return interval(whole, low=low, high=high, extra_variance=extra)
