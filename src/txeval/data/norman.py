"""The screen of the demonstration: Norman et al. 2019, prepared from the file that PerturBench publishes."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from txeval.compute.arrays import F64
from txeval.data.locate import Progress, fetch, find_file, whole_or_nothing
from txeval.data.roles import Roles
from txeval.data.simulate import CONTROL_LABEL, relations_folder, simulate_screen
from txeval.data.writing import format_of, smallest_type
from txeval.errors import InputError, unknown

__all__ = ["DemoScreen", "demo_screen", "prepare_devel", "prepare_norman", "recover_counts"]

NORMAN_FILE = "norman2019_k562_crispra_500hvg.h5ad"


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


@dataclass(frozen=True)
class _Cut:
    """The cells of one screen in the published file."""

    shape: tuple[int, int]
    #: Pattern of a cell's name that says its batch, the column that gets it, and what stands before it.
    pattern: str
    column: str
    prefix: str


_CUTS = {
    "norman19": _Cut((3375, 500), r"-(\d+)$", "gem_group", "gemgroup_"),
    "mcfaline23": _Cut((2586, 500), r"^(\w\w)\w_", "plate_row", ""),
}


def prepare_norman(source: Path | str, out: Path | str) -> Path:
    """Prepare the Norman 2019 screen from the file that PerturBench publishes: `prepare_devel` of "norman19"."""
    return prepare_devel(source, out, "norman19")


def prepare_devel(source: Path | str, out: Path | str, dataset: str, *, uns: Mapping[str, Any] | None = None) -> Path:
    """Prepare one of the two screens in the file that PerturBench publishes (`devel.h5ad`).

    Keeps the cells of `obs.dataset`; adds `obs` columns `control` (bool), `n_perturbed_genes` and the batch, from the
    name of the cell: `gem_group` ("gemgroup_1" .. "gemgroup_8") or `plate_row` ("01" .. "12"); and the layer `counts`,
    recovered by `recover_counts`. X is the published one, as float32.

    Parameters
    ----------
    out
        .h5ad file, or .zarr folder.
    dataset
        "norman19" (Norman et al. 2019) or "mcfaline23" (McFaline-Figueroa et al. 2024).
    uns
        Kept in the file.

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
    if dataset not in _CUTS:
        raise unknown("screen", dataset, _CUTS, where=str(source))
    cut = _CUTS[dataset]
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
    cells = whole[(whole.obs["dataset"] == dataset).to_numpy()].copy()
    if cells.shape != cut.shape:
        raise InputError(
            f"{source} has {cells.n_obs:,} cells x {cells.n_vars:,} genes of {dataset}, "
            f"not {cut.shape[0]:,} x {cut.shape[1]:,}",
            remedy=remedy,
        )
    batch = cells.obs_names.to_series().str.extract(cut.pattern, expand=False)
    if batch.isna().any():
        raise InputError(
            f"{source}: cell {batch.index[batch.isna()][0]!r} has no {cut.column} in its name", remedy=remedy
        )
    label = cells.obs["perturbation"].astype(str)
    obs = cells.obs.drop(columns=["dose", "condition_cell_type"], errors="ignore")
    for name in obs.columns:
        if obs[name].dtype == "category":
            obs[name] = obs[name].cat.remove_unused_categories()
    obs["control"] = (label == "control").to_numpy()
    obs["n_perturbed_genes"] = np.where(label == "control", 0, label.str.count(r"\+") + 1)
    obs[cut.column] = (cut.prefix + batch).astype("category").to_numpy()
    expression = sp.csr_matrix(cells.X)
    expression.sort_indices()
    counts = recover_counts(expression, name=str(source))
    screen = anndata.AnnData(
        X=expression.astype(np.float32),
        obs=obs,
        var=cells.var[["means", "dispersions", "dispersions_norm"]],
        layers={"counts": counts.astype(smallest_type(counts.data))},
        uns=dict(uns or {}),
    )
    if format_of(out) == "h5ad":
        with whole_or_nothing(out) as part:
            screen.write_h5ad(part, compression="gzip")
    else:
        _write_zarr(screen, out)
    return out


def _write_zarr(screen: Any, out: Path) -> None:
    """Write a small screen as Zarr v3, whole or not at all."""
    import anndata

    part = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with anndata.settings.override(zarr_write_format=3), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of settings and text types that are to change in Zarr
            screen.write_zarr(part)
        if out.is_dir():
            shutil.rmtree(out)
        part.replace(out)
    except OSError as why:
        raise InputError(f"cannot write {out}: {why.strerror or why}", remedy="name another folder") from why
    finally:
        shutil.rmtree(part, ignore_errors=True)


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
