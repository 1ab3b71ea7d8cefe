"""HDF5 files of Cell Ranger: `/matrix` (version 3 on) and one group for a genome (version 2).

Layout: https://www.10xgenomics.com/support/software/cell-ranger/latest/analysis/outputs/cr-outputs-h5-matrices
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from txeval.compute.arrays import Ints, row_blocks
from txeval.data.matrix import CsrMatrix, Matrix, Store, numeric_type, reading
from txeval.data.readers.tables import SomeColumns, TableStore, decoded, labels_frame
from txeval.errors import InputError

__all__ = ["FeatureStore", "feature_store", "is_tenx", "open_file"]

EXPRESSION = "Gene Expression"
GUIDES = "CRISPR Guide Capture"

_V2 = {"barcodes", "data", "genes", "gene_names", "indices", "indptr", "shape"}
_V3 = {"barcodes", "data", "features", "indices", "indptr", "shape"}
_AGAIN = "give filtered_feature_bc_matrix.h5 of Cell Ranger as it is"


def is_tenx(file: h5py.File) -> bool:
    """Whether an HDF5 file is of Cell Ranger: a group /matrix with barcodes, or groups of genomes with barcodes."""
    if "matrix" in file:
        return isinstance(file["matrix"], h5py.Group)
    groups = [group for group in file.values() if isinstance(group, h5py.Group)]
    return bool(groups) and all({"barcodes", "indptr"} <= set(group) for group in groups)


def open_file(path: Path, file: h5py.File) -> Store:
    """Open a matrix of Cell Ranger. X is the gene expression; guide counts become calls (see `FeatureStore`).

    Raises
    ------
    InputError
        A part is missing, there are several genomes (version 2), or the parts do not fit together.
    """
    with reading(path, "the 10x file"):
        if "matrix" in file:
            group, kind, wanted = file["matrix"], "10x HDF5 (version 3)", _V3
        else:
            genomes = list(file)
            if len(genomes) != 1:
                raise InputError(
                    f"{path}: holds {len(genomes)} genomes ({', '.join(genomes)}), each with a matrix of its own",
                    remedy="convert the one that you mean: scanpy.read_10x_h5(FILE, genome=NAME).write_h5ad(...)",
                )
            group, kind, wanted = file[genomes[0]], "10x HDF5 (version 2)", _V2
        absent = sorted(wanted - set(group))
        if absent:
            raise InputError(
                f"{path}: a 10x Genomics file of an unknown version: {group.name} has no {', '.join(absent)}"
                f" (it has {', '.join(sorted(group)) or 'nothing'})",
                remedy=_AGAIN,
            )
        barcodes = [str(name) for name in decoded(group["barcodes"][:])]
        found = np.asarray(group["shape"][:]).ravel()
        if len(found) != 2:
            raise InputError(f"{path}: {group.name}/shape is {found.tolist()}, not two numbers", remedy=_AGAIN)
        g, n = int(found[0]), int(found[1])
        if "features" in group:
            features = _features(path, group["features"])
        else:
            features = {"name": decoded(group["gene_names"][:]), "gene_ids": decoded(group["genes"][:])}
        for what, length, size in (("barcodes", len(barcodes), n), ("features", len(features["name"]), g)):
            if length != size:
                raise InputError(
                    f"{path}: {length:,} {what}, but the matrix is {g:,} features x {n:,} barcodes", remedy=_AGAIN
                )
        data, indices = group["data"], group["indices"]
        numeric_type(data.dtype, path, "X")
        indptr = np.asarray(group["indptr"][:], dtype=np.int64)
        if (
            len(indptr) != n + 1
            or indptr[0] != 0
            or np.any(np.diff(indptr) < 0)
            or indptr[-1] != data.shape[0]
            or data.shape != indices.shape
        ):
            raise InputError(f"{path}: the parts of the matrix do not fit together", remedy=_AGAIN)
    # Columns of features x barcodes are rows of barcodes x features.
    matrix = CsrMatrix(indptr, indices, data, (n, g), path, "X")
    return feature_store(path, kind, barcodes, features, matrix, file.close)


def _features(path: Path, group: Any) -> dict[str, Any]:
    if not {"id", "name"} <= set(group):
        raise InputError(f"{path}: {group.name} has no id or no name (it has {', '.join(group)})", remedy=_AGAIN)
    made = {
        name: decoded(element[:])
        for name, element in group.items()
        if isinstance(element, h5py.Dataset) and element.ndim == 1 and not name.startswith("_")
    }
    renamed = {"id": "gene_ids", "feature_type": "feature_types"}
    if "gene_id" in made:  # probes, each with the gene that it is of
        renamed = {"id": "probe_ids", "gene_id": "gene_ids", "feature_type": "feature_types"}
    return {renamed.get(name, name): values for name, values in made.items()}


def feature_store(
    path: Path, kind: str, barcodes: list[str], features: Mapping[str, Any], matrix: Matrix, close: Any
) -> Store:
    """Make a store of a matrix of features of several types: X holds the gene expression.

    Parameters
    ----------
    features
        `name`, and further labels of the features; `feature_types` says which is which.
    matrix
        (barcodes, features).
    """
    labels = {name: values for name, values in features.items() if name != "name"}
    var = labels_frame([str(name) for name in features["name"]], labels, path, "feature label")
    obs = pd.DataFrame(index=pd.Index(barcodes, dtype=object))
    kinds = (
        np.array([str(kind) for kind in features["feature_types"]])
        if "feature_types" in features
        else np.array([EXPRESSION] * len(var))
    )
    notes = []
    others = {str(name): int((kinds == name).sum()) for name in np.unique(kinds) if name != EXPRESSION}
    expressed = np.flatnonzero(kinds == EXPRESSION)
    if not len(expressed):
        raise InputError(
            f"{path}: none of its {len(var):,} features is of type {EXPRESSION!r}"
            f" (there are {', '.join(others) or 'none'})",
            remedy="give the matrix that holds the gene expression",
        )
    guides = np.flatnonzero(kinds == GUIDES)
    for name, count in others.items():
        what = "the guide with the most UMIs is each cell's call, in obs guide" if name == GUIDES else "left out"
        notes.append(f"{count:,} of {len(var):,} features are of type {name!r}: not in X; {what}")
    whole = matrix
    if len(expressed) < len(var):
        matrix = SomeColumns(matrix, expressed)
    if len(guides):
        return FeatureStore(path, kind, obs, var.iloc[expressed], matrix, whole, var.iloc[guides], guides, notes, close)
    return TableStore(path, kind, obs, var.iloc[expressed], {"X": matrix}, notes=notes, close=close)


class FeatureStore(TableStore):
    """A store whose matrix also counted guides: each cell's call is the guide with the most UMIs.

    `obs` has the columns `guide` (missing where no guide was counted; the first of equals), `guide_umi`,
    `guide_umi_total`, and `guide_target` where the features say what a guide targets. They cost one pass over the
    matrix, when the first of them is read.

    Parameters
    ----------
    whole
        (barcodes, features) with the guides.
    guides
        Labels of the guides, by their names.
    where
        (m,) their columns in `whole`.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        obs: pd.DataFrame,
        var: pd.DataFrame,
        matrix: Matrix,
        whole: Matrix,
        guides: pd.DataFrame,
        where: Ints,
        notes: list[str],
        close: Any,
    ) -> None:
        super().__init__(path, kind, obs, var, {"X": matrix}, notes=notes, close=close)
        self._whole = whole
        self._guides = guides
        self._where = where
        self._target = next((name for name in ("target_gene_name", "target_gene_id") if name in guides.columns), None)
        self._called = False

    def _columns(self, frame: str) -> list[str]:
        if frame != "obs" or self._called:
            return super()._columns(frame)
        made = ["guide", "guide_umi", "guide_umi_total", *(["guide_target"] if self._target else [])]
        return [*super()._columns(frame), *made]

    def _column(self, frame: str, name: str) -> pd.Series[Any]:
        if frame == "obs" and not self._called and name not in self._frames["obs"].columns:
            self._call()
        return super()._column(frame, name)

    def _call(self) -> None:
        n = self._whole.shape[0]
        top, umi, total = np.full(n, -1), np.zeros(n), np.zeros(n)
        for part in row_blocks(n, self._whole.shape[1]):
            block = self._whole.rows(np.arange(part.start, part.stop))[:, self._where]
            counts = block.toarray() if sp.issparse(block) else np.asarray(block)
            top[part] = np.where(counts.max(axis=1) > 0, counts.argmax(axis=1), -1)
            umi[part], total[part] = counts.max(axis=1), counts.sum(axis=1)
        obs = self._frames["obs"].copy()
        names = [str(name) for name in self._guides.index]
        obs["guide"] = _categories(top, names)
        obs["guide_umi"], obs["guide_umi_total"] = umi.astype(np.int64), total.astype(np.int64)
        if self._target is not None:
            targets = [str(target) for target in self._guides[self._target]]
            obs["guide_target"] = _categories(top, targets)
        self._frames["obs"] = obs
        self._called = True


def _categories(codes: Any, names: list[str]) -> Any:
    """Labels of codes into names that may repeat; -1 is a missing label."""
    labels, moved = np.unique(np.array(names, dtype=str), return_inverse=True)
    return pd.Categorical.from_codes(np.where(codes >= 0, moved[codes], -1), categories=pd.Index(labels.tolist()))
