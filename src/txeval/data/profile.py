"""What a real screen's values look like, gene by gene and batch by batch, for simulating another like it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from txeval.compute.arrays import F64, Bools, Ints, Strings
from txeval.data.locate import Progress
from txeval.data.matrix import open_store
from txeval.data.roles import Roles
from txeval.data.screen import Screen, open_screen
from txeval.errors import InputError

__all__ = ["Mode", "Profile", "fit_profile"]

Mode = Literal["counts", "continuous"]

#: Cells that are looked at, spread evenly over the file; more would not change the moments visibly.
_MOST_CELLS = 50_000

#: Where there are fewer controls than this, all cells are taken, at the cost of some spread from the perturbations.
_FEW_CONTROLS = 200

_QUANTILES = 101
_BINS = 20
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
    *,
    perturbation: str | None = None,
    control: tuple[str, ...] = (),
    batch: str | None = None,
    layer: str | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Learn means, dispersions, library sizes and batch shifts from a screen, in one pass over at most 50,000 cells.

    Moments within each batch, of the controls where there are 200 of them: with N_i the total of cell i and p_bg the
    share of gene g in batch b, phi_g = sum_b sum_i [(x_ig - N_i p_bg)^2 - N_i p_bg] / sum_b sum_i (N_i p_bg)^2, and
    tau_g^2 = the variance of log p_bg over the batches minus what sampling explains of it. Both are drawn towards
    their trend with the mean, the more the less a gene tells by itself.

    Parameters
    ----------
    path
        .h5ad file or .zarr folder.
    perturbation, control
        Column of labels and which of them are controls; without them all cells are taken.
    batch
        Column of batches; without it, no batch shifts are learnt.
    layer
        Layer to read in place of X.
    progress
        Called with (cells done, cells, text).

    Raises
    ------
    InputError
        The file or a column cannot be read, or the values are neither counts nor continuous.
    """
    path = Path(path)
    if bool(perturbation) != bool(control):
        raise InputError(
            "the perturbation column and the control label go together",
            remedy="give both, or neither (all cells are then taken)",
        )
    groups, is_control = _columns(path, perturbation, control, batch)
    # Without labels any column serves as the one of labels: only the matrix is wanted here.
    store = open_store(path)
    try:
        column = perturbation or batch or next(iter(store.columns("obs")), None)
    finally:
        store.close()
    if column is None:
        raise InputError(f"{path}: obs has no column", remedy="give a screen with obs columns")
    with open_screen(path, Roles(column, control=control), layer=layer) as screen:
        if screen.scale not in ("counts", "continuous"):
            layers = screen.layers_of_counts()
            raise InputError(
                f"{path}: the values of {screen.where} are {screen.scale} ({screen.scale_note})",
                remedy=f"name a layer of counts: {layers[0]}" if layers else "give a screen of counts, or of z-scores",
            )
        notes = []
        rows = np.arange(screen.n)
        if is_control is not None:
            chosen = np.flatnonzero(is_control[screen.kept])
            if len(chosen) >= _FEW_CONTROLS:
                rows = chosen
            else:
                notes.append(f"{len(chosen)} controls are few: all cells are taken, perturbed or not")
        if len(rows) > _MOST_CELLS:
            rows = rows[np.linspace(0, len(rows) - 1, _MOST_CELLS).astype(np.int64)]
            notes.append(f"{_MOST_CELLS:,} cells, spread over the file, are looked at")
        codes: Ints = np.zeros(len(rows), dtype=np.int64)
        if groups is None:
            notes.append("no batch column: no shifts between batches are learnt")
        else:
            codes = np.unique(groups[screen.kept][rows], return_inverse=True)[1].astype(np.int64)
        fit = _fit_counts if screen.scale == "counts" else _fit_continuous
        return fit(screen, rows, codes, notes, progress)


def _columns(
    path: Path, perturbation: str | None, control: tuple[str, ...], batch: str | None
) -> tuple[Any, Bools | None]:
    store = open_store(path)
    try:
        groups = None if batch is None else store.column("obs", batch, role="batch column").astype(str).to_numpy()
        if perturbation is None:
            return groups, None
        labels = store.column("obs", perturbation, role="perturbation column").astype(str).to_numpy()
    finally:
        store.close()
    return groups, np.isin(labels, control)


class _Sums:
    """Sums over the cells of each batch."""

    def __init__(self, screen: Screen, rows: Ints, codes: Ints, progress: Progress | None) -> None:
        n_batches, g = int(codes.max()) + 1, screen.n_genes
        self.n = np.bincount(codes, minlength=n_batches).astype(np.float64)
        self.totals = np.zeros(len(rows))
        self.x, self.xx, self.nx = (np.zeros((n_batches, g)) for _ in range(3))
        for part, block in screen.blocks(rows):
            here = codes[part]
            member = sp.csr_matrix((np.ones(len(here)), (here, np.arange(len(here)))), shape=(n_batches, len(here)))
            values: Any = block.astype(np.float64)
            totals = np.asarray(values.sum(axis=1)).ravel()
            self.totals[part] = totals
            squares = values.multiply(values) if sp.issparse(values) else values**2
            for into, product in ((self.x, member @ values), (self.xx, member @ squares)):
                into += product.toarray() if sp.issparse(product) else product
            weighted = member @ sp.diags(totals) @ values
            self.nx += weighted.toarray() if sp.issparse(weighted) else weighted
            if progress is not None:
                progress(part.stop, len(rows), "learning from a real screen")


def _fit_counts(screen: Screen, rows: Ints, codes: Ints, notes: list[str], progress: Progress | None) -> Profile:
    sums = _Sums(screen, rows, codes, progress)
    N = np.bincount(codes, weights=sums.totals, minlength=len(sums.n))
    NN = np.bincount(codes, weights=sums.totals**2, minlength=len(sums.n))
    if not N.sum() > 0:
        raise InputError(f"{screen.path}: no cell has a count", remedy="check the matrix that was chosen")
    used = (N > 0) & (sums.n > 1)
    x, xx, nx, n, N, NN = (item[used] for item in (sums.x, sums.xx, sums.nx, sums.n, N, NN))
    share = x / N[:, None]
    mean = x.sum(axis=0) / N.sum()
    # Half a count more than none: a gene that was not seen is rare, not absent.
    mean = np.maximum(mean, 0.5 / N.sum())
    signal = (share**2 * NN[:, None]).sum(axis=0)
    excess = ((xx - 2 * share * nx + share**2 * NN[:, None]) * (n / (n - 1))[:, None] - x).sum(axis=0)
    noise = (2 * signal + x.sum(axis=0)) / np.maximum(signal, 1e-300) ** 2
    spread = _shrunk(mean, excess / np.maximum(signal, 1e-300), noise, signal, floor=1e-3)
    depths = np.log(np.maximum(sums.totals, 1.0))
    medians = np.array([np.median(depths[codes == b]) for b in np.flatnonzero(used)])
    kept = used[codes]
    place = np.cumsum(used) - 1
    library = np.quantile(depths[kept] - medians[place[codes[kept]]], np.linspace(0, 1, _QUANTILES))
    batch_spread = np.zeros(len(mean))
    if len(n) > 1:
        enough = (x >= _ENOUGH).all(axis=0)
        with np.errstate(divide="ignore"):
            logs = np.where(enough, np.log(np.where(x > 0, share, 1.0)), 0.0)
        sampling = 1 / np.maximum(x, _ENOUGH) + spread * (NN / N**2)[:, None]
        found = logs.var(axis=0, ddof=1) - sampling.mean(axis=0)
        doubt = 2 * (np.maximum(found, 0) + sampling.mean(axis=0)) ** 2 / (len(n) - 1)
        weight = np.where(enough, 1 / sampling.mean(axis=0), 0.0)
        if enough.any():
            batch_spread = np.sqrt(_shrunk(mean, found, doubt, weight, floor=0.0))
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


def _fit_continuous(screen: Screen, rows: Ints, codes: Ints, notes: list[str], progress: Progress | None) -> Profile:
    sums = _Sums(screen, rows, codes, progress)
    used = sums.n > 1
    if not used.any():
        raise InputError(f"{screen.path}: no batch has two samples", remedy="name another batch column")
    n, x, xx = sums.n[used, None], sums.x[used], sums.xx[used]
    within = np.maximum((xx - x**2 / n).sum(axis=0) / (n - 1).sum(), 0.0)
    batch_spread = np.zeros(x.shape[1])
    if len(n) > 1:
        between = (x / n).var(axis=0, ddof=1) - within * (1 / n).mean()
        batch_spread = np.sqrt(np.maximum(between, 0.0))
    return Profile(
        source=str(screen.path),
        mode="continuous",
        genes=screen.genes,
        mean=x.sum(axis=0) / n.sum(),
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
    edges = np.unique(np.quantile(np.log(mean[usable]), np.linspace(0, 1, _BINS + 1)))
    bins = np.clip(np.searchsorted(edges, np.log(mean), "right") - 1, 0, max(len(edges) - 2, 0))
    sums = np.bincount(bins, np.where(usable, weight * found, 0.0), minlength=max(len(edges) - 1, 1))
    weights = np.bincount(bins, weight, minlength=len(sums))
    overall = max(float(sums.sum() / weights.sum()), floor)
    # A bin with little to say leans on all of them.
    share = weights / (weights + 0.02 * weights.sum())
    levels = share * np.maximum(sums / np.maximum(weights, 1e-300), 0.0) + (1 - share) * overall
    trend = np.maximum(levels[bins], max(floor, 1e-12))
    relative, variance = found / trend - 1, doubt / trend**2
    sure = usable & (variance < 1)
    prior = 0.25 if sure.sum() < 10 else max(0.05, float(np.median(relative[sure] ** 2 / 0.455 - variance[sure])))
    pull = np.where(usable, prior / (prior + variance), 0.0)
    out: F64 = np.maximum(trend * (1 + pull * relative), floor)
    return out
