"""The screen of the demonstration: Norman et al. 2019, prepared from the file that PerturBench publishes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from txeval.compute.arrays import F64
from txeval.data.locate import Progress, fetch, find_file, whole_or_nothing
from txeval.data.roles import Roles
from txeval.data.simulate import CONTROL_LABEL, relations_folder, simulate_screen
from txeval.errors import InputError

__all__ = ["DemoScreen", "demo_screen", "prepare_norman", "recover_counts"]

NORMAN_FILE = "norman2019_k562_crispra_500hvg.h5ad"
_DATASET = "norman19"
#: The dimensions of an intact source; the cells of Norman et al. among its 5,961.
_SHAPE = (3375, 500)


@dataclass(frozen=True)
class DemoScreen:
    """The screen of the demonstration and how it came here.

    Attributes
    ----------
    path, roles, layer
        Arguments of `txeval.data.open_screen`.
    min_counts
        Smallest total count to keep. 0: the totals over 500 genes say nothing about the cells, which their
        publishers have filtered on all genes.
    how
        `found` as it is, `prepared` from the published file, `downloaded` and then prepared, or `simulated`.
    note
        One line on it for every output; begins with "SIMULATED" where it is no real screen.
    relations
        Folder of the known relationships of a simulated screen; None: the databases of the benchmark.
    """

    path: Path
    how: Literal["found", "prepared", "downloaded", "simulated"]
    note: str
    roles: Roles
    layer: str | None = None
    min_counts: float = 0
    relations: Path | None = None


def demo_screen(folder: Path, progress: Progress | None = None) -> DemoScreen:
    """Get the screen of the demonstration: Norman 2019, or a simulated one where it cannot be had.

    Parameters
    ----------
    folder
        Where a screen that has to be prepared or simulated is written.
    progress
        Called with (done, total, text) while something is downloaded or simulated.

    Raises
    ------
    InputError
        For a data file with wrong bytes, or a folder that cannot be written. That nothing can be downloaded is no
        error: the screen is then simulated, and `note` says why.
    """
    roles = Roles(perturbation="perturbation", control=("control",), batch="gem_group")
    found = find_file(NORMAN_FILE)
    if found is not None:
        return DemoScreen(found, "found", f"Norman 2019, found at {found}", roles, layer="counts")
    source = find_file("perturbench-devel")
    how: Literal["prepared", "downloaded"] = "prepared"
    if source is None:
        try:
            source = fetch("perturbench-devel", progress=progress)
            how = "downloaded"
        except InputError as why:
            out = folder / "simulated_screen.h5ad"
            simulate_screen(out, progress=progress)
            return DemoScreen(
                out,
                "simulated",
                f"SIMULATED screen, not real data: {why.problem}",
                Roles(perturbation="perturbation", control=(CONTROL_LABEL,), batch="batch", target_gene="gene"),
                relations=relations_folder(out),
            )
    out = folder / NORMAN_FILE
    prepare_norman(source, out)
    return DemoScreen(out, how, f"Norman 2019, prepared from {source}", roles, layer="counts")


def prepare_norman(source: Path | str, out: Path | str) -> Path:
    """Prepare the Norman 2019 screen from the file that PerturBench publishes (`devel.h5ad`).

    Keeps the cells of `obs.dataset` "norman19"; adds `obs` columns `control` (bool), `n_perturbed_genes` and
    `gem_group` ("gemgroup_1" .. "gemgroup_8", from the suffix of the barcode) and the layer `counts`, recovered
    by `recover_counts`. X is the published one, as float32.

    Returns
    -------
    Path
        `out`, which is written whole or not at all.

    Raises
    ------
    InputError
        For a file that is not the published one.
    """
    import anndata

    source, out = Path(source), Path(out)
    remedy = "give the published devel.h5ad of PerturBench, or delete a broken copy so that it is downloaded again"
    if not source.is_file():
        raise InputError(f"{source} does not exist", remedy=remedy)
    try:
        whole = anndata.read_h5ad(source)
    except Exception as why:  # h5py and anndata raise many kinds for a broken file
        raise InputError(f"{source} cannot be read as h5ad: {why}", remedy=remedy) from why
    absent = [name for name in ("dataset", "perturbation", "condition") if name not in whole.obs]
    if absent:
        raise InputError(f"{source} has no obs column {', '.join(absent)}", remedy=remedy)
    cells = whole[(whole.obs["dataset"] == _DATASET).to_numpy()].copy()
    if cells.shape != _SHAPE:
        raise InputError(
            f"{source} has {cells.n_obs:,} cells x {cells.n_vars:,} genes of {_DATASET}, "
            f"not {_SHAPE[0]:,} x {_SHAPE[1]:,}",
            remedy=remedy,
        )
    suffix = cells.obs_names.to_series().str.extract(r"-(\d+)$", expand=False)
    if suffix.isna().any():
        raise InputError(f"{source}: barcode {suffix.index[suffix.isna()][0]!r} has no GEM group suffix", remedy=remedy)
    label = cells.obs["perturbation"].astype(str)
    obs = cells.obs.drop(columns=["dose", "condition_cell_type"], errors="ignore")
    for name in obs.columns:
        if obs[name].dtype == "category":
            obs[name] = obs[name].cat.remove_unused_categories()
    obs["control"] = (label == "control").to_numpy()
    obs["n_perturbed_genes"] = np.where(label == "control", 0, label.str.count(r"\+") + 1)
    obs["gem_group"] = ("gemgroup_" + suffix).astype("category").to_numpy()
    expression = sp.csr_matrix(cells.X)
    expression.sort_indices()
    screen = anndata.AnnData(
        X=expression.astype(np.float32),
        obs=obs,
        var=cells.var[["means", "dispersions", "dispersions_norm"]],
        layers={"counts": recover_counts(expression, name=str(source))},
    )
    with whole_or_nothing(out) as part:
        screen.write_h5ad(part, compression="gzip")
    return out


def recover_counts(log_normalised: Any, *, name: str = "the matrix", tolerance: float = 0.02) -> sp.csr_matrix:
    """Recover integer counts from log1p of depth-normalised counts.

    In each sample expm1(x) = count * unit with one unit per sample. The unit is the smallest positive value
    divided by the smallest whole number (1 .. 20) that makes every count of the sample whole. Counts with a
    common divisor come out divided by it: nothing in the values tells them apart.

    Parameters
    ----------
    log_normalised
        (n, g) sparse or dense.
    tolerance
        How far a recovered count may be from a whole number.

    Returns
    -------
    csr_matrix
        (n, g) float32, whole numbers.

    Raises
    ------
    InputError
        For negative values, and where a sample has no such unit.
    """
    matrix = sp.csr_matrix(log_normalised, dtype=np.float64, copy=True)
    matrix.eliminate_zeros()
    if not np.isfinite(matrix.data).all() or (matrix.data < 0).any():
        raise InputError(f"{name} has values that are negative or not finite", remedy="give log1p of counts")
    values: F64 = np.expm1(matrix.data)
    lengths = np.diff(matrix.indptr)
    filled = np.flatnonzero(lengths)
    smallest = np.ones(matrix.shape[0])
    smallest[filled] = np.minimum.reduceat(values, matrix.indptr[filled]) if len(filled) else 1.0
    ratio = values / np.repeat(smallest, lengths)
    row = np.repeat(np.arange(matrix.shape[0]), lengths)
    counts = np.zeros_like(values)
    open_rows = lengths > 0
    for divisor in range(1, 21):
        todo = open_rows[row]
        scaled = ratio[todo] * divisor
        whole = np.round(scaled)
        worst = np.zeros(matrix.shape[0])
        np.maximum.at(worst, row[todo], np.abs(scaled - whole))
        done = open_rows & (worst <= tolerance)
        kept = done[row[todo]]
        counts[np.flatnonzero(todo)[kept]] = whole[kept]
        open_rows &= ~done
        if not open_rows.any():
            break
    if open_rows.any():
        raise InputError(
            f"{name}: {int(open_rows.sum()):,} samples are no depth-normalised counts, the first is row "
            f"{int(open_rows.argmax())}",
            remedy="give log1p of counts divided by one number per sample",
        )
    return sp.csr_matrix((counts.astype(np.float32), matrix.indices, matrix.indptr), shape=matrix.shape)
