"""The roles of the samples of a screen, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

from txeval.compute.arrays import Bools, Ints, Strings

__all__ = ["Samples"]


@dataclass(frozen=True)
class Samples:
    """The roles of every kept sample, as codes into sorted labels.

    Attributes
    ----------
    perturbation, batch
        (n,) int64 codes into `perturbations` and `batches`. Controls carry the code of their control label.
    is_control
        (n,) bool.
    target_genes
        (n_perturbations,) gene symbol that each perturbation targets, "" where there is none (controls,
        combinations).
    cell_line
        (n,) int64 codes into `cell_lines`, or None.
    """

    perturbation: Ints
    perturbations: Strings
    is_control: Bools
    batch: Ints
    batches: Strings
    target_genes: Strings
    cell_line: Ints | None = None
    cell_lines: Strings | None = None

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.perturbation)
