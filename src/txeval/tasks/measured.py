"""Level 6: what its scores need of the measured expression alone, made once for all embeddings and post-processings."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from txeval.compute.arrays import BLOCK_ELEMENTS, F32, F64, Bools, Ints, Strings
from txeval.compute.correlation import ColumnStore, Ranks, rank_columns
from txeval.compute.groups import add_to_groups, read_rows
from txeval.compute.memory import scratch_folder
from txeval.metrics.profiles import ProfileTruth
from txeval.tasks.base import Expression, TaskInputs
from txeval.tasks.blocks import cell_lines, crossed_batches

__all__ = ["INFLUENCE_ELEMENTS", "Measured", "Scored", "expression_blocks", "measured", "scored_samples"]

#: The influence of samples on the mean correlation is taken over so many values: at most this / samples of the genes.
INFLUENCE_ELEMENTS = 20_000_000

#: Folders up to this size stay as long as the run.
SMALL_BYTES = 2**26

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Scored:
    """The samples that are decoded and scored.

    Attributes
    ----------
    rows
        (n,) row numbers of the screen.
    batch, batches
        (n,) codes into the names of the batches (of each cell line, under `blocks`).
    control
        (n,) bool.
    group, groups
        (n,) row of the table `groups` (perturbation, cell_line); -1 for controls, -2 in batches without a control.
    """

    rows: Ints
    batch: Ints
    batches: Strings
    control: Bools
    group: Ints
    groups: pd.DataFrame

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return len(self.batches)

    @property
    def digest(self) -> str:
        """Digest of what the sums over the measured expression depend on."""
        made = hashlib.sha256()
        for array in (self.rows, self.batch, self.control.astype(np.int64), self.group):
            made.update(np.ascontiguousarray(array).astype("<i8").tobytes())
        return made.hexdigest()


def scored_samples(inputs: TaskInputs, rows: Ints) -> Scored:
    """Batches, controls and perturbations (within cell lines, where asked for) of the scored samples."""
    samples = inputs.samples
    strata, names = crossed_batches(samples, inputs.params.blocks)
    present, batch = np.unique(strata[rows], return_inverse=True)
    batch = batch.reshape(-1).astype(np.int64)
    control = samples.is_control[rows]
    lines = samples.cell_lines if samples.cell_lines is not None else np.asarray([""])
    blocks = cell_lines(samples, inputs.params.blocks)
    line = samples.cell_line[rows] if len(blocks) > 1 and samples.cell_line is not None else np.zeros_like(rows)
    cells, group = np.unique(samples.perturbation[rows] * len(lines) + line, return_inverse=True)
    usable = np.bincount(batch, weights=control, minlength=len(present))[batch] > 0
    table = pd.DataFrame({"perturbation": samples.perturbations[cells // len(lines)]})
    table["cell_line"] = lines[cells % len(lines)] if len(blocks) > 1 else ""
    codes = np.where(usable, np.where(control, -1, group.reshape(-1)), -2).astype(np.int64)
    return Scored(rows, batch, names[present], control, codes, table)


def expression_blocks(expression: Expression, rows: Ints) -> Iterator[tuple[slice, Array]]:
    """Blocks of finite expression of one size, whatever the memory: sums are the same for every run."""
    for part, block in expression.blocks(rows, max_elements=BLOCK_ELEMENTS):
        yield part, read_rows(np.asarray(block), name="expression")


@dataclass(frozen=True)
class Measured:
    """Sums, ranks and control means of the measured expression of the scored samples.

    Attributes
    ----------
    n, g
        Samples and genes.
    plain, plain_squares
        (n,) mean over genes of the values and of their squares.
    structure
        (n,) squared distance from the mean of the batch's controls.
    centre
        (n_batches, g) float32 mean of each batch's controls; 0 without one.
    profiles
        Sums per perturbation and per batch.
    ranks
        Ranks of the samples for every gene, in a file.
    sampled
        (k, n) float32 columns of the genes `slice(0, g, step)` that influences are taken over.
    """

    n: int
    g: int
    plain: F64
    plain_squares: F64
    structure: F64
    centre: F32
    profiles: ProfileTruth
    ranks: Ranks
    sampled: F32
    #: Keeps a temporary folder as long as this.
    folder: Any = field(default=None, repr=False)

    @property
    def step(self) -> int:
        """Every how many genes one is sampled for the influence."""
        return influence_step(self.n, self.g)


def influence_step(n: int, g: int) -> int:
    """Every how many genes the influence of samples is taken."""
    return max(1, -(-n * g // INFLUENCE_ELEMENTS))


def measured(inputs: TaskInputs, expression: Expression, scored: Scored) -> Measured:
    """Read what is kept for these samples, or make it: one pass over their expression, and one over the controls'."""

    def make(folder: Path) -> None:
        _make(folder, expression, scored)

    if inputs.kept is None:
        room = tempfile.TemporaryDirectory(dir=scratch_folder(), prefix="txeval-measured-")
        folder = Path(room.name)
        make(folder)
        return _open(folder, scored, room)
    return _open(inputs.kept("measured-" + scored.digest[:32], make), scored)


def _make(folder: Path, expression: Expression, scored: Scored) -> None:
    n, g = len(scored.rows), len(expression.genes)
    control = np.flatnonzero(scored.control)
    centre = np.zeros((scored.n_batches, g))
    count = np.zeros(scored.n_batches, dtype=np.int64)
    for part, block in expression_blocks(expression, scored.rows[control]):
        add_to_groups(centre, count, block, scored.batch[control[part]])
    centre32 = (centre / np.maximum(1, count)[:, None]).astype(np.float32)
    plain, plain_squares, structure = np.zeros((3, n))
    profiles = ProfileTruth.create(folder / "profiles.npy", g, len(scored.groups), scored.n_batches)
    with ColumnStore(n, g) as columns:
        for part, block in expression_blocks(expression, scored.rows):
            columns.write(part, block)
            plain[part] = block.mean(axis=1, dtype=np.float64)
            plain_squares[part] = np.einsum("ij,ij->i", block, block, dtype=np.float64) / g
            away = block - centre32[scored.batch[part]]
            structure[part] = np.einsum("ij,ij->i", away, away, dtype=np.float64)
            profiles.add(block, scored.group[part], scored.batch[part])
        rank_columns(columns, n, g, folder / "ranks.npy", folder / "rank_squares.npy")
        step = influence_step(n, g)
        sampled = np.empty((len(range(0, g, step)), n), dtype=np.float32)
        for k, gene in enumerate(range(0, g, step)):
            sampled[k] = columns(slice(gene, gene + 1))[:, 0]
    profiles.close()
    np.savez(
        folder / "sums.npz",
        plain=plain,
        plain_squares=plain_squares,
        structure=structure,
        centre=centre32,
        n=profiles.n,
        n_reference=profiles.n_reference,
        reference=profiles.reference,
    )
    np.save(folder / "sampled.npy", sampled)


def _open(folder: Path, scored: Scored, room: Any = None) -> Measured:
    with np.load(folder / "sums.npz", allow_pickle=False) as file:
        sums = {name: file[name] for name in file.files}
    ranks = Ranks.open(folder / "ranks.npy", folder / "rank_squares.npy")
    profiles = ProfileTruth(
        np.load(folder / "profiles.npy", mmap_mode="r"), sums["reference"], sums["n"], sums["n_reference"]
    )
    g = int(sums["centre"].shape[1])
    return Measured(
        n=len(scored.rows),
        g=g,
        plain=sums["plain"],
        plain_squares=sums["plain_squares"],
        structure=sums["structure"],
        centre=sums["centre"],
        profiles=profiles,
        ranks=ranks,
        sampled=np.load(folder / "sampled.npy", mmap_mode="r"),
        folder=room,
    )


def keep_in(room: Path, key: str, make: Callable[[Path], None], most: int = 3) -> Path:
    """Give the folder `room/key`, made whole or not at all; of large ones of its kind the newest `most - 1` stay.

    The caller sees to it that one process at a time makes it. A folder that goes while another process reads it stays
    readable for that one.
    """
    folder = room / key
    if folder.is_dir():
        return folder
    kind = key.partition("-")[0]
    others = sorted(room.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    large = [path for path in others if sum(file.stat().st_size for file in path.iterdir()) > SMALL_BYTES]
    for old in large[most - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(dir=room, prefix=f".{key}-"))
    try:
        make(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
