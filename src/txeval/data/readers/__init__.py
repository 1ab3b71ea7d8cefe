"""Formats other than AnnData, opened as the same kind of store: 10x HDF5, GCT, GCTX, loom, Matrix Market folders."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import h5py
import pandas as pd

from txeval.compute.arrays import Strings
from txeval.data.matrix import Store, reading
from txeval.data.readers import gct, loom, mtx, tenx
from txeval.data.text_table import names_column, open_table
from txeval.errors import InputError

__all__ = ["SUFFIXES", "open_foreign", "read_label_table", "stem"]

#: Endings of the files and folders that can be screens, longest first.
SUFFIXES = (
    ".mtx.gz",
    ".gct.gz",
    ".h5ad",
    ".zarr",
    ".gctx",
    ".loom",
    ".gct",
    ".mtx",
    ".h5",
)

#: First bytes of files that are often taken for screens -> what they are, and what to do.
_OTHERS = (
    (b"RDX", "an R file", "save it as AnnData in R, e.g. with anndata::write_h5ad or zellkonverter::writeH5AD"),
    (b"PAR1", "a Parquet table", "build an AnnData object of it and write it with AnnData.write_h5ad()"),
    (b"\x80\x04", "a Python pickle, which is never loaded: it can run any code", "save it with AnnData.write_h5ad()"),
    (b"\x80\x03", "a Python pickle, which is never loaded: it can run any code", "save it with AnnData.write_h5ad()"),
    (b"\x93NUMPY", "a NumPy array without labels", "build an AnnData object of it and write it with write_h5ad()"),
    (b"%PDF", "a PDF document", "give the data file itself"),
    (b"<!DOCTYPE", "a web page, not the data that its address promised", "download it again; see what the page says"),
    (b"<!doctype", "a web page, not the data that its address promised", "download it again; see what the page says"),
    (b"<html", "a web page, not the data that its address promised", "download it again; see what the page says"),
    (b"<?xml", "an XML document, often the error message of a server", "download it again; see what the file says"),
)


def stem(path: Path) -> str:
    """Name of a screen's file without the ending of its format.

    Examples
    --------
    >>> stem(Path("a/plate.v2.gct.gz")), stem(Path("screen.h5ad"))
    ('plate.v2', 'screen')
    """
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.name[: -len(suffix)]
    return path.name


def open_foreign(path: Path) -> Store | None:
    """Open an existing file or folder of one of these formats, whatever its name; None where it is of none of them.

    Raises
    ------
    InputError
        It is of one of them, but cannot be used; or of a kind that is often taken for a screen.
    """
    if path.is_dir():
        return mtx.open_folder(path)
    head = _head(path)
    if head.startswith(b"\x89HDF"):
        return _open_hdf5(path)
    for magic, what, remedy in _OTHERS:
        if head.startswith(magic):
            raise InputError(f"{path}: {what}", remedy=remedy)
    text = head.lstrip(b"\xef\xbb\xbf")
    if text.startswith(b"#1."):
        return gct.open_text(path)
    if text.startswith(b"%%MatrixMarket"):
        return mtx.open_file(path)
    return None


def _head(path: Path) -> bytes:
    """First bytes of a file, of what is in it where it is a gzip archive; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(path) as packed:
                return packed.read(64)
    except (OSError, EOFError, zlib.error):
        return b""
    return head


def _open_hdf5(path: Path) -> Store | None:
    try:
        file = h5py.File(path, "r")
    except OSError:
        return None
    try:
        with reading(path, "its contents"):
            present = set(file)
        if {"obs", "var"} <= present:
            found = None
        elif {"matrix", "row_attrs"} <= present or {"matrix", "col_attrs"} <= present:
            found = loom.open_file(path, file)
        elif tenx.is_tenx(file):
            found = tenx.open_file(path, file)
        elif "0" in present and isinstance(file["0"], h5py.Group) and "META" in file["0"]:
            found = gct.open_hdf5(path, file)
        else:
            found = None
    except BaseException:
        file.close()
        raise
    if found is None:
        file.close()
    return found


def read_label_table(path: Path, known: Strings) -> pd.DataFrame:
    """Read a table of labels: names of samples in one column, labels in the others.

    Parameters
    ----------
    known
        Names of the samples of the screen, by which that column is found; else it is the first.

    Returns
    -------
    DataFrame
        Text and numbers as they are, indexed by the names.

    Raises
    ------
    InputError
        It is no table of at least two columns (.csv, .tsv, .txt, each also with .gz).
    """
    remedy = "give a .csv or .tsv file: names of samples in the first column, labels in the others, a header line"
    if path.name.lower().removesuffix(".gz").rpartition(".")[2] not in ("csv", "tsv", "txt"):
        raise InputError(f"{path}: not a table of labels by its ending", remedy=remedy)
    if not path.is_file():
        raise InputError(f"{path}: no such file", remedy="check the path")
    table = open_table(path)
    if len(table.fields) < 2 or not table.n:
        raise InputError(f"{path}: holds {table.n:,} lines of {len(table.fields)} columns", remedy=remedy)
    number = names_column(table.head(), table.fields, pd.Index(known), path) or 0
    frame = table.frame(text=[number])
    names = frame.pop(table.fields[number])
    return frame.set_axis(names.astype(str).to_list())
