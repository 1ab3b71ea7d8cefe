"""Every kind of unusable screen gets a message that names what is wrong and what to do."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import made
import numpy as np
import pandas as pd
import pytest
import zarr

from txeval.data import Roles, open_screen
from txeval.errors import InputError

CONTROL = ("control",)
Case = tuple[Path, dict]


def good(folder: Path, name: str = "screen.h5ad", **options) -> Path:
    return made.write(made.adata(), folder / name, **options)


def changed(folder: Path, change: Callable[[ad.AnnData], object]) -> Path:
    a = made.adata()
    change(a)
    return made.write(a, folder / "screen.h5ad")


def edited(folder: Path, edit: Callable[[h5py.File], object], **options) -> Path:
    path = good(folder, **options)
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def content(folder: Path, data: bytes, name: str = "screen.h5ad") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def missing_file(folder: Path) -> Case:
    good(folder, "norman.h5ad")
    return folder / "nroman.h5ad", {}


def missing_folder(folder: Path) -> Case:
    return folder / "nowhere" / "norman.h5ad", {}


def plain_folder(folder: Path) -> Case:
    (folder / "screen.zarr").mkdir()
    return folder / "screen.zarr", {}


def cut_short(folder: Path) -> Case:
    data = good(folder, "whole.h5ad").read_bytes()
    return content(folder, data[: len(data) // 2]), {}


def cut_to_the_header(folder: Path) -> Case:
    return content(folder, good(folder, "whole.h5ad").read_bytes()[:20]), {}


def hdf5(folder: Path, *groups: str) -> Path:
    with h5py.File(folder / "screen.h5ad", "w") as file:
        for group in groups:
            file.create_group(group)
    return folder / "screen.h5ad"


def zarr_without_obs(folder: Path) -> Case:
    zarr.open_group(str(folder / "screen.zarr"), mode="w").create_group("X")
    return folder / "screen.zarr", {}


def broken_zarr(folder: Path) -> Case:
    path = good(folder, "screen.zarr")
    for name in (".zgroup", ".zmetadata"):
        (path / name).write_text("{")
    return path, {}


def without_x(a: ad.AnnData) -> None:
    a.layers["raw_counts"] = a.X
    del a.X


def labels(column: str, values: object) -> Callable[[ad.AnnData], None]:
    def change(a: ad.AnnData) -> None:
        a.obs[column] = values

    return change


def text_matrix(file: h5py.File) -> None:
    del file["X"]
    file.create_dataset("X", data=np.full((60, 12), b"high")).attrs["encoding-type"] = "array"


def value(x: float) -> Callable[[ad.AnnData], None]:
    def change(a: ad.AnnData) -> None:
        a.X[8, 5] = x

    return change


def drop(*keys: str) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        for key in keys:
            del file[key]

    return edit


def short_pointers(file: h5py.File) -> None:
    pointers = file["X/indptr"][:-1]
    del file["X/indptr"]
    file["X/indptr"] = pointers


def few_genes(file: h5py.File) -> None:
    del file["var"]
    ad.io.write_elem(file, "var", pd.DataFrame(index=[f"G{j}" for j in range(7)]))


def empty(n: int, g: int) -> Callable[[Path], Case]:
    def case(folder: Path) -> Case:
        path = folder / "screen.h5ad"
        made.adata()[:n, :g].copy().write_h5ad(path)
        return path, {}

    return case


BAD: dict[str, tuple[Callable[[Path], Case], list[str]]] = {
    # -- the file
    "missing file": (missing_file, ["nroman.h5ad", "no such file", "did you mean norman.h5ad"]),
    "missing folder": (missing_folder, ["nowhere", "no such file", "check the path"]),
    "a folder": (plain_folder, ["screen.zarr", "not a Zarr store", "write_h5ad"]),
    "empty file": (lambda d: (content(d, b""), {}), ["screen.h5ad", "empty (0 bytes)", "copy or download"]),
    "cut short": (
        cut_short,
        ["screen.h5ad", "cannot be opened", "bytes, but should have", "copy or download it again"],
    ),
    "cut to the header": (cut_to_the_header, ["screen.h5ad", "cannot be opened", "copy or download it again"]),
    "a text file": (lambda d: (content(d, b"cell,gene\n1,2\n"), {}), ["screen.h5ad", "not an HDF5 file", "write_h5ad"]),
    "a gzip file": (lambda d: (content(d, gzip.compress(b"x")), {}), ["a gzip archive", "write_h5ad"]),
    "a zip file": (lambda d: (content(d, b"PK\x03\x04"), {}), ["a zip archive"]),
    "a Git LFS pointer": (
        lambda d: (content(d, b"version https://git-lfs.github.com/spec/v1\n"), {}),
        ["Git LFS pointer", "git lfs pull"],
    ),
    "an HDF5 file of something else": (
        lambda d: (hdf5(d, "weights"), {}),
        ["not an AnnData file", "no obs", "weights"],
    ),
    "an empty HDF5 file": (lambda d: (hdf5(d), {}), ["not an AnnData file", "nothing"]),
    "a 10x file": (lambda d: (hdf5(d, "matrix"), {}), ["10x Genomics", "no barcodes", "filtered_feature_bc_matrix.h5"]),
    "a MuData file": (lambda d: (hdf5(d, "mod", "obs", "var"), {}), ["not an AnnData file", "MuData"]),
    "a Zarr store of something else": (zarr_without_obs, ["screen.zarr", "not an AnnData file"]),
    "a broken Zarr store": (broken_zarr, ["screen.zarr", "cannot read", "damaged"]),
    # -- the matrix
    "no X": (lambda d: (changed(d, without_x), {}), ["no X", "--layer raw_counts"]),
    "no X and no layer": (lambda d: (edited(d, drop("X")), {}), ["no X", "no layers either", "add the values"]),
    "missing layer": (
        lambda d: (changed(d, lambda a: a.layers.update({"counts": a.X})), {"layer": "count"}),
        ["no layer called 'count'", "screen.h5ad", "did you mean 'counts'"],
    ),
    "missing layer of none": (
        lambda d: (good(d), {"layer": "counts"}),
        ["no layer called 'counts'", "there is no layer"],
    ),
    "text in X": (lambda d: (edited(d, text_matrix), {}), ["screen.h5ad", "X holds values of type", "not numbers"]),
    "a vector in X": (
        lambda d: (edited(d, lambda f: (drop("X")(f), f.create_dataset("X", data=np.zeros(60)))), {}),
        ["X is not a matrix", "(60,)", "CSR"],
    ),
    "sparse parts missing": (lambda d: (edited(d, drop("X/indices")), {}), ["cannot read X", "damaged"]),
    "sparse parts that do not fit": (lambda d: (edited(d, short_pointers), {}), ["parts of the sparse matrix X"]),
    "genes that do not fit": (lambda d: (edited(d, few_genes), {}), ["60 x 12", "7 genes in var"]),
    "NaN": (
        lambda d: (changed(d, value(np.nan)), {}),
        ["X holds nan", "'cell8' (row 8)", "'G5'", "not a finite number", "take the samples or genes"],
    ),
    "infinite": (lambda d: (changed(d, value(np.inf)), {}), ["X holds inf", "'cell8'", "'G5'"]),
    "zero samples": (empty(0, 12), ["0 samples and 12 genes", "nothing to evaluate"]),
    "zero genes": (empty(60, 0), ["60 samples and 0 genes", "nothing to evaluate"]),
    # -- the scale and quality control
    "unknown scale": (lambda d: (good(d), {"scale": "log"}), ["no scale called 'log'", "log1p"]),
    "fractions declared counts": (
        lambda d: (changed(d, value(2.5)), {"scale": "counts"}),
        ["X holds 2.5", "'cell8'", "'G5'", "not a whole number", "leave out --scale counts"],
    ),
    "negative values declared counts": (
        lambda d: (changed(d, value(-3)), {"scale": "counts"}),
        ["X holds -3", "'cell8'", "is negative"],
    ),
    "counts declared log1p": (lambda d: (good(d), {"scale": "log1p"}), ["whole number", "leave out --scale log1p"]),
    "threshold below zero": (lambda d: (good(d), {"min_counts": -1}), ["min_counts is -1", "--min-counts 0"]),
    "threshold that is no number": (lambda d: (good(d), {"min_counts": float("nan")}), ["min_counts is nan"]),
    "everything dropped": (
        lambda d: (good(d), {"min_counts": 1e6}),
        ["drops all 60 samples", "median is", "--min-counts"],
    ),
    "all controls dropped": (
        lambda d: (
            changed(d, lambda a: a.X.__setitem__(a.obs["is_control"].to_numpy(), 1.0)),
            {"min_counts": 12.5},
        ),
        ["drops all 12 controls", "median is 12", "--min-counts 12"],
    ),
    # -- the roles
    "missing perturbation column": (
        lambda d: (good(d), {"roles": Roles("perturbatoin", CONTROL)}),
        [
            "no obs column called 'perturbatoin'",
            "screen.h5ad",
            "perturbation column",
            "did you mean 'perturbation'",
            "lane",
        ],
    ),
    "missing batch column": (
        lambda d: (good(d), {"roles": Roles("perturbation", CONTROL, batch="gem")}),
        ["no obs column called 'gem'", "batch column", "is_control"],
    ),
    "missing control column": (
        lambda d: (good(d), {"roles": Roles("perturbation", control_column="control")}),
        ["no obs column called 'control'", "did you mean 'is_control'"],
    ),
    "missing target gene column": (
        lambda d: (good(d), {"roles": Roles("perturbation", CONTROL, target_gene="target")}),
        ["no obs column called 'target'", "target gene column"],
    ),
    "missing cell line column": (
        lambda d: (good(d), {"roles": Roles("perturbation", CONTROL, cell_line="line")}),
        ["no obs column called 'line'", "cell line column"],
    ),
    "missing gene symbol column": (
        lambda d: (good(d), {"roles": Roles("perturbation", CONTROL, gene_symbol="symbol")}),
        ["no var column called 'symbol'", "gene symbol column"],
    ),
    "no control named": (
        lambda d: (good(d), {"roles": Roles("perturbation")}),
        ["no control is named", "--control", "look like controls: control"],
    ),
    "control label that does not exist": (
        lambda d: (good(d), {"roles": Roles("perturbation", ("contrl",))}),
        ["control label 'contrl'", "'perturbation'", "did you mean 'control'"],
    ),
    "control label of another kind": (
        lambda d: (good(d), {"roles": Roles("perturbation", ("xyz",))}),
        ["control label 'xyz'", "its labels are: G1, G1+G2", "look like controls: control"],
    ),
    "one of two control labels does not exist": (
        lambda d: (good(d), {"roles": Roles("perturbation", ("control", "DMSO"))}),
        ["control label 'DMSO'"],
    ),
    "control column of decimal numbers": (
        lambda d: (good(d), {"roles": Roles("perturbation", control_column="depth")}),
        ["'depth' is not a true/false column", "'0.5'", "--control LABEL"],
    ),
    "control column of labels": (
        lambda d: (good(d), {"roles": Roles("perturbation", control_column="perturbation")}),
        ["'perturbation' is not a true/false column", "'control'"],
    ),
    "control column that is never true": (
        lambda d: (
            changed(d, labels("is_control", False)),
            {"roles": Roles("perturbation", control_column="is_control")},
        ),
        ["marks none of the 60 samples"],
    ),
    "everything is a control": (
        lambda d: (changed(d, labels("perturbation", "control")), {}),
        ["no perturbed sample is left, only 60 controls", "--control"],
    ),
    "perturbation column of decimal numbers": (
        lambda d: (good(d), {"roles": Roles("depth", CONTROL)}),
        ["'depth' holds decimal numbers (such as 0.5)", "perturbation"],
    ),
    "batch column of decimal numbers": (
        lambda d: (good(d), {"roles": Roles("perturbation", CONTROL, batch="depth")}),
        ["'depth' holds decimal numbers", "batch"],
    ),
    "no perturbation labels": (
        lambda d: (
            changed(d, labels("perturbation", np.nan)),
            {"roles": Roles("perturbation", control_column="is_control")},
        ),
        ["none of the 60 samples has a label", "'perturbation'", "--perturbation"],
    ),
    "no batch labels": (
        lambda d: (changed(d, labels("batch", np.nan)), {}),
        ["none of the 60 samples", "'batch'", "--batch"],
    ),
    "controls without a batch": (
        lambda d: (changed(d, lambda a: a.obs.loc.__setitem__((a.obs["is_control"], "batch"), np.nan)), {}),
        ["no control is left", "the file has 12 controls; 12 samples dropped: no batch label"],
    ),
    "obs column spoilt": (
        lambda d: (edited(d, drop("obs/perturbation/codes")), {}),
        ["cannot read obs['perturbation']", "damaged"],
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_screen(tmp_path: Path, kind: str) -> None:
    make, expected = BAD[kind]
    path, options = make(tmp_path)
    roles = options.pop("roles", made.ROLES)
    with pytest.raises(InputError) as caught:
        open_screen(path, roles, **options)
    error = caught.value
    for text in expected:
        assert text in str(error)
    if kind not in ("unknown scale", "threshold below zero", "threshold that is no number"):
        assert str(path) in error.problem
    assert error.remedy
    assert "Traceback" not in str(error) and len(str(error)) < 900
    # The file is let go of, so that it can be repaired at once.
    if path.is_file():
        path.unlink()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"control": CONTROL, "control_column": "is_control"}, ["named twice", "either --control"]),
        ({"control": CONTROL, "batch": "perturbation"}, ["as the perturbation and as the batch column", "two columns"]),
    ],
)
def test_roles_that_contradict_each_other(arguments: dict, expected: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        Roles("perturbation", **arguments)
    for text in expected:
        assert text in str(caught.value)


def test_a_threshold_that_drops_nearly_all_samples_is_refused(data_dir: Path) -> None:
    panel = data_dir / "papalexi2021_thp1_ecciteseq_299genes.h5ad"
    with pytest.raises(InputError, match=r"would keep 2 of 20,729 samples.*\n.*--min-counts"):
        open_screen(panel, Roles("perturbation", control=("non-targeting",), batch="bio_rep"), min_counts=1000)


def test_a_column_given_as_control_label_is_pointed_out(data_dir: Path) -> None:
    panel = data_dir / "papalexi2021_thp1_ecciteseq_299genes.h5ad"
    with pytest.raises(InputError, match="--control-column control"):
        open_screen(panel, Roles("perturbation", control=("control",), batch="bio_rep"))
