"""Log-normalised expression of a screen, by blocks of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp

from txeval.compute.arrays import F32, F64, Ints, Strings
from txeval.data.scale import TARGET_TOTAL, lognormal_fault
from txeval.data.screen import Screen
from txeval.errors import NotComputable

__all__ = ["TARGET_TOTAL", "LogNormExpression"]

#: Samples whose totals show what values were normalised to.
_LOOKED_AT = 500

_NOTES = {
    "counts": "counts, each sample normalised to a total of 10,000, then log(1 + x); a sample without counts stays 0",
    "normalized": "log(1 + x) of the values in the file, which are normalised already",
    "log1p": "the values in the file as they are, which are log1p already",
    "continuous": "the values in the file as they are: neither counts nor their logarithms, so nothing was normalised",
}


class LogNormExpression:
    """Log-normalised expression of the kept samples (implements `txeval.tasks.base.Expression`).

    Counts are normalised to 10,000 for each sample (over the genes of the file) and log1p is taken; normalised
    values get log1p only; log1p and continuous values are left as they are. `note` says which.

    Parameters
    ----------
    screen
        It is read on demand, never whole.
    """

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self._means: dict[tuple[str, str], F64] = {}

    @property
    def genes(self) -> Strings:
        """(g,) gene names."""
        return self.screen.genes

    @property
    def note(self) -> str:
        """How the values were made from what the file holds."""
        return f"{self.screen.where}: {_NOTES[self.screen.scale]}"

    def blocks(self, rows: Ints, *, max_elements: int | None = None) -> Iterator[tuple[slice, F32]]:
        """Blocks of rows in the order given: (slice into `rows`, float32 array (b, g))."""
        for part, block in self._lognorm(rows, max_elements):
            yield part, block.toarray() if sp.issparse(block) else block

    def gene_means(self, rows: Ints, *, scale: str) -> F64:
        """Mean of each gene over samples.

        Parameters
        ----------
        rows
            Numbers of kept samples.
        scale
            "counts": of the raw counts; "lognorm": of what `blocks` gives.

        Returns
        -------
        (g,) float64

        Raises
        ------
        NotComputable
            No rows, raw counts of a screen that holds none, or values that are not known to be log-normalised to
            10,000 (`txeval.data.scale.lognormal_fault`).
        """
        if scale not in ("counts", "lognorm"):
            raise ValueError(f"scale must be 'counts' or 'lognorm', not {scale!r}")
        if scale == "counts" and self.screen.scale != "counts":
            raise NotComputable(
                f"mean counts need counts, but {self.screen.where} holds {self.screen.scale} values"
                f" ({self.screen.scale_note})"
            )
        rows = np.asarray(rows, dtype=np.int64)
        if not len(rows):
            raise NotComputable("mean expression over no samples")
        if scale == "lognorm" and self.screen.scale != "counts":
            fault = lognormal_fault(self.screen.scale, self._totals(rows), declared=self.screen.scale_declared)
            if fault:
                raise NotComputable(
                    f"{self.screen.where} holds no values log-normalised to {TARGET_TOTAL:,.0f}: {fault}"
                )
        # Every cell of level 3 asks for the same means, and each answer is a pass over the whole matrix.
        key = (scale, hashlib.sha256(np.sort(rows).tobytes()).hexdigest())
        if key in self._means:
            return self._means[key]
        sums = np.zeros(self.screen.n_genes)
        # A sum does not depend on the order, and the file is read fastest in its own.
        for _, block in self.screen.blocks(np.sort(rows)) if scale == "counts" else self._lognorm(np.sort(rows), None):
            sums += np.asarray(block.sum(axis=0, dtype=np.float64)).ravel()
        self._means[key] = sums / len(rows)
        return self._means[key]

    def _totals(self, rows: Ints) -> F64:
        """Totals of exp(x) - 1 of some samples spread over the rows; none where the values can be no logarithms."""
        if self.screen.scale == "continuous":
            return np.zeros(0)
        some = np.sort(rows)[:: max(1, len(rows) // _LOOKED_AT)]
        blocks = [block for _, block in self._lognorm(some, None)]
        lifted = [
            (block.expm1() if sp.issparse(block) else np.expm1(block)).sum(axis=1, dtype=np.float64) for block in blocks
        ]
        return np.concatenate([np.asarray(part).ravel() for part in lifted])

    def _lognorm(self, rows: Ints, max_elements: int | None) -> Iterator[tuple[slice, Any]]:
        """As `blocks`, but sparse where the file is."""
        scale = self.screen.scale
        for part, block in self.screen.blocks(np.asarray(rows, dtype=np.int64), max_elements=max_elements):
            if scale == "counts":
                totals = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
                factors = (TARGET_TOTAL / np.where(totals > 0, totals, 1.0)).astype(np.float32)
                if sp.issparse(block):
                    block.data = np.log1p(block.data * np.repeat(factors, np.diff(block.indptr)))
                else:
                    block = np.log1p(block * factors[:, None])
            elif scale == "normalized":
                block = block.log1p() if sp.issparse(block) else np.log1p(block)
            yield part, block
