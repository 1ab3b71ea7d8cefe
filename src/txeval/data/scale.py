"""The scale of a matrix: counts, normalised, log1p or continuous."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from txeval.compute.arrays import F64
from txeval.errors import InputError, unknown

if TYPE_CHECKING:
    from txeval.data.matrix import Block
    from txeval.data.screen import Screen

__all__ = [
    "SCALES",
    "TARGET_TOTAL",
    "Evidence",
    "Place",
    "check_declared",
    "determine",
    "first_fault",
    "lognormal_fault",
    "require_scale",
]

#: Scale -> what it means.
SCALES: dict[str, str] = {
    "counts": "raw counts: whole numbers, none negative",
    "normalized": "depth-normalised counts: none negative, the same total for each sample",
    "log1p": "log(1 + x) of depth-normalised counts: none negative",
    "continuous": "anything else, such as z-scores, fold changes or intensities",
}

#: Largest value that log1p of any count can have, with room: log1p(1e20) = 46.
LOG1P_MAX = 50.0

#: Values below this are taken as logarithms where nothing else tells: log1p(1e8) = 18.4.
LOG1P_LIKELY_MAX = 20.0

#: Total that each sample is normalised to before the logarithm.
TARGET_TOTAL = 10_000.0

#: Totals within this share of their median count as the same.
TOTAL_TOLERANCE = 0.01


@dataclass(frozen=True)
class Place:
    """A value and where it is: row and column number, as in the file."""

    row: int
    column: int
    value: float


@dataclass
class Evidence:
    """What a sample of the values shows.

    Attributes
    ----------
    n_rows, n_values
        How much was looked at; `n_rows` is 0 where a matrix stored by columns was looked at by columns.
    nonfinite, negative, fractional
        First such value, where there is one.
    n_nonzero, n_whole
        Values other than 0, and those of them that are whole numbers.
    highest
        Largest finite value.
    totals, expm1_totals
        Totals of the rows and of exp(row) - 1; the latter only where that does not overflow.
    one_unit, one_unit_expm1
        Rows whose values are whole multiples of one unit (counts divided by a size factor), of `n_testable` rows.
    smallest
        Smallest positive value of each of those rows, to 5 digits.
    """

    n_rows: int = 0
    n_values: int = 0
    n_nonzero: int = 0
    n_whole: int = 0
    nonfinite: Place | None = None
    negative: Place | None = None
    fractional: Place | None = None
    highest: Place | None = None
    totals: list[float] = field(default_factory=list)
    expm1_totals: list[float] = field(default_factory=list)
    n_testable: int = 0
    one_unit: int = 0
    one_unit_expm1: int = 0
    smallest: list[float] = field(default_factory=list)

    def add(self, block: Block, *, row: int = 0, column: int = 0, whole_rows: bool = True) -> None:
        """Look at a block whose first element is at (row, column) of the file; columns only unless `whole_rows`."""
        values = _values(block)
        self.n_values += int(np.prod(block.shape))
        self.n_nonzero += int(np.count_nonzero(values))
        self.n_rows += block.shape[0] if whole_rows else 0
        if not values.size:
            if whole_rows:
                self.totals += [0.0] * block.shape[0]
            return

        def place(i: int) -> Place:
            r, c = _position(block, i)
            return Place(row + r, column + c, float(values[i]))

        finite = np.isfinite(values)
        if not finite.all():
            self.nonfinite = self.nonfinite or place(int(np.argmin(finite)))
            return
        low = int(np.argmin(values))
        if values[low] < 0:
            self.negative = self.negative or place(low)
        high = int(np.argmax(values))
        if self.highest is None or float(values[high]) > self.highest.value:
            self.highest = place(high)
        fractional = values != np.floor(values) if values.dtype.kind == "f" else np.zeros(len(values), dtype=bool)
        self.n_whole += int(np.count_nonzero(values[~fractional]))
        if self.fractional is None and fractional.any():
            self.fractional = place(int(np.argmax(fractional)))
        if whole_rows:
            self._add_rows(block)

    def _add_rows(self, block: Block) -> None:
        matrix = sp.csr_matrix(block, dtype=np.float64)
        self.totals += np.asarray(matrix.sum(axis=1)).ravel().tolist()
        if self.negative is not None or self.highest is None:
            return
        lifted = None
        if self.highest.value <= LOG1P_MAX:
            lifted = matrix.copy()
            lifted.data = np.expm1(lifted.data)
            self.expm1_totals += np.asarray(lifted.sum(axis=1)).ravel().tolist()
        for i in range(min(matrix.shape[0], 100)):
            stretch = slice(matrix.indptr[i], matrix.indptr[i + 1])
            if len(np.unique(matrix.data[stretch])) >= 2:
                self.n_testable += 1
                self.smallest.append(float(f"{matrix.data[stretch][matrix.data[stretch] > 0].min():.5g}"))
                self.one_unit += _whole_multiples(matrix.data[stretch])
                self.one_unit_expm1 += lifted is not None and _whole_multiples(lifted.data[stretch])


def _values(block: Block) -> Any:
    return block.data if sp.issparse(block) else np.asarray(block).ravel()


def _position(block: Block, i: int) -> tuple[int, int]:
    """Row and column in a block of its i-th stored value."""
    if not sp.issparse(block):
        return i // int(block.shape[1]), i % int(block.shape[1])
    major, minor = int(np.searchsorted(block.indptr, i, side="right")) - 1, int(block.indices[i])
    return (minor, major) if block.format == "csc" else (major, minor)


def _whole_multiples(values: Any) -> bool:
    """Whether positive values are (nearly) whole multiples of one unit, the smallest being 1 to 6 units."""
    positive = values[values > 0]
    if not len(positive):
        return False
    ratio = positive / positive.min()
    ratio = ratio[ratio < 1000]
    return any(bool(np.all(np.abs(ratio * m - np.rint(ratio * m)) < 0.005 * m)) for m in range(1, 7))


def lognormal_fault(scale: str, totals: Sequence[float] | F64, *, declared: bool) -> str:
    """Why values are not known to be log(1 + x) of samples normalised to 10,000; "" where they are.

    Thresholds on mean log-normalised expression have this unit and mean nothing for other values.

    Parameters
    ----------
    scale
        Of the values, one of `SCALES`.
    totals
        (m,) of exp(x) - 1 of some samples.
    declared
        Whether the user said that this is their scale: then totals that differ (a part of the genes) are no fault.
    """
    if scale == "continuous":
        return f"they are {scale}: {SCALES[scale]}"
    if not _same_total(totals):
        said = "exp(x) - 1 has no common total for each sample; declare the scale if it is of part of the genes"
        return "" if declared else said
    total = float(np.median(totals))
    if abs(total - TARGET_TOTAL) <= TOTAL_TOLERANCE * TARGET_TOTAL:
        return ""
    return f"exp(x) - 1 has a total of about {total:,.0f} for each sample"


def _same_total(totals: Sequence[float] | F64) -> bool:
    """Whether nearly all of the totals (empty samples left out) are nearly the same."""
    found = np.array([total for total in totals if total > 0])
    if len(found) < 2:
        return False
    median = float(np.median(found))
    return bool(np.mean(np.abs(found - median) <= TOTAL_TOLERANCE * median) >= 0.95)


def determine(evidence: Evidence) -> tuple[str, str]:
    """Scale that a sample of the values shows, and why."""
    high = evidence.highest.value if evidence.highest is not None else 0.0
    if evidence.negative is not None:
        return "continuous", f"there are negative values (such as {evidence.negative.value:g})"
    if evidence.fractional is None:
        if not evidence.n_nonzero:
            return "counts", "all values looked at are 0"
        return "counts", f"all values are whole numbers from 0 to {high:g}"
    if _same_total(evidence.totals):
        return "normalized", f"fractions, with a total of about {np.median(evidence.totals):g} for each sample"
    if high <= LOG1P_MAX and _same_total(evidence.expm1_totals):
        return "log1p", f"exp(x) - 1 has a total of about {np.median(evidence.expm1_totals):g} for each sample"
    whole = evidence.n_whole / max(1, evidence.n_nonzero)
    if whole > 0.5:
        return (
            "continuous",
            f"{whole:.2%} of the values above 0 are whole numbers, as counts are, but the others are not",
        )
    if evidence.n_testable >= 5:
        if high <= LOG1P_MAX and evidence.one_unit_expm1 >= 0.9 * evidence.n_testable:
            return "log1p", "exp(x) - 1 is a whole multiple of one unit for each sample, as normalised counts are"
        # The unit of depth-normalised counts differs between samples, as their depths do.
        differ = len(set(evidence.smallest)) >= 0.3 * evidence.n_testable
        if differ and evidence.one_unit >= 0.9 * evidence.n_testable:
            return "normalized", "values are whole multiples of one unit for each sample, as normalised counts are"
    zeros = 1 - evidence.n_nonzero / max(1, evidence.n_values)
    if high < LOG1P_LIKELY_MAX and zeros >= 0.05:
        return (
            "log1p",
            f"fractions from 0 to {high:g}, {zeros:.0%} of them 0; no surer sign: declare the scale if it is another",
        )
    return "continuous", f"fractions up to {high:g} with no sign of normalised counts"


def check_declared(scale: str, evidence: Evidence) -> tuple[Place | None, str]:
    """A value that contradicts a declared scale, and what is wrong with it; (None, "") where there is none."""
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    if scale == "continuous":
        return None, ""
    if evidence.negative is not None:
        return evidence.negative, "is negative"
    if scale == "counts" and evidence.fractional is not None:
        return evidence.fractional, "is not a whole number"
    high = evidence.highest
    if scale == "log1p" and high is not None:
        if high.value > LOG1P_MAX:
            return high, "is too large for a logarithm"
        if evidence.fractional is None and evidence.n_nonzero and high.value > 1:
            return high, "is a whole number, as all others that were looked at"
    if scale == "normalized" and evidence.fractional is not None and not _same_total(evidence.totals):
        looks, why = determine(evidence)
        if looks == "log1p" and "surer" not in why:
            return high, f"is one of values that look like log1p ({why})"
    return None, ""


def first_fault(block: Block, scale: str | None) -> tuple[int, int, float, str] | None:
    """First value of a block that its scale does not allow: (row, column, value, what is wrong); None where all fit.

    Parameters
    ----------
    block
        CSR matrix or array (m, g).
    scale
        None: any finite value is allowed.
    """
    values = _values(block)
    if not values.size or values.dtype.kind == "b":
        return None
    bad = None
    wrong = ""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad, wrong = ~np.isfinite(values), "is not a finite number"
    elif scale in ("counts", "normalized", "log1p") and values.dtype.kind != "u" and values.min() < 0:
        bad, wrong = values < 0, f"is negative, which {scale} values are not"
    elif scale == "counts" and values.dtype.kind == "f" and not np.array_equal(values, np.floor(values)):
        bad, wrong = values != np.floor(values), "is not a whole number, which counts are"
    if bad is None:
        return None
    i = int(np.argmax(bad))
    row, column = _position(block, i)
    return row, column, float(values[i]), wrong


def require_scale(screen: Screen, allowed: Collection[str], *, step: str) -> None:
    """Refuse a step on a screen whose values have another scale.

    Raises
    ------
    InputError
        The scale is not one of `allowed`; a layer that seems to hold counts is named where there is one.
    """
    if screen.scale in allowed:
        return
    remedy = (
        f"name a matrix of that scale with --layer; if {screen.scale!r} is wrong, declare the right one with --scale"
    )
    if "counts" in allowed:
        layers = screen.layers_of_counts()
        if layers:
            remedy = f"use --layer {layers[0]}, which holds counts"
    raise InputError(
        f"{step} needs {' or '.join(sorted(allowed))} values, but {screen.where} of {screen.path} holds"
        f" {screen.scale} values ({screen.scale_note})",
        remedy=remedy,
    )
