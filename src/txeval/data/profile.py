"""What a real screen's values look like, gene by gene and batch by batch, for simulating another like it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from txeval.compute.arrays import F64, Bools, Ints, Strings
from txeval.data.locate import Progress
from txeval.data.roles import Roles
from txeval.data.screen import Screen, open_screen
from txeval.errors import InputError

__all__ = ["Mode", "Profile", "fit_profile"]

Mode = Literal["counts", "continuous"]

#: Cells that are looked at, spread evenly over the file; more would not change the moments visibly.
_MOST_CELLS = 50_000

#: Groups x genes that are kept apart.
_MOST_SUMS = 20_000_000

_QUANTILES = 101
_BINS = 20
_MOST_ABOVE_TREND = 10.0
#: Counts of a gene in a batch that make its logarithm worth comparing with other batches.
_ENOUGH = 10.0


@dataclass(frozen=True)
class Profile:
    """What is learnt of a screen.

    Attributes
    ----------
    source
        The file.
    mode
        "counts": negative binomial around a share of the library; "continuous": normal.
    genes
        (g,) their names.
    mean
        (g,) counts: share of the total, summing to 1; continuous: the mean.
    spread
        (g,) counts: dispersion phi, variance = mean + phi mean^2; continuous: standard deviation within a batch.
    batch_spread
        (g,) standard deviation between batches, counts: of the log share; continuous: of the mean.
    depth, depth_spread
        Median total of a cell, and standard deviation of the log total between batches (0 for continuous values).
    library
        (101,) quantiles of the log total about its batch's median.
    notes
        What could not be learnt, and what was done in its place.
    """

    source: str
    mode: Mode
    genes: Strings
    mean: F64
    spread: F64
    batch_spread: F64
    depth: float
    depth_spread: float
    library: F64
    notes: tuple[str, ...] = field(default=())


def fit_profile(
    path: Path | str,
    roles: Roles,
    *,
    layer: str | None = None,
    scale: str | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Learn means, dispersions, library sizes and batch shifts from a screen, in one pass over at most 50,000 cells.

    With N_i the total of cell i, the dispersion of gene g comes from 1 + phi_g = sum_c sum_i (x_ig^2 - x_ig) / sum_c
    [p^2]_cg sum_i N_i^2 over groups c of cells of one batch and one perturbation, where [p^2]_cg = sum_{i != j}
    x_ig x_jg / sum_{i != j} N_i N_j is unbiased for the squared share. Its shift between batches comes from tau_g^2 =
    the variance over the batches of its log share minus what sampling explains of it. Both are drawn towards their
    trend with the mean, the more the less a gene tells by itself. Of screens with very many groups the controls
    alone tell the dispersion.

    Parameters
    ----------
    path
        .h5ad file or .zarr folder.
    roles
        Which column says what. Without a batch column no batch shifts are learnt.
    layer, scale
        As for `open_screen`.
    progress
        Called with (cells done, cells, text).

    Raises
    ------
    InputError
        The file or a column cannot be read, or the values are neither counts nor continuous.
    """
    path = Path(path)
    with open_screen(path, roles, layer=layer, scale=scale) as screen:
        if screen.scale not in ("counts", "continuous"):
            layers = screen.layers_of_counts()
            raise InputError(
                f"{path}: the values of {screen.where} are {screen.scale} ({screen.scale_note})",
                remedy=f"name a layer of counts: {layers[0]}" if layers else "give a screen of counts, or of z-scores",
            )
        notes = []
        samples = screen.samples
        rows = np.arange(screen.n)
        if len(rows) > _MOST_CELLS:
            rows = np.linspace(0, len(rows) - 1, _MOST_CELLS).astype(np.int64)
            notes.append(f"{_MOST_CELLS:,} samples, spread over the file, are looked at")
        if roles.batch is None:
            notes.append("no batch column: no shifts between batches are learnt")
        batch, label = samples.batch[rows], samples.perturbation[rows]
        control = samples.is_control[rows]
        pair, group = np.unique(np.stack([batch, label]), axis=1, return_inverse=True)
        if pair.shape[1] * screen.n_genes > _MOST_SUMS:
            if control.any():
                notes.append("dispersions are those of the controls")
            pair, group = np.unique(np.stack([batch, ~control]), axis=1, return_inverse=True)
            for_spread = pair[1] == 0 if control.any() else np.ones(pair.shape[1], dtype=bool)
        else:
            for_spread = np.ones(pair.shape[1], dtype=bool)
        sums = _Sums(screen, rows, group.ravel().astype(np.int64), pair[0], for_spread, progress)
        fit = _fit_counts if screen.scale == "counts" else _fit_continuous
        return fit(screen, batch, sums, notes)


class _Sums:
    """Sums over the cells of each group.

    Attributes
    ----------
    batch_of, for_spread
        (k,) batch of each group, and whether its cells are alike, so that they tell the spread.
    n, totals, x, xx
        Cells of each group (k,), total of each cell (n,), sums of values and of their squares (k, g).
    """

    def __init__(
        self,
        screen: Screen,
        rows: Ints,
        codes: Ints,
        batch_of: Ints,
        for_spread: Bools,
        progress: Progress | None,
    ) -> None:
        k, g = len(batch_of), screen.n_genes
        self.codes, self.batch_of, self.for_spread = codes, batch_of, for_spread
        self.n: Any = np.bincount(codes, minlength=k).astype(np.float64)
        self.totals = np.zeros(len(rows))
        self.x, self.xx = np.zeros((k, g)), np.zeros((k, g))
        for part, block in screen.blocks(rows):
            here = codes[part]
            member = sp.csr_matrix((np.ones(len(here)), (here, np.arange(len(here)))), shape=(k, len(here)))
            values: Any = block.astype(np.float64)
            self.totals[part] = np.asarray(values.sum(axis=1)).ravel()
            squares = values.multiply(values) if sp.issparse(values) else values**2
            for into, product in ((self.x, member @ values), (self.xx, member @ squares)):
                into += product.toarray() if sp.issparse(product) else product
            if progress is not None:
                progress(part.stop, len(rows), "learning from a real screen")

    def by_batch(self, values: Any) -> Any:
        """Sums over the groups of each batch that has cells: (b,) or (b, g)."""
        found, codes = np.unique(self.batch_of, return_inverse=True)
        out = np.zeros((len(found), *values.shape[1:]))
        np.add.at(out, codes, values)
        return out


def _fit_counts(screen: Screen, batch: Ints, sums: _Sums, notes: list[str]) -> Profile:
    k = len(sums.n)
    N: Any = np.bincount(sums.codes, weights=sums.totals, minlength=k)
    NN: Any = np.bincount(sums.codes, weights=sums.totals**2, minlength=k)
    if not N.sum() > 0:
        raise InputError(f"{screen.path}: no cell has a count", remedy="check the matrix that was chosen")
    # Half a count more than none: a gene that was not seen is rare, not absent.
    seen = sums.x.sum(axis=0)
    mean = np.maximum(seen, 0.5) / N.sum()

    pairs = N**2 - NN
    usable = (pairs > 0) & sums.for_spread
    square = np.maximum(sums.x[usable] ** 2 - sums.xx[usable], 0.0) / pairs[usable, None]
    signal = (square * NN[usable, None]).sum(axis=0)
    known = signal > 1e-9
    found = np.where(known, (sums.xx - sums.x)[usable].sum(axis=0) / np.where(known, signal, 1.0) - 1, 0.0)
    widened = 2 * signal * (1 + np.maximum(found, 0)) ** 2
    noise = np.where(known, (widened + seen) / np.where(known, signal, 1.0) ** 2, 1.0)
    spread = _shrunk(mean, found, noise, np.where(known, signal, 0.0), floor=1e-3)

    depths = np.log(np.maximum(sums.totals, 1.0))
    batches, codes = np.unique(batch, return_inverse=True)
    medians = np.array([np.median(depths[codes == b]) for b in range(len(batches))])
    library = np.quantile(depths - medians[codes], np.linspace(0, 1, _QUANTILES))

    batch_spread = np.zeros(len(mean))
    if len(batches) > 1:
        x, N, NN = sums.by_batch(sums.x), sums.by_batch(N), sums.by_batch(NN)
        enough = (x >= _ENOUGH).all(axis=0)
        logs = np.log(np.where(enough, x, 1.0))
        # Relative to the typical gene, not to the total, which one abundant gene can move.
        logs -= np.median((logs - logs.mean(axis=0))[:, enough], axis=1)[:, None] if enough.any() else 0.0
        sampling = (1 / np.maximum(x, _ENOUGH) + spread * (NN / N**2)[:, None]).mean(axis=0)
        between = logs.var(axis=0, ddof=1) - sampling
        if enough.any():
            # From what is typical: doubt that grew with the estimate itself would cut off the large ones.
            doubt = 2 * (max(float(between[enough].mean()), 0.0) + sampling) ** 2 / (len(batches) - 1)
            weight = np.where(enough, 1 / np.maximum(doubt, 1e-12), 0.0)
            batch_spread = np.sqrt(_shrunk(mean, between, doubt, weight, floor=0.0))
        else:
            notes.append("no gene has enough counts in every batch: no shifts between batches are learnt")
    return Profile(
        source=str(screen.path),
        mode="counts",
        genes=screen.genes,
        mean=mean / mean.sum(),
        spread=spread,
        batch_spread=batch_spread,
        depth=float(np.median(sums.totals)),
        depth_spread=float(medians.std(ddof=1)) if len(medians) > 1 else 0.0,
        library=library,
        notes=tuple(notes),
    )


def _fit_continuous(screen: Screen, batch: Ints, sums: _Sums, notes: list[str]) -> Profile:
    used = (sums.n > 1) & sums.for_spread
    if not used.any():
        raise InputError(f"{screen.path}: no batch has two samples", remedy="name another batch column")
    n, x = sums.n[used, None], sums.x[used]
    within = np.maximum((sums.xx[used] - x**2 / n).sum(axis=0) / (n - 1).sum(), 0.0)
    batch_spread = np.zeros(x.shape[1])
    size = sums.by_batch(sums.n)[:, None]
    if len(size) > 1:
        between = (sums.by_batch(sums.x) / size).var(axis=0, ddof=1) - within * (1 / size).mean()
        batch_spread = np.sqrt(np.maximum(between, 0.0))
    return Profile(
        source=str(screen.path),
        mode="continuous",
        genes=screen.genes,
        mean=sums.x.sum(axis=0) / sums.n.sum(),
        spread=np.sqrt(within),
        batch_spread=batch_spread,
        depth=0.0,
        depth_spread=0.0,
        library=np.zeros(_QUANTILES),
        notes=tuple(notes),
    )


def _shrunk(mean: F64, found: F64, doubt: F64, weight: F64, *, floor: float) -> F64:
    """Draw estimates towards their trend with the mean, by how doubtful each is.

    Parameters
    ----------
    found, doubt
        (g,) estimates and their variances.
    weight
        (g,) weight of each in the trend; 0: no estimate, takes the trend.
    """
    usable = weight > 0
    if not usable.any():
        return np.full(len(mean), floor)
    edges = np.unique(np.quantile(np.log(mean[usable]), np.linspace(0, 1, _BINS + 1)))
    bins = np.clip(np.searchsorted(edges, np.log(mean), "right") - 1, 0, max(len(edges) - 2, 0))
    sums = np.bincount(bins, np.where(usable, weight * found, 0.0), minlength=max(len(edges) - 1, 1))
    weights = np.bincount(bins, weight, minlength=len(sums))
    overall = max(float(sums.sum() / weights.sum()), floor)
    # A bin with little to say leans on all of them.
    variances = np.bincount(bins, weight**2 * np.where(usable, doubt, 0.0), minlength=len(sums))
    variances = variances / np.maximum(weights, 1e-140) ** 2
    share = np.where(weights > 0, overall**2 / (overall**2 + variances + 1e-300), 0.0)
    levels = share * np.maximum(sums / np.maximum(weights, 1e-300), 0.0) + (1 - share) * overall
    trend = np.maximum(levels[bins], max(floor, 1e-12))
    relative, variance = found / trend - 1, doubt / trend**2
    sure = usable & (variance < 1)
    within = np.clip(relative[sure], -1.0, _MOST_ABOVE_TREND) ** 2 - variance[sure]
    prior = 0.25 if sure.sum() < 10 else max(0.05, float(within.mean()))
    # The root keeps the genes as different from each other as they are (Louis 1984); their best guesses are too alike.
    pull = np.where(usable, np.sqrt(prior / (prior + variance)), 0.0)
    # A few extreme cells must not make a gene that varies as no gene does.
    out: F64 = np.maximum(trend * np.clip(1 + pull * relative, 0.0, _MOST_ABOVE_TREND), floor)
    return out
