"""Loom files (HDF5, genes x cells): https://linnarssonlab.org/loompy/format/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from txeval.data.matrix import DenseMatrix, Matrix, Store, reading
from txeval.data.readers.tables import ByColumns, TableStore, decoded, labels_frame
from txeval.errors import InputError, nearest

__all__ = ["open_file"]

#: Attributes that hold the names, in the order in which they are looked for (loompy, velocyto, anndata, Seurat).
_SAMPLE_NAMES = ("CellID", "cell_id", "obs_names", "cell_names", "barcode", "barcodes", "Barcode")
_GENE_NAMES = ("Gene", "var_names", "gene_names", "gene_symbol", "Accession", "gene_ids", "gene_id")


def open_file(path: Path, file: h5py.File) -> Store:
    """Open a loom file; samples are its columns.

    Raises
    ------
    InputError
        There are no names of genes, or the parts do not fit together.
    """
    with reading(path, "the loom file"):
        array = file["matrix"]
        if not isinstance(array, h5py.Dataset) or array.ndim != 2:
            raise InputError(f"{path}: /matrix is not a matrix, so this is no loom file", remedy="write it with loompy")
        g, n = (int(size) for size in array.shape)
        notes: list[str] = []
        cells, tables = _attributes(path, file, "col_attrs", n, "cell", notes)
        genes, _ = _attributes(path, file, "row_attrs", g, "gene", notes)
        gene_column = next((name for name in _GENE_NAMES if name in genes), None)
        if gene_column is None:
            listed = ", ".join(genes) or "none"
            raise InputError(
                f"{path}: the genes have no names: among the row attributes ({listed}) is none of"
                f" {', '.join(_GENE_NAMES)}",
                remedy="add the row attribute Gene"
                + (f" (rename {close[0]!r}?)" if (close := nearest("Gene", genes)) else ""),
            )
        sample_column = next((name for name in _SAMPLE_NAMES if name in cells), None)
        if sample_column is None:
            notes.append(f"the cells have no names (no {', '.join(_SAMPLE_NAMES[:3])}): numbered from cell_1")
            sample_names: Any = [f"cell_{i + 1}" for i in range(n)]
        else:
            sample_names = [str(name) for name in cells.pop(sample_column)]
        gene_names = [str(name) for name in genes.pop(gene_column)]
        matrices: dict[str, Matrix] = {"X": ByColumns(array, path, "X")}
        for name, layer in file["layers"].items() if "layers" in file else ():
            if layer.shape == array.shape and layer.dtype.kind in "biuf":
                matrices[f"layers/{name}"] = ByColumns(layer, path, f"layers/{name}")
            else:
                notes.append(f"layer {name!r} is left out: its shape is not that of /matrix")
    for name, table in tables.items():
        matrices[f"obsm/{name}"] = DenseMatrix(table, path, f"obsm/{name}")
    return TableStore(
        path,
        "loom",
        labels_frame(sample_names, cells, path, "column attribute"),
        labels_frame(gene_names, genes, path, "row attribute"),
        matrices,
        notes=notes,
        close=file.close,
    )


def _attributes(
    path: Path, file: h5py.File, group: str, length: int, axis: str, notes: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Attributes of one axis: one value for each, and (cells only) tables of several numbers for each."""
    columns: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    for name, element in file[group].items() if group in file else ():
        if not isinstance(element, h5py.Dataset) or not element.shape or element.shape[0] != length:
            shape = getattr(element, "shape", "a group")
            raise InputError(
                f"{path}: attribute {group}/{name} is not one value for each of the {length:,} {axis}s (shape {shape})",
                remedy="the file is damaged or was put together wrongly: make it again with loompy",
            )
        if element.ndim == 1:
            columns[name] = decoded(element[:])
        elif element.ndim == 2 and element.dtype.kind in "iuf" and group == "col_attrs":
            tables[name] = element
        else:
            notes.append(f"attribute {group}/{name} is left out: it has {element.ndim} dimensions")
    return columns, tables
