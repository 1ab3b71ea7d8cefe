"""Simulated screens as arrays: independent draws of batches, perturbations, programs and cells from one population."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from txeval.compute.arrays import row_blocks
from txeval.compute.random import stream
from txeval.data.samples import Samples
from txeval.data.split import split
from txeval.tasks import TaskInputs

__all__ = ["HELD_OUT", "POPULATIONS", "Population", "draw"]

N_DIMENSIONS = 10
N_MEASURED = 40


@dataclass(frozen=True)
class Population:
    """What screens of one design are drawn from.

    Attributes
    ----------
    batches, perturbations
        How many each screen has.
    cells
        Mean number of cells per batch and perturbation; the numbers are drawn, perturbations and batches differ.
    controls
        Mean number of controls per batch.
    effect, effect_sd
        Length of a perturbation's shift in units of the noise of a cell, and its log-normal spread.
    silent
        Share of perturbations without an effect.
    program
        Genes per program; those of one program shift alike.
    batch_sd
        Shift of a batch per dimension, in units of the noise of a cell.
    potency_sd
        Log-normal spread of the strength of all perturbations over batches.
    abundance_sd
        Log-normal spread of the number of cells over perturbations.
    """

    name: str
    batches: int = 24
    perturbations: int = 64
    cells: float = 1.0
    controls: float = 12
    effect: float = 2.0
    effect_sd: float = 0.5
    silent: float = 0.2
    program: int = 4
    batch_sd: float = 0.5
    potency_sd: float = 0.2
    abundance_sd: float = 0.4


POPULATIONS: tuple[Population, ...] = (
    Population("middle"),
    Population("weak effects", effect=0.7, silent=0.5),
    Population("strong effects", effect=5.0, silent=0.0),
    Population("no effects", effect=0.0, silent=1.0),
    Population("few perturbations", perturbations=32, cells=2.0),
    Population("many perturbations", perturbations=160, cells=0.5),
    Population("few batches", batches=12, cells=2.0, controls=20),
    Population("many batches", batches=60, cells=0.5, controls=6),
    Population("strong batch effects", batch_sd=2.0, potency_sd=0.5),
)

#: Designs that no choice of a method was made on.
HELD_OUT: tuple[Population, ...] = (
    Population(
        "held out: uneven",
        batches=32,
        perturbations=96,
        cells=0.8,
        controls=8,
        effect=1.4,
        effect_sd=0.7,
        silent=0.35,
        program=2,
        batch_sd=1.0,
        potency_sd=0.35,
        abundance_sd=0.8,
    ),
    Population(
        "held out: even",
        batches=16,
        perturbations=48,
        cells=1.5,
        controls=30,
        effect=3.0,
        effect_sd=0.2,
        silent=0.1,
        program=1,
        batch_sd=0.8,
        potency_sd=0.1,
        abundance_sd=0.1,
    ),
)


class Measured:
    """Expression of every cell, as tasks read it."""

    note = "simulated"

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.genes = np.asarray([f"M{i:03d}" for i in range(values.shape[1])])

    def blocks(self, rows: Any, *, max_elements: int | None = None) -> Iterator[tuple[slice, Any]]:
        """Blocks of rows."""
        for part in row_blocks(len(rows), self.values.shape[1], max_elements):
            yield part, self.values[rows[part]]

    def gene_means(self, rows: Any, *, scale: str) -> Any:
        """Mean per gene."""
        return self.values[rows].mean(axis=0, dtype=np.float64)


def draw(population: Population, number: int) -> TaskInputs:
    """One screen of a population; `embedding` is the state of every cell, seen with noise.

    Names of batches and perturbations are new in every screen, so that nothing that is keyed on names repeats.
    """
    rng = stream(number, "screen", population.name)
    of_measured = stream(0, "measured", population.name)
    b, p, d = population.batches, population.perturbations, N_DIMENSIONS

    shift = population.batch_sd * rng.standard_normal((b, d))
    potency = np.exp(population.potency_sd * rng.standard_normal(b))
    size = np.exp(0.3 * rng.standard_normal(b))
    program = np.arange(p) // population.program
    common = rng.standard_normal((program[-1] + 1, d))[program]
    direction = 0.7 * common + rng.standard_normal((p, d))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    length = population.effect * np.exp(population.effect_sd * rng.standard_normal(p))
    length[rng.random(p) < population.silent] = 0.0
    effect = length[:, None] * direction

    abundance = np.exp(population.abundance_sd * rng.standard_normal(p))
    counts = rng.poisson(population.cells * np.outer(size / size.mean(), abundance / abundance.mean()))
    n_controls = np.maximum(1, rng.poisson(population.controls * size / size.mean()))
    batch = np.concatenate([np.repeat(np.arange(b), counts.sum(axis=1)), np.repeat(np.arange(b), n_controls)])
    label = np.concatenate([np.repeat(np.tile(np.arange(p), b), counts.ravel()), np.full(n_controls.sum(), p)])
    control = label == p
    moved = np.vstack([effect, np.zeros(d)])[label] * potency[batch, None]
    inner = moved + rng.standard_normal((len(batch), d))
    state = inner + shift[batch]

    loadings = of_measured.standard_normal((d, N_MEASURED)) * np.exp(-np.linspace(0, 2, d))[:, None]
    expression = state @ loadings + 1.5 * rng.standard_normal((len(batch), N_MEASURED))
    tag = int(rng.integers(1_000_000_000))
    genes = np.asarray([f"G{tag}_{i:04d}" for i in range(p)])
    perturbations = np.append(genes, "zz-control")
    batches = np.asarray([f"batch_{tag}_{i:03d}" for i in range(b)])
    samples = Samples(
        perturbation=label.astype(np.int64),
        perturbations=perturbations,
        is_control=control,
        batch=batch.astype(np.int64),
        batches=batches,
        target_genes=np.append(genes, ""),
    )
    first, second = np.triu_indices(p, 1)
    # Half of the pairs within programs are known, and as many wrong ones.
    true = (program[first] == program[second]) & (rng.random(len(first)) < 0.5)
    known = true | (rng.random(len(first)) < true.mean())
    relations = {"known": pd.DataFrame({"a": genes[first[known]], "b": genes[second[known]]})}
    splits = split(perturbations[label], batches[batch], control, seed=1)
    return TaskInputs(
        embedding=state.astype(np.float32),
        samples=samples,
        splits=splits,
        params=None,
        expression=Measured(expression.astype(np.float32)),
        relations=relations,
    )


def centred(inputs: TaskInputs) -> np.ndarray:
    """Embedding less the mean of the controls of the same batch."""
    samples = inputs.samples
    values = np.asarray(inputs.embedding, dtype=np.float64)
    sums = np.zeros((len(samples.batches), values.shape[1]))
    np.add.at(sums, samples.batch[samples.is_control], values[samples.is_control])
    n = np.bincount(samples.batch[samples.is_control], minlength=len(sums))
    return (values - (sums / np.maximum(1, n)[:, None])[samples.batch]).astype(np.float32)
