"""Cell lines as blocks: controls, pairs, neighbours and batches are compared within one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from txeval.compute.arrays import Ints, Rows, Strings
from txeval.data.samples import Samples

__all__ = ["Block", "Blocks", "RowSubset", "cell_lines", "crossed_batches", "subset"]

#: "cell_line": within each cell line, where the screen names them; "none": all samples together.
Blocks = Literal["none", "cell_line"]


@dataclass(frozen=True)
class Block:
    """Samples that are compared with each other.

    Attributes
    ----------
    name
        The cell line; "" where all samples are one block.
    rows
        Row numbers of its samples, ascending.
    """

    name: str
    rows: Ints

    def within(self, rows: Ints) -> Ints:
        """Those of some row numbers that are in the block, in their order."""
        return rows if not self.name else rows[np.isin(rows, self.rows)]


def cell_lines(samples: Samples, blocks: Blocks) -> list[Block]:
    """Blocks of the samples: one per cell line, or a single one."""
    if blocks == "none" or samples.cell_line is None or samples.cell_lines is None:
        return [Block("", np.arange(samples.n))]
    present = np.unique(samples.cell_line)
    if len(present) < 2:
        return [Block("", np.arange(samples.n))]
    return [Block(str(samples.cell_lines[code]), np.flatnonzero(samples.cell_line == code)) for code in present]


def crossed_batches(samples: Samples, blocks: Blocks) -> tuple[Ints, Strings]:
    """Batch of every sample, batches of several cell lines taken apart: (n,) codes and labels."""
    found = cell_lines(samples, blocks)
    if len(found) == 1 or samples.cell_line is None or samples.cell_lines is None:
        return samples.batch, samples.batches
    cells, codes = np.unique(samples.batch * len(samples.cell_lines) + samples.cell_line, return_inverse=True)
    batch, line = np.divmod(cells, len(samples.cell_lines))
    several = np.bincount(batch, minlength=len(samples.batches))[batch] > 1
    labels = [
        f"{samples.batches[b]}, {samples.cell_lines[c]}" if apart else str(samples.batches[b])
        for b, c, apart in zip(batch, line, several, strict=True)
    ]
    return codes.reshape(-1).astype(np.int64), np.asarray(labels, dtype=str)


class RowSubset:
    """Some rows of a matrix as a matrix.

    Parameters
    ----------
    matrix
        (n, d) rows on demand.
    rows
        (m,) row numbers.
    """

    def __init__(self, matrix: Rows, rows: Ints) -> None:
        self._matrix, self._rows = matrix, rows

    @property
    def shape(self) -> tuple[int, ...]:
        """(m, d)."""
        return (len(self._rows), self._matrix.shape[1])

    def __getitem__(self, rows: Any, /) -> Any:
        """Rows by slice or numbers."""
        return self._matrix[self._rows[rows]]


def subset(samples: Samples, rows: Ints) -> Samples:
    """Roles of some samples; labels and their codes stay."""
    return replace(
        samples,
        perturbation=samples.perturbation[rows],
        is_control=samples.is_control[rows],
        batch=samples.batch[rows],
        cell_line=None if samples.cell_line is None else samples.cell_line[rows],
    )


def each(samples: Samples, blocks: Blocks, *parts: Ints) -> Iterator[tuple[Block, tuple[Ints, ...]]]:
    """Every block with its share of some row numbers."""
    for block in cell_lines(samples, blocks):
        yield block, tuple(block.within(rows) for rows in parts)
